"""The HTTP frontend: one request in, one message to an actor, one JSON response out.

It never waits: when an actor has to be asked, it returns a
:class:`bpbroker.server.response.PendingResponse`, which the server parks. On
another server it runs by :func:`bpbroker.server.wsgi.as_wsgi`.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from bpbroker import messages
from bpbroker.config import layers, schema
from bpbroker.errors import (
    BadRequest,
    ConfigurationError,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    RequestError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from bpbroker.frontend import access_keys, access_log, client_file, origins
from bpbroker.frontend.actions import BUILT_IN, Ask, EntryLimits
from bpbroker.frontend.control import CONTROL
from bpbroker.frontend.openapi import description
from bpbroker.frontend.parameters import Parameters, json_object, parse
from bpbroker.server import response
from bpbroker.server.budget import Budget
from bpbroker.server.request import Request, network_of
from bpbroker.server.response import PendingResponse, Response

logger = logging.getLogger(__name__)

ASK_TIMEOUT_SECS: Final = 30.0
HEALTH_SECS: Final = 5.0
_NOT_KNOWN: Final = Unavailable("The broker's healthcheck does not answer")
_IDEMPOTENCY_KEY_MAX: Final = 255
_CONTROL_DEPTH_MAX: Final = 200
_NO_STORE: Final = ("Cache-Control", "no-store")
_READ_WITH: Final = ("GET", "HEAD")
_CALL_WITH: Final = ("POST", "GET", "DELETE")
_METHOD_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}\Z")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class _Derived:
    """What every request needs of the settings, worked out once for all requests."""

    settings: messages.Settings
    limits: EntryLimits
    keys: Mapping[str, tuple[str, ...]]
    """Namespace to its access keys, for each section that is a namespace."""

    @classmethod
    def of(cls, settings: messages.Settings) -> _Derived:
        """Return it for these settings."""
        namespaces = (*BUILT_IN, *layers.namespaces(settings))
        limits = EntryLimits(
            name_bytes=schema.option(settings, "api", "max_name_bytes"),
            data_bytes=schema.option(settings, "api", "max_data_bytes"),
            depth=schema.option(settings, "api", "max_json_depth"),
        )
        return cls(settings, limits, {name: layers.access_keys(settings, name) for name in namespaces})


class Application:
    """What decides what each request means.

    Args:
        settings: the settings in force.
        addresses: the broker's actors by name; looked up at each use.
        control_token: what the local ``bpbroker`` command brings to ``/_control``.
        names: the names by which browsers may reach this broker, beside those in the settings.
        memory: what the server keeps for clients, so that no response is made that it has no room for.
    """

    def __init__(
        self,
        settings: messages.Settings,
        addresses: Mapping[str, messages.Address],
        control_token: str,
        names: Collection[str] = (),
        memory: Budget | None = None,
    ) -> None:
        self._addresses = addresses
        self._control_token = control_token
        self._derived = _Derived.of(settings)
        self._names = names
        self._own_names = _own_names(names, settings)
        self._memory = Budget() if memory is None else memory
        self._wrong_keys = access_keys.WrongKeys(schema.option(settings, "api", "wrong_keys_per_minute"))
        self._id_prefix = os.urandom(6).hex()
        self._id_numbers = itertools.count(1)

    def settings_changed(self, settings: messages.Settings) -> None:
        """Serve by these settings from the next request on."""
        self._derived = _Derived.of(settings)
        self._own_names = _own_names(self._names, settings)
        self._wrong_keys.limit = schema.option(settings, "api", "wrong_keys_per_minute")

    def names_changed(self, names: Collection[str]) -> None:
        """Be known by these names, beside those in the settings."""
        self._names = names
        self._own_names = _own_names(names, self._derived.settings)

    def admit(self, request: Request) -> Response | None:
        """Return the response to a request that is refused by its head alone, before its body is read."""
        call = _Call(self._request_id(request), request.address)
        try:
            self._check_head(request, call, early=True)
        except RequestError as error:
            return call.finish(response.of_error(error))
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a response
            return call.finish(call.broken(error))
        return None

    def __call__(self, request: Request) -> Response | PendingResponse:
        """Serve one request."""
        call = _Call(self._request_id(request), request.address)
        try:
            result = self._serve(request, call)
        except RequestError as error:
            result = response.of_error(error)
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a response
            result = call.broken(error)
        return call.finish(result) if isinstance(result, Response) else result

    def _request_id(self, request: Request) -> str:
        given = request.fields.get("x-request-id")
        if given and _REQUEST_ID.match(given):
            return given
        return f"{self._id_prefix}{next(self._id_numbers):06x}"

    def _serve(self, request: Request, call: _Call) -> Response | PendingResponse:
        self._check_head(request, call)
        namespace = call.namespace
        if namespace == "_control":
            return self._control(request, call)
        if namespace:
            return self._call(request, call)
        return _PAGES[request.path.strip("/")](self, call)

    def _check_head(self, request: Request, call: _Call, *, early: bool = False) -> None:
        """Refuse what can be refused before the body is there; note whose method is called.

        With ``early`` the body is not there, so it is worth while to look into the query, too.
        """
        origins.check(request.fields, self._own_names)
        namespace, _, method = request.path.removeprefix("/").removesuffix("/").partition("/")
        if not method and namespace in _PAGES:
            if request.method not in _READ_WITH:
                raise MethodNotAllowed(f"{request.path} is read with GET", _READ_WITH)
            return
        if not namespace:
            raise NotFound("This is a bpbroker: requests go to /<namespace>/<Method>/")
        call.namespace, call.method = namespace, method
        if namespace == "_control":
            scheme, _, token = request.fields.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not access_keys.matches([token], (self._control_token,)):
                raise Unauthorized("Unauthorized package")
            return
        keys = self._derived.keys.get(namespace)
        if keys is None:
            raise Unauthorized("Unauthorized package")
        if keys:
            self._check_pause(call.source)
            given = _in_header(request.fields)
            if given:
                self._check_key(keys, given, call.source)
            elif early and request.query:  # then the body is not looked at for parameters
                self._check_key(keys, parse(request.query, "", b"", 1).keys, call.source)

    def _call(self, request: Request, call: _Call) -> Response | PendingResponse:
        """Serve a call of a namespace's method: section, key and method are looked at in this order."""
        derived = self._derived
        namespace, method = call.namespace, call.method
        keys = derived.keys[namespace]
        parameters = parse(request.query, request.fields.get("content-type", ""), request.body, derived.limits.depth)
        if keys:
            given = _in_header(request.fields)
            if not given or parameters.keys:
                self._check_key(keys, (*given, *parameters.keys), call.source)
        actions = BUILT_IN.get(namespace)
        if actions is None:
            return self._extension(request, parameters, call)
        action = actions.get(method)
        if action is None:
            raise Unauthorized("Unauthorized method")
        if request.method not in action.allow:
            raise MethodNotAllowed(f"{namespace}/{method} is called with {' or '.join(action.allow)}", action.allow)
        call.name = parameters.values.get("name")
        outcome = action.decide(parameters, request.fields, call.source, derived.limits)
        if isinstance(outcome, Response):
            return outcome
        return self._ask("registry", outcome, call)

    def _check_pause(self, source: str) -> None:
        pause = self._wrong_keys.pause_secs(network_of(source), time.monotonic())
        if pause is not None:
            error = TooManyRequests(f"Too many wrong access keys from {source}; try again in {pause} s")
            error.retry_after_secs = pause
            raise error

    def _check_key(self, keys: tuple[str, ...], candidates: Sequence[object], source: str) -> None:
        if not access_keys.matches(candidates, keys):
            if candidates:
                self._wrong_keys.count(network_of(source), time.monotonic())
            raise Unauthorized("Incorrect access key")

    def _ask(
        self, name: str, ask: Ask, call: _Call, broken: Callable[[BaseException], Response] | None = None
    ) -> PendingResponse:
        address = self._addresses[name]
        message, show, timeout, heavy, patient, late, size_of = ask
        if size_of is not None:
            show = self._if_there_is_room(size_of, show)

        def finish(reply: Future[Any]) -> Response:
            return call.finish(response.rendered(reply, show, broken or call.broken, late))

        return PendingResponse(lambda: address.ask(message, timeout), finish, timeout, heavy=heavy, patient=patient)

    def _if_there_is_room(
        self, size_of: Callable[[Any], int], show: Callable[[Any], Response]
    ) -> Callable[[Any], Response]:
        def shown(value: Any) -> Response:
            size = size_of(value)
            if self._memory.has_room(size):
                return show(value)
            return response.of_error(
                Overloaded(
                    f"The answer has {size / 2**20:.1f} MiB, more than this broker has room for at the moment; "
                    "ask for a part of the names with prefix, or try again later"
                )
            )

        return shown

    def _extension(self, request: Request, parameters: Parameters, call: _Call) -> PendingResponse:
        namespace, method, verb = call.namespace, call.method, request.method
        if not _METHOD_NAME.match(method):
            raise Unauthorized("Unauthorized method")
        if verb not in _CALL_WITH:
            raise MethodNotAllowed(f"{namespace}/{method} is called with {' or '.join(_CALL_WITH)}", _CALL_WITH)
        key = request.fields.get("idempotency-key") or None
        if key is not None and len(key) > _IDEMPOTENCY_KEY_MAX:
            raise BadRequest(f"The Idempotency-Key is longer than {_IDEMPOTENCY_KEY_MAX} characters")
        name = f"extension {namespace}"
        if name not in self._addresses:  # its section was added a moment ago and its actor is about to start
            raise Unauthorized("Unauthorized method")
        message = messages.Call(method, parameters.texts(), call.source, call.id, key)
        limit: float = schema.option(self._derived.settings, namespace, "_timeout_secs")
        waits: int = schema.option(self._derived.settings, namespace, "_queue_max")
        # The actor replies to each call, however it ends; this is only for an actor that broke.
        return self._ask(name, Ask(message, _called, limit * (waits + 2) + ASK_TIMEOUT_SECS), call)

    def _control(self, request: Request, call: _Call) -> PendingResponse:
        """Serve the local ``bpbroker`` command, which has read the token from the lock file."""
        action = CONTROL.get(call.method)
        if action is None:
            raise Unauthorized("Unauthorized method")
        if request.method != "POST":
            raise MethodNotAllowed("The control interface is called with POST")
        body = request.body
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

    def _client_file(self, _call: _Call) -> Response:
        name = 'attachment; filename="bpclient.pyz"'
        headers = (("Content-Disposition", name), ("ETag", f'"{client_file.digest()}"'))
        return Response(200, client_file.content(), "", "application/zip", headers)

    def count_unproven_wrong_key(self, source: str) -> None:
        """Count a wrong key that seems to come from an address, such as by UDP; any thread may call it."""
        self._wrong_keys.count(source, time.monotonic(), proven=False)


_PAGES: Final[Mapping[str, Callable[[Application, _Call], Response | PendingResponse]]] = {
    "health": Application._health,  # noqa: SLF001 - this table is the class's own
    "ready": Application._ready,  # noqa: SLF001 - as above
    "live": Application._live,  # noqa: SLF001 - as above
    "openapi.json": Application._openapi,  # noqa: SLF001 - as above
    "bpclient.pyz": Application._client_file,  # noqa: SLF001 - as above
}
"""What is read without a key; the methods of a namespace of such a name are below it."""


class _Call:
    """One request on its way: what its answer and its line in the access log need."""

    __slots__ = ("_started", "id", "method", "name", "namespace", "source")

    def __init__(self, request_id: str, source: str) -> None:
        self._started = time.monotonic()
        self.id = request_id
        self.source = source
        self.namespace = ""
        self.method = ""
        self.name: Any = None

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
            )
        )
        return Response(status, body, reason, content_type, (("X-Request-Id", self.id), _NO_STORE, *headers))

    def unusable(self, error: BaseException) -> Response:
        """Return the response for the operator on this host, who may read what is wrong with the configuration."""
        if isinstance(error, ConfigurationError):
            return response.failure(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        return self.broken(error)

    def broken(self, error: BaseException) -> Response:
        """Return the response to an unexpected error: the client gets an id, the log has everything."""
        logger.error("Request %s failed", self.id, exc_info=error)
        return response.failure(500, f"Internal error; the broker's log has it under id {self.id}")


def _own_names(names: Collection[str], settings: messages.Settings) -> frozenset[str]:
    """Return every name by which a browser may reach this broker, in lower case."""
    more = schema.option(settings, "api", "host_names")
    return frozenset(name.lower().removesuffix(".") for name in ("localhost", *names, *more))


def _in_header(fields: Mapping[str, str]) -> list[str]:
    """Return the access keys in a request's header fields."""
    found = []
    scheme, _, key = fields.get("authorization", "").partition(" ")
    if key and scheme.lower() == "bearer":
        found.append(_utf8(key.strip()))
    header = fields.get("x-access-key", "")
    if header:
        found.append(_utf8(header))
    return found


def _utf8(header: str) -> str:
    """Return a header's bytes, which are shown as Latin-1, as the UTF-8 text that they are."""
    return header.encode("latin-1", "replace").decode("utf-8", "replace")


def rejected(address: str, refusal: Response) -> None:
    """Write the access log for what the server refused by itself."""
    access_log.write(access_log.Line(address=address, status=refusal.status, sent_bytes=len(refusal.body)))


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
