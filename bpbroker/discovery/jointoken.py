"""Certificate fingerprints and join tokens: what a new machine needs to trust a broker. Pure.

A join token is one word, ``bpb2:`` and base64url of a JSON object with any of
these members: ``a`` addresses, ``f`` fingerprints of certificates, ``k`` an
access key, ``s`` the discovery secret, ``r`` the id of the registry, ``u`` Unix
time until which the key is good. A machine that has the token needs nothing
else. The older ``bpb1:<fingerprint>:<key>`` is read as well.
"""

from __future__ import annotations

import json
from binascii import Error, a2b_base64, b2a_base64

from bpbroker.errors import UsageError

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

_PREFIX: Final = "bpb2"
_OLD_PREFIX: Final = "bpb1"
_DIGITS: Final = 64
SECRET_DIGITS: Final = 64
"""Hexadecimal digits of a discovery secret: 32 bytes."""
TOKEN_MAX: Final = 2048
"""Characters in a token."""


class JoinToken:
    """What a join token says; each part may be missing.

    Args:
        addresses: ``host:port`` of brokers of one registry.
        fingerprints: of their certificates, canonical, see :func:`canonical_fingerprint`.
        key: access key; empty for an open namespace.
        secret: the registry's discovery secret, 64 hexadecimal digits.
        registry: the registry's id.
        until: Unix time in seconds until which the key is good; 0 for ever.
    """

    __slots__ = ("addresses", "fingerprints", "key", "registry", "secret", "until")

    def __init__(
        self,
        addresses: Sequence[str] = (),
        fingerprints: Sequence[str] = (),
        key: str = "",
        secret: str = "",
        registry: str = "",
        until: int = 0,
    ) -> None:
        self.addresses = tuple(addresses)
        self.fingerprints = tuple(fingerprints)
        self.key = key
        self.secret = secret
        self.registry = registry
        self.until = until

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JoinToken) and _members(self) == _members(other)

    def __hash__(self) -> int:
        return hash((self.addresses, self.fingerprints, self.key))


def canonical_fingerprint(text: str) -> str:
    """Return a SHA-256 fingerprint as 64 lower-case hexadecimal digits, however it was written.

    Takes what people copy: with or without colons, any case, with ``SHA256:``
    or ``sha256 Fingerprint=`` (as openssl prints it) before it.

    Raises:
        UsageError: it is not the fingerprint of a SHA-256 digest.
    """
    digits = text.strip().rpartition("=")[2].lower().removeprefix("sha256:").replace(":", "").strip()
    if not _hexadecimal(digits, _DIGITS):
        raise UsageError(f"The fingerprint must be SHA-256, {_DIGITS} hexadecimal digits with or without colons")
    return digits


def shown_fingerprint(text: str) -> str:
    """Return a fingerprint as openssl prints it: upper case, a colon after every byte."""
    digits = canonical_fingerprint(text).upper()
    return ":".join(digits[at : at + 2] for at in range(0, _DIGITS, 2))


def make_token(token: JoinToken) -> str:
    """Return the word that says what ``token`` does.

    Raises:
        UsageError: something in it cannot stand in a token, or the word would be too long.
    """
    _key(token.key)
    text = json.dumps(_members(token), ensure_ascii=False, separators=(",", ":"))
    word = f"{_PREFIX}:{_encoded(text.encode())}"
    if len(word) > TOKEN_MAX:
        raise UsageError(f"The join token would be longer than {TOKEN_MAX} characters; name fewer addresses")
    parse_token(word)
    return word


def parse_token(text: str) -> JoinToken:
    """Read a join token; white space around it is ignored.

    Raises:
        UsageError: the text is no join token. The message does not repeat it: a token is a secret.
    """
    prefix, _, rest = text.strip().partition(":")
    if len(text) <= TOKEN_MAX:
        if prefix == _PREFIX:
            return _parsed(rest)
        if prefix == _OLD_PREFIX:
            return _parsed_old(rest)
    raise UsageError(f"The join token must look like {_PREFIX}:<letters and digits>; `bpbroker token` prints it")


def _members(token: JoinToken) -> dict[str, Any]:
    """Return what is written into a token: no empty member."""
    members = {
        "a": list(token.addresses),
        "f": list(token.fingerprints),
        "k": token.key,
        "s": token.secret,
        "r": token.registry,
        "u": token.until,
    }
    return {name: value for name, value in members.items() if value}


def _parsed(word: str) -> JoinToken:
    try:
        found = json.loads(_decoded(word))
    except (ValueError, RecursionError):
        raise UsageError("The join token is damaged: it was not copied whole; `bpbroker token` prints it") from None
    if not isinstance(found, dict):
        raise UsageError("The join token is damaged: there is no object in it")
    until = found.get("u", 0)
    if not isinstance(until, (int, float)) or isinstance(until, bool):
        raise UsageError("The join token is damaged: its time is no number")
    secret = _text(found, "s", "discovery secret")
    if secret and not _hexadecimal(secret, SECRET_DIGITS):
        raise UsageError(f"The discovery secret in the join token is not {SECRET_DIGITS} hexadecimal digits")
    return JoinToken(
        _texts(found, "a", "addresses"),
        tuple(_fingerprint(digits) for digits in _texts(found, "f", "fingerprints")),
        _key(_text(found, "k", "key")),
        secret,
        _text(found, "r", "registry"),
        int(until),
    )


def _parsed_old(rest: str) -> JoinToken:
    digits, colon, key = rest.partition(":")
    if not colon:
        raise UsageError(f"The join token must look like {_OLD_PREFIX}:<fingerprint>:<key>")
    return JoinToken((), (_fingerprint(digits),), _key(key))


def _fingerprint(digits: str) -> str:
    try:
        return canonical_fingerprint(digits)
    except UsageError:
        raise UsageError("A fingerprint in the join token is not 64 hexadecimal digits") from None


def _key(key: str) -> str:
    if key != key.strip() or not key.isprintable():
        raise UsageError("A key with white space around it or control characters in it cannot be in a join token")
    return key


def _text(found: dict[str, Any], name: str, what: str) -> str:
    value = found.get(name, "")
    if not isinstance(value, str):
        raise UsageError(f"The join token is damaged: its {what} is no text")
    return value


def _texts(found: dict[str, Any], name: str, what: str) -> tuple[str, ...]:
    values = found.get(name, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UsageError(f"The join token is damaged: its {what} are no list of texts")
    return tuple(values)


def _hexadecimal(text: str, length: int) -> bool:
    return len(text) == length and all(digit in "0123456789abcdef" for digit in text)


def _encoded(data: bytes) -> str:
    """Return base64url without padding (RFC 4648, section 5)."""
    return b2a_base64(data, newline=False).decode().rstrip("=").replace("+", "-").replace("/", "_")


def _decoded(word: str) -> bytes:
    """Read base64url without padding.

    Raises:
        ValueError: the word is not base64url.
    """
    if not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in word):
        raise ValueError("not base64url")  # the decoder would leave such letters out
    padded = word.replace("-", "+").replace("_", "/") + "=" * (-len(word) % 4)
    try:
        return a2b_base64(padded)
    except Error:
        raise ValueError("not base64url") from None
