"""What a broker is to its clients beside its entries: certificate and key, and the extensions that are installed.

Backups hold it, so that a broker restored on a new machine is the one that
clients know. Here is only its form in a file; :mod:`bpbroker.runtime.identity_files`
collects it and puts it back.
"""

from __future__ import annotations

import binascii
import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from bpbroker.errors import ConfigurationError

MODULES_MAX_BYTES: Final = 8 * 1024 * 1024
"""All modules together: a backup is made each hour, and dozens are kept."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The pair that the broker made for itself, and its extension modules."""

    certificate: bytes = b""
    """PEM; empty when the pair is not the broker's own: then its owner looks after it."""
    key: bytes = b""
    """PEM."""
    modules: Mapping[str, bytes] = field(default_factory=dict)
    """Path in the lib folder, with ``/``, to content."""
    left_out: tuple[str, ...] = ()
    """Extensions that are not in it, each with the reason."""

    def encode(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "certificate": self.certificate.decode("ascii"),
            "key": self.key.decode("ascii"),
            "lib": {name: b64encode(content).decode() for name, content in sorted(self.modules.items())},
            "left_out": list(self.left_out),
        }

    @property
    def digest(self) -> str:
        """Return a digest of all of it: another one when anything in it is another."""
        return hashlib.blake2b(json.dumps(self.encode()).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PutBack:
    """The parts of a backup's certificate and extensions that were put back, or would be in a dry run."""

    changed: tuple[str, ...] = ()
    """Differences from the present files, a line each."""
    missing: tuple[str, ...] = ()
    """What the broker will have to do without, a sentence each."""


def decode(section: object, where: str) -> Identity:
    """Read what :meth:`Identity.encode` made.

    Args:
        section: the JSON value.
        where: names the file in messages.

    Raises:
        ConfigurationError: it is something else.
    """
    match section:
        case {
            "certificate": str(certificate),
            "key": str(key),
            "lib": dict(modules),
            "left_out": list(left_out),
        } if certificate.isascii() and key.isascii() and bool(certificate) == bool(key):
            pass
        case _:
            raise ConfigurationError(f"{where}: its certificate, key and extensions are not in the form of a backup")
    contents = {}
    for name, content in modules.items():
        parts = PurePosixPath(name).parts
        if not parts or "\\" in name or ":" in name or "\0" in name or any(part in ("/", "..") for part in parts):
            raise ConfigurationError(f"{where}: {name!r} is no path in the lib folder")
        try:
            contents[name] = b64decode(content, validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise ConfigurationError(f"{where}: the module {name} is damaged") from None
    return Identity(certificate.encode(), key.encode(), contents, tuple(map(str, left_out)))
