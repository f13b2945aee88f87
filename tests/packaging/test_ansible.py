"""The role for Ansible: its syntax, and a broker that it brings up in a root of Debian itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.packaging.conftest import LONG, TOP, Packages, build
from tests.packaging.test_deb import CONFIG
from tests.support import debian_root
from tests.support.debian_root import Root
from tests.support.ports import free_port

PLAYBOOK = TOP / "deploy/ansible/site.yml"
# Ansible's own way, of ssh: here it leads into the root. Its last word is the command.
_SSH = """\
#!/bin/sh
for last; do :; done
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
    chroot {root} /bin/sh -c "$last"
"""
# What the role asks of the two firewalls, which cannot run in a root; it remembers what it was told.
_UFW = """\
#!/bin/sh
[ "$1" != status ] || { echo 'Status: active'; exit 0; }
if grep -qxF "$*" /root/ufw; then echo 'Skipping adding existing rule'; exit 0; fi
echo "$*" >>/root/ufw
"""
_FIREWALLD = """\
#!/bin/sh
[ "$1" != --list-ports ] || { sed -n 's/^--add-port \\([^ ]*\\)$/\\1/p' /root/firewalld | tr '\\n' ' '; exit 0; }
echo "$*" >>/root/firewalld
"""


def ansible(tmp_path: Path, *words: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run Ansible's playbook program, which is beside this Python."""
    program = Path(sys.executable).parent / "ansible-playbook"
    if not program.exists():
        pytest.skip("ansible-core is not installed: it is in the extra test")
    home = {"HOME": str(tmp_path), "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"), "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        [program, *words, PLAYBOOK],
        env={"PATH": f"{program.parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8", **home, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        stdin=subprocess.DEVNULL,
    )


def test_its_syntax(tmp_path: Path) -> None:
    done = ansible(tmp_path, "--syntax-check", "-i", "host,")
    assert done.returncode == 0, done.stdout + done.stderr
    # Included files are read when they run: all must be named, and be lists of named tasks.
    role = PLAYBOOK.parent / "roles/bpbroker"
    tasks = {file.name: yaml.safe_load(file.read_text()) for file in (role / "tasks").glob("*.yml")}
    whole = [task for listed in tasks.values() for task in listed]
    included = {task.get("ansible.builtin.include_tasks") for task in whole} - {None}
    assert included == tasks.keys() - {"main.yml"}
    assert [task for task in whole if "name" not in task] == []
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    texts = "".join(file.read_text() for file in (role / "tasks").glob("*.yml"))
    assert [name for name in defaults if name not in texts and name != "bpbroker_settings"] == []


class Host:
    """A root that Ansible takes for a host."""

    def __init__(self, root: Root, tmp_path: Path) -> None:
        self.root = root
        self.tmp_path = tmp_path
        self.port = free_port()
        self.ssh = tmp_path / "ssh"
        self.ssh.write_text(_SSH.format(root=root.folder))
        self.ssh.chmod(0o755)
        for name, text in (("ufw", _UFW), ("firewall-cmd", _FIREWALLD)):
            root.path(f"/usr/sbin/{name}").write_text(text)
            root.path(f"/usr/sbin/{name}").chmod(0o755)
        for name in ("ufw", "firewalld"):
            root.path(f"/root/{name}").touch()

    def play(self, *words: str, **variables: Any) -> tuple[int, str]:
        """Run the playbook; return how much it changed, -1 when it failed, and what it said."""
        settings = {"api": {"listen_port": self.port, "listen_ip": "127.0.0.1"}, "services": {"_access_key": "k" * 20}}
        file = self.tmp_path / "variables.json"
        reached = {
            "ansible_connection": "ssh",
            "ansible_ssh_executable": str(self.ssh),
            "ansible_ssh_transfer_method": "piped",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_become": False,  # already root
        }
        file.write_text(json.dumps({"bpbroker_settings": settings, **variables}))
        # Of the host alone, not of all: the role does something on this one, too.
        inventory = self.tmp_path / "inventory.json"
        inventory.write_text(json.dumps({"brokers": {"hosts": {"broker": reached}}}))
        done = ansible(self.tmp_path, "-i", inventory, "-e", f"@{file}", *words, ANSIBLE_PIPELINING="1")
        said = done.stdout + done.stderr
        if done.returncode != 0:
            return -1, said
        found = re.search(r"changed=(\d+)", said)
        assert found is not None, said
        return int(found[1]), said


@pytest.fixture(params=["deb", "bundle"])
def offered(request: pytest.FixtureRequest, tmp_path: Path, python: str) -> dict[str, str]:
    """Return the variable that says where the program comes from."""
    if request.param == "deb":
        packages: Packages = request.getfixturevalue("packages")
        return {"bpbroker_deb": str(packages.first)}
    if python != f"{sys.version_info[0]}.{sys.version_info[1]}":
        pytest.skip("a bundle is for the Python that makes it")
    build("build-bundle", tmp_path / "bundle.tar.gz")
    return {"bpbroker_bundle": str(tmp_path / "bundle.tar.gz")}


@pytest.fixture
def host(packed_host: Path, tmp_path: Path) -> Iterator[Host]:
    with debian_root.unpacked(packed_host) as root:
        yield Host(root, tmp_path)


@pytest.mark.skipif(not LONG, reason="takes its time: with BPBROKER_LONG=1")
@pytest.mark.skipif(shutil.which("chroot") is None, reason="chroot is not here")
def test_a_broker_that_it_brings_up(host: Host, offered: dict[str, str]) -> None:
    root = host.root
    changed, said = host.play()  # from nowhere
    assert changed == -1
    assert "Set bpbroker_deb or bpbroker_bundle" in said

    keys = [{"name": "nodes", "allow": ["services:get,list@n/"], "ttl": "2h", "uses": 3, "from": ["127.0.0.0/8"]}]
    changed, said = host.play(bpbroker_keys=keys, **offered)
    assert changed > 0, said
    assert "kkkkk" not in said
    key_file = root.path("/root/bpbroker-keys/nodes")
    key = key_file.read_text().strip()
    assert key
    assert key not in said
    assert key_file.stat().st_mode & 0o777 == 0o600

    pid = root.path("/run/bpbroker/bpbroker.pid").read_text()
    assert root.do("id", "-u", "bpbroker").strip() == str(Path(f"/proc/{int(pid)}").stat().st_uid) != "0"
    ask = ("/opt/bpbroker/bin/bpclient", "--insecure", "-b", f"127.0.0.1:{host.port}", "--access-key")
    root.do(*ask, "k" * 20, "service", "register", "--name", "n/1", "--data", "bar")
    assert root.do(*ask, key, "service", "get", "--name", "n/1") == "bar\n"
    assert root.run(*ask, key, "service", "delete", "--name", "n/1").returncode == 5
    assert set(root.path("/root/ufw").read_text().split("\n")) == {
        f"allow {host.port}/tcp", f"allow {host.port}/udp", ""
    }  # fmt: skip
    assert len(root.path("/root/firewalld").read_text().splitlines()) == 4

    # Again, only asked first: nothing is to do, and the broker goes on.
    for words in (("--check",), ()):
        changed, said = host.play(*words, bpbroker_keys=keys, **offered)
        assert changed == 0, said
    assert root.path("/run/bpbroker/bpbroker.pid").read_text() == pid

    # Another value of what is there stays as it is; what is new is added; the key goes.
    more = {"api": {"listen_port": 1}, "_global": {"discovery": "off"}}
    gone = [{"name": "nodes", "state": "absent"}]
    changed, said = host.play(bpbroker_settings=more, bpbroker_keys=gone, bpbroker_open_ports=False, **offered)
    assert changed > 0, said
    written = json.loads(root.path(CONFIG).read_text())
    assert written["api"]["listen_port"] == host.port
    assert written["_global"]["discovery"] == "off"
    assert root.run(*ask, key, "service", "get", "--name", "n/1").returncode == 5
    assert root.do(*ask, "k" * 20, "service", "get", "--name", "n/1") == "bar\n"
    assert not key_file.exists()

    # A setting that cannot be used: an error, and the broker goes on with the old ones.
    changed, said = host.play(bpbroker_settings={"_config": {"backup_retain_n": "many"}}, **offered)
    assert changed == -1, said
    assert root.do(*ask, "k" * 20, "service", "get", "--name", "n/1") == "bar\n"
