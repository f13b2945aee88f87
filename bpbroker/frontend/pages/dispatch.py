"""Where requests for pages come in. This runs in the loop's thread, so it is quick and waits for nothing.

Two things are done here. A key in the request is checked, so that wrong keys count with those of all other requests. A
page that waits for news is parked, so that it needs no thread. All else goes to the pages' own threads.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qs

from bpbroker import messages
from bpbroker.errors import BadRequest, MethodNotAllowed, RequestError, TimedOut, TooLarge, Unauthorized
from bpbroker.frontend import access_log
from bpbroker.frontend.access_keys import NamedKeys
from bpbroker.frontend.pages import live, plain
from bpbroker.frontend.pages.live import Feed, News
from bpbroker.frontend.pages.reading import Reading
from bpbroker.frontend.pages.threads import PageThreads
from bpbroker.frontend.pages.viewer import Credential, Gate, key_in
from bpbroker.frontend.pages.visit import Visit, session_in
from bpbroker.registry.named_keys import NamedKey
from bpbroker.server.request import Request, network_of
from bpbroker.server.response import JSON_TYPE, PendingResponse, Response

if TYPE_CHECKING:
    from bpbroker.frontend.pages.sessions import Sessions
    from bpbroker.frontend.pages.site import Site

logger = logging.getLogger(__name__)

PATH: Final = "/ui"
SIGN_IN: Final = f"{PATH}/sign-in"
SIGN_OUT: Final = f"{PATH}/sign-out"
EVENTS: Final = f"{PATH}/live/events"
PAGE_SECS: Final = 30.0
_FORM_MAX_BYTES: Final = 16 * 1024
_LATE: Final = TimedOut("The page took too long to make; try again")


class CameWith(Protocol):
    """Called with the name of the key in a request."""

    def __call__(self, name: str, *, signs_in: bool) -> None:
        """Note the name of a named key, and whether the request signs in with it."""


class Pages:
    """The pages of one broker.

    Args:
        addresses: the broker's actors by name; looked up at each use.
        named: the named keys, which the registry keeps up to date.
        workers: how many workers the server has; half as many threads make pages.
        port: where the broker listens: brokers of one host must not take each other's cookies.
    """

    def __init__(
        self, addresses: Mapping[str, messages.Address], named: NamedKeys, workers: int = 2, port: int = 0
    ) -> None:
        self.enabled = False
        self._addresses = addresses
        self._gate = Gate(named)
        self._threads = PageThreads(max(1, workers // 2))
        self._feed = Feed(lambda: addresses["registry"])
        self._cookie = f"__Host-bpbroker-{port}"
        self._making = threading.Lock()
        self._last_told: tuple[News | None, Response] = (None, _json({}))
        self._site: Site | None = None
        self._sessions: Sessions | None = None

    def settings_changed(self, keys: Mapping[str, tuple[str, ...]], opened: Container[str], *, enabled: bool) -> None:
        """Use these settings from now on; see :meth:`Gate.settings_changed`."""
        self._gate.settings_changed(keys, opened)
        self.enabled = enabled

    def serve(
        self,
        request: Request,
        request_id: str,
        finish: Callable[[Response], Response],
        check_guessing: Callable[[Sequence[object], str], None],
        wrong_key: Callable[[str], None],
        watch: Callable[[NamedKey, Future[Any]], None],
        came_with: CameWith,
    ) -> Response | PendingResponse:
        """Return the response to a request for a page.

        Args:
            request: its path begins with ``/ui``.
            request_id: for the log.
            finish: makes a response ready to be sent.
            check_guessing: called with a possible key and the address; raises an error if the key must not be
            compared.
            wrong_key: called with the address of a wrong key; may raise an error if there were too many.
            watch: ends a reply when a key is revoked.
            came_with: called with the name of the key by which the session was signed in, or is now.

        Raises:
            BadRequest, MethodNotAllowed, TooLarge: the request is none for a page.
            Unavailable: the named keys are not known yet.
        """
        path = request.path
        if request.method not in ("GET", "HEAD") and not (request.method == "POST" and path in (SIGN_IN, SIGN_OUT)):
            raise MethodNotAllowed("The pages are read with GET: they change nothing", ("GET", "HEAD"))
        session = session_in(request.fields.get("cookie", ""), self._cookie)
        credential = None if self._sessions is None else self._sessions.find(session)
        if credential is not None and credential.name:
            came_with(credential.name, signs_in=False)
        if path == EVENTS:
            return self._events(request, credential, finish, watch)
        visit = Visit(request.address, request_id, session)
        if request.method == "POST" and path == SIGN_IN:
            visit = self._sign_in(request, visit, check_guessing, wrong_key)
            if visit.credential is not None and visit.credential.name:
                came_with(visit.credential.name, signs_in=True)

        def ask() -> Future[Response]:
            return self._threads.ask(lambda: self._made().answer(request, visit), network_of(request.address))

        def made(reply: Future[Response]) -> Response:
            try:
                return finish(reply.result(0))
            except CancelledError:
                return finish(self.refusal(_LATE))
            except RequestError as error:
                return finish(self.refusal(error))
            except Exception:
                logger.exception("Request %s failed", request_id)
                why = f"Internal error; the broker's log has it under id {request_id}"
                return finish(Response(500, plain.page(500, why), "", plain.HTML, plain.HEADERS))

        return PendingResponse(ask, made, PAGE_SECS)

    @staticmethod
    def refusal(error: RequestError) -> Response:
        """Return the page of an error."""
        headers = plain.HEADERS
        if error.retry_after_secs is not None:
            headers += (("Retry-After", str(error.retry_after_secs)),)
        if isinstance(error, MethodNotAllowed):
            headers += (("Allow", ", ".join(error.allow)),)
        return Response(error.status, plain.page(error.status, str(error)), "", plain.HTML, headers)

    def _made(self) -> Site:
        """Return the CherryPy application; the first page makes it, in a thread of the pages."""
        if self._site is None:
            with self._making:
                if self._site is None:
                    from bpbroker.frontend.pages.sessions import Sessions
                    from bpbroker.frontend.pages.site import Site

                    self._sessions = Sessions()
                    reading = Reading(self._addresses)
                    self._site = Site(reading, self._gate, self._sessions, access_log.recent, self._cookie)
        return self._site

    def _sign_in(
        self,
        request: Request,
        visit: Visit,
        check_guessing: Callable[[Sequence[object], str], None],
        wrong_key: Callable[[str], None],
    ) -> Visit:
        """Check the key in a request."""
        if len(request.body) > _FORM_MAX_BYTES:
            raise TooLarge("An access key is shorter than that")
        try:
            form = parse_qs(request.body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=10)
        except ValueError:
            raise BadRequest("The form has more fields than the page that it is from") from None
        given = form.get("key", [""])[0]
        why = "Incorrect access key"
        key = key_in(given)
        check_guessing([given if key is None else key], request.address)
        try:
            credential = self._gate.credential(given, request.address)
        except Unauthorized as error:
            credential, why = None, str(error)
        else:
            if credential is None:
                wrong_key(request.address)
        refusal = "" if credential is not None else why
        return replace(visit, credential=credential, refusal=refusal, to=form.get("to", [""])[0])

    def _events(
        self,
        request: Request,
        credential: Credential | None,
        finish: Callable[[Response], Response],
        watch: Callable[[NamedKey, Future[Any]], None],
    ) -> Response | PendingResponse:
        """Return the changes after a page's cursor, as soon as there are some."""
        try:
            if credential is None:
                raise Unauthorized("Signed out")
            viewer = self._gate.viewer(credential, request.address)
        except Unauthorized as error:
            return finish(_json({"message": str(error)}, HTTPStatus.UNAUTHORIZED))
        cursor = parse_qs(request.query).get("after", [""])[0][:200]

        def ask() -> Future[News]:
            reply = self._feed.ask(cursor, lambda name: viewer.sees("Watch", name), credential)
            if viewer.key is not None:
                watch(viewer.key, reply)
            return reply

        def made(reply: Future[News]) -> Response:
            try:
                return finish(self._told(reply.result(0)))
            except CancelledError:
                return finish(_json(live.shown(News((), cursor))))
            except RequestError as error:
                return finish(_json({"message": str(error)}, error.status))

        return PendingResponse(ask, made, live.WAIT_SECS, patient=True)

    def _told(self, news: News) -> Response:
        """Return news as a response. Many pages get the same news at once, so it is made once."""
        known, shown = self._last_told
        if known is not news:
            shown = _json(live.shown(news))
            self._last_told = news, shown
        return shown


def _json(value: Mapping[str, Any], status: int = 200) -> Response:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    return Response(status, body, "", JSON_TYPE, plain.HEADERS)
