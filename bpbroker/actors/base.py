"""What every actor of the broker has: dispatch, a bounded inbox, containment, deadlines, ping.

Pykka has threads, inboxes and lifecycle. This module solves what it leaves to its users (measured on pykka 4.5): a
handler that raises on ``tell`` kills the actor, ``SystemExit`` in a handler stops *all* actors, inboxes have no bound,
and a request is carried out even if its asker does not wait any more.

Replies have the interface of :class:`concurrent.futures.Future`, not that of pykka's own future, because the HTTP
frontend must be called back when a reply comes instead of keeping a thread waiting for it, and pykka's future has no
callback.
"""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, ClassVar, TypeVar

import pykka

from bpbroker import messages
from bpbroker.actors.inbox import Envelope, Inbox
from bpbroker.actors.lockless_future import LocklessFuture
from bpbroker.actors.worker import STALLED_SECS, AtWork, Worker
from bpbroker.errors import BpbrokerError, TimedOut, Unavailable

logger = logging.getLogger(__name__)

Handler = Callable[[Any], Any]
T = TypeVar("T")


_actors: weakref.WeakValueDictionary[str, Actor] = weakref.WeakValueDictionary()
"""The actors by URN; pykka's ref does not lead to the actor."""


class _Deferred:
    """The type of :data:`DEFERRED`."""


DEFERRED = _Deferred()
"""What a handler returns when it has kept ``self.reply`` and will settle it later."""


class Actor(pykka.ThreadingActor):
    """Base of all actors.

    A subclass names its handlers in ``__init__``: ``self.handlers = {Get: self.get, …}``.
    A handler returns the reply, raises an error for the asker, or returns
    :data:`DEFERRED` after keeping ``self.reply``.
    """

    use_daemon_thread: ClassVar[bool] = True  # an actor that does not stop must not block the exit of the process

    actor_inbox: Inbox

    def __init__(self) -> None:
        super().__init__()
        self.handlers: dict[type, Handler] = {}
        self.reply: Future[Any] | None = None
        self.ready: Future[None] = Future()
        """The outcome of its start."""
        self.workers: tuple[Worker, ...] = ()
        """Threads beside this one that do its long work; see :meth:`add_worker`."""
        self._taken = 0
        """Number of messages begun, plus number of messages done."""
        _actors[self.actor_urn] = self

    # --- hooks for subclasses ---

    def started(self) -> None:
        """Run in the actor's thread before the first message; an error here makes the start fail with it."""

    def stopped(self) -> None:
        """Run in the actor's thread after the last message."""

    def abandoned(self) -> None:
        """Release what others wait for: the actor died, or is stuck and is being replaced.

        Runs in another thread while the actor's own is stuck, perhaps several times, and must not wait for it.
        """

    def status(self) -> messages.Pong:
        """Return the reply to a ping; it must be quick."""
        return messages.Pong()

    def reply_now(self, message: Any) -> Any:  # noqa: ARG002 - for actors that know some
        """Return the reply to a message that does not need this actor's thread; None if it needs it.

        Runs in other threads, beside this actor's own. So it may only read values that are replaced as a whole.
        """
        return None

    # --- pykka's side ---

    def on_start(self) -> None:
        """Run :meth:`started` and pass the outcome to :func:`launch`."""
        try:
            self.started()
        except BaseException as error:  # noqa: BLE001 - handed to launch(), which raises it
            messages.fail(self.ready, error)
            self._stop()
        else:
            messages.settle(self.ready, None)

    def on_stop(self) -> None:
        """Run :meth:`stopped` and refuse the requests still in the inbox."""
        try:
            self.stopped()
        except BaseException:  # SystemExit, too: an actor that ends must finish these steps
            logger.exception("%s: error while stopping", type(self).__name__)
        self._end_workers(Unavailable("The broker is stopping"))
        for worker in self.workers:
            worker.join(_LAST_STEP_SECS)  # it removes a half-written file
        self.actor_inbox.ended = True
        while not self.actor_inbox.empty():
            envelope = self.actor_inbox.get()
            inner = envelope.message
            if isinstance(inner, Envelope) and inner.reply is not None:
                messages.fail(inner.reply, Unavailable("The broker is stopping"))
            elif envelope.reply_to is not None:  # pykka's: another thread asked it to stop, too
                envelope.reply_to.set(None)

    def on_failure(self, *_: Any) -> None:
        """Release everything after a fault that ended the actor's thread: :meth:`on_stop` is not called then."""
        self.actor_inbox.ended = True
        self.abandon()

    def abandon(self) -> None:
        """Refuse all waiting requests and run :meth:`abandoned`; from any thread, also while the actor is stuck."""
        self.actor_inbox.refuse(Unavailable("The broker's part for this is being replaced; nothing was done"))
        self._end_workers(Unavailable("The broker's part for this is being replaced"))
        try:
            self.abandoned()
        except Exception:
            logger.exception("%s: error while it was abandoned", type(self).__name__)

    def on_receive(self, message: Any) -> None:
        """Take one envelope: deadline, dispatch, containment."""
        if not isinstance(message, Envelope):
            logger.error("%s: not an envelope: %r", type(self).__name__, type(message))
            return
        reply = message.reply
        if reply is not None and (reply.cancelled() or time.monotonic() > message.deadline):
            messages.fail(reply, TimedOut("The broker was too busy to take this request up in time; nothing was done"))
            return
        self.reply = reply
        self._taken += 1
        try:
            result = self._dispatch(message.message)
        except BpbrokerError as error:
            if reply is not None:
                messages.fail(reply, error)
            else:
                logger.warning("%s: %s", type(self).__name__, error)
        except BaseException as error:
            # SystemExit and KeyboardInterrupt too: pykka would stop every actor.
            logger.exception("%s: error in %s", type(self).__name__, type(message.message).__name__)
            if reply is not None:
                messages.fail(reply, error if isinstance(error, Exception) else RuntimeError(repr(error)))
        else:
            if reply is not None and result is not DEFERRED:
                messages.settle(reply, result)
        finally:
            self.reply = None
            self._taken += 1

    def _end_workers(self, error: Unavailable) -> None:
        for worker in self.workers:
            worker.end(error)

    def _dispatch(self, message: Any) -> Any:
        if type(message) is messages.Ping:
            return self._pong()
        handler = self.handlers.get(type(message))
        if handler is None:
            raise TypeError(f"{type(self).__name__} does not take {type(message).__name__}")
        return handler(message)

    def _pong(self) -> messages.Pong:
        """Return the status, with the running work. Work without progress makes the health bad."""
        pong = self.status()
        for worker in self.workers:
            work = worker.at_work
            if work is not None:
                ok, detail = pong.ok, pong.detail
                if work.stalled:
                    ok = False
                    detail = detail or f"{work.what} has made no step for {work.silent_secs:.0f} s"
                pong = messages.Pong(ok, detail, {**pong.figures, "at_work": work.text}, pong.counts)
        return pong

    # --- seen from other threads ---

    @property
    def progress(self) -> int:
        """A number that grows while it works: messages begun and done, steps of its workers."""
        return self._taken + sum(worker.steps for worker in self.workers)

    @property
    def at_work(self) -> AtWork | None:
        """The long work of its workers, or None."""
        return next((work for worker in self.workers if (work := worker.at_work) is not None), None)

    # --- for handlers ---

    def add_worker(self, name: str) -> Worker:
        """Return a new worker of this actor; called in ``__init__``. It ends with the actor."""
        worker = Worker(name)
        self.workers += (worker,)
        return worker

    @property
    def in_use(self) -> bool:
        """Whether this actor is alive and was not told to stop; may be asked by any thread of its own."""
        return not self.actor_inbox.ending and not self.actor_stopped.is_set()

    def tell_self(self, message: Any) -> None:
        """Queue a message to this actor behind those in its inbox; an actor that has ended gets none."""
        self.actor_inbox.put_own(message)

    def wake_at(self, moment: float) -> None:
        """Ask for a :class:`Wake` at this monotonic time; an earlier one that is set stays.

        So an actor needs no timer thread.
        """
        before = self.actor_inbox.wake_at
        self.actor_inbox.wake_at = moment if before is None else min(before, moment)

    @staticmethod
    def _create_actor_inbox() -> Inbox:
        return Inbox()


class ActorAddress:
    """The lasting name of an actor; implements :class:`bpbroker.messages.Address`.

    The healthcheck puts a fresh actor behind it with :meth:`replace` when the
    old one died or is stuck (pykka cannot start an actor again).
    """

    def __init__(self, name: str, ref: pykka.ActorRef[Any] | None = None) -> None:
        self.name = name
        self.since = time.monotonic()
        """Monotonic time since which the actor is behind this name."""
        self.restarts = 0
        """How often the actor behind this name was replaced."""
        self._ref = ref
        self.reply_now: Callable[[Any], Any] = lambda _: None
        """See :meth:`bpbroker.messages.Address.reply_now`."""
        self._meet(ref)

    def __repr__(self) -> str:
        return f"<ActorAddress {self.name}>"

    def replace(self, ref: pykka.ActorRef[Any]) -> None:
        """Put another actor behind this name; the earlier one stops if its thread ever continues."""
        self._meet(ref)  # first: a read after a write of the new actor must not come from the old one
        before, self._ref = self._ref, ref
        if before is not None and before is not ref:
            self.since = time.monotonic()
            self.restarts += 1
            with contextlib.suppress(pykka.ActorDeadError):
                before.stop(block=False)
            _abandon(before)

    def _meet(self, ref: pykka.ActorRef[Any] | None) -> None:
        """Set the actor whose :meth:`Actor.reply_now` is called."""
        actor = None if ref is None else _actors.get(ref.actor_urn)
        if actor is not None:
            self.reply_now = actor.reply_now

    def abandon(self) -> None:
        """Let the actor release everything before it is replaced; see :meth:`Actor.abandoned`."""
        if self._ref is not None:
            _abandon(self._ref)

    @property
    def alive(self) -> bool:
        """Whether there is an actor that still takes messages."""
        ref = self._ref
        return ref is not None and ref.is_alive()

    @property
    def progress(self) -> tuple[str, int]:
        """A value that changes while the actor works, or when it is replaced."""
        actor = self._actor
        return ("", 0) if actor is None else (actor.actor_urn, actor.progress)

    @property
    def inbox(self) -> int:
        """How many messages wait for the actor."""
        actor = self._actor
        return 0 if actor is None else actor.actor_inbox.qsize()

    @property
    def at_work(self) -> AtWork | None:
        """The long work of the actor's workers, or None."""
        actor = self._actor
        return None if actor is None else actor.at_work

    @property
    def _actor(self) -> Actor | None:
        ref = self._ref
        return None if ref is None else _actors.get(ref.actor_urn)

    def tell(self, message: Any) -> None:
        """See :meth:`bpbroker.messages.Address.tell`."""
        ref = self._ref
        if ref is not None:
            with contextlib.suppress(pykka.ActorDeadError):
                ref.tell(Envelope(message))

    def ask(self, message: Any, timeout_secs: float) -> Future[Any]:
        """See :meth:`bpbroker.messages.Address.ask`."""
        ref = self._ref
        reply: Future[Any] = LocklessFuture()
        try:
            if ref is None:
                raise pykka.ActorDeadError
            ref.tell(Envelope(message, reply, time.monotonic() + timeout_secs))
        except pykka.ActorDeadError:
            raise Unavailable(f"The broker's {self.name} is not running at the moment") from None
        return reply

    def stop(self, timeout_secs: float) -> bool:
        """Stop the actor after the messages in its inbox; return False if it did not stop in time."""
        ref = self._ref
        if ref is None or not ref.is_alive():
            return True
        try:
            ref.stop(timeout=timeout_secs)
        except (pykka.Timeout, pykka.ActorDeadError):
            return not ref.is_alive()
        return True


_LAST_STEP_SECS = 1.5
"""How long an actor that ends waits for its worker's current step."""


def _abandon(ref: pykka.ActorRef[Any]) -> None:
    actor = _actors.get(ref.actor_urn)
    if actor is not None:
        actor.abandon()


def wait_for(reply: Future[T], timeout_secs: float) -> T:
    """Block for a reply; never in a thread on which requests of the frontend wait.

    Raises:
        TimedOut: no reply in time; an actor that has not begun the request drops it.
    """
    try:
        return reply.result(timeout_secs)
    except FutureTimeout:
        if reply.done():  # just now; or it is the actor's own error
            return reply.result()
        reply.cancel()
        raise TimedOut(f"No answer from the broker's own part within {timeout_secs:g} s") from None


def ask_patiently(
    address: messages.Address,
    message: Any,
    *,
    moved: Callable[[], None] = lambda: None,
    stalled_secs: float = STALLED_SECS,
) -> Any:
    """Ask, and block for the reply as long as the actor makes progress.

    For long work; never in a thread on which requests of the frontend wait.

    Args:
        address: of the actor.
        message: the question.
        moved: called about once a second while the actor makes progress. An error in it ends the wait.
        stalled_secs: how long the actor may make no progress.

    Raises:
        TimedOut: it has made no progress for that long.
        Exception: the actor's error.
    """
    reply = address.ask(message, float("inf"))
    return _wait_patiently(reply, lambda: getattr(address, "progress", None), address.name, moved, stalled_secs)


def _wait_patiently(
    reply: Future[Any],
    progress: Callable[[], object],
    name: str,
    moved: Callable[[], None] = lambda: None,
    stalled_secs: float = STALLED_SECS,
) -> Any:
    seen, moved_at = progress(), time.monotonic()
    while True:
        try:
            return reply.result(min(1.0, stalled_secs))
        except FutureTimeout:
            if reply.done():  # just now; or it is the actor's own error
                return reply.result()
        now, last = time.monotonic(), seen
        seen = progress()
        if seen != last:
            moved_at = now
            moved()
        elif now - moved_at >= stalled_secs:
            reply.cancel()
            raise TimedOut(f"The broker's {name} has made no progress for {now - moved_at:.0f} s")


def launch(actor: type[Actor], *args: Any, timeout_secs: float = STALLED_SECS, **kwargs: Any) -> pykka.ActorRef[Any]:
    """Start an actor and wait until its :meth:`Actor.started` has ended.

    The wait has no limit while the thread works: reading a million entries takes long.

    Args:
        actor: its class.
        args: what it is made with.
        timeout_secs: for how long it may do nothing.
        kwargs: what it is made with.

    Raises:
        TimedOut: it did nothing for that long.
        Exception: whatever :meth:`Actor.started` raised (pykka itself would return a dead ref).
    """
    ref = actor.start(*args, **kwargs)
    made = _actors.get(ref.actor_urn)
    if made is not None:
        try:
            # Half seconds of processor time: threads that only wake up now and then do not count as work.
            _wait_patiently(made.ready, lambda: int(2 * time.process_time()), actor.__name__, stalled_secs=timeout_secs)
        except TimedOut:  # nothing uses it if it goes on later
            ref.stop(block=False)
            made.abandon()
            raise
    return ref
