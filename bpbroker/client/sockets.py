"""Sockets as far as a call to a numeric address needs them.

:mod:`socket` and what it loads make enumerations of hundreds of constants, which is a sixteenth of what a one-shot
call costs. Those versions of CPython with which this was tested use the C module below it; any other Python takes
:mod:`socket`. Who looks up names or listens loads that anyway.
"""

from __future__ import annotations

import sys

BARE = sys.implementation.name == "cpython" and sys.version_info < (3, 14)
"""Whether C modules are used without the modules above them, which may change from one version to the next.

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
        """A socket that TLS can refer to."""

        __slots__ = ("__weakref__",)

else:
    import socket as native

    Socket = native.socket

__all__ = ["BARE", "Socket", "native"]
