"""Serves ``rh.registry``: what an extension's method asks of the registry while its call runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from bpbroker.actors.base import wait_for
from bpbroker.errors import RequestError
from bpbroker.extensions.registry_calls import Understand, answered, question_of, refused
from bpbroker.messages import Address, Call, Settings
from bpbroker.registry.requests import Open
from bpbroker.registry.writes import WRITES, Change, changes_of

logger = logging.getLogger(__name__)

ANSWER_SECS: Final = 10.0

Changed = Callable[[Call, Change], object]
"""Takes a call, and a change that was made or refused in it."""


class RegistryAccess:
    """Asks the registry for a method; blocks, so it is for the thread that drives the method's process.

    Args:
        registry: whom it asks.
        understand: makes a message of a call, as the frontend does for a client's.
        settings: returns those in force.
        changed: told each change, and each that was refused.
    """

    def __init__(
        self,
        registry: Address,
        understand: Understand,
        settings: Callable[[], Settings],
        changed: Changed = lambda *_: None,
    ) -> None:
        self._registry = registry
        self._understand = understand
        self._settings = settings
        self._changed = changed

    def serve(self, call: Call, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the frame that answers what a method asked; see :meth:`bpbroker.extensions.Registry.ask`."""
        message: Any = None
        try:
            question = question_of(call, asked, self._understand, self._settings())
            message = question.message
            if isinstance(message, Open):
                message = replace(message, key=call.caller)
            secs = ANSWER_SECS + getattr(message, "wait_secs", 0.0)
            value = wait_for(self._registry.ask(message, secs), secs)
            self._tell(call, message, value)
            return answered(question, value)
        except RequestError as error:
            self._tell(call, message, error)
            return refused(error)
        except Exception:
            logger.exception("The registry could not serve an extension, request %s", call.request_id)
            return {"status": 500, "message": "The registry could not serve this"}

    def _tell(self, call: Call, message: Any, outcome: Any) -> None:
        """Tell what a message changed, or was not allowed to change; what only reads is no change."""
        if type(message) in WRITES:
            for change in changes_of(message, outcome):
                self._changed(call, change)
