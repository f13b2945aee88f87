"""``watch``, ``service get --gone`` and ``service wait`` with conditions: follow changes of entries."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bpbroker.client.cli import output
from bpbroker.client.cli.keeper import Keeper, end_orderly
from bpbroker.client.cli.locale_encoding import for_system
from bpbroker.client.cli.words import seconds
from bpbroker.errors import CursorExpired, NotFound, NotShown, UsageError, WaitTimeout
from bpbroker.process import reader_is_gone
from bpbroker.recipes.watch import Event, Watch
from bpbroker.retry import pauses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from bpbroker.client.api import Client
    from bpbroker.client.cli.output import Output
    from bpbroker.client.cli.session import Session

_ENVIRON_MAX: Final = 100_000
"""Bytes of an entry that go into the environment; Linux takes 128 KiB for one variable."""
_CURSOR_MAX: Final = 4096


class Position:
    """The position of a watch, in a file: the cursor, and how many events of the next revision are done.

    Args:
        path: the file; None: it is not kept.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self.cursor = ""
        self.revision = 0
        self.done = 0

    def load(self) -> None:
        """Read the file, if it is there.

        Raises:
            UsageError: it cannot be read, or is no such file.
        """
        if self._path is None:
            return
        try:
            with open(self._path, "rb") as file:  # noqa: PTH123 - as everywhere in the client
                words = file.read(_CURSOR_MAX).decode("ascii", "replace").split()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"The cursor file {self._path!r} cannot be read: {error.strerror}") from None
        if len(words) not in (1, 3) or ":" not in words[0] or not all(word.isdigit() for word in words[1:]):
            raise UsageError(f"The file {self._path!r} holds no cursor; remove it to begin again")
        self.cursor = words[0]
        if len(words) == 3:
            self.revision, self.done = int(words[1]), int(words[2])

    def is_done(self, event: Event, at: int) -> bool:
        """Return whether an event, number ``at`` of its revision, was handled in an earlier run."""
        return event.revision == self.revision and at < self.done

    def save(self, cursor: str, revision: int = 0, done: int = 0) -> None:
        """Write the file as a whole, for good.

        Raises:
            NotShown: it cannot be written.
        """
        if self._path is None:
            return
        from bpbroker.files import write_whole

        text = f"{cursor} {revision} {done}\n" if done else f"{cursor}\n"
        try:
            write_whole(Path(self._path), [text.encode()], mode=0o644)
        except OSError as error:
            raise NotShown(f"The cursor file {self._path!r} cannot be written: {error.strerror}") from None


def watch(
    session: Session,
    *,
    prefix: str | None,
    name: str | None,
    initial: bool,
    cursor_file: str | None,
    count: int | None,
    keep_going: bool,
    command: tuple[str, ...],
) -> Output:
    """Print every change, a line of JSON each, or run a command for each."""
    if (prefix is None) == (name is None):
        raise UsageError("Watch what? Give --prefix or --name")
    end_orderly()
    end = time.monotonic() + session.timeout(float("inf"))
    position = Position(cursor_file)
    position.load()
    handle = _Runner(command, end, session.tell, keep_going=keep_going) if command else _print
    first, _ = session.client()
    with first.sibling() as client, client.watch(prefix or "", name=name or "", since=position.cursor) as watching:
        _Watching(client, watching, position, handle, prefix, name, count).run(end, initial=initial)
    return output.NOTHING


class _Enough(Exception):
    """The given number of events has come."""


class _Watching:
    """Passes events on, and keeps the position after each."""

    def __init__(
        self,
        client: Client,
        watching: Watch,
        position: Position,
        handle: Callable[[Event], None],
        prefix: str | None,
        name: str | None,
        count: int | None,
    ) -> None:
        self._client = client
        self._watch = watching
        self._position = position
        self._handle = handle
        self._prefix = prefix
        self._name = name
        self._count = count
        self._seen = 0

    def run(self, end: float, *, initial: bool) -> None:
        """Go on until there were enough events.

        Raises:
            WaitTimeout: the time is over.
        """
        try:
            if not self._position.cursor:
                if initial:
                    self._list()
                self._position.save(self._watch.cursor)
                self._check()
            while True:
                try:
                    self._follow(end)
                except CursorExpired as error:
                    registry, _, known = self._watch.cursor.rpartition(":")
                    same = known.isdigit() and registry == error.cursor.rpartition(":")[0]
                    self._watch.cursor = error.cursor
                    self._pass(Event("reset", "", int(error.cursor.rpartition(":")[2] or 0), None))
                    self._list(int(known) if same else 0)
                    self._position.save(self._watch.cursor)
                    self._check()
                else:
                    raise WaitTimeout("The watch has ended: the time of --timeout is over")
        except _Enough:
            return

    def _follow(self, end: float) -> None:
        revision, at = 0, 0
        for event in self._watch.until(end):
            revision, at = event.revision, at + 1 if event.revision == revision else 0
            if self._position.is_done(event, at):
                continue
            self._pass(event)
            self._position.save(self._watch.cursor, revision, at + 1)
            self._check()

    def _list(self, after: int = 0) -> None:
        """Pass on the current entries, and let the watch go on after them.

        Args:
            after: entries without a change after this revision were passed on before.
        """
        if self._name is None:
            entries = dict(self._client.list(self._prefix or ""))
        else:
            try:
                entries = {self._name: self._client.get(self._name)}
            except NotFound:
                entries = {}
        known = self._client.response.get("revision")
        if self._name is None and isinstance(known, int):
            self._watch.skip(known)
        for name, found in sorted(entries.items(), key=lambda item: item[1].revision):
            if not found.revision or found.revision > after:  # a broker of an earlier version does not say it
                self._check()
                self._pass(Event("put", name, found.revision, found))

    def _pass(self, event: Event) -> None:
        self._handle(event)
        self._seen += 1

    def _check(self) -> None:
        """End when there were enough events, or a signal asked for it.

        Raises:
            _Enough: there were enough events.
            SystemExit: a signal asked for the end.
        """
        if isinstance(self._handle, _Runner) and self._handle.asked:
            raise SystemExit(128 + self._handle.asked)
        if self._count is not None and self._seen >= self._count:
            raise _Enough


def _print(event: Event) -> None:
    if sys.stdout is None:
        raise NotShown("The event cannot be written: standard output is closed")
    try:
        sys.stdout.buffer.write(f"{json.dumps(event.json(), ensure_ascii=False)}\n".encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
    except OSError as error:
        if reader_is_gone(error):
            raise BrokenPipeError from None
        raise NotShown(f"The event cannot be written to standard output: {error.strerror}") from None


class _Runner:
    """Runs a command for an event, until it succeeds.

    Args:
        command: its words.
        end: by :func:`time.monotonic`; it is not tried again after that.
        tell: prints a message for the person.
        keep_going: go on when it fails.
    """

    def __init__(self, command: tuple[str, ...], end: float, tell: Callable[[str], None], *, keep_going: bool) -> None:
        self._command = command
        self._end = end
        self._tell = tell
        self._keep_going = keep_going
        self.asked = 0
        """The signal that asked for the watch's end during a command that succeeded; 0: none."""

    def __call__(self, event: Event) -> None:
        """Handle an event.

        Raises:
            SystemExit: a signal asked for the end, and the command failed.
            WaitTimeout: the command failed, and the time is over.
        """
        text = json.dumps(event.json(), ensure_ascii=False)
        entry = "" if event.entry is None else for_system(json.dumps(event.entry, ensure_ascii=False))
        more = {
            "BPBROKER_EVENT": event.type,
            "BPBROKER_NAME": for_system(event.name),
            "BPBROKER_REVISION": str(event.revision),
            "BPBROKER_ENTRY": entry if len(os.fsencode(entry)) <= _ENVIRON_MAX else "",
        }
        pause = pauses()
        while True:
            keeper = Keeper(self._command, more, stdin=f"{text}\n".encode("utf-8", "replace"))
            code = keeper.run()
            if code == 0:
                self.asked = keeper.asked
                return
            if keeper.asked:
                raise SystemExit(128 + keeper.asked)
            what = f"The command ended with {code} for {event.type} {event.name}"
            if self._keep_going:
                self._tell(f"{what}; going on")
                return
            secs = next(pause)
            if time.monotonic() + secs >= self._end:
                raise WaitTimeout(f"{what}, and the time is over")
            self._tell(f"{what}; it is tried again")
            time.sleep(secs)


def gone(session: Session, *, name: str, wait: str | None) -> Output:
    """Wait until an entry is not there."""
    secs = seconds(wait) if wait else 0.0
    end = time.monotonic() + secs
    first, _ = session.client(secs)
    waiting = session.waiting_for(f"entry '{name}' on {first.address} to go")
    with waiting, first.sibling() as client, client.watch(name=name) as watching:
        while True:
            try:
                client.get(name)
            except NotFound:
                return output.of_response({}, b"")
            try:
                if not _changes(watching, end):
                    raise WaitTimeout(f"Entry '{name}' is still there after {secs:g} s")
            except CursorExpired as error:
                watching.cursor = error.cursor


def _changes(watching: Watch, end: float) -> bool:
    """Wait until the entry may be gone; return False when the time is over."""
    return any(event.type != "put" for event in watching.until(end))


def wait(
    session: Session, *, prefix: str, count: int, where: tuple[str, ...], fail_where: tuple[str, ...], fail_lost: bool
) -> Output:
    """Wait until enough entries are ready, or one cannot be any more."""
    secs = session.timeout(60.0)
    first, left = session.client(secs)
    with session.waiting_for(f"{count} entries '{prefix}…' on {first.address}"), first.sibling() as client:
        entries = client.barrier(prefix, count, where=where, fail_where=fail_where, fail_lost=fail_lost).wait(left)
    return output.of_names(list(entries), entries)
