"""Named keys through the frontend: every route asks for the right, refusals say why, revoking ends waits."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from bpbroker.errors import Unauthorized
from bpbroker.frontend.access_keys import NamedKeys
from bpbroker.frontend.actions import BUILT_IN
from bpbroker.frontend.coordination import OPERATIONS
from bpbroker.frontend.openapi import description
from bpbroker.messages import ChangeKey, Get
from bpbroker.record import Record
from bpbroker.registry import named_keys
from bpbroker.registry.named_keys import digest_of
from bpbroker.registry.rights import VERBS
from bpbroker.server.request import Request
from bpbroker.server.response import PendingResponse
from tests.support.application import SETTINGS, Answer, Broker

SECRET = "canary-0123456789abcdefghij"


@pytest.fixture
def broker() -> Broker:
    return Broker()


def give(broker: Broker, name: str, *allow: str, **members: Any) -> str:
    """Let there be a key; return it as clients send it."""
    stored = {"sha256": digest_of(SECRET).hex(), "allow": allow, **members}
    broker.keys.take(named_keys.stored_name(name), json.dumps(stored).encode())
    return f"{name}.{SECRET}"


def call(broker: Broker, target: str, key: str = "", **more: Any) -> Answer:
    return broker.call(target, X_ACCESS_KEY=key, **more)


def routes() -> list[str]:
    """Return every route that needs a right, as the API's description and the table of methods have them.

    Whatever is described and is no method, such as ``/metrics``, is asked as its path stands there.
    """
    described = {path.rstrip("/") for path in description()["paths"]}
    table = {f"/{namespace}/{method}" for namespace, actions in BUILT_IN.items() for method in actions}
    found = described | table | {"/ossec/AddAgent"}
    return sorted(found - {"/services/Batch"})  # it needs the rights of its operations, see below


@pytest.mark.parametrize("route", routes())
def test_every_route_asks_for_the_right(route: str) -> None:
    namespace, _, method = route[1:].partition("/")
    broker = Broker({**SETTINGS, "ping": {"_access_key": "own"}})
    verb = f"services:{'get' if method == 'Register' else 'register'}@x"
    key = give(broker, "other", verb, "ossec.Other", "ping.Other", last_used="2999-01-01T00:00:00Z")
    for field in ("name", "prefix"):
        answer = call(broker, f"{route}/?{field}=x&data=y", key, method="POST" if method else "GET")
        assert (answer.status, "lacks the right" in answer.message) == (403, True), answer
        assert f"{namespace}" in answer.message
    assert not broker.registry.asked
    assert not broker.ossec.asked


@pytest.mark.parametrize("method", sorted(OPERATIONS))
def test_every_operation_of_a_batch_asks_for_its_right(broker: Broker, method: str) -> None:
    key = give(broker, "other", "services:*@mine/")
    about = {"Allocate": "pool", "Release": "pool", "List": "prefix", "CheckEmpty": "prefix"}.get(method, "name")
    # What a right is asked for is what the method works with, not what else stands there.
    others = {other: "mine/a" for other in ("name", "pool", "prefix") if other != about}
    for given in ({about: "theirs", **others}, others):
        body = json.dumps({"operations": [{"method": method, "data": "x", "receiver": "r", "owner": "o", **given}]})
        answer = broker.call("/services/Batch/", body=body.encode(), CONTENT_TYPE="application/json", X_ACCESS_KEY=key)
        assert (answer.status, "lacks the right" in answer.message) == (403, True), answer
    assert not broker.registry.asked


def test_every_method_of_the_registry_has_a_verb() -> None:
    assert {method.lower() for method in BUILT_IN["services"]} - {"batch"} <= set(VERBS)


def test_a_key_does_what_its_rules_allow(broker: Broker) -> None:
    key = give(broker, "ci", "services:get,list@foo/", "ossec.AddAgent")
    assert call(broker, "/services/Get/?name=foo/a", key).status == 200
    refused = call(broker, "/services/Get/?name=fo", key)
    assert (refused.status, refused.message) == (403, "The access key 'ci' lacks the right services:get@fo")
    assert call(broker, "/services/Register/?name=foo/a&data=x", key).status == 403
    for prefix in ("", "fo", "bar/"):
        assert call(broker, f"/services/List/?prefix={prefix}", key).status == 403
    assert call(broker, "/ossec/AddAgent/", key).status == 200
    assert call(broker, "/ossec/Other/", key).message == "The access key 'ci' lacks the right ossec.Other"
    assert broker.ossec.asked[-1].caller == "ci"
    # The namespace's own key has all rights in it, as before.
    assert call(broker, "/ossec/Other/", "secret").status == 200
    assert broker.ossec.asked[-1].caller == ""


def test_what_a_key_is_about_is_closed_to_others(broker: Broker) -> None:
    assert call(broker, "/services/Get/?name=foo").status == 200
    key = give(broker, "ci", "services:get", "ping")
    assert call(broker, "/services/Get/?name=foo").message == "services needs an access key"
    assert call(broker, "/services/Get/?name=foo", "ci.wrong").message == "Incorrect access key"
    assert call(broker, "/services/Get/?name=foo", "nobody.wrong").message == "Incorrect access key"
    assert call(broker, "/services/Get/?name=foo", SECRET).message == "Incorrect access key"
    assert call(broker, "/ping/Ping/").status == 200
    assert call(broker, "/ping/Ping/", key).status == 200
    give(broker, "ci", "services:get", revoked="2026-01-01T00:00:00Z")
    assert call(broker, "/services/Get/?name=foo").status == 401
    opened = Broker({**SETTINGS, "services": {"_access_key": ""}})
    give(opened, "ci", "services:get")
    assert call(opened, "/services/Get/?name=foo").status == 200


def test_a_key_for_another_registry_is_said_to_be_that(broker: Broker) -> None:
    key = give(broker, "ci", "services:get")
    broker.keys.registry_is("a" * 32)

    def answer(key: str, registry: str) -> tuple[int, bool]:
        found = call(broker, "/services/Get/?name=foo", key, X_REGISTRY=registry)
        return found.status, b"for another registry" in found.body

    assert answer("ci.wrong", "b" * 32) == (401, True)
    assert answer("ci.wrong", "a" * 32) == (401, False)
    assert answer("ci.wrong", "") == (401, False)
    # A key that is right is right, as after a restore of a cluster, which makes it another registry.
    assert answer(key, "b" * 32) == (200, False)
    found = broker.call("/_control/Registry", AUTHORIZATION="Bearer control-token")
    assert found.json["data"] == {"id": "a" * 32}
    assert broker.call("/_control/Registry", AUTHORIZATION="Bearer wrong").status == 401


def test_nothing_is_open_before_the_keys_are_known() -> None:
    broker = Broker()
    NamedKeys.__init__(broker.keys)
    assert call(broker, "/services/Get/?name=foo").status == 503
    assert call(broker, "/ping/Ping/").status == 200
    assert call(broker, "/ossec/AddAgent/", "secret").status == 200


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"until": "2000-01-01T00:00:00Z"}, "ended at 2000-01-01T00:00:00Z"),
        ({"revoked": "2026-01-01T00:00:00Z"}, "was revoked at 2026-01-01T00:00:00Z"),
        ({"from": ["192.0.2.0/24"]}, "may not be used from 10.0.0.7"),
        ({"uses": 1, "used_by": {"10.0.0.9": "2026-01-01T00:00:00Z"}}, "is used up"),
    ],
)
def test_a_key_that_does_not_count_says_why_to_who_has_it(broker: Broker, members: dict[str, Any], why: str) -> None:
    key = give(broker, "ci", "services:get", **members)
    for _ in range(200):  # the right secret is no guess
        answer = call(broker, "/services/Get/?name=foo", key)
        assert answer.status == 401
        assert why in answer.message
    assert call(broker, "/services/Get/?name=foo", "ci.wrong").message == "Incorrect access key"


def test_a_use_is_counted_before_the_call_goes_on(broker: Broker) -> None:
    key = give(broker, "ci", "services:get", uses=2)
    assert call(broker, "/services/Get/?name=foo", key).status == 200
    counting, got = broker.registry.asked
    assert counting == ChangeKey("_keys/ci", "count", {"client": "10.0.0.7", "address": "10.0.0.7"})
    assert isinstance(got, Get)
    used = {"10.0.0.7": "2026-01-01T00:00:00Z"}
    give(broker, "ci", "services:get", uses=2, used_by=used, last_used=named_keys.shown_time(time.time()))
    broker.registry.asked.clear()
    assert call(broker, "/services/Get/?name=foo", key).status == 200
    assert [type(each) for each in broker.registry.asked] == [Get]
    broker.registry.outcome = Unauthorized("used up meanwhile")
    give(broker, "ci", "services:get", uses=2)
    broker.registry.asked.clear()
    assert call(broker, "/services/Get/?name=foo", key).status == 401
    assert [type(each) for each in broker.registry.asked] == [ChangeKey]


def test_revoking_ends_what_its_callers_wait_for(broker: Broker) -> None:
    key = give(broker, "ci", "services:get,list")
    give(broker, "other", "services:get,list")
    broker.registry.outcome = Ellipsis
    waiting = []
    for name, given in (("a", key), ("b", key), ("c", f"other.{SECRET}")):
        fields = {"host": "broker:20443", "x-access-key": given}
        pending = broker.application(Request("GET", "/services/Get/", f"name={name}&wait=60", fields, "10.0.0.7", b""))
        assert isinstance(pending, PendingResponse)
        pending.ask()
        waiting.append(pending)
    give(broker, "ci", "services:get,list", revoked="2026-01-01T00:00:00Z")
    assert [pending.done for pending in waiting] == [True, True, False]
    assert waiting[0].response().status == 401
    assert b"was revoked" in waiting[1].response().body
    waiting[2].give_up()


def test_who_am_i(broker: Broker) -> None:
    key = give(broker, "ci", "services:get@foo/", until="2999-01-01T00:00:00Z", uses=5)
    found = call(broker, "/whoami", key, method="GET").json["data"]
    assert found == {
        "name": "ci", "allow": ["services:get@foo/"], "until": "2999-01-01T00:00:00Z",
        "uses": 5, "used": 0, "from": [], "address": "10.0.0.7",
    }  # fmt: skip
    assert call(broker, "/whoami/", "secret").json["data"]["allow"] == ["ping.*", "pkg.sub.*", "ossec.*"]
    assert call(broker, "/whoami", "ci.wrong").status == 401
    assert call(broker, "/whoami").json["data"]["name"] == ""


def test_a_bare_key_comes_with_or_without_its_name(broker: Broker) -> None:
    key = give(broker, "old", "services.*", bare=True)
    for given in (key, SECRET):
        assert call(broker, "/services/Get/?name=foo", given).status == 200
    assert call(broker, "/services/Get/?name=foo", f"{SECRET}x").status == 401


def test_the_last_key_with_all_rights_is_revoked_by_force_only(broker: Broker) -> None:
    give(broker, "adm", "services.*")
    give(broker, "ci", "services:get")

    def revoke(name: str, **more: Any) -> int:
        body = json.dumps({"name": name, **more}).encode()
        return broker.call("/_control/RevokeKey", body=body, AUTHORIZATION="Bearer control-token").status

    broker.registry.outcome = Record("_keys/adm", b'{"sha256": "", "allow": []}', 5001)
    assert revoke("adm") == 412
    assert not broker.registry.asked
    assert revoke("ci") == 200
    assert revoke("adm", force=True) == 200
    give(broker, "adm2", "services.*")
    assert revoke("adm") == 200


def test_a_guess_is_held_back_longer_and_longer_and_the_right_key_passes(broker: Broker) -> None:
    key = give(broker, "ci", "services:get")
    for _ in range(100):
        assert call(broker, "/services/Get/?name=foo", "ci.guess").status == 401
    delays = []
    for _ in range(5):
        fields = {"host": "broker:20443", "x-access-key": "ci.guess"}
        pending = broker.application(Request("GET", "/services/Get/", "name=foo", fields, "10.0.0.7", b""))
        assert isinstance(pending, PendingResponse)
        delays.append(pending.timeout_secs)
        assert call(broker, "/services/Get/?name=foo", key).status == 200
    assert delays == sorted(set(delays))
    assert delays[-1] <= 20
