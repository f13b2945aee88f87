"""Certificate fingerprints and join tokens: what a new machine must be told to trust a broker. Pure.

A join token is one word, ``bpb1:<fingerprint>:<key>``: the SHA-256 of the
broker's certificate and the access key of one namespace (empty when the
namespace is open). Who has it needs nothing else.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from bpbroker.errors import UsageError

_PREFIX: Final = "bpb1"
_DIGITS: Final = 64
TOKEN_MAX: Final = 2048


class JoinToken(NamedTuple):
    """What a join token says."""

    fingerprint: str
    """Canonical, see :func:`canonical_fingerprint`."""
    key: str
    """The access key; empty for an open namespace."""


def canonical_fingerprint(text: str) -> str:
    """Give a SHA-256 fingerprint as 64 lower-case hexadecimal digits, however it was written.

    Takes what people copy: with or without colons, any case, with ``SHA256:``
    or ``sha256 Fingerprint=`` (as openssl prints it) before it.

    Raises:
        UsageError: it is not the fingerprint of a SHA-256 digest.
    """
    digits = text.strip().rpartition("=")[2].lower().removeprefix("sha256:").replace(":", "").strip()
    if len(digits) != _DIGITS or not all(digit in "0123456789abcdef" for digit in digits):
        raise UsageError(f"The fingerprint must be SHA-256, {_DIGITS} hexadecimal digits with or without colons")
    return digits


def shown_fingerprint(text: str) -> str:
    """Give a fingerprint as openssl prints it: upper case, a colon after every byte."""
    digits = canonical_fingerprint(text).upper()
    return ":".join(digits[at : at + 2] for at in range(0, _DIGITS, 2))


def make_token(fingerprint: str, key: str) -> str:
    """Give the join token of a broker's certificate and an access key.

    Raises:
        UsageError: the fingerprint is none, or the key cannot stand in a token (control characters, surrounding space).
    """
    token = f"{_PREFIX}:{canonical_fingerprint(fingerprint)}:{key}"
    if parse_token(token).key != key:
        raise UsageError("The key has white space around it, so it cannot stand in a join token")
    return token


def parse_token(text: str) -> JoinToken:
    """Read a join token; white space around it is ignored.

    Raises:
        UsageError: it is none. The message does not repeat it: a token is a secret.
    """
    prefix, _, rest = text.strip().partition(":")
    digits, colon, key = rest.partition(":")
    if prefix != _PREFIX or not colon or len(text) > TOKEN_MAX:
        raise UsageError(f"The join token must look like {_PREFIX}:<fingerprint>:<key>; `bpbroker token` prints it")
    if key != key.strip() or not key.isprintable():
        raise UsageError("The key in the join token has white space around it or control characters in it")
    try:
        return JoinToken(canonical_fingerprint(digits), key)
    except UsageError:
        raise UsageError("The fingerprint in the join token is not 64 hexadecimal digits") from None
