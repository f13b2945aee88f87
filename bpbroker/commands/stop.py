"""``bpbroker stop``: tell the running broker to end, and wait until it has."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable

import click

from bpbroker import files, progress
from bpbroker.commands.local import LocalBroker, running
from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.errors import StartError
from bpbroker.storage.lock_file import holder, is_process_of, lock_path

STOP_SECS = 30.0
_POLL_SECS = 0.05
_SAID_EVERY_SECS = 10.0


@command("stop", short_help="Stop the running broker")
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=STOP_SECS,
    show_default=True,
    help="Seconds to wait without any progress.",
)
@pass_scope
def stop(scope: Scope, *, timeout: float) -> None:
    """Stop the running broker: it writes its configuration file and ends. Wait until it has ended.

    Writing takes as long as the disk needs; the command waits as long as it goes on. No error if no broker runs.
    """
    broker = running(scope)
    if broker is None:
        click.echo(f"No broker runs on {scope.own}.", err=True)
        return
    ended = _end(scope, broker)
    if not _ends(scope, ended, timeout):
        raise StartError(
            f"The broker (process {broker.pid}) has not ended, and made no progress for {timeout:g} s. "
            "No acknowledged write is lost if it is killed."
        )
    click.echo(f"The broker (process {broker.pid}) has ended.", err=True)


def _ends(scope: Scope, ended: Callable[[float], bool], timeout_secs: float) -> bool:
    """Wait until the broker has ended; False when it has made no progress for so long."""
    said_at, work = time.monotonic(), None
    end = said_at + timeout_secs
    with progress.Work("Waiting for the broker to end") as waiting:
        while not ended(min(1.0, max(0.0, end - time.monotonic()))):
            now, before = time.monotonic(), work
            work = (holder(scope.own) or {}).get("at_work")
            if work != before:
                end = now + timeout_secs
                waiting.what = f"The broker is {work}"
                if now - said_at >= _SAID_EVERY_SECS and not progress.is_shown():
                    said_at = now
                    click.echo(f"The broker is still {work} …", err=True)
            elif now >= end:
                return False
    return True


def _end(scope: Scope, broker: LocalBroker) -> Callable[[float], bool]:
    """Tell the broker to end; return a function that waits for that, so many seconds at most."""

    def released(timeout_secs: float) -> bool:
        end = time.monotonic() + timeout_secs
        while (note := holder(scope.own)) is not None and note.get("pid") == broker.pid:
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_SECS)
        return True

    if sys.platform == "win32":  # a signal would end it as a power cut does
        broker.ask("Stop")
        return released
    _see_that_the_note_can_be_trusted(scope, broker)
    if not hasattr(os, "pidfd_open"):
        _signal(broker, lambda: os.kill(broker.pid, signal.SIGTERM))
        return released
    try:
        process = os.pidfd_open(broker.pid)
    except ProcessLookupError:
        return released
    # Between looking and signalling the broker may have ended, and another process may have got its number: now that
    # the process is held, look again.
    note = holder(scope.own)
    if note is None or note.get("pid") != broker.pid or not is_process_of(note):
        return released
    _signal(broker, lambda: signal.pidfd_send_signal(process, signal.SIGTERM))

    def ended(timeout_secs: float) -> bool:
        return bool(select.select([process], [], [], timeout_secs)[0])

    return ended


def _see_that_the_note_can_be_trusted(scope: Scope, broker: LocalBroker) -> None:
    """Check that a signal to the process in the note reaches the broker and nothing else.

    The note lies in the configuration's folder. Where that is another user's,
    that user may have written any number into it: root signals with that
    user's rights only.

    Raises:
        StartError: the process is not the one that wrote the note, or the folder can be written to by others.
    """
    scope.act_as_owner()
    if files.untrusted(scope.own.parent):
        raise StartError(
            f"Root signals no process that {lock_path(scope.own)} names: other users can write to that folder. "
            f"Stop the broker (process {broker.pid}) as its own user"
        )
    if not is_process_of(broker.note):
        raise StartError(
            f"The broker on {scope.own} is no process of this system, or of this container: it is process {broker.pid} "
            "in another one. Stop it there"
        )


def _signal(broker: LocalBroker, send: Callable[[], None]) -> None:
    try:
        send()
    except ProcessLookupError:
        pass
    except PermissionError:
        raise StartError(f"This user may not end the broker (process {broker.pid}); try as its own user") from None
