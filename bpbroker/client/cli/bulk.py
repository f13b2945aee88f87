"""``batch``, ``service export``, ``import`` and ``delete --prefix``: many entries at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from bpbroker.client.cli import output
from bpbroker.client.cli.words import content
from bpbroker.errors import BadRequest, BatchFailed, BpbrokerError, RequestError, UsageError, from_status
from bpbroker.recipes.batch import Batch, pieces
from bpbroker.registry import entry_values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from bpbroker.client.api import Client
    from bpbroker.client.cli.output import Output
    from bpbroker.client.cli.session import Session
    from bpbroker.recipes.coordination import Entry

_INPUT_MAX_BYTES: Final = 1024 * 1024 * 1024
_NEW: Final = ("Register", "Replace", "Update")
"""Operations of a batch that may name a session."""
_WRITES: Final = (*_NEW, "Delete", "Allocate", "Release", "Next", "Take", "Ack")
"""Operations of a batch that may name a lock."""


def batch(session: Session, *, file: str, no_atomic: bool) -> Output:
    """Carry out the operations in a file, all or none."""
    text = content(file if file == "-" else f"@{file}", "--file")
    try:
        value = entry_values.strict_json(text, what="The batch", max_depth=entry_values.DEPTH_MAX + 4)
    except (ValueError, BadRequest) as error:
        raise UsageError(f"The batch is no JSON: {error}") from None
    atomic, batch_id = not no_atomic, ""
    if isinstance(value, dict):
        atomic = atomic and value.get("atomic", True) is True
        batch_id = value.get("id", "")
        if not isinstance(batch_id, str):
            raise UsageError("The batch's id must be text")
        value = value.get("operations")
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        raise UsageError('The batch must be a list of operations, such as [{"method": "Register", "name": …}]')
    for each in value:
        if isinstance(each.get("data"), (dict, list)):
            each["data"] = json.dumps(each["data"], ensure_ascii=False)
        if each.get("method") in _NEW and session.belongs_to():
            each.setdefault("session", session.belongs_to())
        if each.get("method") in _WRITES and session.fenced_by():
            each.setdefault("lock", session.fenced_by())
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        made = Batch(client, atomic=atomic, operations=value, batch_id=batch_id)
        try:
            results = made.commit()
        except BatchFailed as error:
            raise _with_code(error) from None
    rows = [dict(each) for each in results]
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
    failed = next((row for row in rows if row.get("status", 200) >= 400), None)
    code = from_status(int(failed["status"]), "").exit_code if failed else 0
    return output.Output(lines, rows, rows, many=True, exit_code=code)


def export(session: Session, *, prefix: str) -> Output:
    """Print entries, a line of JSON each, for import."""
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        entries = client.list(prefix)
    rows = [{"name": name, "data": found.own} for name, found in sorted(entries.items())]
    return output.Output("".join(map(_line, rows)).encode(), rows, rows, many=True)


def import_(session: Session, *, prefix: str, prune: bool, dry_run: bool, keep: bool) -> Output:
    """Write the entries that standard input has."""
    wanted = dict(_entries(content("-", "import", _INPUT_MAX_BYTES)))
    stray = next((name for name in wanted if not name.startswith(prefix)), None)
    if stray is not None:
        raise UsageError(f"The entry '{stray}' does not begin with {prefix!r}; nothing was changed")
    if prune and not wanted and not prefix:
        raise UsageError("Standard input has no entries, and --prune would remove all; give --prefix if that is meant")
    client, _ = session.client()
    with client:
        there = _there(session, client, prefix)
        operations: list[Mapping[str, Any]] = []
        for name, own in wanted.items():
            if name in there and (keep or there[name].own == own):
                continue
            method = "Register" if keep else "Replace"
            operations.append({"method": method, "name": name, "data": json.dumps(own, ensure_ascii=False)})
        if prune:
            operations += [{"method": "Delete", "name": name} for name in there if name not in wanted]
        _carry_out(session, client, operations, dry_run=dry_run, lenient=409 if keep else 0)
    return _done(session, operations, dry_run=dry_run)


def delete(session: Session, *, prefix: str, dry_run: bool) -> Output:
    """Remove all entries whose names begin with ``prefix``."""
    if not prefix:
        raise UsageError("--prefix is empty: that would remove every entry; give the beginning of their names")
    client, _ = session.client()
    with client:
        there = _there(session, client, prefix)
        operations: list[Mapping[str, Any]] = [{"method": "Delete", "name": name} for name in there]
        _carry_out(session, client, operations, dry_run=dry_run)
    return _done(session, operations, dry_run=dry_run)


def _there(session: Session, client: Client, prefix: str) -> dict[str, Entry]:
    """Return the existing entries."""
    with session.waiting_for(f"the entries '{prefix}…' on {client.address}"):
        return client.list(prefix)


def _carry_out(
    session: Session, client: Client, operations: Sequence[Mapping[str, Any]], *, dry_run: bool, lenient: int = 0
) -> None:
    """Send operations in batches; the first one that is refused ends it.

    Args:
        session: for progress, and for the lock that a surrounding command holds.
        client: of the broker.
        operations: what to do.
        dry_run: do nothing.
        lenient: an HTTP status that does not count as a failure.
    """
    if dry_run or not operations:
        return
    done = 0
    fence = session.fenced_by()
    fenced = [{**each, "lock": fence} for each in operations] if fence else operations
    with session.waiting_for(f"broker {client.address}") as waiting:
        for piece in pieces(fenced):
            waiting.step(done, len(operations))
            for operation, result in zip(piece, Batch(client, atomic=False, operations=piece).commit()):  # noqa: B905 - Python 3.9
                status = int(result.get("status", 500))
                if status >= 400 and status != lenient:
                    raise from_status(
                        status, f"{operation['name']}: {result.get('message')}; {done} of {len(operations)} are done"
                    )
                done += 1


def _done(session: Session, operations: Sequence[Mapping[str, Any]], *, dry_run: bool) -> Output:
    rows = [{"method": each["method"], "name": each["name"]} for each in operations]
    session.tell(f"{len(rows)} entries {'would be' if dry_run else 'were'} written or removed")
    text = "".join(f"{row['method'].lower()} {row['name']}\n" for row in rows).encode()
    return output.Output(text, rows, rows, many=True)


def _entries(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and own keys of each line.

    Raises:
        UsageError: a line is no entry; nothing was changed.
    """
    seen = set()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = entry_values.strict_json(line, what="The line", max_depth=entry_values.DEPTH_MAX + 1)
            if not isinstance(value, dict) or set(value) != {"name", "data"} or not isinstance(value["data"], dict):
                raise BadRequest('it must be {"name": …, "data": {…}}')
            name = entry_values.check_name(value["name"])
            own = entry_values.check_object(value["data"])
            if name in seen:
                raise BadRequest(f"the entry '{name}' is there twice")
        except (ValueError, RequestError) as error:
            raise UsageError(f"Line {number} of standard input is no entry: {error}; nothing was changed") from None
        seen.add(name)
        yield name, own


def _with_code(error: BatchFailed) -> BpbrokerError:
    """Return the error with the exit code of what was refused."""
    return type(error.error)(str(error)) if type(error.error).__init__ is BpbrokerError.__init__ else error


def _line(row: Mapping[str, Any]) -> str:
    return f"{json.dumps(row, ensure_ascii=False)}\n"
