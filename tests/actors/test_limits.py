"""What is limited on both stores: the refusal names the setting, and a client that has much leaves room for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.actors.registry_sessions import with_reserve
from bpbroker.config import layers
from bpbroker.errors import Gone, Overloaded
from bpbroker.messages import Get, List, Register, SettingsChanged
from bpbroker.registry.requests import Allocate, Close, Holder, Lock, Open, Release, Renew, Unlock, Watch
from tests.actors.test_registry_shared import until

if TYPE_CHECKING:
    from tests.actors.conftest import Asked

ONE, OTHER, THIRD = "10.0.0.1", "10.0.0.2", "10.0.0.3"
"""Addresses of clients."""


@pytest.fixture(params=["registry", "shared_registry"])
def asked(request: pytest.FixtureRequest) -> Asked:
    """A registry on each kind of store."""
    found: Asked = request.getfixturevalue(request.param)
    return found


def limit(asked: Asked, section: str, **settings: int) -> None:
    asked(SettingsChanged(layers.freeze({section: settings})))


def refused(asked: Asked, message: Any, setting: str) -> None:
    """See that a call is refused, and says by which setting."""
    with pytest.raises(Overloaded, match=setting.replace(".", r"\.")) as caught:
        asked(message)
    assert caught.value.status == 503


def test_sessions(asked: Asked) -> None:
    limit(asked, "_registry", max_sessions=4)
    for number in range(4):
        asked(Open(f"a{number}", 60.0, ONE))
    refused(asked, Open("a4", 60.0, ONE), "_registry.max_sessions")
    asked(Open("a0", 60.0, ONE))  # it is there
    asked(Renew("a0"))
    asked(Open("b", 60.0, OTHER))
    refused(asked, Open("c", 60.0, THIRD), "_registry.max_sessions")
    asked(Close("a0"))
    asked(Close("a1"))
    asked(Open("a4", 60.0, ONE))


@pytest.mark.parametrize("most", [4, 12])  # 12: places that wait have records of their own
def test_places_in_the_queue_of_a_lock(asked: Asked, most: int) -> None:
    limit(asked, "_registry", max_places=most)
    for number in range(most + 1):
        asked(Open(f"a{number}", 60.0, ONE))
    for name, client in (("b", OTHER), ("b2", OTHER), ("c", THIRD), ("d", "10.0.0.4"), ("e", "10.0.0.5")):
        asked(Open(name, 60.0, client))
    waiting = [asked.send(_lock(f"a{number}", ONE)) for number in range(most)]
    until(lambda: len(asked(Holder("db")).data["waiting"]) == most - 1)
    refused(asked, _lock(f"a{most}", ONE), "_registry.max_places")
    assert waiting[0].result(10).data["session"] == "a0"
    asked(_lock("a0", ONE))  # it has its place
    waiting.append(asked.send(_lock("b", OTHER)))
    await_last(asked, "b")
    refused(asked, _lock("b2", OTHER), "_registry.max_places")
    others = [("c", THIRD), ("d", "10.0.0.4"), ("e", "10.0.0.5")]
    for name, client in others[: with_reserve(most) - most - 1]:
        waiting.append(asked.send(_lock(name, client)))
        await_last(asked, name)
    refused(asked, _lock("e", "10.0.0.5"), "_registry.max_places")  # there is no room at all
    asked(_lock(f"a{most}", ONE, "another"))  # another lock is another queue
    for number in range(most):
        asked(Unlock("db", f"a{number}"))
    assert waiting[most].result(10).data["session"] == "b"


def await_last(asked: Asked, session: str) -> None:
    """Wait until a session has the last place."""
    until(lambda: asked(Holder("db")).data["waiting"][-1]["session"] == session)


def _lock(session: str, source: str, name: str = "db") -> Lock:
    return Lock(name, session, source, wait_secs=60, client=session)


def test_owners_of_a_pool(asked: Asked) -> None:
    limit(asked, "_registry", max_numbers=3)
    for owner in "abc":
        asked(Allocate("p", owner, ONE))
    refused(asked, Allocate("p", "d", ONE), "_registry.max_numbers")
    assert asked(Allocate("p", "a", ONE)).data["number"] == 1  # it has one
    assert asked(Allocate("another", "d", OTHER)).data["number"] == 1
    asked(Release("p", "a", ONE))
    assert asked(Allocate("p", "d", ONE)).data["number"] == 1


WAITING: dict[str, Callable[[str], Any]] = {
    "watch": lambda client: Watch(since="", wait_secs=60, client=client),
    "a watch of one name": lambda client: Watch(name="x", since="", wait_secs=60, client=client),
    "lock": lambda client: Lock("db", client, ONE, wait_secs=60, client=client),
    "holder": lambda client: Holder("none", wait_secs=60, unless_token=None, client=client),
    "entry": lambda client: Get("none", 60, client=client),
    "list": lambda client: List("none", 1, 60, client=client),
}


@pytest.mark.parametrize("kind", WAITING)
def test_calls_that_wait(asked: Asked, kind: str) -> None:
    limit(asked, "api", max_waiting=128)
    cursor = asked(Watch()).cursor

    def call(client: str) -> Any:
        made = WAITING[kind](client)
        return Watch(made.prefix, made.name, cursor, 60, client=client) if isinstance(made, Watch) else made

    if kind == "lock":
        asked(Open("holder", 60.0, ONE))
        asked(Lock("db", "holder", ONE))
        for client in ("much", "more", "late"):
            asked(Open(client, 60.0, ONE))
    waiting = [asked.send(call("much")) for _ in range(64)]
    refused(asked, call("much"), "api.max_waiting")
    waiting += [asked.send(call("more")) for _ in range(64)]
    refused(asked, call("more"), "api.max_waiting")
    late = asked.send(call("late"))  # all places are taken: it has its own
    asked(Register("other", {}, ONE))  # whatever was asked before has been looked at
    if kind == "watch":
        waiting.append(late)
        assert [event.name for each in waiting for event in each.result(10).events] == ["other"] * 129
    else:
        assert not any(each.done() for each in (*waiting, late))  # each has a place


def test_room_for_what_has_changed(asked: Asked) -> None:
    """The oldest changes give way, however many one client makes: who needs them is told so, and none is refused."""
    limit(asked, "_registry", history_bytes=10_000)
    first = asked(Watch()).cursor
    for number in range(100):
        asked(Register(f"n{number}", {"x": "x" * 100}, ONE))
    with pytest.raises(Gone, match="forgotten") as caught:
        asked(Watch(since=first))
    assert caught.value.data is not None
    cursor = caught.value.data["cursor"]
    asked(Register("mine", {}, OTHER))
    assert [event.name for event in asked(Watch(since=cursor)).events] == ["mine"]
