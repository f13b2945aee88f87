from __future__ import annotations

import pytest

from bpbroker.discovery.jointoken import TOKEN_MAX, canonical_fingerprint, make_token, parse_token, shown_fingerprint
from bpbroker.errors import UsageError

DIGITS = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [
        DIGITS,
        DIGITS.upper(),
        shown_fingerprint(DIGITS),
        f"SHA256:{DIGITS}",
        f"sha256 Fingerprint={shown_fingerprint(DIGITS)}",
        f"  {DIGITS}\n",
    ],
)
def test_a_fingerprint_is_understood_however_it_was_copied(text: str) -> None:
    assert canonical_fingerprint(text) == DIGITS


@pytest.mark.parametrize("text", ["", "abc", DIGITS[:-1], f"{DIGITS}0", f"{DIGITS[:-1]}g", "\u0661" * 64])
def test_anything_else_is_no_fingerprint(text: str) -> None:
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        canonical_fingerprint(text)


def test_it_is_shown_as_openssl_does() -> None:
    assert shown_fingerprint("ab" * 32) == ":".join(["AB"] * 32)


@pytest.mark.parametrize("key", ["secret", "", "a:b:c", "with space", "Grüße"])
def test_a_token_comes_back_as_it_was_made(key: str) -> None:
    token = make_token(shown_fingerprint(DIGITS), key)
    assert token == f"bpb1:{DIGITS}:{key}"
    assert parse_token(f" {token}\n" if key else token) == (DIGITS, key)


@pytest.mark.parametrize(
    "text", ["", "bpb1", f"bpb1:{DIGITS}", f"bpb2:{DIGITS}:k", "bpb1:abc:hush", f"bpb1:{DIGITS}:hush\x07x", "x:y:hush"]
)
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_token(text)
    assert "hush" not in str(caught.value)


def test_a_token_is_bounded() -> None:
    with pytest.raises(UsageError):
        parse_token(f"bpb1:{DIGITS}:{'k' * TOKEN_MAX}")


@pytest.mark.parametrize("key", [" k", "k ", "k\n", "a\tb", "a\0"])
def test_no_token_is_made_that_could_not_be_read(key: str) -> None:
    with pytest.raises(UsageError):
        make_token(DIGITS, key)
