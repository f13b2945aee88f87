"""The main job, end to end, as a new user meets it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpbroker.discovery.interfaces import own_address
from tests.support.ports import free_port
from tests.support.running import RunningBroker

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_register_get_restart_get(broker: RunningBroker) -> None:
    stored = broker.register("foo", "bar").json
    assert stored["success"] is True
    assert stored["message"] == "Success"
    assert list(stored["data"]) == ["_str", "last_write_ip", "last_write_ts"]
    assert stored["data"]["_str"] == "bar"
    assert stored["data"]["last_write_ip"] == (own_address() or "127.0.0.1")  # not loopback: others are to read it
    assert isinstance(stored["data"]["last_write_ts"], int)
    assert broker.get("foo").json == stored
    broker.restart()
    assert broker.get("foo").json == stored


def test_the_file_holds_entries_and_every_default_after_a_clean_exit(broker: RunningBroker) -> None:
    broker.register("foo3", '{"key": "x"}')
    broker.signal(signal.SIGINT)
    assert broker.wait() == 0
    document = json.loads(broker.config.read_text())
    assert document["services"]["foo3"]["key"] == "x"
    assert document["_config"] == {"backup_freq_secs": 3600, "backup_retain_n": 24}
    assert document["_global"] == {"healthcheck_freq_sec": 10}
    assert document["api"]["listen_port"] == 20443  # an option of one run is not written back
    assert document["ping"] == document["worker"] == {}
    assert broker.config.stat().st_mode & 0o777 == 0o600


def test_ready_says_where_and_with_which_certificate(broker: RunningBroker) -> None:
    (line,) = [line for line in broker.text.splitlines() if "is ready" in line]
    assert f"port {broker.port}" in line
    assert str(broker.config) in line
    assert broker.note["fingerprint"] in line
    assert broker.note["token"] not in broker.text


def test_every_method_of_the_registry(broker: RunningBroker) -> None:
    assert broker.register("foo").status == 200
    again = broker.register("foo")
    assert (again.status, again.reason) == (409, "Entry 'foo' already exists")
    assert again.json == {"success": False, "message": "Entry 'foo' already exists", "data": {}}
    updated = broker.request("/services/Update", name="a", data='{"x": {"y": 1}}').json["data"]
    assert updated["x"] == {"y": 1}
    updated = broker.request("/services/Update", name="a", data='{"x": {"z": 2}}').json["data"]
    assert updated["x"] == {"y": 1, "z": 2}
    replaced = broker.request("/services/Replace", name="a", data='{"n": 1}').json["data"]
    assert "x" not in replaced
    assert replaced["n"] == 1
    assert list(broker.request("/services/List").json["data"]) == ["a", "foo"]
    for _ in range(2):
        deleted = broker.request("/services/Delete", name="a").json
        assert {**deleted, "revision": 0} == {"success": True, "message": "Success", "revision": 0}
    missing = broker.get("a")
    assert missing.status == 404
    assert missing.json == {"success": False, "message": "Entry 'a' not found", "data": {}}


def test_the_request_of_0_22_gets_the_answer_that_it_reads(broker: RunningBroker) -> None:
    answer = broker.request("/services/Register/?access_key=&data=bar&name=foo", headers={"Content-Length": "0"})
    assert answer.status == 200
    assert answer.json["data"]["_str"] == "bar"


def test_ping_over_https_and_udp_and_discovery(broker: RunningBroker) -> None:
    assert broker.request("/ping/Ping/", data="X").json == {"src": "127.0.0.1", "data": {"_str": "X"}}
    assert broker.request("/ping/Ping/", data='{"a": 1}').json["data"] == {"a": 1}
    broker.register("foo-cluster1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        for sent, expected in ((b"ping/Ping?data=X", b"X"), (b"foo-cluster1\n", b"Key Exists\n")):
            client.sendto(sent, ("127.0.0.1", broker.port))
            assert client.recvfrom(100) == (expected, ("127.0.0.1", broker.port))
        client.sendto(b"nobody\n", ("127.0.0.1", broker.port))
        client.sendto(b"ping/Ping?data=still here", ("127.0.0.1", broker.port))
        assert client.recv(100) == b"still here"  # and nothing before it


def test_access_keys_guard_a_namespace(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker({"services": {"_access_key": "secret"}}).start()
    assert broker.register("foo").status == 401
    assert broker.register("foo").json["message"] == "Incorrect access key"
    for headers, parameters in (
        ({"Authorization": "Bearer secret"}, {}),
        ({"X-Access-Key": "secret"}, {}),
        ({}, {"access_key": "secret"}),
        ({}, {"access-key": "secret"}),
    ):
        answer = broker.request("/services/Replace", "POST", None, headers, name="foo", data="x", **parameters)
        assert answer.status == 200, answer
    assert broker.request("/ping/Ping", data="x").status == 200
    assert broker.request("/services/Get", name="_access_key", access_key="secret").status == 400
    broker.stop()
    assert '"_access_key": "secret"' in broker.config.read_text()
    assert "secret" not in broker.text


def test_an_extension_is_called_only_if_everything_allows_it(make_broker: Callable[..., RunningBroker]) -> None:
    sections: dict[str, Any] = {"example_extension_module": {"_access_key": "k"}, "bad": {}, "os": {}}
    broker = make_broker({**sections, "_global": {"healthcheck_freq_sec": 0.2}})
    shutil.copy(EXAMPLES / "example_extension_module.py", broker.lib)
    shutil.copy(EXAMPLES / "example_extension_module.py", broker.lib / "unlisted.py")
    (broker.lib / "bad.py").write_text("import no_such_module\ndef Test(rh): pass\n")
    broker.start()
    answer = broker.request("/example_extension_module/Test/", data="hello", access_key="k")
    assert answer.status == 200
    assert answer.json == {"data": "hello", "from": "127.0.0.1"}
    for path, key, message in (
        ("/unlisted/Test", "", "Unauthorized package"),
        ("/api/x", "", "Unauthorized package"),
        ("/_config/x", "", "Unauthorized package"),
        ("/example_extension_module/Test", "wrong", "Incorrect access key"),
        ("/example_extension_module/_helper", "k", "Unauthorized method"),
        ("/example_extension_module/json", "k", "Unauthorized method"),
        ("/example_extension_module/Nope", "k", "Unauthorized method"),
        ("/bad/Test", "", "Unauthorized method"),
        ("/os/system", "", "Unauthorized method"),
    ):
        answer = broker.request(path, data="x", access_key=key)
        assert (answer.status, answer.json["message"]) == (401, message), path
    assert "no_such_module" in broker.text
    for _ in range(1000):  # until the next round of the healthcheck has asked it
        health = broker.request("/health", "GET")
        (part,) = [part for part in health.json["data"]["parts"] if part["name"] == "extension bad"]
        if not part["ok"]:
            break
    assert "no_such_module" in part["detail"]
    assert health.status == 200  # a broken extension does not make the broker unfit
    assert str(broker.home) not in health.body.decode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("[]", ""),
        ('{"api": {"listen_port": 20443,}}', "line 1"),
        ('{"api": {"listen_port": 99999}}', "api.listen_port is 99999"),
        ('{"services": {"_access_key": 0}}', "services._access_key"),
        ("\x00\x01\x02", ""),
    ],
)
def test_a_configuration_that_cannot_be_used_stops_the_start(
    make_broker: Callable[..., RunningBroker], content: str, says: str
) -> None:
    broker = make_broker()
    broker.config.write_text(content)
    ended = broker.bpbroker("start", "--listen-port", "0")
    assert ended.returncode == 78
    assert str(broker.config) in ended.stderr
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert broker.config.read_text() == content


def test_a_port_in_use_is_named_with_its_protocol(make_broker: Callable[..., RunningBroker]) -> None:
    for kind, protocol in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")):
        with socket.socket(socket.AF_INET, kind) as taken:
            port = free_port()  # none of those that the system gives to clients: there the other protocol may be taken
            taken.bind(("", port))
            if kind == socket.SOCK_STREAM:
                taken.listen()
            ended = make_broker().bpbroker("start", "--listen-port", str(port))
        assert ended.returncode == 1
        assert f"port {port} ({protocol})" in ended.stderr


def test_two_brokers_live_side_by_side_but_not_on_one_file(broker: RunningBroker) -> None:
    ended = broker.bpbroker("start", "--listen-port", "0")
    assert ended.returncode == 1
    assert f"process {broker.pid}" in ended.stderr
    other = RunningBroker(broker.home.with_name("other")).start()
    try:
        other.register("mine")
        assert broker.get("mine").status == 404
    finally:
        other.kill()


def test_curl_understands_it(broker: RunningBroker) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = subprocess.run(
        ["curl", "-skS", "-d", "name=c&data=1", f"https://127.0.0.1:{broker.port}/services/Register"],
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout
    assert json.loads(body)["success"] is True
