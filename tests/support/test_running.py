"""What brokers in tests are spoken to with, and where they listen."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.support.ports import kept_port
from tests.support.running import untrusting
from tests.support.witness import eventually


def is_gone(sock: socket.socket) -> bool:
    """Whether the peer has reset a connection."""
    try:
        sock.getpeername()
    except OSError:
        return True
    return False


def test_a_peer_that_is_gone_before_the_handshake_leaves_no_socket_open() -> None:
    """As a broker that is killed leaves it; one that is not closed fails this test."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        peer, _ = server.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        eventually(lambda: is_gone(sock))
        with pytest.raises(OSError, match="reset"):
            untrusting().wrap_socket(sock)


def test_a_port_that_is_kept_is_there_for_its_program_alone() -> None:
    port, kept = kept_port()
    with kept:
        for _ in range(2):  # it ends, and is started again
            with socket.create_server(("", port)), socket.create_connection(("127.0.0.1", port)):
                pass
            with socket.socket() as another, pytest.raises(OSError, match="in use"):
                another.bind(("", port))
