"""The HTTP frontend: one request in, one message to an actor, one JSON response out.

It never waits: when an actor has to be asked, it returns a
:class:`bpbroker.server.response.PendingResponse`, which the server parks. On
another server it runs by :func:`bpbroker.server.wsgi.as_wsgi`.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Final

from bpbroker import messages
from bpbroker.config import layers, schema
from bpbroker.discovery.interfaces import for_loopback, is_loopback
from bpbroker.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    PreconditionFailed,
    RequestError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from bpbroker.frontend import access_keys, access_log, client_file, metrics, openapi, origins
from bpbroker.frontend.access_keys import NamedKeys
from bpbroker.frontend.actions import BUILT_IN
from bpbroker.frontend.ask import Ask, EntryLimits, limits_of, loopback_writer
from bpbroker.frontend.control import CONTROL, METRICS, REGISTRY
from bpbroker.frontend.key_uses import KeyUses
from bpbroker.frontend.pages import Pages
from bpbroker.frontend.parameters import Parameters, json_object, parse
from bpbroker.frontend.request_context import RequestContext
from bpbroker.frontend.request_counts import RequestCounts
from bpbroker.frontend.scrapes import SCRAPE_SECS, Scrape, Scrapes
from bpbroker.registry import named_keys
from bpbroker.registry.named_keys import NamedKey
from bpbroker.registry.requests import Open
from bpbroker.registry.rights import Need
from bpbroker.registry.writes import WRITES
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
_READ_WITH: Final = ("GET", "HEAD")
_CALL_WITH: Final = ("POST", "GET", "DELETE")
_ABOUT: Final = ("name", "pool", "session")
"""Parameters that name the subject of a call."""
_METHOD_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}\Z")
_SHOWN_ID: Final = 8
"""How many digits of a registry's id are enough to tell it from another one."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class _Derived:
    """The values that every request needs of the settings, computed once."""

    settings: messages.Settings
    limits: EntryLimits
    keys: Mapping[str, tuple[str, ...]]
    """Namespace to its access keys, for each section that is a namespace."""
    metrics: str
    """The setting ``api.metrics``: which clients may read the metrics."""
    loopback_writer: str | None
    """See :func:`~bpbroker.frontend.ask.loopback_writer`."""
    opened: frozenset[str]
    """Namespaces that stay open whatever named keys there are: ``ping``, and those whose ``_access_key`` is ""."""

    @classmethod
    def of(cls, settings: messages.Settings) -> _Derived:
        """Return the values for these settings."""
        namespaces = (*BUILT_IN, *layers.namespaces(settings))
        keys = {name: layers.access_keys(settings, name) for name in namespaces}
        opened = {name for name in namespaces if name == "ping" or "_access_key" in settings.get(name, {})}
        shown = schema.option(settings, "api", "metrics")
        local = loopback_writer(settings)
        return cls(
            settings, limits_of(settings), keys, shown, local, frozenset(name for name in opened if not keys[name])
        )


class Application:
    """Decides what each request means, and returns its response.

    Args:
        settings: the settings in force.
        addresses: the broker's actors by name; looked up at each use.
        control_token: what the local ``bpbroker`` command brings to ``/_control``.
        names: further names by which browsers may reach this broker; the settings have the others.
        memory: the server's bound on what it keeps for clients: a response that does not fit in it is not made.
        named: the named access keys, which the registry keeps up to date; None where there are none.
        pages: the pages for people; None where there are none.
    """

    def __init__(
        self,
        settings: messages.Settings,
        addresses: Mapping[str, messages.Address],
        control_token: str,
        names: Collection[str] = (),
        memory: Budget | None = None,
        named: NamedKeys | None = None,
        pages: Pages | None = None,
    ) -> None:
        self._addresses = addresses
        self._control_token = control_token
        self._derived = _Derived.of(settings)
        self._names = names
        self._own_names = _own_names(names, settings)
        self._memory = Budget() if memory is None else memory
        if named is None:
            named = NamedKeys()
            named.complete()
        self._named = named
        self._key_uses = KeyUses(addresses, named)
        self._named.ended = self._key_uses.end_waits
        self._pages = pages
        self._hsts: tuple[tuple[str, str], ...] = ()
        self._tell_pages(settings)
        self._wrong_keys = access_keys.WrongKeys(schema.option(settings, "api", "wrong_keys_per_minute"))
        self.request_counts = RequestCounts(self._derived.keys)
        """Counts the requests that have a response."""
        self._scrapes = Scrapes(self._seen)
        self._began = time.monotonic()
        self._id_prefix = os.urandom(6).hex()
        self._id_numbers = itertools.count(1)

    def settings_changed(self, settings: messages.Settings) -> None:
        """Use these settings from the next request on."""
        self._derived = _Derived.of(settings)
        self.request_counts.namespaces = self._derived.keys
        self._own_names = _own_names(self._names, settings)
        self._wrong_keys.limit = schema.option(settings, "api", "wrong_keys_per_minute")
        self._tell_pages(settings)

    def _tell_pages(self, settings: messages.Settings) -> None:
        """Pass the settings to the pages. An extension of their name takes their path instead."""
        if self._pages is not None:
            derived = self._derived
            hsts_secs = schema.option(settings, "_ui", "hsts_secs")
            self._hsts = (("Strict-Transport-Security", f"max-age={hsts_secs}"),) if hsts_secs else ()
            enabled = schema.option(settings, "_ui", "enabled") and "ui" not in derived.keys
            self._pages.settings_changed(derived.keys, derived.opened, enabled=enabled)

    def names_changed(self, names: Collection[str]) -> None:
        """Set the names of this broker; those in the settings count too."""
        self._names = names
        self._own_names = _own_names(names, self._derived.settings)

    def admit(self, request: Request) -> Response | None:
        """Return the response to a request that is refused by its head alone, before its body is read."""
        call = RequestContext(self._request_id(request), request)
        try:
            self._check_head(request, call, early=True)
        except RequestError as error:
            return call.finish(self._refusal(request, error))
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a response
            return call.finish(call.broken(error))
        return None

    def __call__(self, request: Request) -> Response | PendingResponse:
        """Serve one request."""
        call = RequestContext(self._request_id(request), request)
        try:
            result = self._serve(request, call)
        except _HeldBack as error:
            return _held_back(self._refusal(request, error), error.delay_secs, call)
        except RequestError as error:
            result = self._refusal(request, error)
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a response
            result = call.broken(error)
        return call.finish(result) if isinstance(result, Response) else result

    def _refusal(self, request: Request, error: RequestError) -> Response:
        """Return the response to an error; for a page's request it is a page."""
        pages = self._pages
        if pages is not None and pages.enabled and request.path.startswith("/ui"):
            return pages.refusal(error)
        return response.of_error(error)

    def _request_id(self, request: Request) -> str:
        given = request.fields.get("x-request-id")
        if given and _REQUEST_ID.match(given):
            return given
        return f"{self._id_prefix}{next(self._id_numbers):06x}"

    def _serve(self, request: Request, call: RequestContext) -> Response | PendingResponse:
        self._check_head(request, call)
        if call.page is not None:
            return call.page(self, request, call)
        return self._control(request, call) if call.namespace == "_control" else self._call(request, call)

    def _check_head(self, request: Request, call: RequestContext, *, early: bool = False) -> None:
        """Refuse a request by its head, if that is possible; note namespace and method in the call.

        ``early``: the body is not there yet, so the query is checked as well.
        """
        origins.check(request.fields, self._own_names)
        namespace, _, method = request.path.removeprefix("/").removesuffix("/").partition("/")
        if not method and namespace in _PAGES:
            if namespace == "metrics" and self._derived.metrics == "off":
                raise NotFound("This broker shows no metrics (api.metrics)")
            if request.method not in (*_READ_WITH, "POST" if namespace == "whoami" else ""):
                raise MethodNotAllowed(f"{request.path} is read with GET", _READ_WITH)
            call.page = _PAGES[namespace]
            if namespace == "metrics" and self._derived.metrics == "keyed":
                self._check_metrics(request, call)
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
            call.page = self._for_people(namespace)
            return
        if keys or (namespace in self._named.closed and namespace not in self._derived.opened):
            given = _in_header(request.fields)
            if given:
                self._check_key(keys, given, call)
            elif early and request.query:  # then the body has no parameters
                self._check_key(keys, parse(request.query, "", b"", 1).keys, call)

    def _call(self, request: Request, call: RequestContext) -> Response | PendingResponse:
        """Serve a call of a namespace's method: section, key and method are checked in this order."""
        derived = self._derived
        namespace, method = call.namespace, call.method
        keys = derived.keys[namespace]
        parameters = parse(request.query, request.fields.get("content-type", ""), request.body, derived.limits.depth)
        if keys or (namespace in self._named.closed and namespace not in self._derived.opened):
            given = _in_header(request.fields)
            if not given or parameters.keys:
                self._check_key(keys, (*given, *parameters.keys), call)
        elif self._named.by_name:
            self._note_caller(_in_header(request.fields) or parameters.keys, call)
        actions = BUILT_IN.get(namespace)
        if actions is None:
            return self._extension(request, parameters, call)
        action = actions.get(method)
        if action is None:
            raise Unauthorized("Unauthorized method")
        key = call.key
        if key is not None:
            access_keys.check(key, action.touches(namespace, method, parameters))
        if request.method not in action.allow:
            raise MethodNotAllowed(f"{namespace}/{method} is called with {' or '.join(action.allow)}", action.allow)
        call.name, source = _about(parameters.values), call.source
        if action.keeps_source and is_loopback(source):
            source = for_loopback(source, derived.loopback_writer)
        outcome = action.decide(parameters, request.fields, source, derived.limits)
        if isinstance(outcome, Response):
            return outcome if key is None else self._key_uses.let_in(key, outcome, call)
        if call.by and isinstance(outcome.message, Open):
            outcome = outcome._replace(message=replace(outcome.message, key=call.by))
        return self._registered(outcome, call)

    def _registered(self, ask: Ask, call: RequestContext) -> Response | PendingResponse:
        """Return the registry's response: at once if its reply is known here, else a PendingResponse."""
        key = call.key
        if key is None or not key.must_be_counted(network_of(call.source)):
            reply = self._addresses["registry"].reply_now(ask.message)
            if reply is not None:
                if key is not None:
                    self._key_uses.note(key)
                return ask.show(reply)
        return self._ask("registry", ask, call)

    def _for_people(self, namespace: str) -> _Page:
        """Return the part that serves the pages; it checks the sign-in itself.

        Raises:
            Unauthorized: the path is not one of the pages, or the pages are turned off.
        """
        if namespace != "ui" or self._pages is None or not self._pages.enabled:
            raise Unauthorized("Unauthorized package")
        return Application._page

    def _page(self, request: Request, call: RequestContext) -> Response | PendingResponse:
        """Serve a page for people; only a sign-in brings a key."""
        assert self._pages is not None  # noqa: S101 - looked at with the head

        def came_with(name: str, *, signs_in: bool) -> None:
            call.by = name
            key = self._named.by_name.get(name)
            if key is not None and signs_in:  # reading a page writes nothing, not even the use of a key
                self._key_uses.note(key)

        def sent(answer: Response) -> Response:
            return call.sent(answer._replace(headers=(*answer.headers, *self._hsts)))

        return self._pages.serve(
            request, call.id, sent, self._check_guessing, self._count_wrong, self._key_uses.end_with_key, came_with
        )

    def _is_closed(self, namespace: str) -> bool:
        """Whether a namespace without an ``_access_key`` needs a named key."""
        return namespace in self._named.closed and namespace not in self._derived.opened

    def _check_key(self, keys: tuple[str, ...], candidates: Sequence[object], call: RequestContext) -> None:
        """Check that a request brings the namespace's own key, or a named key, which is noted in ``call``."""
        self._check_guessing(candidates, call.source)
        if keys and access_keys.matches(candidates, keys):
            self._wrong_keys.was_right(network_of(call.source), candidates)
            return
        if not self._named.known:
            raise Unavailable("The registry's store does not answer, so which access keys there are is not known yet")
        key = self._named.find(candidates, time.time())
        if key is None:
            if candidates:
                self._count_wrong(call.source)
                self._check_registry(call.registry)
            elif call.namespace in self._named.closed:
                raise Unauthorized(f"{call.namespace} needs an access key")
            raise Unauthorized("Incorrect access key")
        why = key.why_not(call.source, network_of(call.source), time.time())
        if why:
            raise Unauthorized(why)
        call.key, call.by = key, key.name
        self._wrong_keys.was_right(network_of(call.source), candidates)

    def _check_registry(self, meant: str) -> None:
        """Check that a wrong key was meant for this registry.

        Args:
            meant: the id of the registry that a join token is for; empty where no token says one.

        Raises:
            Unauthorized: it is meant for another one.
        """
        own = self._named.registry_id
        if meant and own and meant != own:
            raise Unauthorized(
                f"The join token is for another registry: for {meant[:_SHOWN_ID]}…, and this is {own[:_SHOWN_ID]}…;"
                " `bpbroker token` on this broker's host prints one for this registry"
            )

    def _note_caller(self, candidates: Sequence[object], call: RequestContext) -> None:
        """Note the name of the key that comes with a call of an open namespace. The key changes nothing there."""
        key = self._named.find(candidates, time.time()) if candidates else None
        if key is not None and not key.why_not(call.source, network_of(call.source), time.time()):
            call.by = key.name

    def _check_guessing(self, candidates: Sequence[object], source: str) -> None:
        """Check that the keys of a request may be compared.

        Raises:
            _HeldBack: too many wrong keys came from its address.
        """
        if candidates and not self._wrong_keys.may_look(network_of(source), candidates, time.monotonic()):
            self._count_wrong(source)

    def _count_wrong(self, source: str) -> None:
        """Count a wrong key.

        Raises:
            _HeldBack: there were too many.
        """
        client, now = network_of(source), time.monotonic()
        pause = self._wrong_keys.pause_secs(client, now)
        self._wrong_keys.count(client, now)
        if pause is not None:
            error = _HeldBack(f"Too many wrong access keys from {source}; try again in {pause} s")
            error.retry_after_secs = pause
            error.delay_secs = self._wrong_keys.delay_secs(client)
            raise error

    def _whoami(self, request: Request, call: RequestContext) -> Response:
        """Return the response that says what the request's key may do."""
        given = _in_header(request.fields)
        derived, named = self._derived, self._named
        namespaces = sorted(name for name, keys in derived.keys.items() if not keys and not self._is_closed(name))
        key: NamedKey | None = None
        if given:
            self._check_guessing(given, call.source)
            own = sorted(name for name, keys in derived.keys.items() if access_keys.matches(given, keys))
            call.namespace = "whoami"
            if own:
                self._wrong_keys.was_right(network_of(call.source), given)
            if any(derived.keys.values()) or named.by_name:  # else no key is wrong
                if not own:
                    self._check_key((), given, call)
                    key = call.key
                namespaces += own
        shown = {"name": "", "allow": [f"{name}.*" for name in namespaces]} if key is None else _shown_key(key)
        return response.success_with({**shown, "address": call.source})

    def _check_revocation(self, document: Mapping[str, Any]) -> None:
        """Check that one key with all rights is left when a key is revoked.

        Raises:
            PreconditionFailed: the key is the last one with all rights in a namespace.
        """
        name = str(document.get("name", ""))
        key, now = self._named.by_name.get(name), time.time()
        if key is None or document.get("force") or not key.is_in_force(now):
            return
        left = [
            namespace
            for namespace in sorted(key.rights.whole())
            if not self._derived.keys.get(namespace)
            and namespace not in self._derived.opened
            and not self._named.others_in_force(name, namespace, now)
        ]
        if left:
            raise PreconditionFailed(
                f"'{name}' is the last key that may do anything in {', '.join(left)}; --force revokes it all the same"
            )

    def _ask(
        self, name: str, ask: Ask, call: RequestContext, broken: Callable[[BaseException], Response] | None = None
    ) -> PendingResponse:
        address = self._addresses[name]
        message, show, timeout, heavy, patient, late, heavy_if, size_of = ask
        if size_of is not None:
            show = self._if_there_is_room(size_of, show)

        def ask_now() -> Future[Any]:
            return address.ask(message, timeout)

        if type(message) in WRITES:
            show = call.noting(message, show)

        begin, key = ask_now, call.key
        if key is not None:
            begin = self._key_uses.counted_first(key, ask_now, call, patient=patient)
            left = key.until - time.time()
            if patient and left < timeout:
                timeout, late = max(left, 0.0), Unauthorized(f"The access key '{key.name}' has just ended")

        def finish(reply: Future[Any]) -> Response:
            return call.finish(response.rendered(reply, show, broken or call.broken, late))

        if heavy_if is None:
            return PendingResponse(begin, finish, timeout, heavy=heavy, patient=patient)

        def weigh(reply: Future[Any]) -> None:
            if not reply.cancelled() and reply.exception() is None:
                pending.heavy = heavy_if(reply.result())

        def begin_to_weigh() -> Future[Any]:
            reply = begin()
            reply.add_done_callback(weigh)
            return reply

        pending = PendingResponse(begin_to_weigh, finish, timeout, heavy=heavy, patient=patient)
        return pending

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

    def _extension(self, request: Request, parameters: Parameters, call: RequestContext) -> PendingResponse:
        namespace, method, verb = call.namespace, call.method, request.method
        if not _METHOD_NAME.match(method):
            raise Unauthorized("Unauthorized method")
        if verb not in _CALL_WITH:
            raise MethodNotAllowed(f"{namespace}/{method} is called with {' or '.join(_CALL_WITH)}", _CALL_WITH)
        access_keys.check(call.key, (Need(namespace, method),))
        key = request.fields.get("idempotency-key") or None
        if key is not None and len(key) > _IDEMPOTENCY_KEY_MAX:
            raise BadRequest(f"The Idempotency-Key is longer than {_IDEMPOTENCY_KEY_MAX} characters")
        name = f"extension {namespace}"
        if name not in self._addresses:  # its section was added a moment ago and its actor is about to start
            raise Unauthorized("Unauthorized method")
        message = messages.Call(method, parameters.texts(), call.source, call.id, key, call.by or "")
        limit: float = schema.option(self._derived.settings, namespace, "_timeout_secs")
        waits: int = schema.option(self._derived.settings, namespace, "_queue_max")
        # The actor replies to each call in time; this limit is only for an actor that is broken.
        return self._ask(name, Ask(message, _called, limit * (waits + 2) + ASK_TIMEOUT_SECS), call)

    def _control(self, request: Request, call: RequestContext) -> Response | PendingResponse:
        """Serve the local ``bpbroker`` command, which has read the token from the lock file."""
        if call.method == REGISTRY:
            return self._registry(call)
        action = CONTROL.get(call.method)
        if action is None and call.method != METRICS:
            raise Unauthorized("Unauthorized method")
        if request.method != "POST":
            raise MethodNotAllowed("The control interface is called with POST")
        if action is None:
            scrape = self._scrapes.current()
            return self._scrape(scrape, lambda: response.success_with(metrics.samples(scrape.seen())), call)
        body = request.body
        document = json_object(body, _CONTROL_DEPTH_MAX) if body else {}
        if call.method.endswith("Key"):
            call.name = document.get("name")
        if call.method == "RevokeKey":
            self._check_revocation(document)
        name, ask = action(document)
        return self._ask(name, ask, call, call.unusable)

    def _registry(self, _call: RequestContext) -> Response:
        """Return the id of the registry that this broker serves, for the local command."""
        return response.success_with({"id": self._named.registry_id})

    # --- pages ---

    def _health(self, _request: Request, call: RequestContext) -> PendingResponse:
        return self._look(response.health, call)

    def _ready(self, _request: Request, call: RequestContext) -> PendingResponse:
        return self._look(_ready, call)

    def _look(self, show: Callable[[messages.HealthReport], Response], call: RequestContext) -> PendingResponse:
        return self._ask("healthcheck", Ask(messages.Health(), show, HEALTH_SECS, heavy=True, late=_NOT_KNOWN), call)

    def _live(self, _request: Request, _call: RequestContext) -> Response:
        return response.success_with({"live": True})

    def _openapi(self, _request: Request, _call: RequestContext) -> Response:
        return Response(200, openapi.document())

    def _client_file(self, _request: Request, _call: RequestContext) -> Response:
        name = 'attachment; filename="bpclient.pyz"'
        headers = (("Content-Disposition", name), ("ETag", f'"{client_file.digest()}"'))
        return Response(200, client_file.content(), "", "application/zip", headers)

    def _check_metrics(self, request: Request, call: RequestContext) -> None:
        """Check that a request brings a key that may read the metrics."""
        call.namespace = "metrics"
        given = _in_header(request.fields)
        if not given:
            raise Unauthorized(
                "metrics needs an access key (api.metrics); bpbroker key add NAME --allow metrics makes one"
            )
        # A key that may read all entries may also read how many there are.
        self._check_key(self._derived.keys["services"], given, call)
        access_keys.check(call.key, (Need("metrics", "Read"),))

    def _metrics(self, request: Request, call: RequestContext) -> PendingResponse:
        form = metrics.content_type(request.fields.get("accept", ""))
        scrape = self._scrapes.current()
        return self._scrape(scrape, lambda: Response(200, scrape.text(form), "", form), call)

    def _scrape(self, scrape: Scrape, show: Callable[[], Response], call: RequestContext) -> PendingResponse:
        """Return the response with the metrics; parts that do not reply in time are left out."""

        def ask() -> Future[Any]:
            return scrape.ask(self._addresses["healthcheck"])

        def finish(reply: Future[Any]) -> Response:
            refused = None if reply.cancelled() else reply.exception()
            return call.finish(show() if refused is None else response.rendered(reply, lambda _: show(), call.broken))

        begin = ask if call.key is None else self._key_uses.counted_first(call.key, ask, call, patient=False)
        return PendingResponse(begin, finish, SCRAPE_SECS, heavy=True)

    def _seen(self, measured: messages.Measured | None) -> metrics.Seen:
        """Return the current values of all metrics; called in a worker's thread."""
        access_log.collect()
        return metrics.Seen(
            measured,
            self.request_counts.counted(),
            dict(self._wrong_keys.totals),
            self._memory.held_bytes,
            self._memory.limit_bytes,
            time.monotonic() - self._began,
        )

    def count_unproven_wrong_key(self, source: str) -> None:
        """Count a wrong key that seems to come from an address, such as by UDP; any thread may call it."""
        self._wrong_keys.count(network_of(source), time.monotonic(), proven=False)


_Page = Callable[[Application, Request, RequestContext], Response | PendingResponse]

_PAGES: Final[Mapping[str, _Page]] = {
    "health": Application._health,  # noqa: SLF001 - this table is the class's own
    "ready": Application._ready,  # noqa: SLF001 - as above
    "live": Application._live,  # noqa: SLF001 - as above
    "openapi.json": Application._openapi,  # noqa: SLF001 - as above
    "bpclient.pyz": Application._client_file,  # noqa: SLF001 - as above
    "metrics": Application._metrics,  # noqa: SLF001 - as above
    "whoami": Application._whoami,  # noqa: SLF001 - as above
}
"""Paths that are no calls of a method. A namespace of the same name has its methods below such a path."""


class _HeldBack(TooManyRequests):
    """Too many wrong keys came from an address: the response to another wrong key is delayed."""

    delay_secs: float = 0.0


def _held_back(refusal: Response, delay_secs: float, call: RequestContext) -> PendingResponse:
    """Return a response that is sent later; no thread waits meanwhile."""

    def finish(_reply: Future[Any]) -> Response:
        return call.finish(refusal)

    return PendingResponse(Future, finish, delay_secs, patient=True)


def _shown_key(key: NamedKey) -> dict[str, Any]:
    """Return what the holder of a key may know about the key."""
    return {
        "name": key.name,
        "allow": list(key.allow),
        "until": None if key.until == math.inf else named_keys.shown_time(key.until),
        "uses": key.uses,
        "used": len(key.used_by),
        "from": list(map(str, key.networks)),
    }


def _own_names(names: Collection[str], settings: messages.Settings) -> frozenset[str]:
    """Return every name by which a browser may reach this broker, in lower case."""
    more = schema.option(settings, "api", "host_names")
    return frozenset(name.lower().removesuffix(".") for name in ("localhost", *names, *more))


def _about(values: Mapping[str, Any]) -> Any:
    """Return the name of the entry, lock or other thing that a call is about; None if it has no name."""
    for name in _ABOUT:
        if name in values:
            return values[name]
    return None


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
    """Decode a header as UTF-8; the server passes its bytes as Latin-1 text."""
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
