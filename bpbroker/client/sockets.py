"""The sockets for calls to a numeric address.

:mod:`socket` and the modules that it loads make enumerations of hundreds of constants: a sixteenth of the cost of a
one-shot call. On tested versions of CPython, the C module below it is used; on any other Python, :mod:`socket`. Code
that looks up names or listens loads :mod:`socket` anyway.
"""

from __future__ import annotations

import sys

BARE = sys.implementation.name == "cpython" and sys.version_info < (3, 14)
"""Whether C modules are used directly; they may change from one version of Python to the next.

Before a version is added, run ``tests/client`` with it.
"""

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:  # novm
    import socket as native
    from typing import TypeAlias

    Socket: TypeAlias = native.socket
elif BARE:
    import _socket as native

    class Socket(native.socket):
        """A socket with weak references, which TLS needs."""

        __slots__ = ("__weakref__",)

else:
    import socket as native

    Socket = native.socket

__all__ = ["BARE", "Socket", "native"]
