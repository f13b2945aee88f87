"""The broker's log: text or JSON, to standard error or to a file that rotates and can be reopened.

Standard error suits journald (a priority instead of the time, which journald
knows itself) and a terminal (colour, unless ``NO_COLOR``). A file is rotated by
size, and opened anew by :func:`reopen_logs` when logrotate moved it, see
:mod:`bpbroker.runtime.log_files`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol, TextIO

from bpbroker import files
from bpbroker.runtime.log_files import LogFile, LogStream, Outlet, Writer, handler_of

FORMATS: Final = ("text", "json")
SAME: Final = "same"
OFF: Final = "off"
_ACCESS: Final = "bpbroker.access"
LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Where the log goes and how it looks."""

    file: Path | None = None
    """None is standard error."""
    format: str = "text"
    """One of :data:`FORMATS`."""
    level: str = "info"
    """One of :data:`LEVELS`."""


def setup_logging(options: LogOptions) -> None:
    """Send everything that the process logs where ``options`` say; replaces what an earlier call set up.

    Warnings of Python and errors that end a thread go to the log too.

    Raises:
        ConfigurationError, StartError: the file cannot be written.
    """
    handler = _handler(options.file)
    handler.setFormatter(_formatter(options))
    root = logging.getLogger()
    for old in [old for old in root.handlers if getattr(old, _OURS, False)]:
        root.removeHandler(old)
        old.close()
    setattr(handler, _OURS, True)
    root.addHandler(handler)
    set_access_log(SAME)
    root.setLevel(options.level.upper())
    logging.raiseExceptions = False  # a full disk must not fill standard error with tracebacks of the log itself
    logging.captureWarnings(capture=True)
    threading.excepthook = _log_thread_error


def reopen_logs() -> str:
    """Close and open the log file again, so that a file moved away by logrotate is let go.

    Returns:
        Why that could not be, in one line; the log goes on in the file before then.
    """
    faults = [handler.reopen() for handler in _outlets() if isinstance(handler, LogFile)]
    return "; ".join(fault for fault in faults if fault)


def log_trouble() -> str:
    """Return what is wrong with the log, in one line; empty when nothing is."""
    return "; ".join(handler.trouble for handler in _outlets() if handler.trouble)


def set_access_log(where: str) -> None:
    """Send the lines of requests where the setting ``api.access_log`` says.

    A file of their own has them as JSON whatever the log's format and level are.

    Args:
        where: :data:`SAME` as all else, :data:`OFF`, or the path of a file.

    Raises:
        ConfigurationError, StartError: the file cannot be opened; the lines go where they went before.
    """
    access = logging.getLogger(_ACCESS)
    before = [handler for handler in access.handlers if getattr(handler, _OURS, False)]
    own = where not in (SAME, OFF) and not _goes_to(logging.getLogger().handlers, where)
    if own and _goes_to(before, where):
        return
    if own:
        try:
            handler = handler_of(Path(where))
        except OSError as error:
            raise files.start_error(f"Cannot write the access log {where}: {error.strerror}", error) from None
        handler.setFormatter(JsonFormatter())
        setattr(handler, _OURS, True)
        access.addHandler(handler)
    access.setLevel(logging.INFO if own else logging.NOTSET)
    access.propagate = not own
    access.disabled = where == OFF
    for old in before:
        access.removeHandler(old)
        old.close()


def _goes_to(handlers: list[logging.Handler], path: str) -> bool:
    """Whether one of these writes that file: two that rotate one file would lose lines."""
    return any(isinstance(each, LogFile) and Path(each.baseFilename) == Path(path).absolute() for each in handlers)


def _outlets() -> list[Outlet]:
    handlers = [*logging.getLogger().handlers, *logging.getLogger(_ACCESS).handlers]
    return [handler for handler in handlers if isinstance(handler, Outlet)]


_OURS: Final = "_bpbroker_log"


def _log_thread_error(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else "?"
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        logging.getLogger(__name__).error("The thread %s ended with an error", name, exc_info=error)


def _handler(file: Path | None) -> Outlet:
    if file is None:
        if sys.platform == "win32" or not _has_descriptor(sys.stderr):
            return LogStream(sys.stderr)
        return LogStream(Writer(os.dup(sys.stderr.fileno())))
    try:
        return handler_of(file)
    except OSError as error:
        raise files.start_error(f"Cannot write the log file {file}: {error.strerror}", error) from None


def _has_descriptor(stream: TextIO) -> bool:
    try:
        os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return True


def _formatter(options: LogOptions) -> logging.Formatter:
    if options.format == "json":
        return JsonFormatter()
    if options.file:
        return TextFormatter()
    if goes_to_journal(sys.stderr, os.environ):
        return JournalFormatter()
    return TextFormatter(colour=sys.stderr.isatty() and not os.environ.get("NO_COLOR"))


def goes_to_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether ``stream`` is the one that systemd connected to its journal (``JOURNAL_STREAM`` of systemd.exec(5))."""
    try:
        state = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{state.st_dev}:{state.st_ino}"


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def escaped(text: str) -> str:
    """Return text with its control characters escaped: what a client sends must not look like a line of its own."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Requests(Protocol):
    """What a record of the access log carries as its ``lines``."""

    def as_json(self) -> list[str]: ...

    def as_text(self) -> list[tuple[float, str]]: ...


def _requests(record: logging.LogRecord) -> _Requests | None:
    """Return the requests that a record of the access log stands for; None for all other records."""
    lines: _Requests | None = getattr(record, "lines", None)
    return lines


def _time(record: logging.LogRecord) -> str:
    return _moment(record.created)


def _moment(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=4)  # many lines are of one second
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")


_COLOURS: Final = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


class TextFormatter(logging.Formatter):
    """``time LEVEL logger: message``, the time in UTC; a traceback follows on lines of its own, indented."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        level = f"{record.levelname:<7}"
        requests = _requests(record)
        if requests is not None:
            head = f" {level} {record.name}: "
            return "\n".join([f"{_moment(at)}{head}{text}" for at, text in requests.as_text()])
        if self._colour and record.levelname in _COLOURS:
            level = f"\x1b[{_COLOURS[record.levelname]}m{level}\x1b[0m"
        return self.with_trace(f"{_time(record)} {level} {record.name}: {escaped(record.getMessage())}", record)

    def with_trace(self, line: str, record: logging.LogRecord) -> str:
        """Return the line with the record's traceback below it."""
        trace = _trace(self, record)
        return line if trace is None else "\n    ".join([line, *trace.splitlines()])


class JournalFormatter(TextFormatter):
    """A line for journald: the priority in front (sd-daemon(3)), and no time."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; each line of a traceback has the priority too, as journald reads line by line."""
        requests = _requests(record)
        if requests is None:
            lines = self.with_trace(f"{record.name}: {escaped(record.getMessage())}", record).splitlines()
        else:
            lines = [f"{record.name}: {text}" for _, text in requests.as_text()]
        prefix = f"<{_priority(record.levelno)}>"
        return "\n".join(prefix + line for line in lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, what was given as ``extra``, ``error``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        requests = _requests(record)
        if requests is not None:
            return "\n".join(requests.as_json())
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update((key, value) for key, value in record.__dict__.items() if key not in _STANDARD)
        trace = _trace(self, record)
        if trace is not None:
            fields["error"] = trace
        return json.dumps(fields, default=str, ensure_ascii=True)


_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""Attributes that every record has; others were given as ``extra``."""


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    if record.exc_info and not record.exc_text:
        record.exc_text = formatter.formatException(record.exc_info)
    return record.exc_text or None


def _priority(level: int) -> int:
    """Return syslog's number for a level."""
    for number, floor in ((2, logging.CRITICAL), (3, logging.ERROR), (4, logging.WARNING), (6, logging.INFO)):
        if level >= floor:
            return number
    return 7
