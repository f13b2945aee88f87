"""``Client``: everything that a broker offers, as methods.

Each method takes what it needs, waits no longer than it is told, and raises the
errors of :mod:`bpbroker.errors`: ``NotFound``, ``AlreadyExists``,
``PreconditionFailed``, ``Unauthorized``, ``BadRequest``, ``TooLarge``,
``TooManyRequests``, ``Unavailable`` and ``TimedOut`` for what the broker says;
``CannotConnect``, ``NotTrusted`` and ``GaveUp`` for what happens before or
without an answer.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from bpbroker.client.address import parse_address
from bpbroker.client.transport import Cut, Reply, Transport, Trust
from bpbroker.errors import (
    BadRequest,
    CannotConnect,
    GaveUp,
    NotFound,
    NotTrusted,
    RequestError,
    Unavailable,
    from_status,
)

Data = Mapping[str, Any] | str

WAIT_AT_ONCE_SECS = 300.0
"""A longer wait is made of several requests, so that a lost connection is noticed."""
_SLACK_SECS = 15.0
_FIRST_PAUSE_SECS = 0.1
_LONGEST_PAUSE_SECS = 3.0


class Entry(dict[str, Any]):
    """A registry entry as the broker gave it, with its entity tag."""

    def __init__(self, content: Mapping[str, Any], etag: str = "") -> None:
        super().__init__(content)
        self.etag = etag
        """For ``if_match`` and ``changed_from``; empty for entries of a list."""


class Client:
    """One broker.

    Args:
        address: ``host:port``; the port is 20443 if not given.
        access_key: of the namespaces that will be used.
        timeout_secs: for one call, connecting and retries included.
        fingerprint: SHA-256 of the broker's certificate.
        cacert: file of certificate authorities, if the certificate comes from one.
        insecure: trust any certificate. Without these three the certificate of the first contact is remembered.
        known_brokers: where it is remembered, if not in the user's own file.
        retry: try again when the broker cannot be reached or is overloaded, where that is safe.
        said: called with what a person may want to know.
    """

    def __init__(
        self,
        address: str,
        access_key: str | None = None,
        *,
        timeout_secs: float = 30.0,
        fingerprint: str | None = None,
        cacert: str | None = None,
        insecure: bool = False,
        known_brokers: str | None = None,
        retry: bool = True,
        said: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.address = parse_address(address)
        self._access_key = access_key
        self._timeout_secs = timeout_secs
        self._retry = retry
        self._transport = Transport(self.address, Trust(fingerprint, cacert, insecure, known_brokers), said)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    # --- operations ---

    def ping(self, data: Data = "") -> dict[str, Any]:
        """Have ``data`` echoed; gives an object with ``src``, this client's address, and ``data``."""
        return self.call("ping/Ping", {"data": data}, safe=True).json()

    def register(self, name: str, data: Data) -> Entry:
        """Create an entry. Raises AlreadyExists if the name is taken."""
        return _entry(self.call("services/Register", {"name": name, "data": data}))

    def replace(self, name: str, data: Data, *, if_match: str | None = None) -> Entry:
        """Create or overwrite an entry; with ``if_match`` only if its tag is that one."""
        reply = self.call("services/Replace", {"name": name, "data": data}, _if_match(if_match), safe=if_match is None)
        return _entry(reply)

    def update(self, name: str, data: Data, *, if_match: str | None = None) -> Entry:
        """Merge into an entry at every depth, creating it if absent."""
        reply = self.call("services/Update", {"name": name, "data": data}, _if_match(if_match), safe=if_match is None)
        return _entry(reply)

    def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Remove an entry, present or not."""
        self.call("services/Delete", {"name": name}, _if_match(if_match), safe=if_match is None)

    def get(self, name: str, *, wait_secs: float = 0.0, changed_from: str | None = None) -> Entry:
        """Give an entry.

        Args:
            name: its name.
            wait_secs: how long to wait until it exists, or differs.
            changed_from: wait until its tag is another one than this.

        Raises:
            NotFound: it does not exist, and no wait was asked for.
            GaveUp: it did not exist, or change, within ``wait_secs``.
        """
        return _entry(self.wait_for_entry(name, wait_secs, changed_from))

    def list(self, prefix: str = "", *, at_least: int = 0, wait_secs: float = 0.0) -> dict[str, Entry]:
        """Give all entries whose name begins with ``prefix``, sorted by name.

        Raises:
            GaveUp: there were not ``at_least`` so many within ``wait_secs``.
        """
        deadline = time.monotonic() + wait_secs
        while True:
            left = max(0.0, deadline - time.monotonic())
            parameters: dict[str, Any] = {"prefix": prefix}
            if at_least:
                parameters.update(count=at_least, wait=min(left, WAIT_AT_ONCE_SECS))
            content = self.call("services/List", parameters, safe=True, wait_secs=left).json().get("data", {})
            if len(content) >= at_least:
                return {name: Entry(value) for name, value in content.items()}
            if time.monotonic() >= deadline:
                raise GaveUp(f"There are {len(content)} of {at_least} entries whose name begins with '{prefix}'")

    def execute(self, method: str, data: str = "", *, idempotency_key: str | None = None) -> bytes:
        """Call an extension's method, such as ``ossec.AddAgent``; gives the answer's body as it came.

        With an ``idempotency_key`` of your choice a repeated call runs only once.
        """
        namespace, dot, function = method.rpartition(".")
        if not dot or not namespace or not function:
            raise BadRequest(f"'{method}' is no method: it must be module.Method, such as ossec.AddAgent")
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self.call(f"{namespace}/{function}", {"data": data}, headers, safe=bool(idempotency_key)).body

    # --- below the operations ---

    def wait_for_entry(self, name: str, wait_secs: float, changed_from: str | None) -> Reply:
        """Do :meth:`get`; gives the whole answer."""
        deadline = time.monotonic() + wait_secs
        headers = {"If-None-Match": changed_from} if changed_from else {}
        while True:
            left = max(0.0, deadline - time.monotonic())
            parameters: dict[str, Any] = {"name": name}
            if wait_secs:
                parameters["wait"] = min(left, WAIT_AT_ONCE_SECS)
            over = "changed" if changed_from else "appeared"
            try:
                reply = self.call("services/Get", parameters, headers, safe=True, wait_secs=left)
            except NotFound:
                if not wait_secs:
                    raise
            else:
                if reply.status != 304:
                    return reply
                over = "changed"
            if time.monotonic() >= deadline:
                raise GaveUp(f"Entry '{name}' has not {over} within {wait_secs:g} s")

    def call(
        self,
        path: str,
        parameters: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        *,
        safe: bool = False,
        wait_secs: float = 0.0,
    ) -> Reply:
        """Send one request and give its answer if that is a success.

        Args:
            path: ``namespace/Method``.
            parameters: as a JSON object; the access key is added as a header.
            headers: further ones.
            safe: whether doing it twice does no harm.
            wait_secs: how long the broker may wait before it answers.

        Raises:
            RequestError: what the broker answered.
            ClientError: there was no answer.
        """
        body = json.dumps(parameters).encode()
        sent = dict(headers or {})
        if self._access_key:
            sent["Authorization"] = f"Bearer {self._access_key.encode().decode('latin-1')}"
        deadline = time.monotonic() + self._timeout_secs + wait_secs
        pause = _FIRST_PAUSE_SECS
        while True:
            try:
                reply = self._transport.exchange(f"/{path}/", sent, body, deadline + _SLACK_SECS * bool(wait_secs))
                if reply.status in (200, 304):
                    return reply
                error: RequestError | CannotConnect = _refusal(reply)
                again = isinstance(error, Unavailable) and (safe or "retry-after" in reply.headers)
            except (NotTrusted, GaveUp):
                raise
            except CannotConnect as met:
                error = met
                again = safe or not isinstance(met, Cut)
            if not again or not self._retry or time.monotonic() + pause >= deadline:
                raise error
            # Jitter: a hundred machines that boot together must not come back together.
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause = min(pause * 2, _LONGEST_PAUSE_SECS)


def _if_match(tag: str | None) -> dict[str, str]:
    return {"If-Match": tag} if tag else {}


def _entry(reply: Reply) -> Entry:
    content = reply.json().get("data")
    return Entry(content if isinstance(content, dict) else {}, reply.headers.get("etag", ""))


def _refusal(reply: Reply) -> RequestError:
    """Give the error that an answer is; the message of its body, else of its status line."""
    try:
        content = json.loads(reply.body)
    except ValueError:
        content = None
    message = content.get("message") if isinstance(content, dict) else None
    return from_status(reply.status, str(message or reply.reason or f"The broker answered {reply.status}"))
