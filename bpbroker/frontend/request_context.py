"""One request on its way: the values that its response and its line in the access log need."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from bpbroker import messages
from bpbroker.errors import ConfigurationError, StartError
from bpbroker.frontend import access_log
from bpbroker.registry import rights
from bpbroker.registry.named_keys import NamedKey
from bpbroker.registry.requests import Batch, Close, Expired
from bpbroker.registry.writes import Change, changes_of, ended_with
from bpbroker.server import response
from bpbroker.server.request import Request
from bpbroker.server.response import PendingResponse, Response

logger = logging.getLogger(__name__)

_NO_STORE: Final = ("Cache-Control", "no-store")


class RequestContext:
    """One request on its way: the values that its response and its line in the access log need."""

    __slots__ = (
        "_started", "by", "id", "key", "method", "name", "namespace", "page", "registry", "revision", "source",
    )  # fmt: skip

    def __init__(self, request_id: str, request: Request) -> None:
        self._started = time.monotonic()
        self.id = request_id
        self.source = request.address
        self.registry = request.fields.get("x-registry", "")
        """Id of the registry that the client's join token is for; empty if the request does not name one."""
        self.namespace = ""
        self.method = ""
        self.page: Callable[..., Response | PendingResponse] | None = None
        """What serves the request, if it is no call of a method."""
        self.name: Any = None
        self.key: NamedKey | None = None
        """The named key that let the call in."""
        self.by: str | None = None
        """The name of the key that came with the request."""
        self.revision = 0
        """Revision of its change."""

    def noting(self, message: Any, show: Callable[[Any], Response]) -> Callable[[Any], Response]:
        """Return a function that makes the response of a write's reply, and notes the changes for the access log."""

        def shown(value: Any) -> Response:
            self.revision = getattr(value, "revision", 0)
            if isinstance(message, (Batch, Close)):
                changes = changes_of(message, value)
                if isinstance(message, Close):
                    next(changes)  # the request itself has a line
                for change in changes:
                    _write_change(change, self.source, self.id, self.by)
            return show(value)

        return shown

    def finish(self, answer: Response) -> Response:
        """Write the access log; return the response with the headers that all responses have."""
        status, body, reason, content_type, headers = answer
        name = self.name
        access_log.write(
            access_log.Line(
                self.source,
                status,
                len(body),
                self.id,
                self.namespace,
                self.method,
                name if isinstance(name, str) else None,
                self._started,
                self.by,
                self.revision,
            )
        )
        return Response(status, body, reason, content_type, (("X-Request-Id", self.id), _NO_STORE, *headers))

    def sent(self, answer: Response) -> Response:
        """Finish a page; a page, such as a static file, may say for how long browsers keep it."""
        finished = self.finish(answer)
        if any(name == "Cache-Control" for name, _ in answer.headers):
            return finished._replace(headers=tuple(header for header in finished.headers if header != _NO_STORE))
        return finished

    def unusable(self, error: BaseException) -> Response:
        """Return the response for the operator on this host, with all that is wrong with the configuration."""
        if isinstance(error, (ConfigurationError, StartError)):
            return response.failure(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        return self.broken(error)

    def broken(self, error: BaseException) -> Response:
        """Return the response to an unexpected error: it has an id, and the log has the details under this id."""
        logger.error("Request %s failed", self.id, exc_info=error)
        return response.failure(500, f"Internal error; the broker's log has it under id {self.id}")


def changed_by_extension(call: messages.Call, change: Change) -> None:
    """Write the access log for a change that an extension made; any thread may call it."""
    _write_change(change, call.source, call.request_id, call.caller or None)


def expired(end: Expired) -> None:
    """Write the access log for a session that ended by itself; any thread may call it."""
    for change in (Change("Expire", end.session, 200, end.revision), *ended_with(end.names, end.revision)):
        _write_change(change, end.source, "", end.key or None)


def _write_change(change: Change, source: str, request_id: str, by: str | None) -> None:
    method, name, status, revision = change
    access_log.write(
        access_log.Line(source, status, 0, request_id, rights.REGISTRY, method, name, None, by, revision, within=True)
    )


def rejected(address: str, refusal: Response) -> None:
    """Write the access log for a request that the server refused before it reached the application."""
    access_log.write(access_log.Line(address=address, status=refusal.status, sent_bytes=len(refusal.body)))
