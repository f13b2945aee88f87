"""A client that floods a TLS 1.3 server with KeyUpdates: ``python -m tests.support.tls_flood PORT SECONDS``.

Python's ``ssl`` has no such call, so libssl is called by its own names. A
connection that the server cuts is replaced by a new one.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
import sys
import time

_UPDATE_NOT_REQUESTED = 0


def library() -> ctypes.CDLL | None:
    """Return libssl, None where it cannot be found."""
    name = ctypes.util.find_library("ssl")
    if name is None:
        return None
    ssl = ctypes.CDLL(name)
    for function in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(ssl, function).restype = ctypes.c_void_p
    ssl.SSL_CTX_new.argtypes = ssl.SSL_new.argtypes = ssl.SSL_free.argtypes = [ctypes.c_void_p]
    ssl.SSL_connect.argtypes = ssl.SSL_do_handshake.argtypes = [ctypes.c_void_p]
    ssl.SSL_set_fd.argtypes = ssl.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return ssl


def flood(port: int, secs: float) -> int:
    """Flood for so long; give how many KeyUpdates were sent."""
    ssl = library()
    assert ssl is not None
    context = ssl.SSL_CTX_new(ssl.TLS_client_method())
    until = time.monotonic() + secs
    sent = 0
    while time.monotonic() < until:
        try:
            sock = socket.create_connection(("127.0.0.1", port), 5)
        except OSError:
            time.sleep(0.01)
            continue
        with sock:
            sock.setblocking(True)
            connection = ssl.SSL_new(context)
            ssl.SSL_set_fd(connection, sock.fileno())
            if ssl.SSL_connect(connection) == 1:
                while time.monotonic() < until:
                    if ssl.SSL_key_update(connection, _UPDATE_NOT_REQUESTED) != 1:
                        break
                    if ssl.SSL_do_handshake(connection) != 1:
                        break
                    sent += 1
            ssl.SSL_free(connection)
    return sent


if __name__ == "__main__":
    print(flood(int(sys.argv[1]), float(sys.argv[2])))  # noqa: T201 - what it is run for
