"""``session``, ``lock`` and ``once``: hold a session or a lock while a command runs."""

from __future__ import annotations

import json
import socket

from bpbroker.client.cli import output
from bpbroker.client.cli.keeper import LOST, CannotRun, Keeper, end_orderly, wait_for_signal
from bpbroker.client.cli.locale_encoding import for_system
from bpbroker.client.cli.words import content, seconds
from bpbroker.errors import BpbrokerError, LockLost, NotFound, SessionLost, UsageError
from bpbroker.recipes.lock import Lock
from bpbroker.recipes.once import Once
from bpbroker.recipes.session import RenewedSession as Held

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

    from bpbroker.client.api import Client
    from bpbroker.client.cli.output import Output
    from bpbroker.client.cli.session import Session


def run(
    session: Session, *, ttl: str, name: str | None, data: str | None, data_raw: str | None, command: tuple[str, ...]
) -> NoReturn:
    """Keep a session, and an entry of it, while a command runs."""
    if name is None and (data is not None or data_raw is not None):
        raise UsageError("--data is of an entry: give --name as well")
    text = _text(data, data_raw)
    if name is not None:
        session.doubt_name(name)
    end_orderly()
    with _client(session) as client:
        held = Held(client, seconds(ttl))
        held.open()
        try:
            if name is not None:
                client.replace(name, "{}" if text is None else text, session=held)
            if command:
                keeper = Keeper(command, {"BPBROKER_SESSION": for_system(held.id)})
                held.told = keeper.wake
                code = keeper.run(held)
            else:
                code = wait_for_signal(held)
        finally:
            _close(held)
    if code == LOST and held.lost.is_set():
        raise SessionLost(f"The session {held.id} is lost: {held.reason or 'it was not renewed in time'}")
    raise SystemExit(code)


def renew(session: Session, *, session_id: str) -> Output:
    """Renew a session once."""
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        client.calls.registry("Renew", {"session": session_id}, repeatable=True)
        return output.of_response(client.response, b"")


def close(session: Session, *, session_id: str) -> Output:
    """End a session: its entries and its places in locks go."""
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        client.calls.registry("Close", {"session": session_id}, repeatable=True)
        return output.of_response(client.response, b"")


def lock(
    session: Session,
    *,
    name: str,
    ttl: str,
    wait: str | None,
    data: str | None,
    data_raw: str | None,
    limit: int | None,
    command: tuple[str, ...],
) -> NoReturn:
    """Hold a lock while a command runs."""
    Keeper(command, {})  # without a command nothing is locked
    text = _text(data, data_raw)
    end_orderly()
    with _client(session) as client:
        held = Lock(client, name, ttl_secs=seconds(ttl), data=_host() if text is None else text, limit=limit or 1)
        with session.waiting_for(f"the lock '{name}' on {client.address}"):
            held.take(_until(session, wait))
        try:
            keeper = Keeper(command, {"BPBROKER_LOCK": held.fence})
            assert held.session is not None  # noqa: S101 - it was taken
            held.session.told = keeper.wake
            code = keeper.run(held.session)
        finally:
            _release(held)
    if keeper.lost:
        raise LockLost(f"The lock '{name}' is lost: {held.session.reason or 'it was not renewed in time'}")
    raise SystemExit(code)


def holder(session: Session, *, name: str, wait: str | None, changed_from: str, raw: bool) -> Output:
    """Print the data of each holder of a lock."""
    if changed_from and not (changed_from.isascii() and changed_from.isdigit() and len(changed_from) <= 16):
        raise UsageError(f"{changed_from[:40]!r} is no token; `bpclient lock holder --name {name}` shows it")
    token = int(changed_from) if changed_from else None
    client, left = session.client(seconds(wait) if wait else 0.0)
    with client, session.waiting_for(f"a holder of '{name}' on {client.address}"):
        found = client.holder(name, wait_secs=left, changed_from=token)
        if raw:
            return output.of_raw(client.response)
    if not found["holders"] and not (wait and token is not None):
        raise NotFound(f"The lock '{name}' has no holder")
    return output.of_holders(found["holders"])


def once(
    session: Session,
    *,
    name: str,
    ttl: str,
    wait: str | None,
    attempts: int | None,
    keep_output: bool,
    command: tuple[str, ...],
) -> Output:
    """Run a command on one host, once."""
    Keeper(command, {})
    end_orderly()
    with _client(session) as client:
        all_of_it = Once(
            client, name, by=_host(), ttl_secs=seconds(ttl), wait_secs=_until(session, wait), attempts=attempts or 3
        )
        mine: list[int] = []
        cannot: list[CannotRun] = []

        def work() -> Mapping[str, Any]:
            held = all_of_it.lock.session
            assert held is not None  # noqa: S101 - work runs under the lock
            keeper = Keeper(command, {"BPBROKER_LOCK": all_of_it.lock.fence}, keep_output=keep_output)
            held.told = keeper.wake
            try:
                code = keeper.run(held)
            except CannotRun as error:
                cannot.append(error)
                return {"exit": error.exit_code}
            if keeper.lost:
                raise LockLost(f"The lock '{name}' is lost: {held.reason or 'it was not renewed in time'}")
            mine.append(code)
            return {"exit": code, **({"output": keeper.output} if keep_output else {})}

        with session.waiting_for(f"'{name}' on {client.address}"):
            state = all_of_it.run(work)
    if cannot:  # the entry says that the work failed
        raise cannot[-1]
    if mine:
        raise SystemExit(mine[-1])
    code = state.get("exit")
    failed = state.get("state") != "done"
    if failed:
        session.tell(f"'{name}' failed {state.get('attempt')} times, the last time on {state.get('by')}")
    printed = state.get("output") if keep_output else None
    text = printed.encode() if isinstance(printed, str) else b""
    # An exit code of Windows has 32 bits; here the lowest eight count, and they may be 0.
    exit_code = (code if isinstance(code, int) and code & 0xFF else 1) if failed else 0
    return output.Output(text, state, [state], exit_code=exit_code)


def _client(session: Session) -> Client:
    """Return a client whose calls --timeout does not end: locks and sessions have to be given back, too."""
    client, _ = session.client()
    return client.sibling()


def _until(session: Session, wait: str | None) -> float:
    """Return how many seconds to wait for others: by --wait, at most --timeout; perhaps infinite."""
    return min(seconds(wait) if wait else float("inf"), session.left())


def _text(data: str | None, data_raw: str | None) -> str | None:
    if data is not None and data_raw is not None:
        raise UsageError("--data and --data-raw are both given; give one of them")
    return data_raw if data is None else content(data, "--data")


def _host() -> str:
    return socket.gethostname() or "localhost"


def _close(held: Held) -> None:
    try:
        if not held.lost.is_set():
            held.close()
    except BpbrokerError:
        pass  # it ends with its ttl


def _release(held: Lock) -> None:
    try:
        if held.locked():
            held.release()
    except BpbrokerError:
        pass  # it ends with the session's ttl


def shown(data: Any) -> str:
    """Return the data of a holder as one line."""
    return data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
