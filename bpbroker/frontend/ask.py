"""How a method of a built-in namespace is described: from parameters to a message, from its reply to a response."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from bpbroker.config import schema
from bpbroker.discovery.interfaces import fixed_for_loopback, for_loopback, is_loopback
from bpbroker.errors import BadRequest, RequestError
from bpbroker.frontend.parameters import Parameters
from bpbroker.registry.rights import Need
from bpbroker.server import response
from bpbroker.server.response import Response

_TAG: Final = re.compile(r'[ \t]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|\Z)')


@dataclass(frozen=True, slots=True)
class EntryLimits:
    """The largest sizes of an entry's parts."""

    name_bytes: int
    data_bytes: int
    depth: int


def loopback_writer(settings: Mapping[str, Any]) -> str | None:
    """Return the address that is noted for writers over loopback; see ``api.loopback_as`` and :func:`for_loopback`."""
    listen_ip: str = settings.get("api", {}).get("listen_ip", "")
    return fixed_for_loopback(schema.option(settings, "api", "loopback_as"), listen_ip)


def writer_of(settings: Mapping[str, Any], source: str) -> str:
    """Return the address that is noted as ``last_write_ip`` for a call from ``source``."""
    return for_loopback(source, loopback_writer(settings)) if is_loopback(source) else source


def limits_of(settings: Mapping[str, Any]) -> EntryLimits:
    """Return the limits that settings have."""
    return EntryLimits(
        name_bytes=schema.option(settings, "api", "max_name_bytes"),
        data_bytes=schema.option(settings, "api", "max_data_bytes"),
        depth=schema.option(settings, "api", "max_json_depth"),
    )


class Ask(NamedTuple):
    """A message for an actor and how its reply is shown."""

    message: Any
    show: Callable[[Any], Response]
    timeout_secs: float = 30.0
    heavy: bool = False
    """Whether ``show`` may take more than a millisecond."""
    patient: bool = False
    """Whether the client asked to wait."""
    late: RequestError = response.LATE
    """The error when there was no reply in time."""
    heavy_if: Callable[[Any], bool] | None = None
    """Whether ``show`` may take more than a millisecond for this reply; asked when that is not known before."""
    size_of: Callable[[Any], int] | None = None
    """About how many bytes ``show`` makes of the reply; None if it is small."""


Touches = Callable[[str, str, Parameters], Iterable[Need]]
"""Returns what a call does, by namespace, method and parameters."""


def a_name(namespace: str, method: str, parameters: Parameters) -> tuple[Need, ...]:
    """Return the needs of a method that is about one name."""
    return (Need(namespace, method, str(parameters.values.get("name", ""))),)


def a_prefix(namespace: str, method: str, parameters: Parameters) -> tuple[Need, ...]:
    """Return the needs of a method that is about all names with a prefix."""
    return (Need(namespace, method, str(parameters.values.get("prefix", ""))),)


def no_name(namespace: str, method: str, _parameters: Parameters) -> tuple[Need, ...]:
    """Return the needs of a method that is about no name."""
    return (Need(namespace, method),)


Decide = Callable[[Parameters, Mapping[str, str], str, EntryLimits], Ask | Response]


@dataclass(frozen=True, slots=True)
class Action:
    """One method of a built-in namespace."""

    decide: Decide
    """Returns the message, or the response, for parameters, header fields, source address and limits."""
    allow: tuple[str, ...]
    """HTTP methods that it is called with."""
    touches: Touches
    """Returns what a call with these parameters does, for the rights of a named key."""
    keeps_source: bool = True
    """Whether the caller's address is kept where other hosts see it."""


def tags_of(field: str, header: str) -> tuple[str, ...]:
    """Return the entity tags in a header field, at least one: a condition must not get lost by a mistake in it.

    Raises:
        BadRequest: there is something else in it.
    """
    if header.strip() == "*":
        return ("*",)
    tags: list[str] = []
    position = 0
    while position < len(header) or not tags:
        match = _TAG.match(header, position)
        if match is None:
            raise BadRequest(f'{field} must be * or entity tags in double quotes, such as "0123abcd"')
        tags.append(match[1])
        position = match.end()
    return tuple(tags)
