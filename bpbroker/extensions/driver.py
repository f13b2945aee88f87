"""A thread that drives one child process of an extension, so that the extension's actor never waits for it."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass

from bpbroker.extensions.child import Child, Ended, Launch, NoMethod, NotImportable, Raised, Serve
from bpbroker.messages import Call, CallResult

Ending = CallResult | NoMethod | Raised | Ended | ValueError
"""How a call went, as :meth:`bpbroker.extensions.child.Child.call` says."""


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
    """The process and its group are gone, and the thread ends; the last word of a driver."""

    driver: Driver
    problem: NotImportable | OSError | None
    """Why it never came to take calls."""
    idle: bool
    """It died between two calls: one that it was given meanwhile was not begun."""


Tell = Callable[[Ready | Done | Gone], None]


class Driver:
    """One child process and its thread.

    Args:
        launch: what to start.
        serve: serves ``rh.registry``, in this thread.
        tell: is told what happens, from this thread.
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
        """Have a call run; only after Ready, and one at a time."""
        self._calls.put(call)

    def retire(self) -> None:
        """End when the call in hand, if any, is over."""
        self._calls.put(None)

    def kill(self) -> None:
        """Kill the process group now; Gone will tell of it."""
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
