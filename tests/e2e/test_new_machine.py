"""A backup is all that a new machine needs; a home that moves goes on; a failing disk is no wrong configuration."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bpbroker.storage import backups, config_file
from tests.support.running import RunningBroker

MODULE = "def Hello(rh):\n    rh.data = 'hello from ' + rh.qs.get('data', '')\n"


def backed_up(broker: RunningBroker) -> Path:
    """Return a backup of the broker, which is stopped then."""
    made = broker.bpbroker("backup")
    assert made.returncode == 0, made.stderr
    assert broker.stop() == 0, broker.text
    return Path(made.stdout.strip())


def with_extension(broker: RunningBroker, tmp_path: Path) -> None:
    script = tmp_path / "greeting.py"
    script.write_text(MODULE)
    installed = broker.bpbroker("install-extension", "--enable", "--script", str(script))
    assert installed.returncode == 0, installed.stderr


def test_clients_go_on_with_a_broker_on_a_new_machine(
    make_broker: Callable[..., RunningBroker], tmp_path: Path
) -> None:
    old = make_broker().start()
    with_extension(old, tmp_path)
    assert old.bpclient("service", "register", "--name", "foo", "--data", "bar").stdout == "bar\n"
    token = old.token()
    backup = backed_up(old)
    assert backup.stat().st_mode & 0o777 == 0o600

    new = make_broker()
    new.port = old.port
    copy = tmp_path / "copy.json"
    shutil.copy(backup, copy)
    # As people do: they start it first, see that it is empty, and remember the backup then.
    assert new.start().stop() == 0
    shutil.rmtree(old.home / "etc")
    would = new.bpbroker("restore", "--dry-run", str(copy))
    done = new.bpbroker("restore", str(copy))
    assert done.returncode == 0, done.stderr
    assert "certificate changed: it is now SHA-256 " in done.stdout
    assert "extensions changed: 1 (greeting)" in done.stdout
    assert would.stdout == done.stdout
    new.start()

    old.environ["BPBROKER_TRUST"] = "strict"  # no new certificate is taken: only the one that was pinned
    assert old.bpclient("service", "get", "--name", "foo").stdout == "bar\n"
    assert old.bpclient("execute", "--method", "greeting.Hello", "--data", "me").stdout == "hello from me"
    by_token = old.bpclient("--token", token, "service", "get", "--name", "foo")
    assert by_token.stdout == "bar\n", by_token.stderr
    assert new.token().partition(":")[0] == "bpb2"
    key = new.config.with_suffix(".key")
    assert key.stat().st_mode & 0o777 == 0o600
    # The pair that the restore took away is in the backup that it made.
    kept = next(line for line in done.stderr.splitlines() if line.startswith("What was there is kept as "))
    before = config_file.read_backup(Path(kept.removeprefix("What was there is kept as ")))[1]
    assert before is not None
    assert before.key not in (b"", key.read_bytes())


def test_data_only_and_backups_of_earlier_versions_leave_the_identity(
    make_broker: Callable[..., RunningBroker],
) -> None:
    broker = make_broker({"_config": {"backup_retain_n": 2}}).start()
    broker.register("foo")
    backup = backed_up(broker)
    (settings, entries, _), identity = config_file.read_backup(backup)
    assert identity is not None
    plain = Path(backups.make(broker.config, config_file.chunks(settings, entries)).path)
    own = broker.config.with_suffix(".crt"), broker.config.with_suffix(".key")
    renewed = broker.bpbroker("certificate", "--renew")
    assert renewed.returncode == 0, renewed.stderr
    now = [path.read_bytes() for path in own]

    said = broker.bpbroker("restore", plain.name)
    assert said.returncode == 0, said.stderr
    assert "This backup has no certificate and no extensions" in said.stderr
    only = broker.bpbroker("restore", "--data-only", backup.name)
    assert only.returncode == 0, only.stderr
    assert [path.read_bytes() for path in own] == now
    assert broker.bpbroker("restore", backup.name).returncode == 0
    assert [path.read_bytes() for path in own] == [identity.certificate, identity.key]

    # Both kinds count for backup_retain_n, and the list tells them apart.
    assert broker.bpbroker("backup").returncode == 0
    assert len(backups.found(broker.config)) == 2
    old = Path(backups.make(broker.config, config_file.chunks(settings, entries)).path)
    listed = json.loads(broker.bpbroker("backups", "--format", "json").stdout)
    assert [(each["identity"], each["problem"]) for each in listed] == [(False, ""), (True, ""), (True, "")]
    broker.start()
    assert broker.bpbroker("backup").returncode == 0
    assert len(backups.found(broker.config)) == 2
    assert old.exists()
    assert broker.stop() == 0


def test_the_help_says_what_comes_back(make_broker: Callable[..., RunningBroker]) -> None:
    text = " ".join(make_broker().bpbroker("restore", "--help").stdout.split())
    for word in ("settings, entries", "certificate", "its key", "extensions", "--data-only"):
        assert word in text


@pytest.fixture
def strace() -> tuple[str, ...]:
    if (
        shutil.which("strace") is None
        or subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False).returncode
    ):
        pytest.skip("needs strace, and the right to trace")
    return ("strace", "-f", "-qq", "-o", "/dev/null")


@pytest.mark.parametrize(
    ("ending", "error", "code", "said"),
    [
        ("json", "EIO", 1, "Input/output error"),
        ("json.journal", "EIO", 1, "Input/output error"),
        ("key", "EIO", 1, "Input/output error"),
        ("json", "EACCES", 78, "Permission denied"),
    ],
)
def test_a_disk_that_fails_is_no_wrong_configuration(
    make_broker: Callable[..., RunningBroker], strace: tuple[str, ...], ending: str, error: str, code: int, said: str
) -> None:
    """78 would tell the service manager not to try again."""
    broker = make_broker()
    assert broker.bpbroker("prepare").returncode == 0
    broker.start().kill()
    path = broker.config.with_name(f"bpbroker.{ending}")
    inject = ("-P", str(path), "-e", "trace=openat", "-e", f"inject=openat:error={error}")
    words = [*strace, *inject, *broker.command("bpbroker", "start", "--listen-port", "0")]
    done = subprocess.run(words, env=broker.environ, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr
    assert str(path) in done.stderr


@pytest.mark.parametrize("copied", [False, True])
def test_a_home_that_moves_goes_on(make_broker: Callable[..., RunningBroker], tmp_path: Path, *, copied: bool) -> None:
    broker = make_broker().start()
    with_extension(broker, tmp_path)
    broker.register("foo")
    assert broker.stop() == 0
    certificate = broker.config.with_suffix(".crt").read_bytes()
    target = tmp_path / "elsewhere"
    shutil.copytree(broker.home, target, ignore=shutil.ignore_patterns("notify"))
    if not copied:
        shutil.rmtree(broker.home)
    moved = RunningBroker(target)
    for command in ("validate", "certificate"):
        said = moved.bpbroker(command)
        assert said.returncode == 0, said.stderr
    moved.start()
    try:
        assert moved.config.with_suffix(".crt").read_bytes() == certificate
        assert moved.bpclient("execute", "--method", "greeting.Hello", "--data", "me").stdout == "hello from me"
        assert moved.bpbroker("reload").returncode == 0
        assert moved.stop() == 0
    finally:
        moved.kill()
    if not copied:
        named = json.loads(moved.config.read_text())["api"]
        assert named["ssl_cert"] == str(moved.config.with_suffix(".crt"))
        assert named["ssl_key"] == str(moved.config.with_suffix(".key"))
