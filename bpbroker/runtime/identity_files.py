"""Collecting certificate, key and extensions for a backup, and putting them back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bpbroker.config import layers
from bpbroker.config.paths import Home
from bpbroker.errors import ConfigurationError
from bpbroker.extensions import installing
from bpbroker.server import own_pair
from bpbroker.storage.backup_identity import MODULES_MAX_BYTES, Identity, PutBack


class IdentityFiles:
    """Where the identity of a broker lies.

    Args:
        own: the configuration file.
        home: has the lib folder. When the file is another one than the home's, the folder is others' as well: then only
            the extensions that the settings enable are this broker's.
    """

    def __init__(self, own: Path, home: Home) -> None:
        self._own = own
        self._lib = home.lib
        self._shared = own != home.config_file

    def collect(self, settings: Mapping[str, Any]) -> Identity:
        """Return the pair and the modules that are there; what cannot be read is left out and named."""
        certificate, key, left_out = b"", b"", []
        pair = layers.own_pair(self._own)
        named = settings.get("api", {}).get("ssl_cert", str(pair[0]))
        if named == str(pair[0]) and pair[0].exists():
            try:
                certificate, key = (path.read_bytes() for path in pair)
                own_pair.check(certificate, key)
            except OSError as error:
                left_out.append(f"the certificate: {error.strerror}")
                certificate = key = b""
            except ValueError as error:
                left_out.append(f"the certificate: {error}")
                certificate = key = b""
        wanted = {name.partition(".")[0] for name in layers.namespaces(settings)} if self._shared else None
        modules, of_modules = installing.collect(self._lib, wanted, MODULES_MAX_BYTES)
        return Identity(certificate, key, modules, (*left_out, *of_modules))

    def put_back(self, identity: Identity, *, dry_run: bool) -> PutBack:
        """Put a backup's pair and modules in the place of those that are there.

        Args:
            identity: of the backup.
            dry_run: only see whether it can be used, and what would differ.

        Raises:
            ConfigurationError: it cannot be used.
            OSError: it failed in the middle; doing it again completes it.
        """
        changed = list(self._put_pair(identity, dry_run)) if identity.certificate else []
        missing = [f"The backup does not have {reason}" for reason in identity.left_out]
        names = installing.differing(self._lib, identity.modules)
        if names and not _may_write(self._lib):
            missing.append(
                f"This user may not write to {self._lib}, so these extensions were not put back: {', '.join(names)}."
                " Install them with bpbroker install-extension"
            )
        elif names:
            if not dry_run:
                installing.put_back(self._lib, identity.modules)
            changed.append(f"extensions changed: {len(names)} ({', '.join(names)})")
        return PutBack(tuple(changed), tuple(missing))

    def _put_pair(self, identity: Identity, dry_run: bool) -> Iterator[str]:
        try:
            fingerprint = own_pair.check(identity.certificate, identity.key)
        except ValueError as error:
            raise ConfigurationError(f"The certificate in the backup cannot be used: {error}") from None
        cert, key = layers.own_pair(self._own)
        if (_content(cert), _content(key)) != (identity.certificate, identity.key):
            if not dry_run:
                own_pair.put(cert, key, identity.certificate, identity.key)
            yield f"certificate changed: it is now SHA-256 {fingerprint}"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _may_write(folder: Path) -> bool:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return os.access(there, os.W_OK)
