"""One request on its way: what its response and its line in the access log need."""

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
    """One request on its way: what its answer and its line in the access log need."""

    __slots__ = (
        "_started", "by", "id", "key", "method", "name", "namespace", "page", "registry", "revision", "source",
    )  # fmt: skip

    def __init__(self, request_id: str, request: Request) -> None:
        self._started = time.monotonic()
        self.id = request_id
        self.source = request.address
        self.registry = request.fields.get("x-registry", "")
        """The registry that the join token of the client is for; empty if it did not say."""
        self.namespace = ""
        self.method = ""
        self.page: Callable[..., Response | PendingResponse] | None = None
        """What serves it, if it is no call of a method."""
        self.name: Any = None
        self.key: NamedKey | None = None
        """The named key that let the call in."""
        self.by: str | None = None
        """The name of the key that came with it."""
        self.revision = 0
        """Of what it changed."""

    def noting(self, message: Any, show: Callable[[Any], Response]) -> Callable[[Any], Response]:
        """Return what shows the reply to a write, and notes for the access log what was changed."""

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
        """Write the access log; return the response with the headers that all have."""
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
        """Finish a page; it may say itself how long it is kept, as static files do."""
        finished = self.finish(answer)
        if any(name == "Cache-Control" for name, _ in answer.headers):
            return finished._replace(headers=tuple(header for header in finished.headers if header != _NO_STORE))
        return finished

    def unusable(self, error: BaseException) -> Response:
        """Return the response for the operator on this host, who may read what is wrong with the configuration."""
        if isinstance(error, (ConfigurationError, StartError)):
            return response.failure(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        return self.broken(error)

    def broken(self, error: BaseException) -> Response:
        """Return the response to an unexpected error: the client gets an id, the log has everything."""
        logger.error("Request %s failed", self.id, exc_info=error)
        return response.failure(500, f"Internal error; the broker's log has it under id {self.id}")


def changed_by_extension(call: messages.Call, change: Change) -> None:
    """Write the access log for a change that an extension asked the registry for; any thread may call it."""
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
    """Write the access log for what the server refused by itself."""
    access_log.write(access_log.Line(address=address, status=refusal.status, sent_bytes=len(refusal.body)))
