"""A machine without a battery for its clock boots in 1970 and learns the time when its network comes."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.machine.installed import UP_SECS, Host

INSIDE = "bpclient -b 127.0.0.1:20443"


def test_clock_of_1970_and_a_late_network(make_host: Callable[..., Host], note: Callable[[str], None]) -> None:
    host = make_host(network=False, clock="1970-01-02T03:04:05")
    host.machine.switch_on()
    # systemd begins at its own build's date, System V init in 1970.
    clocks = [int(host.run("date +%s"))]
    host.machine.until(f"{INSIDE} service register --name early --data bird", within_secs=UP_SECS)
    host.machine.plug_in_network()
    host.await_up()
    with host.written_to() as writers:
        writers.until(acknowledged=100)
        host.run(f"date -s @{int(time.time())}")
        writers.until(acknowledged=100)
        clocks.append(int(host.run("date +%s")))
        host.run("bpbroker backup")
        host.machine.cut_power()
    host.machine.await_boot()  # the hardware's clock was not set: time goes back
    clocks.append(int(host.run("date +%s")))
    host.await_up()
    host.check()
    assert host.run(f"{INSIDE} service get --name early") == "bird\n"
    with host.written_to() as writers:
        writers.until(acknowledged=100)
    host.check()
    assert host.writers.refused == 0
    assert clocks[0] < clocks[1]
    assert clocks[2] < clocks[1]
    days = ", then ".join(time.strftime("%Y-%m-%d", time.gmtime(clock)) for clock in clocks)
    note(f"{host.machine.name}: {host.writers.acknowledged} acknowledged on {days}, none lost")
