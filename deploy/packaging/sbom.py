"""What a package ships: a software bill of materials (CycloneDX 1.5), and the licences."""

from __future__ import annotations

import email.parser
import json
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.packaging.wheels import SHIPPED, BuildError

_LICENCE_FILES: Final = re.compile(r"(licen[cs]e|copying|notice|authors|copyright)", re.IGNORECASE)
_CLASSIFIER: Final = "License :: OSI Approved :: "


@dataclass(frozen=True, slots=True)
class Component:
    """One distribution that is shipped."""

    name: str
    version: str
    licence: str
    """An SPDX expression where the distribution has one, else its own words."""
    is_expression: bool
    summary: str
    needs: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]
    """File name and content of its licences."""

    @property
    def purl(self) -> str:
        """Return the package URL, by which a component is known everywhere."""
        return f"pkg:pypi/{canonical(self.name)}@{self.version}"


def canonical(name: str) -> str:
    """Return a distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def components(site: Path) -> list[Component]:
    """Return all distributions in a folder of modules, by name, with those that another one has copies of.

    Raises:
        BuildError: one does not say its licence, or brings no text of it.
    """
    # What lies on top comes first: it counts where a copy has the same name.
    folders = sorted(site.rglob("*.dist-info"), key=lambda folder: (len(folder.parts), folder))
    found = {component.purl: component for component in map(_component, folders)}
    if not found:
        raise BuildError(f"no distribution is in {site}")
    return sorted(found.values(), key=lambda component: canonical(component.name))


def _component(folder: Path) -> Component:
    fields = email.parser.Parser().parsestr((folder / "METADATA").read_text(encoding="utf-8"))
    name = fields["Name"]
    texts = tuple(
        (str(path.relative_to(folder)), path.read_text(encoding="utf-8", errors="replace"))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _LICENCE_FILES.search(path.name)
    )
    classified = [
        line.removeprefix(_CLASSIFIER) for line in fields.get_all("Classifier") or () if line.startswith(_CLASSIFIER)
    ]
    stated = (fields["License"] or "").strip()
    licence = fields["License-Expression"] or (stated if stated and "\n" not in stated else " / ".join(classified))
    if not licence:
        raise BuildError(
            f"{name} {fields['Version']} does not say its licence: name a version that does in {SHIPPED.name}"
        )
    if not texts and canonical(name) != "bpbroker":
        raise BuildError(f"{name} {fields['Version']} brings no text of its licence: see {SHIPPED.name}")
    needs = [re.split(r"[\s;\[(<>=!~]", line, maxsplit=1)[0] for line in fields.get_all("Requires-Dist") or ()]
    expression = fields["License-Expression"] is not None
    return Component(name, fields["Version"], licence, expression, fields["Summary"] or "", tuple(needs), texts)


def document(site: Path, *, timestamp: str) -> str:
    """Return the bill of materials as JSON text; the same each time for the same folder and time."""
    parts = components(site)
    on_top = {_component(folder).purl for folder in site.glob("*.dist-info")}
    known = {canonical(part.name): part for part in parts if part.purl in on_top}
    own = known.pop("bpbroker")
    shipped = {
        part.purl: sorted({known[canonical(need)].purl for need in part.needs if canonical(need) in known})
        for part in parts
    }
    bill: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"timestamp": timestamp, "component": {**_entry(own), "type": "application"}},
        "components": [_entry(part) for part in parts if part is not own],
        "dependencies": [{"ref": purl, "dependsOn": needs} for purl, needs in shipped.items()],
    }
    return json.dumps(bill, indent=1) + "\n"


def _entry(part: Component) -> dict[str, Any]:
    licence = {"expression": part.licence} if part.is_expression else {"license": {"name": part.licence}}
    return {
        "type": "library",
        "bom-ref": part.purl,
        "name": part.name,
        "version": part.version,
        "description": part.summary,
        "licenses": [licence],
        "purl": part.purl,
    }


def licences(site: Path) -> Iterator[str]:
    """Yield the text that names the licence of each part, with the texts that come with it."""
    yield from _licences(components(site))


def licences_of_wheels(folder: Path) -> Iterator[str]:
    """Yield the same of the wheels in a folder."""
    with tempfile.TemporaryDirectory() as work:
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(work)
        yield from _licences(components(Path(work)))


def _licences(parts: Iterable[Component]) -> Iterator[str]:
    for part in parts:
        if canonical(part.name) != "bpbroker":
            yield f"{part.name} {part.version}: {part.licence}"
            for name, text in part.texts:
                yield f"--- {part.name}: {name}\n{text.rstrip()}\n"
