"""The actor of one extension namespace: owns the queue of its calls, and through drivers its child processes.

The actor never waits for a child, so it replies to a ping at once whatever the module does. It applies the time
limits; a result that a driver sends after a limit is too late.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from bpbroker.actors.base import DEFERRED, Actor
from bpbroker.actors.inbox import Wake
from bpbroker.actors.registry_access import Changed, RegistryAccess
from bpbroker.config import schema
from bpbroker.errors import Overloaded, RequestError, TimedOut, Unauthorized, Unavailable
from bpbroker.extensions import modules
from bpbroker.extensions.call_results import CallResults, ChildTrace
from bpbroker.extensions.cgroups import Groups
from bpbroker.extensions.child_pool import NEVER, ChildPool, Done, Gone, Job, PooledChild, Ready
from bpbroker.extensions.child_process import Ended, Launch
from bpbroker.extensions.idempotency import Answers, Keyed, Usage
from bpbroker.extensions.registry_calls import Understand
from bpbroker.messages import Address, Call, CallResult, Pong, Settings, SettingsChanged, fail, settle

logger = logging.getLogger(__name__)

RETRY_IMPORT_SECS: Final = 5.0
"""Pause after a failed import: each try costs a process."""

_TIDY_SECS: Final = 60.0
"""How often answers older than a day are removed and the others counted, also without calls."""

_TRIES_MAX: Final = 3
"""How often a call is passed to another child after a child died without beginning it."""


@dataclass(frozen=True, slots=True)
class _Basis:
    """The basis of children: settings, and the files of the lib folder."""

    settings: Settings
    view: Mapping[str, Any]
    """The settings that the module may see."""
    signature: bytes
    """Signature of the lib folder; see :func:`bpbroker.extensions.modules.signature`."""

    def is_same(self, other: _Basis) -> bool:
        """Return whether children of both bases are alike."""
        return self.view == other.view and self.signature == other.signature


@dataclass(frozen=True, slots=True)
class _Trial:
    """A child beside those in service: it shows whether its basis can be used."""

    basis: _Basis
    child: PooledChild


class Extension(Actor):
    """Runs the calls of one namespace in order, ``_workers`` at a time.

    A changed module is put into service when a child has imported it. If it cannot be imported, the earlier one stays
    in service as long as its processes live.

    Args:
        namespace: the section's name.
        lib: the folder of extension modules.
        settings: the settings in force.
        registry: serves ``rh.registry``.
        understand: makes messages to the registry of a method's calls.
        answers: file in which answers to calls with an ``Idempotency-Key`` last; None keeps them in memory.
        registry_id: the registry that this file belongs to; empty if several brokers share one.
        changed: called with each change that a method makes in the registry.
        groups: the control groups for its processes; None where they are not possible.
    """

    def __init__(
        self,
        namespace: str,
        lib: Path,
        settings: Settings,
        registry: Address,
        understand: Understand,
        answers: Path | None = None,
        registry_id: str = "",
        changed: Changed = lambda *_: None,
        groups: Groups | None = None,
    ) -> None:
        super().__init__()
        self._namespace = namespace
        self._lib = lib
        self._settings = settings
        self._groups = groups
        self._answers = Answers(answers, registry=registry_id)
        self._usage = Usage(0, 0)
        self._tidy_at = 0.0
        self._judge = CallResults(namespace)
        self._pool = ChildPool(
            RegistryAccess(registry, understand, lambda: self._settings, changed).serve, self.tell_self
        )
        self._waiting: deque[Job] = deque()
        self._keyed: dict[str, Job] = {}
        """Calls with an Idempotency-Key that wait or run."""
        self._methods: frozenset[str] | None = None
        """The methods of the imported module; None until they are known."""
        self._usable = False
        """Whether the module looks usable without running it."""
        self._problem = ""
        self._closed: tuple[type[RequestError], str] | None = None
        """The error that calls get until ``_retry_at``, when the module or its process did not start."""
        self._retry_at = 0.0
        self._trial: _Trial | None = None
        self._asked: list[Future[Any]] = []
        """The requests that wait for the trial of the module."""
        self._held = ""
        """Why the current module is not in service; empty if it is."""
        self._alone_until = 0.0
        """Monotonic time until which no process is added to those in service, because it would not start."""
        self._lock: IO[bytes] | None = None
        self._mutex = f"Local\\bpbroker-{secrets.token_hex(16)}"
        self.handlers = {
            Call: self._call,
            Ready: self._child_ready,
            Done: self._call_done,
            Gone: self._child_gone,
            SettingsChanged: self._settings_changed,
            Wake: lambda _: self._check_time(),
        }

    def started(self) -> None:
        """Check the module without running it, and preload it if the settings say so."""
        self._take(self._look(self._settings))
        self._tidy()

    def stopped(self) -> None:
        """Refuse the waiting calls, end the children."""
        self._refuse_asked(Unavailable("The broker is stopping"))
        for job in self._jobs():
            error = Unavailable("The broker is stopping")
            error.outcome_known = not job.begun
            self._answer(job, error)
        self._pool.end(1.5)
        self._close()

    def on_failure(self, *fault: Any) -> None:
        """Release the files too; only this thread may do that."""
        super().on_failure(*fault)
        self._close()

    def _close(self) -> None:
        self._answers.close()
        if self._lock is not None:
            self._lock.close()

    def abandoned(self) -> None:
        """Kill the children, and refuse all waiting and running calls: this actor will not hear of them again."""
        self._pool.kill()
        self._refuse_asked(Unavailable(f"The broker's part for {self._namespace} is being replaced"))
        for job in self._jobs():
            what = f"{job.call.method} was begun; what it did is not known" if job.begun else "nothing was done"
            error = Unavailable(f"The broker's part for {self._namespace} is being replaced; {what}")
            error.outcome_known = not job.begun
            for reply in list(job.replies):
                fail(reply, error)

    def _refuse_asked(self, error: RequestError) -> None:
        for reply in list(self._asked):
            fail(reply, error)

    def _jobs(self) -> list[Job]:
        """Return the calls that wait or run."""
        return [*list(self._waiting), *(child.job for child in self._pool if child.job)]

    def status(self) -> Pong:
        """Return figures of its calls, and why its module cannot be used if it cannot."""
        figures = {
            **self._judge.figures(),
            "running": self._pool.running,
            "waiting": len(self._waiting),
            "processes": self._pool.processes,
            "keys_kept": self._usage.keys,
            "answers_bytes": self._usage.bytes,
        }
        counts = {"outcomes": dict(self._judge.outcomes), "waiting_max": self._option("_queue_max")}
        detail = self._problem or self._held or self._usage.warning
        return Pong(not self._problem, detail, figures, counts)

    # --- settings and module ---

    def _look(self, settings: Settings) -> _Basis:
        return _Basis(settings, schema.for_extension(settings, self._namespace), modules.signature(self._lib))

    def _take(self, basis: _Basis) -> None:
        """Use this basis without a trial; waiting calls go to new children."""
        record = modules.look_at(self._namespace, self._lib)
        self._usable = record.status is modules.Status.USABLE
        self._adopt(basis)
        self._note_problem(record.problem)
        self._methods = None
        self._pool.outdate()
        if self._usable and (self._option("_preload") or self._asked):
            self._start_child()
        else:
            self._tell_asked(self._problem if record.status is modules.Status.BROKEN else "")
        self._go_on()

    def _adopt(self, basis: _Basis) -> None:
        """Set the basis that is in force from now on."""
        self._basis = basis
        self._settings = basis.settings
        self._timeout_secs: float = self._option("_timeout_secs")
        self._workers_max: int = self._option("_workers")
        self._closed = None
        self._held = ""
        self._alone_until = 0.0

    def _settings_changed(self, message: SettingsChanged) -> Any:
        """Use a changed basis: at once, or after a child has shown that it works."""
        basis = self._look(message.settings)
        if self._trial is None and basis.is_same(self._basis) and not self._problem and not self._held:
            return ""
        if self.reply is not None:
            self._asked.append(self.reply)
        if self._trial is not None and basis.is_same(self._trial.basis):
            return DEFERRED
        if self._trial is not None:
            self._pool.dismiss(self._trial.child)
            self._trial = None
        record = modules.look_at(self._namespace, self._lib)
        if not self._pool.in_service or record.status not in (modules.Status.USABLE, modules.Status.BROKEN):
            self._take(basis)  # a module that was removed does not stay in service either
        elif record.status is modules.Status.BROKEN:
            self._hold(record.problem)
        else:
            self._trial = _Trial(basis, self._start_child(basis.settings))
            self._go_on()
        return DEFERRED

    def _switch(self, trial: _Trial) -> None:
        """Put the tried basis into service."""
        self._trial = None
        self._adopt(trial.basis)
        self._pool.outdate(but=trial.child)

    def _hold(self, problem: str, trace: str = "", *, until: float = NEVER) -> None:
        """Keep the processes in service, and log why; no other is started beside them until then."""
        held = f"{problem}; the module that was imported before stays in service"
        if held != self._held:
            logger.error("The extension %s: %s", self._namespace, held, exc_info=_exc_info(trace))
        self._held = held
        self._alone_until = until
        self._tell_asked(held)

    def _tell_asked(self, problem: str) -> None:
        asked, self._asked = self._asked, []
        for reply in asked:
            settle(reply, problem)

    def _option(self, key: str) -> Any:
        return schema.option(self._settings, self._namespace, key)

    def _note_problem(self, problem: str, trace: str = "") -> None:
        if problem and problem != self._problem:
            logger.error("The extension %s cannot be used: %s", self._namespace, problem, exc_info=_exc_info(trace))
        self._problem = problem

    # --- calls: from the inbox to a child ---

    def _call(self, message: Call) -> Any:
        if self.reply is None:
            return None
        if not self._usable or message.method.startswith("_") or not message.method.isidentifier():
            raise Unauthorized("Unauthorized method")
        keyed = Keyed.of(self._namespace, message)
        if keyed is not None:
            before = self._keyed.get(keyed.key)
            if before is not None and before.keyed is not None:
                before.keyed.check_repeat(keyed.request)
                before.replies.append(self.reply)
                return DEFERRED
            answer = self._answers.find(keyed)
            if isinstance(answer, RequestError):
                raise answer
            if answer is not None:
                return answer
        self._admit(message)
        # Time for an import and for one call before it; a call behind several others may have to be repeated.
        job = Job(message, [self.reply], time.monotonic() + 2 * self._timeout_secs, keyed)
        if keyed is not None:
            self._keyed[keyed.key] = job
        self._waiting.append(job)
        self._go_on()
        return DEFERRED

    def _admit(self, message: Call) -> None:
        """Check that a call may be queued.

        Raises:
            Unauthorized, Unavailable, Overloaded: it may not be queued.
        """
        if self._methods is not None and message.method not in self._methods:
            raise Unauthorized("Unauthorized method")
        if self._closed is not None and time.monotonic() < self._retry_at:
            kind, text = self._closed
            raise kind(text)
        soon = max(0, self._workers_max - self._pool.running)
        if len(self._waiting) >= self._option("_queue_max") + soon:
            self._judge.outcomes["refused"] += 1
            raise Overloaded(f"{len(self._waiting)} calls of {self._namespace} wait already; nothing was done")

    def _go_on(self) -> None:
        """Pass waiting calls to free children, and start children for the others."""
        for child in self._pool.free():
            # One more than `_workers` may be there, not at work: what was tried, beside one that it takes the place of.
            job = self._next() if self._pool.running < self._workers_max else None
            if job is None:
                break
            self._judge.calls += not job.begun
            self._pool.give(child, job, self._timeout_secs)
        alone = self._pool.in_service and time.monotonic() < self._alone_until
        room = 0 if alone or self._trial is not None else self._workers_max - len(self._pool)
        for _ in range(min(room, len(self._waiting) - self._pool.starting)):
            self._start_child()
        soonest = min(self._pool.deadline, self._waiting[0].deadline if self._waiting else NEVER)
        if soonest != NEVER:
            self.wake_at(soonest)

    def _next(self) -> Job | None:
        """Return the next waiting call to begin; reply to those that are over."""
        while self._waiting:
            job = self._waiting.popleft()
            if job.abandoned:
                self._answer(job, TimedOut("Nobody waits any more; nothing was done"))
            elif self._methods is not None and job.call.method not in self._methods:
                self._answer(job, Unauthorized("Unauthorized method"))
            else:
                try:
                    if job.keyed is not None and not job.begun:
                        self._answers.begin(job.keyed)
                except RequestError as error:
                    self._answer(job, error)
                else:
                    return job
        return None

    def _start_child(self, settings: Settings | None = None) -> PooledChild:
        """Start a child with this basis, or with the one in force."""
        settings = self._settings if settings is None else settings
        section = settings.get(self._namespace, {})
        workers_max: int = schema.option(settings, self._namespace, "_workers")
        return self._pool.start(
            Launch(
                self._namespace,
                self._lib,
                settings=schema.for_extension(settings, self._namespace),
                timeout_secs=schema.option(settings, self._namespace, "_timeout_secs"),
                user=section.get("_user"),
                memory_max_bytes=section.get("_memory_max_bytes"),
                environment=dict(section.get("_env", {})),
                lock=self._shared_lock() if workers_max > 1 else None,
                groups=self._groups,
            )
        )

    def _shared_lock(self) -> int | str:
        """Return the descriptor of a file that all children of the namespace can lock; made when first needed.

        On Windows, return the name of a mutex, which exists as long as a child has it.
        """
        if sys.platform == "win32":
            return self._mutex
        if self._lock is None:
            self._lock = _lock_file()  # closed by stopped()
        return self._lock.fileno()

    # --- news from drivers ---

    def _child_ready(self, message: Ready) -> None:
        child = self._pool.get(message.driver)
        if child is not None and self._offers_nothing_any_more(child, message.methods):
            self._trial = None
            self._pool.dismiss(child)
            self._hold("it has no method for clients, as if it were cut off")
            self._go_on()
        elif child is not None:
            child.ready = True
            self._pool.rest(child)
            if self._trial is not None and child is self._trial.child:
                self._switch(self._trial)
            self._methods = frozenset(message.methods)
            self._closed = None
            self._held = ""
            self._note_problem("")
            if self._trial is None:
                self._tell_asked("")
            self._go_on()

    def _offers_nothing_any_more(self, child: PooledChild, methods: Sequence[str]) -> bool:
        """Return whether a changed module has lost all its methods: a full disk leaves an empty one, which imports."""
        return self._trial is not None and child is self._trial.child and not methods and bool(self._methods)

    def _call_done(self, message: Done) -> None:
        child = self._pool.get(message.driver)
        job = self._pool.rest(child) if child is not None else None
        if child is None or job is None:
            return  # it had its reply at the time limit
        self._finish(job, self._judge.judge(job.call, message.outcome))
        if message.last or not child.current:
            self._pool.dismiss(child)
        self._go_on()

    def _child_gone(self, message: Gone) -> None:
        child = self._pool.gone(message.driver)
        if child is None:
            pass  # it was dismissed
        elif child.job is not None and message.idle and child.job.begun < _TRIES_MAX:
            self._waiting.appendleft(child.job)
        elif child.job is not None:
            self._finish(child.job, self._judge.judge(child.job.call, Ended("it died again and again")))
        elif message.problem is not None:
            self._not_started(child, message.problem)
        self._go_on()

    def _not_started(self, child: PooledChild, problem: Exception) -> None:
        """Refuse the waiting calls if no child is in service: the module cannot be imported, or no process started."""
        tried = self._trial if self._trial is not None and child is self._trial.child else None
        if tried is not None:
            self._trial = None
        trace = getattr(problem, "trace", "")
        if isinstance(problem, OSError):
            closed: tuple[type[RequestError], str]
            closed = Unavailable, "The extension's process cannot be started; the broker's log says why"
            said = f"its process cannot be started: {problem.strerror or problem}"
            trace = f"{problem}: is it closed to the extension's _user?" if isinstance(problem, PermissionError) else ""
        else:
            closed = Unauthorized, "Unauthorized method"
            said = f"it cannot be imported: {problem}"
        retry_at = time.monotonic() + RETRY_IMPORT_SECS
        if self._pool.in_service:
            self._hold(said, trace, until=retry_at if tried is None else NEVER)
            return
        if tried is not None:  # the processes in service have died meanwhile
            self._adopt(tried.basis)
        self._retry_at = retry_at
        self._note_problem(said, trace)
        self._tell_asked(said)
        kind, text = self._closed = closed
        while self._waiting:
            self._answer(self._waiting.popleft(), kind(text))

    # --- time ---

    def _check_time(self) -> None:
        """Kill children whose call takes too long, refuse calls that wait too long."""
        now = time.monotonic()
        for child in [child for child in self._pool if child.deadline <= now]:
            self._pool.dismiss(child, kill=True)
            if child.job is not None:
                self._finish(child.job, self._judge.too_late(child.job.call, self._timeout_secs))
            else:
                self._not_started(child, RuntimeError(f"that takes longer than {self._import_secs(child):g} s"))
        while self._waiting and self._waiting[0].deadline <= now:
            late = TimedOut(f"{self._namespace} was busy for {2 * self._timeout_secs:g} s; nothing was done")
            self._answer(self._waiting.popleft(), late)
        self._go_on()
        if now >= self._tidy_at:
            self._tidy()
        self.wake_at(self._tidy_at)

    def _import_secs(self, child: PooledChild) -> float:
        tried = self._trial is not None and child is self._trial.child
        settings = self._trial.basis.settings if self._trial is not None and tried else self._settings
        secs: float = schema.option(settings, self._namespace, "_timeout_secs")
        return secs

    # --- answers ---

    def _tidy(self) -> None:
        """Clean up the file of answers."""
        with suppress(RequestError):  # it is logged, and calls with a key get the error
            self._usage = self._answers.tidy()
        self._tidy_at = time.monotonic() + _TIDY_SECS
        self.wake_at(self._tidy_at)

    def _finish(self, job: Job, answer: CallResult | RequestError) -> None:
        """Store the result of a call that was begun if its client may repeat it; then reply."""
        if job.keyed is not None:
            try:
                self._answers.finish(job.keyed, answer)
            except RequestError as error:
                logger.warning("The answer to request %s is not kept: %s", job.call.request_id, error)
        self._answer(job, answer)

    def _answer(self, job: Job, answer: CallResult | RequestError) -> None:
        """Reply to all requests that wait for a call."""
        if job.keyed is not None:
            self._keyed.pop(job.keyed.key, None)
        for reply in job.replies:
            _give(reply, answer)


def _exc_info(trace: str) -> tuple[type[ChildTrace], ChildTrace, None] | None:
    """Return the traceback of a child, as the log shows it."""
    return (ChildTrace, ChildTrace(trace), None) if trace else None


def _give(reply: Future[Any], answer: CallResult | RequestError) -> None:
    if isinstance(answer, CallResult):
        settle(reply, answer)
    else:
        fail(reply, answer)


def _lock_file() -> IO[bytes]:
    """Return a file without a name; in memory where that exists, because no temporary folder may be writable."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("bpbroker-lock"), "w+b")
    return tempfile.TemporaryFile()
