"""Commits to a registry in etcd, each of them once, whatever happens on the way to the cluster.

A commit is one transaction of etcd, hence one proposal to the quorum: inside
it every change is a nested transaction of its own, which happens if the entry
has the expected version and else returns what is there. Whether a request
without a response was carried out cannot be known. So the transaction also
puts the commit's number under the broker's own key, on condition that the
commit before is there. It can be sent again and again and happens once; when
it turns out to have happened, the history says what became of each change.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from bpbroker.errors import BpbrokerError, StorageFull, Unavailable
from bpbroker.registry.changes import ANYTHING, Change, Committed, Conflict, Outcome, Seen
from bpbroker.storage.etcd.gateway import Gateway
from bpbroker.storage.etcd.keys import Keys, as_seen, revision_of
from bpbroker.storage.etcd.responses import decode, encode
from bpbroker.storage.etcd.timeline import Moment

_CHANGES_MAX: Final = 100
"""Changes in one transaction: etcd's own limit is 128 operations."""
_CHANGES_MAX_BYTES: Final = 1200 * 1024
_LEFT_OVER_SECS: Final = 7 * 86400
"""A commit's number this old was left by a broker that crashed."""
_LEFT_OVER_MAX: Final = 1000
"""How many commits' numbers are looked at in one go."""


class Commits:
    """Makes commits, each of them once, whatever happens on the way to the cluster."""

    def __init__(self, keys: Keys, gateway: Gateway, timeout_secs: float) -> None:
        self._keys = keys
        self._gateway = gateway
        self._timeout_secs = timeout_secs
        self._key = keys.commit(secrets.token_hex(16))
        self._number = 0
        self._revision = 0
        """Of our key: the revision of our last commit."""

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """Make some changes, as many as fit into one transaction.

        Raises:
            Unavailable: ``outcome_known`` says whether it may have happened. Of that kind is Restored: the changes
                were decided on a history that the cluster does not have any more.
            ConfigurationError: the cluster refuses us.
        """
        self._number += 1
        mark = f"{self._number} {int(time.time())}"
        deadline = time.monotonic() + self._timeout_secs
        moment = self._gateway.moment()
        while (remaining := deadline - time.monotonic()) > 0:
            try:
                body = self._transaction(changes, mark, moment)
                answer = self._gateway.call("/kv/txn", body, remaining, before=moment)
            except StorageFull:
                # The very transaction that fills etcd up is carried out, and refused all the same.
                if self._look(moment) == mark:
                    return self._history(changes, moment)
                raise
            if answer.get("succeeded"):
                self._revision = revision_of(answer)
                self._gateway.note(self._key, self._revision, encode(mark.encode()), moment)
                parts = [part["response_txn"] for part in answer["responses"][1:]]
                return [
                    _outcome(change, part, self._revision, moment) for change, part in zip(changes, parts, strict=True)
                ]
            if self._mark_in(answer["responses"][0].get("response_range", {})) == mark:
                return self._history(changes, moment)
            # An earlier commit of ours, given up as uncertain, did happen after all; or our key was removed.
        raise Unavailable("Nothing was changed: the registry's etcd cluster is too slow")

    def _look(self, moment: Moment) -> str:
        """Return the mark of our last commit that happened.

        Raises:
            Unavailable: it cannot be known; ``outcome_known`` is False.
        """
        try:
            return self._mark_in(self._gateway.call("/kv/range", {"key": self._key}, before=moment))
        except Unavailable:
            raise _not_known() from None

    def _mark_in(self, found: Mapping[str, Any]) -> str:
        """Take our key as the cluster has it, and return its mark."""
        kvs = found.get("kvs", ())
        self._revision = int(kvs[0]["mod_revision"]) if kvs else 0
        return decode(kvs[0]["value"]).decode() if kvs else ""

    def _transaction(self, changes: Sequence[Change], mark: str, moment: Moment) -> dict[str, Any]:
        key = self._key
        return {
            "compare": [{"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(self._revision)}],
            "success": [
                {"request_put": {"key": key, "value": encode(mark.encode())}},
                *({"request_txn": self._nested(change, moment)} for change in changes),
            ],
            "failure": [{"request_range": {"key": key}}],
        }

    def _nested(self, change: Change, moment: Moment) -> dict[str, Any]:
        key = self._keys.entry(change.name)
        compare = []
        if change.expects is not ANYTHING:
            revision = moment.revision_of(change.expects)
            compare = [{"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}]
        if change.value is None:
            operation: dict[str, Any] = {"request_delete_range": {"key": key}}
        else:
            operation = {"request_put": {"key": key, "value": encode(change.value)}}
        return {"compare": compare, "success": [operation], "failure": [{"request_range": {"key": key}}]}

    def _history(self, changes: Sequence[Change], moment: Moment) -> Sequence[Outcome]:
        """Return what became of the changes of our last commit, whose response was lost on the way."""
        after, before = (self._at(changes, self._revision - back, moment) for back in (0, 1))
        outcomes: list[Outcome] = []
        for change, now, then in zip(changes, after, before, strict=True):
            expected = change.expects in (ANYTHING, then.version)
            outcomes.append(Committed(moment.version(self._revision)) if expected else Conflict(now))
        return outcomes

    def _at(self, changes: Sequence[Change], revision: int, moment: Moment) -> Sequence[Seen]:
        ranges = [
            {"request_range": {"key": self._keys.entry(change.name), "revision": str(revision)}} for change in changes
        ]
        try:
            answer = self._gateway.call("/kv/txn", {"success": ranges}, self._timeout_secs, before=moment)
        except Unavailable:
            raise _not_known() from None
        found = (part.get("response_range", {}).get("kvs", ()) for part in answer["responses"])
        return [
            as_seen(change.name, kvs[0] if kvs else None, revision, moment)
            for change, kvs in zip(changes, found, strict=True)
        ]

    def tidy_up(self) -> None:
        """Remove our key; left behind it does no harm."""
        if self._revision:
            try:
                self._gateway.call("/kv/deleterange", {"key": self._key}, 0.5)
            except BpbrokerError:
                return


def batches(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
    """Yield changes in parts, each of which fits into one transaction."""
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


def clear_left_over(gateway: Gateway, keys: Keys) -> None:
    """Remove the commits' numbers of brokers that crashed long ago."""
    begin, end = keys.commits()
    answer = gateway.call("/kv/range", {"key": begin, "range_end": end, "limit": _LEFT_OVER_MAX})
    for kv in answer.get("kvs", ()):
        made = decode(kv.get("value", "")).decode(errors="replace").partition(" ")[2]
        if made.isdigit() and int(made) < time.time() - _LEFT_OVER_SECS:
            same = {"key": kv["key"], "target": "MOD", "result": "EQUAL", "mod_revision": kv["mod_revision"]}
            gateway.call("/kv/txn", {"compare": [same], "success": [{"request_delete_range": {"key": kv["key"]}}]})


def _not_known() -> Unavailable:
    error = Unavailable("Whether this was changed is not known: the registry's etcd cluster does not answer")
    error.outcome_known = False
    return error


def _outcome(change: Change, part: Mapping[str, Any], revision: int, moment: Moment) -> Outcome:
    if part.get("succeeded"):
        return Committed(moment.version(revision))
    kvs = part["responses"][0].get("response_range", {}).get("kvs", ())
    return Conflict(as_seen(change.name, kvs[0] if kvs else None, revision, moment))
