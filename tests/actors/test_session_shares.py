"""How many of the sessions one client may have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bpbroker.actors.registry_sessions import with_reserve
from bpbroker.errors import Overloaded
from bpbroker.registry.requests import Close, Open, Renew
from tests.support.people import People


@pytest.fixture
def people() -> People:
    made = People()
    actor = made.registry._actor
    actor._sessions.most = 4
    actor.limits = replace(actor.limits, sessions=with_reserve(4))
    return made


def open_session(people: People, session: str, source: str) -> None:
    people.registry.ask(Open(session, 60.0, source), 1.0).result(1)


def test_a_client_that_has_all_sessions_leaves_room_for_others(people: People) -> None:
    for number in range(4):
        open_session(people, f"a{number}", "10.0.0.1")
    with pytest.raises(Overloaded, match=r"4 sessions already \(_registry.max_sessions\), 4 of them of 10\.0\.0\.1"):
        open_session(people, "a4", "10.0.0.1")
    open_session(people, "a0", "10.0.0.1")  # it is there
    people.registry.ask(Renew("a0"), 1.0).result(1)
    open_session(people, "b", "10.0.1.1")
    with pytest.raises(Overloaded, match="There are 5 sessions already"):
        open_session(people, "c", "10.0.2.1")
    for name in ("a1", "a2"):
        people.registry.ask(Close(name), 1.0).result(1)
    open_session(people, "a4", "10.0.0.1")


def test_a_network_of_ipv6_is_one_client(people: People) -> None:
    for number in range(4):
        open_session(people, f"b{number}", f"2001:db8::{number}")
    with pytest.raises(Overloaded, match="of 2001:db8::"):
        open_session(people, "b4", "2001:db8::9")
    open_session(people, "c", "2001:db8:0:1::9")
