"""Known brokers: which certificate was seen at which address, and whether this one may be trusted.

As ssh does with ``accept-new``: the first contact pins the certificate's
SHA-256, later ones must show the same. The file has one line a broker,
``host:port SHA256:<digits>``; any line may be removed with an editor.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator

from bpbroker.errors import NotTrusted, UsageError

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Final

_HEADER: Final = (
    "# Certificates of brokers by first contact (bpclient). Remove a line to accept a new certificate there.\n"
)
_ALGORITHM: Final = "SHA256:"
_FILE_MAX: Final = 1024 * 1024
"""In bytes: ten thousand brokers."""
_LOCK_TRIES: Final = 6000
"""A minute; each process needs the lock for some milliseconds."""


def default_path() -> str:
    """Return the path of this user's file; ``BPBROKER_KNOWN_BROKERS`` names another one."""
    moved = os.environ.get("BPBROKER_KNOWN_BROKERS")
    if moved:
        return moved
    if sys.platform == "win32":
        folder = os.environ.get("APPDATA") or _join(_home(), "AppData", "Roaming")
    else:
        folder = os.environ.get("XDG_CONFIG_HOME", "")
        folder = folder if folder.startswith("/") else _join(_home(), ".config")
    return _join(folder, "bpbroker", "known_brokers")


def _home() -> str:
    home = os.path.expanduser("~")  # noqa: PTH111 - pathlib is slow to load
    return "/" if home == "~" else home  # no HOME and no such user: a bare container


def _join(*parts: str) -> str:
    return os.path.join(*parts)  # noqa: PTH118 - pathlib costs a one-shot call more than all of this module


class KnownBrokers:
    """The pins in one file; any number of processes may use it at once.

    Args:
        path: the file; it and its folder are made with the first pin.
        tell: called with a sentence for the person when a pin is made or cannot be kept.
        first_contact: called with address and fingerprint before a pin is made; raises NotTrusted to refuse.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        tell: Callable[[str], None] = lambda _: None,
        first_contact: Callable[[str, str], None] = lambda _address, _fingerprint: None,
    ) -> None:
        self.path = os.fspath(path) if path else default_path()
        self._tell = tell
        self._first_contact = first_contact
        self._accepted: set[tuple[str, str]] = set()
        """The pins of this run, in case the file cannot be written."""

    def known(self, address: str, fingerprint: str) -> bool:
        """Whether ``address`` is pinned to this certificate; makes no pin.

        Raises:
            NotTrusted: another certificate is pinned there.
        """
        return self._matches(self._read(), address, fingerprint)

    def check(self, address: str, fingerprint: str) -> None:
        """Compare with the pin of ``address``, or make one.

        Raises:
            NotTrusted: another certificate is pinned there, or the first contact is refused.
        """
        if self._matches(self._read(), address, fingerprint) or (address, fingerprint) in self._accepted:
            return
        self._first_contact(address, fingerprint)
        self._accepted.add((address, fingerprint))
        try:
            self._pin(address, fingerprint)
        except OSError as error:
            self._tell(f"Cannot remember the certificate of {address} in {self.path}: {error.strerror or error}")

    def _matches(self, lines: list[str], address: str, fingerprint: str) -> bool:
        """Whether there is a pin with this fingerprint.

        This host has several names. A certificate that is pinned under one of them counts under all; a certificate
        that differs from another name's pin may be another broker's.

        Raises:
            NotTrusted: another certificate is pinned.
        """
        known_elsewhere = False
        aliases = _aliases(address)
        for number, line in enumerate(lines, 1):
            name, _, digits = line.strip().partition(" ")
            if name not in aliases or not digits.startswith(_ALGORITHM):
                continue
            pinned = digits.removeprefix(_ALGORITHM).strip()
            if name != address:
                known_elsewhere |= pinned == fingerprint
                continue
            if pinned == fingerprint:
                return True
            raise NotTrusted(
                f"The certificate of {address} is not the one seen before; nothing was sent. "
                f"Expected SHA-256 {shown(pinned)}, found {shown(fingerprint)}. "
                f"If the broker really has a new certificate: bpclient trust forget {address} "
                f"(or remove line {number} of {self.path})"
            )
        return known_elsewhere

    def pins(self) -> dict[str, str]:
        """Return every pin: the fingerprint, 64 hexadecimal digits, by address.

        Raises:
            NotTrusted: the file cannot be read.
        """
        words = (line.split() for line in self._read())
        return {
            pair[0]: pair[1].removeprefix(_ALGORITHM)
            for pair in words
            if len(pair) == 2 and pair[1].startswith(_ALGORITHM) and not pair[0].startswith("#")
        }

    def forget(self, is_meant: Callable[[str], bool]) -> list[str]:
        """Remove the pins of all addresses for which ``is_meant`` is true, and return these addresses.

        Raises:
            NotTrusted: the file cannot be read.
            OSError: it cannot be written.
        """
        if not any(map(is_meant, self.pins())):
            return []
        with self._locked() as path:
            gone = [address for address in self.pins() if is_meant(address)]
            kept = [line for line in self._read() if line.partition(" ")[0] not in gone]
            from bpbroker import files

            files.write_whole(path, ["".join(f"{line}\n" for line in kept).encode()])
        return gone

    def _read(self) -> list[str]:
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):  # noqa: PTH116 - as above
                # A device may have no end, and a pin would replace it by a file, such as /dev/null.
                raise OSError("it is no regular file")
            content = self._content()
            if len(content) > _FILE_MAX:
                raise OSError(f"it has more than {_FILE_MAX} bytes")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise NotTrusted(
                f"The known brokers in {self.path} cannot be read: {error.strerror or error}; "
                "mend that, or use --fingerprint, --cacert or --token"
            ) from None
        if content[:1] in (b"\xff", b"\xfe", b"\xef"):  # a mark: a shell of Windows wrote it
            from bpbroker.text import decode

            return decode(content, "replace").splitlines()
        return content.decode("utf-8", "replace").splitlines()

    def _content(self) -> bytes:
        """Read the file. On Windows it cannot be opened for a moment while another process replaces it."""
        tries = 300 if sys.platform == "win32" else 1
        while True:
            tries -= 1
            try:
                with open(self.path, "rb") as file:  # noqa: PTH123 - as above
                    return file.read(_FILE_MAX + 1)
            except PermissionError:
                if not tries:
                    raise
            _pause()

    def _pin(self, address: str, fingerprint: str) -> None:
        from bpbroker import files

        with self._locked() as path:
            lines = self._read()  # again: another process may have been faster
            if self._matches(lines, address, fingerprint):
                return
            text = "".join(f"{line}\n" for line in lines) or _HEADER
            # Durable: after a power cut, a known broker must not count as a first contact again.
            files.write_whole(path, [f"{text}{address} {_ALGORITHM}{fingerprint}\n".encode()])
        self._tell(f"First contact with {address}: its certificate is pinned, SHA-256 {shown(fingerprint)}")

    def _locked(self) -> AbstractContextManager[Path]:
        """Lock the file against other processes; yield its path, whose folder exists."""
        import contextlib  # only a change of the file needs these, and they are large
        from pathlib import Path

        from bpbroker import files

        @contextlib.contextmanager
        def locked() -> Iterator[Path]:
            path = Path(self.path)
            # Root with another user's HOME must leave no file there that this user cannot change.
            nearest = next(folder for folder in path.parents if folder.exists())
            files.make_folder(path.parent, nearest)
            lock = files.open_private(Path(f"{path}.lock"), os.O_RDWR | os.O_CREAT, owner_of=nearest)
            try:
                _hold(lock)
                yield path
            finally:
                os.close(lock)

        return locked()


_THIS_HOST: Final = ("localhost", "127.0.0.1", "[::1]")


def _aliases(address: str) -> tuple[str, ...]:
    """Return all addresses that mean the same as this one: three for this host itself."""
    host, _, port = address.rpartition(":")
    return tuple(f"{name}:{port}" for name in _THIS_HOST) if host in _THIS_HOST else (address,)


def means(text: str) -> Callable[[str], bool]:
    """Return a function that says whether an address matches ``host:port``, or ``host`` with any port.

    Raises:
        UsageError: the text has neither form.
    """
    from bpbroker.client.address import parse_address

    wanted = parse_address(text, 1)
    if wanted == parse_address(text, 2):  # it has a port of its own
        return lambda address: address in _aliases(str(wanted))
    hosts = {alias.rpartition(":")[0] for alias in _aliases(str(wanted))}
    return lambda address: address.rpartition(":")[0] in hosts


def shown(digits: str) -> str:
    """Return a fingerprint in the form for people; other text in quotes."""
    from bpbroker.discovery.jointoken import shown_fingerprint

    try:
        return shown_fingerprint(digits)
    except UsageError:
        return repr(digits[:80])


def _pause() -> None:
    import time

    time.sleep(0.01)


def _hold(handle: int) -> None:
    """Wait for a file's lock and take it, until the file is closed or the process ends."""
    if sys.platform == "win32":
        from bpbroker import windows

        # Not LK_LOCK of the C library, which gives up after ten tries, a second apart.
        for _ in range(_LOCK_TRIES):
            if windows.try_lock(handle, 0, alone=True):
                return
            _pause()
        raise OSError("other processes hold its lock")
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX)
