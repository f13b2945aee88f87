"""The HTTP frontend: one request in, one message to an actor, one JSON answer out.

A WSGI application that never waits: what an actor has to answer is returned as
:class:`bpbroker.server.response.PendingResponse`, which the server parks.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from bpbroker import messages
from bpbroker.config import layers, schema
from bpbroker.errors import (
    BadRequest,
    ConfigurationError,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    RequestError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from bpbroker.frontend import access_keys, access_log
from bpbroker.frontend.actions import BUILT_IN, Ask, EntryLimits
from bpbroker.frontend.control import CONTROL
from bpbroker.frontend.openapi import description
from bpbroker.frontend.parameters import Parameters, json_object, parse
from bpbroker.server import response
from bpbroker.server.response import PendingResponse, Response

logger = logging.getLogger(__name__)

StartResponse = Callable[..., Any]

ASK_TIMEOUT_SECS: Final = 30.0
HEALTH_SECS: Final = 5.0
_NOT_KNOWN: Final = Unavailable("The broker's healthcheck does not answer")
_IDEMPOTENCY_KEY_MAX: Final = 255
_CONTROL_DEPTH_MAX: Final = 200
_NO_STORE: Final = ("Cache-Control", "no-store")
_CALL_WITH: Final = ("POST", "GET", "DELETE")
_METHOD_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}\Z")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class _Derived:
    """What every request needs of the settings, worked out once for all of them."""

    settings: messages.Settings
    limits: EntryLimits
    keys: Mapping[str, tuple[str, ...]]
    """Namespace to its access keys, for each section that is a namespace."""

    @classmethod
    def of(cls, settings: messages.Settings) -> _Derived:
        """Work it out."""
        namespaces = (*BUILT_IN, *layers.namespaces(settings))
        limits = EntryLimits(
            name_bytes=schema.option(settings, "api", "max_name_bytes"),
            data_bytes=schema.option(settings, "api", "max_data_bytes"),
            depth=schema.option(settings, "api", "max_json_depth"),
        )
        return cls(settings, limits, {name: layers.access_keys(settings, name) for name in namespaces})


class Application:
    """The WSGI application.

    Args:
        settings: the settings in force.
        addresses: the broker's actors by name; looked up at each use.
        control_token: what the local ``bpbroker`` command brings to ``/_control``.
    """

    def __init__(
        self, settings: messages.Settings, addresses: Mapping[str, messages.Address], control_token: str
    ) -> None:
        self._addresses = addresses
        self._control_token = control_token
        self._derived = _Derived.of(settings)
        self._wrong_keys = access_keys.WrongKeys(schema.option(settings, "api", "wrong_keys_per_minute"))
        self._id_prefix = os.urandom(6).hex()
        self._id_numbers = itertools.count(1)

    def settings_changed(self, settings: messages.Settings) -> None:
        """Serve by these settings from the next request on."""
        self._derived = _Derived.of(settings)
        self._wrong_keys.limit = schema.option(settings, "api", "wrong_keys_per_minute")

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Any:
        """Serve one request (PEP 3333)."""
        call = _Call(environ, self._request_id(environ), start_response)
        try:
            result = self._serve(environ, call)
        except RequestError as error:
            result = response.of_error(error)
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes an answer
            result = call.broken(error)
        if isinstance(result, Response):
            return [call.send(result)]
        return result

    def _request_id(self, environ: Mapping[str, Any]) -> str:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        if given and _REQUEST_ID.match(given):
            return str(given)
        return f"{self._id_prefix}{next(self._id_numbers):06x}"

    def _serve(self, environ: dict[str, Any], call: _Call) -> Response | PendingResponse:
        _check_origin(environ)
        verb: str = environ["REQUEST_METHOD"]
        if verb == "HEAD":
            verb = "GET"  # the server keeps the body back
        path: str = environ["PATH_INFO"]
        namespace, _, method = path.removeprefix("/").removesuffix("/").partition("/")
        if not method and namespace in _PAGES:
            if verb != "GET":
                raise MethodNotAllowed(f"{path} is read with GET", ("GET", "HEAD"))
            return _PAGES[namespace](self, call)
        if not namespace:
            raise NotFound("This is a bpbroker: requests go to /<namespace>/<Method>/")
        call.namespace, call.method = namespace, method
        if namespace == "_control":
            return self._control(method, verb, environ, call)
        return self._call(namespace, method, verb, environ, call)

    def _call(
        self, namespace: str, method: str, verb: str, environ: dict[str, Any], call: _Call
    ) -> Response | PendingResponse:
        """Serve a call of a namespace's method: section, key and method are looked at in this order."""
        derived = self._derived
        keys = derived.keys.get(namespace)
        if keys is None:
            raise Unauthorized("Unauthorized package")
        if keys:
            self._check_pause(call.source)
        parameters = parse(
            environ.get("QUERY_STRING", ""), environ.get("CONTENT_TYPE", ""), _body(environ), derived.limits.depth
        )
        if keys:
            self._check_key(keys, _candidates(environ, parameters), call.source)
        actions = BUILT_IN.get(namespace)
        if actions is None:
            return self._extension(namespace, method, parameters, verb, environ, call)
        action = actions.get(method)
        if action is None:
            raise Unauthorized("Unauthorized method")
        if verb not in action.allow:
            raise MethodNotAllowed(f"{namespace}/{method} is called with {' or '.join(action.allow)}", action.allow)
        call.name = parameters.values.get("name")
        outcome = action.decide(parameters, environ, call.source, derived.limits)
        if isinstance(outcome, Response):
            return outcome
        return self._ask("registry", outcome, call)

    def _check_pause(self, source: str) -> None:
        pause = self._wrong_keys.pause_secs(source, time.monotonic())
        if pause is not None:
            error = TooManyRequests(f"Too many wrong access keys from {source}; try again in {pause} s")
            error.retry_after_secs = pause
            raise error

    def _check_key(self, keys: tuple[str, ...], candidates: list[object], source: str) -> None:
        if not access_keys.matches(candidates, keys):
            if candidates:
                self._wrong_keys.count(source, time.monotonic())
            raise Unauthorized("Incorrect access key")

    def _ask(
        self, name: str, ask: Ask, call: _Call, broken: Callable[[BaseException], Response] | None = None
    ) -> PendingResponse:
        address = self._addresses[name]
        message, show, timeout, heavy, patient, late = ask

        def complete(reply: Future[Any]) -> bytes:
            return call.send(response.rendered(reply, show, broken or call.broken, late))

        return PendingResponse(lambda: address.ask(message, timeout), complete, timeout, heavy=heavy, patient=patient)

    def _extension(
        self, namespace: str, method: str, parameters: Parameters, verb: str, environ: Mapping[str, Any], call: _Call
    ) -> PendingResponse:
        if not _METHOD_NAME.match(method):
            raise Unauthorized("Unauthorized method")
        if verb not in _CALL_WITH:
            raise MethodNotAllowed(f"{namespace}/{method} is called with {' or '.join(_CALL_WITH)}", _CALL_WITH)
        key = environ.get("HTTP_IDEMPOTENCY_KEY") or None
        if key is not None and len(key) > _IDEMPOTENCY_KEY_MAX:
            raise BadRequest(f"The Idempotency-Key is longer than {_IDEMPOTENCY_KEY_MAX} characters")
        name = f"extension {namespace}"
        if name not in self._addresses:  # its section was added a moment ago and its actor is about to start
            raise Unauthorized("Unauthorized method")
        message = messages.Call(method, parameters.texts(), call.source, call.id, key)
        limit: float = schema.option(self._derived.settings, namespace, "_timeout_secs")
        waits: int = schema.option(self._derived.settings, namespace, "_queue_max")
        # The actor answers each call, however it ends; this is only for an actor that broke.
        return self._ask(name, Ask(message, _called, limit * (waits + 2) + ASK_TIMEOUT_SECS), call)

    def _control(self, method: str, verb: str, environ: dict[str, Any], call: _Call) -> Response | PendingResponse:
        """Serve the local ``bpbroker`` command, which has read the token from the lock file."""
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer" or not access_keys.matches([token], (self._control_token,)):
            raise Unauthorized("Unauthorized package")
        action = CONTROL.get(method)
        if action is None:
            raise Unauthorized("Unauthorized method")
        if verb != "POST":
            raise MethodNotAllowed("The control interface is called with POST")
        body = _body(environ)
        name, ask = action(json_object(body, _CONTROL_DEPTH_MAX) if body else {})
        return self._ask(name, ask, call, call.unusable)

    def _health(self, call: _Call) -> PendingResponse:
        return self._look(response.health, call)

    def _ready(self, call: _Call) -> PendingResponse:
        return self._look(_ready, call)

    def _look(self, show: Callable[[messages.HealthReport], Response], call: _Call) -> PendingResponse:
        return self._ask("healthcheck", Ask(messages.Health(), show, HEALTH_SECS, heavy=True, late=_NOT_KNOWN), call)

    def _live(self, _call: _Call) -> Response:
        return response.success_with({"live": True})

    def _openapi(self, _call: _Call) -> Response:
        return Response(200, json.dumps(description()).encode())


_PAGES: Final[Mapping[str, Callable[[Application, _Call], Response | PendingResponse]]] = {
    "health": Application._health,  # noqa: SLF001 - this table is the class's own
    "ready": Application._ready,  # noqa: SLF001 - as above
    "live": Application._live,  # noqa: SLF001 - as above
    "openapi.json": Application._openapi,  # noqa: SLF001 - as above
}
"""What is read without a key; the methods of a namespace of such a name are below it."""


class _Call:
    """One request on its way: what its answer and its line in the access log need."""

    __slots__ = ("_environ", "_start_response", "_started", "id", "method", "name", "namespace", "source")

    def __init__(self, environ: dict[str, Any], request_id: str, start_response: StartResponse) -> None:
        self._environ = environ
        self._start_response = start_response
        self._started = time.monotonic()
        self.id = request_id
        self.source = plain_address(environ.get("REMOTE_ADDR", ""))
        self.namespace = ""
        self.method = ""
        self.name: Any = None

    def send(self, answer: Response) -> bytes:
        """Give status and headers to the server, write the access log, and give the body."""
        status, body, _, content_type, extra = answer
        if status == HTTPStatus.NOT_MODIFIED:
            headers = [("X-Request-Id", self.id), _NO_STORE, *extra]
        else:
            length = ("Content-Length", str(len(body)))
            headers = [("Content-Type", content_type), length, ("X-Request-Id", self.id), _NO_STORE, *extra]
        self._start_response(answer.status_line, headers)
        access_log.write(
            access_log.Line(
                self.source,
                status,
                len(body),
                self.id,
                self.namespace,
                self.method,
                self.name if isinstance(self.name, str) else None,
                self._started,
            )
        )
        return body

    def unusable(self, error: BaseException) -> Response:
        """Answer the operator on this host, who may read what is wrong with the configuration."""
        if isinstance(error, ConfigurationError):
            return response.failure(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        return self.broken(error)

    def broken(self, error: BaseException) -> Response:
        """Answer what nobody foresaw: the client gets an id, the log everything."""
        logger.error("Request %s failed", self.id, exc_info=error)
        return response.failure(500, f"Internal error; the broker's log has it under id {self.id}")


def plain_address(address: str) -> str:
    """Give an address as clients know it: IPv4 in IPv6 as plain IPv4."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address


def _check_origin(environ: Mapping[str, Any]) -> None:
    """Refuse what a web page of another origin makes a browser send.

    Raises:
        Forbidden: the request has an ``Origin`` that is not this server.
    """
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and origin != f"https://{environ.get('HTTP_HOST', '')}":
        raise Forbidden("Requests from web pages of another origin are not served")


def _body(environ: Mapping[str, Any]) -> bytes:
    """Give the whole body; the server has read and bounded it already."""
    stream = environ.get("wsgi.input")
    if stream is None or (environ.get("CONTENT_LENGTH") in (None, "", "0") and "HTTP_TRANSFER_ENCODING" not in environ):
        return b""
    content: bytes = stream.read()
    return content


def _candidates(environ: Mapping[str, Any], parameters: Parameters) -> list[object]:
    """Give every access key that the request brings, wherever."""
    found: list[object] = list(parameters.keys)
    scheme, _, key = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if key and scheme.lower() == "bearer":
        found.append(_utf8(key.strip()))
    header = environ.get("HTTP_X_ACCESS_KEY", "")
    if header:
        found.append(_utf8(header))
    return found


def _utf8(header: str) -> str:
    """Give a header's bytes, which WSGI shows as Latin-1, as the UTF-8 text that they are."""
    return header.encode("latin-1", "replace").decode("utf-8", "replace")


def _called(result: messages.CallResult) -> Response:
    if result.status != 200:
        return response.failure(result.status, result.message)
    return Response(200, result.body, content_type=result.content_type)


def _ready(report: messages.HealthReport) -> Response:
    missing = [part for part in report.parts if not part.ok and part.name in ("registry", "config store")]
    if missing:
        why = "; ".join(f"{part.name}: {part.detail}" if part.detail else part.name for part in missing)
        return response.failure(503, f"Not ready: {why}")
    return response.success_with({"ready": True})
