"""sd_notify: datagrams that systemd understands, silence where there is no systemd."""

from __future__ import annotations

import itertools
import os
import re
import socket
import threading
from pathlib import Path

import pytest

from bpbroker.runtime import sdnotify
from tests.support.systems import posix_only


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_socket_nothing_happens(environ: dict[str, str]) -> None:
    assert not sdnotify.notify(sdnotify.READY, environ=environ)


def test_a_service_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    assert not sdnotify.notify(sdnotify.READY, environ={"NOTIFY_SOCKET": str(tmp_path / "gone")})


@posix_only("systemd")
def test_states_arrive_in_one_datagram(tmp_path: Path) -> None:
    for address, name in (
        (str(tmp_path / "s"), str(tmp_path / "s")),
        (f"\0bpbroker-{os.getpid()}", f"@bpbroker-{os.getpid()}"),
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(10)
            manager.bind(address)
            assert sdnotify.notify(sdnotify.READY, sdnotify.status("two\nlines"), environ={"NOTIFY_SOCKET": name})
            assert manager.recv(100) == b"READY=1\nSTATUS=two lines"


def test_reloading_carries_the_monotonic_clock() -> None:
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", sdnotify.reloading())


@pytest.mark.parametrize(
    ("environ", "secs"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_watchdog(environ: dict[str, str], secs: float | None) -> None:
    assert sdnotify.watchdog_secs(environ) == secs


@posix_only("systemd")
def test_more_time_is_asked_for_as_long_as_there_is_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdnotify, "EXTEND_EVERY_SECS", 0.01)
    monkeypatch.setattr(sdnotify, "EXTEND_SECS", 0.2)
    path, numbers = str(tmp_path / "s"), itertools.count()
    stuck = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(0.5)
        manager.bind(path)
        asked = sdnotify.Patience(
            lambda: "Starting: 5 %", lambda: stuck.is_set() or next(numbers), {"NOTIFY_SOCKET": path}
        )
        with asked:
            for _ in range(30):  # longer than without progress
                assert manager.recv(200) == b"EXTEND_TIMEOUT_USEC=200000\nSTATUS=Starting: 5 %\nWATCHDOG=1"
            stuck.set()
            with pytest.raises(TimeoutError):
                while True:
                    manager.recv(200)
            stuck.clear()
            manager.recv(200)
            asked.wanted = False
            with pytest.raises(TimeoutError):
                while True:
                    manager.recv(200)
    assert "patience" not in {thread.name for thread in threading.enumerate()}


def test_without_a_service_manager_there_is_no_thread() -> None:
    with sdnotify.Patience(lambda: "", lambda: 0, {}):
        assert "patience" not in {thread.name for thread in threading.enumerate()}
