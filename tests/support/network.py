"""Hosts as network namespaces, cables as veth pairs, switches as bridges. Needs Linux, root and iproute2."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

needs_namespaces: Final = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need Linux, root and iproute2",
)

_CLONE_NEWNET: Final = 0x40000000


class Network:
    """The hosts, and what runs on them."""

    def __init__(self, tag: str = "bd") -> None:
        self.tag = f"{tag}{os.getpid() % 100000}"
        self._links = 0
        self._running: list[subprocess.Popen[str]] = []
        self._made: list[str] = []
        self._ports: dict[str, list[tuple[str, str]]] = defaultdict(list)

    # --- build ---

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20, text=True)

    def host(self, name: str) -> str:
        full = f"{self.tag}{name}"
        self.ip("netns", "add", full)
        self._made.append(full)
        self.ip("-n", full, "link", "set", "lo", "up")
        return full

    def switch(self, name: str) -> None:
        self.ip("-n", self.host(name), "link", "add", "br0", "type", "bridge")
        self.ip("-n", f"{self.tag}{name}", "link", "set", "br0", "up")

    def cable(self, host: str, interface: str, switch: str, address: str) -> None:
        self._links += 1
        port = f"p{self._links}"
        here, there = f"{self.tag}{host}", f"{self.tag}{switch}"
        self.ip("link", "add", interface, "netns", here, "type", "veth", "peer", "name", port, "netns", there)
        self._ports[host].append((there, port))
        self.ip("-n", there, "link", "set", port, "master", "br0", "up")
        # No "broadcast +": addresses are often added without, and must work all the same.
        self.ip("-n", here, "address", "add", address, "dev", interface)
        self.ip("-n", here, "link", "set", interface, "up")

    # --- break ---

    def cut(self, host: str) -> None:
        """Pull the host's cables at the switch: what it sends goes nowhere, and nothing tells it so."""
        for switch, port in self._ports[host]:
            self.ip("-n", switch, "link", "set", port, "down")

    def heal(self, host: str) -> None:
        """Put the host's cables back."""
        for switch, port in self._ports[host]:
            self.ip("-n", switch, "link", "set", port, "up")

    # --- run ---

    def words(self, host: str) -> tuple[str, ...]:
        """Return the words in front of a command that run it on a host."""
        return ("ip", "netns", "exec", f"{self.tag}{host}")

    @contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Be on a host with this thread alone; a socket that is made here stays there."""
        with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{self.tag}{host}").open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def run(self, process: subprocess.Popen[str]) -> None:
        """End this process, too, when it gets quiet."""
        self._running.append(process)

    def quiet(self) -> None:
        """End what runs on the hosts."""
        for process in self._running:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._running.clear()

    def close(self) -> None:
        self.quiet()
        for name in self._made:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=20)


@contextmanager
def wired(network: Network, wire: Callable[[Network], None]) -> Iterator[Network]:
    """Yield a network once ``wire`` has made its hosts and cables; skip the test where that is not allowed."""
    try:
        try:
            wire(network)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr}")
        yield network
    finally:
        network.close()


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
