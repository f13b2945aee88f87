"""Extension modules: what their authors use, where they are, what they offer, how they get there.

A module ``ossec.py`` in the lib folder is the namespace ``ossec``; it can be
called when the configuration has a section of that name. A section
``pkg.module`` is the module ``module`` of the package ``pkg`` there. Nothing
here runs a module; that is done in :mod:`bpbroker.extensions.child_main` alone.
"""

from __future__ import annotations

import hashlib
import inspect
import keyword
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import CodeType
from typing import Any, Final

from bpbroker.config import layers
from bpbroker.extensions.rh import one_line

SOURCE_MAX_BYTES: Final = 16 * 1024 * 1024
_FILES_MAX: Final = 10_000
_RUNS_NOTHING: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
"""Calling a function of such a kind runs nothing of it."""
_PART: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Status(Enum):
    """Whether a namespace's module can be used, as far as can be told without running it."""

    USABLE = "usable"
    MISSING = "missing"
    BROKEN = "broken"
    REFUSED = "refused"
    """Its name can be no extension's."""


@dataclass(frozen=True, slots=True)
class ExtensionRecord:
    """The result of a check of one namespace's module without running it."""

    namespace: str
    status: Status
    path: Path | None = None
    methods: tuple[str, ...] = ()
    """Functions that its source defines for clients."""
    problem: str = ""
    """Why it cannot be used; one line, nothing secret, empty when it can."""
    enabled: bool = False
    """Whether the configuration has its section."""


def name_problem(namespace: str) -> str:
    """Say why a namespace can be no extension's; empty when it can."""
    parts = namespace.split(".")
    top = parts[0]
    if not all(_PART.fullmatch(part) for part in parts):
        return f"{one_line(namespace)[:60]!r} is no name of a Python module (letters, digits and _, a letter first)"
    if any(keyword.iskeyword(part) for part in parts):
        return f"{namespace!r} is a word of Python's own and cannot be imported"
    if top in sys.stdlib_module_names:
        return f"{top!r} is a module of Python's standard library"
    if top == "bpbroker" or namespace in layers.DEFAULTS:
        return f"{namespace!r} is the broker's own"
    return ""


def find(namespace: str, lib: Path) -> Path | None:
    """Return the file of a namespace's module, or None; a package goes before a module, as in Python."""
    stem = lib.joinpath(*namespace.split("."))
    for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
        if path.is_file():
            return path
    return None


def look_at(namespace: str, lib: Path) -> ExtensionRecord:
    """Check a namespace's module without running it."""
    problem = name_problem(namespace)
    if problem:
        return ExtensionRecord(namespace, Status.REFUSED, problem=problem)
    path = find(namespace, lib)
    if path is None:
        wanted = "/".join(namespace.split("."))
        return ExtensionRecord(namespace, Status.MISSING, problem=f"there is no {wanted}.py in the lib folder")
    try:
        return ExtensionRecord(namespace, Status.USABLE, path, methods=offered(read_source(path)))
    except SyntaxError as error:
        said = f"it does not parse: {error.msg}" + (f", line {error.lineno}" if error.lineno else "")
    except OSError as error:
        said = f"it cannot be read: {error.strerror}"
    except ValueError as error:
        said = f"it does not parse: {error}"
    return ExtensionRecord(namespace, Status.BROKEN, path, problem=one_line(said))


def catalogue(settings: Mapping[str, Any], lib: Path) -> tuple[ExtensionRecord, ...]:
    """Return all namespaces that are enabled or have a module in the lib folder, by name."""
    enabled = set(layers.namespaces(settings))
    names = enabled | {name for name in _modules(lib) if not name_problem(name)}
    records = []
    for name in sorted(names):
        found = look_at(name, lib)
        if name in enabled or found.methods or found.status is Status.BROKEN:
            records.append(
                ExtensionRecord(name, found.status, found.path, found.methods, found.problem, enabled=name in enabled)
            )
    return tuple(records)


def _modules(lib: Path) -> Iterator[str]:
    """Yield the names of all modules in the lib folder, packages' modules included."""
    for path in _files(lib):
        parts = path.relative_to(lib).with_suffix("").parts
        if path.suffix == ".py":
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _files(lib: Path) -> Iterator[Path]:
    """Yield the files below the lib folder, in order, compiled and hidden ones left out; bounded."""
    count = 0
    for folder, folders, names in os.walk(lib):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        for name in sorted(names):
            count += 1
            if count > _FILES_MAX:
                return
            if not name.startswith("."):
                yield Path(folder, name)


def signature(lib: Path) -> bytes:
    """Return a digest that changes when any file of the lib folder does: modules may import each other."""
    digest = hashlib.sha256()
    for path in _files(lib):
        try:
            state = path.stat()
        except OSError:
            continue
        digest.update(f"{path}\0{state.st_mtime_ns}\0{state.st_size}\0{state.st_ino}\n".encode("utf-8", "replace"))
    return digest.digest()


def read_source(path: Path) -> bytes:
    """Read a module's source.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than any module.
    """
    with path.open("rb") as file:
        source = file.read(SOURCE_MAX_BYTES + 1)
    if len(source) > SOURCE_MAX_BYTES:
        raise ValueError(f"it is larger than {SOURCE_MAX_BYTES} bytes")
    return source


def offered(source: bytes) -> tuple[str, ...]:
    """Return the methods that a module's source defines: functions whose name has no ``_`` in front.

    They are read from the compiled module, which holds the code of each function of its top
    level, those under ``if`` and ``try`` too. A syntax tree would not do:
    making one while another thread does the same fails now and then with
    SystemError (seen on Python 3.11.7), and at a reload all namespaces' actors look.

    Raises:
        SyntaxError, ValueError: it does not parse.
    """
    try:
        module = compile(source, "<module>", "exec", dont_inherit=True)
    except (RecursionError, MemoryError):
        raise ValueError("it is nested too deeply") from None
    codes = [code for code in module.co_consts if isinstance(code, CodeType) and code.co_flags & inspect.CO_NEWLOCALS]
    return tuple(
        dict.fromkeys(
            code.co_name
            for code in codes
            if code.co_name.isidentifier() and not code.co_name.startswith("_") and not code.co_flags & _RUNS_NOTHING
        )
    )
