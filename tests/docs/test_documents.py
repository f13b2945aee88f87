"""What the documents say of the tree is so."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest

from bpbroker.config import schema
from bpbroker.registry.changes import GROUP_MAX, GROUP_MAX_BYTES, READ_MAX
from bpbroker.registry.room import NAMES_OF_ONE_END

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IN_CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"\.?[\w-]+(/[\w.-]+)*(\.(py|md|toml|yaml|sh|service)|/)|\.ci/run")
WINGS = sorted((ROOT / "bpbroker").glob("*/**/__init__.py"))
OF_USERS = {"conftest.py", "hello.py", "inventory.py", "NAME.py", "etc/", "lib/", "backups/"}


def named_files(document: Path) -> set[str]:
    words = {word for code in IN_CODE.findall(document.read_text()) for word in code.split()}
    return {word for word in words if FILE.fullmatch(word)} - OF_USERS


def exists(name: str) -> bool:
    """Whether a file is where a document says: from the root, or from the package."""
    return any((folder / name).exists() for folder in (ROOT, ROOT / "bpbroker"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    assert not [name for name in named_files(document) if not exists(name)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert not [link for link in links if not (document.parent / link).exists()]


def test_files_are_found_in_the_documents() -> None:
    assert len(named_files(ROOT / "docs" / "architecture.md")) > 40
    assert len(named_files(ROOT / "CONTRIBUTING.md")) > 15


def test_every_line_of_where_is_names_a_file() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("## Where is …")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ") and line != "| what | file |"]
    assert len(lines) >= 20
    for line in lines:
        _, answer = line.strip("|").split("|")
        named = [word for code in IN_CODE.findall(answer) for word in code.split() if FILE.fullmatch(word)]
        assert named, line
        assert all(map(exists, named)), line


@pytest.mark.parametrize("wing", WINGS, ids=lambda path: path.parent.name)
def test_every_module_that_a_wing_tells_to_read_is_there(wing: Path) -> None:
    said = ast.get_docstring(ast.parse(wing.read_text())) or ""
    told = " ".join(part for part in said.split("\n\n") if re.search(r"\b[Rr]ead(ers begin)?\b", part))
    named = set(re.findall(r"``([a-z_0-9]+)``", told))
    assert named
    assert not [name for name in named if not {f"{name}.py", name} & {path.name for path in wing.parent.iterdir()}]


def test_every_wing_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "bpbroker"
    wings = [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    modules = [path.name for path in package.glob("[a-z]*.py")]
    assert not [name for name in (*wings, *modules) if f"`{name}`" not in text]


def test_the_floors_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["name"].startswith("Floors"))
    floors = {wing: number for number, layer in enumerate(layers, 1) for wing in layer.split(" | ")}
    text = (ROOT / "docs" / "architecture.md").read_text()
    shown = {
        name.strip("/").removesuffix(".py"): int(number)
        for number, name in re.findall(r"^\| (\d+) \| `([a-z_]+(?:/|\.py))`", text, re.MULTILINE)
    }
    assert shown == floors


def test_every_actor_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for module in (ROOT / "bpbroker" / "actors").glob("*.py"):
        if re.search(r"^class [A-Z]\w*\(Actor\)", module.read_text(), re.MULTILINE):
            assert f"`actors/{module.name}`" in text, f"{module.name} is not in docs/architecture.md"


def test_limits_that_the_semantics_name_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "semantics.md").read_text()
    for said in (
        f"on etcd in parts of {READ_MAX // NAMES_OF_ONE_END} (",
        f"on etcd {GROUP_MAX} records",
        f" and {GROUP_MAX_BYTES / 1024 / 1000:g} MiB |",
        f"`history_bytes` ({schema.KNOWN['_registry']['history_bytes'].default >> 20} MiB)",
        *(
            f"`{name}` ({schema.KNOWN['_registry'][name].default})"
            for name in ("max_sessions", "max_places", "max_numbers")
        ),
    ):
        assert said in text, said


def test_no_page_lets_others_see_a_key() -> None:
    """Other users can read files of the usual mode, and the command lines of processes."""
    lines = [
        line for page in (ROOT / "docs").glob("*.md") for line in page.read_text().splitlines() if line[:2] == "$ "
    ]
    kept = [line for line in lines if re.search(r"(key add|bpbroker token)\b.*>", line)]
    assert len(kept) >= 4
    assert [line for line in kept if "(umask 077; " not in line] == []
    called = [line for line in lines if "curl" in line]
    assert len(called) >= 5
    assert [line for line in called if "Bearer" in line or "$KEY" in line or "$(cat" in line] == []


ROLE = re.compile(r":(?:func|class|meth|mod|data|exc):`~?(bpbroker[\w.]*)`")
NAMED = sorted({name for path in (ROOT / "bpbroker").rglob("*.py") for name in ROLE.findall(path.read_text())})


def test_names_are_found_in_docstrings() -> None:
    assert len(NAMED) > 40


@pytest.mark.parametrize("name", NAMED)
def test_every_name_that_a_docstring_gives_in_full_exists(name: str) -> None:
    assert resolve_name(name) is not None
