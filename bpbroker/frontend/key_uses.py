"""The use of named access keys: it is noted or counted. A wait ends when its key is revoked."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

from bpbroker import messages
from bpbroker.errors import RequestError, Unauthorized
from bpbroker.frontend.access_keys import NamedKeys
from bpbroker.frontend.request_context import RequestContext
from bpbroker.registry import named_keys
from bpbroker.registry.named_keys import NamedKey
from bpbroker.server import response
from bpbroker.server.request import network_of
from bpbroker.server.response import PendingResponse, Response

_ASK_TIMEOUT_SECS: Final = 30.0
_NOTED_AGAIN_SECS: Final = 60.0
"""After how long a use that could not be noted is tried again."""


class KeyUses:
    """Notes and counts the uses of named keys.

    Args:
        addresses: the broker's actors by name; the registry is told of uses.
        named: the named keys.
    """

    def __init__(self, addresses: Mapping[str, messages.Address], named: NamedKeys) -> None:
        self._addresses = addresses
        self._named = named
        self._noted: dict[str, float] = {}
        """Named key to the monotonic time at which its use was noted last."""
        self._waits: dict[str, set[Future[Any]]] = {}
        """Named key to the replies that its callers wait for."""

    def let_in(self, key: NamedKey, answer: Response, call: RequestContext) -> Response | PendingResponse:
        """Return a finished response; if the use of the key has to be counted, only after that."""
        if not key.must_be_counted(network_of(call.source)):
            self.note(key)
            return answer
        message = _counted(key, call.source)

        def finish(reply: Future[Any]) -> Response:
            return call.finish(response.rendered(reply, lambda _: answer, call.broken))

        registry = self._addresses["registry"]
        return PendingResponse(lambda: registry.ask(message, _ASK_TIMEOUT_SECS), finish, _ASK_TIMEOUT_SECS)

    def note(self, key: NamedKey) -> None:
        """Tell the registry to note the day of a key's use; nothing waits for that."""
        now = time.monotonic()
        if key.is_to_be_noted(time.time()) and now - self._noted.get(key.name, -math.inf) > _NOTED_AGAIN_SECS:
            self._noted[key.name] = now
            with contextlib.suppress(RequestError):
                message = messages.ChangeKey(named_keys.stored_name(key.name), "note")
                self._addresses["registry"].ask(message, _ASK_TIMEOUT_SECS)

    def counted_first(
        self, key: NamedKey, ask: Callable[[], Future[Any]], call: RequestContext, *, patient: bool
    ) -> Callable[[], Future[Any]]:
        """Return the function that asks an actor for a client with a named key.

        If the use has to be counted, it is stored first. A wait ends when the key is revoked.
        """

        def begin() -> Future[Any]:
            outer: Future[Any] = Future()
            if patient:
                self.end_with_key(key, outer)
            if key.must_be_counted(network_of(call.source)):
                counting = self._addresses["registry"].ask(_counted(key, call.source), _ASK_TIMEOUT_SECS)
                counting.add_done_callback(lambda counted: _go_on(counted, ask, outer))
            else:
                self.note(key)
                _go_on(None, ask, outer)
            return outer

        return begin

    def end_with_key(self, key: NamedKey, reply: Future[Any]) -> None:
        """Let a reply end when its key is revoked before it is there."""
        waits = self._waits.setdefault(key.name, set())
        waits.add(reply)
        reply.add_done_callback(waits.discard)
        now = self._named.by_name.get(key.name)
        if now is None or now.revoked is not None:  # just before the reply was added to the set
            self.end_waits(key)

    def end_waits(self, key: NamedKey) -> None:
        """End all waits of clients with this key: it was revoked."""
        for reply in tuple(self._waits.get(key.name, ())):
            messages.fail(reply, Unauthorized(f"The access key '{key.name}' was revoked"))


def _counted(key: NamedKey, source: str) -> messages.ChangeKey:
    """Return the message that counts a use of a key."""
    given = {"client": network_of(source), "address": source}
    return messages.ChangeKey(named_keys.stored_name(key.name), "count", given)


def _go_on(counted: Future[Any] | None, ask: Callable[[], Future[Any]], outer: Future[Any]) -> None:
    """Ask an actor, once the use of the key is counted if it has to be, and pass its reply to ``outer``."""
    try:
        if counted is not None:
            counted.result(0)
        if outer.done():  # the client has gone
            return
        inner = ask()
    except Exception as error:  # noqa: BLE001 - becomes the reply
        messages.fail(outer, error)
        return

    def hand_on(done: Future[Any]) -> None:
        if done.cancelled():
            outer.cancel()
        elif (error := done.exception()) is not None:
            messages.fail(outer, error)
        else:
            messages.settle(outer, done.result())

    outer.add_done_callback(lambda _: inner.cancel())
    inner.add_done_callback(hand_on)
