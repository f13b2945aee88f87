"""What a broker's responses mean. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from bpbroker.client.http1 import Response
from bpbroker.errors import CannotConnect, RequestError, from_status

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Any, Final

HTTP_NOT_MODIFIED: Final = 304
_MESSAGE_MAX: Final = 1000
_RETRY_AFTER_MAX_SECS: Final = 30
_DIGITS_MAX: Final = 16

# 0.22 responds with 200 and "success": false; the method tells what that means.
_STATUS_OF_NO_SUCCESS: Final = {"services/Register": 409, "services/Get": 404}


def printable(text: str) -> str:
    """Return text fit for a terminal: text of a server must not move its cursor."""
    return "".join(character if character.isprintable() else " " for character in text[:_MESSAGE_MAX]).strip()


def json_value(answer: Response) -> Any:
    """Return the body's JSON value; None if the body is not JSON."""
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        return None


def refusal(answer: Response, status: int = 0) -> RequestError:
    """Return the error that a response means; its message is in the body, else in the reason phrase.

    Args:
        answer: the broker's response.
        status: to be used instead of the response's; 0: the response's.
    """
    value = json_value(answer)
    message = value.get("message") if isinstance(value, dict) else None
    text = printable(message if isinstance(message, str) else "") or printable(answer.reason)
    error = from_status(status or answer.status, text or f"The broker answered with HTTP status {answer.status}")
    if isinstance(value, dict):
        data, failed, revision = value.get("data"), value.get("failed"), value.get("revision")
        error.data = data if isinstance(data, dict) else None
        error.failed = failed if isinstance(failed, int) else None
        error.entry_revision = revision if isinstance(revision, int) else _revision_of(answer.headers.get("etag", ""))
    after = answer.headers.get("retry-after", "")
    if after.isascii() and after.isdigit():
        error.retry_after_secs = min(int(after[:6]), _RETRY_AFTER_MAX_SECS)
    return error


def _revision_of(etag: str) -> int | None:
    number = etag.strip('"')
    return int(number) if number.isascii() and number.isdigit() and len(number) <= _DIGITS_MAX else None


class Registered:
    """A registry's response that is no error.

    Args:
        response: the whole object; empty when ``modified`` is False.
        etag: the entry's tag, or empty.
        modified: False: the entry's tag is still ``changed_from``.
    """

    __slots__ = ("etag", "modified", "response")

    def __init__(self, response: Mapping[str, Any], etag: str, *, modified: bool = True) -> None:
        self.response = response
        self.etag = etag
        self.modified = modified

    @property
    def data(self) -> dict[str, Any]:
        """The entry, or the entries by name."""
        data = self.response.get("data")
        return data if isinstance(data, dict) else {}

    @property
    def revision(self) -> int:
        """The revision of the change, or of the state that was read; 0 from a broker without revisions."""
        revision = self.response.get("revision")
        return revision if isinstance(revision, int) else 0


def registered(path: str, answer: Response, address: object) -> Registered:
    """Read a registry's response with status 404 or success.

    Any web server may respond with 404: if that counted as "no such entry", a script would go the wrong way.

    Raises:
        CannotConnect: the response is not a registry's.
        RequestError: it says, as 0.22 does, that the call failed.
    """
    etag = answer.headers.get("etag", "")
    if answer.status == HTTP_NOT_MODIFIED:
        return Registered({}, etag, modified=False)
    value = json_value(answer)
    if not isinstance(value, dict) or not isinstance(value.get("success"), bool):
        raise CannotConnect(f"{address} is not a bpbroker: its answer (HTTP status {answer.status}) is not one of ours")
    if answer.status < 400 and not value["success"]:
        raise refusal(answer, _STATUS_OF_NO_SUCCESS.get(path, 400))
    return Registered(value, etag)
