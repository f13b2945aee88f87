"""Inside the child process of one extension: import its module, run its calls one after the other.

The broker's side is :mod:`bpbroker.extensions.child_process`. The two speak in frames
(:mod:`bpbroker.extensions.channel`) over what were the standard input and output of this
process; they are moved out of the module's reach first, and what the module
prints goes to the broker's log.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.abc
import inspect
import io
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

from bpbroker import config
from bpbroker.errors import RequestError
from bpbroker.extensions import channel
from bpbroker.extensions.child_api import ReadOnly, SharedLock, log_to_broker
from bpbroker.extensions.process_tree import become_subreaper
from bpbroker.extensions.refusals import Error, Unavailable
from bpbroker.extensions.rh import Request, Unsendable, one_line, refusal, result_of
from bpbroker.extensions.rh_registry import Registry
from bpbroker.messages import CallResult
from bpbroker.text import command_line

Method = Callable[[Request], object]

_TRACE_MAX: Final = 16_000
_BEYOND_MEMORY_BYTES: Final = 1 << 30
"""Address space that is granted beyond ``_memory_max_bytes``: libraries and reserved but unused ranges."""


def main() -> None:
    """Take standard input and output for the conversation with the broker, then serve it."""
    become_subreaper()
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    # The broker's side reads UTF-8, whatever this system's own encoding is.
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")
    atexit.register(_end_group)  # the first to be registered is the last to run
    broker = _Broker(requests, answers)
    begin = broker.next()
    if begin is not None:
        _Extension(broker, begin).run()
    sys.stdout.flush()


class _Broker:
    """The broker as seen from here. A thread reads, so that the broker's end is noticed in the middle of a call."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = requests
        self._answers = answers
        self._calls: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._turn = threading.Lock()
        """Held while a question to the registry is open; the final answer of a call waits for it."""
        self._open = False
        self.timeout_secs = 30.0
        threading.Thread(target=self._read, name="broker", daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                frame = channel.read(lambda count: os.read(self._requests, count), 0)
            except (OSError, channel.ChannelBroken):
                frame = None
            if frame is None:
                break
            (self._replies if frame[0]["kind"] == "reply" else self._calls).put(frame[0])
        self._calls.put(None)
        self._replies.put(None)
        # The broker has gone. A call in hand may end well, but not hang for ever.
        time.sleep(self.timeout_secs)
        _end_group()

    def next(self) -> dict[str, Any] | None:
        """Wait for the next thing to do; None when the broker wants no more."""
        frame = self._calls.get()
        self._open = frame is not None
        return frame

    def answer(self, head: Mapping[str, Any], body: bytes = b"") -> None:
        """Send the answer to what :meth:`next` returned."""
        with self._turn:
            self._open = False
            channel.write(self._answers, channel.pack(head, body))

    def ask(self, head: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for something in the middle of a call.

        Raises:
            Unavailable: the broker has gone.
            RuntimeError: no call is running.
        """
        with self._turn:
            if not self._open:
                raise RuntimeError("rh.registry can be used during a call only")
            channel.write(self._answers, channel.pack(head))
            reply = self._replies.get()
        if reply is None:
            raise Unavailable("The broker has gone")
        return reply


class _Extension:
    """The module, and what its methods are given."""

    def __init__(self, broker: _Broker, begin: Mapping[str, Any]) -> None:
        self._broker = broker
        self._namespace: str = begin["namespace"]
        self._lib = Path(begin["lib"])
        self._beside = None if begin["beside"] is None else Path(begin["beside"])
        self._log = log_to_broker(self._namespace)
        self._registry = Registry(broker.ask, begin["timeout_secs"])
        broker.timeout_secs = begin["timeout_secs"]
        config.data = ReadOnly.of(begin["settings"])
        self._config: Mapping[str, Any] = config.data.get(self._namespace, ReadOnly())
        if begin["lock"] is not None:
            config.rlock = SharedLock(begin["lock"])  # type: ignore[assignment]  # it has RLock's methods
        if begin["memory_max_bytes"] is not None:
            _limit_memory(begin["memory_max_bytes"])

    def run(self) -> None:
        """Import the module, then serve until the broker wants no more."""
        try:
            methods = methods_of(load(self._namespace, self._lib, self._beside))
        except BaseException as error:  # noqa: BLE001 - a module may raise anything, SystemExit too
            problem, trace = _problem(error, self._lib), _trace()
            closed = _closed(self._lib, self._namespace)
            if closed is not None:  # to Python it is as if it were not there
                problem = "its user may not read the module, the lib folder, or a folder above; the log names it"
                how = command_line("chmod", "o+rX", str(closed))
                trace += f"This process's user may not read {closed}; to let it: {how}"
            self._broker.answer({"kind": "broken", "problem": problem, "trace": trace})
            return
        self._broker.answer({"kind": "ready", "methods": sorted(methods)})
        while (call := self._broker.next()) is not None:
            if not self._serve(methods.get(call["method"]), call):
                return

    def _serve(self, method: Method | None, call: Mapping[str, Any]) -> bool:
        """Run one call; False if this process is not to be used again."""
        if method is None:
            self._broker.answer({"kind": "unknown"})
            return True
        try:
            result = self._run(method, call)
        except BaseException as error:  # noqa: BLE001 - a method may raise anything, SystemExit too
            spent = isinstance(error, MemoryError) or not isinstance(error, Exception)
            trace = str(error) if isinstance(error, Unsendable) else _trace()
            failed = {"kind": "failed", "problem": type(error).__name__, "trace": trace, "spent": spent}
            self._broker.answer(failed)
            return not spent
        head = {
            "kind": "answer",
            "status": result.status,
            "message": result.message,
            "content_type": result.content_type,
        }
        self._broker.answer(head, result.body)
        return True

    def _run(self, method: Method, call: Mapping[str, Any]) -> CallResult:
        rh = Request(
            qs=call["qs"], source=call["source"], caller=call["caller"], request_id=call["request_id"],
            config=self._config, registry=self._registry, log=self._log,
        )  # fmt: skip
        try:
            method(rh)
            return result_of(rh)
        except (Error, RequestError) as error:
            return refusal(error.status, error)


# --- the module ---


class _LibFinder(importlib.abc.MetaPathFinder):
    """Finds the extension's own package in the lib folder and nowhere else, whatever else has that name."""

    def __init__(self, top: str, lib: Path) -> None:
        self._top = top
        self._lib = str(lib)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self._top:
            return None
        spec = PathFinder.find_spec(fullname, [self._lib] if path is None else path, target)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {fullname!r} in the lib folder", name=fullname)
        return spec


def load(namespace: str, lib: Path, beside: Path | None = None) -> ModuleType:
    """Import a namespace's module from the lib folder; it may import others that lie there, or in ``beside``.

    Raises:
        BaseException: whatever the module raises.
    """
    top = namespace.partition(".")[0]
    sys.meta_path.insert(0, _LibFinder(top, lib))
    # Last: a module of the lib folder must not stand in for one of Python's own.
    sys.path += [str(folder) for folder in (lib, beside) if folder is not None]
    for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
        del sys.modules[name]
    return importlib.import_module(namespace)


def methods_of(module: ModuleType) -> dict[str, Method]:
    """Return the functions that clients may call: those of the module itself whose name has no ``_`` in front."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and _is_own(value, module)}


def _is_own(value: object, module: ModuleType) -> bool:
    if not isinstance(value, FunctionType) or value.__module__ != module.__name__:
        return False
    own = inspect.unwrap(value)  # a decorator's wrapper belongs to the module whose function it wraps
    return (
        isinstance(own, FunctionType)
        and own.__globals__ is vars(module)
        and not inspect.iscoroutinefunction(value)
        and not inspect.isgeneratorfunction(value)
        and not inspect.isasyncgenfunction(value)
    )


# --- the process ---


def _limit_memory(limit: int) -> None:
    """Let allocations beyond ``limit`` bytes fail with MemoryError."""
    if sys.platform != "win32":
        import resource

        for kind, value in ((resource.RLIMIT_DATA, limit), (resource.RLIMIT_AS, limit + _BEYOND_MEMORY_BYTES)):
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)  # noqa: PLW2901 - clamped
            resource.setrlimit(kind, (value, value))


def _end_group() -> None:
    """Kill what this process leaves behind in its group, and itself."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        sys.stdout.flush()
        os.killpg(os.getpid(), signal.SIGKILL)
    else:
        os._exit(0)


def _trace() -> str:
    try:
        return traceback.format_exc()[-_TRACE_MAX:]
    except MemoryError:
        return "MemoryError"


def _closed(lib: Path, namespace: str) -> Path | None:
    """Return the first folder or file on the way to a module that this process's user may not read; None if none is."""
    top = namespace.partition(".")[0]
    for folder in (*reversed(lib.parents), lib):
        if not os.access(folder, os.X_OK if folder != lib else os.X_OK | os.R_OK):
            return folder
    for path in (lib / f"{top}.py", lib / top):
        if path.exists() and not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
            return path
    return None


def _problem(error: BaseException, lib: Path) -> str:
    """Say why a module cannot be imported, without the error's own text: health shows it without a key."""
    said = type(error).__name__
    if isinstance(error, ImportError) and error.name:
        said += f" of {error.name}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(lib)]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    return one_line(f"{said}, line {line}" if line else said)


if __name__ == "__main__":
    main()
