"""What a store must supply, and what of it must be atomic.

The registry decides what a write does; a store makes it last. There are two
kinds. Both keep one promise: when ``commit`` returns an outcome that is
:class:`~bpbroker.registry.changes.Committed`, that change survives a crash of
the broker and a power cut.

**A local store** (:class:`LocalStore`, today ``embedded``) has one writer, its
registry. So the registry's memory is the truth, a commit never meets something
newer, and every method is quick enough for the registry's own thread.

* ``commit``: one transaction. After a crash all its changes are there or none,
  and never a later commit without an earlier one.
* ``load``: fences off every older store on the same files *before* it reads
  them. A store that was fenced off can commit nothing any more.
* ``forget``: bounded work at a time, each piece a transaction. It changes only
  what is stored twice, so the result of the next ``load`` stays the same.

**A shared store** (:class:`SharedStore`, today ``etcd``) has other writers:
memory may be behind it, a commit may meet something newer, and each call may
block for seconds, so the registry makes these calls outside its own thread.

* ``commit``: for each group the comparisons and all its changes are one step; no
  other writer comes between. A group happens once or not at all, also if its
  request has to be sent again. Several groups may be divided: each has its own
  outcome, and one may fail while another happens.
* ``read``: all its names at one version.
* ``scan``, ``open``: all entries at one version, however many requests it takes.
* ``follow``: every change after the given version, in the order of versions,
  none left out. If that cannot be done, the complete state comes first.

Versions are integers. Each commit gets a higher one than every commit before
it, for the whole life of the registry; another registry has another id.

Revisions are what clients see of that: integers below 2**53. Each commit gets one
that is higher than every revision before it, whatever a backup brings back or a
clock says. The writes of one commit count on from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from bpbroker.durations import Histogram
from bpbroker.record import Record
from bpbroker.registry.changes import Group, News, Outcome, Seen, State


class Store(Protocol):
    """What both kinds of store supply."""

    def commit(self, groups: Sequence[Group]) -> Sequence[Outcome]:
        """Make groups of changes durable and return their outcomes in order.

        A name is in one group at most. An error means that no group has an
        outcome of its own.

        Raises:
            StorageFull: nothing was changed; a later commit may work.
            StorageFailed: this and every later commit fails; ``outcome_known``
                says whether the changes may be there after a restart.
            Unavailable: a later commit may work; ``outcome_known`` as above.
        """

    def probe(self) -> None:
        """Raise what a commit would raise now. Called after a commit failed, to see whether that is over."""

    def close(self) -> None:
        """Close files and connections. No committed change is lost if this is never called."""


class LocalStore(Store, Protocol):
    """A store whose only writer is its registry. One thread calls all methods, :meth:`load` first."""

    def load(self) -> Mapping[str, bytes]:
        """Open the store and return all records in their stored form. Called once.

        Raises:
            DamagedFile: what is stored cannot be trusted; nothing was changed.
            ConfigurationError: the store cannot be opened.
        """

    @property
    def sequence(self) -> int:
        """The highest revision that was given out; grows with every commit, also across restarts."""

    def forget(self, sequence: int) -> bool:
        """Drop what the configuration file holds as well: everything up to this commit.

        Does a bounded piece of work and returns whether there is more to do.

        Raises:
            StorageFull, StorageFailed, Unavailable: as :meth:`Store.commit`.
        """

    @property
    def figures(self) -> Mapping[str, Any]:
        """Numbers and states that health shows, all of them JSON values."""

    @property
    def syncs(self) -> Histogram:
        """How long each transaction took to get to stable storage."""


class SharedStore(Store, Protocol):
    """A store with other writers. Every method but :meth:`hurry` and :meth:`abandon` may block for some seconds.

    At one time one thread may be in :meth:`commit`, one in :meth:`read`,
    :meth:`check` or :meth:`reached`, one in :meth:`scan`, :meth:`open` or :meth:`probe`, one in
    :meth:`open_session` or :meth:`renew_sessions`, and one in :meth:`follow`.
    :meth:`close`, :meth:`abandon` and :meth:`hurry` may be called at any time.
    """

    def open(self) -> State:
        """Reach the store, check that it can be used, and return all it holds.

        Raises:
            ConfigurationError: it refuses this broker, or its content was not written by a broker.
            Unavailable: it does not answer.
        """

    def read(self, names: Sequence[str]) -> Sequence[Seen]:
        """Return what it holds now for at most :data:`~bpbroker.registry.changes.READ_MAX` names, in their order.

        Raises:
            Unavailable: it does not answer.
        """

    def scan(self, prefix: str = "", *, entries: bool = False, at: int | None = None) -> State:
        """Return all records whose names begin with ``prefix``.

        Args:
            prefix: of names.
            entries: only entries, without the registry's own records.
            at: return them as they were at this version; None: as they are.

        Raises:
            Unavailable: it does not answer, or has forgotten that version.
        """

    def check(self) -> None:
        """Raise what a read would raise now."""

    def reached(self) -> int:
        """Return a revision that no change has passed yet.

        Raises:
            Unavailable: it does not answer.
        """

    def follow(self, after: int | None, take: Callable[[News], None]) -> None:
        """Pass on all changes later than the version ``after`` until :meth:`close`; with None the state comes first.

        Does not raise: a watch that breaks off is news too, and is begun again.
        """

    def open_session(self, session_id: str, ttl_secs: int, record: Record) -> Outcome:
        """Make the record of a session, ``_session/ID``, unless there is one; the store removes it when it runs out.

        It lives for ``ttl_secs`` (2 or more) after this call and after each :meth:`renew_sessions`, at least. Saying
        it again with the same values is the same session. A :class:`Conflict` has the record that is there.

        Raises:
            Unavailable: ``outcome_known`` says whether it may have been made.
        """

    def renew_sessions(self, session_ids: Sequence[str]) -> Sequence[int | None]:
        """Let at most :data:`~bpbroker.registry.changes.READ_MAX` sessions live on; return the ttl of each in seconds.

        None stands for a session that is over. A renewal costs no commit.

        Raises:
            Unavailable: it does not answer; some of them may have been renewed.
        """

    def hurry(self) -> None:
        """Begin a watch again at once if it broke off: the store answers again."""

    def abandon(self) -> None:
        """Release all connections and threads. Threads that still use the store can change nothing any more.

        Waits for nothing: those threads may be stuck. Calls end with Unavailable, also later ones; :meth:`follow` ends.
        """
