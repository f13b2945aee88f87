"""``rh.registry``: the running broker's registry, for the methods of an extension.

It has the calls of :class:`bpbroker.client.Client`, by the same names, without a
connection: they go to the broker over the channel of the extension's process, one
at a time. The recipes are the same, too (:mod:`bpbroker.recipes`); but what belongs
to a session lives as long as a call may take, so nothing renews it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from bpbroker.extensions import refusals
from bpbroker.extensions.refusals import TimedOut, refusal_of
from bpbroker.recipes import coordination
from bpbroker.recipes.coordination import Coordination, Data, as_text, expected, owned, quoted

if TYPE_CHECKING:
    from bpbroker.recipes.lock import Lock
    from bpbroker.recipes.session import Session
    from bpbroker.recipes.watch import MovingWatch

_TTL_MIN_SECS: Final = 2.0
_TTL_MAX_SECS: Final = 86_400.0


class Entry(coordination.Entry):
    """A registry entry: a dictionary that knows its revision.

    Args:
        content: the entry, its two ``last_write_*`` keys included.
        revision: of its last change; 0 if it was not said.
    """

    def __init__(self, content: Mapping[str, Any], revision: int = 0) -> None:
        super().__init__(content, f'"{revision}"', revision)


class _Answer:
    """What the broker answered to a call: an object with ``data``, ``revision`` and so on."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self.data: Mapping[str, Any] = answer.get("data", {})
        self.revision: int = answer.get("revision", 0)
        self.etag = f'"{self.revision}"'


class _Calls:
    """Calls over the channel of the extension's process."""

    errors: Final = refusals
    away: Final = ()
    """The broker is not waited for: a call that met trouble ends at once, and the client may call again."""
    renews: Final = False

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @property
    def patience_secs(self) -> float:
        """How long a recipe waits when its caller says nothing: as long as the call may take."""
        return self._registry.timeout_secs

    def ttl_secs(self, usual_secs: float) -> float:  # noqa: ARG002 - a client's
        """Return how long a session lives when its caller says nothing: as long as the call may take."""
        return min(_TTL_MAX_SECS, max(_TTL_MIN_SECS, self._registry.timeout_secs))

    def entry(self, content: Mapping[str, Any], etag: str, revision: int) -> Entry:  # noqa: ARG002 - of a client's list
        """Create an entry."""
        return Entry(content, revision)

    def registry(
        self,
        method: str,
        sent: Mapping[str, Any],
        *,
        repeatable: bool,  # noqa: ARG002 - there is no connection to lose
        wait_secs: float | None = None,  # noqa: ARG002 - as said in ``sent``
    ) -> _Answer:
        """Call a method of the registry; raises as :meth:`Registry.ask` does."""
        return _Answer(self._registry.ask(method, sent))


class Registry(Coordination):
    """The entries of the running broker, with the same rules that its clients meet.

    ``last_write_ip`` of a written entry is the address of the client that made the call. Errors are those of
    :mod:`bpbroker.extensions`; one that a method does not catch becomes its response, such as 404 for NotFound.

    Args:
        exchange: asks the broker.
        timeout_secs: how long a call of the extension may take.
    """

    def __init__(self, exchange: Callable[[Mapping[str, Any]], Mapping[str, Any]], timeout_secs: float = 30.0) -> None:
        self._exchange = exchange
        self.timeout_secs = timeout_secs
        self._calls = _Calls(self)

    @property
    def calls(self) -> _Calls:
        """Sends the calls, for :mod:`bpbroker.recipes`."""
        return self._calls

    def sibling(self, timeout_secs: float | None = None) -> Self:
        """Return one for another thread: it uses the same channel, one call at a time."""
        return type(self)(self._exchange, self.timeout_secs if timeout_secs is None else timeout_secs)

    def close(self) -> None:
        """Do nothing: there is no connection of its own."""

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
        fields = {"if-none-match": quoted(changed_from)} if changed_from else {}
        answer = self.ask("Get", {"name": name, "wait": wait_secs}, fields)
        if "data" not in answer:
            raise TimedOut(f"Entry '{name}' did not change within {wait_secs:g} s")
        return _entry(answer)

    def delete(
        self, name: str, *, revision: int | None = None, if_match: str = "", lock: Lock | str | None = None
    ) -> None:
        """Remove an entry, whether it is there or not; conditions as of :meth:`replace`."""
        self.ask("Delete", {"name": name, **owned(None, lock)}, _condition(revision, if_match))

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
            from bpbroker.recipes.filters import stated

            asked["where"] = stated(where)
        answer = self.ask("List", asked)
        revisions = answer.get("revisions", {})
        found = {name: Entry(value, revisions.get(name, 0)) for name, value in answer["data"].items()}
        if len(found) < at_least:
            raise TimedOut(f"There were {len(found)} of {at_least} entries '{prefix}…' within {wait_secs:g} s")
        return found

    def watch(self, prefix: str = "", *, name: str = "", since: str = "") -> MovingWatch:
        """Return a watch: an iterator over changes; its ``cursor`` says from where to go on, in a later call too."""
        from bpbroker.recipes.watch import MovingWatch

        return MovingWatch(self, prefix, name=name, since=since)

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
            about = reply.get("data"), reply.get("failed"), reply.get("revision")
            raise refusal_of(reply["status"], reply["message"], *about)
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
        sent = {"name": name, "data": as_text(data), **owned(session, lock), **given}
        return _entry(self.ask(method, sent, fields))


def _entry(answer: Mapping[str, Any]) -> Entry:
    return Entry(answer["data"], answer.get("revision", 0))


def _condition(revision: int | None, if_match: str) -> dict[str, str]:
    """Return the header fields that make a write conditional."""
    return {key.replace("_", "-"): value for key, value in expected(revision, if_match).items()}
