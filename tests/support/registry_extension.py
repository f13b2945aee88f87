"""An extension module that uses all of ``rh.registry``; its methods end with an error if something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bpbroker import errors
from bpbroker.extensions import (
    AlreadyExists,
    BarrierBroken,
    BarrierTimeout,
    BatchFailed,
    CursorExpired,
    Error,
    LockTimeout,
    NotFound,
    OnceFailed,
    PreconditionFailed,
    Request,
    TimedOut,
)

ANSWERS = {
    "Conditions": ["new"],
    "Sessions": {"_str": "x"},
    "Giving": {"b": 2, "c": 1},
    "Batches": ["b/1"],
    "Watches": [],
    "Once": {"id": 1},
    "Elections": ["other", None],
    "Barriers": ["n/1", "n/2"],
}
"""What each method that does several things ends with."""


def _refused(kind: type[Error], call: Callable[..., Any], *words: Any, **how: Any) -> Any:
    try:
        call(*words, **how)
    except Error as error:  # catches every one of them
        assert type(error) is kind, error
        assert isinstance(error, getattr(errors, kind.__name__))
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def Conditions(rh: Request) -> None:
    r = rh.registry
    made = r.register("a", {"n": 1})
    assert made.own == {"n": 1} and made.revision > 0
    assert "a" in _refused(AlreadyExists, r.register, "a", {}).message
    assert r.register_or_get("a", {"n": 9}).revision == made.revision
    after = r.replace("a", {"n": 2}, revision=made.revision)
    _refused(PreconditionFailed, r.replace, "a", {"n": 3}, revision=made.revision)
    _refused(PreconditionFailed, r.update, "a", {"n": 3}, if_match=made.etag)
    _refused(PreconditionFailed, r.delete, "a", revision=made.revision)
    _refused(PreconditionFailed, r.replace, "a", {"n": 3}, revision=0)  # it must not exist
    r.replace("new", "x", revision=0)
    assert r.get("a").own == {"n": 2} and r.get("a").revision == after.revision
    _refused(TimedOut, r.get, "a", changed_from=after.etag)
    _refused(NotFound, r.get, "none")
    r.delete("a", revision=after.revision)
    rh.data = sorted(r.list())


def Sessions(rh: Request) -> None:
    r = rh.registry
    with r.session() as session:
        assert session.ttl_secs >= r.timeout_secs
        r.register("mine", {}, session=session)
        session.renew()
        assert list(r.list("mine")) == ["mine"]
    assert r.list("mine") == {}
    _refused(NotFound, r.register, "mine", {}, session=session)
    _refused(NotFound, session.renew)
    with r.lock("l", data="me") as lock:
        assert lock.locked() and (lock.holder() or {})["data"] == "me"
        assert _refused(LockTimeout, r.lock("l").take, 0).holders[0]["data"] == "me"
        assert not r.lock("l").acquire(timeout=0.05)
        try:
            r.lock("l", wait_secs=0).take(0)
        except TimeoutError:
            pass
        r.replace("fenced", "x", lock=lock)
        old = lock.fence
    assert r.holder("l")["token"] is None
    _refused(PreconditionFailed, r.replace, "fenced", "y", lock=old)
    with r.semaphore("s", 2) as one, r.semaphore("s", 2) as two:
        assert one.token < two.token and len(two.contenders()) == 2
    rh.data = r.get("fenced").own


def Giving(rh: Request) -> None:
    r = rh.registry
    assert [r.allocate("pool", owner, last=2) for owner in ("a", "b", "a")] == [1, 2, 1]
    assert _refused(AlreadyExists, r.allocate, "pool", "c", last=2).data
    r.release("pool", "a")
    assert r.allocate("pool", "c", last=2) == 1
    assert [r.next("count"), r.next("count", 5), r.next("count", owner="x"), r.next("count", owner="x")] == [1, 6, 7, 7]
    r.register("secret", "s")
    with r.take("secret", "me") as entry:
        assert entry.own == {"_str": "s"}
        _refused(AlreadyExists, r.take("secret", "other").take)
    _refused(NotFound, r.take("secret", "me").take)
    rh.data = r.get("pool").own


def Batches(rh: Request) -> None:
    r = rh.registry
    with r.batch() as batch:
        batch.check_empty("b/")
        batch.register("b/1", {"x": 1})
        batch.replace("b/2", "y", revision=0)
        batch.list("b/")
    assert len({each["revision"] for each in batch.results[1:3]}) == 1
    assert list(batch.results[3]["data"]) == ["b/1", "b/2"]
    again = r.batch()
    again.delete("b/1")
    again.register("b/2", "z")
    failed = _refused(BatchFailed, again.commit)
    assert (failed.index, type(failed.error), failed.status) == (1, AlreadyExists, 409)
    try:
        with r.batch() as never:
            never.delete("b/1")
            raise KeyError
    except KeyError:
        pass
    rh.data = list(r.list("b/", where={"x": 1}))


def Watches(rh: Request) -> None:
    r = rh.registry
    with r.watch("w/") as watch:
        assert watch.poll() == []
        r.register("w/1", "a")
        r.register("other", "a")
        r.delete("w/1")
        seen = [(event.type, event.name) for event in watch.poll(5)]
    assert seen == [("put", "w/1"), ("delete", "w/1")], seen
    r.register("w/2", "b")
    for event in r.watch("w/", since=watch.cursor):
        assert event.entry is not None and event.entry.own == {"_str": "b"}
        break
    gone = _refused(CursorExpired, r.watch("w/", since="other:1").poll)
    rh.data = r.watch("w/", since=gone.cursor).poll()


def Once(rh: Request) -> None:
    r = rh.registry
    ran: list[Any] = []

    def work() -> dict[str, int]:
        ran.append(1)
        return {"id": len(ran)}

    for _ in range(2):
        rh.data = r.once("o", work)
    assert ran == [1]
    for _ in range(2):
        try:
            r.once("fails", lambda: 1 / 0, attempts=2)
        except ZeroDivisionError:
            ran.append("failed")
    assert ran == [1, "failed", "failed"]
    assert "failed 2 times: ZeroDivisionError" in _refused(OnceFailed, r.once, "fails", lambda: 1, attempts=2).message


def Elections(rh: Request) -> None:
    r = rh.registry
    ran: list[Any] = []
    assert r.election("office").run(ran.append, 1)
    try:
        r.election("office", data="me").run(lambda: 1 / 0)
    except ZeroDivisionError:
        ran.append(r.holder("office")["holders"])
    assert ran == [1, []]
    candidate = r.election("office", data="me")
    with r.lock("office", data="other"):
        assert (candidate.leader(), candidate.contenders()) == ("other", ["other"])
        r.timeout_secs, before = 0.05, r.timeout_secs
        assert _refused(LockTimeout, candidate.run, ran.append, 2).holders[0]["data"] == "other"
        r.timeout_secs = before
        rh.data = [candidate.leader()]
    assert candidate.run(ran.append, 3) and ran == [1, [], 3]
    rh.data.append(candidate.leader())


def Barriers(rh: Request) -> None:
    r = rh.registry
    r.register("n/1", {"state": "ready"})
    barrier = r.barrier("n/", 2, where={"state": "ready"}, fail_where="state=failed", fail_lost=True)
    said = _refused(BarrierTimeout, barrier.wait, 0.05)
    assert (said.status, said.message) == (504, "1 of 2 ready; 1 never came")
    r.register("n/2", {"state": "ready"})
    rh.data = sorted(barrier.wait(5))
    r.replace("n/2", {"state": "failed", "error": "disk full"})
    failed = _refused(BarrierBroken, barrier.wait, 5)
    assert (failed.status, list(failed.failed)) == (500, ["n/2"]) and "disk full" in failed.message


def Pass(rh: Request) -> None:
    rh.registry.replace("none", "x", revision=5)


def Own(_rh: Request) -> None:
    raise NotFound("There is no such host")


def Locked(rh: Request) -> None:
    with rh.registry.lock("held", wait_secs=float(rh.qs["wait"])):
        rh.registry.replace("by", "extension")


def Unknown(rh: Request) -> None:
    rh.registry.ask("Snapshot", {})
