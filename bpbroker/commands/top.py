"""``bpbroker top``: the running broker's numbers in a terminal, anew every second."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

import click

from bpbroker import progress, windows
from bpbroker.commands.local import LocalBroker, must_run, running
from bpbroker.commands.scope import Scope, command, pass_scope
from bpbroker.commands.tables import echo_json, shown_age
from bpbroker.commands.top_figures import Reading, figures
from bpbroker.commands.top_screen import picture
from bpbroker.errors import BpbrokerError, CannotConnect, RequestError, StartError, WaitTimeout

_ANSWER_SECS: Final = 4.0
_HOME: Final = "\x1b[H"
_CLEAR: Final = "\x1b[2J"
_TO_END_OF_LINE: Final = "\x1b[K"
_TO_END: Final = "\x1b[J"
_CURSOR_OFF: Final = "\x1b[?25l"
_CURSOR_ON: Final = "\x1b[?25h"


@command("top", short_help="Show what the running broker does, every second")
@click.option("--once", is_flag=True, help="Show it once, for scripts; also where standard output is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="With --once: as JSON on one line.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two pictures, and the time over which rates are counted.",
)
@pass_scope
def top(scope: Scope, *, once: bool, as_json: bool, interval: float) -> None:
    """Show requests, registry, commits, connections, extensions and parts of the broker that runs on this machine.

    Ctrl-C ends it. HALF and 99 % are the times that half of the requests and 99 of 100 did not exceed.
    """
    progress.show_on(None)  # it has the whole screen
    if as_json and not once:
        raise click.UsageError("--json goes with --once")
    if once or not _is_screen(sys.stdout):
        _show_once(scope, interval, as_json=as_json)
        return
    try:
        with _screen(sys.stdout):
            _go_on(scope, interval, sys.stdout)
    except KeyboardInterrupt:
        return


def _is_screen(stream: TextIO | None) -> bool:
    """Whether a picture can be painted over the one before."""
    if stream is None or not stream.isatty():
        return False
    if sys.platform == "win32":
        return windows.paints(stream.fileno())
    return os.environ.get("TERM", "dumb") not in ("", "dumb")


def _show_once(scope: Scope, interval_secs: float, *, as_json: bool) -> None:
    broker = must_run(scope)
    try:
        before = _read(broker)
        time.sleep(interval_secs)
        found = figures(before, _read(broker), time.time())
        troubles = _troubles(broker, found)
    except (CannotConnect, WaitTimeout) as error:
        raise _gone(scope, broker, error) from None
    if as_json:
        echo_json(
            {
                **found,
                "troubles": troubles,
                "pid": broker.pid,
                "port": broker.note.get("port"),
                "config": str(scope.own),
            }
        )
        return
    width = shutil.get_terminal_size((120, 24)).columns
    for line in picture(found, _heading(scope, broker, found), troubles, width, None, colour=False):
        click.echo(line)


def _go_on(scope: Scope, interval_secs: float, screen: TextIO) -> None:
    """Paint until an interrupt, or until no broker runs."""
    broker = must_run(scope)
    before: Reading | None = None
    painted: list[str] = []
    size = None
    while True:
        began = time.monotonic()
        try:
            broker = must_run(scope)
            after = _read(broker)
            found = figures(before or Reading(after.at - interval_secs, after.samples), after, time.time())
            troubles = _troubles(broker, found)
            heading = _heading(scope, broker, found)
            before = after
        except (CannotConnect, WaitTimeout, RequestError) as error:
            if running(scope) is None:
                raise _gone(scope, broker, error) from None
            heading, troubles = "", []
            painted = [f"The broker (process {broker.pid}) does not answer: {error}", *painted[1:]]
        columns, rows = _size(screen)
        if heading:
            colour = not os.environ.get("NO_COLOR")
            # The last column and row stay empty: some terminals scroll when they are written to.
            painted = picture(found, heading, troubles, columns - 1, rows - 1, colour=colour)
        if size != (columns, rows):
            size = columns, rows
            screen.write(_CLEAR)
        screen.write(_HOME + "".join(f"{line}{_TO_END_OF_LINE}\n" for line in painted) + _TO_END)
        screen.flush()
        time.sleep(max(0.05, interval_secs - (time.monotonic() - began)))


def _size(screen: TextIO) -> tuple[int, int]:
    """Return the present columns and rows of the terminal; COLUMNS may have those of its start."""
    try:
        found = os.get_terminal_size(screen.fileno())
    except (OSError, ValueError):
        found = shutil.get_terminal_size((80, 24))
    return (found.columns, found.lines) if found.columns and found.lines else (80, 24)


def _read(broker: LocalBroker) -> Reading:
    samples = broker.ask("Metrics", timeout_secs=_ANSWER_SECS)
    return Reading(time.monotonic(), samples)


def _heading(scope: Scope, broker: LocalBroker, found: dict[str, Any]) -> str:
    up, clock = shown_age(found["uptime_secs"] or 0), time.strftime("%H:%M:%S")
    name = f"bpbroker {found['version']}, process {broker.pid}"
    return f"{name}, up {up}, port {broker.note.get('port')}, {clock}, {scope.own}"


def _troubles(broker: LocalBroker, found: dict[str, Any]) -> list[str]:
    """Return what is not well, a sentence each; the broker is asked for words only if something is not."""
    if found["ok"] and all(part["ok"] for part in found["parts"]):
        return []
    try:
        report = broker.ask("Status", timeout_secs=_ANSWER_SECS)
    except BpbrokerError as error:
        return [f"its healthcheck: {error}"]
    return [f"{part['name']}: {part['detail']}" for part in report["parts"] if part["state"] == "fail"]


def _gone(scope: Scope, broker: LocalBroker, error: BpbrokerError) -> StartError:
    if running(scope) is None:
        return StartError(f"The broker (process {broker.pid}) has ended")
    return StartError(f"The broker runs (process {broker.pid}), but: {error}")


@contextmanager
def _screen(stream: TextIO) -> Iterator[None]:
    """Hide the cursor, and show it again at the end, also after an error or a signal that ends this process."""

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None:
            before[number] = signal.signal(number, end)
    stream.write(_CURSOR_OFF + _CLEAR)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            stream.write(_CURSOR_ON)
            stream.flush()
        for number, handler in before.items():
            signal.signal(number, handler)
