"""An etcd cluster whose members, and the brokers that use it, are each on a host of their own.

One switch (10.92.1.0/24) with the hosts ``etcd1`` to ``etcd3`` and ``broker1`` to ``broker3``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.etcd_cluster import EtcdCluster, Place
from tests.support.network import Network
from tests.support.running import RunningBroker

_ETCD: Final = {f"etcd{number}": f"10.92.1.{10 + number}" for number in (1, 2, 3)}
_BROKERS: Final = {f"broker{number}": f"10.92.1.{20 + number}" for number in (1, 2, 3)}


class EtcdNetwork(NamedTuple):
    """The hosts, and the cluster on three of them."""

    network: Network
    etcd: EtcdCluster

    @classmethod
    def on(cls, network: Network, folder: Path) -> EtcdNetwork:
        """Return a cluster, not started, on the hosts that :func:`wire` made."""
        places = [Place(at, network.words(host), partial(network.inside, host)) for host, at in _ETCD.items()]
        return cls(network, EtcdCluster(folder, places=places))

    def place(self, broker: RunningBroker, host: str) -> RunningBroker:
        """Let a broker run on a host; it is then spoken to from that very host."""
        broker.prefix = self.network.words(host)
        broker.inside = partial(self.network.inside, host)
        return broker

    def heal(self) -> None:
        """Put all cables back."""
        for host in (*_ETCD, *_BROKERS):
            self.network.heal(host)


def wire(network: Network) -> None:
    """Make the hosts; raises CalledProcessError where that cannot be."""
    network.switch("switch")
    for host, address in {**_ETCD, **_BROKERS}.items():
        network.host(host)
        network.cable(host, "eth0", "switch", f"{address}/24")
