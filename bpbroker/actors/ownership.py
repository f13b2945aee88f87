"""One owner at a time: one that was replaced can neither publish nor put a file in its place any more.

A thread that was given up goes on working: it sits in a system call and comes
back a minute later. So nothing that lasts is done because a thread believes
that it is the owner. Each owner holds a claim, the newest claim alone counts,
and it is looked at in the moment in which it matters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from bpbroker.errors import Unavailable

T = TypeVar("T")


class Replaced(Unavailable):
    """Another part has taken this one's place; nothing was done."""


class Owned(Generic[T]):
    """A published value, and files, with one owner at a time.

    Args:
        value: what is published at first.
        published: called with each later value, while the lock is held: it must be quick.
    """

    def __init__(self, value: T, published: Callable[[T], None] = lambda _: None) -> None:
        self.value = value
        """What was published last."""
        self.published = published
        self.number = 0
        """Of the newest claim."""
        self.state = threading.Lock()
        """Guards value and number; never held while a disk is waited for."""
        self.files = threading.Lock()
        """Held while a file gets its name: the next owner renames after it, never before it."""

    def claim(self) -> Claim[T]:
        """Become the owner; earlier claims count no more from here on."""
        with self.state:
            self.number += 1
            return Claim(self, self.number)


class Claim(Generic[T]):
    """One owner's right, until another claim is made or this one is given up."""

    def __init__(self, owned: Owned[T], number: int) -> None:
        self._owned = owned
        self._number = number
        self.value = owned.value
        """What was published when the claim was made."""

    def check(self) -> None:
        """See that this is still the newest claim.

        Raises:
            Replaced: it is not.
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
        """Let the body put files in their place, alone.

        Raises:
            Replaced: this is not the newest claim any more; the body does not run.
        """
        with self._owned.files:
            self.check()
            yield
