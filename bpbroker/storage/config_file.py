"""``bpbroker.json``: settings and entries, read strictly with line and column of a fault, written whole or not at all.

Settings are written indented; in ``services``, beside its own ``_…`` keys,
there is one entry a line, sorted by name. How a file gets onto the disk is in
:mod:`bpbroker.files`.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from json.decoder import JSONDecodeError
from pathlib import Path
from typing import Any, Final, NamedTuple

from bpbroker import files, progress
from bpbroker.config import layers
from bpbroker.errors import BadRequest, ConfigurationError, DamagedFile
from bpbroker.registry import entry_values, named_keys
from bpbroker.registry.stored import split
from bpbroker.storage import backup_identity
from bpbroker.storage.backup_identity import Identity
from bpbroker.text import decode

DEPTH_MAX: Final = 250
"""Deeper than any entry may be (``api.max_json_depth`` is at most 200), shallower than Python's recursion limit."""

NAME_MAX_BYTES: Final = 4096
"""The longest that ``api.max_name_bytes`` may allow."""

CHUNK_ENTRIES: Final = 100
"""Entries a chunk when writing: between two chunks other threads get their turn."""
_STEP_ENTRIES: Final = 2000
"""So often it is said how far reading is."""

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN_KEY = re.compile(r'"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*')
"""A key without escapes, up to its value; nearly all are."""
_NOT_AS_IT_IS = re.compile(r"[\n\r\t]|\\u")
"""In an entry's text: it is spread over lines, or has escapes that may be lone surrogates; written anew then."""
_AT = re.compile(r"(?: starting)? at\Z")

_OBJECTS: Final = "_objects"
"""The section of a file with the registry's own records, whose names begin with ``_``. Never among the settings."""
_BEHIND_OWN: Final = chr(ord("_") + 1)
"""Where such names end, in order."""
_as_json: Final = json.JSONEncoder(ensure_ascii=False).encode

_STATE: Final = "_state"
"""The last section of a file that a broker wrote: its :class:`Origin`. Never among the settings."""
_IDENTITY: Final = "_identity"
"""The last section of a backup: certificate, key and extensions. Never among the settings."""
FORMAT: Final = 1
"""The format that this version reads. A later version whose files it cannot read has to write a larger ``format`` into
their ``_state``."""
_BEFORE_STATE: Final = f',\n  "{_STATE}": '.encode()
_END: Final = b"\n}\n"


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose state a file holds."""

    registry: str
    """The registry's id, 32 hexadecimal digits."""
    commit: int
    """The file holds everything up to this commit of the registry."""
    intact: bool = True
    """Whether the file is byte for byte what the broker wrote."""


class Content(NamedTuple):
    """What is in a configuration file."""

    settings: dict[str, Any]
    entries: dict[str, bytes]
    """Name to entry, JSON in UTF-8; and named access keys, which are the registry's as well."""
    origin: Origin | None
    """None when no broker wrote the file, or one that did not note this yet."""


# --- reading ---


def read(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return ``(settings, entries)`` of a file; see :func:`read_content`."""
    return read_content(path)[:2]


def read_content(path: Path) -> Content:
    """Return the content of a file without what only backups have; an empty one when there is no such file.

    Raises:
        DamagedFile: it is there but is no configuration; the message says where and why.
        ConfigurationError: it cannot be read.
    """
    return read_backup(path)[0]


def read_backup(path: Path) -> tuple[Content, Identity | None]:
    """Return what is in a backup; the identity is None in one that was made before backups had it.

    Raises:
        DamagedFile, ConfigurationError: as :func:`read_content`; also when the identity cannot be used.
    """
    with progress.Work(f"Reading {path}"):
        try:
            if path.exists() and not (path.is_file() or path.is_dir()):  # such as a device, which may never end
                raise ConfigurationError(f"Cannot read {path}: it is no regular file")
            content = path.read_bytes()
        except FileNotFoundError:
            return Content({}, {}, None), None
        except OSError as error:
            raise files.start_error(f"Cannot read {path}: {error.strerror}", error) from None
        found, section = _content(content, str(path))
    return found, None if section is None else backup_identity.decode(section, str(path))


def _origin(state: object, content: bytes) -> Origin | None:
    """Read the last section; None when it is not there or makes no sense."""
    match state:
        case {"registry": str(registry), "commit": int(commit), "digest": digest} if registry and commit >= 0:
            written = content[: max(content.rfind(_BEFORE_STATE), 0)]
            return Origin(registry, commit, intact=digest == _hash(written).hexdigest())
        case _:
            return None


def _hash(content: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=16)


def parse(content: bytes, where: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return ``(settings, entries)`` of a file's content; entries stay JSON in UTF-8.

    Args:
        content: strict JSON: no NaN, no key twice, no lone surrogate.
        where: names the content in messages.

    Raises:
        DamagedFile: it is no configuration; the message says line, column and why.
    """
    return _content(content, where)[0][:2]


def _content(content: bytes, where: str) -> tuple[Content, Any]:
    """Return the content of a file, and the section that only backups have, or None."""
    try:
        settings, entries = _parse(content)
    except _Fault as fault:
        raise DamagedFile(f"{where}: {fault}") from None
    section = settings.pop(_IDENTITY, None)
    state = settings.pop(_STATE, None)
    if isinstance(state, dict) and isinstance(number := state.get("format"), int) and number > FORMAT:
        raise later_version(where, number)
    return Content(settings, entries, _origin(state, content)), section


def later_version(where: object, number: int) -> DamagedFile:
    """Return the refusal of a file that only later versions can read."""
    return DamagedFile(
        f"{where} was written by a later version of bpbroker (format {number}), which this one cannot read."
        " Start that version again, or go back to a backup that this version made"
    )


def _decoded(raw: bytes) -> str:
    try:
        return decode(raw)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise _Fault("this is not UTF-8", line, column) from None


def _parse(raw: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Parse the entries one by one: never are 100,000 of them objects at the same time."""
    text = _decoded(raw)
    reader = _Reader(text)
    settings: dict[str, Any] = {}
    entries: dict[str, bytes] = {}

    def member(key: str, at: int) -> int:
        if key == layers.REGISTRY_SECTION and text[at : at + 1] == "{":
            own: dict[str, Any] = {}
            settings[key] = own
            return reader.members(at, lambda name, where: service(own, name, where))
        if key == _OBJECTS and text[at : at + 1] == "{":
            return reader.members(at, lambda name, where: reader.own_record(entries, name, where))
        value, end = reader.value(at)
        if key == named_keys.SECTION and isinstance(value, dict):
            value = _take_keys(value, entries)
            if not value:
                return end
        settings[key] = value
        return end

    def service(own: dict[str, Any], name: str, at: int) -> int:
        if name.startswith("_"):
            own[name], end = reader.value(at)
        else:
            entries[name], end = reader.entry(name, at)
            reader.check_name(name, at)
        return end

    start = reader.skip(0)
    if start == len(text):
        raise _Fault("the file is empty" if not text else "there is only white space", 1, 1)
    if text[start] != "{":
        reader.value(start)  # what is no JSON at all is called so
        raise reader.fault("a document must be an object, { … }", start)
    end = reader.skip(reader.members(start, member))
    if end != len(text):
        raise reader.fault("there is something behind the end of the document", end)
    return settings, entries


def _take_keys(section: dict[str, Any], entries: dict[str, bytes]) -> dict[str, Any]:
    """Move named keys to the registry's records. Return what is no key: the check of the settings says why."""
    good = {name: key for name, key in section.items() if not any(named_keys.problems(name, key))}
    entries.update((named_keys.stored_name(name), entry_values.encode(key)) for name, key in good.items())
    return {name: key for name, key in section.items() if name not in good}


class _Fault(ValueError):
    """What is wrong, and where; lines and columns count from 1."""

    def __init__(self, text: str, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {text}")


class _Reader:
    """Walks over an object's members and leaves their values to the C parser."""

    def __init__(self, text: str) -> None:
        self._text = text

    def fault(self, message: str, at: int) -> _Fault:
        error = JSONDecodeError(message, self._text, at)
        return _Fault(message, error.lineno, error.colno)

    def skip(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        return match.end() if match else at

    def members(self, at: int, member: Callable[[str, int], int]) -> int:
        """Call ``member(key, start of value)``, which returns the value's end, for each; return the object's end."""
        text, seen = self._text, set[str]()
        at = self.skip(at + 1)
        if text[at : at + 1] == "}":
            return at + 1
        while True:
            plain = _PLAIN_KEY.match(text, at)
            key, start = (plain[1], plain.end()) if plain else self._key(at)
            if key in seen:
                raise self.fault(f"the key {json.dumps(key)[:64]} is there twice", at)
            seen.add(key)
            if not len(seen) % _STEP_ENTRIES:
                progress.step(at, len(text))
            at = self.skip(member(key, start))
            mark = text[at : at + 1]
            if mark == "}":
                return at + 1
            if mark != ",":
                raise self.fault("a comma or the object's end must be here", at)
            at = self.skip(at + 1)

    def _key(self, at: int) -> tuple[str, int]:
        """Return a key that is not plain, or is none, and where its value begins."""
        if self._text[at : at + 1] != '"':
            raise self.fault("a key in double quotes must be here", at)
        key, end = self.value(at)
        end = self.skip(end)
        if self._text[end : end + 1] != ":":
            raise self.fault("a colon must be here", end)
        return key, self.skip(end + 1)

    def value(self, at: int) -> tuple[Any, int]:
        value, end = self._decode(at)
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise self.fault("a lone surrogate is no character", at) from None
        return value, end

    def check_name(self, name: str, at: int) -> None:
        """Refuse a name that no call could ever reach."""
        try:
            entry_values.check_name(name, max_bytes=NAME_MAX_BYTES)
        except BadRequest as error:
            reason = str(error)[:1].lower() + str(error)[1:]
            raise self.fault(f"services.{name[:64]}: {reason}; give the entry another name", at) from None

    def entry(self, name: str, at: int) -> tuple[bytes, int]:
        value, end = self._decode(at)
        if not isinstance(value, dict):
            raise self.fault(f"services.{name[:64]} is no object; an entry must be one", at)
        text = self._text[at:end]
        if _NOT_AS_IT_IS.search(text) is None:
            return text.encode(), end
        try:
            return entry_values.encode(value), end
        except UnicodeEncodeError:
            raise self.fault(f"a lone surrogate in services.{name[:64]} is no character", at) from None

    def own_record(self, entries: dict[str, bytes], name: str, at: int) -> int:
        """Take one of the registry's own records; return its end."""
        if not name.startswith("_") or len(name.encode()) > NAME_MAX_BYTES + 512:
            raise self.fault(f"{_OBJECTS}.{name[:64]} is no record of the registry's own", at)
        entries[name], end = self.entry(name, at)
        return end

    def _decode(self, at: int) -> tuple[Any, int]:
        try:
            return entry_values.strict_json_at(self._text, at, what="what begins here", max_depth=DEPTH_MAX)
        except JSONDecodeError as error:
            # "Unterminated string starting at" expects a position behind it; ours stands in front.
            message = "there must be a value here" if error.msg == "Expecting value" else _AT.sub("", error.msg)
            raise self.fault(message[:1].lower() + message[1:], error.pos) from None
        except BadRequest as error:
            raise self.fault(str(error), at) from None


# --- writing ---


def write(
    path: Path,
    settings: Mapping[str, Any],
    entries: Mapping[str, bytes],
    *,
    origin: Origin | None = None,
    follow: Callable[[Iterator[bytes], int], Iterable[bytes]] = lambda content, _: content,
    renaming: AbstractContextManager[Any] | None = None,
) -> None:
    """Replace the file by this state, atomically and durably; mode 0600.

    Either the old file is there whole or the new one, whatever happens.

    Args:
        path: the file.
        settings: everything but entries and origin.
        entries: name to entry, JSON in UTF-8.
        origin: of the state; None writes no origin.
        follow: called with the content in pieces and about their number; returns the pieces to write. An error in it
            ends the writing.
        renaming: see :func:`bpbroker.files.write_whole`.

    Raises:
        StorageFull: the disk is full; the old file is there.
        StorageFailed: anything else went wrong; the old file is there unless ``outcome_known`` is False.
    """
    parts = pieces(settings, entries)
    content = follow(chunks(settings, entries, origin), parts)
    files.replace(path, progress.following(content, f"Writing {path}", parts), renaming=renaming)


def mentions(path: Path, names: Sequence[str]) -> bool:
    """Return whether a file may have one of these entries, taken or not; False when there is no such file.

    Raises:
        Unavailable: it cannot be read.
    """
    wanted = [json.dumps(key, ensure_ascii=False).encode() for name in names for key in (name, f"_taken/{name}")]
    longest = max(map(len, wanted), default=0)
    try:
        with path.open("rb") as file:
            end = b""
            while piece := file.read(1 << 20):
                content = end + piece
                if any(key in content for key in wanted):
                    return True
                end = content[-longest:]
    except FileNotFoundError:
        return False
    except OSError as error:
        raise files.storage_error(f"Cannot read {path}", error) from None
    return False


def pieces(settings: Mapping[str, Any], entries: Mapping[str, bytes]) -> int:
    """Return about how many pieces :func:`chunks` yields."""
    return len(settings) + len(entries) // CHUNK_ENTRIES + 1


def chunks(
    settings: Mapping[str, Any],
    entries: Mapping[str, bytes],
    origin: Origin | None = None,
    *,
    backed_up: Identity | None = None,
) -> Iterator[bytes]:
    """Yield a file's content piece by piece; with an identity it is a backup's."""
    digest = _hash()
    for chunk in _sections(settings, entries):
        digest.update(chunk)
        yield chunk
    if backed_up is not None:
        yield b",\n" + _key(_IDENTITY) + _indented(backed_up.encode())
    if origin is not None:
        state = {"registry": origin.registry, "commit": origin.commit, "digest": digest.hexdigest()}
        yield _BEFORE_STATE + json.dumps(state).encode()
    yield _END


def _sections(settings: Mapping[str, Any], entries: Mapping[str, bytes]) -> Iterator[bytes]:
    sections: dict[str, Any] = {**settings}
    names = sorted(entries)  # a snapshot's are in order, or nearly so: that costs a look at each
    first, behind = bisect_left(names, "_"), bisect_left(names, _BEHIND_OWN)
    of_keys: list[str] = []
    own_records: list[str] = []
    for name in names[first:behind]:
        (of_keys if name.startswith(named_keys.PREFIX) else own_records).append(name)
    del names[first:behind]
    if of_keys:
        sections[named_keys.SECTION] = {
            name.removeprefix(named_keys.PREFIX): json.loads(split(name, entries[name]).json) for name in of_keys
        }
    sections.setdefault(layers.REGISTRY_SECTION, {})
    if own_records:
        sections[_OBJECTS] = {}
    lead = b"{\n"
    for name, section in sections.items():
        if name == layers.REGISTRY_SECTION and isinstance(section, Mapping):
            yield lead + _key(name) + b"{"
            yield from _services(section, entries, names)
        elif name == _OBJECTS:
            yield lead + _key(name) + b"{"
            yield from _services({}, entries, own_records)
        else:
            yield lead + _key(name) + _indented(section)
        lead = b",\n"


def _services(own: Mapping[str, Any], entries: Mapping[str, bytes], names: list[str]) -> Iterator[bytes]:
    lines = [b"  " + _key(key) + _indented(value, "    ") for key, value in own.items()]
    lead = b"\n"
    for name in names:
        lines.append(b"  " + _key(name) + entries[name])
        if len(lines) >= CHUNK_ENTRIES:
            yield lead + b",\n".join(lines)
            lead = b",\n"
            lines.clear()
    if lines:
        yield lead + b",\n".join(lines)
    yield b"\n  }" if own or names else b"}"


def _key(name: str) -> bytes:
    return f"  {_as_json(name)}: ".encode()


def _indented(value: Any, indent: str = "  ") -> bytes:
    text = json.dumps(layers.thaw(value), ensure_ascii=False, allow_nan=False, indent=2)
    return text.replace("\n", f"\n{indent}").encode()
