"""The pages: a CherryPy application. Each handler reads, and returns what its template shows.

CherryPy finds the handler by the path, keeps the session, encodes, compresses,
serves the static files and shows errors. It runs in the pages' own threads, and
is loaded by the first request for a page.
"""

from __future__ import annotations

import functools
import io
import logging
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, cast
from urllib.parse import quote, urlsplit

import cherrypy
import jinja2

from bpbroker import __version__
from bpbroker.errors import Forbidden, RequestError, Unauthorized
from bpbroker.frontend.pages import plain, shown
from bpbroker.frontend.pages.reading import Part, Reading, own_of, paged, stamp_of
from bpbroker.frontend.pages.sessions import CREDENTIAL, SESSION_SECS, PageSession, Sessions
from bpbroker.frontend.pages.viewer import Gate, Viewer
from bpbroker.frontend.pages.visit import VISIT, Visit, takes_gzip
from bpbroker.registry import named_keys
from bpbroker.server.request import Request
from bpbroker.server.response import Response

PREFIX: Final = "/ui"
_HERE: Final = Path(__file__).parent
_ROWS_MAX_PAGE: Final = 10_000_000
_OWN_HEADERS: Final = frozenset({"content-type", "content-length", "date", "server"})
"""Headers that the server writes itself."""
_DATE_MAX: Final = 40
"""A date in a header has 29 characters, of an old form 33."""
_STATES: Final = ("fail", "warning", "ok")
"""In the order in which they are shown."""
_COMPRESSED: Final = ("text/html", "text/css", "text/javascript", "application/javascript", "image/svg+xml")

logger = logging.getLogger(__name__)

Context = Mapping[str, Any]
P = ParamSpec("P")
T = TypeVar("T")


def _visit() -> Visit:
    found: Visit = cherrypy.request.wsgi_environ[VISIT]
    return found


def _viewer() -> Viewer:
    viewer: Viewer = cherrypy.request.viewer
    return viewer


def _exposed(handler: Callable[P, T]) -> Callable[P, T]:
    """Mark a method that CherryPy calls for the path of its name."""
    return cast("Callable[P, T]", cherrypy.expose(handler))


def _page(template: str) -> Callable[[Callable[P, Context]], Callable[P, str]]:
    """Return a decorator that makes a handler: a template shows the method's result, an error page its errors."""

    def decorate(read: Callable[P, Context]) -> Callable[P, str]:
        @functools.wraps(read)
        def handler(*args: P.args, **kwargs: P.kwargs) -> str:
            site = cast("Site", args[0])
            if len(args) > 1:  # the rest of a longer path
                raise cherrypy.NotFound
            try:
                context = read(*args, **kwargs)
            except RequestError as error:
                raise cherrypy.HTTPError(error.status, str(error)) from None
            return site.render(template, context)

        return _exposed(handler)

    return decorate


class _OnePage(cherrypy.dispatch.Dispatcher):  # type: ignore[misc]  # CherryPy has no types
    """Finds a page by its path, which is one name.

    CherryPy's own dispatcher follows attributes of attributes, also those that every Python object has
    (``/ui/__class__/``), and calls methods without their object.
    """

    def find_handler(self, path: str) -> tuple[Callable[..., Any] | None, list[str]]:
        """Return the method of this site whose name is the whole path, or None."""
        handler, rest = super().find_handler(path)
        request = cherrypy.serving.request
        if getattr(handler, "__self__", None) is request.app.root and "/" not in path.strip("/"):
            return handler, rest
        request.is_index = False  # so that no slash is added to what is not there
        return None, []


class Site:
    """All pages of one broker; CherryPy calls the method that the path names.

    Args:
        reading: asks the broker.
        gate: says who may see which page.
        sessions: of the people who have signed in.
        requests: returns the last requests.
        cookie: the name of the session's cookie.
    """

    def __init__(
        self,
        reading: Reading,
        gate: Gate,
        sessions: Sessions,
        requests: Callable[[], tuple[tuple[float, Any], ...] | None],
        cookie: str,
    ) -> None:
        self._reading = reading
        self._gate = gate
        self._requests = requests
        self._templates = _templates()
        toolbox = cherrypy._cptools.Toolbox("pages")  # noqa: SLF001 - the documented way to a toolbox of one's own
        toolbox.signed_in = cherrypy.Tool("before_handler", self._must_be_signed_in, priority=60)
        toolbox.cookie = cherrypy.Tool("before_finalize", self._finish_cookie, priority=95)
        # Not on CherryPy's tree, which all brokers of one process would share.
        self._application = cherrypy.Application(self, PREFIX, _configuration(sessions, cookie, self._error_page))
        self._application.toolboxes = {**self._application.toolboxes, "pages": toolbox}
        self._application.log.screen = False
        self._application.log.access_log.disabled = True  # the broker's own access log has every request
        self._cookie = cookie

    # --- serving ---

    def answer(self, request: Request, visit: Visit) -> Response:
        """Return the response to a request, in the thread that calls this."""
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], _error: object = None) -> None:
            started[:] = [status, headers]

        body = self._application(_environ(request, visit, self._cookie), start_response)
        try:
            content = b"".join(body)
        finally:
            body.close()
        status, headers = started
        # A response to an error inside of CherryPy has its cookie and lacks our headers.
        fields = tuple((name, value) for name, value in headers if name.lower() not in _OWN_HEADERS)
        fields = tuple((name, value) for name, value in fields if name != "Set-Cookie" or "SameSite=Strict" in value)
        there = {name.lower() for name, _ in fields}
        fields += tuple((name, value) for name, value in plain.HEADERS if name.lower() not in there)
        content_type = next((value for name, value in headers if name.lower() == "content-type"), "text/plain")
        return Response(int(status.partition(" ")[0]), content, "", content_type, fields)

    def render(self, template: str, context: Context) -> str:
        """Return a page."""
        now = time.time()
        viewer: Viewer | None = getattr(cherrypy.request, "viewer", None)
        path = cherrypy.request.path_info
        return self._templates.get_template(template).render(
            {"now": now, "viewer": viewer, "path": path, "version": __version__, "host": _host(), **context}
        )

    def _error_page(self, status: str, message: str, **_others: object) -> str:
        """Return the page for a refusal by CherryPy or for an unexpected error; never a traceback."""
        code = int(status.partition(" ")[0])
        cherrypy.response.headers["Content-Type"] = plain.HTML
        if code >= 500 and code != HTTPStatus.SERVICE_UNAVAILABLE and code != HTTPStatus.GATEWAY_TIMEOUT:
            # Without a template: the error may be in one.
            return plain.page(code, f"Internal error; the broker's log has it under id {_visit().request_id}").decode()
        if getattr(cherrypy.request, "viewer", None) is None:
            return plain.page(code, message).decode()
        return self.render("refused.html", {"heading": HTTPStatus(code).phrase, "why": message})

    # --- signing in and out ---

    def _must_be_signed_in(self) -> None:
        """Note the viewer, or redirect to the sign-in page."""
        session = cherrypy.serving.session
        credential = session.get(CREDENTIAL)
        if credential is not None:
            try:
                cherrypy.request.viewer = self._gate.viewer(credential, _visit().source)
            except Unauthorized as error:
                session.clear()
                session.delete()
                cherrypy.response.status = HTTPStatus.UNAUTHORIZED
                cherrypy.response.body = self._sign_in_form(str(error)).encode()
                cherrypy.request.handler = None
            return
        path = cherrypy.request.path_info
        query = cherrypy.request.query_string
        wanted = f"?{query}" if query else ""
        to = "" if path in ("", "/") else f"?to={quote(f'{PREFIX}{path}{wanted}')}"
        raise cherrypy.HTTPRedirect(f"{PREFIX}/sign-in{to}", 303)

    def _finish_cookie(self) -> None:
        """Limit the cookie to this site; send none before the sign-in."""
        cookie = cherrypy.response.cookie
        if self._cookie not in cookie:
            return
        session = cherrypy.serving.session
        left = session.store.left_secs(session.id)
        morsel = cookie[self._cookie]
        if not left:
            del cookie[self._cookie]
            if self._cookie in cherrypy.request.cookie:  # the session is over
                cookie[self._cookie] = ""
                morsel = cookie[self._cookie]
                morsel["max-age"] = 0
                morsel["path"], morsel["secure"], morsel["httponly"], morsel["samesite"] = "/", True, True, "Strict"
            return
        brought = cherrypy.request.cookie.get(self._cookie)
        if brought is not None and brought.value == session.id:
            del cookie[self._cookie]  # the browser has the cookie
            return
        morsel["max-age"] = int(left)
        morsel["expires"] = ""
        morsel["samesite"] = "Strict"

    def _sign_in_form(self, why: str, to: str = "") -> str:
        return self.render("sign_in.html", {"why": why, "to": _own_path(to), "is_open": self._gate.is_open()})

    @_exposed
    def sign_in(self, /, *, to: object = "", **_others: object) -> str:
        """Show the sign-in page; or, if the request has a key that counts, begin a session."""
        visit = _visit()
        target = _own_path(visit.to or to)
        if visit.credential is not None:
            session = cherrypy.serving.session
            session.regenerate()  # a new id: the one that came from the browser may be known to others
            session[CREDENTIAL] = visit.credential
            session.save()
            raise cherrypy.HTTPRedirect(target, 303)
        if visit.refusal:
            cherrypy.response.status = HTTPStatus.UNAUTHORIZED
        return self._sign_in_form(visit.refusal, target)

    @_exposed
    def sign_out(self, /, **_others: object) -> str:
        """End the session; only by POST, so no link can do it."""
        if cherrypy.request.method != "POST":
            raise cherrypy.HTTPRedirect(f"{PREFIX}/", 303)
        session = cherrypy.serving.session
        session.clear()
        session.delete()
        raise cherrypy.HTTPRedirect(f"{PREFIX}/sign-in", 303)

    # --- pages ---

    @_page("overview.html")
    def index(self, /, **_others: object) -> Context:
        """Read the broker's health."""
        report = self._reading.health()
        viewer = _viewer()
        entries = sum(self._reading.entries(viewer, prefix, 1).count for prefix in viewer.prefixes("List"))
        return {
            "report": report,
            "entries": entries,
            "parts": sorted(
                (part for part in report.parts if _concerns(viewer, part.name)),
                key=lambda part: _STATES.index(part.state),
            ),
        }

    @_page("entries.html")
    def entries(self, /, *, prefix: object = "", page: object = "1", **_others: object) -> Context:
        """Read a page of the entries with a prefix."""
        viewer, wanted = _viewer(), _text(prefix)
        return {
            "prefix": wanted,
            "part": self._reading.entries(viewer, wanted, _number(page)),
            "limits": viewer.prefixes("List"),
        }

    @_page("entry.html")
    def entry(self, /, *, name: object = "", **_others: object) -> Context:
        """Read one entry and its history."""
        wanted = _text(name)
        record, found = self._reading.entry(_viewer(), wanted)
        return {
            "entry": found,
            "size": len(record.json),
            "tree": shown.tree(found.own),
            "history": [(event, *stamp_of(event)) for event in self._reading.history(wanted)],
        }

    @_exposed
    def raw(self, /, *, name: object = "", **_others: object) -> bytes:
        """Return one entry as it is stored."""
        try:
            record, _ = self._reading.entry(_viewer(), _text(name))
        except RequestError as error:
            raise cherrypy.HTTPError(error.status, str(error)) from None
        cherrypy.response.headers["Content-Type"] = "application/json"
        cherrypy.response.headers["Content-Disposition"] = 'attachment; filename="entry.json"'
        return record.json

    @_page("nodes.html")
    def nodes(self, /, *, page: object = "1", lost: object = "1", **_others: object) -> Context:
        """Read the sessions, and the entries that ended with one lately."""
        viewer = _viewer()
        return {
            "part": self._reading.nodes(viewer, _number(page)),
            "lost": self._reading.lost(viewer, _number(lost)),
        }

    @_page("locks.html")
    def locks(self, /, *, prefix: object = "", page: object = "1", **_others: object) -> Context:
        """Read the locks, with holders and waiting sessions."""
        wanted = _text(prefix)
        return {"prefix": wanted, "part": self._reading.locks(_viewer(), wanted, _number(page))}

    @_page("numbers.html")
    def numbers(self, /, *, prefix: object = "", page: object = "1", **_others: object) -> Context:
        """Read the pools and counters."""
        wanted = _text(prefix)
        pools, counters = self._reading.numbers(_viewer(), wanted, _number(page))
        return {"prefix": wanted, "pools": pools, "counters": counters, "part": _longer(pools, counters)}

    @_page("keys.html")
    def keys(self, /, *, page: object = "1", **_others: object) -> Context:
        """Read the access keys by name, never their secrets."""
        viewer = _viewer()
        rows = [(key, _state(key)) for key in self._gate.named(viewer)]
        return {"part": paged(rows, _number(page)), "sections": self._gate.keyed(viewer)}

    @_page("extensions.html")
    def extensions(self, /, *, page: object = "1", **_others: object) -> Context:
        """Read the health of the extensions, each with its last error."""
        viewer = _viewer()
        found = [
            (part.name.removeprefix("extension "), part)
            for part in self._reading.health().parts
            if part.name.startswith("extension ") and _concerns(viewer, part.name)
        ]
        return {"part": paged(found, _number(page))}

    @_page("backups.html")
    def backups(self, /, *, page: object = "1", **_others: object) -> Context:
        """Read the backups, newest first."""
        _must_be_operator("Backups")
        return {"part": paged(list(self._reading.backups()), _number(page))}

    @_page("requests.html")
    def requests(self, /, *, page: object = "1", **_others: object) -> Context:
        """Read the last requests, newest first."""
        viewer = _viewer()
        kept = self._requests()
        mine = None if viewer.operator else (viewer.key.name if viewer.key is not None else "")
        rows = [(when, line) for when, line in reversed(kept or ()) if mine is None or (mine and line.key == mine)]
        return {"part": paged(rows, _number(page)), "kept": kept is not None}

    @_page("live.html")
    def live(self, /, **_others: object) -> Context:
        """Read the last changes; a script in the page adds the next ones."""
        events, cursor = self._reading.happened(_viewer())
        return {"events": [(event, *stamp_of(event)) for event in events], "cursor": cursor}


def _configuration(sessions: Sessions, cookie: str, error_page: Callable[..., str]) -> dict[str, dict[str, Any]]:
    """Return the settings of CherryPy's tools, by path."""
    return {
        "/": {
            "error_page.default": error_page,
            "request.dispatch": _OnePage(),
            "request.show_tracebacks": False,
            "request.show_mismatched_params": False,
            "tools.log_headers.on": False,  # the cookie is one of them
            "request.methods_with_bodies": (),
            "tools.encode.on": True,
            "tools.encode.encoding": "utf-8",
            "tools.gzip.on": True,
            "tools.gzip.mime_types": list(_COMPRESSED),
            "tools.response_headers.on": True,
            "tools.response_headers.headers": list(plain.HEADERS),
            "tools.sessions.on": True,
            "tools.sessions.storage_class": PageSession,
            "tools.sessions.store": sessions,
            "tools.sessions.locking": "explicit",
            "tools.sessions.clean_freq": 0,
            "tools.sessions.name": cookie,
            "tools.sessions.path": "/",
            "tools.sessions.timeout": SESSION_SECS // 60,
            "tools.sessions.secure": True,
            "tools.sessions.httponly": True,
            "pages.signed_in.on": True,
            "pages.cookie.on": True,
        },
        "/static": {
            "tools.encode.on": False,
            "tools.staticdir.on": True,
            # On Windows these types come from the system's registry, where programs may have changed them.
            "tools.staticdir.content_types": {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"},
            "tools.staticdir.dir": str(_HERE / "static"),
            "tools.sessions.on": False,
            "pages.signed_in.on": False,
            "pages.cookie.on": False,
            "tools.response_headers.headers": [*plain.HEADERS, ("Cache-Control", "max-age=3600")],
        },
        "/sign-in": {"pages.signed_in.on": False},
        "/sign-out": {"pages.signed_in.on": False},
    }


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        text=shown.text,
        short=shown.short,
        own=own_of,
        size=shown.size,
        duration=shown.duration,
        words=shown.named,
        iso=named_keys.shown_time,
        path_name=lambda path: Path(path).name,
    )
    environment.globals.update(moment=shown.moment, figure=shown.figure, monotonic=time.monotonic)
    return environment


def _environ(request: Request, visit: Visit, cookie: str) -> dict[str, Any]:
    """Return a request as a WSGI environ (PEP 3333), without its body, which may hold a key.

    It has only the header fields that pages need, in the one form that they need: CherryPy takes seconds for a long
    header of commas or quotes, and answers a small header of many ranges with megabytes.
    """
    host = request.fields.get("host", "")
    fields = {"HTTP_HOST": host}
    if visit.session:
        fields["HTTP_COOKIE"] = f"{cookie}={visit.session}"
    if takes_gzip(request.fields.get("accept-encoding", "")):
        fields["HTTP_ACCEPT_ENCODING"] = "gzip"
    since = request.fields.get("if-modified-since", "")
    if len(since) < _DATE_MAX:
        fields["HTTP_IF_MODIFIED_SINCE"] = since
    return {
        **fields,
        "REQUEST_METHOD": "GET" if request.method == "HEAD" else request.method,
        "SCRIPT_NAME": PREFIX,
        "PATH_INFO": request.path.removeprefix(PREFIX),
        "QUERY_STRING": request.query,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": host.rpartition(":")[0] or host,
        "SERVER_PORT": "443",
        "REMOTE_ADDR": visit.source,
        "CONTENT_LENGTH": "0",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        VISIT: visit,
    }


def _host() -> str:
    found: str = cherrypy.request.headers.get("Host", "")
    return found


def _text(value: object) -> str:
    """Return a parameter's value; if it was given several times, the first one."""
    if isinstance(value, list):
        value = value[0] if value else ""
    return value if isinstance(value, str) else ""


def _number(value: object) -> int:
    """Return a page's number; 1 if the text is no number."""
    text = _text(value)
    return max(1, min(int(text), _ROWS_MAX_PAGE)) if text.isascii() and text.isdigit() and len(text) < 10 else 1


def _own_path(value: object) -> str:
    """Return a path of these pages; the overview for any other path."""
    path = _text(value)
    try:
        parts = urlsplit(path)
    except ValueError:
        return f"{PREFIX}/"
    own = path.startswith(f"{PREFIX}/") and not parts.netloc and not parts.scheme and path.isprintable()
    return path if own and "\\" not in path and not path.startswith(f"{PREFIX}/sign-") else f"{PREFIX}/"


def _must_be_operator(what: str) -> None:
    if not _viewer().operator:
        raise Forbidden(f"{what} are shown to a key that may do everything in services (services:*)")


def _concerns(viewer: Viewer, part: str) -> bool:
    """Whether the viewer may see the health of a part: of an extension only if they may call it."""
    return not part.startswith("extension ") or viewer.knows(part.removeprefix("extension "))


def _state(key: named_keys.NamedKey) -> str:
    now = time.time()
    if key.revoked is not None:
        return "revoked"
    if now >= key.until:
        return "ended"
    return "in force" if key.is_in_force(now) else "used up"


def _longer(one: Part, other: Part) -> Part:
    return one if one.count >= other.count else other
