"""Serves ``rh.registry``: what an extension's method asks of the registry while its call runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from bpbroker.actors.base import wait_for
from bpbroker.errors import RequestError
from bpbroker.extensions.registry_calls import message_of, plain
from bpbroker.messages import Address, Call, Get

logger = logging.getLogger(__name__)

ANSWER_SECS: Final = 10.0


class RegistryAccess:
    """Asks the registry for a method; blocks, so it is for the thread that drives the method's process."""

    def __init__(self, registry: Address) -> None:
        self._registry = registry

    def serve(self, call: Call, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the frame that answers what a method asked; see :class:`bpbroker.extensions.rh.Registry`."""
        try:
            message = message_of(call, asked)
            secs = ANSWER_SECS + (message.wait_secs if isinstance(message, Get) else 0.0)
            value = wait_for(self._registry.ask(message, secs), secs)
        except RequestError as error:
            return {"status": error.status, "message": str(error)}
        except Exception:
            logger.exception("The registry could not serve an extension, request %s", call.request_id)
            return {"status": 500, "message": "The registry could not serve this"}
        return {"value": plain(value)}
