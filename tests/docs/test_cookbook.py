"""The scripts of docs/cookbook.md, as several nodes run them at the same time."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509

from tests.support.pages import ROOT, blocks, script, with_scripts
from tests.support.running import RunningBroker

PAGE: Final = ROOT / "docs" / "cookbook.md"
KEY: Final = "a key of the test 4711"

Node = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Yield what a node has of a broker that all tests share: each has a cluster of its own."""
    folder = tmp_path_factory.mktemp("cookbook")
    ossec = folder / "ossec"
    for name in ("etc", "bin"):
        (ossec / name).mkdir(parents=True)
    control = ossec / "bin" / "ossec-control"
    control.write_text("#!/bin/sh\nexit 0\n")
    control.chmod(0o755)
    sections = {"ossec": {"ossec_dir": str(ossec)}, "signing": {"_access_key": KEY}}
    broker = RunningBroker(folder / "home", {**sections, "services": {"_access_key": KEY}})
    for name in ("ossec.py", "signing.py"):
        shutil.copy(ROOT / "examples" / name, broker.lib)
    try:
        broker.start()
        token = broker.token()
        found = with_scripts(Path(sys.executable).parent, {**broker.environ, "BPBROKER_TOKEN": token, "TTL": "2s"})
        del found["PYTHONWARNINGS"]
        found.pop("HOSTNAME", None)
        yield found
    finally:
        broker.kill()


@pytest.fixture
def node(environ: dict[str, str], tmp_path: Path) -> Iterator[Node]:
    """Yield what starts a script of the page as a node does: with a token, in a plain sh."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, *words: str, stdin: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["sh", "-c", script(PAGE, name), name, *words],
            cwd=tmp_path,
            env=environ,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        if process.stdin is not None:
            process.stdin.write(stdin)
            process.stdin.close()
            process.stdin = None
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def bpclient(environ: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Return what runs ``bpclient`` beside the nodes, and gives what it prints."""

    def run(*words: str) -> str:
        command = ["bpclient", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    return run


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out


def test_replicas_find_the_master_in_any_order(node: Node) -> None:
    replicas = [node("find-the-master", "find", "replica", f"10.0.0.{number}") for number in range(2, 6)]
    master = node("find-the-master", "find", "master", "10.0.0.9")
    assert {ended(each) for each in (master, *replicas)} == {"10.0.0.9\n"}
    assert ended(node("find-the-master", "find", "master", "10.0.0.9")) == "10.0.0.9\n"  # run again
    ended(node("find-the-master", "find", "master", "10.0.0.8"), 4)


def failed(process: subprocess.Popen[str], code: int) -> str:
    """Return what a script that ended with this code said."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return err


def await_true(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_five_nodes_meet(node: Node) -> None:
    early = [node("barrier-of-five", "five", f"node-{number}") for number in range(4)]
    other = node("barrier-of-five", "another", "node-9")
    with pytest.raises(subprocess.TimeoutExpired):
        early[0].wait(1)
    ended(node("barrier-of-five", "five", "node-4"))
    for each in early:
        ended(each)
    assert other.poll() is None  # of another cluster


def test_one_of_six_initialises(node: Node, tmp_path: Path) -> None:
    made = tmp_path / "made"
    command = ("sh", "-c", f"echo once >> {made}; echo id-$$")
    printed = {ended(each) for each in [node("first-initialises", "init", *command) for _ in range(6)]}
    assert len(printed) == 1
    assert printed.pop().startswith("id-")
    assert made.read_text() == "once\n"


def test_an_agent_gets_its_key(node: Node, tmp_path: Path) -> None:
    ended(node("agent-key", "agent.key", "node-7"))
    assert (tmp_path / "agent.key").read_text().startswith("001 node-7 ")
    assert (tmp_path / "agent.key").stat().st_mode & 0o777 == 0o600
    ended(node("agent-key", "second.key", "node 7"), 2)
    assert not (tmp_path / "second.key").exists()


def test_nodes_roll_in_order(node: Node, tmp_path: Path) -> None:
    rolled = tmp_path / "rolled"
    nodes = [node("roll", "roll", "r2", str(n), "sh", "-c", f"echo {n} >> {rolled}") for n in (5, 4, 3, 2, 1)]
    for each in nodes:
        ended(each)
    assert rolled.read_text().split() == ["1", "2", "3", "4", "5"]


def test_five_nodes_install_together(node: Node) -> None:
    nodes = [node("install-together", "well", f"n{number}", "true") for number in range(5)]
    for each in nodes:
        ended(each)


def test_one_that_fails_and_one_that_dies_end_it_for_all(node: Node, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    nodes = [node("install-together", "ill", f"n{number}", "true") for number in range(3)]
    dying = node("install-together", "ill", "n3", "sh", "-c", f"touch {begun}; sleep 1000")
    await_true(begun.exists)
    os.killpg(dying.pid, signal.SIGKILL)
    for each in nodes:
        assert "lost: ill/node/n3" in failed(each, 1)
    assert "failed: ill/node/n4" in failed(node("install-together", "ill", "n4", "false"), 1)


def test_one_caller_runs_a_command_when_all_are_ready(node: Node, tmp_path: Path, bpclient: Callable[..., str]) -> None:
    made = tmp_path / "made"
    callers = [node("run-when-ready", "go", "5", "sh", "-c", f"echo once >> {made}") for _ in range(5)]
    for number in range(5):
        assert not made.exists()
        bpclient("service", "register", "--name", f"go/node/{number}", "--data", '{"state": "ready"}')
    for each in callers:
        ended(each)
    assert made.read_text() == "once\n"


def test_a_master_that_dies_has_a_successor(node: Node, bpclient: Callable[..., str]) -> None:
    holder = ("lock", "holder", "--name", "vote/master", "--wait", "60s")
    nodes = {f"10.0.0.{n}": node("elect-a-master", "vote", f"10.0.0.{n}", "sleep", "1000") for n in range(5)}
    seen = []
    for _ in range(2):
        seen.append(bpclient(*holder).strip())
        os.killpg(nodes[seen[-1]].pid, signal.SIGKILL)
        await_true(lambda: bpclient(*holder).strip() != seen[-1])
    assert len({*seen, bpclient(*holder).strip()}) == 3


def test_nodes_are_numbered_and_a_dead_one_is_replaced(node: Node, bpclient: Callable[..., str]) -> None:
    names = [ended(each) for each in [node("numbered-node", "db", f"m{number}") for number in range(6)]]
    assert sorted(names) == [f"db-{number}\n" for number in range(1, 7)]
    assert ended(node("numbered-node", "db", "m3")) == names[3]
    assert "not known to be dead" in failed(node("replace-dead-node", "db", "m3", "m9"), 1)
    # It dies: nothing closes its session.
    bpclient("service", "register", "--name", "db/node/m3", "--data", "up", "--ttl", "2s")
    await_true(lambda: bpclient("service", "list", "--prefix", "db/node/m3", "--lost", "--keys"))
    # Its name begins with that of another node, which lives.
    assert "not known to be dead" in failed(node("replace-dead-node", "db", "m", "m9"), 1)
    number = ended(node("replace-dead-node", "db", "m3", "m9"))
    assert f"db-{number}" == names[3]
    assert ended(node("numbered-node", "db", "m9")) == names[3]
    failed(node("replace-dead-node", "db", "m3", "m10"), 3)  # it has no number any more


def test_a_secret_is_for_one_node(node: Node, tmp_path: Path) -> None:
    takers = [node("take-secret", "sec", f"of-{number}", f"n{number}") for number in range(5)]
    for number in range(5):
        ended(node("leave-secret", "sec", f"n{number}", stdin=f"secret {number}"))
    for number, taker in enumerate(takers):
        ended(taker)
        found = tmp_path / f"of-{number}"
        assert found.read_text() == f"secret {number}\n"
        assert found.stat().st_mode & 0o777 == 0o600


def test_a_hosts_file_is_made_and_follows(node: Node, tmp_path: Path, bpclient: Callable[..., str]) -> None:
    hosts = tmp_path / "hosts"
    for number in range(1, 6):
        bpclient("service", "register", "--name", f"net/node/n{number}", "--data", f'{{"ip": "10.0.0.{number}"}}')
    ended(node("hosts-file", "net", str(hosts)))
    lines = ["127.0.0.1 localhost", *(f"10.0.0.{number} n{number}" for number in range(1, 6))]
    assert hosts.read_text().splitlines() == lines
    node("hosts-file", "net", str(hosts), "--watch")
    bpclient("service", "delete", "--name", "net/node/n3")
    await_true(lambda: hosts.read_text().splitlines() == lines[:3] + lines[4:])


def test_steps_are_shown_as_they_are_done(node: Node) -> None:
    for number in range(5):
        ended(node("tell-step", "inst", f"n{number}", "packages"))
    shown = node("show-progress", "inst", "--count", "6")
    assert shown.stdout is not None
    first = [shown.stdout.readline() for _ in range(5)]  # it looks on before the next step is done
    ended(node("tell-step", "inst", "n2", "done"))
    lines = "".join([*first, ended(shown)]).splitlines()
    assert [line.split()[:2] for line in lines] == [*([f"n{number}", "put"] for number in range(5)), ["n2", "put"]]
    assert '"step": "packages"' in lines[0]
    assert '"step": "done"' in lines[5]


def test_a_failed_run_is_kept_and_removed(node: Node, tmp_path: Path, bpclient: Callable[..., str]) -> None:
    for number in range(5):
        state = "installing" if number == 4 else "failed"
        bpclient("service", "register", "--name", f"run/node/n{number}", "--data", f'{{"state": "{state}"}}')
    assert "still at work: run/node/n4" in failed(node("clean-up", "run", "kept"), 1)
    bpclient("service", "update", "--name", "run/node/n4", "--data", '{"state": "failed"}')
    ended(node("clean-up", "run", "kept"))
    assert len((tmp_path / "kept").read_text().splitlines()) == 5
    assert bpclient("service", "list", "--prefix", "run/", "--keys") == ""


def test_two_restart_at_a_time(node: Node, tmp_path: Path) -> None:
    work = f"mkdir {tmp_path}/$$; ls -d {tmp_path}/[0-9]* | wc -l; sleep 0.3; rmdir {tmp_path}/$$"
    nodes = [node("two-at-a-time", "rest", "sh", "-c", work) for _ in range(6)]
    counts = {int(ended(each)) for each in nodes}
    assert counts <= {1, 2}


def test_certificates_are_signed_for_whom_asks(node: Node, tmp_path: Path, bpclient: Callable[..., str]) -> None:
    folders = [tmp_path / f"pki{number}" for number in range(5)]
    for folder in folders:
        folder.mkdir()
    for each in [node("signed-certificate", folder.name, folder.name) for folder in folders]:
        ended(each)
    assert len({(folder / "ca.crt").read_text() for folder in folders}) == 1
    found = x509.load_pem_x509_certificate((folders[3] / "node.crt").read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["pki3"]
    caller = bpclient("service", "get", "--name", "signed/pki3", "--field", "for").strip()
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == [caller]
    assert (folders[3] / "node.key").stat().st_mode & 0o777 == 0o600
    refused = node("signed-certificate", folders[0].name, "not a name")
    assert "one common name" in failed(refused, 2)


def test_every_script_has_its_test_and_no_complaint_of_shellcheck(tmp_path: Path) -> None:
    names = {block.note for block in blocks(PAGE) if block.language == "sh"}
    assert names == set(re.findall(r'\bnode\("([a-z-]+)"', Path(__file__).read_text()))
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    for name in names:
        (tmp_path / name).write_text(script(PAGE, name))
    done = subprocess.run(
        ["shellcheck", *sorted(names)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout
