"""A virtual machine: qemu in software, its monitor (QMP) and the agent inside it."""

from __future__ import annotations

import itertools
import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.machine.guest_agent import PORT_NAME
from tests.machine.image import Image

BOOT_SECS = 600.0
"""A boot takes 16 to 36 s in software; on a busy host several times as long."""
BROKER_PORT = 20443


class Done(NamedTuple):
    """How a command inside the machine ended."""

    code: int
    out: str
    err: str


class Lines:
    """A Unix socket on which both sides speak lines of JSON."""

    def __init__(self, path: Path, alive: Callable[[], None]) -> None:
        self._alive = alive
        self._unread = b""
        self._socket = socket.socket(socket.AF_UNIX)
        until = time.monotonic() + 30.0
        while True:
            alive()
            try:
                self._socket.connect(str(path))
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
            else:
                return

    def send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, until: float) -> dict[str, Any]:
        """Return the next message; what is no JSON, such as half a line from before a reset, is passed over."""
        while True:
            line, found, rest = self._unread.partition(b"\n")
            if found:
                self._unread = rest
                # A reset may leave half a line, to which the next boot's first line is then joined.
                with suppress(ValueError):
                    message: dict[str, Any] = json.loads(line[max(line.rfind(b'{"hello"'), 0) :])
                    return message
                continue
            self._socket.settimeout(1.0)
            try:
                read = self._socket.recv(65536)
            except TimeoutError:
                self._alive()
                if time.monotonic() > until:
                    raise TimeoutError("the machine did not answer") from None
                continue
            if not read:
                self._alive()
                raise ConnectionError("qemu closed the connection")
            self._unread += read

    def close(self) -> None:
        self._socket.close()


class Machine:
    """One machine with a disk of its own on top of a disk that stays as it is.

    Args:
        image: kernel and init system.
        folder: gets the machine's files; short, because Unix sockets' names are.
        backing: the disk under its own; the image's when not given.
        devices: more words for qemu.
        network: whether the network card that leads to the host is there at the boot.
        clock: the hardware clock at the first boot, as qemu's ``-rtc base=`` has it.
        accel: qemu's accelerator.
    """

    def __init__(
        self,
        image: Image,
        folder: Path,
        *,
        backing: Path | None = None,
        devices: Sequence[str | Path] = (),
        network: bool = True,
        clock: str = "utc",
        accel: str = "tcg",
    ) -> None:
        self.image = image
        self.name = f"{folder.name} ({image.init})"
        self.folder = folder
        self.disk = folder / "disk.qcow2"
        self.console = folder / "console.log"
        self._devices = devices
        self._network = network
        self._clock = clock
        self._accel = accel
        self._ids = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        under = backing or image.disk
        kind = "raw" if backing is None else "qcow2"
        words = ("qemu-img", "create", "-q", "-f", "qcow2", "-b", under.absolute(), "-F", kind, self.disk)
        subprocess.run(words, check=True, timeout=60)

    # --- power ---

    def switch_on(self) -> Machine:
        """Start it and wait until its agent says hello."""
        agent, monitor = self.folder / "agent", self.folder / "monitor"
        words: list[str | Path] = [
            "qemu-system-x86_64", "-accel", self._accel, "-cpu", "max", "-m", "512", "-nodefaults", "-display", "none",
            "-rtc", f"base={self._clock},clock=vm",
            "-kernel", self.image.kernel, "-initrd", self.image.initrd,
            "-append", "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 panic=1",
            "-serial", f"file:{self.console}",
            # A reset of the machine loses what the guest has in its memory; what it gave to the disk stays with qemu.
            "-drive", f"file={self.disk},format=qcow2,if=virtio,cache=unsafe",
            "-qmp", f"unix:{monitor},server=on,wait=off",
            "-chardev", f"socket,id=agent,path={agent},server=on,wait=off",
            "-device", "virtio-serial", "-device", f"virtserialport,chardev=agent,name={PORT_NAME}",
            # No way out but the forwarded port.
            "-netdev", f"user,id=host,restrict=on,hostfwd=tcp:127.0.0.1:0-:{BROKER_PORT}",
            *(("-device", "virtio-net-pci,netdev=host,id=eth0") if self._network else ()),
            *self._devices,
        ]  # fmt: skip
        with (self.folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._monitor = Lines(monitor, self._see_alive)
        self._monitor.receive(time.monotonic() + 30.0)  # its greeting
        self.monitor("qmp_capabilities")
        self._agent = Lines(agent, self._see_alive)
        self.await_boot()
        return self

    def await_boot(self) -> str:
        """Wait until the agent of a boot says hello; return the boot's id."""
        until = time.monotonic() + BOOT_SECS
        try:
            while True:
                message = self._agent.receive(until)
                if "hello" in message:
                    return str(message["hello"])
        except TimeoutError:
            raise AssertionError(f"{self.name} did not boot; its console:\n{self.said()}") from None

    def cut_power(self) -> None:
        """Reset it at once: all that is only in its memory is lost. :meth:`await_boot` waits until it is back."""
        self.monitor("system_reset")

    def reboot(self) -> None:
        """Reboot it in an orderly way, and wait until it is back."""
        self.run("(sleep 1; reboot) >/dev/null 2>&1 &")
        self.await_boot()

    def switch_off(self) -> None:
        """Shut it down in an orderly way."""
        self.run("(sleep 1; poweroff) >/dev/null 2>&1 &")
        assert self._process is not None
        try:
            self._process.wait(BOOT_SECS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not shut down; its console:\n{self.said()}") from None
        self.kill()

    def kill(self) -> None:
        """End qemu."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            for each in ("_monitor", "_agent"):
                if hasattr(self, each):
                    getattr(self, each).close()

    def _see_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"qemu ended: {(self.folder / 'qemu.log').read_text()}")

    def said(self) -> str:
        """Return the end of what it wrote to its console."""
        return self.console.read_text(errors="replace")[-4000:] if self.console.exists() else ""

    # --- what goes on inside ---

    def run(self, command: str, *, timeout_secs: float = 300.0) -> str:
        """Run a shell command inside that has to succeed; return its output."""
        done = self.try_to(command, timeout_secs=timeout_secs)
        assert done.code == 0, f"{self.name}: {command}\nended with {done.code}\n{done.out}\n{done.err}"
        return done.out

    def try_to(self, command: str, *, timeout_secs: float = 300.0) -> Done:
        """Run a shell command inside; 124 is the code of one that took too long."""
        number = next(self._ids)
        self._agent.send({"id": number, "command": command, "timeout_secs": timeout_secs})
        until = time.monotonic() + timeout_secs + 60.0
        while True:
            message = self._agent.receive(until)
            if message.get("id") == number:
                return Done(message["code"], message["out"], message["err"])

    def until(self, command: str, *, within_secs: float = 300.0) -> str:
        """Run a shell command until it succeeds; return its output then."""
        until = time.monotonic() + within_secs
        while True:
            done = self.try_to(command)
            if done.code == 0:
                return done.out
            assert time.monotonic() < until, (
                f"{self.name}: {command}\nstill ends with {done.code}\n{done.out}{done.err}"
            )
            time.sleep(0.5)

    # --- what goes on around it ---

    def monitor(self, command: str, **arguments: Any) -> Any:
        """Say a command to qemu; events in between are passed over."""
        self._monitor.send({"execute": command, "arguments": arguments})
        while True:
            answer = self._monitor.receive(time.monotonic() + 60.0)
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    def plug_in_network(self) -> None:
        """Plug in the network card that leads to the host."""
        self.monitor("device_add", driver="virtio-net-pci", netdev="host", id="eth0")

    @property
    def port(self) -> int:
        """The port on the host's loopback that leads to the broker's."""
        text = self.monitor("human-monitor-command", **{"command-line": "info usernet"})
        found = re.search(rf"127\.0\.0\.1 +(\d+) +\S+ +{BROKER_PORT}\b", text)
        assert found, text
        return int(found[1])
