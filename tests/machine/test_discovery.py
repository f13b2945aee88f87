"""Two machines on one cable: discovery by broadcast, before and after a power cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.machine.installed import UP_SECS, Host

pytestmark = pytest.mark.parametrize("base", ["systemd"], indirect=True)


def cable(path: Path, *, server: bool) -> tuple[str, ...]:
    """Return the words for qemu that plug one end of a cable into a machine."""
    card = f"virtio-net-pci,netdev=cable,mac=52:54:00:77:00:0{1 if server else 2}"
    end = f"stream,id=cable,server={'on' if server else 'off'},addr.type=unix,addr.path={path}"
    return ("-netdev", end, "-device", card)


def test_two_machines_and_a_broadcast(make_host: Callable[..., Host], folder: Path) -> None:
    socket = folder / "cable"
    one, two = make_host(devices=cable(socket, server=True)), make_host(devices=cable(socket, server=False))
    for number, host in enumerate((one, two), start=1):
        host.machine.switch_on()
        stanza = f"allow-hotplug eth1\\niface eth1 inet static\\naddress 10.77.0.{number}/24\\n"
        host.run(f"printf '{stanza}' >>/etc/network/interfaces && ifup eth1 && sync")
    one.await_up()
    two.await_up()
    one.run("bpclient -b 127.0.0.1:20443 service register --name cluster-1 --data one")
    ask = "bpclient discover --name cluster-1 --timeout 30"
    assert two.run(ask) == "10.77.0.1\n"
    assert two.run("bpclient -b $(bpclient discover --name cluster-1) service get --name cluster-1") == "one\n"
    assert two.machine.try_to("bpclient discover --name nowhere").out == ""

    one.machine.cut_power()
    one.machine.await_boot()
    assert two.machine.until(ask, within_secs=UP_SECS) == "10.77.0.1\n"
    assert two.run("bpclient -b 10.77.0.1:20443 service get --name cluster-1") == "one\n"
