"""The person who looks at the pages: by which key they signed in, and what that key may see.

A session remembers the digest of a key, never the key. With each request it is checked whether that key still counts.
So the sessions of a key that is revoked or removed from the configuration are signed out.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from bpbroker.discovery.jointoken import TOKEN_MAX, parse_token
from bpbroker.errors import Forbidden, Unauthorized, Unavailable, UsageError
from bpbroker.frontend import access_keys
from bpbroker.frontend.access_keys import NamedKeys
from bpbroker.registry import named_keys
from bpbroker.registry.named_keys import NamedKey
from bpbroker.registry.rights import REGISTRY, Need, Rights
from bpbroker.server.request import network_of

_NO_RIGHTS: Final = Rights(())
_TOKENS: Final = ("bpb1:", "bpb2:")


@dataclass(frozen=True, slots=True)
class Credential:
    """How a session was signed in."""

    kind: Literal["named", "section", "open"]
    """By a named key, by a section's ``_access_key``, or without a key, to see what needs none."""
    name: str = ""
    """Name of the named key."""
    digest: bytes = field(default=b"", repr=False)
    """SHA-256 of the named key's secret, or of the section's key."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """A person who has signed in, and what they may see."""

    label: str
    """Their name on the pages."""
    whole: frozenset[str]
    """Namespaces in which they may do everything."""
    operator: bool = False
    """Whether their own key has all rights in the registry: then they see keys, backups and the requests of all
    clients."""
    key: NamedKey | None = None

    def may(self, need: Need) -> bool:
        """Whether they may do this by the API, too."""
        return need.namespace in self.whole or (self.key is not None and self.key.rights.allows(need))

    def sees(self, method: str, name: str) -> bool:
        """Whether they may call a reading method of the registry with a name."""
        return self.may(Need(REGISTRY, method, name))

    def knows(self, namespace: str) -> bool:
        """Whether they may call anything in a namespace."""
        return (
            self.operator or namespace in self.whole or (self.key is not None and namespace in self.rights.namespaces)
        )

    @property
    def rights(self) -> Rights:
        """The rules of their named key."""
        return _NO_RIGHTS if self.key is None else self.key.rights

    def prefixes(self, method: str, wanted: str = "") -> tuple[str, ...]:
        """Return the prefixes of all names with the prefix ``wanted`` that they may see; sorted, none within another.

        The empty prefix is every name.
        """
        if REGISTRY in self.whole:
            return (wanted,)
        verb = method.lower()
        allowed = (
            rule.prefix
            for rule in self.rights.rules
            if rule.namespace == REGISTRY and ("*" in rule.methods or verb in rule.methods)
        )
        narrowed = {
            wanted if wanted.startswith(prefix) else prefix
            for prefix in allowed
            if wanted.startswith(prefix) or prefix.startswith(wanted)
        }
        found: list[str] = []
        for prefix in sorted(narrowed):
            if not found or not prefix.startswith(found[-1]):
                found.append(prefix)
        return tuple(found)


class Gate:
    """Decides who may see the pages, by the current keys.

    Args:
        named: the named keys; the registry keeps them up to date.
    """

    def __init__(self, named: NamedKeys) -> None:
        self._named = named
        self._keys: Mapping[str, tuple[str, ...]] = {}
        self._opened: Container[str] = ()

    def settings_changed(self, keys: Mapping[str, tuple[str, ...]], opened: Container[str]) -> None:
        """Use these settings from now on.

        Args:
            keys: namespace to its access keys.
            opened: namespaces that stay open whatever named keys there are.
        """
        self._keys, self._opened = keys, opened

    def is_open(self) -> bool:
        """Whether the registry needs no key, so that its pages need none."""
        return REGISTRY in self._open()

    def credential(self, given: str, source: str) -> Credential | None:
        """Return the sign-in by a key or a join token; None if it is wrong. Empty text signs in without a key.

        Raises:
            Unauthorized: the key is right, but does not count now.
            Unavailable: the named keys are not known yet.
        """
        if not given:
            if not self.is_open():
                raise Unauthorized("An access key is needed")
            return Credential("open")
        key = key_in(given)
        if key is None:
            return None
        digest = _digest(key)
        if self._sections(digest):
            return Credential("section", digest=digest)
        if not self._named.known:
            raise Unavailable("The registry's store does not answer, so which access keys there are is not known yet")
        found = self._named.find([key], time.time())
        if found is None:
            return None
        secret = key if found.bare and not key.startswith(f"{found.name}.") else key.partition(".")[2]
        credential = Credential("named", found.name, named_keys.digest_of(secret))
        self.viewer(credential, source)
        return credential

    def viewer(self, credential: Credential, source: str) -> Viewer:
        """Return the viewer of a session that was signed in like this.

        Raises:
            Unauthorized: the sign-in does not count any more.
        """
        is_open = self._open()
        if credential.kind == "open":
            if REGISTRY not in is_open:
                raise Unauthorized("The registry needs an access key now")
            return Viewer("without a key", is_open)
        if credential.kind == "section":
            own = self._sections(credential.digest)
            if not own:
                raise Unauthorized("The access key is not in the configuration any more")
            return Viewer(f"the key of {', '.join(sorted(own))}", is_open | own, REGISTRY in own)
        key, now = self._named.by_name.get(credential.name), time.time()
        if key is None or not key.has_secret(credential.digest, now):
            raise Unauthorized(f"The access key '{credential.name}' is not there any more")
        client = network_of(source)
        why = key.why_not(source, client, now)
        if why:
            raise Unauthorized(why)
        if key.must_be_counted(client):
            raise Unauthorized(
                f"The access key '{key.name}' counts the addresses that use it, and pages use none up:"
                " sign in with another key, or from an address that has used it"
            )
        own = key.rights.whole()
        return Viewer(f"key {key.name}", is_open | own, REGISTRY in own, key)

    def named(self, viewer: Viewer) -> tuple[NamedKey, ...]:
        """Return the named keys that the viewer may see, by name: all, or their own."""
        if viewer.operator:
            return tuple(key for _, key in sorted(self._named.by_name.items()))
        return () if viewer.key is None else (viewer.key,)

    def keyed(self, viewer: Viewer) -> tuple[tuple[str, int, bool], ...]:
        """Return each namespace that the viewer may see, how many keys its section has, and whether it is open."""
        is_open = self._open()
        return tuple(
            (name, len(keys), name in is_open) for name, keys in sorted(self._keys.items()) if viewer.knows(name)
        )

    def _open(self) -> frozenset[str]:
        return frozenset(
            name
            for name, keys in self._keys.items()
            if not keys and (name in self._opened or name not in self._named.closed)
        )

    def _sections(self, digest: bytes) -> frozenset[str]:
        """Return the sections that have a key of this digest; each key is compared."""
        found = [(name, hmac.compare_digest(_digest(key), digest)) for name, keys in self._keys.items() for key in keys]
        return frozenset(name for name, is_it in found if is_it)


def must_see(viewer: Viewer, need: Need) -> None:
    """Check that the viewer may read something.

    Raises:
        Forbidden: the message names the right that is missing.
    """
    if not viewer.may(need):
        if viewer.key is None:
            raise Forbidden(f"This needs an access key with rights in {need.namespace}")
        access_keys.check(viewer.key, (need,))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def key_in(given: str) -> str | None:
    """Return the key in a text that was typed: the key itself, or a join token; None if it can be neither."""
    text = given.strip()
    if text.startswith(_TOKENS) and len(text) <= TOKEN_MAX:
        try:
            return parse_token(text).key or None
        except UsageError:
            return None
    return text if len(text.encode(errors="surrogatepass")) <= access_keys.KEY_MAX_BYTES else None
