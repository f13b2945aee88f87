"""Which keys the configuration knows, what they may be, and what they are when absent.

Only the defaults that 0.22 had are written into the file (``config.layers.DEFAULTS``); every
other key is optional and has its default here. Unknown keys are kept and only
warned about when they look like a typing error.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bpbroker.registry import named_keys
from bpbroker.registry.entry_values import DATA_MAX_BYTES, DEPTH_MAX, NAME_MAX_BYTES

_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"})

Check = Callable[[Any], str | None]
"""Function of a value to what is wrong with it, as ``must be …``, or None."""


@dataclass(frozen=True, slots=True)
class Key:
    """One known key of a section."""

    check: Check
    default: Any
    help: str
    secret: bool = False
    """Whether its value is never shown, and hidden from extensions."""
    at_start: bool = False
    """Whether a running broker keeps the value that it started with; all others change with a reload."""


def _number(low: float, high: float, *, whole: bool = True) -> Check:
    kind = "a whole number" if whole else "a number"

    def check(value: Any) -> str | None:
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        return None if fits and low <= value <= high else f"must be {kind} from {low} to {high}"

    return check


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "must be text"


def _user(value: Any) -> str | None:
    if sys.platform == "win32":
        return "must not be there on Windows: a process of another user needs that user's password"
    return _text(value)


def _names(value: Any) -> str | None:
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) and name.strip() for name in value):
        return None
    return 'must be a list of names such as "broker.example.org"'


def _path(value: Any) -> str | None:
    return None if isinstance(value, str) and value and "\0" not in value else "must be the path of a file"


def _access_log(value: Any) -> str | None:
    if value in ("same", "off") or (isinstance(value, str) and "\0" not in value and Path(value).is_absolute()):
        return None
    return "must be same (as the log), off, or the path of a file from the root on"


def _loopback_as(value: Any) -> str | None:
    if value in ("auto", "off"):
        return None
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return "must be auto, off, or an IP address of this host"
    return None if isinstance(value, str) else "must be text"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _always(value: Any) -> str | None:
    return None if value is True else "must be true"


def _choice(*words: str) -> Check:
    def check(value: Any) -> str | None:
        if value in words:
            return None
        close = difflib.get_close_matches(str(value), words, 1)
        return f"must be one of {', '.join(words)}" + (f"; did you mean {close[0]}?" if close else "")

    return check


def _access_key(value: Any) -> str | None:
    keys = value if isinstance(value, (list, tuple)) else [value]
    if not 1 <= len(keys) <= 4 or not all(isinstance(key, str) for key in keys):
        return 'must be text, or a list of one to four texts ("" means open to everybody)'
    if isinstance(value, (list, tuple)) and not all(keys):
        return "must not have an empty text in its list"
    if any(len(key.encode(errors="replace")) > 1024 for key in keys):
        return "must not be longer than 1024 bytes"
    if any(_unsendable(key) for key in keys):
        return (
            "must not begin or end with white space, nor have a tab, a newline or an invisible character:"
            " no client could send it"
        )
    return None


def _unsendable(key: str) -> bool:
    """Whether a key has characters that are lost or changed on the way, or that cannot be seen."""
    odd = (unicodedata.category(character) in _INVISIBLE and character != " " for character in key)
    return key != key.strip() or any(odd)


def _secret(value: Any) -> str | None:
    digits = value if isinstance(value, str) else ""
    fits = re.fullmatch(r"[0-9a-f]{64}", digits)
    return None if fits else "must be 64 lower-case hexadecimal digits, such as `openssl rand -hex 32` prints"


def _environment(value: Any) -> str | None:
    if isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values()):
        return None
    return "must be an object of texts"


def _endpoints(value: Any) -> str | None:
    if isinstance(value, (list, tuple)) and all(_is_endpoint(item) for item in value):
        return None
    return 'must be a list of addresses such as "https://10.0.0.5:2379"'


def _is_endpoint(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value)
        return (
            parts.scheme in ("https", "http")
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.path.strip("/") or parts.query or "@" in parts.netloc)
        )
    except ValueError:
        return False


def _prefix(value: Any) -> str | None:
    fits = isinstance(value, str) and value.strip("/") and value.isprintable() and len(value) <= 256
    return None if fits else "must be text such as /bpbroker, of at most 256 characters"


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


_MIB: Final = 1024 * 1024

_ACCESS_KEY = Key(_access_key, "", "key, or up to four keys, that requests must bring", secret=True)

KNOWN: Final[Mapping[str, Mapping[str, Key]]] = {
    "api": {
        "listen_port": Key(_number(0, 65535), 20443, "TCP and UDP port; 0 takes any free one", at_start=True),
        "listen_ip": Key(_text, "", "address to bind to; empty means all interfaces", at_start=True),
        "loopback_as": Key(_loopback_as, "auto", "last_write_ip of writers over loopback: auto, off, or an address"),
        "host_names": Key(_names, (), "more names by which browsers reach this broker, such as an alias in DNS"),
        "access_log": Key(_access_log, "same", "where each request is logged: same as the log, off, or a file"),
        "metrics": Key(
            _choice("open", "keyed", "off"), "keyed", "which clients may read /metrics: all, those with a key, or none"
        ),
        "ssl_cert": Key(_path, "", "certificate, PEM, with its chain; without one the broker makes its own"),
        "ssl_key": Key(_path, "", "private key of this certificate, PEM"),
        "workers": Key(
            _number(1, 64),
            2,
            "threads for large requests and responses; the event loop serves the small ones",
            at_start=True,
        ),
        "max_header_bytes": Key(_number(1024, _MIB), 16 * 1024, "largest head of a request"),
        "max_headers": Key(_number(8, 1000), 100, "most header fields in a request"),
        "max_body_bytes": Key(_number(1024, 64 * _MIB), _MIB, "largest request body"),
        "max_name_bytes": Key(_number(1, 4096), NAME_MAX_BYTES, "longest name of an entry"),
        "max_data_bytes": Key(_number(1, 16 * _MIB), DATA_MAX_BYTES, "largest entry"),
        "max_json_depth": Key(_number(1, 200), DEPTH_MAX, "deepest nesting of an entry"),
        "handshake_timeout_secs": Key(_number(0.1, 60, whole=False), 5.0, "time for a TLS handshake"),
        "request_timeout_secs": Key(
            _number(0.1, 600, whole=False), 30.0, "time for a whole request to come in, and for a response to go on"
        ),
        "keep_alive_secs": Key(_number(0, 3600, whole=False), 60.0, "how long an idle connection stays open"),
        "max_connections": Key(_number(16, 1_000_000), 8192, "open connections in all"),
        "max_connections_per_address": Key(_number(1, 1_000_000), 2048, "open connections of one address"),
        "max_waiting": Key(
            _number(1, 1_000_000), 4096, "calls that may wait at one time: for an entry, a lock, a change"
        ),
        "wrong_keys_per_minute": Key(
            _number(1, 1_000_000), 100, "wrong keys of one address after which responses to them are delayed"
        ),
    },
    "_global": {
        "healthcheck_freq_sec": Key(_number(0.1, 86400, whole=False), 10, "time between two pings of each part"),
        "discovery": Key(
            _choice("open", "authenticated", "off"),
            "open",
            "which clients discovery answers: all, those with a join token, or none",
        ),
    },
    "_discovery": {
        "secret": Key(
            _optional(_secret),
            None,
            "signs datagrams; made at the first start, the same for all brokers of one registry",
            secret=True,
        ),
    },
    "_config": {
        "backup_freq_secs": Key(
            _number(0.1, 31_536_000, whole=False), 3600, "time between two backups; none is made if nothing changed"
        ),
        "backup_retain_n": Key(_number(1, 100_000), 24, "how many backups are kept"),
    },
    "_registry": {
        "store": Key(
            _choice("embedded", "etcd"),
            "embedded",
            "where entries are kept: in the broker's own files, or in an etcd cluster",
            at_start=True,
        ),
        "endpoints": Key(_endpoints, (), "where the etcd cluster's members listen for clients", at_start=True),
        "prefix": Key(_prefix, "/bpbroker", "beginning of all keys of this registry in etcd", at_start=True),
        "ca_cert": Key(
            _optional(_path),
            None,
            "authority that signed the members' certificates, PEM; none: those of the system",
            at_start=True,
        ),
        "client_cert": Key(_optional(_path), None, "the broker's certificate for the cluster, PEM", at_start=True),
        "client_key": Key(_optional(_path), None, "its private key, PEM", at_start=True),
        "user": Key(_optional(_text), None, "user of the cluster", at_start=True),
        "password": Key(_optional(_text), None, "that user's password", secret=True, at_start=True),
        "timeout_secs": Key(
            _number(0.5, 20, whole=False), 5, "time for one change or read, at all endpoints together", at_start=True
        ),
        "max_sessions": Key(_number(0, 1_000_000), 10_000, "sessions at one time"),
        "max_places": Key(_number(1, 100_000), 10_000, "places in the queue of one lock"),
        "max_numbers": Key(_number(1, 100_000), 10_000, "owners in one pool of numbers"),
        "keep_lost_secs": Key(_number(0, 31_536_000), 3600, "how long entries that ended with their session are shown"),
        "history_bytes": Key(_number(0, 1 << 32), 8 * _MIB, "memory for the changes that watches can still read"),
    },
    "_ui": {
        "enabled": Key(_flag, True, "whether there are pages for people, under /ui/"),
        "read_only": Key(_always, True, "the pages change nothing"),
        "hsts_secs": Key(_number(0, 63_072_000), 0, "how long browsers insist on HTTPS for this host; 0: not at all"),
    },
    "ping": {"_access_key": _ACCESS_KEY},
    "services": {"_access_key": _ACCESS_KEY},
}

EXTENSION: Final[Mapping[str, Key]] = {
    "_access_key": _ACCESS_KEY,
    "_timeout_secs": Key(
        _number(0.1, 86400, whole=False), 30, "time for one call; then it is killed with all that it started"
    ),
    "_queue_max": Key(_number(0, 100_000), 64, "calls that may wait; further ones are refused"),
    "_memory_max_bytes": Key(
        _optional(_number(16 * _MIB, 1 << 50)),
        None,
        "most memory of the child process; without a number there is no limit",
    ),
    "_user": Key(_optional(_user), None, "user that the child process runs as (Linux)"),
    "_workers": Key(_number(1, 64), 1, "calls that run at the same time"),
    "_env": Key(_environment, {}, "extra environment of the child process", secret=True),
    "_preload": Key(_flag, False, "start the child process with the broker"),
}
"""Keys that the broker knows in the section of an extension; all others are the extension's own."""

_OWN_SECTIONS: Final = (*KNOWN, "worker", named_keys.SECTION)


def keys_of(section: str) -> Mapping[str, Key]:
    """Return the known keys of a section."""
    if section in KNOWN:
        return KNOWN[section]
    return {} if section.startswith("_") or section == "worker" else EXTENSION


def at_next_start(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the changed settings, as ``section.key``, that a running broker uses from its next start on."""
    return [
        f"{section}.{key}"
        for section, keys in KNOWN.items()
        for key, known in keys.items()
        if known.at_start and option(before, section, key) != option(after, section, key)
    ]


def option(settings: Mapping[str, Any], section: str, key: str) -> Any:
    """Return a setting, or its default where the configuration does not have it."""
    found = settings.get(section, {})
    return found[key] if key in found else keys_of(section)[key].default


def problems(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield everything in a document that cannot be used, a sentence each: path, value, what it must be."""
    for name, section in document.items():
        if name == named_keys.SECTION:
            yield from _key_problems(section)
            continue
        if not isinstance(section, Mapping):
            yield f"{name} is {_shown(section)}: a section must be an object"
            continue
        for key, known in keys_of(name).items():
            if key not in section:
                continue
            fault = known.check(section[key])
            if fault:
                shown = "" if known.secret else f" is {_shown(section[key])}"
                yield f"{name}.{key}{shown}: {fault}"
        if name == "_registry":
            yield from _registry_problems(section, document.get("api"))
        if name == "services":
            for key, value in section.items():
                if not key.startswith("_") and not isinstance(value, Mapping):
                    yield f"services.{key} is {_shown(value)}: an entry must be an object"


def _key_problems(section: Any) -> Iterator[str]:
    """Yield what is wrong with the named keys, without a value of theirs: one that is no digest may be a key."""
    if isinstance(section, Mapping):
        for name, value in section.items():
            yield from named_keys.problems(name, value)
    else:
        yield f"{named_keys.SECTION} must be an object of named access keys"


ETCD_DATA_MAX_BYTES: Final = _MIB
"""Largest entry in an etcd cluster, whose own limit for a request is 1.5 MiB."""


def _registry_problems(section: Mapping[str, Any], api: Any) -> Iterator[str]:
    """Yield what does not fit together."""
    if section.get("store") == "etcd":
        if not section.get("endpoints"):
            wanted = 'a list of addresses such as "https://10.0.0.5:2379"'
            yield f"_registry.endpoints is missing: with the store etcd it must be {wanted}"
        largest = api.get("max_data_bytes", 0) if isinstance(api, Mapping) else 0
        if isinstance(largest, int) and largest > ETCD_DATA_MAX_BYTES:
            yield f"api.max_data_bytes is {largest}: with the store etcd it must be at most {ETCD_DATA_MAX_BYTES}"
    for one, other in (
        ("client_cert", "client_key"),
        ("client_key", "client_cert"),
        ("user", "password"),
        ("password", "user"),
    ):
        if section.get(one) is not None and section.get(other) is None:
            yield f"_registry.{other} is missing: it goes with _registry.{one}"


def warnings(document: Mapping[str, Any], is_installed: Callable[[str], bool] = lambda _: False) -> Iterator[str]:
    """Yield what can be used but is probably not meant: sections and keys that look like a known one mistyped.

    Args:
        document: the sections.
        is_installed: whether there is an extension module of that name; then its section is meant.
    """
    for name, section in document.items():
        if name not in _OWN_SECTIONS:
            close = difflib.get_close_matches(name, _OWN_SECTIONS, 1, 0.8)
            if close and not is_installed(name):
                yield f"{name} is not known; did you mean {close[0]}?"
        if not isinstance(section, Mapping):
            continue
        if name == "_registry" and any(_crosses_network_in_clear(item) for item in section.get("endpoints") or ()):
            yield "_registry.endpoints has http:// addresses: entries and password cross the network for all to read"
        known = keys_of(name)
        for key in section:
            if key in known or (name == "services" and not key.startswith("_")):
                continue
            if name == "services" and isinstance(section[key], Mapping):
                yield (
                    f"services.{key} looks like an entry, but no client can read it: with _ in front it is a setting;"
                    " register it under another name"
                )
                continue
            close = difflib.get_close_matches(key, known, 1, 0.8)
            if close:
                yield f"{name}.{key} is not known; did you mean {name}.{close[0]}?"


def weak_keys(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield which access keys are easily guessed, a sentence each, without the keys."""
    for name, section in settings.items():
        value = section.get("_access_key", "")
        for key in value if isinstance(value, (list, tuple)) else (value,):
            why = named_keys.weakness(key, name) if key else ""
            if why:
                yield f"{name}._access_key {why}: it is easily guessed; `openssl rand -hex 32` makes one that is not"


def _crosses_network_in_clear(endpoint: Any) -> bool:
    if not _is_endpoint(endpoint):
        return False
    parts = urlsplit(endpoint)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


_USERINFO: Final = re.compile(r"//[^/\"]*@")
"""A password in an address, where it may not be, is still a password."""


def _shown(value: Any) -> str:
    text = _USERINFO.sub("//…@", json.dumps(value, default=str, ensure_ascii=True))
    return text if len(text) <= 60 else f"{text[:57]}..."


_SECRET_NAME: Final = re.compile(
    r"pass(?:word|wd|phrase)?\Z|secret|token|credential|(?:\A|_)(?:api)?keys?\Z", re.IGNORECASE
)
"""What a key of an extension's own is called when its value is not for others."""


def for_extension(settings: Mapping[str, Any], own: str) -> dict[str, Any]:
    """Return the copy of the settings that an extension sees: its own section whole, others without secrets."""
    shown: dict[str, Any] = {}
    for name, section in settings.items():
        if name == own or not isinstance(section, Mapping):
            shown[name] = _plain(section)
        elif name not in _NOT_FOR_EXTENSIONS:
            known = keys_of(name)
            kept = {key: value for key, value in section.items() if not (key in known and known[key].secret)}
            shown[name] = {
                key: _plain(value) if key in known else _without_secrets(value)
                for key, value in kept.items()
                if key in known or not _SECRET_NAME.search(key)
            }
    return shown


_NOT_FOR_EXTENSIONS: Final = ("_discovery", "_keys")


def _plain(value: Any) -> Any:
    """Return a changeable copy, as a JSON parser makes it."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_secrets(item) for key, item in value.items() if not _SECRET_NAME.search(key)}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item) for item in value]
    return _USERINFO.sub("//…@", value) if isinstance(value, str) else value
