"""What files hold while a broker works on them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def contents(folder: Path) -> dict[Path, bytes]:
    """Return path and content of each file below a folder, but of those that go while this looks at them."""
    found: dict[Path, bytes] = {}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a new one takes the place of the old one, under another name before
            if path.is_file():
                found[path] = path.read_bytes()
    return found
