"""``install-service`` and ``uninstall-service`` as commands, on a tree: whose data, whose user, what is said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bpbroker.storage.lock_file import FileLock
from tests.support.systems import is_root

pytestmark = [pytest.mark.program, pytest.mark.skipif(not is_root(), reason="chroot and chown need root")]

OTHER = "/srv/other/b.json"


@pytest.fixture
def tree(make_tree: Callable[..., Path]) -> Path:
    return make_tree("update-rc.d", "systemctl", folders=("etc/init.d", "lib/systemd/systemd"))


def run(tree: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BPBROKER")}
    return subprocess.run(
        [sys.executable, "-m", "bpbroker", *words, "--root", str(tree)],
        env={**kept, **environ}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def data(tree: Path, config: str) -> Path:
    """Put data where a broker on this configuration would have it."""
    path = tree / config.removeprefix("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return path


def test_a_purge_takes_the_data_of_the_service_that_it_names(tree: Path) -> None:
    assert run(tree, "install-service").returncode == 0
    assert run(tree, "install-service", "--name", "other", "-c", OTHER, "--user", "broker").returncode == 0
    first, second = data(tree, "/usr/local/bpbroker/etc/bpbroker.json"), data(tree, OTHER)
    refused = run(tree, "uninstall-service", "--name", "other", "--purge", "-c", str(first))
    assert refused.returncode == 2
    assert OTHER in refused.stderr
    assert (tree / "etc/init.d/other").exists()
    assert run(tree, "uninstall-service", "--name", "other", "--purge").returncode == 0
    assert first.exists()
    assert not second.parent.exists()
    gone = run(tree, "uninstall-service", "--name", "other", "--purge")
    assert gone.returncode == 2
    assert "--config" in gone.stderr
    assert first.exists()


def test_a_purge_says_what_it_kept(tree: Path) -> None:
    assert run(tree, "install-service").returncode == 0
    config = data(tree, "/usr/local/bpbroker/etc/bpbroker.json")
    config.write_text(
        '{"_registry": {"store": "etcd", "endpoints": ["http://127.0.0.1:2379"]},'
        ' "api": {"ssl_cert": "/etc/ssl/site.crt", "ssl_key": "/etc/ssl/site.key"}}'
    )
    home = config.parents[1]
    second, module = home / "etc/second.json", home / "lib/ossec.py"
    for path in (second, module, home / "lib/__pycache__/ossec.pyc"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    expected = {
        "the entries in etcd, which other brokers may use",
        "/etc/ssl/site.crt",
        "/etc/ssl/site.key",
        f"{second.parent} with second.json",
        f"{module.parent} with ossec.py",
    }
    for words, verb in ((("--dry-run",), "would keep "), ((), "kept ")):
        done = run(tree, "uninstall-service", "--purge", *words)
        assert done.returncode == 0
        assert {line.removeprefix(verb) for line in done.stderr.splitlines() if line.startswith(verb)} == expected
    assert (config.exists(), second.exists(), module.exists()) == (False, True, True)
    second.unlink()
    module.unlink()
    again = run(tree, "uninstall-service", "--purge")
    assert "kept" not in again.stderr
    assert not home.exists()


def test_data_that_is_not_there_is_not_kept(tree: Path) -> None:
    nothing = run(tree, "uninstall-service")
    assert (nothing.returncode, nothing.stderr) == (0, "No service named bpbroker is installed here.\n")
    assert run(tree, "install-service", "-c", OTHER).returncode == 0
    data(tree, OTHER)
    removed = run(tree, "uninstall-service")
    assert f"Data is kept: {OTHER}, " in removed.stderr


def test_a_service_stays_what_it_was_when_it_is_installed_again(tree: Path) -> None:
    assert run(tree, "install-service", "--user", "broker", "-c", OTHER).returncode == 0
    unit, script = tree / "etc/systemd/system/bpbroker.service", tree / "etc/init.d/bpbroker"
    before = unit.read_text(), script.read_text()
    assert "\nUser=broker\n" in before[0]
    assert run(tree, "install-service").returncode == 0
    assert (unit.read_text(), script.read_text()) == before
    assert run(tree, "install-service", "--user", "root").returncode == 0
    assert "\nUser=root\n" in unit.read_text()
    assert OTHER in unit.read_text()


def test_the_home_that_was_meant_is_the_services_home(tree: Path) -> None:
    assert run(tree, "install-service", BPBROKER_HOME="/opt/my home").returncode == 0
    assert '\nEnvironment="BPBROKER_HOME=/opt/my home"\n' in (tree / "etc/systemd/system/bpbroker.service").read_text()
    assert "\nBPBROKER_HOME='/opt/my home'\n" in (tree / "etc/init.d/bpbroker").read_text()


def test_another_user_beside_a_running_broker_is_refused_and_nothing_changes(tree: Path) -> None:
    assert run(tree, "install-service").returncode == 0
    config = data(tree, "/usr/local/bpbroker/etc/bpbroker.json")
    script = tree / "etc/init.d/bpbroker"
    before = script.read_text()
    with FileLock(config) as lock:
        lock.describe(pid=4711)
        for words in ((), ("--dry-run",)):
            refused = run(tree, "install-service", "--user", "broker", *words)
            assert refused.returncode == 1
            assert "process 4711" in refused.stderr
            assert "bpbroker --config /usr/local/bpbroker/etc/bpbroker.json stop" in refused.stderr
        assert {path.stat().st_uid for path in (config.parent, *config.parent.iterdir())} == {0}
        assert script.read_text() == before
        assert run(tree, "install-service").returncode == 0  # its own user's files stay where they are
    assert run(tree, "install-service", "--user", "broker").returncode == 0
    assert {path.stat().st_uid for path in (config.parent, *config.parent.iterdir())} == {4321}
    with FileLock(config):
        assert run(tree, "install-service").returncode == 0  # it stays with its user
        assert run(tree, "install-service", "--user", "root").returncode == 1


def test_a_folder_that_its_user_made_a_link_is_not_given_away(tree: Path) -> None:
    install = ("install-service", "--user", "broker", "-c", OTHER)
    assert run(tree, *install).returncode == 0
    backups = tree / "srv/other/backups"
    outside = tree / "precious"
    outside.mkdir(0o755)
    before = outside.stat()
    backups.rmdir()
    backups.symlink_to(outside)
    refused = run(tree, *install)
    assert refused.returncode == 78
    assert "is a link" in refused.stderr
    after = outside.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
