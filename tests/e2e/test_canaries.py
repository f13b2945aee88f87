"""No secret gets out: keys that people chose, named keys, tokens, the discovery secret, the control token.

Looked at: the log with its access lines and tracebacks, answers, what commands
print, cores, command lines and environments of processes, names of files.
"""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote, urlencode

import psutil
import pytest

from bpbroker.discovery.datagram import signed_question
from bpbroker.discovery.jointoken import parse_token
from tests.support.other_user import can_run_python
from tests.support.running import RunningBroker, untrusting

CHOSEN = "canary/chosen+by-a-person&x"
OF_EXTENSION = "canary-of-the-extension-7"
IMPORTED = "canary-that-was-imported-9"
MODULE = """\
import os
def Shows(rh):
    rh.data = repr(rh.config)
def Raises(rh):
    raise ValueError(rh.qs)
def Aborts(rh):
    os.abort()
def Registers(rh):
    rh.registry.register("foo/by-extension", "x")
"""


@pytest.fixture
def broker(make_broker: Callable[..., RunningBroker]) -> Iterator[RunningBroker]:
    """Yield a broker that logs all that it can, and whose system writes core files."""
    sections = {
        "services": {"_access_key": IMPORTED},
        "demo": {"_access_key": OF_EXTENSION, "x": 1},
        "other": {"_access_key": CHOSEN},
        "_global": {"discovery": "authenticated"},
        "api": {"wrong_keys_per_minute": 1_000_000},
    }
    made = make_broker(sections, "--log-level", "debug")
    made.prefix = ("bash", "-c", f'ulimit -S -c "$(ulimit -H -c)"; cd {made.home}; exec "$@"', "bash")
    for name in ("demo", "other"):
        (made.lib / f"{name}.py").write_text(MODULE)
    yield made.start()
    made.kill()


def forms(secret: str) -> set[bytes]:
    """Return a secret as it is, and as it would be in a URL, in base64 at each offset, and in a message's quotes."""
    raw = secret.encode()
    shifted = {base64.b64encode(b"x" * by + raw)[4 if by else 0 : -4] for by in range(3)}
    return {raw, quote(secret).encode(), quote(secret, "").encode(), json.dumps(secret)[1:-1].encode(), *shifted}


def run(broker: RunningBroker, *words: str) -> str:
    """Run a command that prints a secret; give what it prints to a person as well."""
    done = broker.bpbroker(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def requests(broker: RunningBroker, key: str) -> Iterator[bytes]:
    """Yield the answers to requests that bring a key in every place, also where none belongs, or are broken."""
    for headers in ({"X-Access-Key": key}, {"Authorization": f"Bearer {key}"}, {"Cookie": key}, {"X-Registry": key}):
        for path in ("/services/Get/?name=foo", "/services/Nope/", "/nope/F", "/whoami"):
            for method in ("GET", "POST"):
                yield broker.request(path, method, None, headers).body
    given = urlencode({"access_key": key, "name": "foo/a", "data": "x"})
    for path in ("/services/Register/", "/demo/Raises/", "/other/Raises", "/", "/_control/Status"):
        yield broker.request(f"{path}?{given}").body
        yield broker.request(path, "POST", given, {"Content-Type": "application/x-www-form-urlencoded"}).body
        whole = json.dumps({"access_key": key, "name": "foo/b"})
        for body in (whole, f"{whole[:-1]}, ", f'["{key}', f"[{whole}]"):
            yield broker.request(path, "POST", body, {"Content-Type": "application/json"}).body
    for sent in (
        f"GET /?{quote(key)} HTTP/9\r\n\r\n",
        f"GET / HTTP/1.1\r\nX-Access-Key: {key}\0\r\n\r\n",
        f"POST /services/Get/ HTTP/1.1\r\nHost: {quote(key)}\r\nTransfer-Encoding: {quote(key)}\r\n\r\n",
        key,
    ):
        plain = socket.create_connection(("127.0.0.1", broker.port), 30)
        with closing(plain), untrusting().wrap_socket(plain) as client, suppress(OSError):
            client.sendall(sent.encode() + b"\r\n\r\n")
            yield client.recv(65536)
    with socket.create_connection(("127.0.0.1", broker.port), 30) as client, suppress(OSError):
        client.sendall(f"GET /?access_key={quote(key)} HTTP/1.1\r\nX-Access-Key: {key}\r\n\r\n".encode())
        yield client.recv(65536)


def test_no_secret_gets_out(broker: RunningBroker) -> None:
    secret = broker.discovery_secret
    run(broker, "key", "import", "legacy")
    named = run(broker, "key", "add", "ci", "--allow", "services:*@foo/", "--allow", "demo")
    rotated = run(broker, "key", "rotate", "ci")
    word = run(broker, "token", "--allow", "services:get@foo/", "--ttl", "1h", "--uses", "3", "--address", "h:1")
    line = run(broker, "join-command", "--allow", "services:get@foo/", "--address", f"127.0.0.1:{broker.port}")
    joining = line.partition("BPBROKER_TOKEN=")[2].partition(" ")[0]
    tokens = [parse_token(each) for each in (word, joining)]
    of_names = [each.partition(".")[2] for each in (named, rotated, *(token.key for token in tokens))]
    secrets = [CHOSEN, OF_EXTENSION, IMPORTED, secret, str(broker.note["token"]), word, joining, *of_names]
    assert all(len(each) >= 16 for each in secrets)

    seen: list[bytes] = []
    for key in (CHOSEN, OF_EXTENSION, secret, str(broker.note["token"]), word, rotated):
        seen += requests(broker, key)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for each in secrets:
            sock.sendto(f"{each}\n".encode(), ("127.0.0.1", broker.port))
            sock.sendto(signed_question("foo", "0" * 32, "ab" * 32), ("127.0.0.1", broker.port))
    header = {"X-Access-Key": OF_EXTENSION}
    crashed = broker.request("/demo/Aborts/", "POST", f"access_key={OF_EXTENSION}", header, data="x")
    assert crashed.status == 500
    of_config = broker.request("/other/Shows/", "POST", None, {"X-Access-Key": CHOSEN}).body
    assert CHOSEN.encode() in of_config  # its own
    assert OF_EXTENSION.encode() not in of_config
    for path in ("/health", "/ready", "/live", "/openapi.json", "/bpclient.pyz", "/whoami"):
        seen.append(broker.request(path, "GET").body)
    for words in (
        ("status",), ("status", "--format", "json"), ("doctor",), ("doctor", "--format", "json"), ("backup",),
        ("backups",), ("key", "list"), ("key", "list", "--format", "json"), ("key", "show", "ci"),
        ("key", "show", "ci", "--format", "json"), ("key", "revoke", "nobody"), ("key", "add", "ci", "--allow", "ping"),
        ("validate",), ("certificate",), ("reload",), ("list-extensions",),
    ):  # fmt: skip
        done = broker.bpbroker(*words, "--debug")
        seen += [done.stdout.encode(), done.stderr.encode()]
    called = (("service", "get", "--name", "bar"), ("whoami",), ("execute", "--method", "demo.Raises"), ("doctor",))
    for credentials in (("-a", named), ("-a", CHOSEN), ("--token", word), ("--token", word[:-9]), ("--token", secret)):
        for words in called:
            done = broker.bpclient("--timeout", "5s", *credentials, *words)
            seen += [done.stdout.encode(), done.stderr.encode()]

    process = psutil.Process(broker.pid)
    for running in (process, *process.children(recursive=True)):
        seen.append(f"{running.cmdline()} {running.environ()}".encode())
    broker.signal(signal.SIGABRT)
    broker.wait()
    seen.append(broker.log.read_bytes())
    assert b"ValueError" in seen[-1]  # tracebacks are there to be looked at
    names = [str(path.relative_to(broker.home)) for path in broker.home.rglob("*")]
    assert any(name.startswith("backups/") for name in names)
    cores = [name for name in names if Path(name).name.startswith("core")]
    assert not cores
    everything = b"\n".join([*seen, "\n".join(names).encode()])
    found = [(each, everything.index(form)) for each in secrets for form in forms(each) if form in everything]
    assert [(each, everything[max(0, at - 200) : at + 100]) for each, at in found] == []
    # Of a key with a name nothing but the digest is kept; the others stand in the configuration, for its owner alone.
    files = [path for path in broker.home.rglob("*") if path.is_file() and path != broker.log]
    for file in files:
        content = file.read_bytes()
        assert [each for each in of_names if each.encode() in content] == [], file
        if any(each.encode() in content for each in secrets):
            assert file.stat().st_mode & 0o077 == 0, file


def test_a_broker_cannot_be_dumped_and_serves_all_the_same(make_broker: Callable[..., RunningBroker]) -> None:
    """What tells: files of a process that is not to be dumped are root's, whoever runs it."""
    broker = make_broker({})
    broker.prefix = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups")
    if not can_run_python(54321):
        pytest.skip("other users cannot reach this Python")
    subprocess.run(["chown", "-R", "54321:54321", broker.home], check=True)
    for above in list(broker.home.parents)[:5]:
        above.chmod(above.stat().st_mode | 0o111)
    broker.start(wait=False)  # that user may not write to the socket by which a broker says that it is ready
    broker.await_logged(" is ready: ")
    broker.port = broker.note["port"]
    assert Path(f"/proc/{broker.pid}/environ").stat().st_uid == 0
    assert broker.register("foo").status == 200
    assert broker.stop() == 0
