"""The configuration file as a snapshot: settings and entries, read strictly, written atomically.

One section a block, one entry a line, so that a person can read and edit it
while the broker is stopped.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bpbroker import config, entry
from bpbroker.errors import BadRequest, ConfigurationError, DamagedFile, StorageFailed, StorageFull

_DEPTH_MAX = 200
_ENTRIES_PER_WRITE = 1000


def read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Give ``(settings, entries)`` of a file; both empty when there is no such file.

    Raises:
        DamagedFile: it is there but is no configuration; the message says where and why.
        ConfigurationError: it cannot be read.
    """
    try:
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
    document = parse_document(content, where)
    settings, values = config.split(document)
    entries: dict[str, bytes] = {}
    for name, value in values.items():
        if not isinstance(value, dict):
            raise DamagedFile(f"{where}: services.{name} is not an object, but every entry must be one")
        try:
            entries[name] = entry.encode(value)
        except UnicodeEncodeError:
            raise DamagedFile(f"{where}: services.{name} holds a lone surrogate, which is no text") from None
    return settings, entries


def parse_document(content: bytes, where: str) -> dict[str, Any]:
    """Give the JSON object in ``content``.

    Raises:
        DamagedFile: with line and column where there are any.
    """
    if not content.strip():
        raise DamagedFile(f"{where} is empty")
    try:
        document = entry.strict_json(content.decode("utf-8-sig"), what=where, max_depth=_DEPTH_MAX)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DamagedFile(f"{where}: line {line} is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise DamagedFile(f"{where}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except BadRequest as error:
        raise DamagedFile(str(error)) from None
    if not isinstance(document, dict):
        raise DamagedFile(f"{where} holds no JSON object; it must begin with {{")
    return document


def write(path: Path, settings: Mapping[str, Any], entries: Mapping[str, bytes]) -> None:
    """Replace the file by this state, atomically and durably; mode 0600.

    Either the old file is there whole or the new one, whatever happens.

    Raises:
        StorageFull: the disk is full; the old file is there.
        StorageFailed: anything else went wrong; the old file is there unless ``outcome_known`` is False.
    """
    renamed = False
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            for piece in _pieces(settings, entries):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        renamed = True
        sync_folder(path.parent)
    except OSError as error:
        if temporary is not None and not renamed:
            with suppress(OSError):
                Path(temporary).unlink()
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) and not renamed else StorageFailed
        failure = kind(f"Cannot write {path}: {error.strerror or error}")
        failure.outcome_known = not renamed
        raise failure from None


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder durable; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pieces(settings: Mapping[str, Any], entries: Mapping[str, bytes]) -> Iterator[bytes]:
    """Give the file's text in pieces small enough to let other threads run in between."""
    sections = dict(settings)
    sections.setdefault(config.REGISTRY_SECTION, {})
    yield b"{"
    for number, (name, section) in enumerate(sections.items()):
        yield b",\n    " if number else b"\n    "
        yield json.dumps(name, ensure_ascii=False).encode() + b": "
        if name == config.REGISTRY_SECTION and isinstance(section, Mapping):
            yield from _registry(section, entries)
        else:
            yield json.dumps(config.thaw(section), ensure_ascii=False, indent=4).replace("\n", "\n    ").encode()
    yield b"\n}\n"


def _registry(section: Mapping[str, Any], entries: Mapping[str, bytes]) -> Iterator[bytes]:
    own = {key: json.dumps(config.thaw(value), ensure_ascii=False).encode() for key, value in section.items()}
    yield b"{"
    lines: list[bytes] = []
    first = True
    for items in (own, entries):
        for key, value in items.items():
            lines.append((b"\n        " if first else b",\n        ") + json.dumps(key).encode() + b": " + value)
            first = False
            if len(lines) == _ENTRIES_PER_WRITE:
                yield b"".join(lines)
                lines.clear()
    yield b"".join(lines)
    yield b"}" if first else b"\n    }"
