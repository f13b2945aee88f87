"""The registry on an etcd cluster, shared by several brokers.

What is under which key is in :mod:`bpbroker.storage.etcd.keys`, how commits happen
once in :mod:`bpbroker.storage.etcd.commits`, and how a restored cluster is noticed in
:mod:`bpbroker.storage.etcd.timeline`; here is what a registry asks of them.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

from bpbroker.errors import BpbrokerError, ConfigurationError, StorageFull, Unavailable
from bpbroker.registry.changes import READ_MAX, Broken, Change, Changes, News, Outcome, Seen, State
from bpbroker.storage.etcd.commits import Commits, batches, clear_left_over
from bpbroker.storage.etcd.gateway import EtcdOptions, Gateway
from bpbroker.storage.etcd.keys import Keys, as_seen, revision_of
from bpbroker.storage.etcd.responses import Compacted, decode, encode
from bpbroker.storage.etcd.timeline import REPLACED, Moment, Restored, Timeline

logger = logging.getLogger(__name__)

FORMAT: Final = 1
_PAGE: Final = 1000
"""Entries in one answer of a scan."""
_RETRY_SECS: Final = 1.0
_PAUSE_SECS: Final = 0.1


class EtcdStore:
    """Implements :class:`bpbroker.storage.base.SharedStore`.

    Raises:
        ConfigurationError: the client library is missing, or a certificate's file.
    """

    def __init__(self, options: EtcdOptions) -> None:
        self._keys = Keys(options.prefix)
        self._timeline = Timeline(self._follow_anew)
        self._writer, self._reader, self._scanner, self._watcher = (Gateway(options, self._timeline) for _ in range(4))
        self._commits = Commits(self._keys, self._writer, options.timeout_secs)
        self._registry_id = ""
        self._closing = threading.Event()
        self._again = threading.Event()

    @property
    def registry_id(self) -> str:
        """32 hexadecimal digits, the same for all brokers that share this registry; known once it is open."""
        return self._registry_id

    def open(self) -> State:
        """See :meth:`bpbroker.storage.base.SharedStore.open`."""
        state = self._open(self._scanner)
        faults = [seen.fault for seen in state.entries if seen.fault]
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise ConfigurationError(f"{faults[0]}{more}; somebody else wrote it, and nothing was changed")
        return state

    def _open(self, gateway: Gateway) -> State:
        self._registry_id = self._identity(gateway)
        self._look_for_strangers(gateway)
        clear_left_over(gateway, self._keys)
        return self._scan(gateway, "")

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """See :meth:`bpbroker.storage.base.Store.commit`; an outcome may be an error when others were committed."""
        outcomes: list[Outcome] = []
        for batch in batches(changes):
            try:
                outcomes += self._commits.commit(batch)
            except BpbrokerError as error:
                failure = _as_unavailable(error)
                if not outcomes:
                    raise failure from None
                return [*outcomes, *[failure] * (len(changes) - len(outcomes))]
        return outcomes

    def read(self, names: Sequence[str]) -> Sequence[Seen]:
        """See :meth:`bpbroker.storage.base.SharedStore.read`."""
        moment = self._reader.moment()
        ranges = [{"key": self._keys.entry(name)} for name in names[:READ_MAX]]
        try:
            if len(ranges) == 1:  # without a transaction it takes less time, there and here
                answer = self._reader.call("/kv/range", ranges[0], before=moment)
                found = [answer.get("kvs", ())]
            else:
                body = {"success": [{"request_range": each} for each in ranges]}
                answer = self._reader.call("/kv/txn", body, before=moment)
                found = [part.get("response_range", {}).get("kvs", ()) for part in answer["responses"]]
        except ConfigurationError as error:
            raise _as_unavailable(error) from None
        as_of = revision_of(answer)
        self._note([kv for kvs in found for kv in kvs], moment)
        return [as_seen(name, kvs[0] if kvs else None, as_of, moment) for name, kvs in zip(names, found, strict=True)]

    def scan(self, prefix: str = "") -> State:
        """See :meth:`bpbroker.storage.base.SharedStore.scan`."""
        try:
            return self._scan(self._scanner, prefix)
        except ConfigurationError as error:
            raise _as_unavailable(error) from None

    def peek(self) -> dict[str, bytes]:
        """Return all entries without opening the store: nothing is written, not even a registry's id.

        Raises:
            ConfigurationError, Unavailable: the cluster cannot be used.
        """
        found = self._scan(self._scanner, "").entries
        return {seen.name: seen.value for seen in found if seen.value is not None and not seen.fault}

    def check(self) -> None:
        """See :meth:`bpbroker.storage.base.SharedStore.check`."""
        try:
            self._reader.call("/kv/range", {"key": self._keys.registry, "count_only": True})
        except ConfigurationError as error:
            raise _as_unavailable(error) from None

    def probe(self) -> None:
        """See :meth:`bpbroker.storage.base.Store.probe`."""
        try:
            answer = self._scanner.call("/maintenance/alarm", {"action": "GET", "alarm": "NOSPACE"})
        except ConfigurationError as error:
            raise _as_unavailable(error) from None
        if answer.get("alarms"):
            raise StorageFull("The etcd cluster's space is used up")

    def close(self) -> None:
        """See :meth:`bpbroker.storage.base.Store.close`."""
        self._closing.set()
        self._again.set()
        self._watcher.close()
        self._commits.tidy_up()
        for gateway in (self._writer, self._reader, self._scanner):
            gateway.close()

    # --- following ---

    def hurry(self) -> None:
        """See :meth:`bpbroker.storage.base.SharedStore.hurry`."""
        self._again.set()

    def follow(self, after: int | None, take: Callable[[News], None]) -> None:
        """See :meth:`bpbroker.storage.base.SharedStore.follow`."""
        while not self._closing.is_set():
            self._again.clear()
            moment = self._watcher.moment()
            try:
                identity = self._identity(self._watcher, moment)
                if after is not None and identity != self._registry_id:
                    self._timeline.begin(moment, REPLACED)
                if after is None or not moment.has(after):
                    state = self._open(self._watcher)
                    after = state.version
                    take(replace(state, anew=self._timeline.take_notice()))
                for news, upto in self._watch(after, moment):
                    after = upto
                    take(news)
                continue  # nothing has happened for a while: look whether the watch still works
            except Restored:
                after = None
                self._closing.wait(_PAUSE_SECS)  # endpoints of two clusters would make it go round and round
                continue
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

    def _follow_anew(self) -> None:
        self._watcher.hang_up()
        self._again.set()

    def _watch(self, after: int, moment: Moment) -> Iterator[tuple[Changes, int]]:
        """Yield changes as they come, with the version up to which nothing can be missing."""
        begin, end = self._keys.entries("")
        start = moment.revision_of(after) + 1
        create = {"key": begin, "range_end": end, "start_revision": str(start), "fragment": True}
        with closing(self._watcher.stream("/watch", {"create_request": create}, before=moment)) as messages:
            for message in messages:
                if "error" in message:
                    raise Unavailable("The registry's etcd cluster ended the watch")
                result = message["result"]
                if result.get("canceled"):
                    if "compact_revision" in result:
                        raise Compacted("The registry's etcd cluster has forgotten these versions")
                    logger.warning("etcd ended the watch: %s", result.get("cancel_reason", "no reason given"))
                    raise Unavailable("The registry's etcd cluster ended the watch")
                events = tuple(self._event(event, moment) for event in result.get("events", ()))
                if events and not result.get("fragment"):
                    after = max(after, *(event.as_of for event in events))
                if events or result.get("created"):
                    yield Changes(events), after

    def _event(self, event: Mapping[str, Any], moment: Moment) -> Seen:
        kv = event["kv"]
        revision = int(kv["mod_revision"])
        present = None if event.get("type") == "DELETE" else kv
        self._timeline.note(kv["key"], revision, None if present is None else kv.get("value", ""), moment)
        return as_seen(self._keys.name(kv["key"]), present, revision, moment)

    # --- what is there ---

    def _note(self, kvs: Sequence[Mapping[str, Any]], moment: Moment) -> None:
        """Remember the newest change among some keys."""
        if kvs:
            newest = max(kvs, key=lambda kv: int(kv["mod_revision"]))
            self._timeline.note(newest["key"], int(newest["mod_revision"]), newest.get("value", ""), moment)

    def _identity(self, gateway: Gateway, moment: Moment | None = None) -> str:
        """Return the registry's id; the first broker of all makes it."""
        new = {"id": secrets.token_hex(16), "format": FORMAT}
        key = self._keys.registry
        answer = gateway.call(
            "/kv/txn",
            {
                "compare": [{"key": key, "target": "VERSION", "result": "EQUAL", "version": 0}],
                "success": [{"request_put": {"key": key, "value": encode(json.dumps(new).encode())}}],
                "failure": [{"request_range": {"key": key}}],
            },
            before=moment,
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
        moment = gateway.moment()
        while True:
            page = {"key": begin, "range_end": end, "limit": _PAGE, "revision": str(revision)}
            try:
                answer = gateway.call("/kv/range", page, before=moment)
            except Compacted:  # the version of the first page is gone: begin anew
                begin, revision, found = first, 0, []
                continue
            revision = revision or revision_of(answer)
            kvs = answer.get("kvs", ())
            self._note(kvs, moment)
            found += (as_seen(self._keys.name(kv["key"]), kv, revision, moment) for kv in kvs)
            if not answer.get("more"):
                return State(tuple(found), moment.version(revision), self._registry_id)
            begin = encode(decode(kvs[-1]["key"]) + b"\0")


def read_all(settings: Mapping[str, Any]) -> dict[str, bytes]:
    """Return all entries in the cluster that the settings name, as they are at one version; changes nothing.

    Raises:
        ConfigurationError, Unavailable: the cluster cannot be used.
    """
    store = EtcdStore(EtcdOptions.of(settings))
    try:
        return store.peek()
    finally:
        store.close()


def _as_unavailable(error: BpbrokerError) -> Unavailable:
    """Return what an error of a call means to a client: the cluster may let us in again."""
    if isinstance(error, Unavailable):
        if not error.outcome_known:
            told = Unavailable("Whether this was changed is not known: the registry's etcd cluster does not answer")
            told.outcome_known = False
            return told
        return error
    return Unavailable(str(error))
