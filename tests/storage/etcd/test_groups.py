"""Groups of changes on a real cluster: all of it or nothing, never cut, and what became of it when answers are lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.errors import BpbrokerError, Unavailable
from bpbroker.record import INDEX_MAX, Record
from bpbroker.registry.changes import ANYTHING, GROUP_MAX, READ_MAX, Committed, Conflict, Group, Outcome
from bpbroker.storage.etcd import registry_id
from bpbroker.storage.etcd.commits import OPERATIONS_MAX, fit_all, fitting, packed, refusal
from bpbroker.storage.etcd.endpoint import Endpoint
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.registry_id import Identity, made
from bpbroker.storage.etcd.responses import Failed, decode, encode
from bpbroker.storage.etcd.restore_detection import WENT_BACK, Restored, Timeline
from bpbroker.storage.etcd.store import EtcdStore
from tests.support.etcd_cluster import needs_etcd
from tests.support.groups import change, one, peeked, value
from tests.support.own_logging import faults

if TYPE_CHECKING:
    from tests.support.etcd_cluster import EtcdCluster

pytestmark = needs_etcd


@pytest.fixture
def make(etcd_section: dict[str, Any]) -> Iterator[Callable[[], EtcdStore]]:
    stores: list[EtcdStore] = []

    def make() -> EtcdStore:
        stores.append(EtcdStore(EtcdOptions.of({"_registry": etcd_section})))
        stores[-1].open()
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make: Callable[[], EtcdStore]) -> EtcdStore:
    return make()


def done(outcome: Outcome) -> Committed:
    assert isinstance(outcome, Committed)
    return outcome


def test_a_group_happens_whole_or_not_at_all(store: EtcdStore) -> None:
    first = done(store.commit([one("lock", b'{"by": 1}', 0)])[0])
    held = Group((change("a", b"{}", 0), change("b", b"{}", 0)), (("lock", first.version),))
    foreign = Group((change("c", b"{}", 0), change("d", b"{}", 7), change("e", None)), (("none", 0),))
    yes, no = store.commit([held, foreign])
    assert done(yes).revision > first.revision
    assert isinstance(no, Conflict)
    assert [seen.name for seen in no.seen] == ["c", "d", "e", "none"]
    assert {seen.as_of for seen in no.seen} == {done(yes).version}
    assert sorted(peeked(store)) == ["a", "b", "lock"]
    (late,) = store.commit([Group((change("f", b"{}"),), (("lock", first.version - 1),))])
    assert isinstance(late, Conflict)
    assert [(seen.name, value(seen)) for seen in late.seen] == [("f", None), ("lock", b'{"by": 1}')]


@pytest.mark.parametrize("prefix", ["foo/", ""])
def test_a_prefix_must_be_empty(store: EtcdStore, prefix: str) -> None:
    """The registry's own records are no entries."""
    done(store.commit([one("_lock/x", b"{}", 0)])[0])
    group = Group((change("foo/a", b"{}", 0),), empty=(prefix,))
    done(store.commit([group])[0])
    (again,) = store.commit([Group((change("foo/b", b"{}", 0),), empty=(prefix,))])
    assert isinstance(again, Conflict)
    assert "foo/b" not in peeked(store)


def test_groups_that_concern_each_other_do_not_share_a_transaction(store: EtcdStore) -> None:
    """etcd makes all comparisons before the first change: together both would happen."""
    outcomes = store.commit(
        [Group((change("b/1", b"{}", 0),), empty=("a/",)), Group((change("a/1", b"{}", 0),), empty=("b/",))]
    )
    assert [type(outcome) for outcome in outcomes] == [Committed, Conflict]


def test_what_etcd_takes_at_once(store: EtcdStore) -> None:
    """Its limit counts the longest list, and the longest inside that: here just so many as it takes, in each way."""
    assert GROUP_MAX == OPERATIONS_MAX - 2
    for others, names in ((0, GROUP_MAX), (1, GROUP_MAX - 1), (63, 63)):
        large = Group(tuple(change(f"g{names}/{number}", b"{}", 0) for number in range(names)))
        more = [one(f"o{others}/{number}", b"{}", 0) for number in range(others)]
        assert list(packed([large, *more])) == [list(range(others + 1))]
        assert len({done(outcome).version for outcome in store.commit([large, *more])}) == 1
    both = Group(
        tuple(change(f"c/{number}", b"{}") for number in range(60)), tuple((f"d/{n}", 0) for n in range(64)), ("e/",)
    )
    done(store.commit([both])[0])
    compared = Group((change("x", b"{}"),), tuple((f"y/{number}", 0) for number in range(GROUP_MAX - 1)))
    assert [len(pack) for pack in packed([compared, one("z", b"{}")])] == [1, 1]
    assert all(done(outcome) for outcome in store.commit([compared, one("z", b"{}")]))


def test_a_group_that_is_too_large_is_refused_alone(store: EtcdStore) -> None:
    many = Group(tuple(change(f"n/{number}", b"{}", 0) for number in range(GROUP_MAX + 1)))
    large = Group(tuple(change(f"l/{number}", b'{"x": "%s"}' % (b"x" * 500_000), 0) for number in range(3)))
    outcomes = store.commit([one("a", b"{}", 0), many, one("b", b"{}", 0), large, one("c", b"{}", 0)])
    assert sorted(peeked(store)) == ["a", "b", "c"]
    for refused, why in ((outcomes[1], "127 records"), (outcomes[3], "MiB")):
        assert isinstance(refused, Unavailable)
        assert refused.outcome_known
        assert why in str(refused)
    with pytest.raises(Unavailable, match="127 records"):
        raise store.commit([many])[0]  # type: ignore[misc]  # the outcome is an error here


def test_lost_answers_of_groups_are_read_from_the_history(store: EtcdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = done(store.commit([one("x/old", b"{}", 0)])[0])
    groups = [
        Group(tuple(change(f"a/{number}", b"{}", 0) for number in range(70))),
        Group((change("a2", b"{}"),), (("x/old", first.version),)),
        Group((change("b", b"{}"), change("x/old2", None, 7))),
        Group((change("c", b"{}"),), (("x/old2", 3),)),
        Group((change("d", b"{}"),), empty=("x/",)),
        Group((change("e", b"{}"),), empty=("y/",)),
    ]
    post, lost = Endpoint.post, [True]

    def lose(endpoint: Endpoint, path: str, body: Mapping[str, Any], secs: float) -> Any:
        answer = post(endpoint, path, body, secs)
        if path == "/kv/txn" and len(body.get("success", ())) > 2 and lost:
            lost.clear()
            raise Failed("lost", sent=True)
        return answer

    monkeypatch.setattr(Endpoint, "post", lose)
    outcomes = store.commit(groups)
    assert not lost
    assert [type(outcome) for outcome in outcomes] == [Committed, Committed, Conflict, Conflict, Conflict, Committed]
    assert sorted(name for name in peeked(store) if "/" not in name) == ["a2", "e"]
    conflict = outcomes[3]
    assert isinstance(conflict, Conflict)
    assert [seen.name for seen in conflict.seen] == ["c", "x/old2"]


def bulk(prefix: str = "n/", number: int = 100) -> Group:
    """Return the group of a batch that makes so many new entries, as the registry asks for it."""
    names = [f"{prefix}{each:03}" for each in range(number)]
    taken = tuple((f"_taken/{name}", 0) for name in names)
    return Group(tuple(change(name, b"{}", 0) for name in names), taken)


def take_in_between(monkeypatch: pytest.MonkeyPatch, take: Callable[[], object]) -> None:
    """Let something happen between the store's look at what was taken and its transaction."""
    post, once = Endpoint.post, [take]

    def interfere(endpoint: Endpoint, path: str, body: Mapping[str, Any], secs: float) -> Any:
        if path == "/kv/txn" and len(body.get("success", ())) > 1 and once:
            once.pop()()
        return post(endpoint, path, body, secs)

    monkeypatch.setattr(Endpoint, "post", interfere)


def test_a_bulk_of_new_entries_compares_that_none_was_just_taken(
    store: EtcdStore, make: Callable[[], EtcdStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make()
    done(other.commit([one("_taken/n/050x", b"{}", 0)])[0])  # in the range, and not one of them
    done(other.commit([one("_taken/n/070", b'{"receiver": "r"}', 0)])[0])
    small, conflict = store.commit([one("small", b"{}", 0), bulk()])
    done(small)
    assert isinstance(conflict, Conflict)
    assert ("_taken/n/070", b'{"receiver": "r"}') in [(seen.name, value(seen)) for seen in conflict.seen]
    assert not any(name.startswith("n/") for name in peeked(store))
    done(store.commit([one("_taken/n/070", None)])[0])
    take_in_between(monkeypatch, lambda: other.commit([one("_taken/n/099", b"{}", 0)]))
    (late,) = store.commit([bulk()])
    assert isinstance(late, Conflict)
    assert not any(name.startswith("n/") for name in peeked(store))
    done(store.commit([one("_taken/n/099", None)])[0])
    take_in_between(monkeypatch, lambda: other.commit([one("_taken/n/100", b"{}", 0)]))
    done(store.commit([bulk()])[0])
    assert sum(name.startswith("n/") for name in peeked(store)) == 100


@pytest.mark.parametrize("taken", [False, True])
def test_a_lost_answer_of_a_bulk_is_read_from_the_history(
    store: EtcdStore, make: Callable[[], EtcdStore], monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    other = make()
    done(other.commit([one("_taken/n/050x", b"{}", 0)])[0])
    post, once = Endpoint.post, [True]

    def lose(endpoint: Endpoint, path: str, body: Mapping[str, Any], secs: float) -> Any:
        ours = path == "/kv/txn" and len(body.get("success", ())) > 1 and bool(once)
        if ours:
            once.clear()
            if taken:
                done(other.commit([one("_taken/n/099", b"{}", 0)])[0])
        answer = post(endpoint, path, body, secs)
        if ours:
            raise Failed("lost", sent=True)
        return answer

    monkeypatch.setattr(Endpoint, "post", lose)
    (outcome,) = store.commit([bulk()])
    assert not once
    assert isinstance(outcome, Conflict if taken else Committed)
    assert sum(name.startswith("n/") for name in peeked(store)) == (0 if taken else 100)


@pytest.mark.parametrize("prefix", ["foo/", ""])
def test_a_prefix_that_is_not_empty_is_shown(store: EtcdStore, make: Callable[[], EtcdStore], prefix: str) -> None:
    other = make()
    for number in range(12):
        done(other.commit([one(f"foo/{number:02}", b"{}", 0)])[0])
    (conflict,) = store.commit([Group((change("a", b"{}", 0),), empty=(prefix,))])
    assert isinstance(conflict, Conflict)
    assert [seen.name for seen in conflict.seen] == ["a", *(f"foo/{number:02}" for number in range(11))]


def test_what_was_there_at_a_version(store: EtcdStore, etcd: EtcdCluster) -> None:
    first = done(store.commit([one("n/a", b"{}", 0)])[0])
    done(store.commit([Group((change("n/a", None), change("n/b", b"{}", 0)))])[0])
    assert [seen.name for seen in store.scan("n/", entries=True, at=first.version).entries] == ["n/a"]
    assert [seen.name for seen in store.scan("n/", entries=True).entries] == ["n/b"]
    looked = done(store.commit([Group((), (("_look/0", 0),))])[0])
    assert [seen.name for seen in store.scan("n/", entries=True, at=looked.version).entries] == ["n/b"]
    done(store.commit([one("n/c", b"{}", 0)])[0])
    etcd.etcdctl("compact", str(store._timeline.moment().revision))
    with pytest.raises(Unavailable, match="forgotten"):
        store.scan("n/", at=looked.version)


def transactions(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return where each transaction that changes something is noted: whether it is a flat one."""
    post, seen = Endpoint.post, list[bool]()

    def look(endpoint: Endpoint, path: str, body: Mapping[str, Any], secs: float) -> Any:
        if path == "/kv/txn" and any("request_put" in each for each in body["success"]):
            seen.append("failure" not in body)
        return post(endpoint, path, body, secs)

    monkeypatch.setattr(Endpoint, "post", look)
    return seen


def test_groups_are_asked_one_by_one_only_when_others_write_too(
    store: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = transactions(monkeypatch)
    groups = [Group((change("a", b"{}", 0), change("b", b"{}"))), Group((change("c", b"{}", 0),), empty=("x/",))]
    assert len({done(outcome).version for outcome in store.commit(groups)}) == 1
    assert asked == [True]
    yes, no = store.commit([one("d", b"{}", 0), one("c", b"{}", 0)])
    assert sorted(peeked(store)) == ["a", "b", "c", "d"]
    assert (done(yes).revision > 0, type(no)) == (True, Conflict)
    assert asked == [True, True, False]  # it did not happen together: what stood in the way had to be told
    for number in range(17):
        done(store.commit([one(f"e/{number}", b"{}", 0)])[0])
    assert asked[3:] == [False] * 15 + [True] * 2


@pytest.mark.parametrize("happened", [True, False])
def test_a_lost_answer_of_groups_together(store: EtcdStore, monkeypatch: pytest.MonkeyPatch, *, happened: bool) -> None:
    done(store.commit([one("x", b"{}", 0)])[0])
    groups = [one("a", b"{}", 0), Group((change("b", b"{}", 0),), empty=("y/",)), one("x", None)]
    asked, post, lost = transactions(monkeypatch), Endpoint.post, [True]

    def lose(endpoint: Endpoint, path: str, body: Mapping[str, Any], secs: float) -> Any:
        answer = post(endpoint, path, body, secs) if happened or not lost else {}
        if lost:
            lost.clear()
            raise Failed("lost", sent=True)
        return answer

    monkeypatch.setattr(Endpoint, "post", lose)
    outcomes = [done(outcome) for outcome in store.commit(groups)]
    assert len({outcome.version for outcome in outcomes}) == 1
    assert sorted(peeked(store)) == ["a", "b"]
    assert asked == ([True, True, False] if happened else [True])  # again; then what became of it


def test_groups_together_that_may_have_happened(store: EtcdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is lost, the next one says no, and then no endpoint answers: that no may be due to the lost one."""
    post, times = Endpoint.post, list[int]()

    def lose(endpoint: Endpoint, path: str, body: Mapping[str, Any], secs: float) -> Any:
        times.append(1)
        if len(times) > 2:
            raise Failed("away", sent=False)
        answer = post(endpoint, path, body, secs)
        if len(times) == 1:
            raise Failed("lost", sent=True)
        return answer

    done(store.commit([one("x", b"{}", 0)])[0])
    store._commits._timeout_secs = 0.5
    with monkeypatch.context() as patch:
        patch.setattr(store._writer, "_next", lambda: None)  # the connection is good
        patch.setattr(Endpoint, "post", lose)
        with pytest.raises(Unavailable) as caught:
            store.commit([one("a", b"{}", 0)])
    assert not caught.value.outcome_known
    assert sorted(peeked(store)) == ["a", "x"]


def test_the_registrys_own_records_are_there_for_brokers(store: EtcdStore, make: Callable[[], EtcdStore]) -> None:
    done(store.commit([Group((change("_lost/\x01", b'{"x": 1}', 0), change("a", b"{}", 0)))])[0])
    state = make().open()
    assert [(seen.name, seen.fault) for seen in state.entries] == [("_lost/\x01", ""), ("a", "")]


# --- revisions ---


def test_revisions_are_the_commits_and_count_on(store: EtcdStore, make: Callable[[], EtcdStore]) -> None:
    kept = Record("kept", b"{}", 1_795_000_000_123, "s")
    both = done(store.commit([Group((change("a", b"{}", 0, 3), change("b", b'{"x": 1}', 0, 4))), one("c", b"{}")])[0])
    done(store.commit([Group((change("kept", None),))])[0])
    from bpbroker.registry.changes import Change

    done(store.commit([Group((Change("kept", kept),))])[0])
    found = {seen.name: seen.record for seen in make().scan().entries}
    assert {name: record.revision for name, record in found.items() if record} == {
        "a": both.revision + 3,
        "b": both.revision + 4,
        "c": both.revision,
        "kept": kept.revision,
    }
    assert found["kept"] == kept
    assert found["b"] is not None
    assert found["b"].json == b'{"x": 1}'
    assert both.revision < 1 << 53
    assert make().scan().revision > both.revision + 4


def test_a_registry_of_format_1_is_brought_up_to_date(
    etcd: EtcdCluster, etcd_section: dict[str, Any], make: Callable[[], EtcdStore]
) -> None:
    prefix = etcd_section["prefix"]
    etcd.etcdctl("put", f"{prefix}/registry", json.dumps({"id": "a" * 32, "format": 1}))
    etcd.etcdctl("put", f"{prefix}/entries/old", "{}")
    stores = [make(), make()]
    assert {store.registry_id for store in stores} == {"a" * 32}
    found = json.loads(etcd.etcdctl("get", "--print-value-only", f"{prefix}/registry"))
    assert found["format"] == 2
    records = {store.scan().entries[0].record for store in stores}
    (record,) = records
    assert record is not None
    assert found["base"] < record.revision < 1 << 53


def test_a_commit_on_another_registry_changes_nothing(store: EtcdStore, etcd: EtcdCluster) -> None:
    done(store.commit([one("a", b'{"n": 1}', 0)])[0])
    etcd.etcdctl("put", f"{store._keys.prefix}/registry", decode(made(0).value).decode())
    with pytest.raises(Unavailable, match="another one than before") as caught:
        store.commit([one("a", b'{"n": 2}', ANYTHING)])
    assert caught.value.outcome_known
    assert peeked(store) == {"a": b'{"n": 1}'}
    done(store.commit([one("a", b'{"n": 2}', ANYTHING)])[0])


def test_a_lost_history_gives_the_registry_a_new_id_and_higher_revisions(
    store: EtcdStore, make: Callable[[], EtcdStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_id, "_TIME_STEPS", 0)  # as with a clock that was set back
    before = done(store.commit([one("a", b"{}", 0)])[0])
    old = store.registry_id
    with pytest.raises(Restored):
        store._timeline.begin(store._timeline.moment(), WENT_BACK)
    after = done(store.commit([one("b", b"{}", 0)])[0])
    assert store.registry_id != old
    assert after.revision > before.revision + INDEX_MAX
    assert make().registry_id == store.registry_id  # once, not by each broker
    newer = done(make().commit([one("c", b"{}", 0)])[0])
    assert newer.revision > after.revision


def test_a_restored_registry_that_nobody_knows_gets_a_new_id_too() -> None:
    """Restored twice: the second time an older id comes back, which this broker never saw."""
    timeline = Timeline()
    moment = timeline.adopt(made(10**15), timeline.moment())
    with pytest.raises(Restored):
        timeline.begin(moment, WENT_BACK)
    assert made(0).base < 1 << 52
    assert timeline.floor > moment.registry.base
    assert made(timeline.floor).base > timeline.floor


def test_revisions_can_be_raised(store: EtcdStore) -> None:
    old, high = store.registry_id, store.scan().revision + 10**13
    store.raise_revisions(high)
    assert store.registry_id != old
    assert done(store.commit([one("a", b"{}", 0)])[0]).revision > high
    same = store.registry_id
    store.raise_revisions(high)
    assert store.registry_id == same


@pytest.mark.parametrize("base", [-1, 1 << 53, "1", None])
def test_a_base_that_cannot_be(base: Any) -> None:
    with pytest.raises(registry_id.NotOurs):
        registry_id.read(encode(json.dumps({"id": "a", "format": 2, "base": base}).encode()))


def test_revisions_never_leave_what_json_can_count() -> None:
    with pytest.raises(BpbrokerError):
        Identity("a", (1 << 53) - 1, "").check_room(5)


@given(
    st.lists(
        st.builds(
            lambda name, changes, compared, size, empty: Group(
                tuple(change(f"{name}{n}", b"x" * size, 0) for n in range(changes)),
                tuple((f"{name}-{n}", 1) for n in range(compared)),
                ("p/",) * empty,
            ),
            st.text(min_size=1, max_size=40), st.integers(0, 9), st.integers(0, 9),
            st.sampled_from([2, 500, 20_000, 300_000]), st.booleans(),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_groups_that_surely_fit_go_together_as_they_are(groups: list[Group]) -> None:
    if fit_all(groups):
        assert list(packed(groups)) == [list(range(len(groups)))]
        assert all(refusal(group) is None and fitting(group) is group for group in groups)


def test_ordinary_groups_surely_fit() -> None:
    some = [one(f"node-{number:04}", b"x" * 2000, 7) for number in range(126)]
    assert fit_all(some)
    assert not fit_all([*some, one("more", b"{}", 7)])
    assert not fit_all([one("big", b"x" * 1024 * 1200, 7)])
    assert not fit_all([])


# --- sessions ---


def session(session_id: str, ttl: int = 2) -> Record:
    return Record(f"_session/{session_id}", json.dumps({"ttl": ttl}).encode())


def test_a_session_is_opened_once_and_renewed(store: EtcdStore, make: Callable[[], EtcdStore]) -> None:
    first = done(store.open_session("s", 60, session("s", 60)))
    assert store.open_session("s", 60, session("s", 60)) == first  # a lost answer
    other = make()
    there = other.open_session("s", 30, session("s", 30))
    assert isinstance(there, Conflict)
    assert value(there.seen[0]) == b'{"ttl": 60}'
    assert list(other.renew_sessions(["s", "none", "s"])) == [60, None, 60]
    assert list(other.renew_sessions([])) == []
    done(store.commit([one("_session/s", None, first.version)])[0])
    assert list(other.renew_sessions(["s"])) == [None]
    again = done(other.open_session("s", 60, session("s", 60)))
    assert again.revision > first.revision
    assert list(other.renew_sessions(["s"])) == [60]


def ttl_left(store: EtcdStore, session_id: str, ttl: int) -> int:
    answer = store._scanner.call("/lease/timetolive", {"ID": store._lease(session_id, ttl)})
    return int(answer["TTL"])


def test_a_session_that_was_opened_anew_elsewhere_is_renewed_with_the_lease_that_it_has_now(
    store: EtcdStore, make: Callable[[], EtcdStore]
) -> None:
    """The lease that it had when it was renewed last is filled up in vain."""
    first = done(store.open_session("s", 60, session("s", 60)))
    assert list(store.renew_sessions(["s"])) == [60]
    other = make()
    done(other.commit([one("_session/s", None, first.version)])[0])
    again = done(other.open_session("s", 5, session("s", 5)))
    while ttl_left(other, "s", 5) > 3:
        time.sleep(0.1)
    assert list(store.renew_sessions(["s"])) == [5]
    assert ttl_left(other, "s", 5) > 3
    assert store._leases == {store._keys.entry("_session/s"): store._lease("s", 5)}
    done(other.commit([one("_session/s", None, again.version)])[0])
    assert list(store.renew_sessions(["s"])) == [None]  # its lease is there, and filled up
    assert store._leases == {}


def test_what_goes_wrong_beside_is_told(store: EtcdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    done(store.open_session("s", 60, session("s", 60)))
    real = Endpoint.post_each

    def fail(*_: Any) -> Any:
        raise Failed("it broke off", sent=True)

    monkeypatch.setattr(Endpoint, "post_each", fail)
    with pytest.raises(Unavailable):
        store.renew_sessions(["s"])
    monkeypatch.setattr(Endpoint, "post_each", real)
    assert list(store.renew_sessions(["s"])) == [60]


def test_very_many_sessions_are_renewed_together(store: EtcdStore, caplog: pytest.LogCaptureFixture) -> None:
    """The gateway loses requests of a stream that it has not read when it begins to answer."""
    ids = [f"s{number}" for number in range(READ_MAX)]
    for each in ids:
        store._grant(store._lease(each, 600), 600)
        done(store._put_leased(session(each, 600), store._lease(each, 600), store._timeline.moment()))
    for _ in range(5):
        assert list(store.renew_sessions(ids)) == [600] * READ_MAX
    assert not faults(caplog)


def test_a_dead_session_is_gone_and_only_its_own_key(store: EtcdStore) -> None:
    opened = time.monotonic()
    done(store.open_session("s", 2, session("s")))
    done(store.commit([Group((change("mine", b"{}", 0),), (("_session/s", store.scan("_s").entries[0].version),))])[0])
    while any(seen.name == "_session/s" for seen in store.scan().entries):
        assert time.monotonic() - opened < 20
        time.sleep(0.1)
    assert time.monotonic() - opened >= 2
    assert list(store.renew_sessions(["s"])) == [None]
    assert list(peeked(store)) == ["mine"]
    done(store.open_session("s", 2, session("s")))
    (late,) = store.commit([Group((change("mine", None),), (("_session/s", 1),))])
    assert isinstance(late, Conflict)


def test_a_lease_that_was_left_is_filled_up_before_it_is_used(store: EtcdStore) -> None:
    store._grant(store._lease("s", 4), 4)
    time.sleep(1.5)
    done(store.open_session("s", 4, session("s", 4)))
    answer = store._leaser.call("/lease/timetolive", {"ID": store._lease("s", 4)})
    assert int(answer["TTL"]) >= 3
