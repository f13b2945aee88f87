"""The broker's side of one extension's child process: start it, run a call in it, kill it.

Everything here blocks; it is used by the driver threads of
:mod:`bpbroker.actors.extension`, never by an actor.
"""

from __future__ import annotations

import base64
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

from bpbroker.errors import ExtensionFailed, TimedOut
from bpbroker.messages import Call, CallResult
from bpbroker.sandbox import read_frame, write_frame

logger = logging.getLogger(__name__)

START_SECS: Final = 30.0
"""Time for the interpreter to start and the module to be imported."""
_LINE_MAX_BYTES: Final = 8192

AskRegistry = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Serves a frame in which the module asks for the registry; gives the frame to answer with."""


class NoMethod(Exception):
    """The module has no such method."""


class NotImportable(Exception):
    """The module cannot be imported; the text says why, for the operator."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a child process is started with."""

    namespace: str
    lib: Path
    settings: Mapping[str, Any]
    """What the module will see as ``bpbroker.config.data``; plain JSON values."""
    user: str | None = None
    memory_max_bytes: int | None = None
    environment: Mapping[str, str] | None = None


class Child:
    """One child process.

    Args:
        launch: what to start.
        ask_registry: serves the module's ``rh.registry``.

    Raises:
        NotImportable: the module cannot be imported.
        ExtensionFailed: the process could not be started.
    """

    def __init__(self, launch: Launch, ask_registry: AskRegistry) -> None:
        self._namespace = launch.namespace
        self._ask_registry = ask_registry
        self._frames: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._process = _start(launch)
        for target in (self._read, self._log):
            threading.Thread(target=target, name=f"extension-{launch.namespace}-{target.__name__}", daemon=True).start()
        begin = {
            "namespace": launch.namespace,
            "lib": str(launch.lib),
            "settings": launch.settings,
            "memory_max_bytes": launch.memory_max_bytes,
        }
        self._send(begin)
        frame = self._next(time.monotonic() + START_SECS)
        if frame is None or frame.get("kind") != "ready":
            self.kill()
            problem = frame.get("problem") if frame else f"it did not start within {START_SECS:g} s, or ended"
            raise NotImportable(str(problem))
        self.methods: tuple[str, ...] = tuple(frame["methods"])

    @property
    def pid(self) -> int:
        """The process's id, which is that of its group too."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def call(self, call: Call, timeout_secs: float) -> CallResult:
        """Run one call.

        Raises:
            NoMethod: the module does not offer it.
            TimedOut: it took too long; the process and what it started are gone.
            ExtensionFailed: it raised, crashed, or answered what cannot be sent.
        """
        deadline = time.monotonic() + timeout_secs
        self._send({"method": call.method, "qs": dict(call.qs), "source": call.source, "request_id": call.request_id})
        while True:
            frame = self._next(deadline)
            if frame is None:
                timed_out = time.monotonic() >= deadline
                self.kill()
                if timed_out:
                    raise TimedOut(
                        f"{self._namespace}.{call.method} took longer than {timeout_secs:g} s and was killed"
                    )
                code = self._process.returncode
                logger.error(
                    "%s.%s ended its process (%s), request %s", self._namespace, call.method, code, call.request_id
                )
                raise ExtensionFailed(f"The extension crashed; the broker's log has more under id {call.request_id}")
            kind = frame.get("kind")
            if kind == "registry":
                self._send(self._ask_registry(frame))
                continue
            if kind == "result":
                return _result(frame)
            if kind == "unknown":
                raise NoMethod
            logger.error(
                "%s.%s failed, request %s:\n%s", self._namespace, call.method, call.request_id, frame.get("trace", "")
            )
            raise ExtensionFailed(f"The extension failed; the broker's log has more under id {call.request_id}")

    def end(self) -> None:
        """Let the process end by itself for a moment, then kill it."""
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        self.kill()

    def kill(self) -> None:
        """Kill the process and everything that it started in its group."""
        if sys.platform == "win32":
            if self.alive:
                subprocess.run(  # noqa: S603 - the id is our own child's
                    ["taskkill", "/F", "/T", "/PID", str(self.pid)],  # noqa: S607 - in every Windows' path
                    check=False,
                    capture_output=True,
                )
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()

    def _send(self, frame: Mapping[str, Any]) -> None:
        try:
            if self._process.stdin is not None:
                write_frame(cast(BinaryIO, self._process.stdin), frame)
        except (OSError, ValueError):
            pass  # it has ended; the reader says so

    def _next(self, deadline: float) -> dict[str, Any] | None:
        """Give the next frame; None when the process ended or the time is over."""
        try:
            return self._frames.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            while self._process.stdout is not None:
                frame = read_frame(cast(BinaryIO, self._process.stdout))
                self._frames.put(frame)
                if frame is None:
                    return
        self._frames.put(None)

    def _log(self) -> None:
        """Write what the module prints to the broker's log, line by line."""
        lines = logging.getLogger(f"bpbroker.extension.{self._namespace}")
        stream: IO[bytes] | None = self._process.stderr
        if stream is None:
            return
        with suppress(OSError, ValueError), stream:
            while line := stream.readline(_LINE_MAX_BYTES):
                lines.info("%s", line.decode(errors="replace").rstrip())


def _start(launch: Launch) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BPBROKER_", "NOTIFY_"))}
    environment.update(launch.environment or {})
    options: dict[str, Any] = {"user": launch.user, "extra_groups": [] if launch.user else None} if launch.user else {}
    if launch.user and sys.platform != "win32":
        import pwd

        try:
            options["group"] = pwd.getpwnam(launch.user).pw_gid
        except KeyError:
            raise NotImportable(f"there is no user {launch.user} on this machine ({launch.namespace}._user)") from None
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "bpbroker.sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=sys.platform != "win32",
            close_fds=True,
            env=environment,
            **options,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ExtensionFailed(f"The extension's process could not be started: {error}") from None


def _result(frame: Mapping[str, Any]) -> CallResult:
    return CallResult(
        int(frame["status"]), str(frame["message"]), str(frame["content_type"]), base64.b64decode(frame["body"])
    )
