"""``service register --ttl`` and ``service list --lost``: entries that end with a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bpbroker.client.cli import output
from bpbroker.errors import BpbrokerError, UsageError
from bpbroker.recipes.coordination import Entry
from bpbroker.recipes.session import new_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bpbroker.client.cli.output import Output
    from bpbroker.client.cli.session import Session


def register_for(
    session: Session, ttl_secs: float, options: Mapping[str, Any], register: Callable[[Mapping[str, Any]], Output]
) -> Output:
    """Open a session, register in it, and say its id; a session without its entry is closed again."""
    if options["owner"]:
        raise UsageError("--ttl makes a session; it does not go with --session")
    held = new_id()
    client, _ = session.client()
    with client:
        client.calls.registry("Open", {"session": held, "ttl": ttl_secs}, repeatable=True)
        try:
            shown = register({"owner": held})
        except BpbrokerError:
            client.calls.registry("Close", {"session": held}, repeatable=True)
            raise
    if options["raw"]:
        import json

        value = {**shown.value, "session": held}
        shown.text, shown.value, shown.rows = f"{json.dumps(value)}\n".encode(), value, [value]
    else:
        session.tell(f"Its session is {held}: renew it with `bpclient session renew {held}`")
    return shown


def lost(session: Session, *, prefix: str, keys: bool, raw: bool) -> Output:
    """Print the entries that went lately with their session."""
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        found = client.calls.registry("List", {"prefix": prefix, "lost": "1"}, repeatable=True).data
    if raw:
        return output.of_raw(client.response)
    if keys:
        return output.of_names(list(found))
    return output.of_entries({name: _last(told) for name, told in found.items()})


def _last(told: Mapping[str, Any]) -> Entry:
    """Return an entry's last value, with the time of its end and its session."""
    return Entry({**told["entry"], "lost_ts": told["when"], "lost_session": told["session"]})
