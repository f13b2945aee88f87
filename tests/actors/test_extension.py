"""The extension actor with real child processes: cases A5 to A8 and E1 to E9."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn

import pytest

from bpbroker.actors import extension
from bpbroker.actors.base import ActorAddress, launch, wait_for
from bpbroker.actors.extension import Extension
from bpbroker.actors.registry import Registry
from bpbroker.config import layers
from bpbroker.errors import (
    BadRequest,
    BpbrokerError,
    ExtensionFailed,
    NotFound,
    Overloaded,
    RequestError,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from bpbroker.messages import Call, CallResult, Get, Ping, Pong, Register, SettingsChanged
from bpbroker.storage.embedded.store import EmbeddedStore
from tests.support.witness import eventually

WAIT_SECS = 30.0
"""For everything that must come; machines may be slow."""

MODULE = """
import json
import os
import signal
import subprocess
import sys
import threading
import time
from os import system
from pathlib import Path

import bpbroker.config
import bpbroker.extensions

CONSTANT = 7
calls = 0


class Class:
    def __init__(self, rh):
        pass


def Test(rh):
    rh.data = json.dumps(rh.qs)


def Echo(rh):
    rh.data = {"qs": rh.qs, "from": rh.RequestingHost(), "id": rh.request_id, "pid": os.getpid()}


def _Private(rh):
    rh.data = "private"


async def Later(rh):
    rh.data = "never"


def Many(rh):
    yield


def Count(rh):
    global calls
    calls += 1
    rh.data = str(calls)


def Old(rh):
    with bpbroker.config.rlock:
        rh.status = 409
        rh.status_message = "In use"


def Config(rh):
    try:
        bpbroker.config.data["new"] = 1
    except TypeError:
        rh.data = {"all": bpbroker.config.data, "own": rh.config}


def Refuse(rh):
    raise bpbroker.extensions.Error(418, "No\\r\\nX-Bad: tea")


def Raise(rh):
    raise ValueError("canary-7391")


def Exit(rh):
    sys.exit(0)


def OsExit(rh):
    os._exit(3)


def Crash(rh):
    os.kill(os.getpid(), signal.SIGSEGV)


def Thread(rh):
    threading.Thread(target=os._exit, args=(4,)).start()
    time.sleep(60)


def Eat(rh):
    held = []
    while True:
        held.append(bytearray(1 << 20))


def Sleep(rh):
    time.sleep(float(rh.qs.get("data", 1000)))
    rh.data = "slept"


def Begin(rh):
    Path(rh.qs["data"]).touch()
    time.sleep(1000)


def Wait(rh):
    while not Path(rh.qs["data"]).exists():
        time.sleep(0.005)
    rh.data = str(os.getpid())


def Grandchild(rh):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    Path(rh.qs["data"]).write_text(str(child.pid))
    time.sleep(1000)


def Orphan(rh):
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(5)


def Descriptors(rh):
    names = os.listdir("/proc/self/fd")
    rh.data = [os.readlink(f"/proc/self/fd/{name}") for name in names if os.path.exists(f"/proc/self/fd/{name}")]


def Set(rh):
    rh.data = eval(rh.qs["value"])


def Status(rh):
    rh.status = eval(rh.qs["value"])
    rh.status_message = "one\\r\\nX-Bad: two"


def Type(rh):
    rh.content_type = eval(rh.qs["value"])


def Noise(rh):
    print("printed")
    print("complained", file=sys.stderr)
    os.write(1, b"written\\n")
    subprocess.run(["echo", "echoed"])
    rh.log.warning("logged %d\\nin two lines", 7)
    rh.data = "done"


def Deep(rh):
    return Deep(rh)


def Read(rh):
    rh.data = {"input": sys.stdin.read()}


def Entries(rh):
    made = rh.registry.register("one", {"a": 1})
    changed = rh.registry.update("one", {"b": 2})
    rh.registry.replace("two", "text")
    rh.registry.delete("gone")
    rh.data = {"made": made, "changed": changed, "got": rh.registry.get("one"), "all": sorted(rh.registry.list(""))}


def Missing(rh):
    rh.registry.get("nobody")


def Bad(rh):
    rh.registry.register("_access_key", "x")


def Environment(rh):
    rh.data = dict(os.environ)


def Breaks(rh):
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, b"this is no frame")
        except OSError:
            pass
    time.sleep(1000)
"""


class Made:
    """An extension actor with its lib folder."""

    def __init__(self, lib: Path, address: ActorAddress, settings: dict[str, Any]) -> None:
        self.lib = lib
        self.address = address
        self.settings = settings
        self.namespace = address.name.partition(" ")[2]

    def begin(self, method: str, source: str = "10.0.0.7", key: str | None = None, **qs: str) -> Future[CallResult]:
        return self.address.ask(Call(method, qs, source, f"id-of-{method}", key), WAIT_SECS)

    def call(self, method: str, source: str = "10.0.0.7", key: str | None = None, **qs: str) -> CallResult:
        return wait_for(self.begin(method, source, key, **qs), WAIT_SECS)

    def body(self, method: str, **qs: str) -> Any:
        return json.loads(self.call(method, **qs).body)

    def health(self) -> Pong:
        return wait_for(self.address.ask(Ping(), WAIT_SECS), WAIT_SECS)  # type: ignore[no-any-return]  # Ping's reply

    def change(self, **section: Any) -> None:
        self.settings = {**self.settings, self.namespace: section}
        self.reload()

    def reload(self) -> None:
        self.address.tell(SettingsChanged(layers.freeze(self.settings)))

    def until(self, seen: Callable[[Pong], bool]) -> Pong:
        deadline = time.monotonic() + WAIT_SECS
        while not seen(pong := self.health()):
            assert time.monotonic() < deadline, pong
            time.sleep(0.01)
        return pong


Make = Callable[..., Made]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[ActorAddress]:
    settings = layers.freeze(layers.DEFAULTS)
    address = ActorAddress("registry", launch(Registry, lambda: EmbeddedStore(tmp_path / "j", dict), settings))
    yield address
    assert address.stop(WAIT_SECS)


@pytest.fixture
def make(tmp_path: Path, registry: ActorAddress) -> Iterator[Make]:
    lib = tmp_path / "lib"
    lib.mkdir()
    made: list[ActorAddress] = []

    def make(namespace: str = "demo", source: str | None = MODULE, answers: Path | None = None, **section: Any) -> Made:
        if source is not None:
            path = lib.joinpath(*namespace.split(".")).with_suffix(".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(source)
        settings: dict[str, Any] = {**layers.thaw(layers.DEFAULTS), namespace: section}
        name = f"extension {namespace}"
        ref = launch(Extension, namespace, lib, layers.freeze(settings), registry, answers)
        made.append(ActorAddress(name, ref))
        return Made(lib, made[-1], settings)

    yield make
    for address in made:
        assert address.stop(WAIT_SECS)


@pytest.fixture
def demo(make: Make) -> Made:
    return make()


def gone(pid: int) -> bool:
    """Whether a process ends, its last thread too; a zombie that waits to be reaped has ended."""
    deadline = time.monotonic() + WAIT_SECS
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z" and len(list(Path(f"/proc/{pid}/task").iterdir())) == 1:
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


# --- what a method is given and gives ---


def test_a_module_written_for_022_runs_as_it_is(demo: Made) -> None:
    result = demo.call("Test", data="hello", other="x")
    assert result == CallResult(200, "OK", "application/json", b'{"data": "hello", "other": "x"}')
    result = demo.call("Old")
    assert (result.status, result.message, result.body) == (409, "In use", b"")


def test_a_method_knows_who_asks(demo: Made) -> None:
    answer = demo.body("Echo", source="fe80::1", data="x")
    assert answer["qs"] == {"data": "x"}
    assert answer["from"] == "fe80::1"
    assert answer["id"] == "id-of-Echo"
    assert answer["pid"] != os.getpid()


def test_calls_share_one_process(demo: Made) -> None:
    assert [demo.call("Count").body for _ in range(3)] == [b"1", b"2", b"3"]


def test_the_configuration_is_read_only_and_without_the_secrets_of_others(make: Make) -> None:
    demo = make(_access_key="mine", colour={"deep": [1]})
    demo.settings["other"] = {"_access_key": "theirs", "x": 1}
    demo.reload()
    seen = demo.body("Config")
    assert seen["own"] == {"_access_key": "mine", "colour": {"deep": [1]}}
    assert seen["all"]["other"] == {"x": 1}
    assert seen["all"]["demo"] == seen["own"]


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ("None", b""),
        ("'ü'", "ü".encode()),
        ("b'\\xff\\x00'", b"\xff\x00"),
        ("bytearray(b'x')", b"x"),
        ("{'a': [1, None]}", b'{"a": [1, null]}'),
        ("['ü']", '["ü"]'.encode()),
        ("'x' * (1 << 20)", b"x" * (1 << 20)),
    ],
)
def test_data_that_can_be_sent(demo: Made, value: str, body: bytes) -> None:
    assert demo.call("Set", value=value).body == body


@pytest.mark.parametrize(
    "value",
    ["7", "object()", "{'a': object()}", "[float('nan')]", "'\\ud800'", "b'x' * (100 << 20)", "{1, 2}"],
)
def test_data_that_cannot_be_sent_is_an_error_and_no_end(demo: Made, value: str) -> None:
    pid = demo.body("Echo")["pid"]
    with pytest.raises(ExtensionFailed, match="id-of-Set"):
        demo.call("Set", value=value)
    assert demo.body("Echo")["pid"] == pid


@pytest.mark.parametrize("value", ["'x'", "None", "99", "1000", "True", "2.5", "'2²0'"])
def test_a_status_that_is_none(demo: Made, value: str) -> None:
    with pytest.raises(ExtensionFailed):
        demo.call("Status", value=value)


def test_a_message_is_one_line(demo: Made) -> None:
    assert demo.call("Status", value="'404'") == CallResult(404, "one X-Bad: two", "application/json", b"")
    assert demo.call("Refuse") == CallResult(418, "No X-Bad: tea", "application/json", b"")


@pytest.mark.parametrize(
    "value", ["'text/plain\\r\\nX-Bad: 1'", "None", "''", "'text'", "'text/ü'", "'a/' + 'b' * 999"]
)
def test_a_content_type_that_is_none(demo: Made, value: str) -> None:
    with pytest.raises(ExtensionFailed):
        demo.call("Type", value=value)


def test_a_content_type_with_parameters(demo: Made) -> None:
    assert demo.call("Type", value="'text/plain; charset=utf-8'").content_type == "text/plain; charset=utf-8"


def test_the_registry_is_within_reach(demo: Made, registry: ActorAddress) -> None:
    seen = demo.body("Entries")
    assert seen["made"]["a"] == 1
    assert seen["made"]["last_write_ip"] == "10.0.0.7"
    assert {"a": 1, "b": 2}.items() <= seen["got"].items()
    assert seen["got"] == seen["changed"]
    assert seen["all"] == ["one", "two"]
    record = wait_for(registry.ask(Get("two"), WAIT_SECS), WAIT_SECS)
    assert json.loads(record.json)["_str"] == "text"
    wait_for(registry.ask(Register("three", {}, "10.0.0.8"), WAIT_SECS), WAIT_SECS)


def test_what_the_registry_refuses_is_the_answer(demo: Made) -> None:
    assert demo.call("Missing") == CallResult(404, "Entry 'nobody' not found", "application/json", b"")
    assert demo.call("Bad").status == 400
    demo.body("Entries")
    assert demo.call("Entries").message == "Entry 'one' already exists"


def test_what_is_printed_and_logged_goes_to_the_log(demo: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert demo.call("Noise").body == b"done"
    wanted = [
        ("INFO", "printed"),
        ("INFO", "complained"),
        ("INFO", "written"),
        ("INFO", "echoed"),
        ("WARNING", "logged 7"),
        ("WARNING", "in two lines"),
    ]
    deadline = time.monotonic() + WAIT_SECS
    while True:
        seen = [(each.levelname, each.message) for each in caplog.records if each.name == "bpbroker.extension.demo"]
        if sorted(seen) == sorted(wanted):
            break
        assert time.monotonic() < deadline, seen
        time.sleep(0.01)


def test_standard_input_is_empty(demo: Made) -> None:
    assert demo.body("Read") == {"input": ""}


def test_the_environment_is_extended_and_without_the_brokers_own(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BPBROKER_ACCESS_KEY", "secret")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("KEPT", "1")
    seen = make(_env={"EXTRA": "2"}).body("Environment")
    assert (seen["KEPT"], seen["EXTRA"]) == ("1", "2")
    assert not {"BPBROKER_ACCESS_KEY", "NOTIFY_SOCKET"} & set(seen)


# --- A: what may be called ---


@pytest.mark.parametrize(
    "method",
    [
        "_Private",
        "__class__",
        "__import__",
        "system",
        "Class",
        "CONSTANT",
        "json",
        "nothing",
        "Later",
        "Many",
        "a.b",
        "",
        "É",
    ],
)
def test_only_functions_of_the_module_itself_are_methods(demo: Made, method: str) -> None:
    for _ in range(2):  # before the module is imported, and after
        with pytest.raises(Unauthorized, match=r"^Unauthorized method$"):
            demo.call(method)
        demo.call("Test")


@pytest.mark.parametrize(
    "namespace", ["os", "subprocess", "json", "bpbroker", "bpbroker.config", "a-b", "class", "..", "x/y", "É"]
)
def test_names_that_are_no_extensions(make: Make, namespace: str) -> None:
    made = make(namespace, source=None)
    (made.lib / "os.py").write_text(MODULE)
    made.reload()
    with pytest.raises(Unauthorized):
        made.call("Test")
    assert not made.health().ok


def test_a_module_of_a_package(make: Make) -> None:
    made = make("pkg.sub", "from . import other\n\ndef F(rh):\n    rh.data = __name__ + other.WORD\n")
    (made.lib / "pkg" / "other.py").write_text("WORD = '!'\n")
    assert made.call("F").body == b"pkg.sub!"
    whole = make("pkg", source=None)
    with pytest.raises(Unauthorized):
        whole.call("sub.F")


def test_a_package_wherever_else_its_name_exists(make: Make) -> None:
    assert make("pytest", "def F(rh):\n    rh.data = __file__\n").call("F").body.endswith(b"/lib/pytest.py")


def test_the_lib_folder_shadows_nothing_of_python(make: Make) -> None:
    made = make("shadow", "import colorsys\nimport mine\n\ndef F(rh):\n    rh.data = colorsys.__file__ + mine.WORD\n")
    (made.lib / "colorsys.py").write_text("raise RuntimeError\n")
    (made.lib / "mine.py").write_text("WORD = '!'\n")
    assert b"/lib/colorsys.py" not in made.call("F").body.replace(b"/usr/lib", b"")


def test_decorated_functions_are_methods(make: Make) -> None:
    source = """
import functools
from decorators import loud
def Plain(rh):
    rh.data = "plain"
@loud
def Loud(rh):
    rh.data = "loud"
@functools.wraps(Plain)
def Wrapped(rh):
    rh.data = "wrapped"
"""
    made = make("decorated", source)
    (made.lib / "decorators.py").write_text(
        """
import functools
def loud(f):
    @functools.wraps(f)
    def g(rh):
        f(rh)
        rh.data += "!"
    return g
"""
    )
    assert made.call("Loud").body == b"loud!"
    assert made.call("Wrapped").body == b"wrapped"
    with pytest.raises(Unauthorized):
        made.call("loud")


# --- E1, E7: time limit ---


def test_a_call_past_its_limit_is_killed_with_all_it_started(make: Make, tmp_path: Path) -> None:
    demo, note = make(_timeout_secs=4), tmp_path / "pid"
    pid = demo.body("Echo")["pid"]
    with pytest.raises(TimedOut, match="longer than 4 s") as caught:
        demo.call("Grandchild", data=str(note))
    assert not caught.value.outcome_known
    assert gone(pid)
    assert gone(int(note.read_text()))
    assert demo.body("Echo")["pid"] != pid


def test_a_ping_is_answered_while_a_call_hangs(demo: Made) -> None:
    demo.call("Test")
    slow = demo.begin("Sleep")
    demo.until(lambda pong: pong.figures["running"] == 1)
    begin = time.monotonic()
    demo.health()
    assert time.monotonic() - begin < 1
    assert not slow.done()


def test_an_import_that_hangs_is_given_up(make: Make) -> None:
    made = make("slow", "import time\ntime.sleep(1000)\ndef F(rh): pass\n", _timeout_secs=0.5)
    with pytest.raises(Unauthorized):
        made.call("F")
    assert made.health().detail == "it cannot be imported: that takes longer than 0.5 s"


def test_nothing_of_the_broker_is_inherited(demo: Made) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.set_inheritable(server.fileno(), True)
        seen = demo.body("Descriptors")
    assert not [name for name in seen if name.startswith("socket:")]


def test_what_is_left_behind_is_ended_with_its_process(demo: Made) -> None:
    begin = time.monotonic()
    with pytest.raises(ExtensionFailed):  # a forked process holds the pipe, which must not be waited for
        demo.call("Orphan")
    assert time.monotonic() - begin < 20
    demo.until(lambda pong: pong.figures["processes"] == 0)


# --- E2, E3, E5: failing calls ---


@pytest.mark.parametrize("method", ["Exit", "OsExit", "Crash", "Thread", "Breaks"])
def test_a_call_that_ends_its_process_hurts_itself_only(make: Make, method: str) -> None:
    demo = make(_timeout_secs=20)
    pid = demo.body("Echo")["pid"]
    with pytest.raises((ExtensionFailed, TimedOut)):
        demo.call(method)
    assert demo.body("Echo")["pid"] != pid
    assert demo.health().ok
    assert method in demo.health().figures["last_error"]
    assert demo.health().figures["failures"] == 1


def test_a_process_that_died_between_two_calls_costs_no_call(demo: Made) -> None:
    for _ in range(3):
        pid = demo.body("Echo")["pid"]
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        assert demo.body("Echo")["pid"] != pid


def test_memory_is_limited(make: Make) -> None:
    demo = make(_memory_max_bytes=256 << 20)
    pid = demo.body("Echo")["pid"]
    with pytest.raises(ExtensionFailed):
        demo.call("Eat")
    assert "MemoryError" in demo.health().figures["last_error"]
    assert demo.body("Echo")["pid"] != pid


def test_what_a_method_raises_is_in_the_log_only(demo: Made, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ExtensionFailed) as caught:
        demo.call("Raise")
    assert str(caught.value) == "Raise failed; the broker's log says more under id-of-Raise"
    assert "canary-7391" not in repr(demo.health())
    assert "canary-7391" in caplog.text
    assert "in Raise" in caplog.text
    assert "id-of-Raise" in caplog.text
    assert demo.call("Test").status == 200


def test_endless_recursion_is_an_error(demo: Made) -> None:
    with pytest.raises(ExtensionFailed):
        demo.call("Deep")
    assert demo.call("Test").status == 200


# --- E4: modules that cannot be used ---


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        (None, "there is no demo.py in the lib folder"),
        ("def F(rh:\n", "it does not parse: '(' was never closed, line 1"),
        ("import nothing_of_this_name\ndef F(rh): pass\n", "ModuleNotFoundError of nothing_of_this_name, line 1"),
        ("def F(rh): pass\n\nraise ValueError('canary-7391')\n", "it cannot be imported: ValueError, line 3"),
        ("def F(rh): pass\nimport sys\nsys.exit(0)\n", "it cannot be imported: SystemExit, line 3"),
        (
            "def F(rh): pass\nimport os\nos._exit(0)\n",
            "it cannot be imported: importing it ended its process (exit code 0)",
        ),
        ("def F(rh): pass\nimport os\nos.kill(os.getpid(), 11)\n", "ended its process (signal SIGSEGV)"),
        ("def F(rh): pass\nfrom . import x\n", "ImportError"),
    ],
)
def test_a_module_that_cannot_be_used(
    make: Make, source: str | None, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = make("demo", source)
    for _ in range(3):
        with pytest.raises(Unauthorized, match=r"^Unauthorized method$"):
            made.call("F")
    pong = made.health()
    assert not pong.ok
    assert detail in pong.detail
    assert "canary" not in pong.detail
    assert sum(detail in each.message for each in caplog.records) == 1
    assert ("canary" in caplog.text) == ("canary" in (source or ""))


def test_a_failed_import_is_tried_again_after_a_while(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "RETRY_IMPORT_SECS", 0.0)
    made = make(
        "demo", "from pathlib import Path\nif not Path(__file__ + '.ok').exists(): raise OSError\ndef F(rh): pass\n"
    )
    with pytest.raises(Unauthorized):
        made.call("F")
    (made.lib / "demo.py.ok").touch()
    assert made.call("F").status == 200
    assert made.health().ok


def test_a_user_that_does_not_exist(make: Make) -> None:
    made = make(_user="nobody-of-this-name")
    with pytest.raises(Unauthorized):
        made.call("Test")
    assert "there is no user nobody-of-this-name" in made.health().detail


@pytest.fixture
def python_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have children run by an interpreter that every user may execute; the tests' own may lie in root's home."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for candidate in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable):
        command = [candidate, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        with contextlib.suppress(PermissionError):
            if subprocess.run(command, user="nobody", check=False).returncode == 0:
                monkeypatch.setattr(sys, "executable", candidate)
                return
    pytest.skip("there is no Python 3.11 or newer that another user may execute")


@pytest.mark.usefixtures("python_of_all")
def test_another_user(make: Make, tmp_path: Path) -> None:
    top = next(parent for parent in tmp_path.parents if parent.name.startswith("pytest-of-"))
    for folder in (tmp_path, *list(tmp_path.parents)):
        if folder.is_relative_to(top):
            folder.chmod(0o755)
    source = "import os\ndef Who(rh):\n    rh.data = [os.getuid(), os.getgid(), os.environ['HOME'], os.getgroups()]\n"
    made = make("who", source, _user="nobody")
    found = pwd.getpwnam("nobody")
    uid, gid, home, groups = made.body("Who")
    assert (uid, gid, home) == (found.pw_uid, found.pw_gid, found.pw_dir)
    assert set(groups) <= {gid}


# --- E8, order, workers ---


def test_calls_run_one_at_a_time_and_in_order(demo: Made) -> None:
    replies = [demo.begin("Count") for _ in range(20)]
    assert [wait_for(reply, WAIT_SECS).body for reply in replies] == [b"%d" % number for number in range(1, 21)]
    assert demo.health().figures["processes"] == 1


def test_calls_beyond_the_queue_are_refused(make: Make, tmp_path: Path) -> None:
    demo, gate = make(_queue_max=5), tmp_path / "gate"
    replies = [demo.begin("Wait", data=str(gate)) for _ in range(100)]
    demo.health()  # answered when all of them are queued or refused
    refused = [reply for reply in replies if reply.done()]
    assert len(refused) == 94
    for reply in refused:
        with pytest.raises(Overloaded, match="nothing was done"):
            reply.result(0)
    gate.touch()
    assert sum(wait_for(reply, WAIT_SECS).status for reply in replies if reply not in refused) == 6 * 200


def test_no_queue_at_all(make: Make, tmp_path: Path) -> None:
    demo, gate = make(_queue_max=0), tmp_path / "gate"
    first = demo.begin("Wait", data=str(gate))
    with pytest.raises(Overloaded):
        demo.call("Test")
    gate.touch()
    assert wait_for(first, WAIT_SECS).status == 200
    assert demo.call("Test").status == 200


def test_who_waits_too_long_for_a_turn_hears_that_nothing_was_done(make: Make) -> None:
    demo = make(_timeout_secs=2)
    demo.call("Test")
    replies = [demo.begin("Sleep") for _ in range(4)]
    with pytest.raises(TimedOut, match="stopped"):
        wait_for(replies[0], WAIT_SECS)
    with pytest.raises(TimedOut, match="nothing was done"):
        wait_for(replies[3], WAIT_SECS)
    assert demo.health().figures["calls"] < 5


def test_who_gave_up_is_not_served(demo: Made, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first, second = demo.begin("Wait", data=str(gate)), demo.begin("Count")
    second.cancel()
    gate.touch()
    wait_for(first, WAIT_SECS)
    assert demo.call("Count").body == b"1"


def test_workers_run_calls_at_the_same_time(make: Make, tmp_path: Path) -> None:
    demo, gate = make(_workers=3), tmp_path / "gate"
    replies = [demo.begin("Wait", data=str(gate)) for _ in range(4)]
    demo.until(lambda pong: pong.figures["running"] == 3)
    gate.touch()
    assert len({wait_for(reply, WAIT_SECS).body for reply in replies}) == 3


def test_the_lock_of_the_configuration_excludes_all_workers(make: Make, tmp_path: Path) -> None:
    source = """
import os, time
from pathlib import Path
from bpbroker import config

def Alone(rh):
    note = Path(rh.qs["data"])
    with config.rlock, config.rlock:
        descriptor = os.open(note, os.O_CREAT | os.O_EXCL)  # fails if another one is here
        time.sleep(0.02)
        os.close(descriptor)
        note.unlink()
    rh.data = str(os.getpid())
"""
    made = make("alone", source, _workers=4)
    replies = [made.begin("Alone", data=str(tmp_path / "note")) for _ in range(24)]
    assert len({wait_for(reply, WAIT_SECS).body for reply in replies}) > 1


# --- reload, preload, stop ---


def test_a_changed_module_takes_effect_at_the_reload_and_drops_no_call(demo: Made, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    before = [demo.begin("Wait", data=str(gate)), demo.begin("Count")]
    demo.until(lambda pong: pong.figures["running"] == 1)
    (demo.lib / "demo.py").write_text(
        MODULE.replace("calls = 0", "calls = 100") + "\ndef New(rh):\n    rh.data = 'new'\n"
    )
    with pytest.raises(Unauthorized):
        demo.call("New")
    demo.reload()
    after = demo.begin("New")
    gate.touch()
    assert [wait_for(reply, WAIT_SECS).status for reply in (*before, after)] == [200, 200, 200]
    assert demo.call("Count").body == b"102"


def test_a_change_of_something_else_ends_no_process(demo: Made) -> None:
    demo.call("Count")
    demo.reload()
    assert demo.call("Count").body == b"2"
    demo.settings["_registry"] = {"password": "secret"}
    demo.reload()
    demo.change(colour="blue")
    assert demo.call("Count").body == b"1"


def test_a_module_that_comes_later(make: Make) -> None:
    made = make("demo", source=None)
    with pytest.raises(Unauthorized):
        made.call("Test")
    (made.lib / "demo.py").write_text(MODULE)
    made.reload()
    assert made.call("Test").status == 200
    assert made.health().ok
    (made.lib / "demo.py").write_text("no python")
    made.reload()
    with pytest.raises(Unauthorized):
        made.call("Test")


def test_preloading_finds_out_at_the_start(make: Make) -> None:
    made = make("demo", "raise ValueError\n", _preload=True)
    assert made.until(lambda pong: not pong.ok).detail == "it cannot be imported: ValueError, line 1"


def test_stopping_ends_every_process(make: Make, tmp_path: Path) -> None:
    demo, note = make(_workers=2), tmp_path / "begun"
    idle = demo.body("Echo")["pid"]
    running = demo.begin("Begin", data=str(note))
    waiting = [demo.begin("Begin", data=str(note)) for _ in range(3)]
    demo.until(lambda pong: pong.figures["running"] == 2)
    begin = time.monotonic()
    assert demo.address.stop(WAIT_SECS)
    assert time.monotonic() - begin < 10
    for reply in (running, *waiting):
        with pytest.raises(Unavailable, match="stopping"):
            reply.result(0)
    assert gone(idle)


# --- Idempotency-Key ---


def test_a_repeat_gets_the_first_answer(demo: Made) -> None:
    assert demo.call("Count", key="k1") == demo.call("Count", key="k1")
    assert demo.call("Count", key="k2").body == b"2"
    assert demo.call("Count").body == b"3"


def test_a_repeat_during_the_call_waits_for_the_same_answer(demo: Made, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    replies = [demo.begin("Wait", key="k", data=str(gate)) for _ in range(5)]
    demo.until(lambda pong: pong.figures["running"] == 1)
    assert demo.health().figures["waiting"] == 0
    gate.touch()
    assert len({wait_for(reply, WAIT_SECS).body for reply in replies}) == 1
    assert demo.health().figures["calls"] == 1


def test_a_failure_is_an_answer_too(make: Make) -> None:
    demo = make(_timeout_secs=4)
    kinds: Mapping[str, type[BpbrokerError]] = {"Sleep": TimedOut, "OsExit": RequestError, "Raise": RequestError}
    for method, kind in kinds.items():
        said = set()
        for _ in range(2):
            with pytest.raises(kind) as caught:
                demo.call(method, key=method)
            said.add((caught.value.status, str(caught.value)))
        assert len(said) == 1
    assert demo.health().figures["failures"] == 3


def test_what_was_not_begun_can_be_repeated(make: Make, tmp_path: Path) -> None:
    demo, gate = make(_queue_max=0), tmp_path / "gate"
    first = demo.begin("Wait", data=str(gate))
    with pytest.raises(Overloaded):
        demo.call("Count", key="k")
    gate.touch()
    wait_for(first, WAIT_SECS)
    assert demo.call("Count", key="k").body == b"1"
    with pytest.raises(Unauthorized):
        demo.call("nothing", key="k2")
    assert demo.call("Count", key="k2").body == b"2"


@pytest.mark.parametrize("other", [{"data": "x"}, {"source": "10.0.0.8"}])
def test_a_key_stands_for_one_request_of_one_host(demo: Made, other: dict[str, str]) -> None:
    demo.call("Count", key="k")
    with pytest.raises(BadRequest, match="another request"):
        demo.call("Count", key="k", **other)
    assert demo.call("Count").body == b"2"


@pytest.mark.parametrize("key", ["", " ", "ü", "a\nb", "x" * 256])
def test_keys_that_are_none(demo: Made, key: str) -> None:
    with pytest.raises(BadRequest, match="Idempotency-Key"):
        demo.call("Count", key=key)


def test_answers_outlive_the_actor(make: Make, tmp_path: Path) -> None:
    demo = make(answers=tmp_path / "answers")
    first = demo.call("Echo", key="k")
    assert demo.address.stop(WAIT_SECS)
    assert make(answers=tmp_path / "answers").call("Echo", key="k") == first
    assert (tmp_path / "answers").stat().st_mode & 0o777 == 0o600


def test_a_call_that_was_cut_off_is_not_run_again(make: Make, tmp_path: Path) -> None:
    note = tmp_path / "note"
    demo = make(answers=tmp_path / "answers")
    cut = demo.begin("Begin", key="k", data=str(note))
    demo.until(lambda _: note.exists())
    note.unlink()
    assert demo.address.stop(WAIT_SECS)
    with pytest.raises(Unavailable):
        cut.result(0)
    with pytest.raises(RequestError, match="cut off") as caught:
        make(answers=tmp_path / "answers").call("Begin", key="k", data=str(note))
    assert not caught.value.outcome_known
    assert not note.exists()


def test_without_its_file_no_call_with_a_key_runs(make: Make, tmp_path: Path) -> None:
    demo = make(answers=tmp_path)  # a folder
    with pytest.raises(Unavailable):
        demo.call("Count", key="k")
    assert demo.call("Count").body == b"1"


def test_not_found_is_told_by_its_own_name(demo: Made) -> None:
    (demo.lib / "demo.py").write_text(
        """
from bpbroker.errors import NotFound
def F(rh):
    try:
        rh.registry.get("x")
    except NotFound as error:
        rh.data = str(error)
"""
    )
    demo.reload()
    assert demo.call("F").body == b"Entry 'x' not found"
    assert issubclass(NotFound, RequestError)


def test_nothing_is_left_behind_in_the_lib_folder(demo: Made) -> None:
    demo.call("Test")
    assert [path.name for path in demo.lib.iterdir()] == ["demo.py"]
    shutil.rmtree(demo.lib)
    assert demo.call("Test").status == 200


def test_health_tells_how_many_keys_are_kept_and_warns_early(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpbroker.extensions.idempotency.KEYS_MAX", 5)
    monkeypatch.setattr(extension, "_TIDY_SECS", 0.05)
    demo = make(answers=tmp_path / "answers")
    assert demo.health().figures["keys_kept"] == 0
    for number in range(3):
        demo.call("Count", key=f"k{number}")
    assert demo.until(lambda pong: pong.figures["keys_kept"] == 3).ok
    demo.call("Count", key="k3")
    pong = demo.until(lambda pong: pong.figures["keys_kept"] == 4)
    assert (pong.ok, "Idempotency-Key" in pong.detail) == (False, True)
    assert pong.figures["answers_bytes"] > 0
    assert demo.call("Count", key="k4").body == b"5"
    with pytest.raises(Overloaded):
        demo.call("Count", key="k5")
    assert demo.call("Count").body == b"6"


# --- an actor that dies or is stuck ---


class Hold:
    """The message that holds an actor."""


class Fault:
    """Looks like an envelope, and ends the actor's thread without any tidying up."""

    reply_to = None

    @property
    def message(self) -> NoReturn:
        raise RuntimeError("fault")


def actor_of(made: Made) -> Any:
    ref = made.address._ref
    return None if ref is None else ref._actor_weakref()


def refused(reply: Future[CallResult]) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        reply.result(WAIT_SECS)
    return caught.value


@pytest.mark.parametrize("harm", ["dies", "is stuck"])
def test_no_call_and_no_process_outlives_its_actor(make: Make, tmp_path: Path, harm: str) -> None:
    demo = make(answers=tmp_path / "answers")
    child, note, release = tmp_path / "child", tmp_path / "note", threading.Event()
    begun = demo.begin("Grandchild", key="k", data=str(child))
    eventually(lambda: child.exists() and child.read_text() != "")
    waiting = demo.begin("Begin", data=str(note))
    demo.until(lambda pong: pong.figures["waiting"] == 1)
    actor = actor_of(demo)
    (worker,) = actor._crew
    if harm == "dies":
        actor.actor_inbox._queue.put(Fault())  # past put(), which would open it
        actor.actor_stopped.wait(WAIT_SECS)
        behind = None
    else:
        actor.handlers[Hold] = lambda _: release.wait(WAIT_SECS)
        demo.address.tell(Hold())
        behind = demo.begin("Begin", data=str(note))
        demo.address.abandon()
        demo.address.abandon()  # it does not matter how often
    error = refused(begun)
    assert (error.outcome_known, "Grandchild was begun; what it did is not known" in str(error)) == (False, True)
    for reply in (waiting, behind):
        if reply is not None:
            error = refused(reply)
            assert (error.outcome_known, "nothing was done" in str(error)) == (True, True)
    assert gone(worker.driver.pid)
    assert gone(int(child.read_text()))
    release.set()
    assert demo.address.stop(WAIT_SECS)
    assert not note.exists()  # whose client was told that nothing was done is not served afterwards
    with pytest.raises(RequestError, match=r"not known|crashed"):  # crashed: it came to itself and saw it
        make(answers=tmp_path / "answers").call("Grandchild", key="k", data=str(child))
    assert actor.status().figures["calls"] == 1
