"""The way to an etcd cluster: its HTTPS/JSON gateway, endpoint after endpoint until the time is over.

:mod:`bpbroker.storage.etcd.endpoint` sends one request to one endpoint. Here is
what goes beyond one: the deadline, the token of a user, which endpoint is next,
and whether a new connection leads to the history that we know
(:mod:`bpbroker.storage.etcd.restore_detection`).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from bpbroker.errors import ConfigurationError
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.responses import AWAY, Failed, Refused, Unreachable
from bpbroker.storage.etcd.restore_detection import FORGOTTEN, WENT_BACK, Moment, Restored, Timeline

if TYPE_CHECKING:
    from bpbroker.storage.etcd.endpoint import Endpoint

logger = logging.getLogger(__name__)

_ATTEMPT_SECS: Final = 1.5
"""How long one endpoint may think before the next one is asked; at least, and at most the rest of the time."""
_PAUSE_SECS: Final = 0.1
"""Between two rounds over all endpoints."""
SILENT_SECS: Final = 10.0
"""A watch that receives nothing for so long begins again: the end of a connection may go unnoticed."""


@dataclass(frozen=True, slots=True)
class _Patience:
    """How long to wait for what one call needs."""

    deadline: float
    """When the call must be over, by the monotonic clock."""
    step_secs: float
    """For each request to an endpoint."""

    @property
    def secs(self) -> float:
        """How long the next request may take."""
        return max(0.05, min(self.step_secs, self.deadline - time.monotonic()))


T = TypeVar("T")

_Send = Callable[["Endpoint", float], T]
"""Sends a request to an endpoint, which may be silent for so many seconds, and returns its answer."""


def _unchecked(_answer: object) -> None:
    """Take an answer that says nothing of the cluster's history."""


class Gateway:
    """One caller's way to the cluster; to be used by one thread at a time, except :meth:`hang_up` and :meth:`close`.

    Args:
        options: how the cluster is reached.
        timeline: what all gateways of one store know of the cluster's history.

    Raises:
        ConfigurationError: urllib3 is not installed, or a certificate cannot be used.
    """

    def __init__(self, options: EtcdOptions, timeline: Timeline) -> None:
        try:
            from bpbroker.storage.etcd.endpoint import Endpoint, tls_context
        except ImportError:
            raise ConfigurationError(
                "_registry.store is etcd, but its client is not installed:"
                f" {sys.executable} -m pip install 'urllib3>=2.3'"
            ) from None
        self._options = options
        self._timeline = timeline
        context = tls_context(options)
        self._endpoints = [Endpoint(url, context) for url in options.endpoints]
        self._current = 0
        self._connected_in = -1
        """Number of the timeline against which the connection to the current endpoint was held."""
        self._using = threading.Lock()
        self._closed = False
        self._told: set[str] = set()
        """What went wrong and was logged, until something goes right again."""

    def moment(self) -> Moment:
        """Return the known history of the cluster; call it before a request is made."""
        return self._timeline.moment()

    def begin(self, before: Moment, why: str) -> NoReturn:
        """Raise Restored: what was known does not hold any more. See :meth:`Timeline.begin`."""
        self._timeline.begin(before, why)

    def note(self, key: str, revision: int, value: str | None, before: Moment) -> None:
        """Remember a change in an answer: new connections are compared with the newest one."""
        self._timeline.note(key, revision, value, before)

    def call(
        self,
        path: str,
        body: Mapping[str, Any],
        timeout_secs: float | None = None,
        *,
        before: Moment | None = None,
        sent: bool = False,
    ) -> dict[str, Any]:
        """Send a request that may be sent twice, to one endpoint after the other until one answers.

        It is sent only to a cluster that has the history of ``before``, by default what is known now.
        ``sent``: it was sent before, with an unknown result.

        Raises:
            Unreachable: none did within the time.
            Restored: the cluster has another history.
            Compacted: it asks for versions that are gone.
            StorageFull: the cluster takes no more data.
            ConfigurationError: the cluster refuses us.
        """
        moment = before or self.moment()

        def send(endpoint: Endpoint, secs: float) -> dict[str, Any]:
            return endpoint.post(path, body, secs)

        def check(answer: dict[str, Any]) -> None:
            if path.startswith("/kv/"):
                self._timeline.check(answer, moment)

        return self._in_time(send, check, moment, timeout_secs, sent=sent)

    def call_each(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Send several requests of a streaming method; the results are in their order.

        Errors are those of :meth:`call`.
        """
        return self._in_time(lambda endpoint, secs: endpoint.post_each(path, bodies, secs), _unchecked, self.moment())

    def _in_time(
        self,
        send: _Send[T],
        check: Callable[[T], None],
        before: Moment,
        timeout_secs: float | None = None,
        *,
        sent: bool = False,
    ) -> T:
        limit = self._options.timeout_secs if timeout_secs is None else timeout_secs
        patience = _Patience(time.monotonic() + limit, max(_ATTEMPT_SECS, limit / 3))
        if not self._using.acquire(timeout=limit):
            unreachable = Unreachable(AWAY)
            unreachable.outcome_known = not sent
            raise unreachable
        try:
            return self._call(send, check, patience, before, sent=sent)
        finally:
            self._using.release()
            if self._closed:
                self.close()

    def _call(
        self, send: _Send[T], check: Callable[[T], None], patience: _Patience, before: Moment, *, sent: bool
    ) -> T:
        tried, distrusting = 0, set[int]()
        while True:
            ready = False
            try:
                endpoint = self._ready(patience, before)
                ready = True
                answer = self._send(endpoint, send, patience)
                sent = True
                check(answer)
            except Restored as error:
                error.outcome_known = not sent
                raise
            except Refused as refusal:
                raise refusal.meaning(sent=sent) from None
            except Failed as failure:
                sent = sent or (ready and failure.sent)
                if failure.distrust:  # it may show only at the second try: TLS 1.3 refuses late
                    distrusting.add(self._current)
                self._tell(failure)
                tried += 1
                self._next()
            else:
                self._told.clear()
                return answer
            if len(distrusting) == len(self._endpoints):
                raise ConfigurationError("The registry's etcd cluster cannot be used: its certificate or ours is wrong")
            if tried % len(self._endpoints) == 0:
                time.sleep(min(_PAUSE_SECS, max(0.0, patience.deadline - time.monotonic())))
            if time.monotonic() >= patience.deadline or self._closed:
                unreachable = Unreachable(AWAY)
                unreachable.outcome_known = not sent
                raise unreachable

    def stream(self, path: str, body: Mapping[str, Any], *, before: Moment) -> Generator[dict[str, Any], None, None]:
        """Send a request to one endpoint and yield the messages of its response as they come.

        Ends when the endpoint has been silent for a while; the next call tries the next endpoint.

        Raises:
            Unreachable: the endpoint ended it, or :meth:`hang_up` was called.
            Restored: the cluster has another history than that of ``before``.
            ConfigurationError: the cluster refuses us.
        """
        with self._using:
            try:
                patience = _Patience(time.monotonic() + self._options.timeout_secs, _ATTEMPT_SECS)
                endpoint = self._ready(patience, before)
                yield from endpoint.stream(path, body, SILENT_SECS)
            except Refused as refusal:
                self._endpoints[self._current].token = None
                raise refusal.meaning(sent=False) from None
            except Failed as failure:
                self._tell(failure)
                raise Unreachable("The registry's etcd cluster ended the watch") from None
            finally:
                self._next()
                if self._closed:
                    self._close()

    def hang_up(self) -> None:
        """Make a :meth:`stream` in another thread end now."""
        for endpoint in self._endpoints:
            endpoint.hang_up()

    def close(self) -> None:
        """Close all connections, and send nothing any more; a call in another thread ends now. Waits for nothing."""
        self._closed = True  # first: who makes a connection from here on sees it, and does not use that
        for endpoint in self._endpoints:
            endpoint.cut()
        if self._using.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._using.release()

    def _close(self) -> None:
        for endpoint in self._endpoints:
            endpoint.close()

    def _next(self) -> None:
        self._endpoints[self._current].close()
        self._current = (self._current + 1) % len(self._endpoints)

    def _ready(self, patience: _Patience, before: Moment) -> Endpoint:
        """Return the current endpoint, connected to a cluster that has the history of ``before``.

        Raises:
            Restored: it has another one.
            Refused, Failed: the endpoint cannot be used.
        """
        endpoint = self._endpoints[self._current]
        if self._timeline.number != before.timeline:
            self._timeline.begin(before, "")
        if self._connected_in != before.timeline or not endpoint.connected:
            if not self._closed:
                endpoint.connect(patience.secs)
            if self._closed:  # or meanwhile
                raise Failed("its connection is out of use", sent=False)
            self._verify(endpoint, patience, before)
            self._connected_in = before.timeline
        return endpoint

    def _verify(self, endpoint: Endpoint, patience: _Patience, before: Moment) -> None:
        """Compare a new connection with the known history.

        Raises:
            Restored: the cluster has another one.
            Refused, Failed: the endpoint cannot be used.
        """
        newest = self._timeline.moment()  # what ``before`` knew may be overwritten since, and forgotten
        witness = newest.witness if newest.timeline == before.timeline else before.witness
        ranges = [{"request_range": {"key": witness.key}}] if witness is not None else []
        (now, *_) = (*self._ranges(endpoint, ranges, patience, before), None)
        if witness is None or witness.is_newest(now):
            return
        at = {"key": witness.key, "revision": str(witness.revision)}
        earlier = {**at, "revision": str(witness.revision - 1)}
        try:
            found = self._ranges(endpoint, [{"request_range": at}, {"request_range": earlier}], patience, before)
        except Refused as refusal:
            if not refusal.forgotten:
                raise
            if self._timeline.moment().witness == witness:
                self._timeline.begin(before, FORGOTTEN)
            self._verify(endpoint, patience, before)  # another thread has seen a newer change meanwhile
            return
        if not witness.is_in(*found):
            self._timeline.begin(before, WENT_BACK)

    def _ranges(
        self, endpoint: Endpoint, ranges: Sequence[Mapping[str, Any]], patience: _Patience, before: Moment
    ) -> list[Mapping[str, Any] | None]:
        """Return what is under some keys, None for nothing."""
        body = {"success": ranges}
        answer = self._send(endpoint, lambda at, secs: at.post("/kv/txn", body, secs), patience)
        self._timeline.check(answer, before)
        found = (part.get("response_range", {}).get("kvs", ()) for part in answer.get("responses", ()))
        return [kvs[0] if kvs else None for kvs in found]

    def _send(self, endpoint: Endpoint, send: _Send[T], patience: _Patience) -> T:
        self._log_in(endpoint, patience)
        try:
            return send(endpoint, patience.secs)
        except Refused as refusal:
            endpoint.token = None
            if self._options.user is None or not refusal.stale_token:
                raise
        self._log_in(endpoint, patience)
        return send(endpoint, patience.secs)

    def _log_in(self, endpoint: Endpoint, patience: _Patience) -> None:
        if self._options.user is None or endpoint.token is not None:
            return
        answer = endpoint.post(
            "/auth/authenticate", {"name": self._options.user, "password": self._options.password}, patience.secs
        )
        token = str(answer.get("token", ""))
        if not (token.isascii() and token.isprintable()):
            raise Failed("it answers something else than etcd does", sent=True)
        endpoint.token = token

    def _tell(self, failure: Failed) -> None:
        """Log once what is wrong with an endpoint: clients must not see addresses, operators must."""
        text = f"etcd at {self._options.endpoints[self._current]}: {failure}"
        if text not in self._told and not self._closed:
            self._told.add(text)
            logger.warning("%s", text)
