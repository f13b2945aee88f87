"""Where acknowledged writes live.

The registry decides what a write does; a store makes it last. Both stores
behind this protocol give the same promise: when :meth:`Store.commit` returns
an outcome that says so, the change survives a crash and a power cut.

The registry is the only writer of an embedded store, so what it has in memory
is the truth, and a commit is a matter of microseconds. A *shared* store has
other writers: a commit may meet something newer, a read has to ask the store,
and both may take long, so the registry has them done outside its own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Protocol

from bpbroker.errors import Unavailable


class Anything(Enum):
    """The type of :data:`ANYTHING`."""

    ANYTHING = "anything"


ANYTHING = Anything.ANYTHING
"""A change that holds whatever is there."""


@dataclass(frozen=True, slots=True)
class Change:
    """One name's next state."""

    name: str
    value: bytes | None
    """The entry as JSON in UTF-8; None deletes."""
    expects: int | Anything = ANYTHING
    """The version that must be there for the change to happen, 0 for no entry, or :data:`ANYTHING`."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The change is durable."""

    version: int = 0
    """The entry's version from now on; of a deletion, the one from which on there is no entry."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a shared store held for a name at one moment."""

    name: str
    value: bytes | None
    """The entry as JSON in UTF-8; None for no entry."""
    version: int
    """The entry's version, 0 for no entry. Versions of one store grow with every change."""
    as_of: int
    """The store's own version at that moment; not below ``version``."""
    fault: str = ""
    """Why what is there cannot be an entry: somebody else wrote it."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """The change did not happen: something else is there."""

    seen: Seen


Outcome = Committed | Conflict | Unavailable
"""What became of one change; an error where it alone failed."""


class Store(Protocol):
    """A durable map of names to entries."""

    shared: ClassVar[bool]
    """Whether there may be other writers; then it is a :class:`SharedStore`."""

    def load(self) -> Mapping[str, bytes]:
        """Give all entries; called once, before the first commit.

        Raises:
            DamagedFile: what is stored cannot be trusted.
        """

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """Make changes durable, all in one transaction, and give their outcomes in order.

        A name occurs at most once in ``changes``.

        Raises:
            StorageFull: nothing was changed; a later commit may work.
            StorageFailed: this and every later commit fails; ``outcome_known``
                says whether the changes may be there after a restart.
            Unavailable: a later commit may work; ``outcome_known`` as above.
        """

    @property
    def sequence(self) -> int:
        """Number of the last commit; grows with every one."""

    def forget(self, sequence: int) -> bool:
        """Be told that the configuration file holds everything up to this commit.

        Does a bounded piece of work; True while there is more to do.
        """

    def probe(self) -> None:
        """Raise what a commit would raise now; asked after a commit failed, to see whether it is over."""

    @property
    def figures(self) -> Mapping[str, Any]:
        """Numbers and states worth showing in health, all of them JSON values."""

    def close(self) -> None:
        """Let go of files and connections; nothing is lost by not calling it."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything that a shared store held at one version."""

    entries: tuple[Seen, ...]
    """Sorted by name; no absent ones."""
    version: int
    registry_id: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The watch on a shared store broke off: what follows is tried again and again."""

    why: str


News = State | tuple[Seen, ...] | Broken
"""What a watch tells: everything anew, changes in their order (none: the watch is up), or that it broke off."""


class SharedStore(Store, Protocol):
    """A store with other writers. Every method may block for some seconds.

    Of :meth:`commit`, of the reading methods together, and of :meth:`follow`
    one may run at a time, each in a thread of its own.
    """

    @property
    def registry_id(self) -> str:
        """32 hexadecimal digits, the same for all brokers that share this registry; known once it is open."""

    def open(self) -> State:
        """Reach the store, see whether it can be used, and give what it holds.

        Raises:
            ConfigurationError: it refuses us, or holds what is not ours.
            Unavailable: it does not answer.
        """

    def read(self, names: Sequence[str]) -> Sequence[Seen]:
        """Give what it holds now for some names, at most :data:`READ_MAX` of them, in their order.

        Raises:
            Unavailable: it does not answer.
        """

    def scan(self, prefix: str = "") -> State:
        """Give all entries whose names begin with ``prefix``, as they are at one version.

        Raises:
            Unavailable: it does not answer.
        """

    def check(self) -> None:
        """Raise what a read would raise now."""

    def follow(self, after: int | None, take: Callable[[News], None]) -> None:
        """Tell all changes later than the version ``after`` until :meth:`close`; with None, everything first."""

    def hurry(self) -> None:
        """Be told that the store answers again: a watch that has broken off need not wait any longer."""


READ_MAX = 100
"""Names in one :meth:`SharedStore.read`."""
