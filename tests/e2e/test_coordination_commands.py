"""Commands of ``bpclient`` for sessions, many entries, barriers, numbers and files, end to end on one broker."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.running import RunningBroker


class At:
    """A broker that all tests share: each uses names of its own."""

    def __init__(self, broker: RunningBroker) -> None:
        self.broker = broker

    def ask(self, *words: str, code: int = 0, stdin: str = "") -> str:
        """Run bpclient to its end; give what it printed, or what it complained of."""
        done = self.broker.bpclient("-q", *words, stdin=stdin)
        assert done.returncode == code, (words, done.stderr)
        assert not (code and done.stdout), done.stdout  # nothing on standard output when it failed
        return done.stderr if code else done.stdout

    def begin(self, *words: str) -> subprocess.Popen[str]:
        command = self.broker.command("bpbroker.client", "-q", "-b", f"127.0.0.1:{self.broker.port}", *words)
        return subprocess.Popen(
            command, env=self.broker.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def keys(self, prefix: str) -> list[str]:
        return self.ask("service", "list", "--prefix", prefix, "--keys").split()


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[At]:
    broker = RunningBroker(tmp_path_factory.mktemp("commands"))
    try:
        yield At(broker.start())
    finally:
        broker.kill()


def await_true(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def leased(at: At, name: str, ttl: str, data: str = '{"step": "packages"}') -> str:
    """Register an entry with a session of its own; give the session's id."""
    return str(json.loads(at.ask("service", "register", name, "--data", data, "--ttl", ttl, "--raw"))["session"])


def test_a_session_is_renewed_and_closed(at: At) -> None:
    session = leased(at, "ttl/a", "60s")
    at.ask("session", "renew", session)
    assert at.keys("ttl/") == ["ttl/a"]
    at.ask("service", "replace", "ttl/b", "--data", "x", "--session", session)
    at.ask("session", "close", session)
    assert at.keys("ttl/") == []
    at.ask("session", "close", session)  # it is closed: fine
    assert "no session" in at.ask("session", "renew", session, code=3)
    assert "no session" in at.ask("service", "register", "ttl/c", "--data", "x", "--session", session, code=3)
    assert at.ask("service", "list", "--prefix", "ttl/", "--lost", "--keys") == ""  # closed is not lost


def test_an_entry_lives_as_long_as_its_session_is_renewed(at: At) -> None:
    session = leased(at, "life", "2s")
    end = time.monotonic() + 3.0  # it would be over after 2.5 s
    while time.monotonic() < end:
        at.ask("session", "renew", session)
        time.sleep(0.1)
    assert at.keys("life") == ["life"]
    waiting = at.begin("service", "get", "life", "--gone", "--wait", "60s")
    assert waiting.wait(60) == 0  # nobody renews it any more
    waiting.communicate()
    lost = json.loads(at.ask("service", "list", "--prefix", "life", "--lost", "-f", "json"))
    assert lost["life"]["step"] == "packages"
    assert lost["life"]["lost_session"] == session
    assert abs(lost["life"]["lost_ts"] - time.time()) < 60


def test_a_session_without_its_entry_is_no_session(at: At) -> None:
    at.ask("service", "register", "taken", "--data", "x")
    before = at.broker.call("/services/List/", prefix="").json
    assert "already exists" in at.ask("service", "register", "taken", "--data", "y", "--ttl", "30s", code=4)
    assert at.broker.call("/services/List/", prefix="").json == before
    for wrong in ("1s", "2d", "soon"):
        at.ask("service", "register", "new", "--data", "y", "--ttl", wrong, code=2)


def test_waiting_until_an_entry_is_gone(at: At) -> None:
    at.ask("service", "get", "never-there", "--gone")
    at.ask("service", "register", "going", "--data", "x")
    assert "still there" in at.ask("service", "get", "going", "--gone", "--wait", "200ms", code=124)
    waiting = at.begin("service", "get", "going", "--gone", "--wait", "60s")
    at.ask("service", "replace", "going", "--data", "y")
    assert waiting.poll() is None
    at.ask("service", "delete", "going")
    assert (waiting.communicate(timeout=60), waiting.returncode) == (("", ""), 0)


def test_what_is_exported_is_imported_and_exported_the_same(at: At) -> None:
    entries = {"ex/1": {"a": [1, {"b": "ü"}]}, "ex/2": {"_str": "text\nof two lines"}, "ex/3": {}}
    for name, data in entries.items():
        at.ask("service", "register", name, "--data", json.dumps(data))
    first = at.ask("service", "export", "--prefix", "ex/")
    assert [json.loads(line) for line in first.splitlines()] == [
        {"name": name, "data": data} for name, data in entries.items()
    ]
    at.ask("service", "update", "ex/1", "--data", '{"a": 0}')
    at.ask("service", "register", "ex/4", "--data", "new")
    plan = at.ask("service", "import", "--prefix", "ex/", "--prune", "--dry-run", stdin=first).splitlines()
    assert plan == ["replace ex/1", "delete ex/4"]
    assert at.keys("ex/") == ["ex/1", "ex/2", "ex/3", "ex/4"]  # nothing was done
    assert at.ask("service", "import", "--keep", stdin=first) == ""  # all of them are there
    at.ask("service", "import", "--prefix", "ex/", "--prune", stdin=first)
    assert at.ask("service", "export", "--prefix", "ex/") == first
    assert "begin with" in at.ask("service", "import", "--prefix", "no/", stdin=first, code=2)
    at.ask("service", "import", stdin=f"{first}{first}", code=2)  # a name twice
    assert at.ask("service", "delete", "--prefix", "ex/", "--dry-run").split()[1::2] == ["ex/1", "ex/2", "ex/3"]
    at.ask("service", "delete", "--prefix", "ex/")
    assert at.keys("ex/") == []


def test_a_batch_is_done_or_not_and_says_which(at: At, tmp_path: Path) -> None:
    file = tmp_path / "ops.json"
    operations = [
        {"method": "CheckEmpty", "prefix": "ba/"},
        {"method": "Register", "name": "ba/1", "data": {"x": 1}},
        {"method": "Register", "name": "ba/2", "data": "y"},
    ]
    file.write_text(json.dumps(operations))
    done = [json.loads(line) for line in at.ask("batch", "--file", str(file)).splitlines()]
    assert [each["status"] for each in done] == [200, 200, 200]
    assert done[1]["revision"] == done[2]["revision"]
    assert "Operation 0 (CheckEmpty" in at.ask("batch", "--file", str(file), code=4)
    at.ask("service", "delete", "ba/1")
    bulk = at.broker.bpclient("batch", "--file", "-", "--no-atomic", stdin=json.dumps(operations[1:]))
    assert bulk.returncode == 4
    assert [json.loads(line)["status"] for line in bulk.stdout.splitlines()] == [200, 409]


def test_a_barrier_names_who_failed_and_who_is_lost(at: At) -> None:
    barrier = ("service", "wait", "--prefix", "bar/", "--count", "5", "--where", "state=ready")
    for number in range(3):
        at.ask("service", "register", f"bar/{number}", "--data", '{"state": "ready"}')
    leased(at, "bar/dies", "2s")
    fail_lost = at.begin(*barrier, "--fail-lost", "--timeout", "60s")
    out, err = fail_lost.communicate(timeout=60)
    assert (out, fail_lost.returncode) == ("", 1)
    assert "3 of 5 ready" in err
    assert "lost: bar/dies (step: packages)" in err
    failing = at.begin(*barrier, "--fail-where", "state=failed", "--timeout", "60s")
    at.ask("service", "register", "bar/ill", "--data", '{"state": "failed", "error": "disk full"}')
    began = time.monotonic()
    out, err = failing.communicate(timeout=60)
    assert (out, failing.returncode) == ("", 1)
    assert time.monotonic() - began < 10  # at once, on a busy machine too
    assert "failed: bar/ill (disk full)" in err
    assert "3 of 5 ready" in at.ask(*barrier, "--timeout", "200ms", code=124)
    for name in ("ill", "new"):
        at.ask("service", "replace", f"bar/{name}", "--data", '{"state": "ready"}')
    assert at.ask(*barrier, "--fail-where", "state=failed").split() == ["bar/0", "bar/1", "bar/2", "bar/ill", "bar/new"]


def test_numbers_are_given_back_and_rest(at: At) -> None:
    def number(owner: str, *more: str, code: int = 0) -> str:
        return at.ask("number", "pool", "--for", owner, "--to", "2", *more, code=code).strip()

    assert [number("a"), number("b"), number("a")] == ["1", "2", "1"]
    assert "pool" in number("c", code=4)
    number("a", "--release")
    number("a", "--release")  # it has none: fine
    assert number("c", "--number", "1") == "1"
    number("b", "--release", "--quarantine", "1h")
    number("d", code=4)  # its number rests
    assert json.loads(at.ask("service", "get", "pool", "--raw"))["data"]["c"] == 1
    assert [at.ask("number", "--counter", "count").strip() for _ in range(2)] == ["1", "2"]
    assert [at.ask("number", "--counter", "count", "--for", "x", "--by", "5").strip() for _ in range(2)] == ["7", "7"]


def test_an_entry_is_taken_once(at: At) -> None:
    at.ask("service", "register", "secret", "--data", "canary")
    take = ("service", "take", "secret", "--for")
    assert at.ask(*take, "me", "--no-ack") == at.ask(*take, "me", "--no-ack") == "canary\n"
    at.ask(*take, "other", code=4)
    at.ask("service", "get", "secret", code=3)
    assert at.ask(*take, "me") == "canary\n"
    at.ask(*take, "me", code=3)


def test_a_file_is_rendered_checked_and_left_alone(at: At, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    template, out, ran = tmp_path / "t.j2", tmp_path / "out", tmp_path / "ran"
    template.write_text(
        '{% for name, node in entries("web/").items() %}{{ name }} {{ node.ip | shell }}\n{% endfor %}'
        'db {{ field("rdb", "net.ip") }}\n'
    )
    render = ("render", "--template", str(template), "--out", str(out), "--mode", "0640")
    note = ("--", "sh", "-c", f"echo ran >> {ran}")
    at.ask("service", "register", "web/1", "--data", '{"ip": "10.0.0.1 x"}')
    assert "rdb" in at.ask(*render, code=3)
    assert not out.exists()
    waiting = at.begin(*render, "--wait", "60s", *note)
    at.ask("service", "register", "rdb", "--data", '{"net": {"ip": "10.0.0.9"}}')
    assert waiting.wait(60) == 0, waiting.communicate()
    waiting.communicate()
    assert out.read_text() == "web/1 '10.0.0.1 x'\ndb 10.0.0.9\n"
    assert out.stat().st_mode & 0o777 == 0o640
    before = out.stat()
    at.ask(*render, *note)  # the same: neither written nor run
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert ran.read_text() == "ran\n"
    at.ask("service", "replace", "web/1", "--data", '{"ip": "bad"}')
    at.ask(*render, "--check", "sh -c '! grep -q bad {}'", *note, code=1)
    assert out.read_text().startswith("web/1 '10.0.0.1 x'")  # the old one stays
    for bad, says in ("{{ ''.__class__.__mro__ }}", "unsafe"), ("{{ 'x' * 10**10 }}", "MiB of memory"):
        template.write_text(bad)
        assert says in at.ask(*render, code=2)
    assert out.read_text().startswith("web/1 '10.0.0.1 x'")


@pytest.mark.parametrize(("number", "end", "code"), [("SIGTERM", "exit 1", 143), ("SIGINT", "exit 0", 130)])
def test_a_watch_whose_command_is_at_work_ends_by_a_signal(
    at: At, tmp_path: Path, number: str, end: str, code: int
) -> None:
    name, note, cursor = f"ends/{number}", tmp_path / "note", tmp_path / "cursor"
    at.ask("service", "register", name, "--data", "x")
    script = f"trap '{end}' TERM INT; echo r >> {note}; while :; do sleep 0.05; done"
    watching = at.begin("watch", "--name", name, "--initial", "--cursor-file", str(cursor), "--", "sh", "-c", script)
    await_true(lambda: note.exists() and note.read_text())
    watching.send_signal(signal.Signals[number])
    assert watching.wait(30) == code
    assert note.read_text() == "r\n"
    watching.communicate()


def test_a_file_that_is_watched_ends_by_a_signal_to_its_command(at: At, tmp_path: Path) -> None:
    note, template = tmp_path / "note", tmp_path / "template"
    template.write_text("x")
    words = ("render", "--template", str(template), "--out", str(tmp_path / "out"), "--watch")
    rendering = at.begin(*words, "--", "sh", "-c", f"echo r >> {note}; sleep 100")
    await_true(lambda: note.exists() and note.read_text())
    rendering.send_signal(signal.SIGTERM)
    assert rendering.wait(30) == 143
    rendering.communicate()


def test_what_cannot_be_run_is_not_left_running(at: At) -> None:
    for attempt in (1, 2):
        assert "cannot be run" in at.ask("once", "--name", "no-such", "--attempts", "2", "--", "./no-such", code=127)
        state = json.loads(at.ask("service", "get", "no-such"))
        assert (state["state"], state["exit"], state["attempt"]) == ("failed", 127, attempt)
    assert at.ask("once", "--name", "no-such", "--attempts", "2", "--", "./no-such", code=127) == ""


def test_a_batch_of_an_id_is_carried_out_once(at: At, tmp_path: Path) -> None:
    file = tmp_path / "batch.json"
    file.write_text(json.dumps({"id": "first", "operations": [{"method": "Next", "name": "batch/count"}]}))
    for _ in range(2):
        at.ask("batch", "--file", str(file))
    assert at.ask("service", "get", "batch/count", "--field", "value").strip() == "1"


def test_a_command_without_a_result_prints_none_in_any_form(at: At, tmp_path: Path) -> None:
    template = tmp_path / "t"
    template.write_text("x")
    at.ask("service", "register", "form/a", "--data", "x")
    for form in ("json", "csv", "shell"):
        assert at.ask("-f", form, "render", "--template", str(template), "--out", str(tmp_path / "out")) == ""
        event = at.ask("-f", form, "watch", "--name", "form/a", "--initial", "--count", "1")
        assert json.loads(event)["name"] == "form/a"
