"""The registry on an etcd cluster, shared by several brokers.

Keys, each behind the configured prefix and a slash::

    registry          {"id": …, "format": 1}, made by the first broker
    entries/<name>    an entry as JSON; its version is etcd's mod_revision
    commits/<random>  a broker's last commit, see below

A commit is one transaction of etcd, hence one proposal to the quorum: inside
it every change is a nested transaction of its own, which happens if the entry
has the expected version and else gives what is there. Nobody can know whether
a request that was not answered was carried out, so the transaction also puts
the commit's number under the broker's own key, on condition that the commit
before is there: it can be sent again and again and happens once, and when it
turns out to have happened the history says what became of each change.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from bpbroker import entry
from bpbroker.errors import BadRequest, BpbrokerError, ConfigurationError, StorageFull, Unavailable
from bpbroker.stores import (
    ANYTHING,
    READ_MAX,
    Broken,
    Change,
    Committed,
    Conflict,
    News,
    Outcome,
    Seen,
    State,
)
from bpbroker.stores.gateway import Compacted, EtcdOptions, Gateway, decode, encode

logger = logging.getLogger(__name__)

FORMAT: Final = 1
NAME_MAX_BYTES: Final = 4096
"""Longest name that any broker may allow."""
_CHANGES_MAX: Final = 100
"""Changes in one transaction: etcd's own limit is 128 operations."""
_CHANGES_MAX_BYTES: Final = 1200 * 1024
_PAGE: Final = 1000
"""Entries in one answer of a scan."""
_RETRY_SECS: Final = 1.0
_LEFT_OVER_SECS: Final = 7 * 86400
"""A commit's number this old was left by a broker that crashed."""


class EtcdStore:
    """Implements :class:`bpbroker.stores.SharedStore`.

    Raises:
        ConfigurationError: the client library is missing, or a certificate's file.
    """

    shared: ClassVar[bool] = True

    def __init__(self, options: EtcdOptions) -> None:
        self._keys = Keys(options.prefix)
        self._writer, self._reader, self._scanner, self._watcher = (Gateway(options) for _ in range(4))
        self._commits = _Commits(self._keys, self._writer, options.timeout_secs)
        self._registry_id = ""
        self._closing = threading.Event()
        self._again = threading.Event()

    @property
    def registry_id(self) -> str:
        """See :class:`bpbroker.stores.SharedStore`."""
        return self._registry_id

    @property
    def sequence(self) -> int:
        """Not used: a file never holds what is in a shared store."""
        return 0

    @property
    def figures(self) -> Mapping[str, Any]:
        """Nothing beside what the registry knows itself: addresses of the cluster are not for everybody."""
        return {}

    def load(self) -> Mapping[str, bytes]:
        """See :meth:`bpbroker.stores.Store.load`."""
        return {seen.name: seen.value for seen in self.open().entries if seen.value is not None}

    def open(self) -> State:
        """See :meth:`bpbroker.stores.SharedStore.open`."""
        state = self._open(self._scanner)
        faults = [seen.fault for seen in state.entries if seen.fault]
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise ConfigurationError(f"{faults[0]}{more}; somebody else wrote it, and nothing was changed")
        return state

    def _open(self, gateway: Gateway) -> State:
        self._registry_id = self._identity(gateway)
        self._look_for_strangers(gateway)
        _clear_left_over(gateway, self._keys)
        return self._scan(gateway, "")

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """See :meth:`bpbroker.stores.Store.commit`; an outcome may be an error when others were committed."""
        outcomes: list[Outcome] = []
        for batch in _batches(changes):
            try:
                outcomes += self._commits.commit(batch)
            except BpbrokerError as error:
                failure = _as_unavailable(error)
                if not outcomes:
                    raise failure from None
                return [*outcomes, *[failure] * (len(changes) - len(outcomes))]
        return outcomes

    def read(self, names: Sequence[str]) -> Sequence[Seen]:
        """See :meth:`bpbroker.stores.SharedStore.read`."""
        ranges = [{"request_range": {"key": self._keys.entry(name)}} for name in names[:READ_MAX]]
        try:
            answer = self._reader.call("/kv/txn", {"success": ranges})
        except ConfigurationError as error:
            raise _as_unavailable(error) from None
        as_of = _revision(answer)
        found = (part.get("response_range", {}).get("kvs", ()) for part in answer["responses"])
        return [_seen(name, kvs[0] if kvs else None, as_of) for name, kvs in zip(names, found, strict=True)]

    def scan(self, prefix: str = "") -> State:
        """See :meth:`bpbroker.stores.SharedStore.scan`."""
        try:
            return self._scan(self._scanner, prefix)
        except ConfigurationError as error:
            raise _as_unavailable(error) from None

    def check(self) -> None:
        """See :meth:`bpbroker.stores.SharedStore.check`."""
        try:
            self._reader.call("/kv/range", {"key": self._keys.registry, "count_only": True})
        except ConfigurationError as error:
            raise _as_unavailable(error) from None

    def probe(self) -> None:
        """See :meth:`bpbroker.stores.Store.probe`."""
        try:
            answer = self._scanner.call("/maintenance/alarm", {"action": "GET", "alarm": "NOSPACE"})
        except ConfigurationError as error:
            raise _as_unavailable(error) from None
        if answer.get("alarms"):
            raise StorageFull("The etcd cluster's space is used up")

    def forget(self, sequence: int) -> bool:  # noqa: ARG002 - there is no journal that could forget
        """See :meth:`bpbroker.stores.Store.forget`."""
        return False

    def close(self) -> None:
        """See :meth:`bpbroker.stores.Store.close`."""
        self._closing.set()
        self._again.set()
        self._watcher.close()
        self._commits.tidy_up()
        for gateway in (self._writer, self._reader, self._scanner):
            gateway.close()

    # --- following ---

    def hurry(self) -> None:
        """See :meth:`bpbroker.stores.SharedStore.hurry`."""
        self._again.set()

    def follow(self, after: int | None, take: Callable[[News], None]) -> None:
        """See :meth:`bpbroker.stores.SharedStore.follow`."""
        while not self._closing.is_set():
            self._again.clear()
            try:
                identity = self._identity(self._watcher)
                if after is None or identity != self._registry_id:
                    state = self._open(self._watcher)
                    after = state.version
                    take(state)
                for news, upto in self._watch(after):
                    after = upto
                    take(news)
                continue  # nothing has happened for a while: look whether the watch still works
            except Compacted:
                take(Broken("its history was compacted meanwhile; all entries are read again"))
                after = None
                continue
            except BpbrokerError as error:
                if not self._closing.is_set():
                    take(Broken(str(error)))
            except Exception:  # whatever the cluster answers, this thread must go on
                logger.exception("The watch on etcd failed in a way that it should not")
                take(Broken("the cluster answers something unexpected"))
            self._again.wait(_RETRY_SECS)

    def _watch(self, after: int) -> Iterator[tuple[tuple[Seen, ...], int]]:
        """Give changes as they come, with the version up to which nothing can be missing."""
        begin, end = self._keys.entries("")
        create = {"key": begin, "range_end": end, "start_revision": str(after + 1), "fragment": True}
        for message in self._watcher.stream("/watch", {"create_request": create}):
            if "error" in message:
                raise Unavailable("The registry's etcd cluster ended the watch")
            result = message["result"]
            if result.get("canceled"):
                if "compact_revision" in result:
                    raise Compacted("The registry's etcd cluster has forgotten these versions")
                logger.warning("etcd ended the watch: %s", result.get("cancel_reason", "no reason given"))
                raise Unavailable("The registry's etcd cluster ended the watch")
            events = tuple(self._event(event) for event in result.get("events", ()))
            if events and not result.get("fragment"):
                after = max(after, *(event.as_of for event in events))
            if events or result.get("created"):
                yield events, after

    def _event(self, event: Mapping[str, Any]) -> Seen:
        kv = event["kv"]
        name, version = self._keys.name(kv["key"]), int(kv["mod_revision"])
        return _seen(name, None if event.get("type") == "DELETE" else kv, version)

    # --- what is there ---

    def _identity(self, gateway: Gateway) -> str:
        """Give the registry's id; the first broker of all makes it."""
        new = {"id": secrets.token_hex(16), "format": FORMAT}
        key = self._keys.registry
        answer = gateway.call(
            "/kv/txn",
            {
                "compare": [{"key": key, "target": "VERSION", "result": "EQUAL", "version": 0}],
                "success": [{"request_put": {"key": key, "value": encode(json.dumps(new).encode())}}],
                "failure": [{"request_range": {"key": key}}],
            },
        )
        if answer.get("succeeded"):
            return str(new["id"])
        try:
            found = json.loads(decode(answer["responses"][0]["response_range"]["kvs"][0]["value"]))
            registry_id, version = str(found["id"]), int(found["format"])
        except (ValueError, TypeError, KeyError, IndexError):
            raise ConfigurationError(
                f"The prefix {self._keys.prefix} in etcd belongs to something else: its key registry is not bpbroker's"
            ) from None
        if version > FORMAT:
            raise ConfigurationError(f"The registry in etcd was made by a newer bpbroker (format {version})")
        return registry_id

    def _look_for_strangers(self, gateway: Gateway) -> None:
        """Raise ConfigurationError if there are keys behind the prefix that are not ours."""
        for begin, end in self._keys.gaps():
            answer = gateway.call("/kv/range", {"key": begin, "range_end": end, "limit": 1, "keys_only": True})
            for kv in answer.get("kvs", ()):
                if kv["key"] != self._keys.registry:
                    stranger = decode(kv["key"]).decode(errors="replace")
                    raise ConfigurationError(
                        f"The prefix {self._keys.prefix} in etcd is used by something else: it holds the key"
                        f" {stranger[:200]!r}. Nothing was changed; choose another _registry.prefix"
                    )

    def _scan(self, gateway: Gateway, prefix: str) -> State:
        begin, end = first, _ = self._keys.entries(prefix)
        found: list[Seen] = []
        revision = 0
        while True:
            page = {"key": begin, "range_end": end, "limit": _PAGE, "revision": str(revision)}
            try:
                answer = gateway.call("/kv/range", page)
            except Compacted:  # the version of the first page is gone: begin anew
                begin, revision, found = first, 0, []
                continue
            revision = revision or _revision(answer)
            kvs = answer.get("kvs", ())
            found += (_seen(self._keys.name(kv["key"]), kv, revision) for kv in kvs)
            if not answer.get("more"):
                return State(tuple(found), revision, self._registry_id)
            begin = encode(decode(kvs[-1]["key"]) + b"\0")


class Keys:
    """The keys of one registry, as the gateway takes them."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.rstrip("/")
        base = f"{self.prefix}/".encode()
        self._base = base
        self._entries = base + b"entries/"
        self._commits = base + b"commits/"
        self.registry = encode(base + b"registry")

    def entry(self, name: str) -> str:
        """Give the key of an entry."""
        return encode(self._entries + name.encode())

    def name(self, key: str) -> str:
        """Give the name of the entry with this key."""
        return decode(key)[len(self._entries) :].decode(errors="replace")

    def commit(self, broker: str) -> str:
        """Give the key of a broker's last commit."""
        return encode(self._commits + broker.encode())

    def entries(self, prefix: str) -> tuple[str, str]:
        """Give begin and end of the keys of all entries whose names begin with ``prefix``."""
        begin = self._entries + prefix.encode()
        return encode(begin), encode(_after(begin))

    def commits(self) -> tuple[str, str]:
        """Give begin and end of the keys of all brokers' last commits."""
        return encode(self._commits), encode(_after(self._commits))

    def gaps(self) -> Iterator[tuple[str, str]]:
        """Give begin and end of every range behind the prefix in which only ``registry`` may be."""
        registry = decode(self.registry)
        yield encode(self._base), encode(self._commits)
        yield encode(_after(self._commits)), encode(self._entries)
        yield encode(_after(self._entries)), encode(registry)
        yield encode(registry + b"\0"), encode(_after(self._base))


def _after(prefix: bytes) -> bytes:
    """Give the first key behind all that begin with ``prefix``; UTF-8 never has a byte 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


class _Commits:
    """Makes commits, each of them once, whatever happens on the way to the cluster."""

    def __init__(self, keys: Keys, gateway: Gateway, timeout_secs: float) -> None:
        self._keys = keys
        self._gateway = gateway
        self._timeout_secs = timeout_secs
        self._key = keys.commit(secrets.token_hex(16))
        self._number = 0
        self._version = 0
        """Of our key: the version of our last commit."""

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """Make some changes, as many as fit into one transaction.

        Raises:
            Unavailable: ``outcome_known`` says whether it may have happened.
            ConfigurationError: the cluster refuses us.
        """
        self._number += 1
        mark = f"{self._number} {int(time.time())}"
        deadline = time.monotonic() + self._timeout_secs
        while (remaining := deadline - time.monotonic()) > 0:
            answer = self._gateway.call("/kv/txn", self._transaction(changes, mark), remaining)
            if answer.get("succeeded"):
                self._version = _revision(answer)
                parts = [part["response_txn"] for part in answer["responses"][1:]]
                return [_outcome(change, part, self._version) for change, part in zip(changes, parts, strict=True)]
            kvs = answer["responses"][0].get("response_range", {}).get("kvs", ())
            self._version = int(kvs[0]["mod_revision"]) if kvs else 0
            if kvs and decode(kvs[0]["value"]).decode() == mark:
                return self._history(changes)
            # An earlier commit of ours, given up as uncertain, did happen after all; or somebody removed our key.
        raise Unavailable("Nothing was changed: the registry's etcd cluster is too slow")

    def _transaction(self, changes: Sequence[Change], mark: str) -> dict[str, Any]:
        key = self._key
        return {
            "compare": [{"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(self._version)}],
            "success": [
                {"request_put": {"key": key, "value": encode(mark.encode())}},
                *({"request_txn": self._nested(change)} for change in changes),
            ],
            "failure": [{"request_range": {"key": key}}],
        }

    def _nested(self, change: Change) -> dict[str, Any]:
        key = self._keys.entry(change.name)
        compare = []
        if change.expects is not ANYTHING:
            compare = [{"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(change.expects)}]
        if change.value is None:
            operation: dict[str, Any] = {"request_delete_range": {"key": key}}
        else:
            operation = {"request_put": {"key": key, "value": encode(change.value)}}
        return {"compare": compare, "success": [operation], "failure": [{"request_range": {"key": key}}]}

    def _history(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """Give what became of the changes of our last commit, whose answer was lost on the way."""
        after, before = (self._at(changes, self._version - back) for back in (0, 1))
        outcomes: list[Outcome] = []
        for change, now, then in zip(changes, after, before, strict=True):
            expected = change.expects in (ANYTHING, then.version)
            outcomes.append(Committed(self._version) if expected else Conflict(now))
        return outcomes

    def _at(self, changes: Sequence[Change], version: int) -> Sequence[Seen]:
        ranges = [
            {"request_range": {"key": self._keys.entry(change.name), "revision": str(version)}} for change in changes
        ]
        try:
            answer = self._gateway.call("/kv/txn", {"success": ranges}, self._timeout_secs)
        except Unavailable:
            error = Unavailable("Whether this was changed is not known: the registry's etcd cluster does not answer")
            error.outcome_known = False
            raise error from None
        found = (part.get("response_range", {}).get("kvs", ()) for part in answer["responses"])
        return [
            _seen(change.name, kvs[0] if kvs else None, version) for change, kvs in zip(changes, found, strict=True)
        ]

    def tidy_up(self) -> None:
        """Remove our key; left behind it does no harm."""
        if self._version:
            try:
                self._gateway.call("/kv/deleterange", {"key": self._key}, 0.5)
            except BpbrokerError:
                return


def read_all(settings: Mapping[str, Any]) -> dict[str, bytes]:
    """Give all entries in the cluster that the settings name, as they are at one version; changes nothing.

    Raises:
        ConfigurationError, Unavailable: the cluster cannot be used.
    """
    store = EtcdStore(EtcdOptions.of(settings))
    try:
        return {seen.name: seen.value for seen in store.scan().entries if seen.value is not None and not seen.fault}
    finally:
        store.close()


def _clear_left_over(gateway: Gateway, keys: Keys) -> None:
    """Remove the commits' numbers of brokers that crashed long ago."""
    begin, end = keys.commits()
    answer = gateway.call("/kv/range", {"key": begin, "range_end": end, "limit": _PAGE})
    for kv in answer.get("kvs", ()):
        made = decode(kv.get("value", "")).decode(errors="replace").partition(" ")[2]
        if made.isdigit() and int(made) < time.time() - _LEFT_OVER_SECS:
            same = {"key": kv["key"], "target": "MOD", "result": "EQUAL", "mod_revision": kv["mod_revision"]}
            gateway.call("/kv/txn", {"compare": [same], "success": [{"request_delete_range": {"key": kv["key"]}}]})


def _outcome(change: Change, part: Mapping[str, Any], version: int) -> Outcome:
    if part.get("succeeded"):
        return Committed(version)
    kvs = part["responses"][0].get("response_range", {}).get("kvs", ())
    return Conflict(_seen(change.name, kvs[0] if kvs else None, version))


def _seen(name: str, kv: Mapping[str, Any] | None, as_of: int) -> Seen:
    """Give what a key's value is as an entry."""
    if kv is None:
        return Seen(name, None, 0, as_of)
    version = int(kv["mod_revision"])
    value = decode(kv.get("value", ""))
    return Seen(name, value, version, as_of, _fault(name, value))


def _fault(name: str, value: bytes) -> str:
    try:
        entry.check_name(name, max_bytes=NAME_MAX_BYTES)
        found = json.loads(value)
    except (ValueError, RecursionError):
        return f"Entry '{name[:64]}' in etcd is no JSON"
    except BadRequest as error:
        return f"A key in etcd cannot be an entry's name: {error}"
    return "" if isinstance(found, dict) else f"Entry '{name[:64]}' in etcd is no JSON object"


def _revision(answer: Mapping[str, Any]) -> int:
    return int(answer["header"]["revision"])


def _batches(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
    """Part changes so that each part fits into one transaction."""
    batch: list[Change] = []
    size = 0
    for change in changes:
        more = len(change.value or b"") + 1024
        if batch and (len(batch) >= _CHANGES_MAX or size + more > _CHANGES_MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(change)
        size += more
    if batch:
        yield batch


def _as_unavailable(error: BpbrokerError) -> Unavailable:
    """Give what an error of a call means to a client: the cluster may let us in again."""
    if isinstance(error, Unavailable):
        if not error.outcome_known:
            told = Unavailable("Whether this was changed is not known: the registry's etcd cluster does not answer")
            told.outcome_known = False
            return told
        return error
    return Unavailable(str(error))
