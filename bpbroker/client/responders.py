"""The brokers that answered a discovery: whether they are one broker or several. Pure: time is given."""

from __future__ import annotations

from typing import Final, NamedTuple

from bpbroker.errors import SeveralBrokers

SETTLE_SECS: Final = 0.3
"""How long to listen for a second broker after the first answer: longer than the pause before the question is
repeated."""
DISPUTE_SECS: Final = 0.8
"""The same if answers seem to come from different brokers: a further answer may show that it is one broker."""
_RESPONDERS_MAX: Final = 1000
_REJECTED_MAX: Final = 8


class Broker(NamedTuple):
    """A broker that answered."""

    address: str
    """The source of its answer; IPv6 link-local with its scope."""
    port: int
    registry: str = ""
    """The registry's id; empty in an answer of the plain form. Only true if the answer is signed."""
    fingerprint: str = ""
    """SHA-256 of its certificate, as the answer claims, 64 hexadecimal digits; may be empty."""
    authentic: bool = False
    """Whether the answer was signed with the discovery secret, so that all of it is true."""


class Responders:
    """Collects answers.

    Args:
        first: one answer is enough.
        everybody: collect answers until the time is over.
        expected: whether all answers claim certificates that the client expects, and so mean the same registry. TLS
            shows which claim is true.
    """

    def __init__(self, *, first: bool = False, everybody: bool = False, expected: bool = False) -> None:
        self.own_addresses: set[str] = set()
        """This host's addresses: answers from several of them come from the same broker."""
        self.enough_at = float("inf")
        """Monotonic time at which to stop listening."""
        self._first = first
        self._everybody = everybody
        self._expected = expected
        self._began = 0.0
        self._by_address: dict[str, Broker] = {}
        self._rejected: dict[str, str] = {}

    def heard(self, broker: Broker, now: float) -> None:
        """Add an answer that came at monotonic time ``now``."""
        before = self._by_address.get(broker.address)
        if before is None and len(self._by_address) >= _RESPONDERS_MAX:
            return
        # A signed answer has more than a plain one from the same address.
        if before is None or not before.registry:
            self._by_address[broker.address] = broker
        self._began = self._began or now
        if self._first:
            self.enough_at = now
        elif not self._everybody:
            self.enough_at = self._began + (SETTLE_SECS if len(self._groups()) == 1 else DISPUTE_SECS)

    def reject(self, address: str, why: str, *, guess: bool = False) -> None:
        """Note an answer that must not be used.

        Args:
            address: where it came from.
            why: such as ``its certificate is not the expected one``.
            guess: whether any other reason is preferred.
        """
        if address in self._rejected:
            if not guess:
                self._rejected[address] = why
        elif len(self._rejected) < _REJECTED_MAX:
            self._rejected[address] = why

    def rejections(self) -> str:
        """Return the addresses of unusable answers, each with the reason, for a message."""
        return "; ".join(f"{address} answered, but {why}" for address, why in self._rejected.items())

    def any(self) -> bool:
        """Whether there was an answer."""
        return bool(self._by_address)

    def everybody(self) -> list[Broker]:
        """Return all brokers that answered, in the order of their first answers.

        Loopback and link-local addresses are left out where the same broker
        answered from a better one.
        """
        answers = list(self._by_address.values())
        known = {(item.registry, item.fingerprint) for item in answers if _rank(item) < _LOOPBACK_RANK}
        return [
            item
            for item in answers
            if _rank(item) < _LOOPBACK_RANK or not item.registry or (item.registry, item.fingerprint) not in known
        ]

    def the_one(self, name: str) -> Broker:
        """Return the broker, by its most useful address.

        Raises:
            SeveralBrokers: there are several with different registries.
        """
        groups = list(self._groups().values())
        if len(groups) > 1 and not self._first:
            addresses = tuple(_best(group).address for group in groups)
            raise SeveralBrokers(
                f"Different brokers hold '{name}': {', '.join(addresses)}; use a name that only one of them has, "
                "or --all to see them, or --first to take any",
                addresses,
            )
        return _best(groups[0]) if not self._first else next(iter(self._by_address.values()))

    def candidates(self, name: str) -> list[Broker]:
        """Return the addresses of the one broker, or of all brokers of one registry; the most useful first.

        Raises:
            SeveralBrokers: brokers with different registries answered.
        """
        best = self.the_one(name)
        group = next(group for group in self._groups().values() if best in group)
        return [best, *(item for item in sorted(group, key=_rank) if item != best)]

    def _groups(self) -> dict[str, list[Broker]]:
        """Return the answers, grouped by broker, or by registry if they are signed.

        Only signed answers prove that two brokers share a registry: without a signature, another certificate is
        another broker.
        """
        local = [item for item in self._by_address.values() if self._is_own(item)]
        this_host = next((_speaks_for(item) for item in local if item.registry), "this host")
        groups: dict[str, list[Broker]] = {}
        for item in self._by_address.values():
            whose = _speaks_for(item) or (this_host if self._is_own(item) else item.address)
            groups.setdefault("expected" if self._expected else whose, []).append(item)
        return groups

    def _is_own(self, broker: Broker) -> bool:
        return broker.address.partition("%")[0] in self.own_addresses


def _speaks_for(broker: Broker) -> str:
    """Return the identity of a broker, or of its registry; empty for an answer of the plain form."""
    return broker.registry if broker.authentic else broker.fingerprint


def _best(group: list[Broker]) -> Broker:
    """Return the answer with the most useful address."""
    return min(group, key=_rank)


_LOOPBACK_RANK: Final = 2


def _rank(broker: Broker) -> int:
    """Return an address's rank, lower is more useful to other hosts: IPv4, IPv6, loopback, link-local."""
    if broker.address.startswith("127."):
        return _LOOPBACK_RANK
    if ":" not in broker.address:
        return 0
    return 3 if "%" in broker.address else 1
