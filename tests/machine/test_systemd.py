"""What systemd and the broker say to each other, on a machine that systemd runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.machine.installed import UP_SECS, Host

pytestmark = pytest.mark.parametrize("base", ["systemd"], indirect=True)

WATCHDOG_SECS = 20
LIB = "/usr/local/bpbroker/lib"
MODULE = """\
import subprocess


def Start(rh):
    subprocess.Popen(["sleep", "1001"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(["systemd-run", "--unit=outlives", "sleep", "1002"], check=True)
    rh.data = "started"
"""


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    """Return a machine on which the broker runs."""
    made = make_host()
    made.machine.switch_on()
    made.await_up()
    return made


def shown(host: Host, name: str) -> str:
    """Return a property of the unit."""
    return host.run(f"systemctl show bpbroker -p {name} --value").strip()


def drop_in(host: Host, text: str) -> None:
    """Add to the unit and start the service again."""
    host.run(
        "mkdir -p /etc/systemd/system/bpbroker.service.d && "
        f"printf '%s' '{text}' >/etc/systemd/system/bpbroker.service.d/test.conf && "
        "systemctl daemon-reload && systemctl restart bpbroker"
    )
    host.await_up()


def test_status_line_and_watchdog(host: Host) -> None:
    assert "Serves on port 20443" in shown(host, "StatusText")
    assert "Status: " in host.run("systemctl status bpbroker --no-pager")
    drop_in(host, f"[Service]\nWatchdogSec={WATCHDOG_SECS}\n")
    first = shown(host, "MainPID")
    pinged = shown(host, "WatchdogTimestampMonotonic")
    with host.written_to() as writers:
        # However busy it is, it is heard of twice within the limit.
        for _ in range(3):
            host.machine.until(
                f"test $(systemctl show bpbroker -p WatchdogTimestampMonotonic --value) -gt {pinged}",
                within_secs=WATCHDOG_SECS / 2,
            )
            pinged = shown(host, "WatchdogTimestampMonotonic")
        assert shown(host, "NRestarts") == "0"
        host.run(f"kill -STOP {first}")
        host.machine.until("test $(systemctl show bpbroker -p NRestarts --value) -ge 1", within_secs=UP_SECS)
        assert writers.acknowledged
    host.await_up()
    assert shown(host, "MainPID") != first
    host.check()


def test_what_an_extension_starts_ends_with_the_service_unless_systemd_started_it(host: Host) -> None:
    host.run(
        f"cat >/root/daemons.py <<'END'\n{MODULE}END\nbpbroker install-extension --script /root/daemons.py --enable"
    )
    assert host.call("daemons/Start") == (200, "started")
    host.run("pgrep -f 'sleep 1001' && pgrep -f 'sleep 1002'")
    host.service("stop")
    assert host.machine.try_to("pgrep -f '^sleep 1001'").code == 1
    host.run("pgrep -f '^sleep 1002'")
