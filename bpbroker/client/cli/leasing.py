"""``service register --ttl``: an entry in a session of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bpbroker.client.recipes.session import new_id
from bpbroker.errors import BpbrokerError, UsageError

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
