"""Commits to a registry in etcd, each of them once, whatever happens on the way to the cluster.

A commit is one transaction of etcd, hence one proposal to the quorum: inside
it every group of changes is a nested transaction of its own, which happens if
all that it compares is as expected, and else returns what is there. etcd makes
all comparisons before the first change, nested ones too: each group is decided
on the state before the commit. So groups in one commit have nothing to do with each other.

Whether a request without a response was carried out cannot be known. So the
transaction also puts the commit's number under the broker's own key, on condition
that the commit before is there. It can be sent again and again and happens once;
when it turns out to have happened, the history says what became of each group.

All groups nearly always happen. So a commit is first tried as one flat transaction of all their
comparisons and changes: etcd takes two thirds of the time for it (measured: 161 us of CPU an entry
at 8 entries instead of 221, 64 instead of 106 at 32). Only when that did not happen is it asked
group by group.

It happens only while the registry is the one on which the groups were decided.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from bpbroker.errors import BpbrokerError, StorageFull, Unavailable, not_known
from bpbroker.registry.changes import (
    ANYTHING,
    CHARACTER_BYTES,
    GROUP_MAX,
    GROUP_MAX_BYTES,
    NAME_BYTES,
    Committed,
    Conflict,
    Group,
    Outcome,
    Seen,
)
from bpbroker.registry.stored import joined
from bpbroker.registry.taking import PREFIX as TAKEN
from bpbroker.storage.etcd.decoded import Decoded
from bpbroker.storage.etcd.gateway import Gateway
from bpbroker.storage.etcd.keys import Keys, as_seen, revision_of
from bpbroker.storage.etcd.responses import NO_ANSWER, decode, encode
from bpbroker.storage.etcd.restore_detection import REPLACED, Moment

OPERATIONS_MAX: Final = 128
"""etcd's limit. It counts the longest list of a transaction, and to that the largest such count inside it. The commit's
own list has the broker's mark and the group, which leaves ``GROUP_MAX`` for a group."""
_BYTES_MAX: Final = 1200 * 1024
"""Of what one transaction should hold; etcd takes 1.5 MiB."""
_MORE_BYTES: Final = NAME_BYTES + 128
"""The same as above with a session's id."""
_RANGES_MAX: Final = 100
_SHOWN: Final = 11
"""How many entries that should not exist are returned."""
_CAREFUL_COMMITS: Final = 16
"""Commits that are asked group by group at once after one whose groups did not all happen: others write, too."""
_LEFT_OVER_SECS: Final = 7 * 86400
"""A commit's number this old was left by a broker that crashed."""
_LEFT_OVER_MAX: Final = 1000
"""How many commits' numbers are checked at one time."""


@dataclass(frozen=True, slots=True)
class Fitted(Group):
    """A group of very many new entries: that none of them was just taken is one comparison, of a whole range."""

    untaken: tuple[str, ...] = ()
    """The names of what must not be there, sorted."""
    as_of: int = 0
    """A revision of the cluster at which none of them was; whatever else is in the range may not be newer."""

    def range(self, keys: Keys) -> dict[str, str]:
        """Return the range from the first of the names to the last."""
        begin, end = keys.span(self.untaken[0], self.untaken[-1])
        return {"key": begin, "range_end": end}


class Commits:
    """Makes commits, each of them once, whatever happens on the way to the cluster."""

    def __init__(self, keys: Keys, decoded: Decoded, gateway: Gateway, timeout_secs: float) -> None:
        self._keys = keys
        self._decoded = decoded
        self._gateway = gateway
        self._timeout_secs = timeout_secs
        self._key = keys.commit(secrets.token_hex(16))
        self._number = 0
        self._revision = 0
        """Of our key: the revision of our last commit."""
        self._careful = 0
        """How many of the next commits are asked group by group at once."""

    def commit(self, groups: Sequence[Group], moment: Moment) -> Sequence[Outcome]:
        """Make some groups of changes, as many as fit into one transaction.

        Args:
            groups: a name is in one of them at most, and each is small enough.
            moment: what is known, the registry included.

        Raises:
            Unavailable: ``outcome_known`` says whether it may have happened. Of that kind is Restored: the groups
                were decided on a history, or on a registry, that is not there any more.
            ConfigurationError: the cluster refuses us.
        """
        looked = [self._look_for_taken(group, moment) if isinstance(group, Fitted) else group for group in groups]
        left = [each for each in looked if isinstance(each, Group)]
        done = iter(self._commit(left, moment) if left else ())
        return [next(done) if isinstance(each, Group) else each for each in looked]

    def _look_for_taken(self, group: Fitted, moment: Moment) -> Fitted | Conflict:
        """Return the group for a revision at which none of its new entries was there; else those that were."""
        try:
            answer = self._gateway.call("/kv/range", {**group.range(self._keys), "keys_only": True}, before=moment)
            as_of = revision_of(answer)
            there = {self._keys.name(kv["key"]) for kv in answer.get("kvs", ())}.intersection(group.untaken)
            if not there:
                return replace(group, as_of=as_of)
            return Conflict(tuple(self._at((*group.names, *sorted(there)), as_of, moment)))
        except Unavailable as error:
            error.outcome_known = True  # nothing was sent yet that changes anything
            raise

    def _commit(self, groups: Sequence[Group], moment: Moment) -> Sequence[Outcome]:
        self._number += 1
        mark = f"{self._number} {int(time.time())}"
        deadline = time.monotonic() + self._timeout_secs
        parts = [self._nested(group, moment) for group in groups]
        flat = not self._careful and _fit_together(groups)
        sent = False
        while (remaining := deadline - time.monotonic()) > 0:
            try:
                body = self._together(parts, mark, moment) if flat else self._one_by_one(groups, parts, mark, moment)
                answer = self._gateway.call("/kv/txn", body, remaining, before=moment, sent=sent)
            except StorageFull:
                # The very transaction that fills etcd up is carried out, and refused all the same.
                if self._look(moment) == mark:
                    return self._history(groups, moment)
                raise
            if answer.get("succeeded"):
                self._careful = max(0, self._careful - 1)
                return self._done(groups, answer, mark, moment, flat=flat)
            if flat:  # or it happened, and the answer to that was lost
                flat, sent, self._careful = False, True, _CAREFUL_COMMITS
                continue
            sent = False
            ours, registry = (part.get("response_range", {}) for part in answer["responses"])
            if self._mark_in(ours) == mark:
                return self._history(groups, moment)
            if [kv.get("value", "") for kv in registry.get("kvs", ())] != [moment.registry.value]:
                self._gateway.begin(moment, REPLACED)
            # An earlier commit of ours, given up as uncertain, did happen after all; or our key was removed.
        if sent:
            raise not_known(NO_ANSWER)
        raise Unavailable("Nothing was changed: the registry's etcd cluster is too slow")

    def _done(
        self, groups: Sequence[Group], answer: Mapping[str, Any], mark: str, moment: Moment, *, flat: bool
    ) -> Sequence[Outcome]:
        """Take the answer to a commit that has happened; return what became of each group."""
        revision = self._revision = revision_of(answer)
        self._gateway.note(self._key, revision, encode(mark.encode()), moment)
        if flat:
            return [_committed(revision, moment)] * len(groups)
        parts = [part["response_txn"] for part in answer["responses"][1:]]
        return [self._outcome(group, part, revision, moment) for group, part in zip(groups, parts, strict=True)]

    def _look(self, moment: Moment) -> str:
        """Return the mark of our last commit that happened.

        Raises:
            Unavailable: it cannot be known; ``outcome_known`` is False.
        """
        try:
            return self._mark_in(self._gateway.call("/kv/range", {"key": self._key}, before=moment))
        except Unavailable:
            raise not_known(NO_ANSWER) from None

    def _mark_in(self, found: Mapping[str, Any]) -> str:
        """Return the mark in our key as the cluster has it."""
        kvs = found.get("kvs", ())
        self._revision = int(kvs[0]["mod_revision"]) if kvs else 0
        return decode(kvs[0]["value"]).decode() if kvs else ""

    def _together(self, parts: Sequence[Mapping[str, Any]], mark: str, moment: Moment) -> dict[str, Any]:
        """Return the transaction in which all groups happen or none. Its result does not name the group that failed."""
        compare, success = self._ours(mark, moment)
        for part in parts:
            compare += part["compare"]
            success += part["success"]
        return {"compare": compare, "success": success}

    def _one_by_one(
        self, groups: Sequence[Group], parts: Sequence[Mapping[str, Any]], mark: str, moment: Moment
    ) -> dict[str, Any]:
        """Return the transaction in which each group happens or returns what is there instead."""
        compare, success = self._ours(mark, moment)
        success += (
            {"request_txn": {**part, "failure": self._in_the_way(group)}}
            for group, part in zip(groups, parts, strict=True)
        )
        failure = [{"request_range": {"key": self._key}}, {"request_range": {"key": self._keys.registry}}]
        return {"compare": compare, "success": success, "failure": failure}

    def _ours(self, mark: str, moment: Moment) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return what each commit compares and changes beside its groups."""
        key, registry = self._key, self._keys.registry
        compare = [
            {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(self._revision)},
            {"key": registry, "target": "VALUE", "result": "EQUAL", "value": moment.registry.value},
        ]
        return compare, [{"request_put": {"key": key, "value": encode(mark.encode())}}]

    def _nested(self, group: Group, moment: Moment) -> dict[str, Any]:
        """Return what a group compares, and its changes."""
        keys = self._keys
        compare: list[dict[str, Any]] = []
        success: list[dict[str, Any]] = []
        for change in group.changes:
            key, expected, after = keys.entry(change.name), change.expects, change.after
            if expected is not ANYTHING:
                compare.append(_is_at(key, moment.revision_of(expected)))
            if after is None:
                success.append({"request_delete_range": {"key": key}})
            else:
                value = encode(joined(after))
                self._decoded.written(key, value, after)
                success.append({"request_put": {"key": key, "value": value}})
        compare += (_is_at(keys.entry(name), moment.revision_of(expected)) for name, expected in group.compared)
        for prefix in group.empty:  # no key in the range was ever made: it has none
            for begin, end in keys.clients(prefix):
                compare.append(
                    {"key": begin, "range_end": end, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
                )
        if isinstance(group, Fitted):  # holds also if there is nothing in the range
            newer = {"target": "MOD", "result": "LESS", "mod_revision": str(group.as_of + 1)}
            compare.append({**group.range(keys), **newer})
        return {"compare": compare, "success": success}

    def _in_the_way(self, group: Group) -> list[dict[str, Any]]:
        """Return the ranges that show why a group did not happen."""
        return [
            *({"request_range": {"key": self._keys.entry(name)}} for name in group.names),
            *({"request_range": each} for prefix in group.empty for each in self._some_in(prefix)),
        ]

    def _some_in(self, prefix: str) -> list[dict[str, Any]]:
        """Return the ranges that show a few of the entries with a prefix, enough to see that there are any."""
        return [{"key": begin, "range_end": end, "limit": _SHOWN} for begin, end in self._keys.clients(prefix)]

    def _outcome(self, group: Group, part: Mapping[str, Any], revision: int, moment: Moment) -> Outcome:
        if part.get("succeeded"):
            return _committed(revision, moment)
        found = [each.get("response_range", {}).get("kvs", ()) for each in part.get("responses", ())]
        names = len(group.names)
        seen = [
            as_seen(name, kvs[0] if kvs else None, revision, moment)
            for name, kvs in zip(group.names, found[:names], strict=True)
        ]
        inside = (kv for kvs in found[names:] for kv in kvs)
        return Conflict((*seen, *(as_seen(self._keys.name(kv["key"]), kv, revision, moment) for kv in inside)))

    # --- what became of a commit whose response was lost ---

    def _history(self, groups: Sequence[Group], moment: Moment) -> Sequence[Outcome]:
        """Return what became of the groups of our last commit, whose response was lost on the way."""
        names = [name for group in groups for name in group.names]
        then = dict(zip(names, self._at(names, self._revision - 1, moment), strict=True))
        now = dict(zip(names, self._at(names, self._revision, moment), strict=True))
        outcomes: list[Outcome] = []
        for group in groups:
            happened = all(then[name].version == expected for name, expected in _expected(group))
            happened = happened and not any(self._any_at(prefix, self._revision - 1, moment) for prefix in group.empty)
            if isinstance(group, Fitted) and happened:
                newer = {"min_mod_revision": str(group.as_of + 1), "limit": 1, "keys_only": True}
                (found,) = self._ranges([{**group.range(self._keys), **newer}], self._revision - 1, moment)
                happened = not found.get("kvs")
            if happened:
                outcomes.append(_committed(self._revision, moment))
            else:
                outcomes.append(Conflict(tuple(now[name] for name in group.names)))
        return outcomes

    def _at(self, names: Sequence[str], revision: int, moment: Moment) -> list[Seen]:
        seen: list[Seen] = []
        for start in range(0, len(names), _RANGES_MAX):
            some = names[start : start + _RANGES_MAX]
            found = self._ranges([{"key": self._keys.entry(name)} for name in some], revision, moment)
            seen += (
                as_seen(name, each["kvs"][0] if each.get("kvs") else None, revision, moment)
                for name, each in zip(some, found, strict=True)
            )
        return seen

    def _any_at(self, prefix: str, revision: int, moment: Moment) -> bool:
        """Return whether there was an entry with this prefix."""
        ranges = [
            {"key": begin, "range_end": end, "limit": 1, "keys_only": True} for begin, end in self._keys.clients(prefix)
        ]
        return any(each.get("kvs") for each in self._ranges(ranges, revision, moment))

    def _ranges(self, ranges: Sequence[Mapping[str, Any]], revision: int, moment: Moment) -> list[Mapping[str, Any]]:
        wanted = [{"request_range": {**each, "revision": str(revision)}} for each in ranges]
        if not wanted:
            return []
        try:
            answer = self._gateway.call("/kv/txn", {"success": wanted}, self._timeout_secs, before=moment)
        except Unavailable:
            raise not_known(NO_ANSWER) from None
        return [part.get("response_range", {}) for part in answer["responses"]]

    def tidy_up(self) -> None:
        """Remove our key; left behind it does no harm."""
        if self._revision:
            try:
                self._gateway.call("/kv/deleterange", {"key": self._key}, 0.5)
            except BpbrokerError:
                return


def _expected(group: Group) -> Iterator[tuple[str, int]]:
    """Yield the names that a group compares, and the version that must be there."""
    for change in group.changes:
        if change.expects is not ANYTHING:
            yield change.name, change.expects
    yield from group.compared


def _is_at(key: str, revision: int) -> dict[str, Any]:
    """Return the comparison that a key was last changed at a revision; 0: it is not there."""
    return {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def _committed(revision: int, moment: Moment) -> Committed:
    return Committed(moment.version(revision), moment.registry.revision(revision))


def fit_all(groups: Sequence[Group]) -> bool:
    """Return whether etcd surely takes all groups as one flat transaction, as they are: so it is nearly always.

    Then :func:`fitting`, :func:`refusal` and :func:`packed` change nothing, and this takes a quarter of their time.
    """
    operations, size = 2, 0
    for group in groups:
        if group.empty:
            return False
        operations += len(group.changes) + len(group.compared) or 1
        for change in group.changes:
            size += CHARACTER_BYTES * len(change.name)
            if change.after is not None:
                size += len(change.after.json)
        for name, _ in group.compared:
            size += CHARACTER_BYTES * len(name)
    return 2 < operations <= OPERATIONS_MAX and size + _MORE_BYTES * operations <= _BYTES_MAX


def fitting(group: Group) -> Group:
    """Return a group that etcd takes: one of very many new entries compares in one go whether one was just taken."""
    if _operations(group) <= GROUP_MAX:
        return group
    untaken = sorted(name for name, version in group.compared if not version and name.startswith(TAKEN))
    if not untaken:
        return group
    kept = tuple(each for each in group.compared if each[1] or not each[0].startswith(TAKEN))
    return Fitted(group.changes, kept, group.empty, tuple(untaken))


def refusal(group: Group) -> Unavailable | None:
    """Return why no transaction can take a group; None if one can."""
    if _operations(group) > GROUP_MAX:
        return Unavailable(
            f"Nothing was changed: it concerns {_operations(group)} records at once, and etcd takes {GROUP_MAX}"
        )
    if _bytes(group) > GROUP_MAX_BYTES:
        return Unavailable("Nothing was changed: it is more at once than etcd takes (1.4 MiB)")
    return None


def packed(groups: Sequence[Group]) -> Iterator[list[int]]:
    """Yield the places of groups that go into one transaction together; together they are all, in order.

    Each group must be one that :func:`refusal` lets pass.
    """
    pack: list[int] = []
    size = largest = 0
    concerns = any(group.empty for group in groups)
    for place, group in enumerate(groups):
        operations, more = _operations(group), _bytes(group)
        full = 2 + len(pack) + max(largest, operations) > OPERATIONS_MAX or size + more > _BYTES_MAX
        if pack and (full or (concerns and _concern(group, [groups[other] for other in pack]))):
            yield pack
            pack, size, largest = [], 0, 0
        pack.append(place)
        size, largest = size + more, max(largest, operations)
    if pack:
        yield pack


def _fit_together(groups: Sequence[Group]) -> bool:
    """Return whether etcd takes the groups as one flat transaction; the commit itself compares two keys."""
    return 2 + sum(map(_operations, groups)) <= OPERATIONS_MAX


def _concern(group: Group, others: Sequence[Group]) -> bool:
    """Return whether a prefix that must be empty may be filled by another group: each would be decided without it."""
    return any(
        change.name.startswith(one.empty) for other in others for one, two in ((group, other), (other, group))
        for change in two.changes
    )  # fmt: skip


def _operations(group: Group) -> int:
    """Return how many operations etcd counts for a group: its longest list. A prefix may take two comparisons."""
    names = len(group.changes) + len(group.compared)
    return names + 2 * len(group.empty) + isinstance(group, Fitted)


def _bytes(group: Group) -> int:
    size = 0
    for change in group.changes:
        size += 3 * len(change.name.encode()) + NAME_BYTES
        if change.after is not None:
            size += len(change.after.json) + len(change.after.session)
    for name, _ in group.compared:
        size += 2 * len(name.encode()) + NAME_BYTES
    return size + sum(2 * len(prefix) + NAME_BYTES for prefix in group.empty)


def clear_left_over(gateway: Gateway, keys: Keys) -> None:
    """Remove the commits' numbers of brokers that crashed long ago."""
    begin, end = keys.commits()
    answer = gateway.call("/kv/range", {"key": begin, "range_end": end, "limit": _LEFT_OVER_MAX})
    for kv in answer.get("kvs", ()):
        made = decode(kv.get("value", "")).decode(errors="replace").partition(" ")[2]
        if made.isdigit() and int(made) < time.time() - _LEFT_OVER_SECS:
            same = {"key": kv["key"], "target": "MOD", "result": "EQUAL", "mod_revision": kv["mod_revision"]}
            gateway.call("/kv/txn", {"compare": [same], "success": [{"request_delete_range": {"key": kv["key"]}}]})
