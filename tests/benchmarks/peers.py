"""Who is compared: our broker, and what a user would pick instead, each as its makers run it.

All serve TLS with a certificate of the same kind (ECDSA P-256) and call a write
done when it is on disk. A peer that is not installed is left out.
"""

from __future__ import annotations

import base64
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import psutil

from bpbroker import __version__
from bpbroker.server import host_certificate
from tests.benchmarks.client import Failed, Job, Outcome, run, warm_up_secs
from tests.support.ports import free_port
from tests.support.running import RunningBroker

NAMES: Final = tuple(f"node-{number:04}" for number in range(1000))
DATA: Final = json.dumps({"role": "replica", "address": "192.0.2.17", "note": "x" * 32})
ROOT: Final = Path(__file__).parents[2]
HANG_SECS: Final = 5.0
"""Time limit of the extension that hangs."""
_START_SECS: Final = 30.0
_TRIVIAL: Final = "def Echo(rh):\n    rh.data = rh.qs['data']\n"
_HANGING: Final = "import time\n\n\ndef Hang(rh):\n    while True:\n        time.sleep(60)\n"


class Absent(Exception):
    """A peer cannot take part; ``str()`` says why."""


def https_post(path: str, document: Mapping[str, Any]) -> bytes:
    """Return an HTTP request with a JSON body, as small as clients make them."""
    body = json.dumps(document)
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


class Peer:
    """One server under load, with a folder of its own."""

    name = ""
    protocol = "http"
    greeting = b""
    writes: Sequence[bytes] = ()
    """Requests that write, one a name; empty if it cannot."""
    reads: Sequence[bytes] = ()
    calls: Sequence[bytes] = ()
    """Requests that run an extension; empty if it has none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / self.name.replace(" ", "-")
        self.folder.mkdir()
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.cert, self.key = self.folder / "cert.pem", self.folder / "key.pem"

    def version(self) -> str:
        """Return its version in a word or two."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it and wait until it answers; its names exist then.

        Raises:
            Absent: it is not installed, or does not start.
        """
        self.port = free_port()
        host_certificate.make_pair(self.cert, self.key, ["localhost", "127.0.0.1"])
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.folder, env=self.environ(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.await_answer()

    def command(self) -> list[str]:
        """Return the words that start it."""
        raise NotImplementedError

    def environ(self) -> dict[str, str]:
        """Return the environment that it runs in."""
        return dict(os.environ)

    def await_answer(self) -> None:
        """Write each name once, so that reads find them; try again while it is starting.

        Raises:
            Absent: it does not answer in time.
        """
        deadline = time.monotonic() + _START_SECS
        while True:
            try:
                run(self.job(self.writes or self.reads, 4))
            except Failed as error:
                ended = self.process is not None and self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise Absent(f"does not start: {error}") from None
                time.sleep(0.1)
            else:
                return

    def job(self, requests: Sequence[bytes], connections: int, secs: float = 0.0, **how: Any) -> Job:
        """Return the client's job for some requests to this peer; ``how`` are further fields of it."""
        return Job(self.port, self.protocol, requests, connections, secs, self.greeting, **how)

    def cpu_secs(self) -> float:
        """Return the CPU time that it and its children have taken."""
        if self.process is None:
            return 0.0
        whole = psutil.Process(self.process.pid)
        times = [each.cpu_times() for each in (whole, *whole.children(recursive=True))]
        found: float = sum(each.user + each.system for each in times)
        return found

    def measured(self, job: Job) -> Outcome:
        """Run a job, and see what it costs this server.

        Raises:
            Failed: an answer was no success, or none came.
        """
        before = self.cpu_secs()
        found = run(job)
        calls = found.per_second * (job.secs + warm_up_secs(job.secs))
        return replace(found, server_cpu_us=(self.cpu_secs() - before) / calls * 1e6)

    def memory_mib(self) -> float:
        """Return the resident memory of it and its children."""
        if self.process is None:
            return 0.0
        whole = psutil.Process(self.process.pid)
        size: int = sum(each.memory_info().rss for each in (whole, *whole.children(recursive=True)))
        return size / 2**20

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


class Ours(Peer):
    """A whole bpbroker with a fresh home and two extensions, one of which hangs."""

    name = "bpbroker"
    writes = tuple(https_post("/services/Replace/", {"name": name, "data": DATA}) for name in NAMES)
    reads = tuple(https_post("/services/Get/", {"name": name}) for name in NAMES)
    calls = (https_post("/trivial/Echo/", {"data": "x"}),)

    def __init__(self, folder: Path, entries: int = 0, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(folder)
        extra = {f"other-{number:06}": json.loads(DATA) for number in range(entries)}
        sections = {"trivial": {}, "hanging": {"_timeout_secs": HANG_SECS}}
        self.broker = RunningBroker(self.folder, {"services": extra, **sections, **(settings or {})})
        (self.broker.lib / "trivial.py").write_text(_TRIVIAL)
        (self.broker.lib / "hanging.py").write_text(_HANGING)
        # Warnings as errors are for tests; nobody runs it so.
        del self.broker.environ["PYTHONWARNINGS"]

    def version(self) -> str:
        return __version__

    def start(self) -> None:
        self.broker.start()
        self.process, self.port = self.broker.process, self.broker.port
        self.await_answer()
        run(self.job(self.calls, 1))  # the first call starts the extension's process

    def stop(self) -> None:
        self.broker.kill()
        self.process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let an extension hang for the time of the block, which must be shorter than :data:`HANG_SECS`.

        Raises:
            Failed: it did not hang all that time.
        """
        with closing(self.broker.connect()) as hung:
            began = time.monotonic()
            hung.request("POST", "/hanging/Hang/", "{}", {"Content-Type": "application/json"})
            yield
            lasted = time.monotonic() - began
            status = hung.getresponse().status  # the next hang begins with a process of its own
        if status != HTTPStatus.GATEWAY_TIMEOUT or lasted > HANG_SECS:
            raise Failed(f"the extension did not hang for the {lasted:.1f} s that were measured: {status}")


class Hello(Peer):
    """Our server alone, with an application that does nothing."""

    name = "hello on ours"
    reads = Ours.reads
    server = "ours"

    def version(self) -> str:
        return "an application that does nothing, on our server: shows what application, actor and registry cost"

    def command(self) -> list[str]:
        words = (self.server, str(self.port), str(self.cert), str(self.key))
        return [sys.executable, "-m", "tests.benchmarks.hello", *words]

    def environ(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


class StockHello(Hello):
    """The same on cheroot as it is, with our TLS as its adapter."""

    name = "hello on cheroot"
    server = "cheroot"

    def version(self) -> str:
        cheroot = importlib.metadata.version("cheroot")
        return f"the same on a stock cheroot {cheroot} with our TLS: the limit that its server and threads set"


class Etcd(Peer):
    """One etcd, over its HTTPS/JSON gateway; its reads are linearizable, as ours are."""

    name = "etcd"
    writes = tuple(
        https_post(
            "/v3/kv/put",
            {"key": base64.b64encode(name.encode()).decode(), "value": base64.b64encode(DATA.encode()).decode()},
        )
        for name in NAMES
    )
    reads = tuple(https_post("/v3/kv/range", {"key": base64.b64encode(name.encode()).decode()}) for name in NAMES)

    def version(self) -> str:
        return _first_line("etcd", "--version").removeprefix("etcd Version: ")

    def command(self) -> list[str]:
        peer, client = f"http://127.0.0.1:{free_port()}", f"https://127.0.0.1:{self.port}"
        return [
            *_installed("etcd"),
            *("--name", "one", "--data-dir", "data", "--cert-file", str(self.cert), "--key-file", str(self.key)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"),
        ]


class OnEtcd(Peer):
    """A broker whose registry is on an etcd of its own, which runs as the one that is compared with."""

    name = "bpbroker on etcd"
    writes = Ours.writes
    reads = Ours.reads

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.etcd = Etcd(self.folder)
        section = {"store": "etcd", "endpoints": [], "ca_cert": str(self.etcd.cert)}
        self.broker = RunningBroker(self.folder, {"_registry": section})
        del self.broker.environ["PYTHONWARNINGS"]

    def version(self) -> str:
        return (
            f"its registry on an etcd of its own, {self.etcd.version()}: held against etcd itself, not against bpbroker"
        )

    def start(self) -> None:
        if importlib.util.find_spec("urllib3") is None:
            raise Absent("not installed (pip install '.[etcd]')")
        self.etcd.start()
        settings = json.loads(self.broker.config.read_text())
        settings["_registry"]["endpoints"] = [f"https://127.0.0.1:{self.etcd.port}"]
        self.broker.config.write_text(json.dumps(settings))
        self.broker.start()
        self.process, self.port = self.broker.process, self.broker.port
        self.await_answer()

    def stop(self) -> None:
        self.broker.kill()
        self.process = None
        self.etcd.stop()


class Redis(Peer):
    """Redis with TLS, its append-only file synced before each answer."""

    name = "redis"
    protocol = "redis"
    writes = tuple(
        b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(name), name.encode(), len(DATA), DATA.encode())
        for name in NAMES
    )
    reads = tuple(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(name), name.encode()) for name in NAMES)

    def version(self) -> str:
        return _first_line("redis-server", "--version").partition("v=")[2].partition(" ")[0]

    def command(self) -> list[str]:
        return [
            *_installed("redis-server"),
            *("--bind", "127.0.0.1", "--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"),
            *("--tls-cert-file", str(self.cert), "--tls-key-file", str(self.key)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--dir", str(self.folder)),
        ]


class Pyro(Peer):
    """Pyro5's name server with SQL storage, spoken to with the very bytes that its own proxy sends."""

    name = "pyro5"
    protocol = "pyro"

    def version(self) -> str:
        return importlib.metadata.version("Pyro5")

    def start(self) -> None:
        if importlib.util.find_spec("Pyro5") is None:
            raise Absent("not installed (pip install Pyro5)")
        wire = importlib.import_module("Pyro5.protocol")
        serpent = importlib.import_module("Pyro5.serializers").serializers["serpent"]
        server = "Pyro.NameServer"

        def call(method: str, *arguments: str) -> bytes:
            content = serpent.dumpsCall(server, method, arguments, {})
            return bytes(wire.SendingMessage(wire.MSG_INVOKE, 0, 0, serpent.serializer_id, content).data)

        hand = serpent.dumps({"handshake": "hello", "object": server})
        self.greeting = bytes(wire.SendingMessage(wire.MSG_CONNECT, 0, 0, serpent.serializer_id, hand).data)
        self.writes = tuple(call("register", name, f"PYRO:{name}@192.0.2.17:4444") for name in NAMES)
        self.reads = tuple(call("lookup", name) for name in NAMES)
        super().start()

    def command(self) -> list[str]:
        port = str(self.port)
        return [sys.executable, "-m", "Pyro5.nameserver", "-n", "127.0.0.1", "-p", port, "-x", "-s", "sql:names.db"]

    def environ(self) -> dict[str, str]:
        files = {"PYRO_SSL_SERVERCERT": str(self.cert), "PYRO_SSL_SERVERKEY": str(self.key)}
        return {**os.environ, "PYRO_SSL": "1", **files}


def _installed(program: str) -> list[str]:
    found = shutil.which(program)
    if found is None:
        raise Absent("not installed")
    return [found]


def _first_line(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.partition("\n")[0]


ALL: Final[tuple[type[Peer], ...]] = (Ours, StockHello, Hello, Etcd, OnEtcd, Redis, Pyro)
