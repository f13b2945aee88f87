"""One run of ``bpclient``: its options, and the broker that they lead to."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence

from bpbroker import DEFAULT_PORT, progress
from bpbroker.client.address import BrokerAddress, parse_address, parse_port
from bpbroker.client.api import RETRIES, TIMEOUT_SECS, Client
from bpbroker.client.cli.output import Output, of_entry, render
from bpbroker.client.cli.words import Secrets, seconds, secrets
from bpbroker.client.transport import CONNECT_SECS, Trust
from bpbroker.errors import NotShown, RequestError, UsageError
from bpbroker.registry import entry_values

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Any, Final

    from bpbroker.client.responders import Broker

_UNTIL_TIMEOUT: Final = 1_000_000_000


class Session:
    """One run of ``bpclient``: the options of all levels, and the client that they lead to.

    Args:
        given: option to value, only those that were given.
        environ: the environment; an option counts before its variable.
    """

    def __init__(self, given: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
        self._given = given
        self._environ = environ
        self.quiet = bool(given.get("quiet"))
        self.port = parse_port(str(given["port"])) if "port" in given else DEFAULT_PORT
        self._secrets: Secrets | None = None
        self._began = time.monotonic()

    @property
    def secrets(self) -> Secrets:
        """Key, fingerprints and so on; read once, because one of them may come from standard input."""
        if self._secrets is None:
            self._secrets = secrets(self._given, self._environ)
        return self._secrets

    @property
    def trust(self) -> Trust:
        """How the broker is recognised."""
        return Trust(self.secrets.fingerprints, self._given.get("cacert", ""), bool(self._given.get("insecure")))

    def render(self, result: Output) -> bytes:
        """Return a result in the chosen form."""
        form, cols = self._given.get("format", "text"), self._given.get("cols", ())
        if cols and form == "text" and result.text:
            self.tell("Warning: this result is text, of which --cols chooses nothing; add --format json or csv")
        return render(result, form, cols)

    def see_that_a_shell_can_hold(self, data: str) -> None:
        """Check, before data is sent, that the new entry can be shown in the chosen form.

        Raises:
            UsageError: it cannot be shown.
        """
        if self._given.get("format") not in ("shell", "powershell"):
            return  # these forms show each entry
        try:
            self.render(of_entry(entry_values.stamp(entry_values.parse(data, max_bytes=sys.maxsize), "", 0)))
        except NotShown as error:
            raise UsageError(f"{error}; nothing was sent") from None
        except RequestError:
            return  # the broker refuses it: the limits are the broker's

    def timeout(self, default: float) -> float:
        """Return ``--timeout`` in seconds, or the default."""
        found = seconds(self._given["timeout"]) if "timeout" in self._given else default
        if found <= 0:
            raise UsageError("--timeout must be more than 0")
        return found

    def left(self) -> float:
        """Return the rest of ``--timeout``, which covers the whole command; infinite without it."""
        if "timeout" not in self._given:
            return float("inf")
        return max(0.001, self._began + self.timeout(0.0) - time.monotonic())

    def tell(self, sentence: str) -> None:
        """Print a message for the person, unless ``--quiet``."""
        if not self.quiet and sys.stderr is not None:
            sys.stderr.write(f"{sentence}\n")

    def doubt_name(self, name: str) -> None:
        """Warn that a new name may lack its end: $HOSTNAME is a variable of bash, and empty in sh and cron."""
        if name.endswith("-"):
            self.tell(f"Warning: the name '{name}' ends in a dash; was $HOSTNAME empty? Use $(hostname)")

    def at_terminal(self) -> bool:
        """Whether a person reads the result."""
        return sys.stdout is not None and sys.stdout.isatty()

    def fenced_by(self, given: str | None = None) -> str | None:
        """Return the lock that a write names, as ``NAME:TOKEN``: ``--lock``, else that of a surrounding command."""
        return (self._environ.get("BPBROKER_LOCK", "") if given is None else given) or None

    def belongs_to(self) -> str | None:
        """Return the session of a surrounding ``bpclient session run``; None if there is none."""
        return self._environ.get("BPBROKER_SESSION") or None

    def waiting_for(self, what: str) -> progress.Work:
        """Show a wait while it goes on."""
        progress.show_on_terminal()
        return progress.Work(f"Waiting for {what}", quiet=self.quiet)

    def discover(self, name: str, wait_secs: float = 0.0, *, first: bool = False) -> Broker:
        """Find the broker that holds ``name``, asking for ``wait_secs`` if that is longer than the timeout.

        Raises:
            NotTrusted, CannotConnect: no broker that claims an expected certificate has it, or can be reached.
        """
        found = self._find(name, wait_secs, first=first)
        if found[0].authentic or not self.secrets.fingerprints:
            return found[0]
        # An answer can claim any fingerprint: only a connection proves it.
        with self._client([target_of(broker) for broker in found], self.trust, "") as client:
            client.connect(min(CONNECT_SECS, self.left()))
            return next(broker for broker in found if target_of(broker) == client.address)

    def discover_all(self, name: str) -> list[Broker]:
        """Find every broker that holds ``name``."""
        from bpbroker.client.discovery import TIMEOUT_SECS, Credentials, ask

        known = Credentials(self.secrets.discovery, self.secrets.fingerprints)
        with self.waiting_for(f"brokers that hold '{name}'"):
            return ask(
                name, known, port=self.port, timeout_secs=self.timeout(TIMEOUT_SECS),
                interface=self._given.get("interface", ""), first=False, everybody=True,
            ).everybody()  # fmt: skip

    def _find(self, name: str, wait_secs: float, *, first: bool = False) -> list[Broker]:
        """Return the addresses of the broker that holds ``name``, the most useful first."""
        # A call to a known broker does without loading this.
        from bpbroker.client.discovery import TIMEOUT_SECS, Credentials, ask

        known = Credentials(self.secrets.discovery, self.secrets.fingerprints)
        secs = min(max(self.timeout(TIMEOUT_SECS), wait_secs), self.left())
        with self.waiting_for(f"a broker that holds '{name}'"):
            return ask(
                name, known, port=self.port, timeout_secs=secs,
                interface=self._given.get("interface", ""), first=first, everybody=False,
            ).candidates(name)  # fmt: skip

    def client(self, wait_secs: float = 0.0, *, looks: bool = False) -> tuple[Client, float]:
        """Return a client of the broker that the options name or that is discovered, and what is left of ``wait_secs``.

        Args:
            wait_secs: how long to wait for the broker.
            looks: whether the client only connects: then a certificate that was never seen is not remembered.

        Raises:
            UsageError: the options name no broker.
            WaitTimeout, SeveralBrokers: as of a discovery.
        """
        began = time.monotonic()
        given = self._given
        name = given.get("discover")
        if name and given.get("bpbroker"):
            raise UsageError("--bpbroker and --discover both say which broker; give one of them")
        address = given.get("bpbroker") or (not name and self._environ.get("BPBROKER")) or ""
        trust = self.trust
        if name:
            found = self._find(name, wait_secs)
            if not (found[0].authentic or trust.fingerprints):
                found = found[:1]  # without any way to know the right one, take the first
            targets = [target_of(broker) for broker in found]
            if found[0].authentic and not trust.fingerprints:
                # The fingerprint in a signed answer counts like a given one.
                trust = Trust([broker.fingerprint for broker in found], trust.cacert, trust.insecure)
        elif address:
            targets = [parse_address(each, self.port) for each in address.split(",")]
        elif self.secrets.addresses:
            targets = [parse_address(text) for text in self.secrets.addresses]
        else:
            raise UsageError(
                "Which broker? Give --token TOKEN, --bpbroker HOST:PORT or --discover NAME, or set BPBROKER=HOST:PORT"
            )
        pins_nothing = looks and not (trust.fingerprints or trust.cacert)
        client = self._client(targets, Trust(insecure=True) if pins_nothing else trust, name or "")
        if trust.insecure:
            self.tell("Warning: the broker's certificate is not checked (--insecure)")
        return client, max(0.0, wait_secs - (time.monotonic() - began)) if name else wait_secs

    def _client(self, targets: Sequence[BrokerAddress], trust: Trust, discovered: str) -> Client:
        strict = self._is_strict()

        def first_contact(address: str, fingerprint: str) -> None:
            from bpbroker.client.cli.first_contact import FirstContact, question_on_terminal

            FirstContact(
                self.tell,
                key=bool(self.secrets.key),
                discovered=discovered,
                strict=strict,
                ask=None if self.quiet else question_on_terminal(),
            ).decide(address, fingerprint)

        return Client(
            targets,
            access_key=self.secrets.key,
            registry=self.secrets.registry,
            fingerprint=() if trust.insecure else trust.fingerprints,
            cacert=trust.cacert,
            insecure=trust.insecure,
            timeout_secs=self.timeout(TIMEOUT_SECS),
            # A given timeout is used for retries: a broker may be away for a restart, or for a reboot.
            retries=self._given.get("retry", _UNTIL_TIMEOUT if "timeout" in self._given else RETRIES),
            total_secs=self.left(),
            tell=self.tell,
            first_contact=first_contact,
        )

    def _is_strict(self) -> bool:
        """Whether a certificate that was never seen is refused."""
        word = self._environ.get("BPBROKER_TRUST", "")
        if word not in ("", "strict"):
            raise UsageError(f"BPBROKER_TRUST is {word[:40]!r}: it must be strict, or not set")
        strict = bool(self._given.get("strict")) or word == "strict"
        if strict and self._given.get("insecure"):
            raise UsageError("--insecure and strict trust exclude each other")
        return strict


def target_of(broker: Broker) -> BrokerAddress:
    """Return the address at which a broker that was discovered serves."""
    return parse_address(f"[{broker.address}]" if ":" in broker.address else broker.address, broker.port)
