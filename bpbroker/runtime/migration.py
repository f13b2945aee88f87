"""Moving a stopped broker's registry between its file and an etcd cluster.

Entries are copied with their revisions and read back; only then the configuration names the other
store. So it may be cut off anywhere and done again: equal entries that are
there already are no obstacle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bpbroker.config import layers, schema
from bpbroker.errors import ConfigurationError, StartError, Unavailable
from bpbroker.record import Record
from bpbroker.registry import discovery_secret
from bpbroker.registry.changes import Change, Committed, Group, State
from bpbroker.registry.entry_values import shown_names
from bpbroker.registry.stored import joined, outlives_sessions, split
from bpbroker.storage import offline
from bpbroker.storage.embedded.revisions import Revisions
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.store import EtcdStore
from bpbroker.storage.lock_file import FileLock
from bpbroker.storage.sources import Sources

_AT_ONCE: Final = 100

Tell = Callable[[int, int], None]
"""Hears how many entries of how many have been copied."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """What moving did, or would do."""

    copied: int
    same: int
    """Entries that were there already, just so."""
    left: tuple[str, ...]
    """Names of entries that were there with another content; that was kept."""
    kept: Path | None
    """A backup of the broker's file as it was; None if nothing was changed."""


def migrate(
    sources: Sources, target: str, *, merge: bool = False, dry_run: bool = False, tell: Tell = lambda _done, _all: None
) -> Migrated:
    """Copy all entries and let the configuration name the other store.

    Args:
        sources: the configuration of a stopped broker.
        target: ``etcd`` or ``embedded``.
        merge: whether other entries may be in the target; they stay as they are.
        dry_run: only say what would be done.
        tell: hears how far it is.

    Raises:
        InUse: a broker runs.
        ConfigurationError: the configuration, a file or what is in etcd cannot be used.
        StartError: the target holds other entries, or it is changed meanwhile.
        Unavailable: the cluster does not answer; doing it again goes on where it ended.
    """
    with FileLock(sources.own):
        settings = sources.load().effective
        if not schema.option(settings, "_registry", "endpoints"):
            raise ConfigurationError(
                "_registry.endpoints is missing: it must say where the etcd cluster is, such as"
                ' {"_registry": {"endpoints": ["https://10.0.0.5:2379"]}}'
            )
        again = schema.option(settings, "_registry", "store") == target
        store = EtcdStore(EtcdOptions.of(settings))
        try:
            with _asking(sources.own):
                state = store.open()
            move = _to_etcd if target == "etcd" else _to_file
            return move(sources.own, settings, store, state, _Terms(merge, dry_run, again, tell))
        finally:
            store.close()


@dataclass(frozen=True, slots=True)
class _Terms:
    merge: bool
    dry_run: bool
    again: bool
    """Whether the registry is in the target already, by the configuration."""
    tell: Tell


@contextmanager
def _asking(own: Path) -> Iterator[None]:
    """Add to an error of the cluster what it means for the file."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}. {own} was not changed") from None
    except Unavailable as error:
        raise Unavailable(
            f"{error}. {own} was not changed, and the registry is where it was; do it again when the cluster answers:"
            " entries are not copied twice"
        ) from None


def _to_etcd(own: Path, settings: Mapping[str, Any], store: EtcdStore, state: State, terms: _Terms) -> Migrated:
    saved, stored, origin = offline.state_of(own)
    commit = origin.commit if origin else 0
    entries, there = _of_file(stored, commit), _of_etcd(state)
    missing, same, left = compare(entries, there)
    where = f"The registry {schema.option(settings, '_registry', 'prefix')} in etcd"
    _check_others(entries, there, where, terms)
    largest = [name for name in missing if len(entries[name].json) > schema.ETCD_DATA_MAX_BYTES]
    if largest:
        raise ConfigurationError(
            f"etcd takes no entry of more than {schema.ETCD_DATA_MAX_BYTES} bytes: {shown_names(largest)}"
        )
    if terms.dry_run or (terms.again and not stored):
        return Migrated(len(missing), same, left, None)
    with _asking(own):
        store.raise_revisions(max(commit, Revisions(own).read()))
        _copy(store, {name: entries[name] for name in missing}, terms)
        now = _of_etcd(store.scan())
    lost = [name for name in missing if not _same(now.get(name), entries[name])]
    if lost:
        raise StartError(f"{where} is being changed by another program: {shown_names(lost)}; nothing was switched over")
    return Migrated(len(missing), same, left, offline.put(own, _with_store(saved, "etcd"), {}))


def _copy(store: EtcdStore, entries: Mapping[str, Record], terms: _Terms) -> None:
    done = 0
    for names in _pieces(list(entries)):
        terms.tell(done, len(entries))
        outcomes = store.commit([Group((Change(name, entries[name], 0),)) for name in names])
        for name, outcome in zip(names, outcomes, strict=True):
            if isinstance(outcome, Unavailable):
                raise outcome
            if not isinstance(outcome, Committed):
                raise StartError(
                    f"Another program has just written '{name}' to etcd; do it again when that program has ended"
                )
        done += len(names)
    terms.tell(done, len(entries))


def _to_file(own: Path, _settings: Mapping[str, Any], _store: EtcdStore, state: State, terms: _Terms) -> Migrated:
    saved, stored, origin = offline.state_of(own)
    there, entries = _of_file(stored, origin.commit if origin else 0), _of_etcd(state)
    missing, same, left = compare(entries, there)
    _check_others(entries, there, f"The file {own}", terms)
    if terms.dry_run or (terms.again and not missing):
        return Migrated(len(missing), same, left, None)
    terms.tell(0, len(missing))
    wanted = {name: joined(record) for name, record in {**entries, **there}.items()}
    secret = next(
        (seen.record.json for seen in state.entries if seen.record and seen.name == discovery_secret.NAME), None
    )
    if secret is not None:  # of a registry of its own it is a setting; the tokens that there are go on working
        saved = layers.override(saved, {"_discovery.secret": discovery_secret.secret_of(secret)})
    kept = offline.put(own, _with_store(saved, "embedded"), wanted, above=state.revision)
    read_back = offline.state_of(own).entries
    if any(read_back.get(name) != value for name, value in wanted.items()):
        raise StartError(f"{own} does not hold the entries that were written to it; its old state is kept as {kept}")
    terms.tell(len(missing), len(missing))
    return Migrated(len(missing), same, left, kept)


def compare(entries: Mapping[str, Record], there: Mapping[str, Record]) -> tuple[list[str], int, tuple[str, ...]]:
    """Return the names that are not there yet, how many are there just so, and the names that are there otherwise."""
    missing = sorted(entries.keys() - there.keys())
    left = tuple(sorted(name for name in entries.keys() & there.keys() if not _same(entries[name], there[name])))
    return missing, len(entries) - len(missing) - len(left), left


def _same(one: Record | None, other: Record) -> bool:
    return one is not None and one.json == other.json


def _check_others(entries: Mapping[str, Record], there: Mapping[str, Record], where: str, terms: _Terms) -> None:
    others = sorted(
        name for name, record in there.items() if not name.startswith("_") and not _same(entries.get(name), record)
    )
    if entries and others and not terms.merge:  # who brings nothing joins what is there
        raise StartError(
            f"{where} holds {len(others)} other entries ({shown_names(others)}). Nothing was changed;"
            " with --merge they stay unchanged, and missing entries are added"
        )
    missing = sorted(name for name in entries.keys() - there.keys() if not name.startswith("_"))
    if terms.again and there and missing and not terms.merge:
        raise StartError(
            f"{where} is in use already, and lacks {len(missing)} entries ({shown_names(missing)}): they may have been"
            " deleted there. Nothing was changed; with --merge they are added"
        )


def _moving(records: Iterable[Record]) -> dict[str, Record]:
    """Return the records that move, by name. Sessions stay behind, and so does what belongs to them.

    The discovery secret of a shared registry is a setting of one that is not, and the other way round.
    """
    return {
        record.name: record for record in records if outlives_sessions(record) and record.name != discovery_secret.NAME
    }


def _of_etcd(state: State) -> dict[str, Record]:
    return _moving(seen.record for seen in state.entries if seen.record is not None)


def _of_file(stored: Mapping[str, bytes], commit: int) -> dict[str, Record]:
    """Return what is in a file; a record without a revision has that of the last commit."""
    records = (split(name, value) for name, value in stored.items())
    return _moving(record if record.revision else record._replace(revision=commit) for record in records)


def _with_store(settings: Mapping[str, Any], store: str) -> dict[str, Any]:
    return layers.override(settings, {"_registry.store": store})


def _pieces(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]
