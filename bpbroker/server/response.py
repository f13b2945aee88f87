"""Responses: their content and form, and responses that come later."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from bpbroker.errors import MethodNotAllowed, RequestError, TimedOut, Unavailable
from bpbroker.messages import Deleted, HealthReport, fail
from bpbroker.record import Record

JSON_TYPE: Final = "application/json"
SERVER_NAME: Final = "bpbroker"
_BODILESS: Final = frozenset({204, 304})
_REASON_MAX: Final = 200
_UNSAFE: Final = re.compile(r"[^\x20-\x7e\xa0-\xff]+")

_SUCCESS: Final = b'{"success": true, "message": "Success", "data": '
as_json: Final = json.JSONEncoder(ensure_ascii=False).encode
"""Returns a value as JSON text. One encoder for all calls: ``json.dumps`` makes a new one for each."""
_PHRASES: Final = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


class Response(NamedTuple):
    """One HTTP response, complete: nothing is streamed."""

    status: int
    body: bytes
    reason: str = ""
    """The reason phrase; the standard one when empty."""
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def status_line(self) -> str:
        """Status and reason phrase, safe to be sent."""
        if self.reason:
            return f"{self.status} {reason_phrase(self.reason)}"
        return _PHRASES.get(self.status) or f"{self.status} Unknown"


def encode(answer: Response, *, keep_alive: bool = False, old: bool = False, with_body: bool = True) -> bytes:
    """Return the bytes of a response, head and body.

    Args:
        answer: the response.
        keep_alive: whether the connection goes on after it.
        old: whether the request was HTTP/1.0, which needs ``Connection: keep-alive`` in the response.
        with_body: False for the response to a HEAD request.

    Raises:
        ValueError: a header cannot be sent.
    """
    status, body, _, content_type, headers = answer
    if status in _BODILESS:
        typed, body = "", b""
    else:
        typed = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    more = "".join([f"{name}: {value}\r\n" for name, value in headers]) if headers else ""
    ending = "" if keep_alive and not old else f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n"
    head = f"HTTP/1.1 {answer.status_line}\r\n{typed}{more}{_date_and_server()}{ending}\r\n"
    # One more line end would be a header, or a response, of its own.
    lines = 4 + len(headers) + (2 if typed else 0) + (1 if ending else 0)
    if head.count("\n") != lines or head.count("\r") != lines:
        raise ValueError("A header of the response cannot be sent")
    return head.encode("latin-1") + body if with_body else head.encode("latin-1")


_date: tuple[float, str] = (0.0, "")


def _date_and_server() -> str:
    """Return the fields ``Date`` and ``Server``; formatting a date costs 6 µs, so it is kept for its second."""
    global _date  # noqa: PLW0603 - a cache of one value, replaced as a whole
    now = time.time()
    until, text = _date
    if now >= until or now < until - 1:
        text = f"Date: {formatdate(now, usegmt=True)}\r\nServer: {SERVER_NAME}\r\n"
        _date = (int(now) + 1.0, text)
    return text


def reason_phrase(text: str) -> str:
    """Return text as one line that fits into a status line: no control characters, Latin-1, bounded."""
    return _UNSAFE.sub(" ", text[: 4 * _REASON_MAX]).strip()[:_REASON_MAX] or "Error"


def success(data: bytes, *, revision: int | None = None) -> Response:
    """Return a registry's success; ``data`` is JSON."""
    more = b"" if revision is None else b', "revision": %d' % revision
    return Response(200, b"%b%b%b}" % (_SUCCESS, data, more), "", JSON_TYPE)


def success_with(data: Any, revision: int | None = None) -> Response:
    """Return a success whose data is any JSON value."""
    return success(as_json(data).encode(), revision=revision)


def entry(record: Record) -> Response:
    """Return one entry with its tag."""
    age = b"" if record.age_secs is None else _age(record.age_secs)
    body = b'%b%b, "revision": %d%b}' % (_SUCCESS, record.json, record.revision, age)
    return Response(200, body, "", JSON_TYPE, (("ETag", record.etag),))


def entries(records: tuple[Record, ...], age_secs: float | None = None) -> Response:
    """Return several entries as one object, in their order; with an age if they may be old."""
    parts, revisions = [_SUCCESS, b"{"], [b'}, "revisions": {']
    for item in records:
        # Joined once: a list of all entries may be as large as the registry.
        name = as_json(item.name).encode()
        parts += (name, b": ", item.json, b", ")
        revisions += (name, b": %d" % item.revision, b", ")
    if records:
        parts.pop()
        revisions.pop()
    newest = max([item.revision for item in records], default=0)
    parts += revisions
    parts += (b'}, "revision": %d' % newest, b"" if age_secs is None else _age(age_secs), b"}")
    return Response(200, b"".join(parts))


def size_of_entries(records: tuple[Record, ...]) -> int:
    """Return about how many bytes :func:`entries` makes of these records."""
    return sum([len(item.json) + 2 * len(item.name) + 30 for item in records])


def _age(secs: float) -> bytes:
    """Return the member beside ``data`` that says how old a local read may be."""
    return b', "age_secs": %.3f' % secs


DELETED: Final = Response(200, b'{"success": true, "message": "Success"}')


def deleted(reply: Deleted) -> Response:
    """Return the success of a deletion; with its revision if there was something to delete."""
    if not reply.revision:
        return DELETED
    return Response(200, b'{"success": true, "message": "Success", "revision": %d}' % reply.revision)


def failure(
    status: int,
    message: str,
    headers: tuple[tuple[str, str], ...] = (),
    data: Mapping[str, Any] | None = None,
    failed: int | None = None,
    revision: int | None = None,
) -> Response:
    """Return an error in the shape that every error of the broker has."""
    shown: dict[str, Any] = {"success": False, "message": message, "data": dict(data or {})}
    if revision is not None:
        shown["revision"] = revision
    if failed is not None:
        shown["failed"] = failed
    body = json.dumps(shown, ensure_ascii=False)
    return Response(status, body.encode("utf-8", "replace"), message, headers=headers)


def of_error(error: RequestError) -> Response:
    """Return the response to an error."""
    headers: list[tuple[str, str]] = []
    if error.retry_after_secs is not None:
        headers.append(("Retry-After", str(error.retry_after_secs)))
    if isinstance(error, MethodNotAllowed):
        headers.append(("Allow", ", ".join(error.allow)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers.append(("WWW-Authenticate", "Bearer"))
    revision = error.entry_revision
    if revision is not None:
        headers.append(("ETag", f'"{revision}"'))
        if error.status == HTTPStatus.CONFLICT and error.failed is None:
            revision = None  # this body stays as clients of 0.22 know it
    return failure(error.status, str(error), tuple(headers), error.data, error.failed, revision)


class PendingResponse:
    """A response for which an actor has to be asked; the server parks the connection meanwhile.

    Only :meth:`ask` asks the actor. A server that has read several requests at one time asks for all of them together,
    so that the actor's thread wakes up once (measured: twice the throughput at 16 clients).

    Args:
        ask: asks the actor; raises an error if the actor cannot be asked.
        finish: makes the response of a finished reply.
        timeout_secs: how long the actor may take.
        heavy: whether ``finish`` may take more than a millisecond.
        patient: whether the client asked to wait; a broker that stops then does not wait.
    """

    __slots__ = ("_ask", "_finish", "heavy", "patient", "reply", "timeout_secs")

    def __init__(
        self,
        ask: Callable[[], Future[Any]],
        finish: Callable[[Future[Any]], Response],
        timeout_secs: float,
        *,
        heavy: bool = False,
        patient: bool = False,
    ) -> None:
        self.reply: Future[Any] | None = None
        self.timeout_secs = timeout_secs
        self.heavy = heavy
        self.patient = patient
        self._ask = ask
        self._finish = finish

    def ask(self, done: Callable[[Future[Any]], object] | None = None) -> None:
        """Ask the actor; ``done`` is called, in any thread, once the reply is there."""
        try:
            reply = self._ask()
        except Exception as error:  # noqa: BLE001 - becomes the response, as what the actor itself raises does
            reply = Future()
            reply.set_exception(error)
        self.reply = reply
        if done is not None:
            reply.add_done_callback(done)

    @property
    def done(self) -> bool:
        """Whether the reply is there."""
        return self.reply is not None and self.reply.done()

    def give_up(self) -> None:
        """Stop waiting: the actor took too long, or the client has gone."""
        if self.reply is not None:
            self.reply.cancel()

    def stop(self) -> None:
        """End the wait of a client that asked to wait: the broker is stopping."""
        if self.patient and self.reply is not None:
            fail(self.reply, Unavailable("The broker is stopping; try again"))

    def response(self) -> Response:
        """Return the response; only when the reply is done."""
        assert self.reply is not None  # noqa: S101 - only after ask()
        return self._finish(self.reply)


LATE: Final = TimedOut("The broker did not answer in time; whether something was changed is not known")


def rendered(
    reply: Future[Any],
    show: Callable[[Any], Response],
    broken: Callable[[BaseException], Response],
    late: RequestError = LATE,
) -> Response:
    """Return the response of a finished reply: ``show`` its value, its error, or that of an unexpected error.

    ``late`` is the error if the wait for the reply was ended.
    """
    try:
        value = reply.result(0)  # each access to a future locks it: one is enough
    except CancelledError:
        return of_error(late)
    except RequestError as error:
        return of_error(error)
    except Exception as error:  # noqa: BLE001 - the edge: it becomes an answer
        return broken(error)
    return show(value)


def health(report: HealthReport) -> Response:
    """Return the health: 200 when all is well, else 503."""
    body = {
        "success": report.ok,
        "message": "Success" if report.ok else "Not healthy",
        "data": plain(report),
    }
    return Response(200 if report.ok else 503, json.dumps(body).encode(), "" if report.ok else "Not healthy")


def plain(value: Any) -> Any:
    """Return a message's value as JSON values: mappings as objects, tuples as lists, dataclasses by their fields."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is not None:
        return {name: plain(getattr(value, name)) for name in fields}
    return value
