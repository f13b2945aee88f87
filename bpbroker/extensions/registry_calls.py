"""What a method asks of ``rh.registry``, on its way to the registry: a call as a client makes it. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from bpbroker.errors import BadRequest, RequestError
from bpbroker.messages import Call


class Shown(Protocol):
    """The answer that a client would get."""

    @property
    def body(self) -> bytes:
        """JSON; empty if nothing has changed."""


class Question(Protocol):
    """A message for the registry, and how its reply is shown."""

    @property
    def message(self) -> Any:
        """The message that the registry gets."""

    @property
    def show(self) -> Callable[[Any], Shown]:
        """Makes the answer from the reply."""


Understand = Callable[[str, Mapping[str, Any], Mapping[str, str], str, Mapping[str, Any]], Question]
"""Function of a registry's method, its parameters, header fields, the source address and the settings."""


def question_of(call: Call, asked: Mapping[str, Any], understand: Understand, settings: Mapping[str, Any]) -> Question:
    """Return what a method asks; nothing in it is trusted.

    Raises:
        BadRequest, TooLarge: it is not what a client might ask.
    """
    method, parameters, fields = asked.get("method"), asked.get("parameters"), asked.get("fields")
    if not (isinstance(method, str) and isinstance(parameters, dict) and isinstance(fields, dict)):
        raise BadRequest("This is no call of the registry")
    if not all(isinstance(value, str) for value in fields.values()):
        raise BadRequest("A header field must be text")
    return understand(method, parameters, fields, call.source, settings)


def answered(question: Question, value: Any) -> dict[str, Any]:
    """Return the frame for a reply of the registry."""
    body = question.show(value).body
    return {"status": 200, "answer": json.loads(body) if body else {}}


def refused(error: RequestError) -> dict[str, Any]:
    """Return the frame for a refusal."""
    data = None if error.data is None else dict(error.data)
    told = {"data": data, "failed": error.failed, "revision": error.entry_revision}
    return {"status": error.status, "message": str(error), **told}
