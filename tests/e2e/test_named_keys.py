"""Named keys beside a running broker: added, used, counted, rotated, revoked, imported; and no secret anywhere."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

import psutil
import pytest

from bpbroker.discovery.jointoken import parse_token
from bpbroker.registry.named_keys import digest_of
from tests.support.bare_debian import bare_debian
from tests.support.running import RunningBroker, untrusting

MakeBroker = Callable[..., RunningBroker]


def added(broker: RunningBroker, *words: str) -> str:
    """Add a key; return it as clients send it."""
    done = broker.bpbroker("key", "add", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def status(broker: RunningBroker, method: str, key: str, **parameters: str) -> int:
    return broker.request(f"/services/{method}/", "POST", None, {"X-Access-Key": key}, **parameters).status


def test_a_key_s_whole_life(make_broker: MakeBroker) -> None:
    broker = make_broker({}).start()
    admin = added(broker, "admin", "--allow", "services.*")
    key = added(broker, "ci", "--allow", "services:get,register@foo/", "--ttl", "2h")
    assert status(broker, "Register", key, name="foo/a", data="x") == 200
    assert status(broker, "Register", key, name="bar", data="x") == 403
    assert broker.register("foo/b").status == 401
    for words in (
        ("add", "ci", "--allow", "ping"),
        ("add", "x", "--allow", "services:gt"),
        ("add", "x", "--allow", "services:get@_keys"),
        ("add", "x", "--allow", "ping", "--ttl", "4000d"),
        ("add", "x", "--allow", "ping", "--uses", "0"),
        ("add", "x", "--allow", "ping", "--from", "10.0.0.1/8"),
        ("add", "x.y", "--allow", "ping"),
        ("add", "x"),
        ("revoke", "admin"),
        ("revoke", "nobody"),
        ("rotate", "nobody"),
    ):
        refused = broker.bpbroker("key", *words)
        assert (refused.returncode in (1, 2), refused.stdout) == (True, ""), (words, refused)
    listed = json.loads(broker.bpbroker("key", "list", "--format", "json").stdout)
    assert [(each["name"], each["state"]) for each in listed] == [("admin", "in force"), ("ci", "in force")]
    rotated = broker.bpbroker("key", "rotate", "ci").stdout.strip()
    shown = broker.bpbroker("key", "show", "ci").stdout
    assert re.search(r"^previous   counts until 2\d{3}-\S+Z$", shown, re.MULTILINE), shown
    broker.kill()
    broker.start()
    for each in (key, rotated):
        assert status(broker, "Get", each, name="foo/a") == 200

    waited: list[tuple[int, float]] = []

    def wait() -> None:
        waited.append((status(broker, "Get", rotated, name="foo/none", wait="60"), time.monotonic()))

    thread = threading.Thread(target=wait)
    thread.start()
    while not _waiting(broker):
        time.sleep(0.05)
    assert broker.bpbroker("key", "revoke", "ci").returncode == 0
    revoked_at = time.monotonic()
    thread.join(30)
    ((answer, ended_at),) = waited
    assert answer == 401
    assert ended_at - revoked_at < 1
    assert [status(broker, "Get", each, name="foo/a") for each in (key, rotated, admin)] == [401, 401, 200]
    assert broker.bpbroker("key", "revoke", "--force", "admin").returncode == 0
    assert status(broker, "Get", admin, name="foo/a") == 401
    assert status(broker, "List", "", prefix="") == 401  # closed it stays
    broker.stop()
    secrets = [each.partition(".")[2] for each in (admin, key, rotated)]
    written = b"".join(path.read_bytes() for path in broker.home.rglob("*") if path.is_file())
    assert not [secret for secret in secrets if secret.encode() in written]
    registered = re.findall(r" key=(\S+) method=services\.Register .*status=200 ", broker.text)
    assert registered == ["ci"]


def _waiting(broker: RunningBroker) -> bool:
    parts = json.loads(broker.request("/health", "GET").body)["data"]["parts"]
    return any(part["figures"].get("waiting") for part in parts if part["name"] == "registry")


def test_exactly_so_many_addresses_use_a_token_also_when_the_broker_is_killed(make_broker: MakeBroker) -> None:
    broker = make_broker({}).start()
    done = broker.bpbroker("token", "--allow", "services:*@foo/", "--ttl", "2h", "--uses", "7", "--address", "h:1")
    token = parse_token(done.stdout.strip())
    assert (token.addresses, len(token.secret)) == (("h:1",), 64)
    assert 7000 < token.until - time.time() <= 7200

    context = untrusting()

    def join(number: int) -> int:
        source = (f"127.0.1.{number}", 0)
        to = HTTPSConnection("127.0.0.1", broker.port, timeout=60, source_address=source, context=context)
        with closing(to):
            to.request("GET", "/services/Get/?name=foo/x", headers={"X-Access-Key": token.key})
            return int(to.getresponse().status)

    with ThreadPoolExecutor(25) as pool:
        first = list(pool.map(join, range(1, 26)))
    broker.kill()
    broker.start()
    with ThreadPoolExecutor(25) as pool:
        second = list(pool.map(join, range(26, 51)))
    assert (first + second).count(404) == 7
    assert set(first + second) == {404, 401}
    again = [join(number) for number, answer in enumerate(first + second, 1) if answer == 404]
    assert again == [404] * 7
    assert [token.key.partition(".")[2] in " ".join(p.cmdline()) for p in psutil.Process(broker.pid).children()] == []


def test_an_old_key_becomes_a_named_one(make_broker: MakeBroker) -> None:
    old = "an-old-key-of-24-letters"
    broker = make_broker({"services": {"_access_key": old}}).start()
    assert broker.bpbroker("key", "import", "legacy").returncode == 0
    for given in (old, f"legacy.{old}"):
        assert status(broker, "List", given) == 200
    assert status(broker, "List", "") == 401
    broker.stop()
    assert old not in broker.config.read_text()
    broker.start()
    assert [status(broker, "List", given) for given in (old, "", "x")] == [200, 401, 401]
    assert broker.bpbroker("key", "rotate", "legacy", "--overlap", "0s").returncode == 0
    assert status(broker, "List", old) == 401


def test_commands_say_what_a_named_key_closes_and_find_nothing_wrong_with_it(make_broker: MakeBroker) -> None:
    broker = make_broker({}).start()
    assert "services has no _access_key, so it is open to everybody" in broker.bpbroker("token").stderr
    assert (
        broker.bpbroker("key", "add", "numbers", "--allow", "metrics").stderr == ""
    )  # nothing is open or closed by it
    first = broker.bpbroker("key", "add", "ci", "--allow", "services:get@foo/")
    assert "services was open to everybody; from now on it needs a key" in first.stderr
    assert broker.bpbroker("key", "add", "other", "--allow", "services:get").stderr == ""
    token = broker.bpbroker("token")
    assert parse_token(token.stdout.strip()).key == ""
    assert "open" not in token.stderr
    assert "no access key in this token, and services needs one" in token.stderr
    assert "token --allow RULE" in token.stderr
    found = broker.bpbroker("doctor")
    assert "ok       access: the registry needs an access key" in found.stdout
    assert found.returncode == 0, found.stdout
    broker.stop()
    assert "no access key in this token, and services needs one" in broker.bpbroker("token").stderr


def test_a_key_of_the_global_file_is_not_imported_into_another_one(make_broker: MakeBroker) -> None:
    broker = make_broker({"services": {"_access_key": "a-key-of-the-global-file"}})
    own = broker.home / "own.json"
    refused = broker.bpbroker("--config", str(own), "key", "import", "legacy")
    assert (refused.returncode, refused.stdout) == (78, "")
    assert f"services._access_key is in {broker.config}" in refused.stderr
    assert "a-key-of" not in refused.stderr


def test_the_doctor_tells_a_weak_key_of_a_running_broker(make_broker: MakeBroker) -> None:
    broker = make_broker({"_keys": {"ci": {"sha256": digest_of("changeme").hex(), "allow": ["services:get"]}}}).start()
    found = json.loads(broker.bpbroker("doctor", "--format", "json").stdout)
    (weak,) = [each for each in found if each["what"] == "key ci"]
    assert (weak["level"], weak["detail"]) == ("warning", "its secret is a common word")
    assert "rotate ci" in weak["advice"]
    assert status(broker, "Get", "ci.changeme", name="x") == 404


@pytest.mark.parametrize("value", ["canary-not-a-digest", {"sha256": "canary-not-a-digest", "allow": ["ping"]}])
def test_a_key_that_is_no_digest_stops_the_start_and_is_not_shown(make_broker: MakeBroker, value: object) -> None:
    broker = make_broker({"_keys": {"ci": value}})
    ended = broker.bpbroker("start", "--listen-port", "0")
    assert ended.returncode == 78
    assert "_keys.ci" in ended.stderr
    assert "canary" not in ended.stderr + ended.stdout


def test_one_line_lets_a_bare_machine_join(make_broker: MakeBroker, tmp_path: Path) -> None:
    broker = make_broker({}).start()
    done = broker.bpbroker(
        "join-command", "--allow", "services:*@foo/", "--ttl", "1h", "--uses", "1",
        "--address", "127.0.0.1:1", "--address", f"127.0.0.1:{broker.port}",
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    place = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}

    def run(command: str, folder: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / folder).mkdir()
        return subprocess.run(
            ["/bin/sh", "-c", command], cwd=tmp_path / folder, env=place, capture_output=True, text=True, check=False
        )

    joined = run(f"{line} && python3 ./bpclient.pyz service register --name foo/a --data x", "joined")
    assert joined.returncode == 0, joined
    assert "allow\tservices:*@foo/" in joined.stdout
    digest = re.search(r"\b[0-9a-f]{64}\b", line)
    assert digest is not None
    other = run(line.replace(digest[0], "0" * 64), "other")
    assert other.returncode != 0
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.timeout(400)
def test_a_bare_debian_joins_within_five_seconds_and_trusts_only_what_was_named(make_broker: MakeBroker) -> None:
    with bare_debian() as bare:
        broker = make_broker({}).start()
        other = make_broker({}).start()
        assert bare.shell("python3 -m pip", {}).returncode != 0
        rules = ("--allow", "services:*@foo/", "--ttl", "1h", "--uses", "1", "--address", f"127.0.0.1:{broker.port}")
        (line,) = broker.bpbroker("join-command", *rules).stdout.splitlines()
        register = "python3 ./bpclient.pyz service register --name foo/a --data x"
        began = time.monotonic()
        joined = bare.shell(f"{line} && {register}", {"HOME": "/root"})
        took = time.monotonic() - began
        assert (joined.returncode, joined.stdout.splitlines()[-1]) == (0, "x"), joined
        assert took < 5
        # Only the broker of the token is trusted, and nothing was written down to be trusted later.
        token = line.partition("BPBROKER_TOKEN=")[2].partition(" ")[0]
        environ = {"HOME": "/root", "BPBROKER_TOKEN": token}
        false = bare.shell(f"python3 ./bpclient.pyz -b 127.0.0.1:{other.port} service get --name foo/a", environ)
        assert (false.returncode, false.stdout) == (6, "")
        assert not [path for path in bare.folder.rglob("*") if path.name != "bpclient.pyz"]
        assert not list((bare.root / "root").rglob("*known_brokers*"))
        # What another host gives out in the broker's place is not run.
        (bare.folder / "bpclient.pyz").unlink()
        forged = line.replace(f":{broker.port}/", f":{other.port}/").replace(_digest(line), "0" * 64)
        refused = bare.shell(forged, {"HOME": "/root"})
        assert refused.returncode != 0
        assert not (bare.folder / "bpclient.pyz").exists()


def _digest(line: str) -> str:
    found = re.search(r"\b[0-9a-f]{64}\b", line)
    assert found is not None
    return found[0]


def hold(broker: RunningBroker, key: str, session: str, ttl_secs: int) -> None:
    """Open a session that has an entry and a lock."""
    header = {"X-Access-Key": key}
    for method, given in (
        ("Open", {"session": session, "ttl": str(ttl_secs)}),
        ("Register", {"name": f"of/{session}", "data": "x", "session": session}),
        ("Lock", {"name": f"lock/{session}", "session": session}),
    ):
        answer = broker.request(f"/services/{method}/", "POST", None, header, **given)
        assert answer.status == 200, answer


def test_the_log_of_a_mixed_run_names_the_key_of_every_change(make_broker: MakeBroker) -> None:
    broker = make_broker({"_registry": {}, "writer": {}}, "--log-format", "json")
    (broker.lib / "writer.py").write_text(
        "def Write(rh):\n"
        "    rh.registry.register('by/extension', 'x')\n"
        "    rh.registry.replace('by/extension', 'y')\n"
        "    rh.registry.get('by/extension')\n"
        "    rh.registry.delete('by/extension')\n"
    )
    broker.start()
    rules = ("--allow", "services.*", "--allow", "writer", "--allow", "metrics")
    keys = {name: added(broker, name, *rules) for name in ("ann", "bob", "eve")}
    expected: dict[int, tuple[str, str, str]] = {}

    def change(key: str, method: str, about: str, **parameters: str) -> None:
        answer = broker.request(f"/services/{method}/", "POST", None, {"X-Access-Key": keys[key]}, **parameters)
        assert answer.status == 200, answer
        expected[answer.json["revision"]] = (key, method, about)

    change("ann", "Register", "a", name="a", data="1")
    change("bob", "Update", "a", name="a", data="2")
    change("eve", "Replace", "b", name="b", data="3")
    change("ann", "Allocate", "pool", pool="pool", owner="o")
    change("bob", "Next", "count", name="count")
    change("eve", "Delete", "b", name="b")
    change("ann", "Take", "a", name="a", receiver="r")
    operations = [{"method": "Register", "name": name, "data": "x"} for name in ("c", "d")]
    operations.append({"method": "Get", "name": "count"})
    sent = {"X-Access-Key": keys["bob"], "Content-Type": "application/json"}
    batch = broker.request("/services/Batch/", "POST", json.dumps({"operations": operations}), sent)
    assert batch.status == 200, batch
    call = broker.request("/writer/Write/", "POST", None, {"X-Access-Key": keys["eve"]})
    assert call.status == 200, call
    refused = broker.request("/services/Register/", "POST", None, {"X-Access-Key": keys["eve"]}, name="c", data="x")
    assert refused.status == 409
    hold(broker, keys["ann"], "ann-s", 2)
    hold(broker, keys["bob"], "bob-s", 60)
    closed = broker.request("/services/Close/", "POST", None, {"X-Access-Key": keys["eve"]}, session="bob-s")
    assert closed.status == 200
    with_key = {"X-Access-Key": keys["ann"]}
    until = time.monotonic() + 30
    while broker.request("/services/Get/?name=of/ann-s", "GET", None, with_key).status == 200:  # nobody renews it
        assert time.monotonic() < until
        time.sleep(0.1)
    shown = broker.request("/metrics", "GET", None, with_key).body.decode()
    broker.stop()
    # What changed within a request, or by none, is no request.
    counted = dict(
        re.findall(r'^bpbroker_requests_total{.*?method="(\w+)",.*?status="200"} (\S+)$', shown, re.MULTILINE)
    )
    assert (counted["Register"], counted["Delete"], counted["Batch"]) == ("3.0", "1.0", "1.0"), counted
    assert "Expire" not in counted
    lines = [json.loads(line) for line in broker.text.splitlines() if '"bpbroker.access"' in line]
    changes = [line for line in lines if line.get("revision") and line["namespace"] == "services"]
    single = {line["revision"]: (line["key"], line["method"], line["name"]) for line in changes}
    assert expected.items() <= single.items()
    of_batch = {(line["method"], line["name"], line["key"], line["id"]) for line in changes if line["key"] == "bob"}
    number = batch.headers["X-Request-Id"]
    assert {("Register", "c", "bob", number), ("Register", "d", "bob", number)} <= of_batch
    assert ("Get", "count", "bob", number) not in of_batch
    of_call = [line for line in lines if line["id"] == call.headers["X-Request-Id"]]
    told = [(line["namespace"], line["method"], line["name"], line["key"]) for line in of_call]
    assert told == [
        ("services", "Register", "by/extension", "eve"),
        ("services", "Replace", "by/extension", "eve"),
        ("services", "Delete", "by/extension", "eve"),
        ("writer", "Write", None, "eve"),
    ]
    assert all(line["revision"] for line in of_call[:3])
    # A session that ends by itself does so with the key that opened it, one that is closed with the key that did.
    for session, how, key in (("ann-s", "Expire", "ann"), ("bob-s", "Close", "eve")):
        opened = next(line for line in changes if (line["method"], line["name"]) == ("Open", session))
        assert opened["key"] == session.removesuffix("-s")
        number = next(line["revision"] for line in changes if (line["method"], line["name"]) == (how, session))
        ended = [(line["method"], line["name"], line["key"]) for line in changes if line["revision"] == number]
        assert sorted(ended) == sorted(
            [(how, session, key), ("Delete", f"of/{session}", key), ("Unlock", f"lock/{session}", key)]
        )
    assert all(line.get("key") for line in changes)
    assert [(line["key"], line["status"], line.get("revision")) for line in lines if line["status"] == 409] == [
        ("eve", 409, None)
    ]
    control = [
        (line["method"], line["name"], bool(line.get("revision")))
        for line in lines
        if line["namespace"] == "_control" and line["method"] != "Keys"  # which changes nothing
    ]
    assert control == [("AddKey", name, True) for name in keys]


def test_a_broker_killed_while_it_counts_lets_in_no_address_too_many(make_broker: MakeBroker) -> None:
    broker = make_broker({}).start()
    key = added(broker, "join", "--allow", "services:get@foo/", "--uses", "7")
    context = untrusting()
    heard: queue.Queue[int] = queue.Queue()
    answers: dict[int, list[int]] = {number: [] for number in range(1, 51)}

    def join(number: int) -> None:
        to = HTTPSConnection(
            "127.0.0.1", broker.port, timeout=60, source_address=(f"127.0.4.{number}", 0), context=context
        )
        with closing(to), suppress(OSError, HTTPException):  # killed: whether it was counted is not known
            to.request("GET", "/services/Get/?name=foo/x", headers={"X-Access-Key": key})
            answers[number].append(int(to.getresponse().status))
        heard.put(number)

    left = list(answers)
    for kill_after in (1, 2, 4, 0):
        with ThreadPoolExecutor(50) as pool:
            for number in left:
                pool.submit(join, number)
            for _ in range(min(kill_after, len(left))):
                heard.get()
            if kill_after:
                broker.kill()
        broker.kill()
        broker.start()
        left = [number for number, got in answers.items() if not got]
        heard = queue.Queue()
    assert not left
    assert {tuple(got) for got in answers.values()} == {(404,), (401,)}
    let_in = {f"127.0.4.{number}" for number, got in answers.items() if got == [404]}
    shown = json.loads(broker.bpbroker("key", "show", "join", "--format", "json").stdout)
    assert len(let_in) == 7
    assert set(shown["used_by"]) == let_in
    assert shown["state"] == "used up"
