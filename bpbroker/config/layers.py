"""The configuration: defaults, layers, additive merge. Pure functions on plain JSON objects.

A *document* is the whole of ``bpbroker.json``: sections of settings, and inside
``services`` the registry's entries beside that section's own ``_…`` keys.
*Settings* are a document without the entries; all parts of the broker get them
frozen. What may stand in a section, and within which limits, is in
:mod:`bpbroker.config.schema`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any, Final

from bpbroker.registry import named_keys

_PACKAGE = Path(__file__).parents[1]

DEFAULT_CERT: Final = str(_PACKAGE / "dummy_api.crt")
DEFAULT_KEY: Final = str(_PACKAGE / "dummy_api.key")
"""The pair that 0.22 shipped, the same in every copy. It is not here: the first start makes one for the host."""

DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "api": {"listen_port": 20443, "listen_ip": "", "ssl_cert": DEFAULT_CERT, "ssl_key": DEFAULT_KEY},
        "worker": {},
        "_global": {"healthcheck_freq_sec": 10},
        "_config": {"backup_freq_secs": 3600, "backup_retain_n": 24},
        "ping": {},
        "services": {},
    }
)

REGISTRY_SECTION: Final = "services"


def split(document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``(settings, entries)`` of a document; named access keys are among the entries, by their stored names."""
    settings = dict(document)
    services, keys = document.get(REGISTRY_SECTION), document.get(named_keys.SECTION)
    entries = {}
    if isinstance(keys, Mapping):
        del settings[named_keys.SECTION]
        entries = {named_keys.stored_name(name): value for name, value in keys.items()}
    if not isinstance(services, Mapping):
        return settings, entries
    settings[REGISTRY_SECTION] = {key: value for key, value in services.items() if key.startswith("_")}
    return settings, {**entries, **{key: value for key, value in services.items() if not key.startswith("_")}}


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay documents over each other, lowest first; a later value wins at every depth. The result shares nothing."""
    result: dict[str, Any] = {}
    for layer in layers:
        _lay(result, layer)
    return result


def _lay(under: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        before = under.get(key)
        if isinstance(before, dict) and isinstance(value, Mapping):
            _lay(before, value)
        else:
            under[key] = thaw(value)


def without(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` without the values for which ``other`` has one too, at every depth; sections stay."""
    result: dict[str, Any] = {}
    for key, value in base.items():
        over = other.get(key)
        if isinstance(value, Mapping):
            result[key] = without(value, over if isinstance(over, Mapping) else {})
        elif key not in other:
            result[key] = thaw(value)
    return result


def add(base: Mapping[str, Any], extra: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Merge strictly additively: only what ``base`` does not have yet is taken, at every depth.

    Returns:
        The merged document, the paths that were added, and the paths where
        ``base`` has another value, which it keeps.
    """
    result = thaw(base)
    added: list[str] = []
    kept: list[str] = []
    _add(result, extra, "", added, kept)
    return result, tuple(added), tuple(kept)


def _add(base: dict[str, Any], extra: Mapping[str, Any], path: str, added: list[str], kept: list[str]) -> None:
    for key, value in extra.items():
        here = f"{path}{key}"
        if key not in base:
            base[key] = thaw(value)
            added.append(here)
        elif isinstance(base[key], dict) and isinstance(value, Mapping):
            _add(base[key], value, f"{here}.", added, kept)
        elif base[key] != thaw(value):
            kept.append(here)


def freeze(value: Any) -> Any:
    """Return a read-only copy: mappings become read-only mappings, lists become tuples, at every depth."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: freeze(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """Return a plain, changeable copy of what :func:`freeze` or a JSON parser made."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(item) for item in value]
    return copy.copy(value)


def override(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with single values replaced; ``values`` maps paths such as ``api.listen_port``."""
    result: dict[str, Any] = thaw(settings)
    for path, value in values.items():
        section, _, key = path.partition(".")
        result.setdefault(section, {})[key] = value
    return result


def has_shipped_pair(settings: Mapping[str, Any]) -> bool:
    """Whether the settings name the pair that 0.22 shipped, whose key is public.

    It is known by its names: the folder is wherever some version was installed.
    """
    return all(
        PureWindowsPath(settings["api"][key]).name == PureWindowsPath(default).name  # reads both kinds of slashes
        for key, default in (("ssl_cert", DEFAULT_CERT), ("ssl_key", DEFAULT_KEY))
    )


def own_pair(file: Path) -> tuple[Path, Path]:
    """Return the paths of certificate and key that the first start makes, beside a configuration file."""
    return file.with_suffix(".crt"), file.with_suffix(".key")


def named_pair(settings: Mapping[str, Any]) -> tuple[Path, Path]:
    """Return the paths of certificate and key that the settings name."""
    return Path(settings["api"]["ssl_cert"]), Path(settings["api"]["ssl_key"])


def namespaces(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sections that enable an extension: every one that is neither the broker's own nor built in."""
    for name in settings:
        if not name.startswith("_") and name not in DEFAULTS:
            yield name


def namespaces_of(settings: Mapping[str, Any], namespace: str) -> tuple[str, ...]:
    """Return the sections that enable this extension, or modules of this package."""
    return tuple(name for name in namespaces(settings) if name == namespace or name.startswith(f"{namespace}."))


def without_sections(settings: Mapping[str, Any], sections: Collection[str]) -> dict[str, Any]:
    """Return a copy of settings that lacks these sections."""
    return {name: thaw(section) for name, section in settings.items() if name not in sections}


def shares_registry(settings: Mapping[str, Any]) -> bool:
    """Whether the registry is in a store that other brokers use as well, and not beside the file."""
    return bool(settings.get("_registry", {}).get("store") == "etcd")


def access_keys(settings: Mapping[str, Any], section: str) -> tuple[str, ...]:
    """Return the keys of which a request to this section must bring one; none means it is open."""
    value = settings.get(section, {}).get("_access_key", "")
    keys = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(key for key in keys if key)
