"""The etcd store on a real cluster: commits that happen once, reads that are new, watches without gaps."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import pytest

from bpbroker.errors import ConfigurationError, StorageFull, Unavailable
from bpbroker.registry.changes import ANYTHING, Broken, Changes, Committed, Conflict, News, Seen, State
from bpbroker.registry.stored import split
from bpbroker.storage.etcd import gateway as gateways
from bpbroker.storage.etcd import store as etcd_store
from bpbroker.storage.etcd.endpoint import Endpoint
from bpbroker.storage.etcd.gateway import Gateway
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.responses import Compacted, Failed, Refused, encode
from bpbroker.storage.etcd.store import EtcdStore
from tests.support.etcd_cluster import needs_etcd
from tests.support.groups import one, peeked, value
from tests.support.own_logging import faults

if TYPE_CHECKING:
    from tests.support.etcd_cluster import EtcdCluster

pytestmark = needs_etcd

Make = Callable[..., EtcdStore]


@pytest.fixture
def make(etcd_section: dict[str, Any]) -> Iterator[Make]:
    """Makes stores of brokers that share one registry."""
    made: list[EtcdStore] = []

    def make(**changed: Any) -> EtcdStore:
        made.append(EtcdStore(EtcdOptions.of({"_registry": {**etcd_section, **changed}})))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make: Make) -> EtcdStore:
    store = make()
    store.open()
    return store


def version_of(outcome: object) -> int:
    assert isinstance(outcome, Committed)
    return outcome.version


# --- commits ---


def test_a_commit_is_there_for_everybody(store: EtcdStore, make: Make) -> None:
    (outcome,) = store.commit([one("ä b/c", b'{"x": 1}', 0)])
    other = make()
    state = other.open()
    assert state.registry_id == store.registry_id
    assert len(state.registry_id) == 32
    (seen,) = state.entries
    assert (seen.name, value(seen), seen.version, seen.fault) == ("ä b/c", b'{"x": 1}', version_of(outcome), "")
    assert peeked(other) == {"ä b/c": b'{"x": 1}'}


def test_each_change_happens_if_its_version_is_there(store: EtcdStore) -> None:
    (first,) = store.commit([one("a", b'{"n": 1}', 0)])
    version = version_of(first)
    outcomes = store.commit(
        [one("a", b'{"n": 2}', version), one("b", b"{}", 7), one("c", b"{}", 0), one("d", None, ANYTHING)]
    )
    now = version_of(outcomes[0])
    assert now > version
    assert outcomes[1:] == [Conflict((Seen("b", None, 0, now),)), outcomes[0], outcomes[0]]
    (lost,) = store.commit([one("a", None, version)])
    assert isinstance(lost, Conflict)
    assert (value(lost.seen[0]), lost.seen[0].version) == (b'{"n": 2}', now)
    (gone,) = store.commit([one("a", None, now)])
    assert version_of(gone) > now
    assert value(store.read(["a"])[0]) is None


def test_more_than_fits_into_one_transaction(store: EtcdStore) -> None:
    many = [one(f"n{number:03}", b"{}", 0) for number in range(250)]
    large = [one(f"large{number}", b'{"x": "%s"}' % (b"x" * 900_000), 0) for number in range(3)]
    assert all(isinstance(outcome, Committed) for outcome in store.commit([*many, *large]))
    assert len(peeked(store)) == 253


class Losses:
    """Lets requests to the cluster get lost: before they are there, or after, with their answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plan: list[str] = []
        """For each of the next transactions that put something: ``before`` or ``after``; then all is well."""
        self.lost: list[Mapping[str, Any]] = []
        post = Endpoint.post

        def unreliable(endpoint: Endpoint, path: str, body: Mapping[str, Any], secs: float) -> Any:
            puts = path == "/kv/txn" and any("request_put" in each for each in body.get("success", ()))
            fate = self.plan.pop(0) if self.plan and puts else ""
            if fate == "before":
                self.lost.append(body)
                raise Failed("lost", sent=True)
            answer = post(endpoint, path, body, secs)
            if fate == "after":
                raise Failed("lost", sent=True)
            return answer

        monkeypatch.setattr(Endpoint, "post", unreliable)


@contextmanager
def short_of_time(store: EtcdStore) -> Iterator[None]:
    """Let commits give up soon during the block; others have their time, on a busy machine, too."""
    before, store._commits._timeout_secs = store._commits._timeout_secs, 1.5
    try:
        yield
    finally:
        store._commits._timeout_secs = before


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Losses:
    return Losses(monkeypatch)


@pytest.mark.parametrize("plan", [["after"], ["before"], ["after", "after", "before"], ["before", "after"]])
def test_a_commit_whose_answer_is_lost_happens_once(store: EtcdStore, losses: Losses, plan: list[str]) -> None:
    (kept, gone) = store.commit([one("kept", b'{"n": 1}', 0), one("gone", b"{}", 0)])
    losses.plan = plan
    outcomes = store.commit(
        [
            one("new", b"{}", 0),
            one("kept", b'{"n": 2}', version_of(kept)),
            one("gone", None, version_of(gone)),
            one("other", b"{}", 5),
            one("never", None, 5),
        ]
    )
    assert not losses.plan
    version = version_of(outcomes[0])
    assert outcomes[:3] == [outcomes[0]] * 3
    assert [value(outcome.seen[0]) for outcome in outcomes[3:] if isinstance(outcome, Conflict)] == [None, None]
    assert peeked(store) == {"new": b"{}", "kept": b'{"n": 2}'}
    assert [seen.version for seen in store.read(["new", "kept"])] == [version, version]


def test_a_request_that_comes_late_changes_nothing(store: EtcdStore, losses: Losses) -> None:
    store.commit([one("a", b'{"n": 1}', ANYTHING)])
    with short_of_time(store), pytest.raises(Unavailable, match="not known") as caught:
        losses.plan = ["before"] * 100
        store.commit([one("a", b'{"n": 2}', ANYTHING)])
    assert not caught.value.outcome_known
    losses.plan = []
    store.commit([one("a", b'{"n": 3}', ANYTHING)])
    late = store._writer.call("/kv/txn", losses.lost[0])
    assert not late.get("succeeded")
    assert peeked(store) == {"a": b'{"n": 3}'}


@pytest.mark.parametrize(("fate", "opened"), [("before", None), ("after", b"{}")])
def test_whether_a_session_was_opened_may_not_be_known(
    make: Make, losses: Losses, fate: str, opened: bytes | None
) -> None:
    """Whatever became of it: who hears that nothing was changed may give the session's name to another one."""
    store = make(timeout_secs=1.5)
    store.open()
    losses.plan = [fate] * 100
    with pytest.raises(Unavailable, match="Whether this was changed is not known") as caught:
        store.open_session("s", 60, split("_session/s", b"{}", 1))
    assert not caught.value.outcome_known
    losses.plan = []
    assert value(store.read(["_session/s"])[0]) == opened


def test_a_lease_that_is_not_answered_has_opened_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(timeout_secs=0.5)
    store.open()
    post = Endpoint.post

    def unreliable(endpoint: Endpoint, path: str, body: Mapping[str, Any], secs: float) -> Any:
        if path == "/lease/grant":
            raise Failed("lost", sent=True)
        return post(endpoint, path, body, secs)

    monkeypatch.setattr(Endpoint, "post", unreliable)
    with pytest.raises(Unavailable, match=r"^The registry's etcd cluster does not answer$") as caught:
        store.open_session("s", 60, split("_session/s", b"{}", 1))
    assert caught.value.outcome_known
    assert value(store.read(["_session/s"])[0]) is None


def test_a_session_whose_transaction_fills_etcd_up_is_open(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """That very transaction is carried out, and refused all the same."""
    store = make()
    store.open()
    post = Endpoint.post

    def full(endpoint: Endpoint, path: str, body: Mapping[str, Any], secs: float) -> Any:
        answer = post(endpoint, path, body, secs)
        if any("request_put" in each for each in body.get("success", ())):
            raise Refused(8, "etcdserver: mvcc: database space exceeded")
        return answer

    monkeypatch.setattr(Endpoint, "post", full)
    outcome = store.open_session("s", 60, split("_session/s", b"{}", 1))
    assert isinstance(outcome, Committed)
    assert value(store.read(["_session/s"])[0]) == b"{}"


def test_an_uncertain_commit_that_did_happen_is_no_trouble_for_the_next(store: EtcdStore, losses: Losses) -> None:
    with short_of_time(store), pytest.raises(Unavailable):
        losses.plan = ["after"] + ["before"] * 100
        store.commit([one("a", b'{"n": 1}', ANYTHING)])
    losses.plan = []
    (outcome,) = store.commit([one("b", b"{}", 0)])
    assert isinstance(outcome, Committed)
    assert peeked(store) == {"a": b'{"n": 1}', "b": b"{}"}


def test_when_the_history_is_gone_it_is_said_that_nothing_is_known(
    store: EtcdStore, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgotten(*_: object) -> Any:
        raise Compacted("gone")

    losses.plan = ["after"]
    call = Gateway.call

    def compacted(self: Gateway, path: str, body: Mapping[str, Any], *limit: float, **options: Any) -> Any:
        return forgotten() if "compare" not in body and "success" in body else call(self, path, body, *limit, **options)

    monkeypatch.setattr(Gateway, "call", compacted)
    with pytest.raises(Unavailable, match="Whether this was changed is not known") as caught:
        store.commit([one("a", b"{}", 0)])
    assert not caught.value.outcome_known


def test_brokers_leave_nothing_behind(store: EtcdStore, make: Make, etcd: EtcdCluster, etcd_section: Any) -> None:
    other = make()
    other.open()
    for each in (store, other):
        each.commit([one("a", b"{}", ANYTHING)])
    prefix = f"{etcd_section['prefix']}/commits/"
    assert etcd.etcdctl("get", "--prefix", "--keys-only", prefix).split()
    old = f"7 {int(time.time()) - 30 * 86400}"
    etcd.etcdctl("put", f"{prefix}crashed-long-ago", old)
    other.close()
    store.close()
    assert etcd.etcdctl("get", "--prefix", "--keys-only", prefix).split() == [f"{prefix}crashed-long-ago"]
    make().open()
    assert not etcd.etcdctl("get", "--prefix", "--keys-only", prefix).split()


def test_a_store_that_was_abandoned_changes_nothing_any_more(
    make: Make, etcd_section: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = tmp_path / "seen"
    old = EtcdStore(EtcdOptions.of({"_registry": etcd_section}), remembered)
    old.open()
    old.commit([one("a", b"{}", 0)])
    held, go_on, post = threading.Event(), threading.Event(), Endpoint.post

    def slow(endpoint: Endpoint, path: str, body: Mapping[str, Any], secs: float) -> Any:
        if path == "/kv/txn" and len(body.get("success", ())) > 1 and not held.is_set():
            held.set()
            assert go_on.wait(30)
        return post(endpoint, path, body, secs)

    monkeypatch.setattr(Endpoint, "post", slow)
    news: Queue[News] = Queue()
    following = threading.Thread(target=old.follow, args=(None, news.put))
    following.start()
    assert isinstance(news.get(timeout=30), State)
    with ThreadPoolExecutor(1) as pool:  # stuck just before it sends, for as long as it likes
        stuck = pool.submit(old.commit, [one("stuck", b"{}", 0)])
        assert held.wait(30)
        old.abandon()
        following.join(30)
        assert not following.is_alive()
        store = make()
        store.open()
        store.commit([one("b", b"{}", 0)])
        remembered.write_text("the next one's")
        go_on.set()
        with pytest.raises(Unavailable):
            stuck.result(30)
    for call in (
        lambda: old.commit([one("late", b"{}", 0)]),
        lambda: old.open_session("late", 60, split("_session/late", b"{}", 1)),
        lambda: old.renew_sessions(["late"]),
        lambda: old.read(["a"]),
        old.scan,
        old.open,
        old.check,
    ):
        with pytest.raises(Unavailable):
            call()
    old.close()  # as the actor does when it comes to itself
    assert remembered.read_text() == "the next one's"
    assert sorted(peeked(store)) == ["a", "b"]


# --- reads ---


def test_reads_give_what_there_is_now(store: EtcdStore) -> None:
    store.commit([one("a", b'{"n": 1}', 0)])
    a, nothing = store.read(["a", "nothing"])
    assert (value(a), value(nothing)) == (b'{"n": 1}', None)
    assert a.as_of == nothing.as_of >= a.version > 0


def test_no_change_has_passed_what_is_reached(store: EtcdStore, make: Make) -> None:
    other = make()
    other.open()
    (done,) = store.commit([one("a", b'{"n": 1}', 0)])
    assert isinstance(done, Committed)
    reached = other.reached()
    assert done.revision <= reached
    (later,) = store.commit([one("b", b'{"n": 1}', 0)])
    assert isinstance(later, Committed)
    assert reached < later.revision <= other.reached()


def test_a_scan_is_a_state_at_one_version(store: EtcdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_store, "_PAGE", 3)
    store.commit([one(f"n{number}", b'{"n": 1}', 0) for number in range(8)] + [one("other", b"{}", 0)])
    call, pages = Gateway.call, []

    def meddle(self: Gateway, path: str, body: Mapping[str, Any], *limit: float, **options: Any) -> Any:
        answer = call(self, path, body, *limit, **options)
        if path == "/kv/range":
            pages.append(body)
            call(store._writer, "/kv/put", {"key": store._keys.entry(f"n{len(pages)}"), "value": encode(b'{"n": 2}')})
        return answer

    monkeypatch.setattr(Gateway, "call", meddle)
    state = store.scan("n")
    assert [seen.name for seen in state.entries] == [f"n{number}" for number in range(8)]
    assert {value(seen) for seen in state.entries} == {b'{"n": 1}'}
    assert len(pages) == 3


def test_a_scan_that_is_overtaken_by_a_compaction_begins_anew(
    store: EtcdStore, etcd: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_store, "_PAGE", 3)
    store.commit([one(f"n{number}", b"{}", 0) for number in range(5)])
    call, compacted = Gateway.call, threading.Event()

    def meddle(self: Gateway, path: str, body: Mapping[str, Any], *limit: float, **options: Any) -> Any:
        answer = call(self, path, body, *limit, **options)
        if path == "/kv/range" and not compacted.is_set():
            compacted.set()
            call(store._writer, "/kv/put", {"key": store._keys.entry("late"), "value": encode(b"{}")})
            etcd.compact()
        return answer

    monkeypatch.setattr(Gateway, "call", meddle)
    assert [seen.name for seen in store.scan().entries] == ["late", "n0", "n1", "n2", "n3", "n4"]


# --- following ---


class Follower:
    """Collects what a store tells in a thread of its own."""

    def __init__(self, store: EtcdStore, after: int | None) -> None:
        self.news: Queue[News] = Queue()
        self.told: list[News] = []
        self._thread = threading.Thread(target=store.follow, args=(after, self._take))
        self._thread.start()

    def _take(self, news: News) -> None:
        self.told.append(news)
        self.news.put(news)

    def until_up(self) -> None:
        while self.news.get(timeout=30) != Changes():
            pass

    def until_state(self) -> State:
        while not isinstance(news := self.news.get(timeout=30), State):
            pass
        return news

    def changes(self, count: int) -> list[Seen]:
        found: list[Seen] = []
        while len(found) < count:
            news = self.news.get(timeout=30)
            if isinstance(news, Changes):
                found += news.seen
        return found

    def ended(self) -> bool:
        self._thread.join(30)
        return not self._thread.is_alive()


def test_changes_are_told_in_their_order(store: EtcdStore, make: Make) -> None:
    follower = Follower(store, store.scan().version)
    follower.until_up()
    other = make()
    other.open()
    versions = [
        version_of(other.commit([one("a", json_of, ANYTHING)])[0]) for json_of in (b'{"n": 1}', b'{"n": 2}', None)
    ]
    seen = follower.changes(3)
    assert [(each.name, value(each)) for each in seen] == [("a", b'{"n": 1}'), ("a", b'{"n": 2}'), ("a", None)]
    assert [each.as_of for each in seen] == versions
    assert [each.version for each in seen] == [*versions[:2], 0]
    store.close()
    assert follower.ended()


def test_no_change_is_missed_while_the_watch_is_broken(store: EtcdStore, make: Make) -> None:
    follower = Follower(store, store.scan().version)
    follower.until_up()
    writer = make()
    writer.open()
    for number in range(3):
        store._watcher.hang_up()
        writer.commit([one(f"n{number}", b"{}", 0)])
    assert [each.name for each in follower.changes(3)] == ["n0", "n1", "n2"]
    store.close()
    assert follower.ended()


def test_a_quiet_watch_is_begun_anew_and_that_is_no_break(
    store: EtcdStore, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gateways, "SILENT_SECS", 0.2)
    follower = Follower(store, store.scan().version)
    for _ in range(4):  # each time it is up again
        follower.until_up()
    writer = make()
    writer.open()
    writer.commit([one("a", b"{}", 0)])
    assert [each.name for each in follower.changes(1)] == ["a"]
    store.close()
    assert follower.ended()
    assert not [news for news in follower.told if isinstance(news, Broken)]
    assert not faults(caplog)


def test_after_a_compaction_everything_is_told_anew(store: EtcdStore, make: Make, etcd: EtcdCluster) -> None:
    before = store.scan().version
    writer = make()
    writer.open()
    writer.commit([one("a", b"{}", 0)])
    writer.commit([one("a", b'{"n": 2}', ANYTHING)])
    etcd.compact()
    follower = Follower(store, before)
    state = follower.until_state()
    assert [(each.name, value(each)) for each in state.entries] == [("a", b'{"n": 2}')]
    writer.commit([one("b", b"{}", 0)])
    assert [each.name for each in follower.changes(1)] == ["b"]
    store.close()
    assert follower.ended()


def test_another_registry_in_its_place_is_noticed(store: EtcdStore, etcd: EtcdCluster) -> None:
    store.commit([one("a", b"{}", 0)])
    before, version = store.registry_id, store.scan().version
    follower = Follower(store, version)
    follower.until_up()
    etcd.etcdctl("del", "--prefix", store._keys.prefix)
    store._watcher.hang_up()
    state = follower.until_state()
    assert state.registry_id != before
    assert state.entries == ()
    store.close()
    assert follower.ended()


# --- what cannot be used ---


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"password": "wrong"}, "refuses: etcdserver: authentication failed"),
        ({"prefix": "/somebody/else"}, "refuses: etcdserver: permission denied"),
        ({"client_cert": "/nowhere.pem"}, "cannot read /nowhere.pem"),
    ],
)
def test_a_cluster_that_refuses_us(make: Make, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(**changed).open()


def test_certificates_that_do_not_fit(make: Make, tmp_path: Any, caplog: Any) -> None:
    import trustme

    strange = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(strange)
    with pytest.raises(ConfigurationError, match="its certificate or ours is wrong"):
        make(ca_cert=str(strange)).open()
    assert "its certificate cannot be verified" in caplog.text
    with pytest.raises(ConfigurationError, match="its certificate or ours is wrong"):
        make(client_cert=None, client_key=None).open()
    assert "it refuses our certificate" in caplog.text


@pytest.mark.parametrize("key", ["aaa", "entries", "entriesx", "commitsx", "registry2", "zzz/x"])
def test_a_prefix_that_somebody_else_uses(store: EtcdStore, make: Make, etcd: EtcdCluster, key: str) -> None:
    etcd.etcdctl("put", f"{store._keys.prefix}/{key}", "x")
    with pytest.raises(ConfigurationError, match=f"used by something else: it holds the key '.*{key}'"):
        make().open()
    etcd.etcdctl("del", f"{store._keys.prefix}/{key}")
    make().open()


@pytest.mark.parametrize("value", ["x", '{"id": 7}', "[]"])
def test_a_registry_key_that_is_not_ours(etcd_section: Any, make: Make, etcd: EtcdCluster, value: str) -> None:
    etcd.etcdctl("put", f"{etcd_section['prefix']}/registry", value)
    with pytest.raises(ConfigurationError, match="belongs to something else"):
        make().open()
    assert etcd.etcdctl("get", "--print-value-only", f"{etcd_section['prefix']}/registry").strip() == value


def test_a_registry_of_a_newer_version_is_left_alone(etcd_section: Any, make: Make, etcd: EtcdCluster) -> None:
    etcd.etcdctl("put", f"{etcd_section['prefix']}/registry", json.dumps({"id": "a" * 32, "format": 3}))
    with pytest.raises(ConfigurationError, match="newer bpbroker"):
        make().open()


@pytest.mark.parametrize("bad", ["rubbish", "[1]", '{"open":', "NaN"])
def test_what_is_no_entry_is_seen_and_stays(store: EtcdStore, make: Make, etcd: EtcdCluster, bad: str) -> None:
    etcd.etcdctl("put", f"{store._keys.prefix}/entries/bad", bad)
    with pytest.raises(ConfigurationError, match=r"Entry 'bad' in etcd is no JSON.*nothing was changed"):
        make().open()
    (seen,) = store.read(["bad"])
    assert seen.fault
    assert isinstance(store.commit([one("bad", b"{}", 0)])[0], Conflict)
    assert value(store.read(["bad"])[0]) == bad.encode()


def test_nobody_there(make: Make) -> None:
    store = make(endpoints=["https://127.0.0.1:1", "https://127.0.0.1:2"], timeout_secs=0.5)
    begin = time.monotonic()
    with pytest.raises(Unavailable, match="does not answer") as caught:
        store.open()
    assert caught.value.outcome_known
    assert time.monotonic() - begin < 10
    follower = Follower(store, None)
    assert isinstance(follower.news.get(timeout=30), Broken)
    store.close()
    assert follower.ended()


def test_an_endpoint_that_is_gone_is_passed_over(make: Make, etcd_section: dict[str, Any]) -> None:
    store = make(endpoints=["https://127.0.0.1:1", *etcd_section["endpoints"]])
    store.open()
    assert isinstance(store.commit([one("a", b"{}", 0)])[0], Committed)
    assert value(store.read(["a"])[0]) == b"{}"


def test_a_token_that_has_run_out_is_renewed(store: EtcdStore) -> None:
    for gateway in (store._writer, store._reader):
        for endpoint in gateway._endpoints:
            endpoint.token = "no-such-token.1"
    assert isinstance(store.commit([one("a", b"{}", 0)])[0], Committed)
    assert value(store.read(["a"])[0]) == b"{}"


@pytest.mark.parametrize("together", [True, False])
def test_the_commit_that_fills_the_cluster_up_did_happen(
    store: EtcdStore, monkeypatch: pytest.MonkeyPatch, *, together: bool
) -> None:
    """As etcd does it: it carries the transaction out, and answers that there is no space."""
    store._commits._careful = 0 if together else 1
    post = Endpoint.post

    def full(self: Endpoint, path: str, body: Mapping[str, Any], secs: float) -> Any:
        answer = post(self, path, body, secs)
        if path == "/kv/txn" and "compare" in body:
            raise Refused(8, "etcdserver: mvcc: database space exceeded")
        return answer

    monkeypatch.setattr(Endpoint, "post", full)
    outcomes = store.commit([one("a", b"{}", 0), one("b", b"{}", 0 if together else 7)])
    monkeypatch.setattr(Endpoint, "post", post)
    assert isinstance(outcomes[0], Committed)
    assert isinstance(outcomes[1], Committed if together else Conflict)
    assert peeked(store) == ({"a": b"{}", "b": b"{}"} if together else {"a": b"{}"})
    assert isinstance(store.commit([one("c", b"{}", 0)])[0], Committed)


def test_a_cluster_without_space_is_full(store: EtcdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Endpoint.post

    def full(self: Endpoint, path: str, body: Mapping[str, Any], secs: float) -> Any:
        if path == "/kv/txn" and "compare" in body:
            raise Refused(8, "etcdserver: mvcc: database space exceeded")
        return {"alarms": [{"alarm": "NOSPACE"}]} if path == "/maintenance/alarm" else real(self, path, body, secs)

    monkeypatch.setattr(Endpoint, "post", full)
    with pytest.raises(StorageFull) as caught:
        store.commit([one("a", b"{}", 0)])
    assert caught.value.outcome_known
    with pytest.raises(StorageFull):
        store.probe()
    monkeypatch.setattr(Endpoint, "post", real)
    store.probe()
