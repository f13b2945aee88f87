"""What a registry offers beside its entries: the same for a client and for an extension's method."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from bpbroker.errors import AlreadyExists, NotFound
from bpbroker.registry import entry_values

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:  # novm
    from types import TracebackType
    from typing import Any, Final, Self, TypeAlias

    from bpbroker.recipes.barrier import Barrier
    from bpbroker.recipes.batch import Batch
    from bpbroker.recipes.calls import Calls
    from bpbroker.recipes.election import Election
    from bpbroker.recipes.lock import Lock
    from bpbroker.recipes.session import Session
    from bpbroker.recipes.take import Take
    from bpbroker.recipes.watch import Watch

_SESSION_TTL_SECS: Final = 60.0
_LOCK_TTL_SECS: Final = 30.0
_TIMES_GONE_MAX: Final = 10

Data: TypeAlias = "str | Mapping[str, Any]"
"""What an entry is made of: an object, or text. Text that is a JSON object counts as that object."""


class Entry(dict[str, "Any"]):
    """A registry entry: a dictionary, with what the answer said beside it."""

    def __init__(self, content: Mapping[str, Any], etag: str = "", revision: int = 0) -> None:
        super().__init__(content)
        self.etag = etag
        """Its entity tag, for ``if_match`` and ``changed_from``; empty in a client's list."""
        self.revision = revision
        """The revision of its last change; 0 if it was not said."""

    @property
    def own(self) -> dict[str, Any]:
        """The registered object: without ``last_write_ip`` and ``last_write_ts``."""
        return entry_values.without_stamp(self)


class Coordination:
    """The recipes as methods. A class of it has the entries, and says how calls are made."""

    # --- what a class of it has ---

    @property
    def calls(self) -> Calls:
        """Sends the calls, for :mod:`bpbroker.recipes`."""
        raise NotImplementedError

    def sibling(self, timeout_secs: float | None = None) -> Self:
        """Return another one of the same broker, for another thread; it is closed when it is no longer needed."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection, if there is one."""
        raise NotImplementedError

    def register(
        self, name: str, data: Data, *, session: Session | str | None = None, lock: Lock | str | None = None
    ) -> Entry:
        """Create an entry that must not exist."""
        raise NotImplementedError

    def replace(
        self, name: str, data: Data, *, session: Session | str | None = None, lock: Lock | str | None = None
    ) -> Entry:
        """Create or overwrite an entry."""
        raise NotImplementedError

    def get(self, name: str) -> Entry:
        """Return an entry."""
        raise NotImplementedError

    def list(self, prefix: str = "") -> Mapping[str, Entry]:
        """Return all entries whose name begins with ``prefix``, sorted by name."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- entries ---

    def register_or_get(
        self, name: str, data: Data, *, session: Session | str | None = None, lock: Lock | str | None = None
    ) -> Entry:
        """Create an entry, or return the existing one, of any writer; arguments as of :meth:`register`.

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

    def lost(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Return the entries that ended with their session lately and do not exist again: name to last value."""
        found = self.calls.registry("List", {"prefix": prefix, "lost": "1"}, repeatable=True).data
        return {name: item.get("entry", item) for name, item in found.items() if isinstance(item, dict)}

    # --- sessions and what stands on them ---

    def session(self, ttl_secs: float | None = None) -> Session:
        """Return a session, to be used in ``with``: entries and locks that belong to it end with it.

        Args:
            ttl_secs: how long it lives at least after its last renewal. Default: 60 s for a client, which renews it;
                for an extension's method, which does not renew it, as long as a call may take.
        """
        from bpbroker.recipes.session import session_of

        return session_of(self, self._ttl(ttl_secs, _SESSION_TTL_SECS))

    def lock(self, name: str, ttl_secs: float | None = None, wait_secs: float | None = None, data: Any = None) -> Lock:
        """Return a lock, to be used in ``with``, or as :class:`threading.Lock`; writes take it as ``lock=``.

        Args:
            name: of the lock.
            ttl_secs: as of :meth:`session`, but for a client 30 s.
            wait_secs: how long to wait for it; None: without end, or as long as the extension's call may take.
            data: about the holder, for others: JSON.
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
        from bpbroker.recipes.lock import Lock

        ttl = self._ttl(ttl_secs, _LOCK_TTL_SECS)
        return Lock(self, name, ttl_secs=ttl, wait_secs=wait_secs, data=data, limit=limit)

    def holder(self, name: str) -> dict[str, Any]:
        """Return who holds a lock and who waits for it: ``holders``, ``waiting``, ``token``."""
        found = self.calls.registry("Holder", {"name": name}, repeatable=True).data
        return {"holders": [], "waiting": [], "token": None, **found}

    def election(self, name: str, data: Any = None, ttl_secs: float | None = None) -> Election:
        """Return an election: ``run(func)`` calls the function while this one is elected.

        Arguments as of :meth:`lock`.
        """
        from bpbroker.recipes.election import Election

        return Election(self, name, data=data, ttl_secs=self._ttl(ttl_secs, _LOCK_TTL_SECS))

    def once(
        self,
        name: str,
        func: Callable[[], Any],
        *,
        ttl_secs: float | None = None,
        wait_secs: float | None = None,
        attempts: int = 3,
    ) -> Any:
        """Call a function in one of all callers, and return its result, which is JSON, to each of them.

        The entry ``name`` says where it stands. A crash between the function's end and that note repeats it.

        Args:
            name: of the entry, and of the lock that is held meanwhile.
            func: does the work.
            ttl_secs: as of :meth:`session`.
            wait_secs: how long to wait for another that does it; None: as of :meth:`lock`.
            attempts: how often it is tried, at most.

        Raises:
            OnceFailed: it failed as often as it may.
            LockTimeout: another does it, all the time.
            LockLost: the lock was lost while it ran here.
            Exception: what the function raised.
        """
        from bpbroker.recipes.once import Once, call_once

        ttl = self._ttl(ttl_secs, _SESSION_TTL_SECS)
        return call_once(Once(self, name, ttl_secs=ttl, wait_secs=wait_secs, attempts=attempts), func)

    # --- changes ---

    def watch(self, prefix: str = "", *, name: str = "", since: str = "") -> Watch:
        """Return an iterator over changes, to be used in ``with``; its ``cursor`` says from where to go on."""
        from bpbroker.recipes.watch import Watch

        return Watch(self, prefix, name=name, since=since)

    def barrier(
        self,
        prefix: str,
        count: int,
        *,
        where: Mapping[str, Any] | Sequence[str] | str = (),
        fail_where: Mapping[str, Any] | Sequence[str] | str = (),
        fail_lost: bool = False,
    ) -> Barrier:
        """Return a barrier: ``wait(timeout)`` returns once enough entries are ready, raises once one cannot be."""
        from bpbroker.recipes.barrier import Barrier

        return Barrier(self, prefix, count, where=where, fail_where=fail_where, fail_lost=fail_lost)

    # --- several writes, numbers, secrets ---

    def batch(self, *, atomic: bool = True) -> Batch:
        """Return a batch, to be used in ``with``: its writes happen together at the end, or not at all."""
        from bpbroker.recipes.batch import Batch

        return Batch(self, atomic=atomic)

    def allocate(
        self,
        pool: str,
        owner: str,
        *,
        first: int = 1,
        last: int = 255,
        number: int | None = None,
        lock: Lock | str | None = None,
    ) -> int:
        """Return the owner's number in a pool: the one that it has, else the lowest free one, or ``number``.

        Raises:
            AlreadyExists: all are given away, or that one is; ``data`` has the owners.
            PreconditionFailed: the lock is not held any more; so of all methods that take ``lock``.
        """
        sent = {**allocating(pool, owner, first, last, number), **owned(None, lock)}
        return int(self.calls.registry("Allocate", sent, repeatable=True).data["number"])

    def release(self, pool: str, owner: str, *, quarantine_secs: float = 0, lock: Lock | str | None = None) -> None:
        """Free the owner's number, which is not given away again for ``quarantine_secs``."""
        sent = {**releasing(pool, owner, quarantine_secs), **owned(None, lock)}
        self.calls.registry("Release", sent, repeatable=True)

    def next(self, name: str, by: int = 1, *, owner: str = "", lock: Lock | str | None = None) -> int:
        """Return the next value of a counter; with an owner, always the same for that one."""
        sent = {**counting(name, by, owner), **owned(None, lock)}
        return int(self.calls.registry("Next", sent, repeatable=bool(owner)).data["number"])

    def take(self, name: str, receiver: str, *, lock: Lock | str | None = None) -> Take:
        """Return a taking, to be used in ``with``: the entry is the receiver's, and is destroyed at the end."""
        from bpbroker.recipes.take import Take

        return Take(self, name, receiver, lock)

    def _ttl(self, given_secs: float | None, usual_secs: float) -> float:
        return self.calls.ttl_secs(usual_secs) if given_secs is None else given_secs


def owned(session: Session | str | None, lock: Lock | str | None) -> dict[str, str]:
    """Return the parameters that say to which session an entry belongs, and which lock a write needs."""
    sent = {}
    if session is not None:
        sent["session"] = session if isinstance(session, str) else session.id
    if lock is not None:
        sent["lock"] = lock if isinstance(lock, str) else lock.fence
    return sent


def expected(revision: int | None, if_match: str | None) -> dict[str, str]:
    """Return the parameters with the condition of a batch's operation.

    Args:
        revision: the entry must have this one; 0: the entry must not exist; None: no condition.
        if_match: the entry must have this tag, with or without its quotes; ``*``: it must exist; empty or None: no
            condition.
    """
    if revision is not None and if_match:
        raise ValueError("revision and if_match are both given; give one of them")
    if revision == 0:
        return {"if_none_match": "*"}
    if revision is not None:
        return {"if_match": f'"{revision}"'}
    return {"if_match": quoted(if_match)} if if_match else {}


def allocating(pool: str, owner: str, first: int, last: int, number: int | None) -> dict[str, Any]:
    """Return the parameters of ``Allocate``; ``number`` None: any that is free."""
    wanted = {} if number is None else {"number": number}
    return {"pool": pool, "owner": owner, "from": first, "to": last, **wanted}


def releasing(pool: str, owner: str, quarantine_secs: float) -> dict[str, Any]:
    """Return the parameters of ``Release``: the broker takes whole seconds."""
    return {"pool": pool, "owner": owner, "quarantine": round(quarantine_secs)}


def counting(name: str, by: int, owner: str) -> dict[str, Any]:
    """Return the parameters of ``Next``; an empty ``owner``: for no owner."""
    return {"name": name, "by": by, **({"owner": owner} if owner else {})}


def quoted(tag: str) -> str:
    """Return an entity tag with its quotes."""
    return tag if tag == "*" or tag.startswith('"') else f'"{tag}"'


def as_text(data: Any) -> str:
    """Return data as the text that is sent.

    Raises:
        TypeError, ValueError, RecursionError: it cannot be written as JSON.
    """
    if isinstance(data, str):
        return data
    plain = dict(data) if isinstance(data, Mapping) else data
    return json.dumps(plain, ensure_ascii=False, allow_nan=False)
