"""Serves ``rh.registry``: the calls of the registry by an extension's method."""

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
"""Called with a call, and a change that was made or refused in it."""


class RegistryAccess:
    """Asks the registry for an extension's method. It blocks, so it runs in the driver's thread.

    Args:
        registry: its address.
        understand: makes the message of a call, as the frontend does for a client's request.
        settings: returns the settings in force.
        changed: called with each change, also with a refused one.
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
        """Return the frame with the reply to a method's call; see :meth:`bpbroker.extensions.Registry.ask`."""
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
        """Report the change of a message, made or refused; a read is no change."""
        if type(message) in WRITES:
            for change in changes_of(message, outcome):
                self._changed(call, change)
