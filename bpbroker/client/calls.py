"""Calls to a broker: one request and its response, tried again where safe, or repeated until a wait ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping

from bpbroker import errors
from bpbroker.client.address import NotReached
from bpbroker.client.answers import Registered, refusal, registered
from bpbroker.client.http1 import Response
from bpbroker.client.transport import Deadline, Interrupted, Transport
from bpbroker.errors import (
    BpbrokerError,
    CannotConnect,
    NotFound,
    NotTrusted,
    RequestError,
    TimedOut,
    Unauthorized,
    Unavailable,
    UsageError,
    WaitTimeout,
)
from bpbroker.recipes.coordination import Entry
from bpbroker.retry import pauses

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Any, Final, TypeVar

    T = TypeVar("T")

POLL_SECS: Final = 60.0
"""How long one request waits for an entry; a longer wait is several, so that a dead connection is noticed."""
_TRY_LEAST_SECS: Final = 0.01
"""With less time a call is not tried again: its timeout would hide why the try before failed."""
_POLL_SLACK_SECS: Final = 10.0
"""How much later than asked for the broker's response to a wait may come."""
_LAST_WORD_SECS: Final = 1.0
"""The same where all calls together have a time limit."""


def _explained(refused: RequestError, path: str, *, has_key: bool) -> RequestError:
    """Return a refusal whose words distinguish a missing key, a wrong key, and a missing extension."""
    namespace, _, method = path.partition("/")
    said = str(refused)
    if said == "Incorrect access key" and not has_key:
        return Unauthorized(f"No access key was given; {namespace} needs one (Incorrect access key)")
    if said == "Unauthorized package":
        return Unauthorized(f"{said}: the broker has no namespace {namespace}; is that extension enabled there?")
    if said == "Unauthorized method":
        return Unauthorized(
            f"{said}: {namespace} has no method {method} on this broker, or its module cannot be imported; "
            "the access key is right"
        )
    return refused


class Calls:
    """Sends the calls of one client.

    Args:
        transport: to the broker.
        headers: of every request.
        timeout_secs: for one call and its retries, without the broker's waiting.
        retries: how often a call is tried again.
        total_secs: for all calls together, the broker's waiting included; from now on.
    """

    errors: Final = errors
    """The errors that recipes raise."""
    away: Final = (CannotConnect, Unavailable, TimedOut)
    """After these a recipe tries again: the broker may come back."""
    renews: Final = True
    patience_secs: Final = float("inf")

    def __init__(
        self,
        transport: Transport,
        headers: Mapping[str, bytes],
        timeout_secs: float,
        retries: int,
        total_secs: float = float("inf"),
    ) -> None:
        self.transport = transport
        self.retries = retries
        self.last: Registered | None = None
        """The registry's last response."""
        self._headers = headers
        self._timeout = timeout_secs
        self._total = total_secs
        self._end = time.monotonic() + total_secs

    def sibling(self, timeout_secs: float | None = None) -> Calls:
        """Return the same on a connection of its own, without a limit for all calls together."""
        timeout = self._timeout if timeout_secs is None else timeout_secs
        return Calls(self.transport.sibling(), self._headers, timeout, self.retries)

    def ttl_secs(self, usual_secs: float) -> float:
        """Return the default ttl of a session: it is renewed."""
        return usual_secs

    def entry(self, content: Mapping[str, Any], etag: str, revision: int) -> Entry:
        """Create an entry."""
        return Entry(content, etag, revision)

    def registry(
        self,
        method: str,
        sent: Mapping[str, Any],
        headers: Mapping[str, bytes] | None = None,
        *,
        repeatable: bool,
        wait_secs: float | None = None,
    ) -> Registered:
        """Send a request to the registry, and check that a registry responds; arguments as of :meth:`send`."""
        path = f"services/{method}"
        answer = self.send(path, sent, headers, repeatable=repeatable, wait_secs=wait_secs)
        self.last = registered(path, answer, self.transport.address)
        return self.last

    def poll(
        self,
        method: str,
        sent: Mapping[str, Any],
        headers: Mapping[str, bytes],
        wait_secs: float,
        found: Callable[[Registered], T | None],
        failure: str,
        instead: Callable[[], str] = lambda: "",
        *,
        absent_ends: bool = False,
    ) -> T:
        """Ask, and let the broker wait, until ``found`` returns a value.

        The wait goes on while a broker is away, restarting or overloaded, except without retries.

        Args:
            method: of the registry.
            sent: its parameters.
            headers: further ones.
            wait_secs: how long.
            found: returns the result of a response; None: not yet.
            failure: what the error says when the time is over, without the time.
            instead: returns the present state for that error; may be empty.
            absent_ends: whether a missing entry ends the wait with NotFound.

        Raises:
            WaitTimeout: not within ``wait_secs``.
        """
        now = time.monotonic()
        within = f"{wait_secs:g} s"
        if wait_secs > self._end - now:
            if wait_secs - self._total > min(1.0, wait_secs / 10):  # not the given time: a moment of it is gone
                within = f"{self._total:.3g} s, the timeout, which is shorter than the wait"
            wait_secs = max(0.001, self._end - now)
        end = now + wait_secs
        pause = pauses()
        problem = ""
        while True:
            began = time.monotonic()
            poll = min(max(0.0, end - began), POLL_SECS)
            try:
                waiting = {**sent, "wait": round(poll, 3)} if poll else sent
                result = found(
                    self.registry(method, waiting, headers, repeatable=True, wait_secs=poll if wait_secs else None)
                )
                if result is not None:
                    return result
                problem = ""
            except NotTrusted:
                raise
            except (NotFound, CannotConnect, Unavailable, TimedOut, WaitTimeout) as error:
                if isinstance(error, NotFound) and absent_ends:
                    raise
                if not (wait_secs and (self.retries or isinstance(error, NotFound))):
                    raise
                problem = "" if isinstance(error, NotFound) else f"; the last try: {error}"
            now = time.monotonic()
            if now >= end:
                there = instead()
                raise WaitTimeout(f"{failure} within {within}{there and f': {there}'}{problem}")
            if now - began < poll / 2:  # it did not wait: the call failed, or the broker does not know ``wait``
                time.sleep(min(next(pause), max(0.0, end - now)))
            else:
                pause = pauses()

    def send(
        self,
        path: str,
        sent: Mapping[str, Any],
        headers: Mapping[str, bytes] | None = None,
        *,
        repeatable: bool,
        wait_secs: float | None = None,
    ) -> Response:
        """Send a request; return the response if it is no error.

        Args:
            path: namespace and method.
            sent: the parameters.
            headers: further ones.
            repeatable: whether to try again when it is not known whether the call was carried out.
            wait_secs: how long the broker is asked to wait; None: the call is not part of a longer wait.

        Raises:
            UsageError: the parameters are not valid UTF-8.
            RequestError: the broker's refusal.
            CannotConnect, NotTrusted, WaitTimeout: there was no response.
        """
        try:
            body = json.dumps(sent, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UsageError("What is to be sent is not valid UTF-8") from None
        every = {"Content-Type": b"application/json", **self._headers, **(headers or {})}
        secs, retries = self._timeout, self.retries
        if wait_secs is not None:  # the loop around this call tries again
            secs, retries = min(secs, _POLL_SLACK_SECS) + wait_secs, 0
        secs, shown_secs = self._within_total(secs, waiting=bool(wait_secs))
        deadline = Deadline(secs, str(self.transport.address), shown_secs)
        pause = pauses()
        while True:
            error: BpbrokerError
            after = 0
            try:
                # The extra time is for a broker's response: connecting to a host may not use it.
                self.transport.connect(self._within_the_end(deadline))
                answer = self.transport.exchange("POST", f"/{path}/", every, body, deadline)
                if answer.status < 400:
                    return answer
                if answer.status == 404 and path.startswith("services/"):
                    registered(path, answer, self.transport.address)
                refused = refusal(answer)
                if answer.status == 401:
                    refused = _explained(refused, path, has_key="Authorization" in every)
                after = refused.retry_after_secs or 0
                # With Retry-After the broker says that nothing was done.
                again = refused.status == 503 and (repeatable or bool(after))
                error = refused
            except (NotReached, Interrupted) as met:
                again = repeatable or isinstance(met, NotReached)
                error = met
            pause_secs = max(next(pause), after)
            if not again or retries <= 0 or pause_secs >= deadline.left():
                raise error
            retries -= 1
            if after or not isinstance(error, (NotReached, Interrupted)):
                self.transport.give_way()
            time.sleep(pause_secs)
            if min(deadline.left(), self._end - time.monotonic()) < _TRY_LEAST_SECS:  # the pause took longer
                raise error

    def _within_total(self, secs: float, *, waiting: bool) -> tuple[float, float]:
        """Return how many of these seconds are left, and how many an error names."""
        left = self._end - time.monotonic()
        if waiting:  # extra time, because the broker's own error says more than a timeout
            left += min(_LAST_WORD_SECS, self._total / 4)
        return (secs, secs) if secs <= left else (max(0.0, left), self._total)

    def _within_the_end(self, deadline: Deadline) -> Deadline:
        """Return this deadline, or the one of all calls together if that is earlier."""
        left = self._end - time.monotonic()
        if left >= deadline.left():
            return deadline
        return Deadline(max(0.0, left), str(self.transport.address), self._total)
