"""Which certificate each broker had at first contact: ``known_brokers``, a line a broker, as ssh does it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from bpbroker.client.address import Address
from bpbroker.errors import ClientError, NotTrusted


def default_path() -> str:
    """Give the path of ``known_brokers``: ``BPBROKER_KNOWN_BROKERS``, else in the user's configuration folder."""
    given = os.environ.get("BPBROKER_KNOWN_BROKERS")
    if given:
        return given
    if sys.platform == "win32":
        base = os.environ.get("APPDATA") or os.path.expanduser("~")  # noqa: PTH111 - pathlib costs 10 ms to import
    else:
        base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 - as above
    return os.path.join(base, "bpbroker", "known_brokers")  # noqa: PTH118 - as above


class Pins:
    """The pins of one user."""

    def __init__(self, path: str | None = None) -> None:
        self._path = path or default_path()

    def check(self, address: Address, fingerprint: str) -> bool:
        """Compare a fingerprint with the pin of this address; True if there was none and it is pinned now.

        Raises:
            NotTrusted: the pin is another one.
            ClientError: the pins cannot be read or written.
        """
        pinned = self.of(address)
        if pinned is None:
            self._add(address, fingerprint)
            return True
        if pinned != fingerprint:
            raise NotTrusted(
                f"The certificate of {address} is not the one seen before, so nothing was sent to it. "
                f"Seen before: {pinned}. Now: {fingerprint}. If the broker was given a new certificate, "
                f"remove the line of {address} from {self._path}; if not, somebody may be in between"
            )
        return False

    def of(self, address: Address) -> str | None:
        """Give the pinned fingerprint of an address."""
        wanted = str(address)
        for name, fingerprint in self._lines():
            if name == wanted:
                return fingerprint
        return None

    def _lines(self) -> Iterator[tuple[str, str]]:
        try:
            with open(self._path, encoding="utf-8") as file:  # noqa: PTH123 - as above
                for line in file:
                    fields = line.split()
                    if len(fields) == 2:
                        yield fields[0], fields[1]
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise ClientError(f"Cannot read {self._path}: {error}") from None

    def _add(self, address: Address, fingerprint: str) -> None:
        """Append a line; one write of a short line is whole even when many clients start at once."""
        try:
            with contextlib.suppress(FileExistsError):
                os.makedirs(os.path.dirname(self._path) or ".", mode=0o700)  # noqa: PTH103, PTH120 - as above
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, f"{address} {fingerprint}\n".encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ClientError(
                f"Cannot write {self._path}: {error.strerror}; set BPBROKER_KNOWN_BROKERS to a file that can be "
                "written, or use --fingerprint"
            ) from None
