"""``bpclient.pyz``: the client in one file, made of the installed modules and served without a key."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import bpbroker
from bpbroker import stamp
from bpbroker.service.templates import template

_BEGIN: Final = b"#!/usr/bin/env python3\n"
_LIBRARIES: Final = ("click", "colorama", "ifaddr")
"""Libraries in the file; click uses colorama on Windows only."""
_MOMENT: Final = (1980, 1, 1, 0, 0, 0)
"""The time of all files in it, so that one installation always makes the same bytes."""

# Written so that each Python can read it. click is needed for help and usage errors only, and newer versions of it do
# not compile on Python 3.9.
_MAIN: Final = b"""import sys

if sys.version_info < (3, 9):
    found = (sys.executable,) + sys.version_info[:2]
    sys.exit("bpclient needs Python 3.9 or newer; this is %s, Python %d.%d" % found)

from bpbroker.client.cli.main import main

try:
    main()
except SyntaxError:
    sys.stderr.write("Fatal error: This command line is wrong, or asks for help, which needs Python 3.10 here\\n")
    sys.exit(2)
"""


@cache
def content() -> bytes:
    """Return the file. It is made once, of about 60 modules, uncompressed: that takes some milliseconds."""
    made = io.BytesIO(_BEGIN)
    made.seek(0, io.SEEK_END)
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", _MOMENT), _MAIN)
        for name, path in sorted(_modules()):
            archive.writestr(zipfile.ZipInfo(name, _MOMENT), path.read_bytes())
        for name, text in _licences():
            archive.writestr(zipfile.ZipInfo(name, _MOMENT), text)
    return made.getvalue()


@cache
def digest() -> str:
    """Return the file's SHA-256, hexadecimal."""
    return hashlib.sha256(content()).hexdigest()


def _modules() -> Iterator[tuple[str, Path]]:
    """Yield the name in the file and the path of every module that the client may load."""
    top = Path(bpbroker.__file__).parent
    for part in template("client-parts").split():
        found = top / part
        for path in found.rglob("*.py") if found.is_dir() else [found]:
            yield f"bpbroker/{path.relative_to(top).as_posix()}", path
    if (top / stamp.FILE).is_file():
        yield f"bpbroker/{stamp.FILE}", top / stamp.FILE
    for library in _LIBRARIES:
        spec = importlib.util.find_spec(library)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent
            for path in folder.rglob("*.py"):
                yield f"{library}/{path.relative_to(folder).as_posix()}", path


def _licences() -> Iterator[tuple[str, str]]:
    """Yield the name in the file and the text of each library's licences."""
    for library in _LIBRARIES:
        try:
            distribution = importlib.metadata.distribution(library)
        except importlib.metadata.PackageNotFoundError:
            continue
        for name in sorted(distribution.metadata.get_all("License-File") or ()):
            text = distribution.read_text(f"licenses/{name}") or distribution.read_text(name)
            if text:
                yield f"licences/{library}/{name}", text
