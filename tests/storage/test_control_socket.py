"""The Unix socket beside a configuration file."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpbroker.storage import control_socket

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Python has no Unix sockets there")


@pytest.fixture(params=["", "deep"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A configuration file, also in a folder whose path is longer than a socket's may be."""
    folder = tmp_path.joinpath(*["a-folder-with-a-long-name"] * 8) if request.param else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "bpbroker.json"


@contextlib.contextmanager
def bound(file: Path) -> Iterator[socket.socket]:
    sock = control_socket.bind(file)
    assert sock is not None
    with sock:
        yield sock


def test_its_owner_alone_can_connect(file: Path) -> None:
    before = os.umask(0)
    try:
        with bound(file) as listener:
            assert control_socket.socket_path(file).stat().st_mode & 0o777 == 0o600
            connection = control_socket.connect(file, 5.0)
            assert connection is not None
            with connection:
                other, _ = listener.accept()
                with other:
                    connection.sendall(b"x")
                    other.settimeout(5)
                    assert other.recv(1) == b"x"
    finally:
        os.umask(before)


def test_one_that_a_kill_left_is_replaced(file: Path) -> None:
    with bound(file):
        pass
    assert control_socket.connect(file, 5.0) is None
    with bound(file):
        connection = control_socket.connect(file, 5.0)
        assert connection is not None
        connection.close()
    control_socket.remove(file)
    assert not control_socket.socket_path(file).exists()
    assert control_socket.connect(file, 5.0) is None


def test_what_is_no_socket_stays(file: Path) -> None:
    path, target = control_socket.socket_path(file), file.with_name("precious")
    target.write_text("x")
    path.symlink_to(target)
    with pytest.raises(OSError, match="in use"):
        control_socket.bind(file)
    control_socket.remove(file)
    assert path.is_symlink()
    assert target.read_text() == "x"


def test_a_link_that_is_put_there_meanwhile_is_not_followed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, precious = control_socket.socket_path(file), file.with_name("precious")
    precious.touch(0o644)
    precious.chmod(0o644)

    class Raced(socket.socket):
        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type]  # the stub's name for any address is private
            path.unlink()
            path.symlink_to(precious)

    monkeypatch.setattr(socket, "socket", Raced)
    with bound(file):
        assert precious.stat().st_mode & 0o777 == 0o644
