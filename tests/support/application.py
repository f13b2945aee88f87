"""The application with made-up actors, for tests without a server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from bpbroker import messages
from bpbroker.config import layers
from bpbroker.frontend.access_keys import NamedKeys
from bpbroker.frontend.application import Application
from bpbroker.record import Record
from bpbroker.server.budget import Budget
from bpbroker.server.request import Request
from bpbroker.server.response import PendingResponse

RECORD = Record("foo", b'{"_str": "bar", "last_write_ip": "10.0.0.7", "last_write_ts": 1420068290}', 123_000)
TOKEN = "control-token"
SETTINGS = {
    "services": {},
    "ping": {},
    "ossec": {"_access_key": "secret"},
    "pkg.sub": {},
    "_config": {},
    "api": {},
    "worker": {},
}


class Address:
    """An actor that answers what it is told to, at once, and remembers what it was asked."""

    def __init__(self, name: str, outcome: Any = None) -> None:
        self.name = name
        self.outcome = outcome
        self.asked: list[Any] = []

    def tell(self, message: Any) -> None:
        self.asked.append(message)

    def ask(self, message: Any, timeout_secs: float) -> Future[Any]:
        assert timeout_secs > 0
        self.asked.append(message)
        reply: Future[Any] = Future()
        if isinstance(self.outcome, BaseException):
            reply.set_exception(self.outcome)
        elif self.outcome is not Ellipsis:
            reply.set_result(self.outcome)
        return reply

    def reply_now(self, message: Any) -> None:
        """Have it asked for everything."""


class Answer(NamedTuple):
    status: int
    reason: str
    headers: Mapping[str, str]
    """Those that the application makes; the server adds what goes with any response."""
    content_type: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        found = self.json
        assert (found["success"], found["data"]) == (False, {})
        message: str = found["message"]
        return message


class Broker:
    """The application with actors that do what a test wants."""

    def __init__(self, settings: Mapping[str, Any] = SETTINGS) -> None:
        self.registry = Address("registry", RECORD)
        self.ossec = Address("extension ossec", messages.CallResult(200, "", "text/plain", b"done"))
        self.healthcheck = Address("healthcheck")
        self.backup = Address("backup")
        self.store = Address("config store")
        self.loop = Address("broker")
        named = {
            "registry": self.registry,
            "extension ossec": self.ossec,
            "extension pkg.sub": Address("extension pkg.sub", messages.CallResult(200, "", "text/plain", b"sub")),
            "healthcheck": self.healthcheck,
            "backup": self.backup,
            "config store": self.store,
            "broker": self.loop,
        }
        self.memory = Budget()
        self.keys = NamedKeys()
        self.keys.complete()
        self.application = Application(
            layers.freeze(settings), named, TOKEN, ("Broker", "*.example.org"), self.memory, self.keys
        )

    def call(
        self, target: str, method: str = "POST", body: bytes = b"", *, source: str = "10.0.0.7", **headers: str
    ) -> Answer:
        fields = {name.lower().replace("_", "-"): value for name, value in headers.items()}
        fields.setdefault("host", "broker:20443")
        path, _, query = target.partition("?")
        result = self.application(Request(method, path, query, fields, source, body))
        if isinstance(result, PendingResponse):
            result.ask()
            assert result.reply is not None
            try:
                result.reply.exception(result.timeout_secs)
            except TimeoutError:
                result.give_up()
            result = result.response()
        code, _, reason = result.status_line.partition(" ")
        given = dict(result.headers)
        assert len(given) == len(result.headers)
        return Answer(int(code), reason, given, result.content_type, result.body)

    def post(self, target: str, **parameters: Any) -> Answer:
        return self.call(target, body=json.dumps(parameters).encode(), CONTENT_TYPE="application/json")
