"""What the documents say of the tree is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IN_CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"\.?[\w-]+(/[\w.-]+)*(\.(py|md|toml|yaml|sh)|/)|\.ci/run")
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


def test_every_wing_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "bpbroker"
    wings = [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    modules = [path.name for path in package.glob("[a-z]*.py")]
    assert not [name for name in (*wings, *modules) if f"`{name}`" not in text]


def test_every_actor_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for module in (ROOT / "bpbroker" / "actors").glob("*.py"):
        if re.search(r"^class [A-Z]\w*\(Actor\)", module.read_text(), re.MULTILINE):
            assert f"`actors/{module.name}`" in text, f"{module.name} is not in docs/architecture.md"
