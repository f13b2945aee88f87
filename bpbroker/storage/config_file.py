"""The configuration file as a snapshot: settings and entries, read strictly, written atomically.

How it looks is in :mod:`bpbroker.storage.document`, how it gets onto the disk in
:mod:`bpbroker.files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bpbroker import files
from bpbroker.errors import ConfigurationError, DamagedFile
from bpbroker.storage import document


def read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Give ``(settings, entries)`` of a file; both empty when there is no such file.

    Raises:
        DamagedFile: it is there but is no configuration; the message says where and why.
        ConfigurationError: it cannot be read.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # such as a device, which may never end
            raise ConfigurationError(f"Cannot read {path}: it is no regular file")
        content = path.read_bytes()
    except FileNotFoundError:
        return {}, {}
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path}: {error.strerror}") from None
    return parse(content, str(path))


def parse(content: bytes, where: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Give ``(settings, entries)`` of a file's content; ``where`` names it in messages.

    Raises:
        DamagedFile: it is no configuration.
    """
    try:
        return document.parse(content)
    except document.Fault as fault:
        raise DamagedFile(f"{where}: {fault}") from None


def write(path: Path, settings: Mapping[str, Any], entries: Mapping[str, bytes], *, gently: bool = False) -> None:
    """Replace the file by this state, atomically and durably; mode 0600.

    Either the old file is there whole or the new one, whatever happens. With
    ``gently`` it takes longer and does not slow down other threads.

    Raises:
        StorageFull: the disk is full; the old file is there.
        StorageFailed: anything else went wrong; the old file is there unless ``outcome_known`` is False.
    """
    content = chunks(settings, entries)
    files.replace(path, files.gently(content) if gently else content)


def chunks(settings: Mapping[str, Any], entries: Mapping[str, bytes]) -> Iterator[bytes]:
    """Give a file's content piece by piece."""
    return document.chunks(settings, entries)
