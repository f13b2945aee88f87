"""Extension modules: where they are, what they offer, and what their authors may use.

A module ``ossec.py`` in the lib folder is the namespace ``ossec``; it can be
called when the configuration has a section of that name. A section
``pkg.module`` is the module ``module`` of the package ``pkg`` there.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

_PART: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


class Error(Exception):
    """What a method raises to refuse a request: ``raise Error(409, "The host is registered already")``.

    Args:
        status: the HTTP status, 400 to 599.
        message: one line for the client.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Status(Enum):
    """Whether a namespace's module can be used, as far as can be told without running it."""

    USABLE = "usable"
    MISSING = "missing"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class ExtensionRecord:
    """One namespace's module, looked at without running it."""

    namespace: str
    status: Status
    path: Path | None
    methods: tuple[str, ...] = ()
    """Functions that it will offer, by its source; imports may take some away, never add any."""
    problem: str = ""
    """Why it cannot be used; one line, for the operator."""


def find(namespace: str, lib: Path) -> Path | None:
    """Give the file of a namespace's module in the lib folder, or None."""
    parts = namespace.split(".")
    if not all(_PART.match(part) for part in parts):
        return None
    stem = lib.joinpath(*parts)
    for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
        # A link that leads out of the folder would run what nobody installed.
        if path.is_file() and path.resolve().is_relative_to(lib.resolve()):
            return path
    return None


def look_at(namespace: str, lib: Path) -> ExtensionRecord:
    """Look at a namespace's module without running it."""
    path = find(namespace, lib)
    if path is None:
        wanted = "/".join(namespace.split("."))
        return ExtensionRecord(namespace, Status.MISSING, None, problem=f"there is no {wanted}.py in the lib folder")
    try:
        methods = offered(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        return ExtensionRecord(namespace, Status.BROKEN, path, problem=f"it does not parse: {one_line(error)}")
    except OSError as error:
        return ExtensionRecord(namespace, Status.BROKEN, path, problem=f"it cannot be read: {error.strerror}")
    return ExtensionRecord(namespace, Status.USABLE, path, methods)


def offered(source: bytes, name: str) -> tuple[str, ...]:
    """Give the methods that a module's source defines: top-level functions whose name has no ``_`` in front.

    Raises:
        SyntaxError, ValueError: it does not parse.
    """
    tree = ast.parse(source, name)
    return tuple(node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"))


def one_line(error: BaseException) -> str:
    """Give an error as one line: its type and what it says."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
