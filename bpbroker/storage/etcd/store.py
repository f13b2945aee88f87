"""The registry on an etcd cluster, shared by several brokers.

What is under which key is in :mod:`bpbroker.storage.etcd.keys`, how commits happen
once in :mod:`bpbroker.storage.etcd.commits`, and how a restored cluster is noticed in
:mod:`bpbroker.storage.etcd.restore_detection`; here is what a registry asks of them.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from bpbroker import progress
from bpbroker.errors import BpbrokerError, ConfigurationError, StorageFull, Unavailable, not_known
from bpbroker.record import Record
from bpbroker.registry.changes import READ_MAX, Broken, Changes, Committed, Conflict, Group, News, Outcome, Seen, State
from bpbroker.registry.stored import joined, unrevised
from bpbroker.storage.etcd import registry_id
from bpbroker.storage.etcd.commits import Commits, clear_left_over, fit_all, fitting, packed, refusal
from bpbroker.storage.etcd.decoded import Decoded
from bpbroker.storage.etcd.gateway import Gateway
from bpbroker.storage.etcd.keys import Keys, as_seen, revision_of
from bpbroker.storage.etcd.last_seen import LastSeenFile
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.registry_id import Identity
from bpbroker.storage.etcd.responses import NO_ANSWER, Compacted, LeaseExists, LeaseGone, decode, encode
from bpbroker.storage.etcd.restore_detection import REPLACED, RESTORED_MEANWHILE, Moment, Restored, Timeline
from bpbroker.storage.etcd.side_thread import SideThread

logger = logging.getLogger(__name__)

SESSION: Final = "_session/"
"""The only names whose keys have a lease begin with it."""

_PAGE: Final = 1000
"""Entries in one answer of a scan."""
_RETRY_SECS: Final = 1.0
_PAUSE_SECS: Final = 0.1
_LEASES_MAX: Final = 100_000
"""For how many sessions the lease is remembered; then all are forgotten at once, because most ended long ago."""
_TRIES: Final = 5
"""How often a step is tried that another broker may disturb."""


class EtcdStore:
    """Implements :class:`bpbroker.storage.base.SharedStore`.

    Args:
        options: how the cluster is reached.
        remembered: file that keeps what was known of the cluster while no broker runs; None for none.

    Raises:
        ConfigurationError: the client library is missing, or a certificate's file.
    """

    def __init__(self, options: EtcdOptions, remembered: Path | None = None) -> None:
        self._last_seen = LastSeenFile(remembered)
        self._keys = Keys(options.prefix)
        self._decoded = Decoded(self._keys)
        self._timeline = Timeline(self._follow_anew)
        self._writer, self._reader, self._scanner, self._leaser, self._keeper, self._watcher = (
            Gateway(options, self._timeline) for _ in range(6)
        )
        self._beside = SideThread("registry keep-alive")
        self._leases: dict[str, str] = {}
        """Key of a session to the lease that it was seen with last; it may have another one by now."""
        self._commits = Commits(self._keys, self._decoded, self._writer, options.timeout_secs)
        self._closing = threading.Event()
        self._again = threading.Event()

    @property
    def registry_id(self) -> str:
        """32 hexadecimal digits, the same for all brokers that share this registry; known once it is open."""
        known = self._timeline.moment().identity
        return known.registry_id if known else ""

    def open(self) -> State:
        """See :meth:`bpbroker.storage.base.SharedStore.open`."""
        with progress.Work("Reading the registry in etcd"):
            state = self._open(self._scanner)
        faults = [seen.fault for seen in state.entries if seen.fault]
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise ConfigurationError(f"{faults[0]}{more}; another program wrote it, and nothing was changed")
        return state

    def _open(self, gateway: Gateway) -> State:
        moment = self._identify(gateway, self._timeline.moment())
        self._look_for_strangers(gateway)
        clear_left_over(gateway, self._keys)
        return self._scan(gateway, "", moment)

    def commit(self, groups: Sequence[Group]) -> Sequence[Outcome]:
        """See :meth:`bpbroker.storage.base.Store.commit`; an outcome may be an error when others were committed."""
        outcomes: list[Outcome | None] = [None] * len(groups)
        packs: Iterable[Sequence[int]] = [range(len(groups))]
        if not fit_all(groups):
            groups = [fitting(group) for group in groups]
            packs = _packs(groups, outcomes)
        failure: Unavailable | None = None
        moment: Moment | None = None
        for pack in packs:
            if failure is None:
                try:
                    # Decided on what was known before: one moment for all.
                    moment = moment or self._known(self._writer)
                    done = self._commits.commit([groups[place] for place in pack], moment)
                except BpbrokerError as error:
                    failure = _as_unavailable(error)
                else:
                    for place, outcome in zip(pack, done, strict=True):
                        outcomes[place] = outcome
                    continue
            for place in pack:
                outcomes[place] = failure
        if failure is not None and not any(isinstance(outcome, (Committed, Conflict)) for outcome in outcomes):
            raise failure
        return [outcome for outcome in outcomes if outcome is not None]

    def read(self, names: Sequence[str]) -> Sequence[Seen]:
        """See :meth:`bpbroker.storage.base.SharedStore.read`."""
        try:
            moment = self._known(self._reader)
            keys = [self._keys.entry(name) for name in names[:READ_MAX]]
            found, as_of = self._read(self._reader, keys, moment)
        except ConfigurationError as error:
            raise _as_unavailable(error) from None
        self._note([kv for kv in found if kv is not None], moment)
        return [self._decoded.seen(key, kv, as_of, moment) for key, kv in zip(keys, found, strict=True)]

    def _read(
        self, gateway: Gateway, keys: Sequence[str], moment: Moment
    ) -> tuple[list[Mapping[str, Any] | None], int]:
        """Return what etcd has under each key, None for nothing, and its revision."""
        ranges = [{"key": key} for key in keys]
        if len(ranges) == 1:  # without a transaction it takes less time, there and here
            answer = gateway.call("/kv/range", ranges[0], before=moment)
            found = [answer.get("kvs", ())]
        else:
            body = {"success": [{"request_range": each} for each in ranges]}
            answer = gateway.call("/kv/txn", body, before=moment)
            found = [part.get("response_range", {}).get("kvs", ()) for part in answer.get("responses", ())]
        return [kvs[0] if kvs else None for kvs in found], revision_of(answer)

    def scan(self, prefix: str = "", *, entries: bool = False, at: int | None = None) -> State:
        """See :meth:`bpbroker.storage.base.SharedStore.scan`."""
        try:
            return self._scan(self._scanner, prefix, self._known(self._scanner), entries=entries, at=at)
        except (ConfigurationError, Compacted) as error:
            raise _as_unavailable(error) from None

    def peek(self) -> dict[str, bytes]:
        """Return all records in their stored form, without opening the store: nothing is written, no registry's id.

        Raises:
            ConfigurationError, Unavailable: the cluster cannot be used.
        """
        moment = self._timeline.moment()
        answer = self._scanner.call("/kv/range", {"key": self._keys.registry}, before=moment)
        kvs = answer.get("kvs", ())
        known = self._identity_in(kvs[0].get("value", "")) if kvs else ""
        found = known if isinstance(known, Identity) else Identity(known, 0, "")
        records = [
            seen.record for seen in self._scan(self._scanner, "", moment.of(found)).entries
            if seen.record is not None and not seen.fault
        ]  # fmt: skip
        if found is known:
            return {record.name: joined(record) for record in records}
        return {record.name: unrevised(joined(record)) for record in records}  # they have no revisions yet

    def check(self) -> None:
        """See :meth:`bpbroker.storage.base.SharedStore.check`."""
        try:
            self._reader.call("/kv/range", {"key": self._keys.registry, "count_only": True})
        except ConfigurationError as error:
            raise _as_unavailable(error) from None

    def reached(self) -> int:
        """See :meth:`bpbroker.storage.base.SharedStore.reached`."""
        try:
            moment = self._known(self._reader)
            answer = self._reader.call("/kv/range", {"key": self._keys.registry, "count_only": True}, before=moment)
        except ConfigurationError as error:
            raise _as_unavailable(error) from None
        return moment.registry.reached(revision_of(answer))

    def probe(self) -> None:
        """See :meth:`bpbroker.storage.base.Store.probe`."""
        try:
            answer = self._scanner.call("/maintenance/alarm", {"action": "GET", "alarm": "NOSPACE"})
        except ConfigurationError as error:
            raise _as_unavailable(error) from None
        if answer.get("alarms"):
            raise StorageFull("The etcd cluster's space is used up; compact and defragment it, then disarm its alarm")

    # --- sessions ---

    def open_session(self, session_id: str, ttl_secs: int, record: Record) -> Outcome:
        """See :meth:`bpbroker.storage.base.SharedStore.open_session`."""
        for _ in range(_TRIES):
            try:
                moment = self._known(self._leaser)
                lease = self._lease(session_id, ttl_secs)
                self._grant(lease, ttl_secs)
            except BpbrokerError as error:
                failure = _as_unavailable(error, unsure=False)  # a lease alone opens nothing
                raise failure from None
            try:
                outcome = self._put_leased(record, lease, moment)
            except LeaseGone:  # it was an old one's, and has run out just now
                continue
            except BpbrokerError as error:
                raise _as_unavailable(error) from None
            if isinstance(outcome, Committed):
                self._note_lease(self._keys.entry(record.name), lease)
            return outcome
        raise Unavailable("Nothing was changed: the registry's etcd cluster is too slow")

    def _lease(self, session_id: str, ttl_secs: int) -> str:
        """Return the id of a session's lease: the same each time, so that a repeated grant makes no second one.

        With another ttl it is another one. So none must ever be revoked, which might hit a new session of the same id.
        """
        of = f"{self._keys.prefix}\0{session_id}\0{ttl_secs}".encode()
        return str(int.from_bytes(hashlib.sha256(of).digest()[:8]) >> 1 or 1)

    def _grant(self, lease: str, ttl_secs: int) -> None:
        """Make a lease that has its whole ttl before it."""
        for _ in range(_TRIES):
            try:
                self._leaser.call("/lease/grant", {"ID": lease, "TTL": str(ttl_secs)})
            except LeaseExists:
                if self._keep_alive([lease]) == [None]:
                    continue  # it has run out meanwhile
            return
        raise Unavailable("Nothing was changed: the registry's etcd cluster is too slow")

    def _put_leased(self, record: Record, lease: str, moment: Moment) -> Outcome:
        """Put a session's record with its lease, unless it is there."""
        key, registry = self._keys.entry(record.name), self._keys.registry
        value = encode(joined(record))
        body = {
            "compare": [
                {"key": key, "target": "VERSION", "result": "EQUAL", "version": "0"},
                {"key": registry, "target": "VALUE", "result": "EQUAL", "value": moment.registry.value},
            ],
            "success": [{"request_put": {"key": key, "value": value, "lease": lease}}],
            "failure": [{"request_range": {"key": key}}, {"request_range": {"key": registry}}],
        }
        full: StorageFull | None = None
        try:
            answer = self._leaser.call("/kv/txn", body, before=moment)
        except StorageFull as error:
            # The very transaction that fills etcd up is carried out, and refused all the same.
            full, answer = error, self._leaser.call("/kv/txn", {"success": body["failure"]}, before=moment, sent=True)
        at = revision_of(answer)
        if answer.get("succeeded") and full is None:
            self._timeline.note(key, at, value, moment)
            return Committed(moment.version(at), moment.registry.revision(at))
        found, known = (part.get("response_range", {}).get("kvs", ()) for part in answer["responses"])
        if not found and [kv.get("value", "") for kv in known] != [moment.registry.value]:
            self._leaser.begin(moment, REPLACED)
        kv = found[0] if found else None
        if kv is not None and kv.get("value", "") == value and str(kv.get("lease", "")) == lease:
            at = int(kv["mod_revision"])  # ours, whose answer was lost
            return Committed(moment.version(at), moment.registry.revision(at))
        if full is not None:
            full.outcome_known = True
            raise full
        return Conflict((as_seen(record.name, kv, at, moment),))

    def renew_sessions(self, session_ids: Sequence[str]) -> Sequence[int | None]:
        """See :meth:`bpbroker.storage.base.SharedStore.renew_sessions`.

        A lease that is filled up says nothing of its session, which any broker may have closed: so the cluster is asked
        for each session as well. Both are asked at the same time, for a session nearly always has the lease that it had
        before. Which of them comes first does not matter. The session was there with this very lease at one moment of
        this call, and the lease was filled up at another one: it lives for its ttl from then on. A lease that was gone
        took its session along. If the session turns out to have another lease, that one is filled up then.

        No renewal is left out because there was one just before. Clients renew after a third of the ttl, so it would
        save nothing, and this host's clock may have stood still since.
        """
        keys = [self._keys.entry(SESSION + each) for each in session_ids[:READ_MAX]]
        hoped = list({lease: None for key in keys if (lease := self._leases.get(key))})
        try:
            moment = self._known(self._leaser)
            keeping = self._beside.call(partial(self._keep_alive, hoped)) if hoped else None
            found, _ = self._read(self._leaser, keys, moment)
            leases = ["" if kv is None else str(kv.get("lease", "")) for kv in found]
            ttls = dict(zip(hoped, keeping.result(), strict=True)) if keeping is not None else {}
            left = list(dict.fromkeys(lease for lease in leases if lease and lease not in ttls))
            ttls.update(zip(left, self._keep_alive(left), strict=True))
        except ConfigurationError as error:
            raise _as_unavailable(error) from None
        for key, lease in zip(keys, leases, strict=True):
            self._note_lease(key, lease if ttls.get(lease) else "")
        return [ttls.get(lease) for lease in leases]

    def _note_lease(self, key: str, lease: str) -> None:
        """Remember which lease a session has; empty: none, as far as is known."""
        if not lease:
            self._leases.pop(key, None)
            return
        if len(self._leases) >= _LEASES_MAX:
            self._leases.clear()
        self._leases[key] = lease

    def _keep_alive(self, leases: Sequence[str]) -> list[int | None]:
        """Fill leases up; return the ttl of each in seconds, None for one that is gone."""
        if not leases:
            return []
        answers = self._keeper.call_each("/lease/keepalive", [{"ID": lease} for lease in leases])
        return [int(answer.get("TTL", 0)) or None for answer in answers]

    def close(self) -> None:
        """See :meth:`bpbroker.storage.base.Store.close`."""
        self._closing.set()
        self._again.set()
        self._watcher.close()
        self._last_seen.note(self.registry_id, *self._timeline.reached)
        self._commits.tidy_up()
        self._let_go()

    def abandon(self) -> None:
        """See :meth:`bpbroker.storage.base.SharedStore.abandon`.

        The number of its last commit stays in the cluster, as after a crash. Sessions live on: they are the clients'.
        """
        self._last_seen.end()
        self._closing.set()
        self._again.set()
        self._let_go()

    def _let_go(self) -> None:
        for gateway in (self._writer, self._reader, self._scanner, self._leaser, self._keeper, self._watcher):
            gateway.close()
        self._beside.end()

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
                moment = self._identify(self._watcher, moment)
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
        """Yield the changes of each revision as they come, with the version up to which nothing can be missing."""
        begin, end = self._keys.followed()
        start = moment.revision_of(after) + 1
        create = {"key": begin, "range_end": end, "start_revision": str(start), "fragment": True}
        events: list[Mapping[str, Any]] = []
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
                if result.get("created"):
                    yield Changes(), after
                events += result.get("events", ())
                if result.get("fragment"):  # more of the same revision may follow
                    continue
                for revision, some in groupby(events, key=lambda event: int(event["kv"]["mod_revision"])):
                    seen = self._events(some, moment)
                    after = moment.version(revision)
                    if seen:
                        yield Changes(tuple(seen), moment.registry.reached(revision)), after
                events = []

    def _events(self, events: Iterable[Mapping[str, Any]], moment: Moment) -> list[Seen]:
        """Return what one revision has changed."""
        found: list[Seen] = []
        newest: tuple[str, int, str | None] | None = None
        for event in events:
            kv = event["kv"]
            key, revision = kv["key"], int(kv["mod_revision"])
            present = None if event.get("type") == "DELETE" else kv
            value = None if present is None else kv.get("value", "")
            if key == self._keys.registry:
                if value != moment.registry.value:
                    self._timeline.begin(moment, REPLACED)
            elif self._keys.is_entry(key):
                newest = key, revision, value
                found.append(self._decoded.seen(key, present, revision, moment))
        if newest is not None:
            self._timeline.note(*newest, moment)
        return found

    # --- what is there ---

    def _note(self, kvs: Sequence[Mapping[str, Any]], moment: Moment) -> None:
        """Remember the newest change among some keys."""
        if kvs:
            newest = max(kvs, key=lambda kv: int(kv["mod_revision"]))
            self._timeline.note(newest["key"], int(newest["mod_revision"]), newest.get("value", ""), moment)

    def _known(self, gateway: Gateway) -> Moment:
        """Return what is known, the registry included."""
        moment = self._timeline.moment()
        return moment if moment.identity is not None else self._identify(gateway, moment)

    def _identify(self, gateway: Gateway, moment: Moment) -> Moment:
        """Return the moment with the registry that is there; the first broker of all makes it.

        A registry of the format before is brought up to date. One whose revisions might repeat gets a new id.
        """
        key = self._keys.registry
        for _ in range(_TRIES):
            answer = gateway.call("/kv/range", {"key": key}, before=moment)
            kvs = answer.get("kvs", ())
            old = kvs[0].get("value", "") if kvs else None
            found = self._identity_in(old) if old is not None else ""
            if isinstance(found, Identity):
                lost = self._last_seen.lost(found.registry_id, *self._timeline.reached)
                if lost:
                    logger.error("%s", RESTORED_MEANWHILE)
                    self._timeline.raise_floor(found.reached(lost))
            if isinstance(found, Identity) and found.base >= self._timeline.floor:
                found.check_room(revision_of(answer))
                self._timeline.note(key, int(kvs[0]["mod_revision"]), found.value, moment)
                known = self._timeline.adopt(found, moment)
                self._last_seen.note(found.registry_id, *self._timeline.reached)
                return known
            self._replace_identity(gateway, moment, old, registry_id.made(self._timeline.floor, _kept_id(found)))
        raise Unavailable("The registry's etcd cluster does not keep what is written to it")

    def _replace_identity(self, gateway: Gateway, moment: Moment, old: str | None, new: Identity) -> None:
        """Put a registry's identity if still ``old`` is there, or nothing if that is None."""
        key = self._keys.registry
        same = (
            {"key": key, "target": "VERSION", "result": "EQUAL", "version": "0"}
            if old is None
            else {"key": key, "target": "VALUE", "result": "EQUAL", "value": old}
        )
        put = {"request_put": {"key": key, "value": new.value}}
        gateway.call("/kv/txn", {"compare": [same], "success": [put]}, before=moment)

    def raise_revisions(self, above: int) -> None:
        """See to it that every later revision is higher than ``above``: the registry gets a new id if need be."""
        moment = self._timeline.moment()
        if moment.registry.revision(moment.revision) <= above:
            new = registry_id.made(above)
            self._replace_identity(self._scanner, moment, moment.registry.value, new)
            try:
                self._timeline.begin(moment, "")
            except Restored:
                self._known(self._scanner)

    def _identity_in(self, value: str) -> Identity | str:
        """Return what is under the registry's key; of a registry of the format before only its id."""
        try:
            return registry_id.read(value)
        except registry_id.NotOurs:
            raise ConfigurationError(
                f"The prefix {self._keys.prefix} in etcd belongs to something else: its key registry is not bpbroker's;"
                " choose another _registry.prefix"
            ) from None

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

    def _scan(
        self, gateway: Gateway, prefix: str, moment: Moment, *, entries: bool = False, at: int | None = None
    ) -> State:
        ranges = self._keys.clients(prefix) if entries else [self._keys.entries(prefix)]
        (begin, end), *rest = ranges
        found: list[Seen] = []
        revision = 0 if at is None else moment.revision_of(at)
        while True:
            page = {"key": begin, "range_end": end, "limit": _PAGE, "revision": str(revision)}
            try:
                answer = gateway.call("/kv/range", page, before=moment)
            except Compacted:  # the version of the first page is gone: begin anew
                if at is not None:
                    raise
                (begin, end), *rest = ranges
                revision, found = 0, []
                continue
            revision = revision or revision_of(answer)
            kvs = answer.get("kvs", ())
            self._note(kvs, moment)
            found += (as_seen(self._keys.name(kv["key"]), kv, revision, moment) for kv in kvs)
            if answer.get("more"):
                begin = encode(decode(kvs[-1]["key"]) + b"\0")
            elif rest:
                (begin, end), *rest = rest
            else:
                registry = moment.registry
                return State(tuple(found), moment.version(revision), registry.registry_id, registry.reached(revision))


def _packs(groups: Sequence[Group], outcomes: list[Outcome | None]) -> list[list[int]]:
    """Return the places of groups that go into one transaction together; note those that no transaction can take."""
    for place, group in enumerate(groups):
        outcomes[place] = refusal(group)
    places = [place for place, refused in enumerate(outcomes) if refused is None]
    return [[places[each] for each in pack] for pack in packed([groups[place] for place in places])]


def _kept_id(found: Identity | str) -> str:
    """Return the id that a registry keeps when its key is written anew: one of the format before keeps its own."""
    return found if isinstance(found, str) else ""


def read_all(settings: Mapping[str, Any]) -> dict[str, bytes]:
    """Return all records in the cluster that the settings name, in their stored form; changes nothing.

    Raises:
        ConfigurationError, Unavailable: the cluster cannot be used.
    """
    store = EtcdStore(EtcdOptions.of(settings))
    try:
        with progress.Work("Reading the registry in etcd"):
            return store.peek()
    finally:
        store.close()


def _as_unavailable(error: BpbrokerError, *, unsure: bool = True) -> Unavailable:
    """Return what an error of a call means to a client: the cluster may let us in again.

    Args:
        error: of a call.
        unsure: whether a call may have changed something without its answer.
    """
    if not isinstance(error, Unavailable):
        return Unavailable(str(error))
    if error.outcome_known:
        return error
    if unsure:
        return not_known(NO_ANSWER)
    error.outcome_known = True
    return error
