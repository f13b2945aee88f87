"""Named keys: what is stored, what is refused, when one counts, what changes it. Pure."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.errors import AlreadyExists, BadRequest, NotFound, Unauthorized
from bpbroker.registry import named_keys
from bpbroker.registry.named_keys import NamedKey, digest_of

SECRET = "canary-0123456789abcdefghij"
DIGEST = digest_of(SECRET).hex()
GOOD: dict[str, Any] = {"sha256": DIGEST, "allow": ["services:get@foo/"]}
NOW = 1_800_000_000.0


def key(**members: Any) -> NamedKey:
    return named_keys.of("ci", {**GOOD, **members})


def changed(kind: named_keys.Kind, value: Any = None, given: Any = None, now: float = NOW) -> dict[str, Any]:
    return named_keys.changed(kind, "ci", value, given or {}, now)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("ci", {**GOOD, "sha256": SECRET}, "_keys.ci.sha256"),
        ("ci", {**GOOD, "sha256": DIGEST.upper()}, "_keys.ci.sha256"),
        ("ci", {**GOOD, "sha256": DIGEST[:-1]}, "_keys.ci.sha256"),
        ("ci", {**GOOD, "sha256": None}, "_keys.ci.sha256"),
        ("ci", {"allow": ["ping"]}, "_keys.ci.sha256"),
        ("ci", {"sha256": DIGEST}, "_keys.ci.allow"),
        ("ci", {**GOOD, "allow": []}, "_keys.ci.allow"),
        ("ci", {**GOOD, "allow": "ping"}, "_keys.ci.allow"),
        (
            "ci",
            {**GOOD, "allow": ["ping", "services:gt"]},
            "number 2: The rule 'services:gt' cannot be",
        ),
        ("ci", {**GOOD, "allow": ["services:get@_x"]}, "the broker's own"),
        ("ci", {**GOOD, "until": "tomorrow"}, "_keys.ci.until"),
        ("ci", {**GOOD, "until": 5}, "_keys.ci.until"),
        ("ci", {**GOOD, "uses": 0}, "_keys.ci.uses"),
        ("ci", {**GOOD, "uses": True}, "_keys.ci.uses"),
        ("ci", {**GOOD, "uses": 10_001}, "_keys.ci.uses"),
        ("ci", {**GOOD, "from": "10.0.0.0/8"}, "_keys.ci.from"),
        ("ci", {**GOOD, "from": ["10.0.0.1/8"]}, "no network"),
        ("ci", {**GOOD, "from": ["10.0.0.0/33"]}, "no network"),
        ("ci", {**GOOD, "from": [10]}, "no network"),
        ("ci", {**GOOD, "form": ["10.0.0.0/8"]}, "did you mean from?"),
        ("ci", [], "must be an object"),
        ("ci", SECRET, "must be an object"),
        ("a.b", GOOD, "a key's name"),
        ("", GOOD, "a key's name"),
        ("-x", GOOD, "a key's name"),
        ("x" * 65, GOOD, "a key's name"),
    ],
)
def test_what_is_no_key_is_named_and_not_shown(name: str, value: Any, why: str) -> None:
    found = list(named_keys.problems(name, value))
    assert len(found) == 1
    assert why in found[0]
    assert SECRET not in found[0]
    assert DIGEST[:20] not in found[0]
    with pytest.raises(BadRequest):
        named_keys.of(name, value)


def test_a_key_reads_as_it_is_stored() -> None:
    whole = key(until="2030-01-01T00:00:00Z", uses=2, **{"from": ["10.0.0.0/8"]}, used_by={"10.0.0.1": "2026-01-01"})
    assert (whole.uses, whole.until, whole.used_by) == (2, 1893456000.0, frozenset({"10.0.0.1"}))
    assert key().until == math.inf
    assert SECRET not in repr(whole)
    assert repr(digest_of(SECRET)) not in repr(whole)


@pytest.mark.parametrize(
    ("members", "address", "why"),
    [
        ({}, "10.0.0.1", ""),
        ({"until": "2000-01-01T00:00:00Z"}, "10.0.0.1", "ended at 2000-01-01T00:00:00Z"),
        ({"revoked": "2026-01-01T00:00:00Z"}, "10.0.0.1", "was revoked"),
        ({"from": ["10.0.0.0/8"]}, "10.0.0.1", ""),
        ({"from": ["10.0.0.0/8"]}, "11.0.0.1", "may not be used from 11.0.0.1"),
        ({"from": ["10.0.0.0/8"]}, "::1", "may not be used from ::1"),
        ({"from": ["fe80::/10"]}, "fe80::1%eth0", ""),
        ({"uses": 1}, "10.0.0.1", ""),
        ({"uses": 1, "used_by": {"10.0.0.1": "2026-01-01"}}, "10.0.0.1", ""),
        ({"uses": 1, "used_by": {"10.0.0.2": "2026-01-01"}}, "10.0.0.1", "is used up: 1 address has used it"),
    ],
)
def test_when_the_right_secret_does_not_count(members: dict[str, Any], address: str, why: str) -> None:
    found = key(**members).why_not(address, address, NOW)
    assert why in found
    assert bool(found) == bool(why)


def test_add_refuses_what_cannot_be() -> None:
    assert changed("add", None, GOOD)["made"] == named_keys.shown_time(NOW)
    for more in ({"uses": 0}, {"ttl": 0}, {"ttl": 11 * 366 * 86400}, {"from": ["x"]}, {"allow": ["services:gt"]}):
        with pytest.raises(BadRequest):
            changed("add", None, {**GOOD, **more})
    there = changed("add", None, {**GOOD, "ttl": 60})
    assert there["until"] == named_keys.shown_time(NOW + 60)
    assert changed("add", there, GOOD) == there  # sent again
    with pytest.raises(AlreadyExists):
        changed("add", there, {**GOOD, "sha256": "0" * 64})
    with pytest.raises(AlreadyExists):
        changed("add", changed("revoke", there), GOOD)
    with pytest.raises(BadRequest):
        named_keys.changed("add", "a.b", None, GOOD, NOW)


def test_both_secrets_count_while_a_rotation_overlaps() -> None:
    other = "another-secret"
    there = changed("rotate", GOOD, {"sha256": digest_of(other).hex(), "overlap": 60})
    found = named_keys.of("ci", there)
    assert found.has_secret(digest_of(other), NOW)
    assert found.has_secret(digest_of(SECRET), NOW + 59)
    assert not found.has_secret(digest_of(SECRET), NOW + 61)
    at_once = named_keys.of("ci", changed("rotate", GOOD, {"sha256": digest_of(other).hex(), "overlap": 0}))
    assert not at_once.has_secret(digest_of(SECRET), NOW)
    for kind in ("rotate", "note"):
        with pytest.raises(BadRequest):
            changed(kind, changed("revoke", GOOD), {"sha256": "0" * 64})
    with pytest.raises(NotFound):
        changed("revoke")


@given(st.lists(st.sampled_from("abcdef"), max_size=20), st.integers(1, 4))
def test_exactly_so_many_clients_are_counted(clients: list[str], uses: int) -> None:
    value, let_in = {**GOOD, "uses": uses}, set[str]()
    for client in clients:
        try:
            value = changed("count", json.loads(json.dumps(value)), {"client": client, "address": "10.0.0.1"})
        except Unauthorized:
            assert client not in let_in
            assert len(let_in) == uses
        else:
            let_in.add(client)
    assert len(let_in) == min(uses, len(set(clients)))
    assert set(value.get("used_by", {})) == let_in


@pytest.mark.parametrize("word", ["", "x", "secret", "Secret1", "changeme!", "12345678901234", "a" * 16, "services"])
def test_a_weak_key_is_known(word: str) -> None:
    assert named_keys.weakness(word, "services")


def test_a_generated_key_is_not_weak() -> None:
    assert not named_keys.weakness("y8wPqmS3kB1qGk7VbR2c")
    assert named_keys.is_common(named_keys.of("ci", {**GOOD, "sha256": digest_of("changeme").hex()}))
    assert not named_keys.is_common(key())
