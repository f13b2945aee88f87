"""Calls to a broker: one request and its answer, tried again where safe, or repeated until something is there."""

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
_POLL_SLACK_SECS: Final = 10.0
"""How much later than asked for the broker's answer to a wait may come."""
_LAST_WORD_SECS: Final = 1.0
"""The same where all calls together have a time limit."""


def _explained(refused: RequestError, path: str, *, has_key: bool) -> RequestError:
    """Return a refusal in words that tell a missing key, a wrong one, and what is not there apart."""
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
    """What carries the calls of one client.

    Args:
        transport: to the broker.
        headers: of every request.
        timeout_secs: for one call, retries included, the broker's waiting not.
        retries: how often one is tried again.
        total_secs: for all calls together, the broker's waiting included; from now on.
    """

    errors: Final = errors
    """What recipes raise."""
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
        """The registry's last answer."""
        self._headers = headers
        self._timeout = timeout_secs
        self._total = total_secs
        self._end = time.monotonic() + total_secs

    def sibling(self, timeout_secs: float | None = None) -> Calls:
        """Return the same on a connection of its own, without a limit for all calls together."""
        timeout = self._timeout if timeout_secs is None else timeout_secs
        return Calls(self.transport.sibling(), self._headers, timeout, self.retries)

    def ttl_secs(self, usual_secs: float) -> float:
        """Return how long a session lives that was not told how long: it is renewed."""
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
        """Send a request to the registry and see that a registry answered; arguments as of :meth:`send`."""
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
        """Ask, and let the broker wait, until ``found`` gives something.

        A broker that is away, restarting or overloaded is part of what is waited for, unless there are no retries.

        Args:
            method: of the registry.
            sent: its parameters.
            headers: further ones.
            wait_secs: how long.
            found: makes the result of an answer; None: it is not there yet.
            failure: what the error says when the time is over.
            instead: what there is then; may be empty.
            absent_ends: whether an entry that is not there ends the wait with NotFound.

        Raises:
            WaitTimeout: not within ``wait_secs``.
        """
        now = time.monotonic()
        within = f"{wait_secs:g} s"
        if wait_secs > self._end - now:
            if wait_secs - self._total > min(1.0, wait_secs / 10):  # not the same, of which a moment is gone
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
            if now - began < poll / 2:  # it did not wait: it failed, or the broker does not know how
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
        """Send a request; gives the answer if that is no error.

        Args:
            path: namespace and method.
            sent: the parameters.
            headers: further ones.
            repeatable: whether to try again when it is not known if it was carried out.
            wait_secs: for how long the broker is asked to wait; None if this is no part of a longer wait.
        """
        try:
            body = json.dumps(sent, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UsageError("What is to be sent is not valid UTF-8") from None
        every = {"Content-Type": b"application/json", **self._headers, **(headers or {})}
        secs, retries = self._timeout, self.retries
        if wait_secs is not None:  # the loop around this is what tries again
            secs, retries = min(secs, _POLL_SLACK_SECS) + wait_secs, 0
        secs, shown_secs = self._within_total(secs, waiting=bool(wait_secs))
        deadline = Deadline(secs, str(self.transport.address), shown_secs)
        pause = pauses()
        while True:
            error: BpbrokerError
            after = 0
            try:
                # The last word is for the broker's answer: a host that is not there, or has no name, has none to say.
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

    def _within_total(self, secs: float, *, waiting: bool) -> tuple[float, float]:
        """Return how many of these seconds there are, and how many an error is to name."""
        left = self._end - time.monotonic()
        if waiting:  # the broker's own word that the wait is over tells more than silence
            left += min(_LAST_WORD_SECS, self._total / 4)
        return (secs, secs) if secs <= left else (max(0.0, left), self._total)

    def _within_the_end(self, deadline: Deadline) -> Deadline:
        """Return this deadline, or that of all calls together if it is earlier."""
        left = self._end - time.monotonic()
        if left >= deadline.left():
            return deadline
        return Deadline(max(0.0, left), str(self.transport.address), self._total)
