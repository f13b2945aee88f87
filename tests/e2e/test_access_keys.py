"""Who may call what (cases A): keys in every place and shape, namespaces and methods that are none."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psutil
import pytest

from bpbroker.discovery.datagram import signed_question
from tests.support.running import Answer, RunningBroker, untrusting
from tests.support.witness import CANARY, FORM, KEY, SLOWEST_SECS, Attacked, eventually

JSON = {"Content-Type": "application/json"}
MODULE = """\
from os import system
from os.path import *
import os
CONSTANT = 1
class Thing:
    def __init__(self, rh):
        rh.data = '"made"'
    def Run(self, rh):
        rh.data = '"ran"'
method = 'x'.upper
def F(rh):
    rh.data = '"ok"'
def _x(rh):
    rh.data = '"private"'
"""


def refused(answer: Answer, message: str = "Incorrect access key") -> None:
    """See that an answer is a 401 with a message."""
    assert (answer.status, answer.json) == (401, {"success": False, "message": message, "data": {}})


def test_a_key_that_is_none_of_the_broker_s(attacked: Attacked) -> None:
    broker = attacked.broker
    wrong: list[dict[str, str]] = [
        {},
        {"X-Access-Key": ""},
        {"X-Access-Key": "wrong"},
        {"X-Access-Key": CANARY[:-1]},
        {"X-Access-Key": f"{CANARY}x"},
        {"X-Access-Key": CANARY.upper()},
        {"X-Access-Key": f"{CANARY},{CANARY}"},
        {"Authorization": CANARY},
        {"Authorization": f"Basic {CANARY}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {CANARY}", "X-Access-Key": CANARY},
        {"Cookie": f"access_key={CANARY}"},
        {"X_Access_Key": CANARY},
    ]
    for headers in wrong:
        for method in ("Get", "Register", "List"):
            refused(broker.request(f"/services/{method}/", "POST", None, headers, name="witness", data="x"))


@pytest.mark.parametrize(
    "query",
    [
        "access_key=",
        "access_key=wrong",
        f"access_key={CANARY}&access_key={CANARY}",
        f"access_key={CANARY}&access-key={CANARY}",
        f"access_key=wrong&access_key={CANARY}",
        f"access_key[]={CANARY}",
        f"ACCESS_KEY={CANARY}",
        f"access_key=%00{CANARY}",
        f"access_key={CANARY}%20",
    ],
)
def test_a_key_in_the_query_that_does_not_count(attacked: Attacked, query: str) -> None:
    refused(attacked.broker.request(f"/services/Get/?name=witness&{query}"))
    refused(attacked.broker.request("/services/Get/", "POST", f"name=witness&{query}", FORM))


@pytest.mark.parametrize(
    "key",
    [None, "", "wrong", 0, 1, True, [], [CANARY], {"key": CANARY}, {}, "x" * 1_000_000, "\ud800", f"{CANARY}\0"],
    ids=lambda key: repr(key)[:20],
)
def test_a_key_in_json_that_does_not_count(attacked: Attacked, key: Any) -> None:
    for name in ("access_key", "access-key"):
        body = json.dumps({"name": "witness", name: key})
        answer = attacked.broker.request("/services/Get/", "POST", body, JSON)
        assert answer.status == 400 if key == "\ud800" and answer.status != 401 else answer.status == 401, answer
    twice = json.dumps({"name": "witness", "access_key": CANARY})[:-1] + f', "access-key": "{CANARY}"}}'
    refused(attacked.broker.request("/services/Get/", "POST", twice, JSON))


def test_a_key_of_a_mebibyte_in_a_header(attacked: Attacked) -> None:
    answer = attacked.raw(
        b"GET /services/List/ HTTP/1.1\r\nHost: x\r\nX-Access-Key: " + b"k" * 1024 * 1024 + b"\r\n\r\n"
    )
    assert answer.status == 431
    refused(attacked.broker.request("/services/List/", "GET", None, {"X-Access-Key": "k" * 15_000}))


def test_a_key_in_another_normal_form_is_another_key(make_broker: Callable[..., RunningBroker]) -> None:
    key = unicodedata.normalize("NFC", "schlüssel-ﬁ-Ω")
    broker = make_broker({"services": {"_access_key": key}}).start()
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        other = unicodedata.normalize(form, key)
        for answer in (
            broker.call("/services/List/", access_key=other),
            broker.request(f"/services/List/?access_key={quote(other)}"),
            broker.call("/services/List/", {"X-Access-Key": other.encode().decode("latin-1")}),
        ):
            assert answer.status == (200 if form == "NFC" else 401), (form, answer)


def test_configured_keys_that_are_none_stop_the_start(make_broker: Callable[..., RunningBroker]) -> None:
    bad: list[Any] = [
        0, 1.5, True, None, {}, {"a": "b"}, [], [""], ["a", 0], [["a"]], ["a", ""], ["a"] * 5, "k" * 1025, ["k" * 1025],
    ]  # fmt: skip
    sections = ["services", "ping", *(f"extension{number}" for number in range(len(bad) - 2))]
    broker = make_broker({name: {"_access_key": key} for name, key in zip(sections, bad, strict=True)})
    before = broker.config.read_bytes()
    ended = broker.bpbroker("start", "--listen-port", "0")
    assert ended.returncode == 78
    for section in sections:
        assert ended.stderr.count(f"{section}._access_key") == 1, ended.stderr
    assert "k" * 100 not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert broker.config.read_bytes() == before


def test_who_has_no_key_is_open_and_said_to_be(make_broker: Callable[..., RunningBroker]) -> None:
    keys = {"services": {"_access_key": ""}, "own": {"_access_key": ""}, "bare": {}, "shut": {"_access_key": "k"}}
    broker = make_broker(keys)
    for name in ("own", "bare", "shut"):
        (broker.lib / f"{name}.py").write_text(MODULE)
    broker.start()
    assert broker.register("a").status == 200
    assert broker.request("/services/Get/", name="a", access_key="whatever").status == 200
    warned = [line for line in broker.text.splitlines() if "open to everybody" in line]
    assert [name for name in keys if any(f"{name} is open" in line for line in warned)] == ["services", "own", "bare"]
    assert all("WARNING" in line for line in warned)
    # Who wrote an empty key wants it like that. For the others the advice does what it says.
    assert [line.rpartition("; ")[2] for line in warned if "; " in line] == [
        "to close it: bpbroker key add NAME --allow 'bare.*'"
    ]
    assert broker.request("/bare/F").status == 200
    assert broker.bpbroker("key", "add", "NAME", "--allow", "bare.*").returncode == 0
    assert broker.request("/bare/F").status == 401


def test_two_keys_are_valid_while_one_takes_the_other_s_place(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker({"services": {"_access_key": ["old", "new"]}}).start()
    for key, status in (("old", 200), ("new", 200), ("other", 401), ("", 401), ("old,new", 401)):
        assert broker.request("/services/List/", headers={"X-Access-Key": key}).status == status


def test_the_right_key_counts_wherever_it_is_and_is_written_nowhere(attacked: Attacked) -> None:
    broker = attacked.broker
    wanted = {"name": "witness"}
    answers = [
        broker.request("/services/Get/", "GET", None, KEY, **wanted),
        broker.request("/services/Get/", "POST", None, {"Authorization": f"Bearer {CANARY}"}, **wanted),
        broker.request("/services/Get/", "POST", None, {"authorization": f"bearer {CANARY}"}, **wanted),
    ]
    for name in ("access_key", "access-key"):
        given = {**wanted, name: CANARY}
        answers += [
            broker.request(f"/services/Get/?{urlencode(given)}"),
            broker.request("/services/Get/", "POST", urlencode(given), FORM),
            broker.request("/services/Get/", "POST", json.dumps(given), JSON),
        ]
    for answer in answers:
        assert answer.status == 200
        assert CANARY not in f"{answer}"
    # The log is looked at after each test; here requests that fail, too, and a key in the wrong place.
    for path in (f"/services/Nope/?access_key={CANARY}", f"/nope/Get/?access_key={CANARY}", f"/?key={CANARY}"):
        assert broker.request(path).status in (401, 404)
    assert attacked.raw(f"GET /?{CANARY} HTTP/7\r\n\r\n".encode()).status == 400
    assert attacked.raw(f"GET / HTTP/1.1\r\nHost: x\r\nX-Access-Key: {CANARY}\0\r\n\r\n".encode()).status == 400
    assert CANARY not in broker.request("/health", "GET").body.decode()
    for process in (attacked.process, *attacked.process.children(recursive=True)):
        assert CANARY not in " ".join(process.cmdline())


def test_a_key_is_no_parameter_of_an_extension_and_no_part_of_its_environment(
    make_broker: Callable[..., RunningBroker],
) -> None:
    broker = make_broker({"shows": {"_access_key": CANARY}})
    (broker.lib / "shows.py").write_text(
        "import json, os, sys\ndef F(rh):\n    rh.data = json.dumps([rh.qs, dict(os.environ), sys.argv])\n"
    )
    broker.start()
    for headers, parameters in ((KEY, {}), ({}, {"access_key": CANARY}), ({}, {"access-key": CANARY})):
        answer = broker.request("/shows/F/", "POST", None, headers, data="x", **parameters)
        assert answer.status == 200, answer
        assert answer.json[0] == {"data": "x"}
        assert CANARY not in answer.body.decode()
    for child in psutil.Process(broker.pid).children(recursive=True):
        assert CANARY not in " ".join(child.cmdline())
        assert CANARY not in child.environ().values()
    assert CANARY not in broker.text


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """Yield a broker with modules that offer more than should be called, and sections that are no namespaces."""
    sections = ("ext", "pkg", "deep.sub", "os", "subprocess", "worker", "builtins", "_private", "sys", "bpbroker")
    broker = RunningBroker(tmp_path_factory.mktemp("extended"), {name: {} for name in sections})
    (broker.lib / "ext.py").write_text(MODULE)
    for name in ("pkg", "deep"):
        (broker.lib / name).mkdir()
        (broker.lib / name / "__init__.py").write_text("def F(rh):\n    rh.data = '\"package\"'\n")
        (broker.lib / name / "sub.py").write_text("def F(rh):\n    rh.data = '\"module\"'\n")
    for name in ("_private", "worker"):
        (broker.lib / f"{name}.py").write_text(MODULE)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


@pytest.mark.parametrize(
    "namespace",
    ["_config", "_global", "_private", "_registry", "_access_key", "api", "worker", "services.ping", "nope"],
)
def test_a_section_that_is_no_namespace(extended: RunningBroker, namespace: str) -> None:
    for method in ("F", "Get", "listen_port", "__init__", ""):
        refused(extended.request(f"/{namespace}/{method}", data="x"), "Unauthorized package")


@pytest.mark.parametrize("namespace", ["os", "subprocess", "builtins", "sys", "bpbroker"])
def test_a_module_of_python_s_is_no_extension_though_it_has_a_section(
    extended: RunningBroker, namespace: str, tmp_path: Path
) -> None:
    for method in ("system", "run", "Popen", "eval", "exit", "F"):
        answer = extended.request(f"/{namespace}/{method}/", data=f"touch {tmp_path}/pwned")
        assert answer.status == 401, answer
        assert answer.json["message"].startswith("Unauthorized ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "method",
    [
        "_x", "__class__", "__init__", "%5fx", "%5Fx", "a.b", "Thing.Run", "F.__call__", "..%2f", "..%2fservices%2fGet",
        "/", "/F", "F/F", "F%00", "F%20", "f", "Thing", "CONSTANT", "system", "os", "join", "method", "nope",
        "F%0d%0aX:%20y", "F;x", "%2e%2e", "\u0046\u0301".encode().hex(), "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_method(extended: RunningBroker, method: str, tmp_path: Path) -> None:
    refused(extended.request(f"/ext/{method}", data=f"touch {tmp_path}/pwned"), "Unauthorized method")
    assert not list(tmp_path.iterdir())


def test_the_method_that_is_one(extended: RunningBroker) -> None:
    for path in ("/ext/F", "/ext/F/", "/ext/%46/"):
        answer = extended.request(path, data="x")
        assert (answer.status, answer.json) == (200, "ok")


def test_a_module_of_a_package_has_a_section_of_its_own(extended: RunningBroker) -> None:
    assert extended.request("/pkg/F").json == "package"
    refused(extended.request("/pkg.sub/F"), "Unauthorized package")
    refused(extended.request("/pkg/sub.F"), "Unauthorized method")
    refused(extended.request("/pkg/sub"), "Unauthorized method")
    assert extended.request("/deep.sub/F").json == "module"
    refused(extended.request("/deep/F"), "Unauthorized package")


def from_address(broker: RunningBroker, source: str, key: str) -> tuple[int, str | None]:
    """List from a loopback address of choice; give the status and ``Retry-After``."""
    context: ssl.SSLContext = untrusting()
    with closing(
        HTTPSConnection("127.0.0.1", broker.port, timeout=30, context=context, source_address=(source, 0))
    ) as connection:
        connection.request("GET", "/services/List/", headers={"X-Access-Key": key})
        response = connection.getresponse()
        body = json.loads(response.read())
        assert body["success"] is (response.status == 200)
        return response.status, response.getheader("Retry-After")


def test_who_guesses_has_to_pause_and_nobody_else(attack: Callable[..., Attacked]) -> None:
    attacked = attack()
    broker = attacked.broker
    guesser = "127.0.3.1"
    for number in range(100):
        assert from_address(broker, guesser, f"guess-{number}") == (401, None)
    status, pause = from_address(broker, guesser, "guess")
    assert status == 429
    assert pause is not None
    assert 1 <= int(pause) <= 60
    # Behind the same address there may be others, whose key is right.
    assert from_address(broker, guesser, CANARY) == (200, None)
    assert from_address(broker, "127.0.3.2", CANARY) == (200, None)
    assert from_address(broker, "127.0.3.2", "wrong") == (401, None)
    assert "guess-" not in broker.text


def test_the_pause_ends(attack: Callable[..., Attacked]) -> None:
    attacked = attack(wrong_keys_per_minute=1)
    assert from_address(attacked.broker, "127.0.3.3", "wrong")[0] == 401
    status, pause = from_address(attacked.broker, "127.0.3.3", "wrong")
    assert status == 429
    assert pause is not None
    assert 30 <= int(pause) <= 60 + SLOWEST_SECS
    # A request without any key is no guess.
    for _ in range(3):
        assert from_address(attacked.broker, "127.0.3.4", "")[0] == 401
    assert from_address(attacked.broker, "127.0.3.4", CANARY)[0] == 200


def test_guesses_over_https_and_udp_together_and_the_right_key_from_the_same_address(
    make_broker: Callable[..., RunningBroker],
) -> None:
    broker = make_broker({"services": {"_access_key": CANARY}, "_global": {"discovery": "authenticated"}}).start()
    guesser = "127.0.3.9"
    answers: list[int] = []

    def wrong_macs() -> int:
        parts = json.loads(broker.request("/health", "GET").body)["data"]["parts"]
        return next(int(part["figures"]["wrong_macs"]) for part in parts if part["name"] == "discovery")

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((guesser, 0))
        for number in range(60):
            sock.sendto(signed_question("x", "0" * 32, f"{number:064x}"), ("127.0.0.1", broker.port))
    eventually(lambda: wrong_macs() == 60)

    def guess() -> None:
        answers.extend(from_address(broker, guesser, f"guess-{number}")[0] for number in range(44))

    guessing = threading.Thread(target=guess)
    guessing.start()
    slowest, right = 0.0, 0
    while guessing.is_alive():
        begun = time.monotonic()
        assert from_address(broker, guesser, CANARY) == (200, None)
        slowest, right = max(slowest, time.monotonic() - begun), right + 1
    guessing.join()
    # A hundred together.
    assert answers == [401] * 40 + [429] * 4
    assert right > 5
    assert slowest <= SLOWEST_SECS
