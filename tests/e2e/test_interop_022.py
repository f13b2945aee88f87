"""The unmodified client of bpbroker 0.22, under Python 2.7, against our broker: the table of its behaviour."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.running import RunningBroker

EXAMPLES = Path(__file__).parents[2] / "examples"


def find_python2() -> str | None:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [str(path) for path in sorted(pyenv.glob("2.7*/bin/python2.7"))]
    for candidate in (*found, shutil.which("python2.7"), shutil.which("python2")):
        if candidate is not None:
            probe = subprocess.run([candidate, "-c", "import pip, ssl"], capture_output=True, check=False)
            if probe.returncode == 0:
                return candidate
    return None


Client = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def old_client(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return a Python 2.7 and a folder with bpbroker 0.22 from PyPI."""
    python = find_python2()
    if python is None:
        pytest.skip("there is no Python 2.7 with pip on this machine")
    target = tmp_path_factory.mktemp("bpbroker-0.22")
    installed = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--target", str(target), "bpbroker==0.22"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if installed.returncode != 0:
        pytest.skip(f"bpbroker 0.22 cannot be installed here: {installed.stderr[-300:]}")
    return python, target


def command(old_client: tuple[str, Path], *arguments: str) -> list[str]:
    python, target = old_client
    return [python, str(target / "bin" / "bpclient"), *arguments]


@pytest.fixture
def client(old_client: tuple[str, Path], broker: RunningBroker) -> Client:
    """Return a function that runs the old client against a running broker."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(old_client, "-b", f"127.0.0.1:{broker.port}", *arguments),
            env={**os.environ, "PYTHONPATH": str(old_client[1])},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def test_every_row_of_its_table(client: Client) -> None:
    def succeeds(*arguments: str) -> str:
        result = client(*arguments)
        assert result.returncode == 0, result
        return result.stdout

    def fails(says: str, *arguments: str) -> None:
        result = client(*arguments)
        assert result.returncode != 0
        assert result.stdout == ""
        assert f"Fatal error: {says}" in result.stderr

    assert succeeds("ping", "--data", "foo") == "foo\n"
    assert json.loads(succeeds("ping", "--data", '{"a": 1}')) == {"a": 1}
    assert succeeds("service", "register", "--name", "foo", "--data", "bar") == "bar\n"
    fails("Entry 'foo' already exists", "service", "register", "--name", "foo", "--data", "bar")
    assert succeeds("service", "get", "--name", "foo") == "bar\n"
    entry = json.loads(succeeds("service", "register", "--name", "foo3", "--data", '{"key": "x"}'))
    assert entry["key"] == "x"
    assert set(entry) == {"key", "last_write_ip", "last_write_ts"}
    assert json.loads(succeeds("service", "get", "--name", "foo3")) == entry
    updated = json.loads(succeeds("service", "update", "--name", "foo3", "--data", '{"new": "y"}'))
    assert (updated["key"], updated["new"]) == ("x", "y")
    assert succeeds("service", "replace", "--name", "foo3", "--data", "z") == "z\n"
    fails("Entry 'nope' not found", "service", "get", "--name", "nope")
    assert succeeds("service", "delete", "--name", "foo") == ""
    assert succeeds("service", "delete", "--name", "foo") == ""
    fails("", "execute", "--method", "nope.Method", "--data", "h")


def test_execute_with_an_access_key(old_client: tuple[str, Path], make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker({"example_extension_module": {"_access_key": "secret"}})
    shutil.copy(EXAMPLES / "example_extension_module.py", broker.lib)
    broker.start()
    result = subprocess.run(
        command(
            old_client, "-b", f"127.0.0.1:{broker.port}", "-a", "secret",
            "execute", "--method", "example_extension_module.Test", "--data", "h",
        ),
        env={**os.environ, "PYTHONPATH": str(old_client[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result
    assert json.loads(result.stdout) == {"data": "h", "from": "127.0.0.1"}
    assert "secret" not in broker.text


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, str]]:
    """Yield the names of two network namespaces joined by a cable: 10.99.7.1 and 10.99.7.2."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    tag = f"bp{os.getpid() % 10000}"
    one, two = f"{tag}a", f"{tag}b"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)

    try:
        ip("netns", "add", one)
        ip("netns", "add", two)
        ip("link", "add", f"{tag}v0", "netns", one, "type", "veth", "peer", "name", f"{tag}v1", "netns", two)
        for name, link, address in ((one, f"{tag}v0", "10.99.7.1/24"), (two, f"{tag}v1", "10.99.7.2/24")):
            ip("-n", name, "address", "add", address, "broadcast", "+", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "route", "add", "default", "dev", link)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode()}")
    else:
        yield one, two
    finally:
        for name in (one, two):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_it_discovers_our_broker_from_another_machine(
    old_client: tuple[str, Path], two_hosts: tuple[str, str], make_broker: Callable[..., RunningBroker]
) -> None:
    broker = make_broker()
    broker.port = 20443
    broker.prefix = ("ip", "netns", "exec", two_hosts[0])
    broker.start()
    registered = run(broker, two_hosts[0], "-b", "127.0.0.1", "service", "register", "--name", "foo", "--data", "x")
    assert registered.returncode == 0, registered
    ours = run(broker, two_hosts[1], "discover", "--name", "foo")
    theirs = subprocess.run(
        ["ip", "netns", "exec", two_hosts[1], *command(old_client, "discover", "--name", "foo")],
        env={**os.environ, "PYTHONPATH": str(old_client[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    for found in (ours, theirs):
        assert (found.stdout, found.returncode) == ("10.99.7.1\n", 0), found


def run(broker: RunningBroker, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run our own client on one of the hosts."""
    return subprocess.run(
        ["ip", "netns", "exec", host, *broker.command("bpbroker.client", *arguments)],
        env=broker.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
