"""Boots, reboots and power cuts under writers: nothing acknowledged is lost, and the service comes up by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.machine.installed import Host

CUTS_SECS = (1, 5, 10, 20, 40)
"""Seconds from the broker's start to the power cut; the kernel writes by itself what is 30 s old."""


def test_power_cuts(make_host: Callable[..., Host], note: Callable[[str], None]) -> None:
    host = make_host()
    machine = host.machine
    machine.switch_on()
    host.await_up()  # it starts at boot
    # The first cut hits a service that was installed and started just before.
    host.run("bpbroker uninstall-service --purge && bpbroker install-service", timeout_secs=600.0)
    host.service("start")
    for secs in CUTS_SECS:
        host.await_up()
        before = host.writers.acknowledged
        with host.written_to():
            time.sleep(secs)
            machine.cut_power()
        booted = time.monotonic()
        machine.await_boot()
        agent = time.monotonic()
        host.await_up()
        up = time.monotonic()
        host.check()
        note(
            f"{machine.name}: cut at {secs} s: {host.writers.acknowledged - before} acknowledged, none lost;"
            f" booted in {agent - booted:.1f} s, broker up {up - booted:.1f} s after the cut"
        )
    assert host.writers.refused == 0
    with host.written_to():
        time.sleep(2)
        machine.reboot()
    host.await_up()
    host.check()
