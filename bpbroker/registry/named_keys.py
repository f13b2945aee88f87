"""Named access keys: what is stored of one, when it counts, and what changes it. Pure.

A key that a client sends is ``NAME.SECRET``. Of the secret only the SHA-256 is
stored, as an object among the registry's state under the name ``_keys/NAME``,
in the configuration file as ``{"_keys": {NAME: …}}``::

    {"sha256": "…", "allow": ["services:get@foo/"], "until": "2026-12-31T00:00:00Z", "uses": 50, "from": ["10.0.0.0/8"]}

Only ``sha256`` and ``allow`` are needed. The broker adds ``made``, ``last_used``,
``used_by`` (the addresses that count as a use, each with its time), ``previous``
(the digest before a rotation, and until when it counts) and ``revoked``. With ``bare`` the secret may come without the
name, as keys without names did. All
times are ISO 8601 in UTC.

A revoked key stays stored, so that its name is not used again and its namespaces stay closed.
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import ipaddress
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from bpbroker.errors import AlreadyExists, BadRequest, NotFound, Unauthorized
from bpbroker.registry import rights
from bpbroker.registry.rights import BadRule, Rights

SECTION: Final = "_keys"
PREFIX: Final = "_keys/"
"""The prefix of the records of keys."""

USES_MAX: Final = 10_000
TTL_MAX_SECS: Final = 10 * 366 * 86400
OVERLAP_MAX_SECS: Final = 366 * 86400
NOTED_SECS: Final = 86400.0
"""After how long a use is noted again: so the day of the last use is known, and reads need no commit."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")
_NETWORKS_MAX: Final = 64
_TIMES: Final = ("until", "made", "last_used", "revoked")
_MEMBERS: Final = (
    "sha256",
    "allow",
    "until",
    "uses",
    "from",
    "made",
    "last_used",
    "used_by",
    "previous",
    "revoked",
    "bare",
)


@dataclass(frozen=True, slots=True)
class NamedKey:
    """A named key as it is stored."""

    name: str
    digest: bytes = field(repr=False)
    """SHA-256 of the secret."""
    allow: tuple[str, ...]
    rights: Rights
    until: float = math.inf
    """Unix time in seconds; infinite without an end."""
    uses: int | None = None
    """How many addresses may use it; None for any number."""
    networks: tuple[Network, ...] = ()
    """Networks from which it may be used; empty for all."""
    made: float | None = None
    last_used: float | None = None
    """Unix time of a use, not older than the last one by more than :data:`NOTED_SECS`; None if it was never used."""
    used_by: frozenset[str] = frozenset()
    """The clients counted as uses; only with ``uses``."""
    previous: tuple[bytes, float] | None = field(default=None, repr=False)
    """The digest before a rotation, and the Unix time until which it counts."""
    revoked: float | None = None
    bare: bool = False

    def has_secret(self, digest: bytes, now: float) -> bool:
        """Whether this is the SHA-256 of its secret at Unix time ``now``. It takes the same time for each wrong one."""
        right = hmac.compare_digest(digest, self.digest)
        before, until = self.previous or (self.digest, 0.0)
        return right | (hmac.compare_digest(digest, before) & (now < until))

    def why_not(self, address: str, client: str, now: float) -> str:
        """Return a sentence why the key does not count for a client; empty if it counts.

        Args:
            address: of the client.
            client: the network that counts as one client for ``uses``.
            now: Unix time in seconds.
        """
        if self.revoked is not None:
            return f"The access key '{self.name}' was revoked at {shown_time(self.revoked)}"
        if now >= self.until:
            return f"The access key '{self.name}' ended at {shown_time(self.until)}"
        if self.networks and not _within(address, self.networks):
            return f"The access key '{self.name}' may not be used from {address}"
        if self.uses is not None and client not in self.used_by and len(self.used_by) >= self.uses:
            have = "address has" if self.uses == 1 else "addresses have"
            return f"The access key '{self.name}' is used up: {self.uses} {have} used it"
        return ""

    def is_in_force(self, now: float) -> bool:
        """Whether it counts for any client at Unix time ``now``."""
        return self.revoked is None and now < self.until and (self.uses is None or len(self.used_by) < self.uses)

    def must_be_counted(self, client: str) -> bool:
        """Whether a use by this client must be stored before the request is served."""
        return self.uses is not None and client not in self.used_by

    def is_to_be_noted(self, now: float) -> bool:
        """Whether a use at Unix time ``now`` is worth being noted; nothing waits for that."""
        return self.last_used is None or not 0 <= now - self.last_used < NOTED_SECS


def stored_name(name: str) -> str:
    """Return the name of a key's record."""
    return PREFIX + name


def check_name(name: object) -> str:
    """Return the name of a key, checked.

    Raises:
        BadRequest: it may not.
    """
    if not isinstance(name, str) or not _NAME.match(name):
        raise BadRequest("A key's name must be 1 to 64 letters, digits, - and _, and begin with a letter or a digit")
    return name


def digest_of(secret: str) -> bytes:
    """Return the SHA-256 of a secret."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def shown_time(seconds: float) -> str:
    """Return a Unix time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- reading what is stored ---


def of(name: str, value: object) -> NamedKey:
    """Return the key of a stored object.

    Raises:
        BadRequest: it is no key; the message does not show its digest.
    """
    fault = next(problems(name, value), None)
    if fault is not None or not isinstance(value, Mapping):
        raise BadRequest(fault or "it must be an object")
    previous = value.get("previous")
    allow = tuple(value["allow"])
    return NamedKey(
        name,
        bytes.fromhex(value["sha256"]),
        allow,
        rights.parse(allow),
        math.inf if value.get("until") is None else _seconds(value["until"]),
        value.get("uses"),
        tuple(map(_network, value.get("from", ()))),
        _optional_seconds(value.get("made")),
        _optional_seconds(value.get("last_used")),
        frozenset(value.get("used_by", ())),
        None if previous is None else (bytes.fromhex(previous["sha256"]), _seconds(previous["until"])),
        _optional_seconds(value.get("revoked")),
        bool(value.get("bare", False)),
    )


def problems(name: str, value: object) -> Iterator[str]:
    """Yield all faults of a stored object, a sentence each; none shows a digest."""
    where = f"{SECTION}.{name[:64]}"
    if not _NAME.match(name):
        yield f"{where}: a key's name is of 1 to 64 letters, digits, - and _, and begins with a letter or a digit"
    if not isinstance(value, Mapping):
        yield f'{where} must be an object, such as {{"sha256": …, "allow": ["services:get@foo/"]}}'
        return
    for member in value:
        if member not in _MEMBERS:
            close = difflib.get_close_matches(member, _MEMBERS, 1)
            yield f"{where}.{member[:64]} is not known" + (f"; did you mean {close[0]}?" if close else "")
    yield from _digest_problems(f"{where}.sha256", value.get("sha256"))
    yield from _rule_problems(f"{where}.allow", value.get("allow"))
    for member in _TIMES:
        found = value.get(member)
        if found is not None and not _is_time(found):
            yield f'{where}.{member} must be a time such as "2026-12-31T00:00:00Z"'
    uses = value.get("uses")
    if uses is not None and not (isinstance(uses, int) and not isinstance(uses, bool) and 1 <= uses <= USES_MAX):
        yield f"{where}.uses must be a whole number from 1 to {USES_MAX}"
    yield from _network_problems(f"{where}.from", value.get("from", ()))
    used_by = value.get("used_by", {})
    if not isinstance(used_by, Mapping) or not all(map(_is_time, used_by.values())):
        yield f"{where}.used_by must be an object of addresses with their times"
    previous = value.get("previous")
    if previous is not None:
        if isinstance(previous, Mapping) and _is_time(previous.get("until")):
            yield from _digest_problems(f"{where}.previous.sha256", previous.get("sha256"))
        else:
            yield f"{where}.previous must be an object with sha256 and until"
    if not isinstance(value.get("bare", False), bool):
        yield f"{where}.bare must be true or false"


def _digest_problems(where: str, value: object) -> Iterator[str]:
    if not isinstance(value, str) or not _DIGEST.match(value):
        yield (
            f"{where} must be the SHA-256 of the key's secret, 64 lower-case hexadecimal digits,"
            " such as `printf %s SECRET | sha256sum` prints; the key itself is not stored"
        )


def _rule_problems(where: str, value: object) -> Iterator[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        yield f'{where} must be a list of rules such as "services:get@foo/"'
        return
    try:
        rights.parse(value)
    except BadRule:
        faults = 0
        for number, text in enumerate(value, 1):
            try:
                rights.parse_rule(text)
            except BadRule as error:
                faults += 1
                yield f"{where}, number {number}: {error}"
        if not faults:
            yield f"{where} must be a list of 1 to {rights.RULES_MAX} rules"


def _network_problems(where: str, value: object) -> Iterator[str]:
    if not isinstance(value, (list, tuple)) or len(value) > _NETWORKS_MAX:
        yield f'{where} must be a list of at most {_NETWORKS_MAX} networks such as "10.0.0.0/8"'
        return
    for text in value:
        try:
            _network(text)
        except (TypeError, ValueError):
            yield f"{where} has {str(text)[:64]!r} in it, which is no network such as 10.0.0.0/8 or 2001:db8::/32"


def _network(text: object) -> Network:
    if not isinstance(text, str):  # a number would be an address, too
        raise TypeError("no text")
    return ipaddress.ip_network(text)


def _within(address: str, networks: Sequence[Network]) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(found.version == network.version and found in network for network in networks)


def _is_time(value: object) -> bool:
    try:
        _seconds(value)
    except (TypeError, ValueError, OverflowError, OSError):
        return False
    return True


def _seconds(value: object) -> float:
    if not isinstance(value, str):
        raise TypeError("no text")
    found = datetime.fromisoformat(value)
    seconds = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    shown_time(seconds)  # a number that is no date
    return seconds


def _optional_seconds(value: object) -> float | None:
    return None if value is None else _seconds(value)


# --- changes: from a stored object, or none, to the next one ---

Kind = Literal["add", "rotate", "revoke", "count", "note"]


def changed(
    kind: Kind, name: str, value: Mapping[str, Any] | None, given: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """Return the stored form of a key after a change.

    Args:
        kind: of the change.
        name: the key's.
        value: the stored form before; None: no such key.
        given: the values of the change, see the functions of each kind.
        now: Unix time in seconds.

    Raises:
        BadRequest, AlreadyExists, NotFound, Unauthorized: the change is refused.
    """
    return _KINDS[kind](name, value, given, now)


def _add(name: str, value: Mapping[str, Any] | None, given: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Add a key: ``given`` has its members; instead of ``until`` it may have ``ttl`` in seconds."""
    check_name(name)
    made = {
        member: given[member] for member in ("sha256", "allow", "until", "uses", "from", "bare") if given.get(member)
    }
    if given.get("uses") == 0:
        made["uses"] = 0  # refused, not ignored
    ttl = given.get("ttl")
    if ttl is not None:
        made["until"] = shown_time(now + _duration("ttl", ttl, TTL_MAX_SECS))
    made["made"] = shown_time(now)
    faults = list(problems(name, made))
    if faults:
        raise BadRequest("\n".join(faults))
    if value is None:
        return made
    if value.get("sha256") == made["sha256"] and "revoked" not in value:  # sent again after a lost response
        return dict(value)
    state = "was revoked, and its name is not given away again" if "revoked" in value else "exists already"
    raise AlreadyExists(f"The access key '{name}' {state}")


def _rotate(name: str, value: Mapping[str, Any] | None, given: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Change a secret: ``given`` has the new ``sha256``, and in ``overlap`` the seconds that the old one counts."""
    current = _living(name, value)
    overlap = _duration("overlap", given.get("overlap", 0), OVERLAP_MAX_SECS, least=0)
    fault = next(_digest_problems("sha256", given.get("sha256")), None)
    if fault:
        raise BadRequest(fault)
    if current["sha256"] == given["sha256"]:  # sent again
        return current
    current.pop("bare", None)  # the new secret is generated, and comes with the name
    current.pop("previous", None)
    if overlap:
        current["previous"] = {"sha256": current["sha256"], "until": shown_time(now + overlap)}
    current["sha256"] = given["sha256"]
    return current


def _revoke(name: str, value: Mapping[str, Any] | None, _given: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Revoke a key."""
    if value is None:
        raise NotFound(f"There is no access key '{name}'")
    current = dict(value)
    current.setdefault("revoked", shown_time(now))
    return current


def _count(name: str, value: Mapping[str, Any] | None, given: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Count a use: ``given`` has ``client`` and ``address``."""
    if value is None:
        raise Unauthorized("Incorrect access key")
    client = given["client"]
    why = of(name, value).why_not(given["address"], client, now)
    if why:
        raise Unauthorized(why)
    if client in value.get("used_by", {}):
        return dict(value)
    used_by = {**value.get("used_by", {}), client: shown_time(now)}
    return {**value, "used_by": used_by, "last_used": shown_time(now)}


def _note(name: str, value: Mapping[str, Any] | None, _given: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Note that a key was used."""
    return {**_living(name, value), "last_used": shown_time(now)}


def _living(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    if value is None:
        raise NotFound(f"There is no access key '{name}'")
    if "revoked" in value:
        raise BadRequest(f"The access key '{name}' was revoked at {value['revoked']}")
    return dict(value)


_KINDS: Final[Mapping[str, Callable[[str, Mapping[str, Any] | None, Mapping[str, Any], float], dict[str, Any]]]] = {
    "add": _add,
    "rotate": _rotate,
    "revoke": _revoke,
    "count": _count,
    "note": _note,
}


def _duration(what: str, value: object, most: float, least: float = 1) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        years = most / 86400 / 366
        raise BadRequest(f"The {what} must be from {least:g} s to {years:g} year{'s' if years > 1 else ''}")
    return value


# --- keys that people chose ---

_SHORT: Final = 12
_COMMON: Final = (
    "access", "access_key", "admin", "administrator", "bpbroker", "broker", "changeme", "default", "example", "foo",
    "foobar", "guest", "hello", "hunter2", "key", "letmein", "master", "mykey", "pass", "passw0rd", "password",
    "qwerty", "qwertyuiop", "root", "s3cret", "secret", "secretkey", "service", "services", "test", "testing", "token",
    "welcome", "xxx", "abc", "1q2w3e4r", "correcthorsebatterystaple",
)  # fmt: skip
_DECORATION: Final = "0123456789!?.-_#$*@+"


def weakness(secret: str, name: str = "") -> str:
    """Return why a chosen key is easily guessed, as ``is …``; empty if no reason is found."""
    plain = secret.strip().lower()
    if plain.strip(_DECORATION) in (*_COMMON, name.lower(), "") or plain in _COMMON:
        return "is a common word"
    if len(secret) < _SHORT:
        return f"is shorter than {_SHORT} characters"
    if len(set(secret)) < 6:
        return "has the same few characters again and again"
    if plain.isdigit():
        return "has only digits in it"
    return ""


def is_common(key: NamedKey) -> bool:
    """Whether the digest is that of a common word."""
    return any(hmac.compare_digest(digest_of(word), key.digest) for word in ("", key.name, *_COMMON))
