"""The registry's replies, mostly errors. Pure, except for the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from bpbroker.errors import BpbrokerError, NotFound, StorageFailed, Unavailable
from bpbroker.messages import fail, settle

logger = logging.getLogger(__name__)


def not_found(name: str) -> NotFound:
    """Return the error that there is no such entry."""
    return NotFound(f"Entry '{name}' not found")


def write_failure(error: BaseException) -> Unavailable:
    """Return the error of a failed commit's writes."""
    if isinstance(error, Unavailable):
        return error
    logger.error("The store failed in a way that it should not", exc_info=error)
    failure = StorageFailed("Whether this was changed is not known; the broker's log has the reason")
    failure.outcome_known = False
    return failure


def read_failure(error: BaseException) -> Unavailable:
    """Return the error of a failed read of the store; it has changed nothing."""
    if isinstance(error, Unavailable):
        error.outcome_known = True
        return error
    if not isinstance(error, BpbrokerError):
        logger.error("The store failed in a way that it should not", exc_info=error)
    return Unavailable("The registry's store failed; the broker's log has the reason")


def refusal(failure: Unavailable, *, decided: bool) -> Unavailable:
    """Return an error for one write; a write that was refused has certainly changed nothing."""
    result = type(failure)(str(failure) if decided else "Nothing was changed; a write before it could not be stored")
    result.outcome_known = failure.outcome_known or not decided
    return result


Reply = Future[Any] | Callable[[Any], None]
"""Where a reply goes. An actor's own function is called in its thread; it costs less than a future, which has a
lock."""


def send(reply: Reply | None, value: Any) -> None:
    """Settle a reply with a value, or with an error if ``value`` is one. Does nothing if no reply was wanted (None)."""
    if reply is None:
        return
    if not isinstance(reply, Future):
        reply(value)
    elif isinstance(value, BaseException):
        fail(reply, value)
    else:
        settle(reply, value)
