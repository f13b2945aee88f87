"""What silences a check, and each handler that takes whatever comes, says why."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).parents[1]
SILENCED = re.compile(r"# (?:noqa\b(?!: [A-Z0-9, ]+ - \S)|type: ignore\b(?!\[[a-z, -]+\]  # \S))")
TAKES_ALL = re.compile(r"except BaseException\b[^#]*$")


def _faults(folder: str) -> list[str]:
    found = []
    for path in sorted((TOP / folder).rglob("*.py")):
        if path == Path(__file__):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            silenced = any(True for _ in SILENCED.finditer(line))
            begins_with_reason = lines[number + 1 : number + 2] and lines[number + 1].lstrip().startswith("#")
            if silenced or (TAKES_ALL.search(line) and not begins_with_reason):
                found.append(f"{path.relative_to(TOP)}:{number + 1}: {line.strip()}")
    return found


def test_every_silenced_check_has_its_reason() -> None:
    assert [fault for folder in ("bpbroker", "examples", "deploy", "tests") for fault in _faults(folder)] == []


SILENT = ("x = 1  # noqa", "x = 1  # noqa: E501", "x = 1  # type: ignore", "x = 1  # type: ignore[misc]")
EXPLAINED = ("x = 1  # noqa: E501 - long", "x  # type: ignore[misc]  # why", "x  # type: ignore[a]  # noqa: B1 - why")


def test_it_finds_what_has_none() -> None:
    assert [line for line in (*SILENT, *EXPLAINED) if SILENCED.search(line)] == list(SILENT)
    assert TAKES_ALL.search("    except BaseException as error:")
    assert not TAKES_ALL.search("    except BaseException:  # why")
