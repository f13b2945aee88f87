"""The access log: one line for each request, text or JSON, never with its query, data or key.

The line of a change has the change's revision, and the name of the access key,
so the log tells afterwards whose key changed what. A batch has one more line
for each of its changes, and so has a call for each change that an extension
made in it, and the end of a session for each entry and lock that ended with it;
all have the request's id. A session that ends by itself has a line ``Expire``,
with the key that opened it.

Lines are collected and passed to the logger ``bpbroker.access`` every
twentieth of a second by a thread of its own: logging each one on its own cost
a third of a small request (measured: 30 of 90 µs), and a log that cannot be
written for a moment must not hold up clients.

The counts for metrics are made from the same batches, before they are logged and also if nothing is logged. So a log
that cannot be written delays no count.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

logger: Final = logging.getLogger("bpbroker.access")

_COLLECT_SECS: Final = 0.05
_LINES_MAX: Final = 100_000
"""Lines kept while the log cannot be written; beyond that the oldest are lost."""
_TEXT_MAX: Final = 256
_RECENT_MAX: Final = 500
"""How many lines are kept for the broker's pages. Requests for pages are not among them: there would be little
else."""

_quoted = json.encoder.encode_basestring_ascii


class Line(NamedTuple):
    """What is logged of a request."""

    address: str
    status: int
    sent_bytes: int
    """Size of the response's body."""
    request_id: str = ""
    namespace: str = ""
    method: str = ""
    name: str | None = None
    """The entry's name, when there is one."""
    started: float | None = None
    """Monotonic time at which the request was taken up."""
    key: str | None = None
    """The name of the access key, when it has one."""
    revision: int = 0
    """Revision of the change; 0 if nothing was changed."""
    within: bool = False
    """Whether the line is about a change, not about a request: a change within a request, or by the end of a
    session."""


Answered = tuple[float, float, Line]
"""Unix time and monotonic time of a response, and the request's line."""


class Lines:
    """Requests to be logged together; the log's format decides how they look.

    Args:
        answered: the requests.
    """

    def __init__(self, answered: Sequence[Answered]) -> None:
        self._answered = answered

    def as_json(self) -> list[str]:
        """Return a JSON object for each request."""
        return [as_json(*each) for each in self._answered]

    def as_text(self) -> list[tuple[float, str]]:
        """Return the Unix time and the text of each line."""
        return [(answered, as_text(monotonic, line)) for answered, monotonic, line in self._answered]

    def __str__(self) -> str:
        return "\n".join(self.as_json())


class _Book:
    """Lines that are not written yet, and the thread that writes them."""

    def __init__(self) -> None:
        self._lines: deque[Answered] = deque(maxlen=_LINES_MAX)
        """Lines that are not counted yet."""
        self._counted: deque[Answered] = deque(maxlen=_LINES_MAX)
        """Lines that are counted and not logged yet."""
        self.count: Callable[[Sequence[Answered]], object] | None = None
        self._woken = False
        self._some = threading.Event()
        self._counting = threading.Lock()
        self._writing = threading.Lock()
        self.recent: deque[tuple[float, float, Line]] = deque(maxlen=_RECENT_MAX)
        self._thread: threading.Thread | None = None

    def add(self, line: Line) -> None:
        self._lines.append((time.time(), time.monotonic(), line))
        if not self._woken:
            self._woken = True
            self._some.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
                self._thread.start()

    def collect(self) -> None:
        """Count the new lines, and move them to those that are to be logged."""
        with self._counting:
            take = self._lines.popleft
            answered = [take() for _ in range(len(self._lines))]
            if not answered:
                return
            if logger.isEnabledFor(logging.INFO):
                self._counted.extend(answered)
            if self.count is not None:
                try:
                    self.count(answered)
                except Exception:  # the log must go on
                    logging.getLogger(__name__).exception("Requests were not counted")

    def write(self) -> None:
        with self._writing:
            self._some.clear()
            self._woken = False
            self.collect()
            take = self._counted.popleft
            answered = [take() for _ in range(len(self._counted))]
            if answered:
                self.recent.extend([each for each in answered if each[2].namespace != "ui"])
                lines = Lines(answered)
                logger.info("%s", lines, extra={"lines": lines})

    def _run(self) -> None:
        while True:
            self._some.wait()
            time.sleep(_COLLECT_SECS)
            self.write()


_book: Final = _Book()


def write(line: Line) -> None:
    """Log and count a request whose response is ready."""
    if _book.count is not None or logger.isEnabledFor(logging.INFO):
        _book.add(_short(line))


def _short(line: Line) -> Line:
    """Return a line without text that is never shown: lines are kept for a while, and a name may be megabytes long."""
    name = line.name
    if len(line.namespace) + len(line.method) + (0 if name is None else len(name)) <= _TEXT_MAX:
        return line
    return line._replace(
        namespace=line.namespace[:_TEXT_MAX],
        method=line.method[:_TEXT_MAX],
        name=None if name is None else name[:_TEXT_MAX],
    )


def count_with(count: Callable[[Sequence[Answered]], object] | None) -> None:
    """Set the function that counts all requests from now on, a batch at a time, in any thread; None ends that."""
    _book.count = count


def collect() -> None:
    """Count all requests that had a response before this call."""
    _book.collect()


def recent() -> tuple[tuple[float, Line], ...] | None:
    """Return the last requests, oldest first, each with the Unix time of its response; None while the log is off."""
    if not logger.isEnabledFor(logging.INFO):
        return None
    return tuple((answered, line) for answered, _, line in tuple(_book.recent))


def flush() -> None:
    """Pass everything to the logger now."""
    _book.write()


def as_json(now: float, monotonic: float, line: Line) -> str:
    """Return the JSON line of a request; the times are the Unix time and the monotonic time of the response."""
    address, status, sent_bytes, request_id, namespace, method, name, started, key, revision, _ = line
    seconds = int(now)
    shown = "null" if name is None else _quoted(name[:_TEXT_MAX])
    by = "" if key is None else f'"key": {_quoted(key)}, '
    changed = f'"revision": {revision}, ' if revision else ""
    millis = 0.0 if started is None else (monotonic - started) * 1000
    return (
        f'{{"time": "{_second(seconds)}.{int((now - seconds) * 1000):03d}Z", "logger": "bpbroker.access", '
        f'"id": {_quoted(request_id)}, "address": {_quoted(address)}, {by}'
        f'"namespace": {_quoted(namespace[:_TEXT_MAX])}, '
        f'"method": {_quoted(method[:_TEXT_MAX])}, "name": {shown}, "status": {status}, {changed}'
        f'"ms": {millis:.2f}, "bytes": {sent_bytes}}}'
    )


def as_text(monotonic: float, line: Line) -> str:
    """Return the ``key=value`` pairs of a request; the time is the monotonic time of the response."""
    address, status, sent_bytes, request_id, namespace, method, name, started, key, revision, _ = line
    millis = 0.0 if started is None else (monotonic - started) * 1000
    named = "" if name is None else f" name={_word(name[:_TEXT_MAX])}"
    changed = f" revision={revision}" if revision else ""
    marked = f" id={_word(request_id)}" if request_id else ""
    return (
        f"{_caller(address, key, namespace, method)}{named}"
        f" status={status}{changed} ms={millis:.2f} bytes={sent_bytes}{marked}"
    )


@lru_cache(maxsize=1024)  # a client that repeats a call makes the same text each time
def _caller(address: str, key: str | None, namespace: str, method: str) -> str:
    """Return the pairs with client, namespace and method."""
    by = "" if key is None else f" key={_word(key)}"
    called = f" method={_word(f'{namespace[:_TEXT_MAX]}.{method[:_TEXT_MAX]}')}" if namespace or method else ""
    return f"address={_word(address)}{by}{called}"


_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:%/+-]+")


def _word(text: str) -> str:
    """Return text unchanged if it is one plain word, otherwise escaped in quotes."""
    return text if _PLAIN.fullmatch(text) else _quoted(text)


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
