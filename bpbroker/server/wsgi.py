"""The application as a WSGI application (PEP 3333), for tests and for any other server."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from bpbroker.server.request import Request, plain_address
from bpbroker.server.request_cycle import Application
from bpbroker.server.response import PendingResponse

WsgiApplication = Callable[[dict[str, Any], Callable[..., Any]], list[bytes]]


def as_wsgi(application: Application) -> WsgiApplication:
    """Return a WSGI application. The thread that calls it waits where our own server would park the connection."""

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        result = application(request_of(environ))
        if isinstance(result, PendingResponse):
            result.ask()
            try:
                if result.reply is not None:
                    result.reply.exception(result.timeout_secs)
            except (FutureTimeout, CancelledError):
                result.give_up()
            result = result.response()
        headers = list(result.headers)
        if result.status not in (204, 304):
            headers += [("Content-Type", result.content_type), ("Content-Length", str(len(result.body)))]
        start_response(result.status_line, headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else result.body]

    return serve


def request_of(environ: dict[str, Any]) -> Request:
    """Return the request that an environ describes, with its body."""
    fields = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    for variable, name in (("CONTENT_TYPE", "content-type"), ("CONTENT_LENGTH", "content-length")):
        if environ.get(variable):
            fields[name] = environ[variable]
    return Request(
        method=environ["REQUEST_METHOD"],
        path=environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""),
        query=environ.get("QUERY_STRING", ""),
        fields=fields,
        address=plain_address(environ.get("REMOTE_ADDR", "")),
        body=environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)),
    )
