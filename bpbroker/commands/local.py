"""Asking the broker that runs on a configuration file: its note in the lock file, its answers under ``/_control``.

Only users that may read the lock file have the control token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from bpbroker import progress
from bpbroker.client.address import BrokerAddress
from bpbroker.client.pins import KnownBrokers
from bpbroker.client.transport import Deadline, Transport, Trust
from bpbroker.commands.scope import Scope
from bpbroker.discovery.jointoken import canonical_fingerprint
from bpbroker.errors import BpbrokerError, CannotConnect, ConfigurationError, StartError, from_status
from bpbroker.storage import control_socket
from bpbroker.storage.lock_file import holder

TIMEOUT_SECS = 60.0
_LOOK_SECS = 5.0
BULK_SECS = 3600.0
"""For what reads or writes a whole file: that takes as long as it takes on this disk."""


@dataclass(frozen=True, slots=True)
class LocalBroker:
    """The broker that runs on a configuration file."""

    note: Mapping[str, Any]
    """The note that it wrote into the lock file."""
    own: Path
    """The configuration file."""

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            StartError: it has only just begun to start.
        """
        pid = self.note.get("pid")
        if not isinstance(pid, int):
            raise StartError("The broker has only just begun to start; try again in a moment")
        return pid

    def fetch(self, path: str) -> bytes:
        """Return the broker's response under a path that needs no key.

        Raises:
            CannotConnect, WaitTimeout: it does not answer.
            RequestError: it has no such thing.
        """
        transport = self._transport()
        try:
            answer = transport.exchange(
                "GET", path, {}, None, Deadline(TIMEOUT_SECS, f"The broker (process {self.pid})")
            )
        finally:
            transport.close()
        if answer.status != HTTPStatus.OK:
            raise from_status(answer.status, f"This broker does not serve {path}")
        return bytes(answer.body)

    def _transport(self) -> Transport:
        """Return a transport to it: by its Unix socket, which needs no network, else by TCP."""
        return Transport(
            BrokerAddress(self.note["address"], self.note["port"]),
            Trust([canonical_fingerprint(self.note["fingerprint"])]),
            KnownBrokers(),
            dial=partial(control_socket.connect, self.own),
        )

    def ask(self, method: str, document: Mapping[str, Any] | None = None, timeout_secs: float = TIMEOUT_SECS) -> Any:
        """Send a control request and return ``data`` of the response.

        Raises:
            CannotConnect, WaitTimeout: it does not answer.
            RequestError: it refuses.
            ConfigurationError: what it was to take up cannot be used.
        """
        look = self._at_work if timeout_secs >= BULK_SECS else None
        with progress.Work(f"Waiting for the broker (process {self.pid})", look=look):
            return self._ask(method, document or {}, timeout_secs)

    def _at_work(self) -> str:
        """Return what its parts are at, such as ``making a backup, 40 %``; empty if that is not known."""
        try:
            report = self._ask("Status", {}, _LOOK_SECS)
        except BpbrokerError:
            return ""
        return ", ".join(part["figures"]["at_work"] for part in report["parts"] if "at_work" in part["figures"])

    def _ask(self, method: str, document: Mapping[str, Any], timeout_secs: float) -> Any:
        try:
            transport = self._transport()
            token = str(self.note["token"])
        except KeyError:
            raise CannotConnect(f"The broker (process {self.pid}) is not ready yet; try again in a moment") from None
        headers = {"Authorization": f"Bearer {token}".encode(), "Content-Type": b"application/json"}
        try:
            body = json.dumps(document).encode()
            answer = transport.exchange(
                "POST", f"/_control/{method}", headers, body, Deadline(timeout_secs, f"The broker (process {self.pid})")
            )
        finally:
            transport.close()
        try:
            content = json.loads(answer.body)
            message, data = str(content["message"]), content.get("data")
        except (ValueError, TypeError, KeyError):
            raise CannotConnect(f"The broker (process {self.pid}) answered something unexpected") from None
        if answer.status == HTTPStatus.UNPROCESSABLE_ENTITY:
            raise ConfigurationError(message)
        if answer.status != HTTPStatus.OK:
            raise from_status(answer.status, message)
        return data


def running(scope: Scope) -> LocalBroker | None:
    """Return the broker that runs on the command's configuration file, or None."""
    note = holder(scope.own)
    return None if note is None else LocalBroker(note, scope.own)


def must_run(scope: Scope) -> LocalBroker:
    """Return the broker that runs on the command's configuration file.

    Raises:
        StartError: none does.
    """
    found = running(scope)
    if found is None:
        raise StartError(f"No broker runs on {scope.own}; to start one: {scope.command_line('start')}")
    return found
