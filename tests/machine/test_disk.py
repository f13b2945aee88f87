"""A disk that is full refuses writes, loses none, and is a passing trouble: also when the power goes meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from tests.machine.installed import Host

FILL = "fallocate -l $(($(df --output=avail -B1 / | tail -n 1) - 4096)) /full; cat /dev/zero >/full2; true"
FREE = "rm -f /full /full2"


def test_full_disk(make_host: Callable[..., Host], note: Callable[[str], None]) -> None:
    host = make_host()
    host.machine.switch_on()
    host.await_up()
    with host.written_to() as writers:
        writers.until(acknowledged=100)
        host.run(f"{FILL} 2>/dev/null")
        writers.until(refused=100)
        host.run(FREE)
        writers.until(acknowledged=100)  # it goes on by itself
    host.await_up()
    host.check()

    with host.written_to() as writers:
        host.run(f"{FILL} 2>/dev/null")
        writers.until(refused=100)
        host.machine.cut_power()
    host.machine.await_boot()
    host.run(FREE)
    host.await_up()  # by itself, whether it could start on a full disk or not
    host.check()
    with host.written_to() as writers:
        writers.until(acknowledged=100)
    host.check()
    note(f"{host.machine.name}: {host.writers.acknowledged} acknowledged, {host.writers.refused} refused, none lost")
