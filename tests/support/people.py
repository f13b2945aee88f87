"""The pages over a real registry that has no thread and no disk, for tests without a server or a browser."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlencode

from bpbroker import messages
from bpbroker.actors.inbox import Envelope
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.config import layers
from bpbroker.errors import Unavailable
from bpbroker.frontend.access_keys import NamedKeys
from bpbroker.frontend.application import Application
from bpbroker.frontend.pages import Pages
from bpbroker.messages import HealthReport, PartHealth, Replace
from bpbroker.registry import named_keys
from bpbroker.registry.named_keys import digest_of
from bpbroker.registry.requests import Lock, Open
from bpbroker.server.request import Request
from bpbroker.server.response import PendingResponse, Response
from tests.actors.conftest import Ledger
from tests.support.application import Address

KEY = "canary-own-key-1f9a"
"""The ``_access_key`` of ``services``."""
SECRET = "canary-0123456789abcdefghij"
"""The secret of each named key."""
CANARY = "canary-"
PORT = 20443


class Registered:
    """A registry's actor: a message is taken up when it is asked, by whoever asks."""

    name = "registry"

    def __init__(self, actor: Registry) -> None:
        self._actor = actor
        self._lock = threading.RLock()
        self.asked: list[Any] = []
        self.is_gone = False

    def tell(self, message: Any) -> None:
        raise AssertionError(message)

    def reply_now(self, message: Any) -> None:
        """Have it asked for everything."""

    def ask(self, message: Any, timeout_secs: float) -> Future[Any]:
        assert timeout_secs > 0
        if self.is_gone:
            raise Unavailable("gone")
        reply: Future[Any] = Future()
        self.asked.append(message)
        with self._lock:
            self._actor.on_receive(Envelope(message, reply))
            while not self._actor.actor_inbox.empty():
                self._actor.on_receive(self._actor.actor_inbox.get().message)
        return reply


class People:
    """Pages, and a browser that keeps its cookie."""

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self.named = NamedKeys()
        self.ledger = Ledger()
        registry = Registry(LocalBackend(lambda: self.ledger), layers.DEFAULTS, self.named)
        registry.started()
        self.registry = Registered(registry)
        parts = (
            PartHealth("registry", True, 1.0, figures={"entries": 3, "sessions": 1, "waiting": 0}),
            PartHealth("frontend", True, 1.0, figures={"connections": 2}),
            PartHealth("extension ossec", False, 1.0, "its module cannot be imported: <b>boom</b>", 2),
        )
        self.healthcheck = Address("healthcheck", HealthReport(True, parts))
        self.backup = Address("backup", (messages.BackupInfo("/var/x/backups/bpbroker.json.1", 1.0, 2048),))
        addresses: dict[str, messages.Address] = {
            "registry": self.registry,
            "healthcheck": self.healthcheck,
            "backup": self.backup,
        }
        self.pages = Pages(addresses, self.named, 2, PORT)
        self.settings = {
            "services": {"_access_key": KEY},
            "ping": {},
            "api": {},
            "ossec": {"_access_key": f"{CANARY}ossec"},
            **(settings or {}),
        }
        self.application = Application(
            layers.freeze(self.settings), addresses, "control", ("broker",), None, self.named, self.pages
        )
        self.cookie = ""

    # --- what there is ---

    def put(self, name: str, **data: Any) -> None:
        self.registry.ask(Replace(name, data, "10.0.0.7"), 1.0).result(1)

    def node(self, session: str, name: str, lock: str = "") -> None:
        self.registry.ask(Open(session, 60.0, "10.0.0.8"), 1.0).result(1)
        self.registry.ask(Replace(name, {"state": "up"}, "10.0.0.8", session=session), 1.0).result(1)
        if lock:
            self.registry.ask(Lock(lock, session, "10.0.0.8", 1, "node one", 60.0), 1.0)

    def give(self, name: str, *allow: str, **members: Any) -> str:
        """Let there be a named key; return it as people type it."""
        stored = {"sha256": digest_of(SECRET).hex(), "allow": allow, **members}
        self.named.take(named_keys.stored_name(name), json.dumps(stored).encode())
        return f"{name}.{SECRET}"

    # --- the browser ---

    def send(self, target: str, method: str = "GET", body: bytes = b"", **headers: str) -> Response:
        """Send one request, with the cookie that was given last."""
        fields = {"host": f"broker:{PORT}", "user-agent": "Mozilla/5.0", "sec-fetch-site": "same-origin"}
        fields |= {name.lower().replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            fields.setdefault("cookie", self.cookie)
        path, _, query = target.partition("?")
        result = self.application(Request(method, path, query, fields, "10.0.0.9", body))
        if isinstance(result, PendingResponse):
            result.ask()
            assert result.reply is not None
            try:
                result.reply.exception(min(result.timeout_secs, 10.0))
            except TimeoutError:
                result.give_up()
            result = result.response()
        for name, value in result.headers:
            if name == "Set-Cookie":
                self.cookie = value.partition(";")[0]
        return result

    def get(self, target: str, /, **parameters: Any) -> str:
        """Open a page that must be there; return its HTML."""
        response = self.send(f"/ui/{target}" + (f"?{urlencode(parameters)}" if parameters else ""))
        text = response.body.decode()
        assert response.status == 200, (response.status, text)
        return text

    def sign_in(self, key: str = KEY, to: str = "") -> Response:
        body = urlencode({"key": key, "to": to}).encode()
        return self.send("/ui/sign-in", "POST", body, ORIGIN=f"https://broker:{PORT}")


def fields_of(response: Response) -> dict[str, str]:
    return dict(response.headers)


def words(html: str) -> str:
    """Return the text of a page, roughly."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())
