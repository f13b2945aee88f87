"""What a method of an extension works with: ``rh``.

Authors import these names from :mod:`bpbroker.extensions`::

    from bpbroker.extensions import Error, Request

    def Hello(rh: Request) -> None:
        if "data" not in rh.qs:
            raise Error(400, "Who is calling?")
        rh.data = {"hello": rh.qs["data"], "from": rh.RequestingHost()}

Modules written for 0.22 run as they are; ``registry``, ``log``, ``config`` and
``request_id`` are new.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from http.client import responses
from typing import Any, Final, NamedTuple

from bpbroker.extensions.rh_registry import Registry
from bpbroker.messages import CallResult

ANSWER_MAX_BYTES: Final = 16 * 1024 * 1024
"""Largest ``rh.data`` that is sent to a client."""

MESSAGE_MAX: Final = 500
"""Longest status message, in characters."""

_CONTENT_TYPE: Final = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+*-]+(?:[ \t]*;[ \t]*[!-~]+)*", re.ASCII)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class Caller(NamedTuple):
    """Who calls a method."""

    name: str
    """The name of the access key; empty for a caller without a named one."""
    address: str
    """The client's address as text."""


class Unsendable(Exception):
    """What a method left in ``rh`` cannot be sent; the text says why."""


class Request:
    """One call of a method: the request of the client, and its response.

    A method reads ``qs`` and sets ``data``, or ``status`` and ``status_message``.
    """

    def __init__(
        self,
        *,
        qs: Mapping[str, str],
        source: str,
        request_id: str,
        config: Mapping[str, Any],
        registry: Registry,
        log: logging.Logger,
        caller: str = "",
    ) -> None:
        self.qs: dict[str, str] = dict(qs)
        """First value of each parameter; the access key is never among them."""
        self.data: Any = None
        """The answer's body: bytes, text (sent in UTF-8), a dict or a list (sent as JSON), or None (empty)."""
        self.status: int | str = 200
        """HTTP status of the answer, 200 to 599 (as text too, which modules for 0.22 may set)."""
        self.status_message: str = ""
        """The message for the client if ``status`` is not 200; one line."""
        self.content_type: str = "application/json"
        self.config = config
        """The extension's own section of the configuration, read-only."""
        self.registry = registry
        self.log = log
        """Goes to the broker's log."""
        self.request_id = request_id
        """Identifies the call in the broker's logs and in the client's answer."""
        self.caller = Caller(caller, source)
        """Who calls, to narrow further what a key may do."""
        self._source = source

    def RequestingHost(self) -> str:  # noqa: N802 - the protocol's name
        """Return the client's address as text."""
        return self._source


def result_of(rh: Request) -> CallResult:
    """Return the answer that a finished method left in ``rh``.

    Raises:
        Unsendable: it set something that cannot be sent.
    """
    status: object = rh.status
    if isinstance(status, str) and re.fullmatch(r"[2-5]\d\d", status, re.ASCII):
        status = int(status)
    succeeded = isinstance(status, int) and 200 <= status < 300
    return checked(status, rh.status_message, rh.content_type, _body(rh.data) if succeeded else b"")


def refusal(status: object, message: object) -> CallResult:
    """Return the answer to a call that its method refused by raising.

    Raises:
        Unsendable: the status is none of an error.
    """
    if isinstance(status, int) and status < 400:
        raise Unsendable(f"an error was raised with status {status}, which is no error")
    return checked(status, str(message), "application/json", b"")


def checked(status: object, message: object, content_type: object, body: bytes) -> CallResult:
    """Return a response after a check that it can be sent.

    Raises:
        Unsendable: a part of it cannot be sent; the text says which.
    """
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
        raise Unsendable(f"rh.status is {status!r:.40}, not a number from 200 to 599")
    if not isinstance(message, str):
        raise Unsendable(f"rh.status_message is {type(message).__name__}, not text")
    if not isinstance(content_type, str) or len(content_type) > 200 or not _CONTENT_TYPE.fullmatch(content_type):
        raise Unsendable("rh.content_type is not a media type such as text/plain")
    if len(body) > ANSWER_MAX_BYTES:
        raise Unsendable(f"rh.data is larger than {ANSWER_MAX_BYTES} bytes")
    return CallResult(int(status), one_line(message) or responses.get(status, "Unknown"), content_type, body)


def one_line(text: str) -> str:
    """Return text fit for one line of an HTTP answer: no control characters, no lone surrogates, bounded."""
    clean = _CONTROL.sub(" ", text[: 4 * MESSAGE_MAX]).strip().encode("utf-8", "replace").decode()
    return clean if len(clean) <= MESSAGE_MAX else f"{clean[: MESSAGE_MAX - 3]}..."


def _body(data: object) -> bytes:
    try:
        if data is None:
            return b""
        if isinstance(data, str):
            return data.encode()
        if isinstance(data, (bytes, bytearray, memoryview)):
            return bytes(data)
        if isinstance(data, (dict, list, tuple)):
            return json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Unsendable(f"rh.data cannot be sent: {error}") from None
    raise Unsendable(f"rh.data is {type(data).__name__}: only bytes, text, a dict, a list or None can be sent")
