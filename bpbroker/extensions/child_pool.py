"""The child processes of one namespace as its actor knows them: which is free, which runs what until when.

A :class:`Driver` is the thread that drives one child process, so that the
extension's actor never waits for it; the :class:`ChildPool` holds them all.
"""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from bpbroker.extensions.child_process import Child, Ended, Launch, NoMethod, NotImportable, Raised, Serve
from bpbroker.extensions.idempotency import Keyed
from bpbroker.messages import Call, CallResult

Ending = CallResult | NoMethod | Raised | Ended | ValueError
"""How a call went, as :meth:`bpbroker.extensions.child_process.Child.call` says."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The module is imported; the driver takes calls."""

    driver: Driver
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """A call is over."""

    driver: Driver
    outcome: Ending

    @property
    def last(self) -> bool:
        """Whether the driver takes no further call."""
        return isinstance(self.outcome, Ended) or (isinstance(self.outcome, Raised) and self.outcome.spent)


@dataclass(frozen=True, slots=True)
class Gone:
    """The process and its group are gone, and the driver's thread ends."""

    driver: Driver
    problem: NotImportable | OSError | None
    """Why it never came to take calls."""
    idle: bool
    """It died between two calls: one that it was given meanwhile was not begun."""


Tell = Callable[[Ready | Done | Gone], None]


class Driver:
    """One child process and its thread.

    Args:
        launch: the process to start.
        serve: serves ``rh.registry``, in this thread.
        tell: called in this thread with each event.
    """

    def __init__(self, launch: Launch, serve: Serve, tell: Tell) -> None:
        self._child = Child(launch)
        self._serve = serve
        self._tell = tell
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"extension {launch.namespace}", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The child's process id, 0 as long as there is none."""
        return self._child.pid

    def run(self, call: Call) -> None:
        """Run a call in the child; only after Ready, and one at a time."""
        self._calls.put(call)

    def retire(self) -> None:
        """End when the call in hand, if any, is over."""
        self._calls.put(None)

    def kill(self) -> None:
        """Kill the process group now; the event Gone follows."""
        self._child.kill()
        self._calls.put(None)

    def join(self, timeout_secs: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout_secs)

    def _run(self) -> None:
        problem: NotImportable | OSError | None = None
        idle = True
        try:
            self._tell(Ready(self, self._child.start()))
            idle = self._serve_calls()
        except NotImportable as error:
            problem = error
        except (OSError, subprocess.SubprocessError) as error:
            problem = error if isinstance(error, OSError) else OSError(str(error))
        finally:
            self._child.end(grace_secs=0.5)
            self._tell(Gone(self, problem, idle))

    def _serve_calls(self) -> bool:
        """Run calls until there shall be no more; False when one of them ended the process."""
        while (call := self._calls.get()) is not None:
            if not self._child.alive():
                return True
            outcome: Ending
            try:
                outcome = self._child.call(call, self._serve)
            except (NoMethod, Raised, Ended, ValueError) as error:
                outcome = error
            done = Done(self, outcome)
            self._tell(done)
            if done.last:
                return False
        return True


NEVER: Final = float("inf")


@dataclass(slots=True, eq=False)
class Job:
    """A call that waits or runs."""

    call: Call
    replies: list[Future[Any]]
    """The first caller's, then those of callers that repeated the request with its Idempotency-Key."""
    deadline: float
    """Monotonic time until which it has to be begun."""
    keyed: Keyed | None = None
    begun: int = 0
    """How often it was passed to a child; again only if that child died before it began the call."""

    @property
    def abandoned(self) -> bool:
        """Whether all callers have left, or were told already that it is not done."""
        return all(reply.done() for reply in self.replies)


@dataclass(slots=True, eq=False)
class PooledChild:
    """One driver, and what it does now."""

    driver: Driver
    current: bool
    """Whether it was started with the settings and the module in force; else it takes no further call."""
    deadline: float
    """Monotonic; of the import at first, then of each call."""
    ready: bool = False
    job: Job | None = None


class ChildPool:
    """All children of one namespace; used by its actor's thread alone.

    Args:
        serve: serves ``rh.registry``, in a driver's thread.
        tell: called with each event, in a driver's thread; it passes the event to the actor.
    """

    def __init__(self, serve: Serve, tell: Tell) -> None:
        self._serve = serve
        self._tell = tell
        self._children: dict[Driver, PooledChild] = {}
        self._dying: set[Driver] = set()
        """Killed or retired; their processes may be there for another moment."""

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[PooledChild]:
        return iter(list(self._children.values()))

    def get(self, driver: Driver) -> PooledChild | None:
        """Return the child of a driver, None when it is out of use already."""
        return self._children.get(driver)

    def free(self) -> Iterator[PooledChild]:
        """Return the children that can take a call now."""
        return (child for child in self if child.ready and child.job is None)

    @property
    def starting(self) -> int:
        """How many will take calls in a moment."""
        return sum(not child.ready for child in self)

    @property
    def running(self) -> int:
        """How many run a call."""
        return sum(child.job is not None for child in self)

    @property
    def processes(self) -> int:
        """How many child processes there are, dying ones included."""
        return len(self._children) + len(self._dying)

    @property
    def deadline(self) -> float:
        """Monotonic time of the next limit."""
        return min((child.deadline for child in self), default=NEVER)

    @property
    def in_service(self) -> bool:
        """Whether one has imported the module in force and takes calls, now or when it is free."""
        return any(child.ready and child.current for child in self)

    def start(self, launch: Launch) -> PooledChild:
        """Start another child; its driver reports Ready or Gone."""
        driver = Driver(launch, self._serve, self._tell)
        child = PooledChild(driver, True, time.monotonic() + launch.timeout_secs)
        self._children[driver] = child
        return child

    def give(self, child: PooledChild, job: Job, timeout_secs: float) -> None:
        """Let a free child run a call."""
        job.begun += 1
        child.job = job
        child.deadline = time.monotonic() + timeout_secs
        child.driver.run(job.call)

    def rest(self, child: PooledChild) -> Job | None:
        """Note that a child has nothing to do now; return what it did."""
        job, child.job = child.job, None
        child.deadline = NEVER
        return job

    def dismiss(self, child: PooledChild, *, kill: bool = False) -> None:
        """Take a child out of use; with ``kill`` its process group ends at once."""
        del self._children[child.driver]
        self._dying.add(child.driver)
        if kill or not child.ready:
            child.driver.kill()
        else:
            child.driver.retire()

    def outdate(self, *, but: PooledChild | None = None) -> None:
        """Take all children but one (``but``) out of use: idle ones now, others when their call is over."""
        for child in self:
            if child is not but:
                child.current = False
                if child.job is None:
                    self.dismiss(child)

    def gone(self, driver: Driver) -> PooledChild | None:
        """Note that a driver has ended; return its child if it was in use."""
        self._dying.discard(driver)
        return self._children.pop(driver, None)

    def kill(self) -> None:
        """Kill all process groups; from any thread, while the actor's own is stuck or has ended."""
        for driver in (*list(self._children), *list(self._dying)):
            driver.kill()

    def end(self, timeout_secs: float) -> None:
        """End all, the idle ones gently, and wait for it."""
        for child in self:
            self.dismiss(child, kill=child.job is not None)
        deadline = time.monotonic() + timeout_secs
        for driver in self._dying:
            driver.join(max(0.0, deadline - time.monotonic()))
            driver.kill()
