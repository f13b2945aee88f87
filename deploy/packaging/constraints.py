"""Which versions of the libraries are known to work, and since when: ``deploy/constraints.txt``.

It is made from what is installed beside this Python. pip reads it as constraints, and ``pip-audit`` as requirements.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final, NamedTuple

from packaging.requirements import Requirement

from deploy.packaging.sbom import canonical
from deploy.packaging.wheels import TOP

FILE: Final = TOP / "deploy/constraints.txt"
_EXTRAS: Final = frozenset({"etcd", "render"})
_LINE: Final = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>\S+)  # (?P<since>\d{4}-\d{2}-\d{2})")
_HEAD: Final = """\
# The libraries of bpbroker[etcd,render], each in the version that was tested last, and since when it is in this list.
# Written by deploy/build-constraints, from what is installed; for use with: pip install -c deploy/constraints.txt
# Known faults of these versions, where PyPI can be reached: pip-audit --no-deps --disable-pip -r deploy/constraints.txt
"""


class Pin(NamedTuple):
    """One library."""

    version: str
    since: date


def installed() -> dict[str, str]:
    """Return name and version of all that bpbroker needs, which is installed, without bpbroker itself.

    Raises:
        PackageNotFoundError: bpbroker, or something that it needs, is not installed.
    """
    found: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [("bpbroker", _EXTRAS)]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        part = distribution(name)
        found[canonical(name)] = part.version
        for line in part.requires or ():
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in (extras or {""})):
                waiting.append((need.name, frozenset(need.extras)))
    del found["bpbroker"]
    return dict(sorted(found.items()))


def read(text: str) -> dict[str, Pin]:
    """Return what a list says.

    Raises:
        ValueError: a line is of another form.
    """
    pins = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"not a pin with its day: {line!r}")
        pins[found["name"]] = Pin(found["version"], date.fromisoformat(found["since"]))
    return pins


def written(versions: Mapping[str, str], before: Mapping[str, Pin], today: date) -> str:
    """Return the list of these versions; a version that was in it keeps its day."""
    lines = []
    for name, version in sorted(versions.items()):
        old = before.get(name)
        since = old.since if old is not None and old.version == version else today
        lines.append(f"{name}=={version}  # {since}\n")
    return _HEAD + "".join(lines)


def main() -> None:
    """Write the list anew."""
    before = read(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    try:
        versions = installed()
    except PackageNotFoundError as error:
        raise SystemExit(f"not installed: {error}; pip install '.[etcd,render]'") from None
    Path(FILE).write_text(written(versions, before, date.today()), encoding="utf-8")  # noqa: DTZ011 - a day for people
    print(FILE)  # noqa: T201 - its result


if __name__ == "__main__":
    main()
