"""``rh.registry``: the running broker's registry, for the methods of an extension.

It has the calls of :class:`bpbroker.client.Client`, by the same names, without a
connection: they go to the broker over the channel of the extension's process, one
at a time. What belongs to a session lives as long as a call may take, so nothing
renews it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from bpbroker.extensions.refusals import (
    AlreadyExists,
    BatchFailed,
    CursorExpired,
    Error,
    LockTimeout,
    NotFound,
    OnceFailed,
    TimedOut,
    refusal_of,
)

Data = Mapping[str, Any] | str
"""What an entry is made of: an object, or text. Text that is a JSON object counts as that object."""

_TTL_MIN_SECS: Final = 2.0
_TTL_MAX_SECS: Final = 86_400.0
_STAMPS: Final = ("last_write_ip", "last_write_ts")
_TIMES_GONE_MAX: Final = 10


class Entry(dict[str, Any]):
    """A registry entry: a dictionary that knows its revision.

    Args:
        content: the entry, its two ``last_write_*`` keys included.
        revision: of its last change; 0 if it was not said.
    """

    def __init__(self, content: Mapping[str, Any], revision: int = 0) -> None:
        super().__init__(content)
        self.revision = revision

    @property
    def etag(self) -> str:
        """Its entity tag, for ``if_match`` and ``changed_from``."""
        return f'"{self.revision}"'

    @property
    def own(self) -> dict[str, Any]:
        """What was registered: without ``last_write_ip`` and ``last_write_ts``."""
        return {key: value for key, value in self.items() if key not in _STAMPS}


class Registry:
    """The entries of the running broker, with the same rules that its clients meet.

    ``last_write_ip`` of what is written is the client whose call this is. Errors are those of
    :mod:`bpbroker.extensions`; one that a method lets pass becomes its answer, such as 404 for NotFound.

    Args:
        exchange: asks the broker.
        timeout_secs: how long a call of the extension may take.
    """

    def __init__(self, exchange: Callable[[Mapping[str, Any]], Mapping[str, Any]], timeout_secs: float = 30.0) -> None:
        self._exchange = exchange
        self.timeout_secs = timeout_secs

    # --- entries ---

    def register(
        self, name: str, data: Data, *, session: Session | str | None = None, lock: Lock | str | None = None
    ) -> Entry:
        """Create an entry and return it as stored.

        Args:
            name: at most 256 bytes; not beginning with ``_``.
            data: see :data:`Data`.
            session: to which it belongs: it goes when that ends. Or the session's id.
            lock: the write is refused when this lock is no longer held. Or ``NAME:TOKEN``.

        Raises:
            AlreadyExists: there is an entry of this name.
        """
        return self._write("Register", name, data, session=session, lock=lock)

    def register_or_get(
        self, name: str, data: Data, *, session: Session | str | None = None, lock: Lock | str | None = None
    ) -> Entry:
        """Create an entry, or return the one that has the name; arguments as of :meth:`register`.

        Raises:
            NotFound: one that existed was deleted again and again meanwhile.
        """
        gone = NotFound(f"Entry '{name}' not found")
        for _ in range(_TIMES_GONE_MAX):
            try:
                return self.register(name, data, session=session, lock=lock)
            except AlreadyExists:
                pass
            try:
                return self.get(name)
            except NotFound as error:
                gone = error
        raise gone

    def replace(
        self,
        name: str,
        data: Data,
        *,
        revision: int | None = None,
        if_match: str = "",
        session: Session | str | None = None,
        lock: Lock | str | None = None,
    ) -> Entry:
        """Create or overwrite an entry and return it as stored.

        Args:
            name: of the entry.
            data: see :data:`Data`.
            revision: only if the entry's revision is this one; 0: only if there is no entry.
            if_match: only if the entry's tag is this one; ``*``: only if there is an entry.
            session: as of :meth:`register`; empty: the entry is to belong to none.
            lock: as of :meth:`register`.

        Raises:
            PreconditionFailed: the revision or the tag is another, or the lock is not held.
        """
        return self._write("Replace", name, data, _condition(revision, if_match), session=session, lock=lock)

    def update(
        self,
        name: str,
        data: Data,
        *,
        unset: Sequence[str] = (),
        revision: int | None = None,
        if_match: str = "",
        session: Session | str | None = None,
        lock: Lock | str | None = None,
    ) -> Entry:
        """Merge into an entry at every depth, creating it if absent; other arguments as of :meth:`replace`.

        Args:
            name: of the entry.
            data: see :data:`Data`.
            unset: keys to remove first, or paths such as ``a.b``.
            revision: as of :meth:`replace`.
            if_match: as of :meth:`replace`.
            session: as of :meth:`replace`.
            lock: as of :meth:`replace`.
        """
        condition = _condition(revision, if_match)
        return self._write("Update", name, data, condition, session=session, lock=lock, unset=list(unset) or None)

    def get(self, name: str, *, wait_secs: float = 0.0, changed_from: str = "") -> Entry:
        """Return an entry.

        Args:
            name: of the entry.
            wait_secs: how long to wait until it is there.
            changed_from: a tag; wait until the entry's is another.

        Raises:
            NotFound: it is not there.
            TimedOut: it has not changed.
        """
        fields = {"if-none-match": _quoted(changed_from)} if changed_from else {}
        answer = self.ask("Get", {"name": name, "wait": wait_secs}, fields)
        if "data" not in answer:
            raise TimedOut(f"Entry '{name}' did not change within {wait_secs:g} s")
        return _entry(answer)

    def delete(
        self, name: str, *, revision: int | None = None, if_match: str = "", lock: Lock | str | None = None
    ) -> None:
        """Remove an entry, whether it is there or not; conditions as of :meth:`replace`."""
        self.ask("Delete", {"name": name, **_owned(None, lock)}, _condition(revision, if_match))

    def list(
        self,
        prefix: str = "",
        *,
        at_least: int = 0,
        where: Mapping[str, Any] | Sequence[str] | str = (),
        wait_secs: float = 0.0,
    ) -> dict[str, Entry]:
        """Return all entries whose name begins with ``prefix``, sorted by name.

        Args:
            prefix: may be empty.
            at_least: how many there must be.
            where: only those of which all of this is true: ``{"state": "ready"}`` or ``["state=ready"]``.
            wait_secs: how long to wait for them.

        Raises:
            TimedOut: there were fewer, all the time.
        """
        asked: dict[str, Any] = {"prefix": prefix, "wait": wait_secs}
        if at_least:
            asked["count"] = at_least
        if where:
            asked["where"] = _conditions(where)
        answer = self.ask("List", asked)
        revisions = answer.get("revisions", {})
        found = {name: Entry(value, revisions.get(name, 0)) for name, value in answer["data"].items()}
        if len(found) < at_least:
            raise TimedOut(f"There were {len(found)} of {at_least} entries '{prefix}…' within {wait_secs:g} s")
        return found

    def lost(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Return what expired with its session lately, by name: the last value of each."""
        found = self.ask("List", {"prefix": prefix, "lost": "1"})["data"]
        return {name: item.get("entry", item) for name, item in found.items()}

    # --- coordination ---

    def session(self, ttl_secs: float | None = None) -> Session:
        """Return a session, to be used in ``with``: what belongs to it goes when it ends.

        Args:
            ttl_secs: it ends so long after its begin, or its last :meth:`Session.renew`; by default as long as a call
                may take. An id that is kept may be renewed in a later call.
        """
        return Session(self, self._ttl(ttl_secs))

    def lock(self, name: str, ttl_secs: float | None = None, wait_secs: float | None = None, data: Any = None) -> Lock:
        """Return a lock, to be used in ``with``, or as :class:`threading.Lock`; writes take it as ``lock=``.

        Args:
            name: of the lock.
            ttl_secs: as of :meth:`session`.
            wait_secs: how long to wait for it; None: as long as the call may take.
            data: what others are told of the holder: JSON.
        """
        return self.semaphore(name, 1, ttl_secs, wait_secs, data)

    def semaphore(
        self,
        name: str,
        limit: int,
        ttl_secs: float | None = None,
        wait_secs: float | None = None,
        data: Any = None,
    ) -> Lock:
        """Return a lock that ``limit`` may hold at once; arguments as of :meth:`lock`."""
        wait = self.timeout_secs if wait_secs is None else wait_secs
        return Lock(self, name, limit, self._ttl(ttl_secs), wait, data)

    def holder(self, name: str) -> dict[str, Any]:
        """Return who holds a lock and who waits for it: ``holders``, ``waiting``, ``token``."""
        found: dict[str, Any] = self.ask("Holder", {"name": name})["data"]
        return {"holders": [], "waiting": [], "token": None, **found}

    def once(
        self,
        name: str,
        func: Callable[[], Any],
        *,
        ttl_secs: float | None = None,
        wait_secs: float | None = None,
        attempts: int = 3,
    ) -> Any:
        """Have a function called by one of all that ask, and return its result, which is JSON, to all of them.

        The entry ``name`` says where it stands. A crash between the function's end and that note repeats it.

        Args:
            name: of the entry, and of the lock that is held meanwhile.
            func: does the work.
            ttl_secs: as of :meth:`session`.
            wait_secs: how long to wait for another that does it; None: as long as the call may take.
            attempts: how often it is tried, at most.

        Raises:
            OnceFailed: it failed as often as it may.
            LockTimeout: another does it, all the time.
            Exception: what the function raised.
        """
        done, result = self._done(name, attempts)
        if done:
            return result
        with self.lock(name, ttl_secs, wait_secs) as lock:
            done, result = self._done(name, attempts)
            if done:
                return result
            state = self._state(name)
            attempt = state.get("attempt", 0) + 1
            self.replace(name, {"state": "running", "attempt": attempt}, lock=lock)
            try:
                result = func()
            except BaseException as error:  # SystemExit, too: the work has not been done
                said = f"{type(error).__name__}: {error}"[:1000]
                self.replace(name, {"state": "failed", "attempt": attempt, "exit": 1, "error": said}, lock=lock)
                raise
            end = {"state": "done", "attempt": attempt, "exit": 0, "result": result}
            self.replace(name, end, lock=lock)
            return result

    def allocate(self, pool: str, owner: str, *, first: int = 1, last: int = 255, number: int | None = None) -> int:
        """Return the owner's number in a pool: the one that it has, else the lowest free one, or ``number``.

        Raises:
            AlreadyExists: all are given away, or that one is; ``data`` has the owners.
        """
        asked: dict[str, Any] = {"pool": pool, "owner": owner, "from": first, "to": last}
        if number is not None:
            asked["number"] = number
        return int(self.ask("Allocate", asked)["data"]["number"])

    def release(self, pool: str, owner: str, *, quarantine_secs: float = 0) -> None:
        """Free the owner's number, which is not given away again for ``quarantine_secs``."""
        self.ask("Release", {"pool": pool, "owner": owner, "quarantine": round(quarantine_secs)})

    def next(self, name: str, by: int = 1, *, owner: str = "") -> int:
        """Return the next value of a counter; with an owner, always the same for that one."""
        return int(self.ask("Next", {"name": name, "by": by, **({"owner": owner} if owner else {})})["data"]["number"])

    def take(self, name: str, receiver: str) -> Take:
        """Return a taking, to be used in ``with``: the entry is the receiver's, and is destroyed at the end."""
        return Take(self, name, receiver)

    def batch(self, *, atomic: bool = True) -> Batch:
        """Return a batch, to be used in ``with``: its writes happen together at the end, or not at all."""
        return Batch(self, atomic=atomic)

    def watch(self, prefix: str = "", *, name: str = "", since: str = "") -> Watch:
        """Return a watch: an iterator over changes; its ``cursor`` says from where to go on, in a later call too."""
        return Watch(self, prefix, name=name, since=since)

    # --- how ---

    def ask(
        self, method: str, parameters: Mapping[str, Any], fields: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        """Call a method of the registry as a client does, and return its answer: ``data``, ``revision`` and so on.

        Args:
            method: such as ``Get``.
            parameters: JSON values.
            fields: header fields, their names in lower case.

        Raises:
            Error: it was refused.
        """
        reply = self._exchange(
            {"kind": "registry", "method": method, "parameters": dict(parameters), "fields": dict(fields or {})}
        )
        if reply["status"] >= 400:
            raise refusal_of(reply["status"], reply["message"], reply.get("data"), reply.get("failed"))
        answer: Mapping[str, Any] = reply["answer"]
        return answer

    def _write(
        self,
        method: str,
        name: str,
        data: Data,
        fields: Mapping[str, str] | None = None,
        *,
        session: Session | str | None,
        lock: Lock | str | None,
        **more: Any,
    ) -> Entry:
        given = {key: value for key, value in more.items() if value is not None}
        sent = {"name": name, "data": _text(data), **_owned(session, lock), **given}
        return _entry(self.ask(method, sent, fields))

    def _ttl(self, given: float | None) -> float:
        return min(_TTL_MAX_SECS, max(_TTL_MIN_SECS, self.timeout_secs)) if given is None else given

    def _state(self, name: str) -> dict[str, Any]:
        try:
            return self.get(name).own
        except NotFound:
            return {}

    def _done(self, name: str, attempts: int) -> tuple[bool, Any]:
        """Return whether a piece of work is done, and its result.

        Raises:
            OnceFailed: it failed as often as it may.
        """
        state = self._state(name)
        if state.get("state") == "done":
            return True, state.get("result")
        if state.get("attempt", 0) >= attempts and self.holder(name)["token"] is None:
            said = state.get("error", "its process ended in the middle")
            raise OnceFailed(f"'{name}' failed {state['attempt']} times: {said}")
        return False, None


class Session:
    """A session of one call: opened by ``with`` or :meth:`open`, ended by :meth:`close` or its time.

    Args:
        registry: of the running call.
        ttl_secs: how long it lives, at least.
        session_id: its id; a new one if empty.
    """

    def __init__(self, registry: Registry, ttl_secs: float, session_id: str = "") -> None:
        self.id = session_id or os.urandom(16).hex()
        self.ttl_secs = ttl_secs
        self._registry = registry

    def open(self) -> None:
        """Begin the session."""
        self._registry.ask("Open", {"session": self.id, "ttl": self.ttl_secs})

    def renew(self) -> None:
        """Give the session its time again.

        Raises:
            NotFound: it is over.
        """
        self._registry.ask("Renew", {"session": self.id})

    def close(self) -> None:
        """End the session: its entries and its places in locks go."""
        self._registry.ask("Close", {"session": self.id})

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Lock:
    """A lock of one name, by a session of its own.

    Args:
        registry: of the running call.
        name: of the lock.
        limit: how many may hold it at once.
        ttl_secs: of the session.
        wait_secs: how long to wait for it.
        data: what others are told of the holder: JSON.
    """

    def __init__(
        self, registry: Registry, name: str, limit: int, ttl_secs: float, wait_secs: float, data: Any = None
    ) -> None:
        self.name = name
        self.token = 0
        """Grows with every grant; 0 while it is not held."""
        self._registry = registry
        self._limit = limit
        self._ttl = ttl_secs
        self._wait = wait_secs
        self._data = data
        self._session: Session | None = None

    @property
    def fence(self) -> str:
        """What a write names so that it is refused when the lock is no longer held: ``NAME:TOKEN``."""
        return f"{self.name}:{self.token}"

    def locked(self) -> bool:
        """Return whether this object holds it."""
        return bool(self.token)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; arguments as of :meth:`threading.Lock.acquire`. Return whether it was got in time."""
        try:
            self.take(0.0 if not blocking else self._wait if timeout == -1 else timeout)
        except LockTimeout:
            return False
        return True

    def take(self, wait_secs: float) -> int:
        """Take the lock and return its token.

        Raises:
            LockTimeout: others hold it; ``holders`` has them.
        """
        if self.token:
            raise RuntimeError(f"The lock '{self.name}' is held by this object already")
        session = Session(self._registry, self._ttl)
        session.open()
        asked = {"name": self.name, "session": session.id, "limit": self._limit, "wait": wait_secs}
        if self._data is not None:
            asked["data"] = self._data if isinstance(self._data, str) else json.dumps(self._data)
        try:
            self.token = int(self._registry.ask("Lock", asked)["data"]["token"])
        except AlreadyExists as refused:
            session.close()
            error = LockTimeout(str(refused))
            error.data = refused.data
            raise error from None
        except BaseException:  # SystemExit, too: nobody would close the session
            session.close()
            raise
        self._session = session
        return self.token

    def release(self) -> None:
        """Give the lock back."""
        if self._session is None:
            raise RuntimeError(f"The lock '{self.name}' is not held")
        session, self._session, self.token = self._session, None, 0
        session.close()

    def holder(self) -> Mapping[str, Any] | None:
        """Return the newest holder (``session``, ``token``, ``data``, ``since``); None if there is none."""
        found = self._registry.holder(self.name)["holders"]
        return found[-1] if found else None

    def contenders(self) -> list[Mapping[str, Any]]:
        """Return all that hold it and all that wait for it, in their order."""
        found = self._registry.holder(self.name)
        return [*found["holders"], *found["waiting"]]

    def __enter__(self) -> Self:
        self.take(self._wait)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self.release()


class Take:
    """An entry for one receiver: ``with`` takes it, and acknowledges on a clean exit.

    Args:
        registry: of the running call.
        name: of the entry.
        receiver: who takes it; may take again until it has acknowledged.
    """

    def __init__(self, registry: Registry, name: str, receiver: str) -> None:
        self._registry = registry
        self._asked = {"name": name, "receiver": receiver}

    def take(self) -> Entry:
        """Take the entry.

        Raises:
            AlreadyExists: another receiver has taken it.
            NotFound: there is no such entry, or it was acknowledged.
        """
        return _entry(self._registry.ask("Take", self._asked))

    def ack(self) -> None:
        """Have the entry destroyed; it is fine if that was done."""
        self._registry.ask("Ack", self._asked)

    def __enter__(self) -> Entry:
        return self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.ack()


class Batch:
    """Collects operations; ``with`` commits them on a clean exit, and does nothing on an exception.

    ``revision``, ``if_match``, ``session`` and ``lock`` of an operation are as of :meth:`Registry.replace`.

    Args:
        registry: of the running call.
        atomic: all or none; otherwise each has its own result.
    """

    def __init__(self, registry: Registry, *, atomic: bool = True) -> None:
        self.operations: list[dict[str, Any]] = []
        self.results: list[Mapping[str, Any]] = []
        """What became of each operation, in order: ``status``, ``data``, ``revision``, ``message``."""
        self._registry = registry
        self._atomic = atomic
        self._id = os.urandom(16).hex()

    def register(self, name: str, data: Data, **how: Any) -> None:
        """Create an entry that must not exist."""
        self._add("Register", how, name=name, data=_text(data))

    def replace(self, name: str, data: Data, **how: Any) -> None:
        """Create or overwrite an entry."""
        self._add("Replace", how, name=name, data=_text(data))

    def update(self, name: str, data: Data, **how: Any) -> None:
        """Merge into an entry."""
        self._add("Update", how, name=name, data=_text(data))

    def delete(self, name: str, **how: Any) -> None:
        """Remove an entry."""
        self._add("Delete", how, name=name)

    def check(self, name: str, **how: Any) -> None:
        """Require a revision, a tag or a lock of an entry that is not changed."""
        self._add("Check", how, name=name)

    def check_empty(self, prefix: str) -> None:
        """Require that no entry's name begins so."""
        self._add("CheckEmpty", {}, prefix=prefix)

    def get(self, name: str) -> None:
        """Read an entry as it is after the batch."""
        self._add("Get", {}, name=name)

    def list(self, prefix: str = "") -> None:
        """Read the entries whose names begin so as they are after the batch."""
        self._add("List", {}, prefix=prefix)

    def take(self, name: str, receiver: str) -> None:
        """Take an entry for one receiver; its value is in the result."""
        self._add("Take", {}, name=name, receiver=receiver)

    def ack(self, name: str, receiver: str) -> None:
        """Have an entry that the receiver has taken destroyed."""
        self._add("Ack", {}, name=name, receiver=receiver)

    def allocate(self, pool: str, owner: str, *, first: int = 1, last: int = 255, number: int | None = None) -> None:
        """Give the owner a number in a pool; it is in the result, as ``number``."""
        more = {} if number is None else {"number": number}
        self._add("Allocate", {}, **{"pool": pool, "owner": owner, "from": first, "to": last, **more})

    def release(self, pool: str, owner: str, *, quarantine_secs: float = 0) -> None:
        """Free the owner's number, which is not given away again for ``quarantine_secs``."""
        self._add("Release", {}, pool=pool, owner=owner, quarantine=round(quarantine_secs))

    def next(self, name: str, by: int = 1, *, owner: str = "") -> None:
        """Count on; the counter is in the result, as ``number``."""
        self._add("Next", {}, name=name, by=by, **({"owner": owner} if owner else {}))

    def commit(self) -> Sequence[Mapping[str, Any]]:
        """Send the batch and return the results.

        Raises:
            BatchFailed: an operation was refused, so nothing was done; ``index`` says which, ``error`` why.
        """
        if not self.operations:
            return self.results
        asked = {"id": self._id, "operations": self.operations, "atomic": self._atomic}
        try:
            self.results = list(self._registry.ask("Batch", asked)["data"]["results"])
        except Error as error:
            index = getattr(error, "failed", None)
            if not isinstance(index, int):
                raise
            operation = self.operations[index]
            what = " ".join(str(operation.get(key, "")) for key in ("method", "name")).strip()
            raise BatchFailed(f"Operation {index} ({what}): {error}; nothing was changed", index, error) from error
        return self.results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.commit()

    def _add(self, method: str, how: Mapping[str, Any], **parameters: Any) -> None:
        more = dict(how)
        owned = _owned(more.pop("session", None), more.pop("lock", None))
        condition = _condition(more.pop("revision", None), more.pop("if_match", ""))
        fields = {key.replace("-", "_"): value for key, value in condition.items()}
        self.operations.append({"method": method, **parameters, **fields, **owned, **more})


class Event:
    """One change.

    Args:
        kind: ``put``, ``delete``, ``expire`` or ``take``.
        name: of the entry.
        revision: of the change.
        entry: what it is now; None if it is gone.
    """

    __slots__ = ("entry", "name", "revision", "type")

    def __init__(self, kind: str, name: str, revision: int, entry: Entry | None) -> None:
        self.type = kind
        self.name = name
        self.revision = revision
        self.entry = entry


class Watch:
    """Yields events as they happen, until the call ends.

    Args:
        registry: of the running call.
        prefix: of the names.
        name: of one entry, instead.
        since: a cursor; without it, from the first :meth:`poll` on.
    """

    def __init__(self, registry: Registry, prefix: str = "", *, name: str = "", since: str = "") -> None:
        self.cursor = since
        """Behind the events that :meth:`poll` returned; an iterator moves it behind each whole revision."""
        self._registry = registry
        self._what = {"name": name} if name else {"prefix": prefix}

    def start(self) -> str:
        """Find out the present cursor, if there is none, and return it."""
        if not self.cursor:
            self.cursor = str(self._registry.ask("Watch", self._what)["data"]["cursor"])
        return self.cursor

    def poll(self, wait_secs: float = 0.0) -> list[Event]:
        """Return the next events, none if there were none in time, and move the cursor behind them.

        Raises:
            CursorExpired: some are forgotten; its ``cursor`` is from where to go on after a new list.
        """
        events, cursor = self._next(wait_secs)
        self.cursor = cursor
        return events

    def __iter__(self) -> Iterator[Event]:
        end = time.monotonic() + self._registry.timeout_secs
        while (left := end - time.monotonic()) > 0:
            events, cursor = self._next(left)
            registry = cursor.rpartition(":")[0]
            for at, event in enumerate(events):
                yield event
                if at + 1 == len(events) or events[at + 1].revision != event.revision:
                    self.cursor = f"{registry}:{event.revision}"
            self.cursor = cursor

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def _next(self, wait_secs: float) -> tuple[list[Event], str]:
        self.start()
        asked = {**self._what, "since": self.cursor, "wait": round(wait_secs, 3)}
        data = self._registry.ask("Watch", asked)["data"]
        events = [
            Event(
                each["type"], each["name"], each["revision"],
                Entry(each["entry"], each["revision"]) if "entry" in each else None,
            )
            for each in data["events"]
        ]  # fmt: skip
        return events, str(data["cursor"])


def _entry(answer: Mapping[str, Any]) -> Entry:
    return Entry(answer["data"], answer.get("revision", 0))


def _text(data: Data) -> str:
    """Return an entry's data as a client would send it."""
    return data if isinstance(data, str) else json.dumps(dict(data), ensure_ascii=False, allow_nan=False)


def _owned(session: Session | str | None, lock: Lock | str | None) -> dict[str, str]:
    asked = {}
    if session is not None:
        asked["session"] = session if isinstance(session, str) else session.id
    if lock is not None:
        asked["lock"] = lock if isinstance(lock, str) else lock.fence
    return asked


def _condition(revision: int | None, if_match: str) -> dict[str, str]:
    """Return the header fields that make a write conditional."""
    if revision is not None and if_match:
        raise ValueError("revision and if_match are both given; give one of them")
    if revision == 0:
        return {"if-none-match": "*"}
    if revision is not None:
        return {"if-match": f'"{revision}"'}
    return {"if-match": _quoted(if_match)} if if_match else {}


def _quoted(tag: str) -> str:
    return tag if tag == "*" or tag.startswith('"') else f'"{tag}"'


def _conditions(where: Mapping[str, Any] | Sequence[str] | str) -> list[str]:
    if isinstance(where, str):
        return [where]
    if isinstance(where, Mapping):
        return [f"{field}={value if isinstance(value, str) else json.dumps(value)}" for field, value in where.items()]
    return list(where)


__all__ = ["Batch", "CursorExpired", "Entry", "Event", "Lock", "Registry", "Session", "Take", "Watch"]
