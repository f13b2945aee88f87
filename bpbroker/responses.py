"""Answers of the frontend: what is sent, in which form, and answers that come later."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from bpbroker.errors import MethodNotAllowed, RequestError, TimedOut
from bpbroker.messages import Record

JSON_TYPE: Final = "application/json"
_REASON_MAX: Final = 200
_UNSAFE: Final = re.compile(r"[^\x20-\x7e\xa0-\xff]+")

_SUCCESS: Final = b'{"success": true, "message": "Success", "data": '


@dataclass(frozen=True, slots=True)
class Response:
    """One answer."""

    status: int
    body: bytes
    reason: str = ""
    """The reason phrase; the standard one when empty."""
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def status_line(self) -> str:
        """Give status and reason phrase, safe to be sent."""
        return f"{self.status} {reason_phrase(self.reason) if self.reason else _standard(self.status)}"


def _standard(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def reason_phrase(text: str) -> str:
    """Give text as one line that fits into a status line: no control characters, Latin-1, bounded."""
    return _UNSAFE.sub(" ", text).strip()[:_REASON_MAX] or "Error"


def success(data: bytes, etag: str | None = None) -> Response:
    """Give a registry's success; ``data`` is JSON."""
    return Response(200, b"%s%s}" % (_SUCCESS, data), headers=(("ETag", etag),) if etag else ())


def success_with(data: Any) -> Response:
    """Give a success whose data is any JSON value."""
    return success(json.dumps(data, ensure_ascii=False).encode())


def entry(record: Record) -> Response:
    """Give one entry with its tag."""
    return success(record.json, record.etag)


def entries(records: tuple[Record, ...]) -> Response:
    """Give several entries as one object, in their order."""
    return success(b"{%s}" % b", ".join(b"%s: %s" % (json.dumps(item.name).encode(), item.json) for item in records))


DELETED: Final = Response(200, b'{"success": true, "message": "Success"}')


def failure(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Give an error in the shape that every error of the broker has."""
    body = json.dumps({"success": False, "message": message, "data": {}}, ensure_ascii=False)
    return Response(status, body.encode("utf-8", "replace"), message, headers=headers)


def of_error(error: RequestError) -> Response:
    """Give the answer that an error means."""
    headers: list[tuple[str, str]] = []
    if error.retry_after_secs is not None:
        headers.append(("Retry-After", str(error.retry_after_secs)))
    if isinstance(error, MethodNotAllowed):
        headers.append(("Allow", ", ".join(error.allow)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers.append(("WWW-Authenticate", "Bearer"))
    return failure(error.status, str(error), tuple(headers))


@dataclass(slots=True)
class Later:
    """An answer that an actor owes; iterable as WSGI wants it, or parked by a server that knows it.

    An ordinary WSGI server blocks while it iterates; :mod:`bpbroker.server`
    calls :meth:`when_done` instead and lets its worker thread go.
    """

    reply: Future[Any]
    render: Callable[[Future[Any]], Response]
    """Makes the answer of a reply that is done."""
    send: Callable[[Response], None]
    """Gives status and headers to the server, and logs the call."""
    timeout_secs: float
    _body: bytes | None = field(default=None)

    def when_done(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called, in whatever thread, once the reply is there."""
        self.reply.add_done_callback(lambda _: callback())

    def give_up(self) -> None:
        """Settle the reply with a timeout: its actor took too long, or the client has gone."""
        if not self.reply.cancel() and not self.reply.done():
            self.reply.set_exception(TimedOut("The broker did not answer in time; the outcome is not known"))

    def __iter__(self) -> Iterator[bytes]:
        try:
            self.reply.exception(self.timeout_secs)
        except (FutureTimeout, CancelledError):
            self.give_up()
        response = self.render(self.reply)
        self.send(response)
        yield response.body


def rendered(
    reply: Future[Any], show: Callable[[Any], Response], broken: Callable[[BaseException], Response]
) -> Response:
    """Make the answer of a reply that is done: ``show`` its value, tell its error, or say that something broke."""
    if reply.cancelled():
        return of_error(TimedOut("The broker did not answer in time; whether something was changed is not known"))
    error = reply.exception(0)
    if error is None:
        return show(reply.result(0))
    return of_error(error) if isinstance(error, RequestError) else broken(error)


def plain(value: Any) -> Any:
    """Give a message's value as JSON values: mappings as objects, tuples as lists, dataclasses by their fields."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is not None:
        return {name: plain(getattr(value, name)) for name in fields}
    return value
