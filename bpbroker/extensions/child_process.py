"""The broker's side of one extension's child process: start it, run calls in it, kill it.

Everything here but :meth:`Child.kill` may block and is used by one driving
thread (:mod:`bpbroker.extensions.child_pool`), never by an actor.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bpbroker import windows
from bpbroker.extensions import channel
from bpbroker.extensions.cgroups import Groups, Tree
from bpbroker.extensions.child_log import forward
from bpbroker.extensions.process_tree import kill_descendants, now_secs
from bpbroker.extensions.rh import ANSWER_MAX_BYTES, Unsendable, checked, one_line
from bpbroker.messages import Call, CallResult

Serve = Callable[[Call, Mapping[str, Any]], dict[str, Any]]
"""Serves what a method asks of ``rh.registry``; returns the frame of the answer, never raises."""

_PACKAGES: Final = str(Path(__file__).parents[2])
_BOOT: Final = f"import sys; sys.path.append({_PACKAGES!r}); from bpbroker.extensions.child_main import main; main()"
_NOT_FOR_CHILDREN: Final = ("BPBROKER_", "NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "JOURNAL_STREAM")
"""Environment that is about the broker's own process, or may hold its secrets."""


class NotImportable(Exception):
    """The module cannot be imported; the text says why, fit for health; ``trace`` is for the log."""

    def __init__(self, problem: str, trace: str = "") -> None:
        super().__init__(problem)
        self.trace = trace


class NoMethod(Exception):
    """The module does not offer the method."""


class Raised(Exception):
    """The method raised, or answered what cannot be sent; ``trace`` is for the log, the text for health."""

    def __init__(self, problem: str, trace: str, *, spent: bool) -> None:
        super().__init__(problem)
        self.trace = trace
        self.spent = spent
        """The process ends, and takes no further call."""


class Ended(Exception):
    """The process has ended, or broke the protocol and has to end; the text says how."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a child process is started with."""

    namespace: str
    lib: Path
    beside: Path | None = None
    """A further folder that the module may import others from: the lib folder while ``lib`` is a copy to be tried."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the module sees as ``bpbroker.config.data``; plain JSON values."""
    timeout_secs: float = 30.0
    user: str | None = None
    memory_max_bytes: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    lock: int | str | None = None
    """Descriptor of a file, or on Windows name of a mutex; by it ``config.rlock`` excludes the other children."""
    groups: Groups | None = None
    """Where the process gets a control group of its own; None where there can be none."""


class Child:
    """One child process, in a session and process group of its own."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._process: subprocess.Popen[bytes] | None = None
        self._job: Any = None
        """Windows: holds all that the process starts, and ends it when this broker dies."""
        self._tree: Tree | None = None
        """Linux: the control group of the process and of what its call has started, where there can be one."""
        self._pidfd: int | None = None
        self._output: threading.Thread | None = None
        self._killing = threading.Lock()
        self._killed = False
        self._began = now_secs()
        """When it began with what it does now: the import, then each call; never while it does nothing."""
        self._reaped = False

    @property
    def pid(self) -> int:
        """The process's id, which is that of its group too; 0 before the start."""
        return self._process.pid if self._process else 0

    def start(self) -> tuple[str, ...]:
        """Start the process and have it import the module; return the methods that it offers.

        Raises:
            NotImportable: it raised, or ended the process.
            OSError: no process could be started.
        """
        with self._killing:
            if self._killed:
                raise NotImportable("it was stopped")
            self._process = _start(self._launch)
            if sys.platform == "win32":
                self._take_into_job(self._process)
            elif self._launch.groups is not None:  # it starts nothing before it is sent its first frame
                self._tree = self._launch.groups.hold(self._launch.namespace, self._process.pid)
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):  # an old kernel, or no descriptor left: then the end is noticed by the pipes alone
                self._pidfd = os.pidfd_open(self._process.pid)
        self._output = forward(self._process.stderr, self._pidfd, f"bpbroker.extension.{self._launch.namespace}")
        launch = self._launch
        try:
            self._send(
                {
                    "namespace": launch.namespace,
                    "lib": str(launch.lib.absolute()),
                    "beside": None if launch.beside is None else str(launch.beside.absolute()),
                    "settings": launch.settings,
                    "timeout_secs": launch.timeout_secs,
                    "memory_max_bytes": launch.memory_max_bytes,
                    "lock": launch.lock,
                    "kind": "begin",
                }
            )
            head, _ = self._receive()
            if head["kind"] == "ready":
                self._began = math.inf
                return tuple(str(name) for name in head["methods"])
            raise NotImportable(one_line(str(head["problem"])), str(head["trace"]))
        except (KeyError, TypeError):
            raise NotImportable("it interfered with the channel to the broker") from None
        except Ended as error:
            raise NotImportable(f"importing it ended its process ({error})") from None

    def _take_into_job(self, process: subprocess.Popen[bytes]) -> None:
        """Put the process into a job, and let it run.

        Raises:
            OSError: it is not in one, and was ended.
        """
        if sys.platform == "win32":
            try:
                self._job = windows.Job(self._launch.memory_max_bytes)
                self._job.take(int(process._handle))  # noqa: SLF001 - subprocess has no name for it
            except OSError:
                process.kill()
                raise

    def alive(self) -> bool:
        """Whether the process runs."""
        if self._process is None:
            return False
        if self._pidfd is not None:
            return not _readable(0.0, self._pidfd)
        return self._process.poll() is None

    def call(self, call: Call, serve: Serve) -> CallResult:
        """Run one call, serving what the method asks of the registry meanwhile.

        Raises:
            NoMethod: the module does not offer it.
            Raised: the method raised.
            Ended: the process ended in the middle of it.
            ValueError: the call is too large; nothing was done.
        """
        if self._tree is not None:
            try:
                self._tree.begin()
            except OSError as error:
                raise Ended(f"it got no control group: {error.strerror}") from None
        self._began = now_secs()
        try:
            return self._run(call, serve)
        finally:
            self._began = math.inf

    def _run(self, call: Call, serve: Serve) -> CallResult:
        self._send(
            {
                "kind": "call",
                "method": call.method,
                "qs": dict(call.qs),
                "source": call.source,
                "caller": call.caller,
                "request_id": call.request_id,
            }
        )
        while True:
            head, body = self._receive()
            try:
                kind = head["kind"]
                if kind == "registry":
                    self._reply(serve(call, head))
                elif kind == "answer":
                    return checked(head["status"], head["message"], head["content_type"], body)
                elif kind == "unknown":
                    raise NoMethod
                else:
                    raise Raised(one_line(str(head["problem"])), str(head["trace"]), spent=head["spent"] is True)
            except (KeyError, Unsendable):
                raise Ended("it interfered with the channel to the broker") from None

    def kill(self, *, tree: bool = True) -> None:
        """Kill the process and everything in its group; from any thread, at any time, without waiting.

        Args:
            tree: kill also what the call in hand started and what left the group, for a session of its own.
        """
        with self._killing:
            self._killed = True
            if self._process is not None and not self._reaped:
                if tree and self.alive():
                    kill_descendants(self._process.pid, self._began)
                if tree and self._tree is not None and self._began < math.inf:
                    self._tree.kill()
                self._kill_group(self._process)

    def _kill_group(self, process: subprocess.Popen[bytes]) -> None:
        if sys.platform == "win32":
            if self._job is not None:
                self._job.kill()
        else:
            with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM when only zombies are left
                os.killpg(process.pid, signal.SIGKILL)

    def end(self, grace_secs: float = 0.0) -> None:
        """Let the process end by itself for ``grace_secs``, then kill the rest of its group; wait for that."""
        process = self._process
        if process is None:
            return
        with suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        self._exited(grace_secs)
        self.kill(tree=False)
        with self._killing:
            self._reaped = True  # from here on its id may be another process's
        process.wait()
        if self._tree is not None:
            self._tree.close()
        if sys.platform == "win32" and self._job is not None:
            self._job.close()
        if self._output is not None:
            self._output.join(2.0)
        if process.stdout is not None:
            process.stdout.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    # --- frames ---

    def _send(self, head: Mapping[str, Any]) -> None:
        frame = channel.pack(head)
        if self._process is None or self._process.stdin is None:
            raise Ended("it was not started")
        try:
            channel.write(self._process.stdin.fileno(), frame)
        except OSError:
            raise Ended(self._how()) from None

    def _reply(self, reply: Mapping[str, Any]) -> None:
        try:
            self._send({**reply, "kind": "reply"})
        except ValueError as error:
            self._send({"status": 413, "message": f"{error}; ask with a narrower prefix", "kind": "reply"})

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        try:
            frame = channel.read(self._some, ANSWER_MAX_BYTES)
        except (OSError, channel.ChannelBroken) as error:
            raise Ended(f"{self._how()}, {error}") from None
        if frame is None:
            raise Ended(self._how())
        return frame

    def _some(self, count: int) -> bytes:
        """Read the bytes that have come, at most ``count``; none when the process has ended.

        Waiting for the pipe's end alone would not do: a process that it left
        behind may hold the pipe open.
        """
        if self._process is None or self._process.stdout is None:
            return b""
        descriptor = self._process.stdout.fileno()
        if self._pidfd is not None and descriptor not in _readable(None, descriptor, self._pidfd):
            return b""
        return os.read(descriptor, count)

    # --- the process's end ---

    def _exited(self, secs: float) -> None:
        """Wait for the process to end, without reaping it where that matters: its id must stay its own."""
        if self._pidfd is not None:
            _readable(secs, self._pidfd)
        elif sys.platform == "win32" and self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(secs)

    def _how(self) -> str:
        """Say how the process ended."""
        self._exited(0.5)
        if sys.platform == "win32":
            code = None if self._process is None else self._process.poll()
            return "it closed its side of the channel" if code is None else windows.how_ended(code)
        if self._process is None or self._pidfd is None or not _readable(0.0, self._pidfd):
            return "it closed its side of the channel"
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return "it closed its side of the channel"
        if found.si_code == os.CLD_EXITED:
            return f"exit code {found.si_status}"
        with suppress(ValueError):
            return f"signal {signal.Signals(found.si_status).name}"
        return f"signal {found.si_status}"


def _readable(secs: float | None, *descriptors: int) -> set[int]:
    """Wait until one of the descriptors can be read; a pidfd can when its process has ended."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if secs is None else secs * 1000)}


def _start(launch: Launch) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_CHILDREN)}
    options: dict[str, Any] = {}
    if sys.platform == "win32":
        if launch.user:  # refused when settings are checked, too; it must never run as the broker's own user
            raise NotImportable("_user: there is no way to become another user on Windows without a password")
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP | windows.SUSPENDED
    else:
        options["start_new_session"] = True
        options["pass_fds"] = (launch.lock,) if isinstance(launch.lock, int) else ()
        if launch.user:
            more, identity = _as_user(launch.user)
            options.update(more)
            environment.update(identity)
    environment.update(launch.environment)
    return subprocess.Popen(  # noqa: S603 - our own interpreter
        # -P: nothing is imported from the folder that the broker was started in. -B: a compiled file beside a
        # module could be taken for the module's next version when that has the same size and second.
        [sys.executable, "-P", "-B", "-c", _BOOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=environment,
        **options,
    )


def _as_user(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options and the environment that make a process another user's.

    Raises:
        NotImportable: there is no such user.
    """
    import pwd

    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise NotImportable(f"_user: there is no user {one_line(name)}") from None
    groups = os.getgrouplist(name, found.pw_gid)
    options = {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": groups}
    return options, {"USER": name, "LOGNAME": name, "HOME": found.pw_dir}
