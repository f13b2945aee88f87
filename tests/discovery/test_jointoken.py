from __future__ import annotations

import base64
import contextlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.discovery.jointoken import (
    TOKEN_MAX,
    JoinToken,
    canonical_fingerprint,
    make_token,
    parse_token,
    shown_fingerprint,
)
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


WHOLE = JoinToken(
    ["10.0.0.5:20443", "[2001:db8::1]:20443"], [DIGITS, "ab" * 32], "Schlüssel", "cd" * 32, "ef" * 16, 1795521812
)


def word(members: object) -> str:
    """Return a token that says this, whatever it is."""
    data = members if isinstance(members, bytes) else json.dumps(members).encode()
    return "bpb2:" + base64.urlsafe_b64encode(data).decode().rstrip("=")


@pytest.mark.parametrize("key", ["secret", "", "a:b:c", "with space", "Grüße"])
def test_a_token_comes_back_as_it_was_made(key: str) -> None:
    token = JoinToken(["10.0.0.5:20443"], [DIGITS], key, "cd" * 32)
    assert parse_token(f" {make_token(token)}\n") == token
    old = parse_token(f" bpb1:{DIGITS}:{key}\n" if key else f"bpb1:{DIGITS}:")
    assert (old.fingerprints, old.key, old.secret) == ((DIGITS,), key, "")


def test_a_token_holds_all_of_it_in_the_alphabet_of_urls() -> None:
    token = make_token(WHOLE)
    assert re.fullmatch(r"bpb2:[A-Za-z0-9_-]+", token)
    read = parse_token(token)
    assert read == WHOLE
    assert (read.until, read.registry) == (1795521812, "ef" * 16)
    members = json.loads(base64.urlsafe_b64decode(token[5:] + "=="))
    assert members == {
        "a": ["10.0.0.5:20443", "[2001:db8::1]:20443"], "f": [DIGITS, "ab" * 32],
        "k": "Schlüssel", "s": "cd" * 32, "r": "ef" * 16, "u": 1795521812,
    }  # fmt: skip


def test_members_that_it_does_not_know_are_ignored_and_none_is_needed() -> None:
    assert parse_token(word({"k": "key", "x": [1], "f": [DIGITS]})) == JoinToken((), (DIGITS,), "key")
    assert parse_token(word({})) == JoinToken()


@pytest.mark.parametrize(
    "text",
    [
        "", "bpb1", f"bpb1:{DIGITS}", f"bpb3:{DIGITS}:k", "bpb1:abc:hush", f"bpb1:{DIGITS}:hush\x07x", "x:y:hush",
        "bpb2:", "bpb2:hush!", "bpb2:hush", word(b"hush"), word(["hush"]), word({"k": 7}), word({"k": "hush "}),
        word({"a": "hush"}), word({"f": ["hush"]}), word({"f": [7]}), word({"s": "hush"}), word({"u": "hush"}),
        word({"k": "hush\n"}), word({"k": "h" * 2000}), word(b"[" * 1500),
    ],
)  # fmt: skip
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_token(text)
    assert "hush" not in str(caught.value)


@given(st.text(max_size=200))
def test_random_words_raise_nothing_else(text: str) -> None:
    for prefix in ("", "bpb1:", "bpb2:"):
        with contextlib.suppress(UsageError):
            parse_token(prefix + text)


def test_a_token_is_bounded() -> None:
    with pytest.raises(UsageError):
        parse_token(f"bpb1:{DIGITS}:{'k' * TOKEN_MAX}")
    with pytest.raises(UsageError, match="2048"):
        make_token(JoinToken([f"10.0.0.{number}:20443" for number in range(200)], [DIGITS]))


@pytest.mark.parametrize("key", [" k", "k ", "k\n", "a\tb", "a\0"])
def test_no_token_is_made_that_could_not_be_read(key: str) -> None:
    with pytest.raises(UsageError):
        make_token(JoinToken((), (DIGITS,), key))
