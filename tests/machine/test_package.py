"""The Debian package on a machine that systemd runs: installed, upgraded under load, refused, removed, purged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.machine.image import Image
from tests.machine.installed import FILES, Host
from tests.machine.vm import Machine
from tests.packaging.conftest import build, with_revision

pytestmark = pytest.mark.parametrize("base", ["systemd"], indirect=True)

CONFIG: Final = f"{FILES}/bpbroker.json"
DPKG_SECS: Final = 900.0
"""In software, compiling the modules alone takes minutes."""


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Return a disk with the package of this checkout in two versions, as a tar file, and their names there."""
    folder = tmp_path_factory.mktemp("debs")
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    first, _ = build("build-deb", "--python", python, folder)
    second = with_revision(first, 2)
    disk = folder / "disk.tar"
    subprocess.run(["tar", "-cf", disk, "-C", folder, first.name, second.name], check=True, timeout=120)
    return disk, first.name, second.name


@pytest.fixture
def host(base: Image, debs: tuple[Path, str, str], folder: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    """Return a machine on which nothing is installed; the packages are in /root."""
    devices = ("-drive", f"file={debs[0]},format=raw,if=virtio,readonly=on")
    machine = Machine(base, folder / "package", devices=devices, accel=request.config.getoption("machine_accel"))
    try:
        machine.switch_on()
        machine.run("tar -xf /dev/vdb -C /root")
        yield Host(machine)
    finally:
        machine.kill()


def shown(host: Host, name: str, unit: str = "bpbroker") -> str:
    """Return a property of a unit."""
    return host.run(f"systemctl show {unit} -p {name} --value").strip()


def test_the_package_from_its_installation_to_its_purge(host: Host, debs: tuple[Path, str, str]) -> None:
    _, first, second = debs
    said = host.run(f"dpkg -i /root/{first}", timeout_secs=DPKG_SECS)
    assert "starts at the next boot" in said
    assert shown(host, "UnitFileState") == "enabled"
    assert shown(host, "ActiveState") == "inactive"
    assert host.machine.try_to(f"test -e {CONFIG}").code == 1  # this may be the image of many machines

    host.machine.reboot()  # and it comes by itself
    host.await_up()
    pid = shown(host, "MainPID")
    assert host.run(f"stat -c %U /proc/{pid}").strip() == "bpbroker"

    with host.written_to() as writers:
        host.run(f"dpkg -i /root/{second}", timeout_secs=DPKG_SECS)
        host.await_up()
        assert writers.acknowledged
    host.check()
    later = shown(host, "MainPID")
    assert later != pid
    assert shown(host, "NRestarts") == "0"  # systemd had nothing to mend
    ready = "journalctl -b -u bpbroker --no-pager -o cat | grep -c 'is ready'"
    assert host.run(ready).strip() == "2"  # once restarted
    assert "-2~deb" in host.run("dpkg-query -W -f '${Version}' bpbroker")

    # A configuration that is broken: the broker goes on, and dpkg says that it failed.
    host.run(f"cp {CONFIG} /root/good && printf '{{' > {CONFIG}")
    done = host.machine.try_to(f"dpkg -i /root/{first}", timeout_secs=DPKG_SECS)
    assert done.code == 1, done
    assert "nothing is upgraded while the configuration is broken" in done.err
    assert shown(host, "MainPID") == later
    host.check()
    host.run(f"cat /root/good > {CONFIG}")

    # What the administrator stopped and disabled stays so.
    host.run("systemctl disable --now bpbroker", timeout_secs=120.0)
    host.run(f"dpkg -i /root/{first}", timeout_secs=DPKG_SECS)
    assert shown(host, "UnitFileState") == "disabled"
    assert shown(host, "ActiveState") == "inactive"
    host.run("systemctl enable --now bpbroker")
    host.await_up()
    host.check()

    # A broker of another name beside it outlives removal and purge, with its files.
    other = f"bpbroker -c {FILES}/other.json"
    settings = json.dumps({"api": {"listen_port": 20500, "listen_ip": "127.0.0.1"}, "_global": {"discovery": "off"}})
    host.run(f"echo '{settings}' | {other} configure && {other} install-service --name other --user bpbroker")
    host.run("systemctl start other")
    others = shown(host, "MainPID", "other")
    host.run("dpkg -r bpbroker", timeout_secs=DPKG_SECS)
    assert shown(host, "ActiveState") == "inactive"
    assert host.machine.try_to(f"ps -o pid= -p {shown(host, 'MainPID', 'other')}").code == 0
    host.run(f"test -s {CONFIG} && test ! -e /opt/bpbroker/bin && test ! -e /usr/bin/bpbroker")
    host.run("dpkg -P bpbroker", timeout_secs=DPKG_SECS)
    host.run(f"test ! -e {CONFIG} && test -s {FILES}/other.json && id bpbroker && test ! -e /var/log/bpbroker")
    assert shown(host, "MainPID", "other") == others
    assert host.machine.try_to("systemctl cat bpbroker").code != 0
