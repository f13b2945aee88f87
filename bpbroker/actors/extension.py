"""The actor of one extension namespace: owns its queue of calls and, by driver threads, its child processes.

The actor never waits for a child: a driver thread runs one call at a time,
answers the caller, and tells the actor that it is free again. So a ping is
answered at once while a call hangs.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpbroker import config, entry, extensions, schema
from bpbroker.actors.base import DEFERRED, Actor, wait_for
from bpbroker.child import Child, Launch, NoMethod, NotImportable
from bpbroker.errors import BpbrokerError, ExtensionFailed, Overloaded, RequestError, Unauthorized, Unavailable
from bpbroker.messages import (
    Address,
    Call,
    CallResult,
    Delete,
    Get,
    List,
    Pong,
    Record,
    Register,
    Replace,
    Settings,
    SettingsChanged,
    Update,
    fail,
    settle,
)

logger = logging.getLogger(__name__)

REGISTRY_SECS = 10.0


@dataclass(frozen=True, slots=True)
class _Job:
    """A call and the place for its answer; None as the call only starts the child."""

    call: Call | None
    reply: Future[CallResult] | None


@dataclass(frozen=True, slots=True)
class _Free:
    """A driver to its actor: done with a job."""

    driver: Driver
    problem: str | None
    """Why the module cannot be imported; empty when it can; None when this job did not find out."""
    failed: bool = False


class Extension(Actor):
    """Runs the calls of one namespace, in order, ``_workers`` at a time.

    Args:
        namespace: the section's name.
        lib: the folder of extension modules.
        settings: the settings in force.
        registry: serves ``rh.registry``.
    """

    def __init__(self, namespace: str, lib: Path, settings: Settings, registry: Address) -> None:
        super().__init__()
        self._namespace = namespace
        self._lib = lib
        self._registry = registry
        self._waiting: deque[_Job] = deque()
        self._free: list[Driver] = []
        self._drivers: list[Driver] = []
        self._problem = ""
        self._signature: tuple[int, int] | None = None
        self._calls = 0
        self._failures = 0
        self._apply(settings)
        self.handlers = {
            Call: self._call,
            _Free: self._freed,
            SettingsChanged: lambda message: self._settings_changed(message.settings),
        }

    def started(self) -> None:
        """Look at the module without running it, and start the child if it shall be there from the beginning."""
        self._look()
        self._make_drivers()

    def stopped(self) -> None:
        """Refuse what waits and end the children."""
        for job in self._waiting:
            if job.reply is not None:
                fail(job.reply, Unavailable("The broker is stopping"))
        for driver in self._drivers:
            driver.end()

    def status(self) -> Pong:
        """Give the namespace's figures, and why its module cannot be used if it cannot."""
        figures = {
            "calls": self._calls,
            "failures": self._failures,
            "waiting": len(self._waiting),
            "running": len(self._drivers) - len(self._free),
            "methods": list(self._record.methods),
        }
        return Pong(ok=not self._problem, detail=self._problem, figures=figures)

    # --- settings and module ---

    def _apply(self, settings: Settings) -> None:
        self._settings = settings
        self._queue_max: int = schema.option(settings, self._namespace, "_queue_max")
        self._timeout_secs: float = schema.option(settings, self._namespace, "_timeout_secs")

    def _look(self) -> None:
        self._record = extensions.look_at(self._namespace, self._lib)
        self._signature = _signature(self._record.path)
        self._problem = self._record.problem
        if self._problem:
            logger.error("The extension %s cannot be used: %s", self._namespace, self._problem)

    def _settings_changed(self, settings: Settings) -> None:
        """Take new settings or a changed module up; calls that run or wait are not touched."""
        own = [config.for_extension(each, self._namespace) for each in (self._settings, settings)]
        changed = own[0] != own[1] or _signature(extensions.find(self._namespace, self._lib)) != self._signature
        self._apply(settings)
        if changed:
            self._look()
            for driver in self._drivers:
                driver.retire()
            self._drivers, self._free = [], []
            self._make_drivers()
        self._run_waiting()

    def _make_drivers(self) -> None:
        section = self._settings.get(self._namespace, {})
        launch = Launch(
            self._namespace,
            self._lib,
            config.for_extension(self._settings, self._namespace),
            section.get("_user"),
            section.get("_memory_max_bytes"),
            dict(section.get("_env", {})),
        )
        for number in range(schema.option(self._settings, self._namespace, "_workers")):
            driver = Driver(f"extension-{self._namespace}-{number}", launch, self)
            self._drivers.append(driver)
            if schema.option(self._settings, self._namespace, "_preload") and not self._problem:
                driver.run(_Job(None, None), self._timeout_secs)
            else:
                self._free.append(driver)

    # --- calls ---

    def _call(self, message: Call) -> Any:
        if self._problem:
            raise Unauthorized("Unauthorized method")
        if len(self._waiting) >= max(self._queue_max, 1) and not self._free:
            raise Overloaded(f"{len(self._waiting)} calls of {self._namespace} wait already; try again in a moment")
        if self._queue_max == 0 and not self._free:
            raise Overloaded(f"{self._namespace} is busy; try again in a moment")
        self._waiting.append(_Job(message, self.reply))
        self._run_waiting()
        return DEFERRED

    def _run_waiting(self) -> None:
        while self._waiting and self._free:
            job = self._waiting.popleft()
            if job.reply is not None and job.reply.cancelled():
                continue
            self._calls += 1
            self._free.pop().run(job, self._timeout_secs)

    def _freed(self, message: _Free) -> None:
        self._failures += message.failed
        if message.driver in self._drivers:
            if message.problem is not None and message.problem != self._problem:
                self._problem = message.problem
                if self._problem:
                    logger.error("The extension %s cannot be used: %s", self._namespace, self._problem)
            self._free.append(message.driver)
        if self._problem:
            while self._waiting:
                waiting = self._waiting.popleft().reply
                if waiting is not None:
                    fail(waiting, Unauthorized("Unauthorized method"))
        self._run_waiting()

    # --- for drivers, in their threads ---

    def tell_free(self, driver: Driver, problem: str | None, *, failed: bool) -> None:
        """Hear that a driver is done."""
        self.tell_self(_Free(driver, problem, failed))

    def ask_registry(self, frame: Mapping[str, Any]) -> dict[str, Any]:
        """Serve ``rh.registry``; never raises."""
        try:
            reply = self._registry.ask(_registry_message(frame, self._namespace), REGISTRY_SECS)
            value = wait_for(reply, REGISTRY_SECS)
        except RequestError as error:
            return {"status": error.status, "message": str(error)}
        except Exception:
            logger.exception("The registry failed for the extension %s", self._namespace)
            return {"status": 503, "message": "The registry failed"}
        if isinstance(value, tuple):
            return {"value": {record.name: json.loads(record.json) for record in value}}
        return {"value": json.loads(value.json) if isinstance(value, Record) else None}


class Driver:
    """A thread that drives one child process; it belongs to one actor."""

    def __init__(self, name: str, launch: Launch, actor: Extension) -> None:
        self._launch = launch
        self._actor = actor
        self._jobs: queue.SimpleQueue[tuple[_Job, float] | None] = queue.SimpleQueue()
        self._child: Child | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def run(self, job: _Job, timeout_secs: float) -> None:
        """Have a job run; the actor hears when it is done."""
        self._jobs.put((job, timeout_secs))

    def retire(self) -> None:
        """Have the thread and its child end when the current job is done."""
        self._jobs.put(None)

    def end(self) -> None:
        """Kill the child, in the middle of a job if need be, and end the thread."""
        self._ending = True
        self._jobs.put(None)
        child = self._child
        if child is not None:
            child.kill()
        self._thread.join(2.0)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            problem, failed = self._do(*item)
            self._actor.tell_free(self, problem, failed=failed)
        if self._child is not None:
            self._child.end()

    def _do(self, job: _Job, timeout_secs: float) -> tuple[str | None, bool]:
        """Run a job and answer its caller; give what was learnt of the module, and whether the call failed."""
        reply: Future[CallResult] = job.reply or Future()
        try:
            if self._child is None or not self._child.alive:
                self._child = Child(self._launch, self._actor.ask_registry)
            if job.call is not None:
                settle(reply, self._child.call(job.call, timeout_secs))
        except NotImportable as error:
            fail(reply, Unauthorized("Unauthorized method"))
            return str(error), True
        except NoMethod:
            fail(reply, Unauthorized("Unauthorized method"))
            return "", False
        except BpbrokerError as error:
            fail(reply, Unavailable("The broker is stopping") if self._ending else error)
            return None, True
        except Exception:
            logger.exception("Error while driving the extension %s", self._launch.namespace)
            fail(reply, ExtensionFailed("The extension failed; the broker's log has more"))
            return None, True
        return "", False


def _signature(path: Path | None) -> tuple[int, int] | None:
    """Give what changes when a module's file does."""
    try:
        state = path.stat() if path else None
    except OSError:
        return None
    return (state.st_mtime_ns, state.st_size) if state else None


def _registry_message(frame: Mapping[str, Any], namespace: str) -> Any:
    """Make the registry's message of what a module asked.

    Raises:
        RequestError: it asked for something that cannot be.
    """
    kind, name, data = frame["method"], frame["name"], frame["data"]
    if kind == "List":
        return List(str(name))
    entry.check_name(name)
    if kind == "Get":
        return Get(name)
    if kind == "Delete":
        return Delete(name)
    own = entry.parse(data) if isinstance(data, str) else entry.check_object(data)
    writes = {"Register": Register, "Replace": Replace, "Update": Update}
    return writes[kind](name, own, f"extension {namespace}")
