"""One run of ``bpclient``: its options, and the broker that they lead to."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from bpbroker import DEFAULT_PORT
from bpbroker.client.address import parse_address, parse_port
from bpbroker.client.api import RETRIES, TIMEOUT_SECS, Client
from bpbroker.client.cli.output import Output, of_entry, render
from bpbroker.client.cli.progress import Progress
from bpbroker.client.cli.words import seconds, secrets
from bpbroker.client.transport import Trust
from bpbroker.errors import NotShown, RequestError, UsageError
from bpbroker.registry import entry

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Any, Final

    from bpbroker.client.responders import Broker

_UNTIL_TIMEOUT: Final = 1_000_000_000


class Session:
    """What the options of all levels together say.

    Args:
        given: option to value, only those that were given.
        environ: the environment, which they go before.
    """

    def __init__(self, given: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
        self._given = given
        self._environ = environ
        self.quiet = bool(given.get("quiet"))
        self.port = parse_port(str(given["port"])) if "port" in given else DEFAULT_PORT
        self._secrets: tuple[str, str] | None = None

    @property
    def secrets(self) -> tuple[str, str]:
        """Key and fingerprint; read once, because one of them may come from standard input."""
        if self._secrets is None:
            self._secrets = secrets(self._given, self._environ)
        return self._secrets

    @property
    def trust(self) -> Trust:
        """By what the broker is recognised."""
        return Trust(self.secrets[1], self._given.get("cacert", ""), bool(self._given.get("insecure")))

    def render(self, result: Output) -> bytes:
        """Give a result in the form that was asked for."""
        return render(result, self._given.get("format", "text"), self._given.get("cols", ()))

    def see_that_a_shell_can_hold(self, data: str) -> None:
        """See, before data is sent, that the entry it makes can be shown, if it is a shell that wants to know.

        Raises:
            UsageError: it could not.
        """
        if self._given.get("format") not in ("shell", "powershell"):
            return  # they show whatever a broker takes
        try:
            self.render(of_entry(entry.stamp(entry.parse(data, max_bytes=sys.maxsize), "", 0)))
        except NotShown as error:
            raise UsageError(f"{error}; nothing was sent") from None
        except RequestError:
            return  # saying what is wrong with it is for the broker, whose limits are its own

    def timeout(self, default: float) -> float:
        """Give ``--timeout`` in seconds, or the default."""
        found = seconds(self._given["timeout"]) if "timeout" in self._given else default
        if found <= 0:
            raise UsageError("--timeout must be more than 0")
        return found

    def tell(self, sentence: str) -> None:
        """Say something to the person, unless ``--quiet``."""
        if not self.quiet and sys.stderr is not None:
            sys.stderr.write(f"{sentence}\n")

    def waiting_for(self, what: str) -> Progress:
        """Show what is being waited for, while it is."""
        return Progress(what, quiet=self.quiet)

    def discover(self, name: str, wait_secs: float = 0.0, *, first: bool = False) -> Broker:
        """Find the broker that holds ``name``, asking for ``wait_secs`` if that is longer than the timeout."""
        from bpbroker.client.discovery import TIMEOUT_SECS, discover  # a call to a known broker does without

        secs = max(self.timeout(TIMEOUT_SECS), wait_secs)
        with self.waiting_for(f"a broker that holds '{name}'"):
            return discover(name, timeout_secs=secs, first=first, **self._how_to_ask())

    def discover_all(self, name: str) -> list[Broker]:
        """Find every broker that holds ``name``."""
        from bpbroker.client.discovery import TIMEOUT_SECS, discover_all

        with self.waiting_for(f"brokers that hold '{name}'"):
            return discover_all(name, timeout_secs=self.timeout(TIMEOUT_SECS), **self._how_to_ask())

    def _how_to_ask(self) -> dict[str, Any]:
        key, fingerprint = self.secrets
        return {
            "key": key,
            "fingerprint": fingerprint,
            "port": self.port,
            "interface": self._given.get("interface", ""),
        }

    def client(self, wait_secs: float = 0.0) -> tuple[Client, float]:
        """Give a client of the broker that the options name or that is discovered, and what is left of ``wait_secs``.

        Raises:
            UsageError: they name none.
        """
        began = time.monotonic()
        key, fingerprint = self.secrets
        given = self._given
        name = given.get("discover")
        if name and given.get("bpbroker"):
            raise UsageError("--bpbroker and --discover both say which broker; give one of them")
        address = given.get("bpbroker") or (not name and self._environ.get("BPBROKER")) or ""
        if name:
            broker = self.discover(name, wait_secs)
            target = parse_address(f"[{broker.address}]" if ":" in broker.address else broker.address, broker.port)
            # What a signed answer says of the certificate is as good as having been told.
            fingerprint = fingerprint or (broker.fingerprint if broker.authentic else "")
        elif address:
            target = parse_address(address, self.port)
        else:
            raise UsageError("Which broker? Give --bpbroker HOST:PORT or --discover NAME, or set BPBROKER=HOST:PORT")
        insecure = bool(given.get("insecure"))
        if insecure:
            self.tell("Warning: the broker's certificate is not checked (--insecure)")
        client = Client(
            target,
            access_key=key,
            fingerprint="" if insecure else fingerprint,
            cacert=given.get("cacert", ""),
            insecure=insecure,
            timeout_secs=self.timeout(TIMEOUT_SECS),
            # Who says how long wants it tried for so long: a broker may be away for a restart, or for a reboot.
            retries=given.get("retry", _UNTIL_TIMEOUT if "timeout" in given else RETRIES),
            tell=self.tell,
        )
        return client, max(0.0, wait_secs - (time.monotonic() - began)) if name else wait_secs
