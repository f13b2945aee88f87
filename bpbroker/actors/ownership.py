"""One owner at a time: an owner that was replaced can neither publish values nor replace files any more.

The thread of a replaced actor may go on: it hangs in a system call and returns a minute later. It would still believe
that it is the owner. So each owner holds a claim, only the newest claim counts, and it is checked at the moment of
each lasting step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from bpbroker.errors import Unavailable

T = TypeVar("T")


class Replaced(Unavailable):
    """Another owner has replaced this one; nothing was done."""


class Owned(Generic[T]):
    """A published value, and files, with one owner at a time.

    Args:
        value: the first published value.
        published: called with each later value, while the lock is held: it must be quick.
    """

    def __init__(self, value: T, published: Callable[[T], None] = lambda _: None) -> None:
        self.value = value
        """The value that was published last."""
        self.published = published
        self.number = 0
        """Number of the newest claim."""
        self.state = threading.Lock()
        """Guards value and number; never held during a wait for a disk."""
        self.files = threading.Lock()
        """Held while a file is renamed: the next owner renames after that, never before."""

    def claim(self) -> Claim[T]:
        """Become the owner; earlier claims do not count from now on."""
        with self.state:
            self.number += 1
            return Claim(self, self.number)


class Claim(Generic[T]):
    """One owner's right, until another claim is made or this one ends."""

    def __init__(self, owned: Owned[T], number: int) -> None:
        self._owned = owned
        self._number = number
        self.value = owned.value
        """The value published when the claim was made."""

    def check(self) -> None:
        """Check that this is still the newest claim.

        Raises:
            Replaced: there is a newer claim, or this one was given up.
        """
        if self._owned.number != self._number:
            raise Replaced("The broker's part for this has been replaced; nothing was done")

    def give_up(self) -> None:
        """End the claim without waiting for anything; from any thread."""
        with self._owned.state:
            if self._owned.number == self._number:
                self._owned.number += 1

    def publish(self, value: T) -> None:
        """Publish a value.

        Raises:
            Replaced: this is not the newest claim any more; nothing was published.
        """
        with self._owned.state:
            self.check()
            self._owned.value = value
            self._owned.published(value)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Let the body replace files, with no other owner doing so.

        Raises:
            Replaced: this is not the newest claim any more; the body does not run.
        """
        with self._owned.files:
            self.check()
            yield
