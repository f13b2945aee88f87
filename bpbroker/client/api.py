"""``Client``: everything that a broker offers, as methods.

Errors are those of :mod:`bpbroker.errors`: a refusal by the broker is a ``RequestError`` (``NotFound``,
``AlreadyExists``, ``PreconditionFailed``, ``Unauthorized``, …), an error before or without a response a
``ClientError`` (``CannotConnect``, ``NotTrusted``, ``WaitTimeout``, …).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from bpbroker.client.address import BrokerAddress, parse_address
from bpbroker.client.answers import Registered, json_value
from bpbroker.client.calls import Calls
from bpbroker.client.pins import KnownBrokers
from bpbroker.client.transport import CONNECT_SECS, Deadline, Transport, Trust
from bpbroker.errors import AlreadyExists, CannotConnect, RequestError, UsageError
from bpbroker.recipes.coordination import Coordination, Data, Entry, as_text, owned
from bpbroker.registry import entry_values

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:  # novm
    from typing import Any, Final, Self

    from bpbroker.recipes.lock import Lock
    from bpbroker.recipes.session import Session

TIMEOUT_SECS: Final = 60.0
RETRIES: Final = 4
CONSISTENCIES: Final = ("strong", "local")


class Result:
    """The response of an extension's method."""

    __slots__ = ("body", "content_type")

    def __init__(self, body: bytes, content_type: str) -> None:
        self.body = body
        self.content_type = content_type

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the body's JSON value.

        Raises:
            ValueError: the body is not JSON.
        """
        return json.loads(self.body)


class Client(Coordination):
    """A client of a broker, or of several with one registry. It keeps one connection, made when needed.

    A client may be used again after any error. It is not for several threads at once: give each its own.

    Args:
        address: ``host``, ``host:port``, ``[ipv6]:port``; the port is 20443 if absent. Or several of these, of brokers
            that share a registry; the first is preferred. :attr:`address` is the one in use.
        access_key: sent with every request.
        token: a join token of the broker: the fingerprints of certificates and a key in one.
        fingerprint: SHA-256 of the broker's certificate, or several of which it must have one.
        cacert: PEM file of the authorities that may have signed it.
        insecure: accept any certificate. Without any of these four the certificate of the first contact is pinned.
        timeout_secs: for one call and its retries; ``wait_secs`` comes on top.
        retries: how often a call that is safe to repeat is tried again; with 0 a wait also ends at the first error.
        total_secs: for all calls together, from now on, waits included.
        known_brokers: the file of pins; by default the user's own.
        tell: called with sentences for a person, such as that a certificate was pinned.
        registry: the id of the registry that the key is for, as in a join token. A broker of another registry then says
            so when it refuses the key.
        first_contact: called with address and fingerprint before a certificate is pinned; raises NotTrusted to refuse
        it.

    Raises:
        UsageError: one of the arguments cannot be used.
    """

    def __init__(
        self,
        address: str | BrokerAddress | Sequence[str | BrokerAddress],
        *,
        access_key: str = "",
        token: str = "",
        fingerprint: str | Sequence[str] = "",
        cacert: str | os.PathLike[str] = "",
        insecure: bool = False,
        timeout_secs: float = TIMEOUT_SECS,
        retries: int = RETRIES,
        total_secs: float = float("inf"),
        known_brokers: str | os.PathLike[str] | None = None,
        tell: Callable[[str], None] = lambda _: None,
        registry: str = "",
        first_contact: Callable[[str, str], None] = lambda _address, _fingerprint: None,
    ) -> None:
        several = [address] if isinstance(address, (str, BrokerAddress)) else address
        first, *others = [each if isinstance(each, BrokerAddress) else parse_address(each) for each in several]
        fingerprints = (fingerprint,) if isinstance(fingerprint, str) else fingerprint
        if token:
            from bpbroker.discovery.jointoken import parse_token

            joined = parse_token(token)
            if not access_key:
                access_key, registry = joined.key, joined.registry
            fingerprints = fingerprints if any(fingerprints) else joined.fingerprints
        if not access_key.isprintable():
            raise UsageError("The access key has control characters or invalid UTF-8 in it, so it cannot be sent")
        headers = {"Authorization": f"Bearer {access_key}".encode()} if access_key else {}
        if registry and access_key:
            headers["X-Registry"] = registry.encode()
        if any(fingerprints):
            from bpbroker.discovery.jointoken import canonical_fingerprint

            fingerprints = [canonical_fingerprint(each) for each in fingerprints]
        else:
            fingerprints = ()
        trust = Trust(fingerprints, os.fspath(cacert), insecure)
        transport = Transport(first, trust, KnownBrokers(known_brokers, tell, first_contact), others, tell)
        self._calls = Calls(transport, headers, timeout_secs, retries, total_secs)

    def sibling(self, timeout_secs: float | None = None) -> Self:
        """Return another client of the same broker, on a connection of its own: for another thread."""
        other = object.__new__(type(self))
        other._calls = self._calls.sibling(timeout_secs)
        return other

    @property
    def calls(self) -> Calls:
        """Sends the calls, for :mod:`bpbroker.recipes`."""
        return self._calls

    @property
    def address(self) -> BrokerAddress:
        """The broker's address; of several, the one that is used."""
        return self._calls.transport.address

    def connect(self, timeout_secs: float = CONNECT_SECS) -> None:
        """Connect and check that the broker is the expected one; nothing is sent.

        Raises:
            CannotConnect, NotTrusted, WaitTimeout: no such broker is reached.
        """
        self._calls.transport.connect(Deadline(timeout_secs, str(self.address)))

    def close(self) -> None:
        """Close the connection, if there is one."""
        self._calls.transport.close()

    @property
    def response(self) -> Mapping[str, Any]:
        """The registry's last response, unchanged: ``success``, ``message``, ``data``, perhaps more."""
        return self._calls.last.response if self._calls.last else {}

    # --- registry ---

    def register(
        self,
        name: str,
        data: Data,
        *,
        idempotent: bool = False,
        session: Session | str | None = None,
        lock: Lock | str | None = None,
    ) -> Entry:
        """Create an entry.

        Args:
            name: at most 256 bytes; not beginning with ``_``.
            data: see :data:`Data`.
            idempotent: an entry with the same data, written by this host, counts as success.
            session: to which it belongs: it goes when that ends. Or the session's id.
            lock: the write is refused when this lock is no longer held. Or ``NAME:TOKEN``.

        Raises:
            AlreadyExists: the name is taken.
        """
        sent = {"name": name, "data": _text(data), **owned(session, lock)}
        try:
            return _entry(self._calls.registry("Register", sent, repeatable=idempotent))
        except AlreadyExists:
            if idempotent:
                there = self.get(name)
                if there.own == entry_values.parse(sent["data"], max_bytes=sys.maxsize) and self._is_mine(there):
                    return there
            raise

    def replace(
        self,
        name: str,
        data: Data,
        *,
        if_match: str = "",
        session: Session | str | None = None,
        lock: Lock | str | None = None,
    ) -> Entry:
        """Create or overwrite an entry; with ``if_match`` only if its tag is that one.

        Args:
            name: the entry's name.
            data: see :data:`Data`.
            if_match: a tag.
            session: as of :meth:`register`; empty: the entry is to belong to none.
            lock: as of :meth:`register`.

        Raises:
            PreconditionFailed: its tag is another, or the lock is not held.
        """
        sent = {"name": name, "data": _text(data), **owned(session, lock)}
        return _entry(self._write("Replace", sent, if_match))

    def update(
        self,
        name: str,
        data: Data | None = None,
        *,
        unset: Sequence[str] = (),
        if_match: str = "",
        session: Session | str | None = None,
        lock: Lock | str | None = None,
    ) -> Entry:
        """Merge into an entry at every depth, creating it if absent; other arguments as of :meth:`replace`.

        Args:
            name: the entry's name.
            data: see :data:`Data`; may be left out with ``unset``.
            unset: keys to remove first, or paths such as ``a.b``; a missing one is no error.
            if_match: a tag.
            session: as of :meth:`replace`.
            lock: as of :meth:`register`.

        Raises:
            NotFound: with ``unset`` alone, there is no such entry.
            PreconditionFailed: its tag is another, or the lock is not held.
        """
        sent: dict[str, Any] = {"name": name, **owned(session, lock)}
        if data is not None or not unset:
            sent["data"] = _text("" if data is None else data)
        if unset:
            sent["unset"] = list(unset)
        return _entry(self._write("Update", sent, if_match))

    def delete(self, name: str, *, if_match: str = "", lock: Lock | str | None = None) -> None:
        """Remove an entry, present or not; ``if_match`` as of :meth:`replace`."""
        self._write("Delete", {"name": name, **owned(None, lock)}, if_match)

    def get(self, name: str, *, wait_secs: float = 0.0, changed_from: str = "", consistency: str = "strong") -> Entry:
        """Read an entry.

        Args:
            name: the entry's name.
            wait_secs: how long to wait until it exists, also for a broker that is not there yet.
            changed_from: a tag; wait until the entry has another tag.
            consistency: ``local``: take the broker's own copy, also while a shared registry cannot be asked;
                ``response["age_secs"]`` says how old it may be. Not together with ``wait_secs``.

        Raises:
            NotFound: it does not exist, and ``wait_secs`` is 0 or a change of it was waited for.
            WaitTimeout: it did not exist, or not change, within ``wait_secs``.
        """
        headers = {"If-None-Match": _quoted(changed_from)} if changed_from else {}
        tag = headers.get("If-None-Match", b"").decode()

        def found(answer: Registered) -> Entry | None:
            return _entry(answer) if answer.modified and answer.etag != (tag or None) else None

        sent = {"name": name, **_consistency(consistency, wait_secs)}
        verb = "change" if changed_from else "appear"
        failure = f"Entry '{name}' did not {verb}"
        return self._calls.poll("Get", sent, headers, wait_secs, found, failure, absent_ends=bool(changed_from))

    def list(
        self,
        prefix: str = "",
        *,
        at_least: int = 0,
        wait_secs: float = 0.0,
        consistency: str = "strong",
        where: Mapping[str, Any] | Sequence[str] | str = (),
    ) -> dict[str, Entry]:
        """Read all entries whose name begins with ``prefix``, sorted by name.

        Args:
            prefix: may be empty.
            at_least: how many there must be.
            wait_secs: how long to wait for them.
            consistency: as of :meth:`get`.
            where: only entries that meet all conditions: ``{"state": "ready"}`` or ``["state=ready"]``.

        Raises:
            WaitTimeout: there were fewer until the end.
        """
        sent: dict[str, Any] = {"prefix": prefix, **_consistency(consistency, wait_secs)}
        if where:
            from bpbroker.recipes.filters import texts

            sent["where"] = texts(where)
        if at_least:
            sent["count"] = at_least

        there: list[str] = []

        def found(answer: Registered) -> dict[str, Entry] | None:
            known = answer.response.get("revisions")
            revisions = known if isinstance(known, dict) else {}
            entries = {
                name: Entry(item, revision=revisions.get(name, 0))
                for name, item in answer.data.items()
                if isinstance(item, dict)
            }
            there[:] = entries
            return entries if len(entries) >= at_least else None

        def instead() -> str:
            return f"{len(there)} of {at_least}: {entry_values.shown_names(there)}" if there else f"none of {at_least}"

        failure = f"There were fewer than {at_least} entries '{prefix}…'"
        return self._calls.poll("List", sent, {}, wait_secs, found, failure, instead)

    def holder(self, name: str, *, wait_secs: float = 0.0, changed_from: int | None = None) -> dict[str, Any]:
        """Return the holders of a lock and the sessions that wait for it: ``holders``, ``waiting``, ``token``.

        Args:
            name: of the lock.
            wait_secs: how long to wait for a holder, or for a change.
            changed_from: a token; wait until the newest holder has another one.
        """
        sent: dict[str, Any] = {"name": name}
        if changed_from is not None:
            sent["changed_from"] = changed_from

        def found(answer: Registered) -> dict[str, Any] | None:
            data = {"holders": [], "waiting": [], "token": None, **answer.data}
            there = data["token"] != changed_from if changed_from is not None else bool(data["holders"])
            return data if there or not wait_secs else None

        return self._calls.poll("Holder", sent, {}, wait_secs, found, f"The lock '{name}' had no other holder")

    # --- ping and extensions ---

    def ping(self, data: Data = "") -> dict[str, Any]:
        """Let the broker echo ``data``; return ``{"src": <this host's address for the broker>, "data": {…}}``.

        Raises:
            CannotConnect: the response is not a broker's.
        """
        value = json_value(self._calls.send("ping/Ping", {"data": _text(data)}, repeatable=True))
        if not isinstance(value, dict) or not isinstance(value.get("data"), dict):
            raise CannotConnect(f"{self.address} is not a bpbroker: its answer to a ping is not one of ours")
        return value

    def execute(self, method: str, data: Data | None = None, **parameters: str) -> Result:
        """Call an extension.

        A call without a response is tried again with the same ``Idempotency-Key``: the broker runs it once.

        Args:
            method: namespace and function with a dot, such as ``ossec.AddAgent``.
            data: the parameter ``data``.
            parameters: further ones.

        Raises:
            ExtensionFailed, Unauthorized, TimedOut, …: the broker's refusal.
            UsageError: the method has another form, or the data is not valid UTF-8.
        """
        namespace, dot, function = method.rpartition(".")
        if not dot or not namespace or not all(part.isidentifier() and part.isascii() for part in method.split(".")):
            raise UsageError(f"The method {method[:80]!r} must be namespace.Function, such as ossec.AddAgent")
        sent: dict[str, Any] = dict(parameters)
        if data is not None:
            sent["data"] = _text(data)
        headers = {"Idempotency-Key": os.urandom(16).hex().encode()} if self._calls.retries else {}
        answer = self._calls.send(f"{namespace}/{function}", sent, headers, repeatable=bool(headers))
        return Result(answer.body, answer.headers.get("content-type", ""))

    def whoami(self) -> dict[str, Any]:
        """Return what the access key may do.

        Members: ``name`` (of the key; empty if it has none), ``allow`` (its rules), ``address`` (the client's own);
        of a named key also ``until`` (ISO 8601, None without an end), ``uses``, ``used`` and ``from``.

        Raises:
            Unauthorized: the key is wrong, ended, used up or not for this address.
        """
        answer = self._calls.send("whoami", {}, repeatable=True)
        found: dict[str, Any] = json.loads(answer.body)["data"]
        return found

    # --- how ---

    def _is_mine(self, there: Entry) -> bool:
        """Whether this host wrote the entry; the broker may see this host under another address (NAT)."""
        from bpbroker.discovery.interfaces import interfaces, is_loopback

        writer, own_ip = there.get("last_write_ip"), self._calls.transport.own_ip
        if writer == own_ip or (is_loopback(own_ip) and any(writer == each.address for each in interfaces())):
            return True
        try:
            return bool(writer == self.ping().get("src"))
        except RequestError:  # ping may need another key
            return False

    def _write(self, method: str, sent: Mapping[str, Any], if_match: str) -> Registered:
        headers = {"If-Match": _quoted(if_match)} if if_match else {}
        # With a condition, a second try would fail because the first one succeeded.
        return self._calls.registry(method, sent, headers, repeatable=not if_match)


def _text(data: Data) -> str:
    """Return data as the text that is sent.

    Raises:
        UsageError: it cannot be written as JSON.
    """
    try:
        return as_text(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"The data cannot be written as JSON: {error}") from None


def _consistency(wanted: str, wait_secs: float) -> dict[str, str]:
    """Return the parameters for a read; none for the default.

    Raises:
        UsageError: the word is unknown, or comes together with a wait.
    """
    if wanted not in CONSISTENCIES:
        raise UsageError(f"The consistency {wanted[:80]!r} must be strong or local")
    if wanted == "local" and wait_secs:
        raise UsageError("A local read does not wait: give either wait_secs or the consistency local")
    return {} if wanted == "strong" else {"consistency": wanted}


def _entry(answer: Registered) -> Entry:
    return Entry(answer.data, answer.etag, answer.revision)


def _quoted(tag: str) -> bytes:
    """Return an entity tag in a header's form; ``tag`` may lack its quotes.

    Raises:
        UsageError: the text is no entity tag.
    """
    bare = tag.strip().removeprefix('"').removesuffix('"')
    if not bare or not bare.isascii() or not bare.isprintable() or '"' in bare:
        raise UsageError(f"{tag[:80]!r} is no entity tag; `bpclient service get --etag` prints one")
    return b"*" if bare == "*" else f'"{bare}"'.encode()
