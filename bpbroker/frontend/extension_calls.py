"""Calls of the registry by an extension's method: read in the same way as a client's requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bpbroker.errors import BadRequest
from bpbroker.frontend.actions import BUILT_IN
from bpbroker.frontend.ask import Ask, limits_of, writer_of
from bpbroker.frontend.parameters import Parameters


def understand(
    method: str, parameters: Mapping[str, Any], fields: Mapping[str, str], source: str, settings: Mapping[str, Any]
) -> Ask:
    """Return the message for a call, and how its reply is shown.

    Args:
        method: of ``services``.
        parameters: JSON values.
        fields: header fields, such as ``if-match``.
        source: the address for which the method works.
        settings: those in force.

    Raises:
        BadRequest, TooLarge: a client's request like this would be refused, too.
    """
    action = BUILT_IN["services"].get(method)
    writer = writer_of(settings, source)
    asked = action and action.decide(Parameters(parameters, ()), fields, writer, limits_of(settings))
    if not isinstance(asked, Ask):
        raise BadRequest(f"The registry has no method {method[:80]!r}")
    return asked
