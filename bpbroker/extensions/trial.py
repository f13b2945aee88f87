"""Running one method of an extension without a broker, for its author: ``bpbroker run-extension``.

The module runs as it will in the broker, in a child process with the same
options; only the registry is made up and forgotten.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from bpbroker import progress
from bpbroker.config import layers, schema
from bpbroker.errors import ExtensionFailed, NotFound, RequestError, TimedOut, Unauthorized, UsageError
from bpbroker.extensions.child_process import Child, Ended, Launch, NoMethod, NotImportable, Raised
from bpbroker.extensions.modules import Status, look_at
from bpbroker.extensions.registry_calls import Understand, answered, question_of, refused
from bpbroker.extensions.rh import one_line
from bpbroker.messages import Call, CallResult, Get, List
from bpbroker.record import INDEX_MAX, Record
from bpbroker.registry import entry_values, locks, sessions, writes
from bpbroker.registry.filters import sort
from bpbroker.registry.memory import Memory, PendingWrite
from bpbroker.registry.requests import Done, Holder, Lock, Lost, Renew, Unlock, Watch, Watched
from bpbroker.registry.view import Limits


def run_extension(
    method: str,
    qs: Mapping[str, str],
    *,
    source: str = "127.0.0.1",
    lib: Path,
    settings: Mapping[str, Any],
    understand: Understand,
    entries: Mapping[str, Mapping[str, Any]] | None = None,
) -> CallResult:
    """Run ``namespace.Method`` of a module in ``lib`` once and return its answer.

    What the module prints and logs goes to the logger ``bpbroker.extension.<namespace>``.

    Args:
        method: such as ``ossec.AddAgent``.
        qs: the request's parameters, such as ``{"data": "host1"}``.
        source: the address that asks.
        lib: the folder of the module.
        settings: the configuration; the namespace's section may be missing.
        understand: makes messages of the method's calls of the registry.
        entries: what the made-up registry holds at first.

    Raises:
        UsageError: there is no such module, or it does not parse.
        Unauthorized: it offers no such method.
        ExtensionFailed: it cannot be imported, it raised, or it crashed; the message has its traceback.
        TimedOut: it took longer than the section's ``_timeout_secs``.
    """
    namespace, _, name = method.rpartition(".")
    record = look_at(namespace, lib) if namespace else None
    if record is None or not name.isidentifier():
        raise UsageError(f"{method!r} is not of the form namespace.Method")
    if record.status is not Status.USABLE:
        raise UsageError(f"{namespace} cannot be used: {record.problem}")
    launch = _launch(namespace, lib, settings)
    timeout_secs = launch.timeout_secs
    child = Child(launch)
    limit = _Limit(child, timeout_secs)
    try:
        limit.begin()
        offered = child.start()
        if name.startswith("_") or name not in offered:
            raise Unauthorized(f"{namespace} offers no {name}; it offers {', '.join(offered) or 'nothing'}")
        limit.begin()
        registry = _Registry(entries or {}, understand, settings)
        return child.call(Call(name, dict(qs), source, "trial"), registry.serve)
    except (NotImportable, NoMethod, Raised, Ended, OSError, ValueError) as error:
        if limit.reached:
            raise TimedOut(f"{method} took longer than {timeout_secs:g} s") from None
        trace = getattr(error, "trace", "")
        raise ExtensionFailed(f"{method} failed: {error}" + (f"\n{trace.rstrip()}" if trace else "")) from None
    finally:
        limit.end()
        child.end(0.5)


def import_extension(
    namespace: str, lib: Path, settings: Mapping[str, Any], *, beside: Path | None = None
) -> tuple[str, ...]:
    """Import a namespace's module as the broker would and return the methods that it offers; none is run.

    Args:
        namespace: such as ``ossec``.
        lib: the folder of the module.
        settings: the configuration; the namespace's section may be missing.
        beside: a further folder that it may import other modules from.

    Raises:
        UsageError: it cannot be imported; the message says why, with the line if that is one of its own.
        OSError: no process can be started to try it.
    """
    launch = _launch(namespace, lib, settings)
    if launch.user is not None and not (hasattr(os, "geteuid") and os.geteuid() == 0):
        launch = replace(launch, user=None)  # only root's broker can run it as that user; this is no reason to refuse
    child = Child(replace(launch, beside=beside))
    limit = _Limit(child, launch.timeout_secs)
    try:
        with progress.Work(f"Importing {namespace}"):
            limit.begin()
            return child.start()
    except NotImportable as error:
        if limit.reached:
            raise UsageError(f"importing it takes longer than {launch.timeout_secs:g} s") from None
        lines = error.trace.strip().splitlines()
        raise UsageError(f"{error}" + (f" ({one_line(lines[-1])})" if lines else "")) from None
    finally:
        limit.end()
        child.end(0.5)


def _launch(namespace: str, lib: Path, settings: Mapping[str, Any]) -> Launch:
    section = settings.get(namespace, {})
    return Launch(
        namespace,
        lib,
        settings={**schema.for_extension(settings, namespace), namespace: layers.thaw(section)},
        timeout_secs=schema.option(settings, namespace, "_timeout_secs"),
        user=section.get("_user"),
        memory_max_bytes=section.get("_memory_max_bytes"),
        environment=dict(section.get("_env", {})),
    )


class _Limit:
    """Kills a child that takes too long."""

    def __init__(self, child: Child, secs: float) -> None:
        self._child = child
        self._secs = secs
        self._timer: threading.Timer | None = None
        self.reached = False

    def begin(self) -> None:
        """Count from now."""
        self.end()
        self._timer = threading.Timer(self._secs, self._reach)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Stop counting."""
        if self._timer is not None:
            self._timer.cancel()

    def _reach(self) -> None:
        self.reached = True
        self._child.kill()


class _Registry:
    """A registry in memory with the rules of the real one; it has no other writer, so nothing waits."""

    def __init__(
        self, entries: Mapping[str, Mapping[str, Any]], understand: Understand, settings: Mapping[str, Any]
    ) -> None:
        self._memory = Memory()
        self._understand = understand
        self._settings = settings
        self._revision = INDEX_MAX
        self._memory.fill(Record(name, entry_values.encode(value), INDEX_MAX) for name, value in entries.items())
        self._memory.history.begin("trial", INDEX_MAX)

    def serve(self, call: Call, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the frame that answers what the method asked."""
        try:
            question = question_of(call, asked, self._understand, self._settings)
            return answered(question, self._do(question.message))
        except RequestError as error:
            return refused(error)

    def _do(self, message: Any) -> Any:
        read = self._reads.get(type(message))
        return self._write(message) if read is None else read(self, message)

    def _write(self, message: writes.Write) -> Any:
        memory = self._memory
        write = PendingWrite(message, None)
        memory.decide(write, time.time(), Limits())
        if isinstance(write.decision, RequestError):
            raise write.decision
        batch, base = memory.take_batch(), self._revision + 1
        self._revision += max(1, batch.places)
        changes = {name: None if after is None else after.at(base) for name, after in batch.staged.items()}
        for name, changed in changes.items():
            memory.put(name, changed)
        told = [(name, changed, base + batch.indexes[name]) for name, changed in changes.items()]
        memory.announce(told, self._revision)
        return self._placed(message) if isinstance(message, Lock) else write.decision.at(base)

    def _placed(self, message: Lock) -> Done:
        queue = self._queue(message.name)
        place = queue.holds(message.session)
        if place is None:  # no other process will ever give it back
            self._write(Unlock(message.name, message.session))
            raise locks.held(message.name, queue, partial(self._memory.ages.of, locks.PREFIX + message.name))
        return Done({"token": place.token, "session": message.session, "since": place.since}, place.token)

    def _queue(self, name: str) -> locks.Queue:
        return locks.parse(self._memory.get(locks.PREFIX + name))

    def _get(self, message: Get) -> Record:
        found = self._memory.entries.get(message.name)
        if found is None:
            raise NotFound(f"Entry '{message.name}' not found")
        return found

    def _list(self, message: List) -> tuple[Record, ...]:
        return sort(self._memory.entries.matching(message.prefix), message.where, message.fail_where).listed

    def _renew(self, message: Renew) -> Done:
        found = self._memory.get(sessions.PREFIX + message.session)
        if found is None:
            raise sessions.over(message.session)
        return Done({"session": message.session, "ttl": json.loads(found.json)["ttl"]})

    def _watch(self, message: Watch) -> Watched:
        found = self._memory.history.read(message)
        if message.since is not None and not found.events:
            time.sleep(message.wait_secs)  # the method is the only writer, and it waits here
        return found

    _reads: Final[Mapping[type, Callable[[Any, Any], Any]]] = {
        Get: _get,
        List: _list,
        Renew: _renew,
        Lost: lambda _self, _message: (),  # no session ends by its time during one call
        Holder: lambda self, message: Done(self._queue(message.name).shown()),
        Watch: _watch,
    }
