"""What systemd and the broker say to each other, on a machine that systemd runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.machine.installed import TOP, UP_SECS, Host

pytestmark = pytest.mark.parametrize("base", ["systemd"], indirect=True)

WATCHDOG_SECS = 20
MODULE = """\
import subprocess


def Start(rh):
    subprocess.Popen(["sleep", "1001"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rh.data = "started"
"""
AWAY = """\
import ctypes, subprocess, time


def Hang(rh):
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)  # no subreaper any more: nothing shows whose child it was
    subprocess.run(["sh", "-c", "setsid sleep 1003 >/dev/null 2>&1 </dev/null & exit 0"], start_new_session=True)
    time.sleep(300)
"""
CONTROL = "#!/bin/sh\npkill -f sleep.1002\nsetsid sleep 1002 >/dev/null 2>&1 &\n"
"""An OSSEC manager of one daemon."""


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


def put(host: Host, path: str, text: str) -> None:
    """Write a file; make its folder."""
    host.run(f"mkdir -p $(dirname {path}) && cat >{path} <<'END'\n{text}\nEND\n")


def drop_in(host: Host, text: str) -> None:
    """Add to the unit and start the service again."""
    put(host, "/etc/systemd/system/bpbroker.service.d/test.conf", text)
    host.run("systemctl daemon-reload && systemctl restart bpbroker")
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


def test_what_an_extension_starts_ends_with_the_service_and_what_systemd_starts_lives_on(host: Host) -> None:
    put(host, "/root/daemons.py", MODULE)
    put(host, "/root/ossec.py", (TOP / "examples/ossec.py").read_text())
    put(host, "/var/ossec/bin/ossec-control", CONTROL)
    host.run("chmod 755 /var/ossec/bin/ossec-control && mkdir /var/ossec/etc")
    for name in ("daemons", "ossec"):
        host.run(f"bpbroker install-extension --script /root/{name}.py --enable")
    drop_in(host, (TOP / "deploy/bpbroker-extensions.conf").read_text())
    execute = "bpclient -b 127.0.0.1:20443 execute --method"
    assert host.run(f"{execute} daemons.Start").strip() == "started"
    added = host.run(f"{execute} ossec.AddAgent --data node-7")
    assert added.startswith("001 node-7 127.0.0.1 ")
    first = host.run("pgrep -f '^sleep 1002'")
    assert host.run("pgrep -f '^sleep 1001'")
    host.service("restart")
    assert host.machine.try_to("pgrep -f '^sleep 1001'").code == 1
    assert host.run("pgrep -f '^sleep 1002'") == first
    host.await_up()


@pytest.mark.parametrize("user", ["", "bpbroker-test"])
def test_a_call_past_its_limit_leaves_nothing_in_the_units_control_group(host: Host, user: str) -> None:
    group = "/sys/fs/cgroup/system.slice/bpbroker.service"
    put(host, "/root/away.py", AWAY)
    put(host, "/root/away.json", '{"away": {"_timeout_secs": 10}}')
    host.run("bpbroker install-extension --script /root/away.py")
    host.service("stop")
    host.run("bpbroker configure --config-file /root/away.json")
    if user:
        host.run(f"useradd --system --no-create-home --shell /usr/sbin/nologin {user}")
        host.run(f"bpbroker install-service --user {user}")
    host.service("start")
    host.await_up()
    assert shown(host, "Delegate") == "yes"
    main = shown(host, "MainPID")
    assert host.run(f"cat {group}/bpbroker-{main}/cgroup.procs").split() == [main]
    assert host.run(f"cat {group}/cgroup.procs").split() == []  # no process in an inner node
    called = host.machine.try_to("bpclient -b 127.0.0.1:20443 execute --method away.Hang")
    assert called.code != 0
    assert host.machine.try_to("pgrep -f '^sleep 1003'").code == 1
    # The hierarchy of everybody else is not to be written.
    assert host.machine.try_to(f"nsenter -t {main} -m mkdir /sys/fs/cgroup/system.slice/not-mine").code != 0
