"""Many nodes of a boot storm, in one process: each with a connection, an address and a session of its own.

Run as a process of its own: a :class:`Storm` as JSON on standard input, what became of it as JSON on standard output.
The same steps are taken against a broker and against etcd, each in the way that its makers recommend:

========  ==============================================  ==========================================================
step      broker                                          etcd, by its HTTPS/JSON gateway
========  ==============================================  ==========================================================
discover  a signed question by UDP                        (has none)
contact   TLS, who am I                                   TLS, its version
session   Open                                            lease grant
register  Register with the session                       put with the lease, if there is none
barrier   List, which waits for so many; above 1,000 a      count; the last one puts a key that the others watch
          counter, and an entry that the others wait for
number    Allocate from a pool                            put one key and read its version
once      the lock; the winner writes what it has done    the lock of its gateway; the same
read      ten entries                                     ten keys
leave     Close                                           lease revoke
========  ==============================================  ==========================================================
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import random
import secrets
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final

from bpbroker.discovery import datagram

_STEP_SECS: Final = 300.0
_TTL_SECS: Final = 900
"""Longer than the whole storm: these nodes renew nothing."""
_READS: Final = 10
_TRIES: Final = 5
_LISTED_MAX: Final = 1000
_CREATED: Final = "CREATE"


@dataclass(frozen=True, slots=True)
class Storm:
    """The part of a storm that one process is."""

    kind: str
    """``bpbroker`` or ``etcd``."""
    port: int
    first: int
    """Number of its first node."""
    count: int
    nodes: int
    """Of the whole storm."""
    arrival_secs: float
    """Over this time the nodes come; each has its moment in it."""
    begin: float
    """Wall clock at which the storm begins."""
    key: str = ""
    secret: str = ""


@dataclass(slots=True)
class Course:
    """What became of these nodes."""

    steps: dict[str, list[float]] = field(default_factory=dict)
    """Step to what it took each node, in seconds."""
    numbers: list[int] = field(default_factory=list)
    won: int = 0
    """How many nodes did the work that one had to do."""
    failures: list[str] = field(default_factory=list)
    retries: int = 0
    """Connections that were cut off and made again."""
    ended: float = 0.0
    """Wall clock at which the last one had left."""
    cpu_secs: float = 0.0


class Refused(Exception):
    """An answer that is no success."""


class Http:
    """One keep-alive connection."""

    def __init__(self, storm: Storm, node: int) -> None:
        self._storm = storm
        self._address = f"127.{1 + node // 62_500}.{node // 250 % 250}.{node % 250 + 1}"
        self._key = f"Authorization: Bearer {storm.key}\r\n" if storm.key else ""
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._storm.port, ssl=context, local_addr=(self._address, 0)
        )

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()

    async def send(self, path: str, document: Any) -> None:
        """Send a request."""
        assert self._writer is not None
        body = json.dumps(document)
        self._writer.write(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{self._key}"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        await self._writer.drain()

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        """Return the status and the header of an answer."""
        assert self._reader is not None
        lines = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in lines[1:] if b": " in line)
        return int(lines[0].split()[1]), fields

    async def line(self) -> Any:
        """Return the next document of an answer that goes on."""
        assert self._reader is not None
        size = int(await self._reader.readline(), 16)
        return json.loads((await self._reader.readexactly(size + 2))[:-2])

    async def ask(self, path: str, document: Any, *, allowed: tuple[int, ...] = ()) -> Any:
        """Return what is answered; None for a status that is allowed beside success."""
        assert self._reader is not None
        await self.send(path, document)
        status, fields = await self.head()
        if fields.get(b"transfer-encoding") == b"chunked":
            body = b""
            while size := int(await self._reader.readline(), 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
        else:
            body = await self._reader.readexactly(int(fields[b"content-length"]))
        if status in allowed:
            return None
        if status != 200:
            raise Refused(f"{path}: {status} {body[:200].decode(errors='replace')}")
        return json.loads(body)


class Node:
    """One node."""

    def __init__(self, storm: Storm, node: int, course: Course) -> None:
        self._storm, self._course = storm, course
        self.http = Http(storm, node)

    async def _patiently(self, connect: Callable[[], Awaitable[None]]) -> None:
        """Connect as clients do: a server that is too busy may cut a handshake off, and is asked again."""
        for _ in range(_TRIES):
            try:
                return await connect()
            except (OSError, EOFError):
                self._course.retries += 1
                await asyncio.sleep(1.0 + random.random())  # noqa: S311 - not for secrets
        return await connect()


class OnBroker(Node):
    """A node's steps against a broker."""

    def __init__(self, storm: Storm, node: int, course: Course) -> None:
        super().__init__(storm, node, course)
        self._name, self._session = f"storm/node-{node:05}", secrets.token_hex(16)
        self._node = node

    async def _services(self, method: str, *, allowed: tuple[int, ...] = (), **parameters: Any) -> Any:
        answer = await self.http.ask(f"/services/{method}/", parameters, allowed=allowed)
        return answer and answer["data"]

    async def discover(self) -> None:
        nonce = secrets.token_hex(16)
        question = datagram.signed_question("seed", nonce, self._storm.secret)
        loop = asyncio.get_running_loop()
        for _ in range(60):  # datagrams may be lost: their senders ask again
            answered: asyncio.Future[bytes] = loop.create_future()
            transport, _protocol = await loop.create_datagram_endpoint(
                partial(_Answer, answered), remote_addr=("127.0.0.1", self._storm.port)
            )
            try:
                transport.sendto(question)
                with suppress(TimeoutError):
                    payload = await asyncio.wait_for(answered, 1.0)
                    asked = datagram.Question("seed", nonce)
                    if datagram.decode_answer(payload, asked, self._storm.secret) is not None:
                        return
            finally:
                transport.close()
        raise Refused("no answer to a question by UDP")

    async def contact(self) -> None:
        await self._patiently(self.http.connect)
        await self.http.ask("/whoami", {})

    async def session(self) -> None:
        await self._services("Open", session=self._session, ttl=_TTL_SECS)

    async def register(self) -> None:
        data = {"role": "node", "number": self._node}
        await self._services("Register", name=self._name, data=json.dumps(data), session=self._session)

    async def barrier(self) -> None:
        if self._storm.nodes > _LISTED_MAX:
            # An answer with all names, to each of so many, is not what one would do.
            if (await self._services("Next", name="storm/arrived"))["number"] == self._storm.nodes:
                await self._services("Replace", name="storm/all", data="{}")
            await self._services("Get", name="storm/all", wait=_STEP_SECS)
            return
        found = await self._services("List", prefix="storm/node-", count=self._storm.nodes, wait=_STEP_SECS)
        if len(found) < self._storm.nodes:
            raise Refused(f"the barrier let through with {len(found)}")

    async def number(self) -> None:
        found = await self._services("Allocate", pool="storm", owner=self._name, to=65535)
        self._course.numbers.append(found["number"])

    async def once(self) -> None:
        work = "storm/once"
        if await self._services("Get", name=work, allowed=(404,)):
            return
        token = (await self._services("Lock", name=work, session=self._session, wait=_STEP_SECS))["token"]
        if not await self._services("Get", name=work, allowed=(404,)):
            self._course.won += 1
            await self._services("Replace", name=work, data='{"state": "done"}', lock=f"{work}:{token}")
        await self._services("Unlock", name=work, session=self._session)

    async def read(self) -> None:
        for index in range(_READS):
            other = (self._node * 7 + index) % self._storm.nodes
            await self._services("Get", name=f"storm/node-{other:05}", allowed=(404,))  # it may have left

    async def leave(self) -> None:
        await self._services("Close", session=self._session)


class OnEtcd(Node):
    """A node's steps against etcd."""

    def __init__(self, storm: Storm, node: int, course: Course) -> None:
        super().__init__(storm, node, course)
        self._name = f"storm/node-{node:05}"
        self._node, self._lease = node, ""

    async def contact(self) -> None:
        await self._patiently(self.http.connect)
        await self.http.ask("/v3/maintenance/status", {})

    async def session(self) -> None:
        self._lease = (await self.http.ask("/v3/lease/grant", {"TTL": str(_TTL_SECS)}))["ID"]

    async def register(self) -> None:
        data = json.dumps({"role": "node", "number": self._node})
        await self._create(self._name, data)

    async def _create(self, name: str, data: str) -> bool:
        put = {"key": _base64(name), "value": _base64(data), "lease": self._lease}
        compare = {"key": _base64(name), "target": _CREATED, "result": "EQUAL", "create_revision": "0"}
        done = await self.http.ask("/v3/kv/txn", {"compare": [compare], "success": [{"requestPut": put}]})
        return bool(done.get("succeeded"))

    async def barrier(self) -> None:
        everybody = {"key": _base64("storm/node-"), "range_end": _base64("storm/node."), "count_only": True}
        found = await self.http.ask("/v3/kv/range", everybody)
        if int(found.get("count", 0)) >= self._storm.nodes:
            await self.http.ask("/v3/kv/put", {"key": _base64("storm/all"), "value": ""})
            return
        watching = Http(self._storm, self._node)
        try:
            await watching.connect()
            after = int(found["header"]["revision"]) + 1
            asked = {"create_request": {"key": _base64("storm/all"), "start_revision": str(after)}}
            await watching.send("/v3/watch", asked)
            status, _ = await watching.head()
            if status != 200:
                raise Refused(f"/v3/watch: {status}")
            while not (await watching.line())["result"].get("events"):
                pass
        finally:
            watching.close()

    async def number(self) -> None:
        put = {"key": _base64("storm/number"), "value": "", "prev_kv": True}
        before = (await self.http.ask("/v3/kv/put", put)).get("prev_kv", {})
        self._course.numbers.append(int(before.get("version", 0)))

    async def once(self) -> None:
        work = {"key": _base64("storm/once")}
        if "kvs" in await self.http.ask("/v3/kv/range", work):
            return
        held = await self.http.ask("/v3/lock/lock", {"name": _base64("storm/lock"), "lease": self._lease})
        if "kvs" not in await self.http.ask("/v3/kv/range", work):
            self._course.won += 1
            await self.http.ask("/v3/kv/put", {**work, "value": _base64('{"state": "done"}')})
        await self.http.ask("/v3/lock/unlock", {"key": held["key"]})

    async def read(self) -> None:
        for index in range(_READS):
            other = (self._node * 7 + index) % self._storm.nodes
            await self.http.ask("/v3/kv/range", {"key": _base64(f"storm/node-{other:05}")})

    async def leave(self) -> None:
        await self.http.ask("/v3/lease/revoke", {"ID": self._lease})


class _Answer(asyncio.DatagramProtocol):
    def __init__(self, answered: asyncio.Future[bytes]) -> None:
        self._answered = answered

    def datagram_received(self, data: bytes, _address: Any) -> None:
        if not self._answered.done():
            self._answered.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answered.done():
            self._answered.set_exception(exc)


STEPS: Final = ("discover", "contact", "session", "register", "barrier", "number", "once", "read", "leave")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def _run(storm: Storm) -> Course:
    course = Course()
    kind: Callable[[Storm, int, Course], Any] = OnBroker if storm.kind == "bpbroker" else OnEtcd
    await asyncio.gather(*(_node(storm, node, kind, course) for node in range(storm.first, storm.first + storm.count)))
    course.ended = time.time()
    course.cpu_secs = time.process_time()
    return course


async def _node(storm: Storm, number: int, kind: Callable[[Storm, int, Course], Any], course: Course) -> None:
    node = kind(storm, number, course)
    moment = storm.begin + storm.arrival_secs * (number / storm.nodes)
    await asyncio.sleep(max(0.0, moment - time.time()))
    try:
        for name in STEPS:
            step: Callable[[], Awaitable[None]] | None = getattr(node, name, None)
            if step is not None:
                began = time.perf_counter()
                await asyncio.wait_for(step(), _STEP_SECS)
                course.steps.setdefault(name, []).append(time.perf_counter() - began)
    except (OSError, Refused, EOFError, TimeoutError, ssl.SSLError) as error:
        course.failures.append(f"{name}: {type(error).__name__}: {error}"[:300])
    finally:
        node.http.close()


def main() -> None:
    """Run the storm that stands on standard input."""
    gc.disable()
    course = asyncio.run(_run(Storm(**json.load(sys.stdin))))
    json.dump(asdict(course), sys.stdout)


if __name__ == "__main__":
    main()
