"""Noticing that the cluster has another history than the one we know."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.storage.etcd.gateway import Gateway
from bpbroker.storage.etcd.keys import Keys
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.responses import Failed, encode
from bpbroker.storage.etcd.restore_detection import ANOTHER, FORGOTTEN, WENT_BACK, Restored, Timeline
from tests.support.etcd_cluster import needs_etcd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.etcd_cluster import EtcdCluster


def answer(revision: int, cluster: int = 1) -> dict[str, Any]:
    return {"header": {"cluster_id": str(cluster), "revision": str(revision)}}


def test_revisions_may_grow_and_answers_may_overtake_each_other() -> None:
    timeline = Timeline()
    before = timeline.moment()
    timeline.check(answer(7), before)
    timeline.check(answer(5), before)  # its request was sent before the other one's answer came
    timeline.check(answer(7), timeline.moment())
    assert timeline.number == 0
    assert timeline.take_notice() == ""


@pytest.mark.parametrize(("next_one", "why"), [(answer(6), WENT_BACK), (answer(7, 2), ANOTHER)])
def test_a_lower_revision_or_another_cluster_begins_a_new_timeline(next_one: dict[str, Any], why: str) -> None:
    begun: list[int] = []
    timeline = Timeline(lambda: begun.append(timeline.number))
    first = timeline.moment()
    timeline.check(answer(7), first)
    with pytest.raises(Restored, match=why):
        timeline.check(next_one, timeline.moment())
    assert begun == [1]
    with pytest.raises(Restored, match=why):
        timeline.check(answer(8), first)  # an answer to a request of the old timeline says nothing
    assert begun == [1]
    assert timeline.take_notice() == why
    assert timeline.take_notice() == ""
    second = timeline.moment()
    timeline.check(next_one, second)
    assert first.version(8) < second.version(1)
    assert (first.has(first.version(8)), second.has(first.version(8))) == (True, False)
    assert (second.revision_of(second.version(3)), second.revision_of(first.version(3)), second.revision_of(0)) == (
        3,
        -1,
        0,
    )


def test_many_threads_begin_one_timeline() -> None:
    begun: list[int] = []
    timeline = Timeline(lambda: begun.append(1))
    before = timeline.moment()

    def begin() -> None:
        with pytest.raises(Restored):
            timeline.begin(before, WENT_BACK)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert begun == [1]


@pytest.mark.parametrize("header", [None, {}, {"cluster_id": "1"}, {"cluster_id": "1", "revision": "x"}])
def test_an_answer_without_a_header_is_no_answer(header: Any) -> None:
    timeline = Timeline()
    with pytest.raises(Failed):
        timeline.check({"header": header}, timeline.moment())


# --- new connections to a real cluster ---


class Connections:
    """A gateway whose connections are all new, and its timeline."""

    def __init__(self, section: dict[str, Any]) -> None:
        self.timeline = Timeline()
        self.gateway = Gateway(EtcdOptions.of({"_registry": section}), self.timeline)
        self.keys = Keys(section["prefix"])

    def key(self, name: str) -> str:
        return self.keys.entry(name)

    def put(self, name: str, value: bytes) -> int:
        return self.revision("/kv/put", {"key": self.key(name), "value": encode(value)})

    def delete(self, name: str) -> int:
        return self.revision("/kv/deleterange", {"key": self.key(name)})

    def revision(self, path: str, body: dict[str, Any]) -> int:
        return int(self.gateway.call(path, body)["header"]["revision"])

    def known(self, name: str, revision: int, value: bytes | None) -> None:
        """Let this be the newest change that is known."""
        self.timeline.note(self.key(name), revision, None if value is None else encode(value), self.timeline.moment())

    def reconnect(self) -> None:
        for endpoint in self.gateway._endpoints:
            endpoint.close()
        self.gateway.call("/kv/range", {"key": self.key("x")})


@pytest.fixture
def connections(etcd_section: dict[str, Any]) -> Iterator[Connections]:
    made = Connections(etcd_section)
    yield made
    made.gateway.close()


@needs_etcd
def test_a_connection_to_the_history_that_we_know(connections: Connections) -> None:
    connections.known("x", connections.put("x", b"1"), b"1")
    connections.reconnect()
    connections.put("x", b"2")  # it is not the newest any more, and still in the history
    connections.reconnect()
    connections.put("y", b"")
    connections.known("y", connections.delete("y"), None)
    connections.reconnect()
    connections.known("z", connections.put("z", b""), b"")
    connections.reconnect()
    assert connections.timeline.number == 0


@needs_etcd
@pytest.mark.parametrize("case", ["other value", "other revision", "never there", "not deleted", "never deleted"])
def test_a_connection_to_another_history(connections: Connections, case: str) -> None:
    one, two = connections.put("x", b"1"), connections.put("x", b"2")
    name, revision, value = {
        "other value": ("x", two, b"3"),
        "other revision": ("x", one, b"2"),
        "never there": ("y", two, b"2"),
        "not deleted": ("x", two, None),
        "never deleted": ("y", two, None),
    }[case]
    connections.known(name, revision, value)
    with pytest.raises(Restored, match=WENT_BACK) as caught:
        connections.reconnect()
    assert caught.value.outcome_known  # the request was not sent
    assert connections.timeline.number == 1
    connections.reconnect()


@needs_etcd
def test_a_history_that_is_forgotten_cannot_be_compared(connections: Connections, etcd: EtcdCluster) -> None:
    connections.known("x", connections.put("x", b"1"), b"1")
    connections.put("x", b"2")
    etcd.compact()
    with pytest.raises(Restored, match=FORGOTTEN):
        connections.reconnect()
    assert connections.timeline.take_notice() == ""  # that happens, and is no loss


@needs_etcd
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_connection_is_held_against_what_another_thread_has_just_seen(
    connections: Connections, etcd: EtcdCluster, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A request may wait for its connection while what it knew is overwritten, and then forgotten."""
    connections.known("x", connections.put("x", b"1"), b"1")
    before = connections.gateway.moment()
    second = connections.put("x", b"2")
    etcd.compact()
    if when == "before":
        connections.known("x", second, b"2")
    else:
        ranges = connections.gateway._ranges

        def seen_meanwhile(*args: Any) -> Any:
            try:
                return ranges(*args)
            finally:
                connections.known("x", second, b"2")

        monkeypatch.setattr(connections.gateway, "_ranges", seen_meanwhile)
    for endpoint in connections.gateway._endpoints:
        endpoint.close()
    connections.gateway.call("/kv/range", {"key": connections.key("x")}, before=before)
    assert connections.timeline.number == 0


@needs_etcd
def test_a_request_is_not_sent_to_another_timeline(connections: Connections) -> None:
    before = connections.gateway.moment()
    connections.put("x", b"1")
    with pytest.raises(Restored):
        connections.timeline.begin(before, WENT_BACK)
    with pytest.raises(Restored) as caught:
        connections.gateway.call("/kv/put", {"key": connections.key("x"), "value": encode(b"2")}, before=before)
    assert caught.value.outcome_known
    (kv,) = connections.gateway.call("/kv/range", {"key": connections.key("x")})["kvs"]
    assert kv["value"] == encode(b"1")
