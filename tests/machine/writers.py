"""Writers outside the machine, and what they know: which writes were acknowledged, which are uncertain.

Each writer has names of its own and one connection, and does one call after the
other, so that for each name there is at most one call without an answer. After
a power cut an acknowledged write must be there; one without an answer may be
there or not, whole.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

WRITERS = 16
Entry = str | None
"""An entry's text; None when there is none of that name."""


class Api(http.client.HTTPSConnection):
    """A connection to the broker; its certificate is of the machine's own making and not looked at."""

    def __init__(self, port: int, timeout_secs: float = 20.0) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        super().__init__("127.0.0.1", port, timeout=timeout_secs, context=context)

    def call(self, method: str, **parameters: Any) -> tuple[int, Any]:
        """Call ``NAMESPACE/METHOD``; return status and JSON body.

        Raises:
            OSError, http.client.HTTPException: there was no answer.
        """
        self.request("POST", f"/{method}", json.dumps(parameters), {"Content-Type": "application/json"})
        response = self.getresponse()
        return response.status, json.loads(response.read())


@dataclass(slots=True)
class Known:
    """What one writer knows."""

    prefix: str
    entries: dict[str, Entry] = field(default_factory=dict)
    """The last acknowledged state of each name."""
    uncertain: dict[str, Entry] = field(default_factory=dict)
    """What a call without an answer would have made of the name."""
    acknowledged: int = 0
    refused: int = 0
    """Calls that were answered with 503, which means: not done."""
    problem: str = ""
    steps: int = 0

    def plan(self) -> tuple[str, dict[str, str], Entry]:
        """Return the next call, its parameters and the entry that it leaves."""
        number = self.steps
        self.steps += 1
        older = f"{self.prefix}-{number // 2}"
        if number % 8 == 7:
            return "services/Delete", {"name": older}, None
        name = older if number % 4 == 3 else f"{self.prefix}-{number}"
        text = f"{number:06}-" + "x" * 200
        return "services/Replace", {"name": name, "data": text}, text


class Writers:
    """Writers to one machine; :meth:`running` lets them write, :meth:`check` compares with what is there."""

    def __init__(self) -> None:
        self.known = [Known(f"w{number}") for number in range(WRITERS)]

    @property
    def acknowledged(self) -> int:
        """How many writes were acknowledged in all."""
        return sum(each.acknowledged for each in self.known)

    @property
    def refused(self) -> int:
        """How many writes were refused in all."""
        return sum(each.refused for each in self.known)

    def until(self, *, acknowledged: int = 0, refused: int = 0, within_secs: float = 300.0) -> None:
        """Wait until so many more writes were acknowledged, or refused."""
        acknowledged += self.acknowledged if acknowledged else 0
        refused += self.refused if refused else 0
        until = time.monotonic() + within_secs
        while self.acknowledged < acknowledged or self.refused < refused:
            problems = [each.problem for each in self.known if each.problem]
            assert not problems, problems
            assert time.monotonic() < until, f"only {self.acknowledged} acknowledged and {self.refused} refused"
            time.sleep(0.05)

    @contextmanager
    def running(self, port: int) -> Iterator[None]:
        """Let all write as fast as they can; they end when their connection breaks or the block does."""
        enough = threading.Event()
        threads = [threading.Thread(target=_write, args=(each, port, enough)) for each in self.known]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            enough.set()
            for thread in threads:
                thread.join()
        problems = [each.problem for each in self.known if each.problem]
        assert not problems, problems

    def check(self, found: Mapping[str, str]) -> None:
        """See that every acknowledged write is there, and learn what became of the uncertain ones."""
        wrong = []
        for each in self.known:
            for name in {**each.entries, **each.uncertain}:
                there = found.get(name)
                allowed = {each.entries.get(name)}
                if name in each.uncertain:
                    allowed.add(each.uncertain[name])
                if there not in allowed:
                    wrong.append((name, there, allowed))
                each.entries[name] = there
            each.uncertain.clear()
        assert not wrong, f"{len(wrong)} of {self.acknowledged} acknowledged writes are not there: {wrong[:5]}"
        strangers = found.keys() - {name for each in self.known for name in each.entries}
        assert not {name for name in strangers if name.startswith("w")}, sorted(strangers)[:5]


def _write(known: Known, port: int, enough: threading.Event) -> None:
    api = Api(port)
    try:
        while not enough.is_set():
            method, parameters, after = known.plan()
            name = parameters["name"]
            known.uncertain[name] = after
            try:
                status, body = api.call(method, **parameters)
            except (OSError, http.client.HTTPException):
                return  # no answer: what became of it the next check sees
            if status == 200:
                known.acknowledged += 1
                known.entries[name] = after
            elif status == 503:
                known.refused += 1
            else:
                known.problem = f"{method} was answered with {status}: {body}"
                return
            del known.uncertain[name]
    finally:
        api.close()


def entries(port: int) -> dict[str, str]:
    """Return the text of all entries, by name."""
    api = Api(port, 120.0)
    try:
        status, body = api.call("services/List")
    finally:
        api.close()
    assert status == 200, body
    return {name: entry.get("_str", "") for name, entry in body["data"].items()}


def await_broker(port: int, within_secs: float) -> Any:
    """Wait until the broker says that all is well; return its health."""
    until = time.monotonic() + within_secs
    last: deque[object] = deque(maxlen=1)
    while time.monotonic() < until:
        api = Api(port)
        try:
            api.request("GET", "/health")
            response = api.getresponse()
            status, body = response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            last.append(error)
        else:
            if status == 200:
                return body
            last.append(body)
        finally:
            api.close()
        time.sleep(0.2)
    raise AssertionError(f"no broker within {within_secs:.0f} s: {last[-1] if last else 'nothing was asked'}")
