"""The broker's actors by name: how each is made, and made again when it has died or is stuck."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pykka

from bpbroker import messages
from bpbroker.actors.base import ActorAddress, ask_patiently, launch
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.actors.registry_shared import SharedBackend
from bpbroker.config import layers
from bpbroker.errors import Unavailable
from bpbroker.registry.discovery_secret import DiscoverySecret
from bpbroker.registry.entry_values import number_of
from bpbroker.registry.memory import KeyView
from bpbroker.registry.requests import Expired
from bpbroker.registry.stored import unrevised
from bpbroker.storage import config_file
from bpbroker.storage.config_file import Origin
from bpbroker.storage.embedded.journal import journal_path
from bpbroker.storage.embedded.store import EmbeddedStore
from bpbroker.storage.sources import Loaded

logger = logging.getLogger("bpbroker")

Factory = Callable[[], pykka.ActorRef[Any]]


class Parts:
    """All actors of one broker.

    Args:
        broker: the main loop, which is at the address "broker".
    """

    def __init__(self, broker: messages.Address) -> None:
        self.addresses: dict[str, messages.Address] = {"broker": broker}
        self._factories: dict[str, Factory] = {}
        self._restarting = threading.RLock()
        self._closed = False

    def start(self, name: str, factory: Factory) -> ActorAddress:
        """Start an actor, see that it answers, and keep how to make another one."""
        address = ActorAddress(name, factory())
        self._factories[name] = factory
        ask_patiently(address, messages.Ping())
        self.addresses[name] = address
        return address

    def restart(self, name: str) -> pykka.ActorRef[Any]:
        """Replace a dead or stuck actor by a new one, and return that; one at a time.

        Raises:
            Unavailable: the broker is stopping.
            Exception: whatever stands in the way of its start.
        """
        with self._restarting:
            if self._closed:
                raise Unavailable("The broker is stopping")
            return self._restart(name)

    def _restart(self, name: str) -> pykka.ActorRef[Any]:
        address = self.addresses.get(name)
        if isinstance(address, ActorAddress):
            address.abandon()
        ref = self._factories[name]()
        if isinstance(address, ActorAddress):
            address.replace(ref)
        return ref

    def close(self, *needed: str) -> None:
        """Let no actor be replaced any more, and wait for the replacement that is under way.

        Args:
            needed: names of actors that a stop cannot do without: a dead one is replaced once more.
        """
        with self._restarting:
            self._closed = True
            for name in needed:
                address = self.addresses.get(name)
                if isinstance(address, ActorAddress) and not address.alive:
                    try:
                        self._restart(name)
                    except Exception:
                        logger.exception("The %s could not be started again", name)

    def stop(self, name: str, timeout_secs: float = 2.0) -> None:
        """Stop an actor, if there is one of that name."""
        address = self.addresses.get(name)
        if isinstance(address, ActorAddress) and not address.stop(timeout_secs):
            logger.warning("The %s did not stop in time", name)

    def remove(self, name: str) -> None:
        """Stop an actor and forget it."""
        address = self.addresses.pop(name)
        self._factories.pop(name)
        if isinstance(address, ActorAddress):
            address.stop(2.0)


def registry_factory(
    own: Path,
    settings_now: Callable[[], messages.Settings],
    loaded: Loaded,
    key_view: KeyView,
    secret: DiscoverySecret,
    erase: Callable[[tuple[str, ...]], None],
    expired: Callable[[Expired], object],
) -> Factory:
    """Return the factory of the registry actor: on the store that the configuration names when the broker starts.

    Args:
        own: the configuration file.
        settings_now: returns the settings in force; an actor that replaces a dead one uses the later ones.
        loaded: the content of the file a moment ago.
        key_view: follows the named access keys.
        secret: follows the discovery secret of a shared registry.
        erase: told the names of entries that were taken and are destroyed now.
        expired: told each session that ended by itself.
    """
    entries, origin = loaded.entries, loaded.origin or Origin("", 0)
    if layers.shares_registry(settings_now()):
        from bpbroker.storage.etcd.options import EtcdOptions
        from bpbroker.storage.etcd.store import EtcdStore

        unused = number_of(entries)
        if unused:
            logger.warning(
                "The %d entries in %s are not used: the registry is in etcd."
                " bpbroker migrate --to etcd --merge adds them there",
                unused,
                own,
            )
        options, remembered = EtcdOptions.of(settings_now()), own.with_name(f"{own.name}.etcd")
        return lambda: launch(
            Registry, SharedBackend(lambda: EtcdStore(options, remembered)), settings_now(), key_view, secret, expired
        )
    journal, first = journal_path(own), [entries]

    def base() -> Mapping[str, bytes]:
        # The file was read a moment ago; a registry that takes a dead one's place reads it again.
        if first:
            stored, intact = first.pop(), origin.intact
        else:
            _, stored, now = config_file.read_content(own)
            intact = now is None or now.intact
        # An entry that was edited is another one, whatever revision stands in it.
        return stored if intact else {name: unrevised(value) for name, value in stored.items()}

    def store() -> EmbeddedStore:
        return EmbeddedStore(journal, base, origin.registry, origin.commit)

    return lambda: launch(
        Registry, LocalBackend(store, origin.registry, erase), settings_now(), key_view, None, expired
    )
