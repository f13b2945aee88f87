"""What the end of an extension's call means: the answer to the client, the line in the log, the figures for health."""

from __future__ import annotations

import logging
import time
from typing import Any

from bpbroker.errors import ExtensionFailed, RequestError, TimedOut, TooLarge, Unauthorized
from bpbroker.extensions.child_pool import Ending
from bpbroker.extensions.child_process import NoMethod, Raised
from bpbroker.messages import Call, CallResult

logger = logging.getLogger(__name__)


class CallResults:
    """Judges the calls of one namespace and counts."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self.calls = 0
        self._failures = 0
        self.outcomes = {"answered": 0, "failed": 0, "crashed": 0, "late": 0, "refused": 0}
        """How many calls ended how; refused are those for which the queue had no room."""
        self._last_error = ""
        self._last_error_at = 0.0

    def figures(self) -> dict[str, Any]:
        """Return the numbers since the start."""
        found: dict[str, Any] = {"calls": self.calls, "failures": self._failures}
        if self._last_error:
            found.update(last_error=self._last_error, last_error_at=self._last_error_at)
        return found

    def judge(self, call: Call, outcome: Ending) -> CallResult | RequestError:
        """Return the answer to a call that ended this way."""
        if isinstance(outcome, CallResult):
            self.outcomes["answered"] += 1
            return outcome
        if isinstance(outcome, NoMethod):
            self.outcomes["answered"] += 1
            return Unauthorized("Unauthorized method")
        if isinstance(outcome, Raised):
            self.outcomes["failed"] += 1
            return self._failed(call, f"failed: {outcome}", "failed", outcome.trace)
        if isinstance(outcome, ValueError):
            self.outcomes["failed"] += 1
            return TooLarge(str(outcome))
        self.outcomes["crashed"] += 1
        return self._failed(call, f"ended its process: {outcome}", "crashed")

    def too_late(self, call: Call, limit_secs: float) -> TimedOut:
        """Return the answer to a call that was killed at its time limit."""
        self.outcomes["late"] += 1
        self._note(call, f"took longer than {limit_secs:g} s and was killed")
        error = TimedOut(f"{call.method} took longer than {limit_secs:g} s and was stopped")
        error.outcome_known = False
        return error

    def _failed(self, call: Call, happened: str, told: str, trace: str = "") -> ExtensionFailed:
        self._note(call, happened, trace)
        error = ExtensionFailed(f"{call.method} {told}; the broker's log says more under {call.request_id}")
        error.outcome_known = False
        return error

    def _note(self, call: Call, happened: str, trace: str = "") -> None:
        self._failures += 1
        self._last_error = f"{call.method} {happened}, request {call.request_id}"
        self._last_error_at = time.time()
        error = (ChildTrace, ChildTrace(trace), None) if trace else None
        logger.error(
            "%s.%s %s, request %s", self._namespace, call.method, happened, call.request_id,
            exc_info=error, extra={"request_id": call.request_id},
        )  # fmt: skip


class ChildTrace(Exception):
    """Carries a traceback from an extension's process into the log."""

    def __str__(self) -> str:
        return f"in the extension's process\n{str(self.args[0]).rstrip()}"
