"""What the local ``bpbroker`` command may ask of the running broker under ``/_control``. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from bpbroker import messages
from bpbroker.frontend.ask import Ask
from bpbroker.server import response
from bpbroker.server.response import Response

BULK_SECS: Final = 3600.0
"""What writes or reads a file takes as long as that takes on this disk. The broker looks whether it goes on."""


def _show(value: Any) -> Response:
    return response.success_with(response.plain(value))


def _simple(actor: str, message: Callable[[], Any], timeout_secs: float = 60.0) -> _Action:
    return lambda _document: (actor, Ask(message(), _show, timeout_secs, heavy=True))


_Action = Callable[[Mapping[str, Any]], tuple[str, Ask]]

CONTROL: Final[Mapping[str, _Action]] = {
    "Status": _simple("healthcheck", lambda: messages.Health(folders=True)),
    "Backup": _simple("backup", messages.BackupNow, BULK_SECS),
    "Backups": _simple("backup", messages.ListBackups),
    "Reload": _simple("broker", messages.Reload, BULK_SECS),
    "Stop": _simple("broker", messages.Stop),
    "ApplyConfiguration": lambda document: (
        "broker",  # which asks the config store, and answers when all parts work by it
        Ask(messages.ApplyConfiguration(document), _show, BULK_SECS, heavy=True),
    ),
}
"""Method to what it asks of which actor; each takes the request's JSON object."""
