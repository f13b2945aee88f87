"""The interface of a backend: how the registry commits and reads. There is a backend for each kind of store.

The actor decides writes; a backend says when memory is up to date, and the outcome of a commit.
:class:`~bpbroker.actors.registry_local.LocalBackend` does all of it at once, in the actor's thread.
:class:`~bpbroker.actors.registry_shared.SharedBackend` uses other threads and calls back later, again in the actor's
thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from bpbroker.errors import RequestError, Unavailable
from bpbroker.messages import SnapshotTaken
from bpbroker.record import Record
from bpbroker.registry.changes import Committed, Conflict, Group, Outcome
from bpbroker.registry.memory import Memory
from bpbroker.registry.reads import Then
from bpbroker.registry.requests import Done, Expired, Open
from bpbroker.registry.view import Limits


class Host(Protocol):
    """The parts of a registry actor that its backend uses."""

    memory: Memory
    reply: Future[Any] | None
    """Of the message that is being handled."""

    def tell_self(self, message: Any) -> None:
        """Queue a message to the actor; from any thread."""

    def report(self, failure: Unavailable | None) -> None:
        """Note whether a write could be stored; None: it could."""

    def decide_staged_again(self) -> None:
        """Decide all writes again that are not in a commit yet: the state that they saw is gone."""

    def ask_self(self, message: Any, then: Callable[[Any], None] = ...) -> None:
        """Make a write of the registry's own; ``then`` gets its reply or its error."""


class Owner(Host, Protocol):
    """The members of a registry actor that its parts use."""

    backend: Backend
    limits: Limits
    expired: Callable[[Expired], object]
    """Called with each session that ended by itself."""

    def set_alarm(self) -> None:
        """Ask for a wake-up at the next time at which there is work."""


class Backend(Protocol):
    """How the registry commits and reads. Every method is called in the actor's thread, and none may block for long."""

    @property
    def alone(self) -> bool:
        """Whether the store has no other writers, so that memory always has the newest state."""

    @property
    def registry_id(self) -> str:
        """32 hexadecimal digits; the same for all brokers that share one registry."""

    @property
    def away(self) -> str:
        """Why there is nothing to serve at all; empty once there is."""

    @property
    def trouble(self) -> str:
        """Why the store cannot be reached now; empty while it can. Not empty if :attr:`away` is not."""

    @property
    def faults(self) -> Mapping[str, str]:
        """Names that cannot be served, and why."""

    def take_notice(self) -> str:
        """Return what health shall say once, as an error; empty if there is nothing that was not said."""

    @property
    def figures(self) -> Mapping[str, Any]:
        """Numbers and states that health shows, all of them JSON values."""

    @property
    def counts(self) -> Mapping[str, Any]:
        """See :attr:`bpbroker.messages.Pong.counts`."""

    @property
    def handlers(self) -> Mapping[type, Callable[[Any], Any]]:
        """Messages of its own that the actor hands on."""

    def open(self, host: Host) -> None:
        """Open the store and fill the memory. Called once, before everything else.

        Raises:
            ConfigurationError: the store cannot be used.
        """

    def drain(self) -> None:
        """End what is under way and call back, for the registry stops. A commit after this is called back at once."""

    def close(self) -> None:
        """Close the store, if it was opened."""

    def abandon(self) -> None:
        """Release threads and connections of a registry that is being replaced.

        Called in another thread while the registry's own may be stuck, perhaps several times; it must not wait.
        """

    def look(self) -> float:
        """Check the store, if that is due. Return the monotonic time of the next check; may be infinite."""

    def age_secs(self) -> float:
        """Return for how long memory may have been behind the store."""

    # --- reading ---

    def is_fresh(self, names: Sequence[str]) -> bool:
        """Return whether memory surely holds the newest state of all names, and no staged one replaces it."""

    def read(self, names: Sequence[str], then: Then) -> None:
        """Bring memory up to date for some names, then call ``then``."""

    def list(self, prefix: str, at_least: int, then: Callable[[tuple[Record, ...] | Unavailable], None]) -> None:
        """Call ``then`` with all entries whose names begin with ``prefix``.

        If there are fewer than ``at_least``, memory is up to date with them.
        """

    def list_at(
        self,
        prefixes: Sequence[str],
        version: int,
        then: Callable[[Mapping[str, tuple[Record, ...]] | Unavailable], None],
    ) -> None:
        """Call ``then`` with all entries for each prefix, as they were at a commit's version.

        Only called where there are versions, see :attr:`bpbroker.registry.memory.Memory.version`.
        """

    def reached(self, then: Callable[[int | Unavailable], None]) -> None:
        """Call ``then`` with a revision that no change has passed yet.

        Only called where other brokers may know more than this one, see :attr:`History.shared`.
        """

    def snapshot(self, then: Callable[[SnapshotTaken | Unavailable], None]) -> None:
        """Call ``then`` with a complete committed state."""

    # --- committing ---

    def commit(self, groups: Sequence[Group], ended: Callable[[Sequence[Outcome] | BaseException], None]) -> None:
        """Commit groups of changes, then call ``ended`` with their outcomes or an error. One commit at a time."""

    def learn(self, committed: Sequence[tuple[Group, Committed]]) -> None:
        """Apply the changes of a durable commit to memory, and tell watches."""

    def learn_conflict(self, conflict: Conflict) -> None:
        """Apply the records to memory that caused a group's conflict."""

    # --- sessions ---

    @property
    def leases(self) -> bool:
        """Whether the store itself ends sessions. If not, the registry does, and the next two are never called."""

    def open_session(self, message: Open, then: Callable[[Done | RequestError], None]) -> None:
        """Begin a session in the store, or renew it if it exists, then call ``then``."""

    def renew_session(self, session: str, then: Callable[[Done | RequestError], None]) -> None:
        """Keep a session alive, then call ``then``; with NotFound if it is over."""

    def probe(self) -> None:
        """Find out whether a commit would work now, and report it to the host, at once or later."""
