"""Serves ``rh.registry``: what an extension's method asks of the registry while its call runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from bpbroker.actors.base import wait_for
from bpbroker.errors import RequestError
from bpbroker.extensions.registry_calls import Understand, answered, question_of, refused
from bpbroker.messages import Address, Call, Settings

logger = logging.getLogger(__name__)

ANSWER_SECS: Final = 10.0


class RegistryAccess:
    """Asks the registry for a method; blocks, so it is for the thread that drives the method's process.

    Args:
        registry: whom it asks.
        understand: makes a message of a call, as the frontend does for a client's.
        settings: returns those in force.
    """

    def __init__(self, registry: Address, understand: Understand, settings: Callable[[], Settings]) -> None:
        self._registry = registry
        self._understand = understand
        self._settings = settings

    def serve(self, call: Call, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the frame that answers what a method asked; see :meth:`bpbroker.extensions.Registry.ask`."""
        try:
            question = question_of(call, asked, self._understand, self._settings())
            secs = ANSWER_SECS + getattr(question.message, "wait_secs", 0.0)
            return answered(question, wait_for(self._registry.ask(question.message, secs), secs))
        except RequestError as error:
            return refused(error)
        except Exception:
            logger.exception("The registry could not serve an extension, request %s", call.request_id)
            return {"status": 500, "message": "The registry could not serve this"}
