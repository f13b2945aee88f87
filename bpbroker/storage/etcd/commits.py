"""Commits to a registry in etcd, each of them once, whatever happens on the way to the cluster.

A commit is one transaction of etcd, hence one proposal to the quorum: inside
it every change is a nested transaction of its own, which happens if the entry
has the expected version and else gives what is there. Nobody can know whether
a request that was not answered was carried out, so the transaction also puts
the commit's number under the broker's own key, on condition that the commit
before is there: it can be sent again and again and happens once, and when it
turns out to have happened the history says what became of each change.
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

_CHANGES_MAX: Final = 100
"""Changes in one transaction: etcd's own limit is 128 operations."""
_CHANGES_MAX_BYTES: Final = 1200 * 1024
_LEFT_OVER_SECS: Final = 7 * 86400
"""A commit's number this old was left by a broker that crashed."""
_LEFT_OVER_MAX: Final = 1000
"""How many commits' numbers are looked at."""


class Commits:
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
            try:
                answer = self._gateway.call("/kv/txn", self._transaction(changes, mark), remaining)
            except StorageFull:
                # The very transaction that fills etcd up is carried out, and refused all the same.
                if self._look() == mark:
                    return self._history(changes)
                raise
            if answer.get("succeeded"):
                self._version = revision_of(answer)
                parts = [part["response_txn"] for part in answer["responses"][1:]]
                return [_outcome(change, part, self._version) for change, part in zip(changes, parts, strict=True)]
            if self._mark_in(answer["responses"][0].get("response_range", {})) == mark:
                return self._history(changes)
            # An earlier commit of ours, given up as uncertain, did happen after all; or somebody removed our key.
        raise Unavailable("Nothing was changed: the registry's etcd cluster is too slow")

    def _look(self) -> str:
        """Give the mark of our last commit that happened.

        Raises:
            Unavailable: nobody knows; ``outcome_known`` is False.
        """
        try:
            return self._mark_in(self._gateway.call("/kv/range", {"key": self._key}))
        except Unavailable:
            raise _not_known() from None

    def _mark_in(self, found: Mapping[str, Any]) -> str:
        """Take our key as the cluster gives it."""
        kvs = found.get("kvs", ())
        self._version = int(kvs[0]["mod_revision"]) if kvs else 0
        return decode(kvs[0]["value"]).decode() if kvs else ""

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
            raise _not_known() from None
        found = (part.get("response_range", {}).get("kvs", ()) for part in answer["responses"])
        return [
            as_seen(change.name, kvs[0] if kvs else None, version) for change, kvs in zip(changes, found, strict=True)
        ]

    def tidy_up(self) -> None:
        """Remove our key; left behind it does no harm."""
        if self._version:
            try:
                self._gateway.call("/kv/deleterange", {"key": self._key}, 0.5)
            except BpbrokerError:
                return


def batches(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
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


def _outcome(change: Change, part: Mapping[str, Any], version: int) -> Outcome:
    if part.get("succeeded"):
        return Committed(version)
    kvs = part["responses"][0].get("response_range", {}).get("kvs", ())
    return Conflict(as_seen(change.name, kvs[0] if kvs else None, version))
