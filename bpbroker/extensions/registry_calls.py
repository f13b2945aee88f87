"""What a method asks of ``rh.registry``, as messages to the registry, and its replies as JSON values. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from bpbroker.errors import BadRequest
from bpbroker.messages import WAIT_MAX_SECS, Call, Delete, Deleted, Get, List, Record, Register, Replace, Update
from bpbroker.registry import entry
from bpbroker.registry.writes import Write

_WRITES: Final[Mapping[str, type[Register | Replace | Update]]] = {
    "Register": Register,
    "Replace": Replace,
    "Update": Update,
}


def message_of(call: Call, asked: Mapping[str, Any]) -> Write | Get | List:
    """Return the registry's message for what a method asked; nothing in it is trusted.

    Raises:
        BadRequest, TooLarge: it is not what a client might ask.
    """
    operation = asked.get("operation")
    if operation == "List":
        return List(_text(asked, "prefix"))
    name = entry.check_name(asked.get("name"))
    if operation == "Delete":
        return Delete(name)
    if operation == "Get":
        wait_secs = asked.get("wait_secs")
        if not isinstance(wait_secs, (int, float)) or not 0 <= wait_secs <= WAIT_MAX_SECS:
            raise BadRequest(f"wait_secs must be from 0 to {WAIT_MAX_SECS:g}")
        return Get(name, float(wait_secs))
    write = _WRITES.get(str(operation))
    if write is not None:
        return write(name, entry.parse(_text(asked, "data")), call.source)
    raise BadRequest("The registry does not know this operation")


def plain(value: Record | tuple[Record, ...] | Deleted | None) -> Any:
    """Return the registry's reply as JSON values."""
    if isinstance(value, Record):
        return json.loads(value.json)
    return (
        None
        if value is None or isinstance(value, Deleted)
        else {record.name: json.loads(record.json) for record in value}
    )


def _text(asked: Mapping[str, Any], key: str) -> str:
    value = asked.get(key)
    if not isinstance(value, str):
        raise BadRequest(f"{key} must be text")
    return value
