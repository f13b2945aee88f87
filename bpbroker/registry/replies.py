"""What the registry answers when it cannot do what it was asked. Pure but for the log."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any

from bpbroker.errors import NotFound, StorageFailed, Unavailable
from bpbroker.messages import Record, fail, settle

logger = logging.getLogger(__name__)


def not_found(name: str) -> NotFound:
    """Give the error that there is no such entry."""
    return NotFound(f"Entry '{name}' not found")


def failure_of(error: BaseException) -> Unavailable:
    """Give what a failed commit means to its writers."""
    if isinstance(error, Unavailable):
        return error
    logger.error("The store failed in a way that it should not", exc_info=error)
    failure = StorageFailed("Whether this was changed is not known; the broker's log has the reason")
    failure.outcome_known = False
    return failure


def refusal(failure: Unavailable, *, decided: bool) -> Unavailable:
    """Give each caller an error of its own; a write that was refused anyway has certainly changed nothing."""
    result = type(failure)(str(failure) if decided else "Nothing was changed; a write before it could not be stored")
    result.outcome_known = failure.outcome_known or not decided
    return result


def answer(reply: Future[Any] | None, verdict: Record | BaseException | None) -> None:
    """Give a request its answer or its error."""
    if reply is None:
        return
    if isinstance(verdict, BaseException):
        fail(reply, verdict)
    else:
        settle(reply, verdict)
