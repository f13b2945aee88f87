"""Keeping a command in a process group of its own, which ends before its session or lock can pass to another.

Signals are passed on to the group. When the session is lost, the group gets SIGTERM, and SIGKILL ten seconds later, or
earlier if the session could be another's by then. If this process is killed, a small shell, the guard, ends the group:
no command may run on without its session or lock. The command's environment has a mark of its own: by it the guard
finds a command that began just before this process was killed.

On Windows a job object takes the place of group and guard: it ends with this process. The command gets Ctrl-Break, the
only signal that can be sent there.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from bpbroker.errors import UsageError
from bpbroker.recipes.clock import boottime

if sys.platform == "win32":
    from bpbroker import windows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Final

    from bpbroker.recipes.session import Session

LOST: Final = 111
"""Exit code when the session or the lock was lost."""
KILL_SECS: Final = 10.0
"""From SIGTERM to SIGKILL."""
_KILL_MIN_SECS: Final = 0.5
_MARGIN_SECS: Final = 0.2
_STEP_SECS: Final = 0.5
_TAIL_BYTES: Final = 8192
_FORWARDED: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH")
_ENDING: Final = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK")

MARK: Final = "BPBROKER_KEEPER"
"""Environment variable of a command: the mark of its keeper."""

# Reads the command's process group, then a line that only comes when all went well; an end of the pipe means that its
# writer was killed. Before the first line the command may run already: it is looked for by its mark, twice, because it
# has none until it is the command.
_GUARD: Final = (
    "end() { "
    'kill -TERM "-$1" 2>/dev/null || return; n=0; '
    'while [ $n -lt 10 ] && kill -0 "-$1" 2>/dev/null; do sleep 1; n=$((n+1)); done; '
    'kill -KILL "-$1" 2>/dev/null; }; '
    'if read -r group; then read -r word || end "$group"; exit 0; fi; '
    "for again in 1 2; do "
    'for file in $(grep -las "$0" /proc/[0-9]*/environ 2>/dev/null); do '
    'pid="${file#/proc/}"; end "${pid%/environ}"; done; sleep 1; done'
)


def end_orderly() -> None:
    """Make signals that end a process raise SystemExit, so that sessions and locks are given back."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for name in _ENDING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


class Keeper:
    """Runs one command.

    Args:
        words: the command.
        more: environment variables for it.
        stdin: its input; None: this process' standard input.
        keep_output: whether the end of its standard output is kept; all of it is also written to this process' own.
    """

    def __init__(
        self, words: Sequence[str], more: Mapping[str, str], *, stdin: bytes | None = None, keep_output: bool = False
    ) -> None:
        if not words:
            raise UsageError("Which command? Give it behind --, such as -- ./install.sh")
        self._words = list(words)
        self._mark = secrets.token_hex(16)
        self._environ = {**os.environ, **more, MARK: self._mark}
        self._stdin = stdin
        self._keep_output = keep_output
        self._tail = bytearray()
        self._woken = threading.Event()
        self._write_end = -1
        self._terminal = -1
        self._job: Any = None
        """Windows: holds the command and all that it starts."""
        self.lost = False
        """Whether the command was ended because the session was lost."""
        self.asked = 0
        """The signal by which this process was asked to end while the command ran; 0 for none."""

    @property
    def output(self) -> str:
        """The end of its standard output; on Windows in UTF-8 or in the code page of its programs."""
        tail = bytes(self._tail)
        if sys.platform == "win32":
            import locale

            cut = tail[:3].lstrip(bytes(range(0x80, 0xC0))) if len(tail) == _TAIL_BYTES else tail[:3]
            try:
                return (cut + tail[3:]).decode()
            except UnicodeDecodeError:
                return tail.decode(locale.getpreferredencoding(False), "replace")
        return tail.decode("utf-8", "replace")

    def wake(self) -> None:
        """Let :meth:`run` check the session. From any thread."""
        self._woken.set()
        if self._write_end >= 0:
            try:
                os.write(self._write_end, b"\0")
            except OSError:  # a full pipe: it is awake; a closed one: it has ended
                pass

    def run(self, session: Session | None = None) -> int:
        """Run the command and return its exit code; 128 plus the number of a signal; :data:`LOST` after a loss."""
        if session is not None and session.lost.is_set():
            self.lost = True
            return LOST
        if sys.platform == "win32":
            return self._keep_in_job(session)
        read_end, self._write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(self._write_end, False)
        before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        handlers: dict[int, Any] = {}
        try:
            handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
            forwarding = _Forwarding()
            for name in _FORWARDED:
                number = getattr(signal, name)
                if signal.getsignal(number) is not signal.SIG_IGN:
                    handlers[number] = signal.signal(number, forwarding.forward)
            guard = self._guard()  # first: it takes a while to start, and a command without a guard could be left
            # behind
            try:
                process = self._start()
            except BaseException:  # at any end: the guard has nothing to do
                _dismiss(guard)
                raise
            _tell(guard, process.pid)
            forwarding.begin(process.pid)
            try:
                self._give_terminal(process.pid)
                code = self._keep(process, session, read_end)
                # At a terminal Ctrl-C goes to the command alone, and is meant for both.
                self.asked = forwarding.asked or (signal.SIGINT if process.returncode == -signal.SIGINT else 0)
                return code
            finally:
                if process.poll() is None:
                    _signal_group(process, signal.SIGKILL)
                    process.wait()
                self._take_terminal()
                _dismiss(guard)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            write_end, self._write_end = self._write_end, -1
            os.close(write_end)
            os.close(read_end)

    if sys.platform == "win32":

        def _keep_in_job(self, session: Session | None) -> int:
            self._job = windows.Job()
            asked: list[int] = []

            def forward(number: int, _frame: FrameType | None) -> None:
                asked.append(number)
                if len(asked) > 1 or not _break(process):
                    self._job.kill()

            handlers: dict[int, Any] = {}
            try:
                process = self._start()
                for number in (signal.SIGINT, signal.SIGBREAK):
                    handlers[number] = signal.signal(number, forward)
                code = self._keep(process, session, -1)
                self.asked = asked[0] if asked else 0
                if not self.lost:
                    with suppress(OSError):  # then it ends with the job
                        self._job.let_go()  # the command left these running on purpose
                return code
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                self._job.close()

    def _start(self) -> subprocess.Popen[bytes]:
        how: dict[str, Any] = {}
        if sys.platform == "win32":
            how["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP | windows.SUSPENDED
        elif sys.version_info >= (3, 11):  # noqa: UP036 - bpclient.pyz runs on Python 3.9
            how["process_group"] = 0
        else:
            how["preexec_fn"] = os.setpgrp
        if self._stdin is not None:
            how["stdin"] = subprocess.PIPE
        if self._keep_output:
            how["stdout"] = subprocess.PIPE
        try:
            process = subprocess.Popen(self._words, env=self._environ, **how)  # noqa: S603 - what the user asks for
        except FileNotFoundError as error:
            raise CannotRun(f"The command {self._words[0]!r} cannot be run: {error.strerror}", 127) from None
        except (OSError, ValueError) as error:
            raise CannotRun(f"The command {self._words[0]!r} cannot be run: {error}", 126) from None
        if sys.platform == "win32":
            try:
                self._job.take(int(process._handle))  # noqa: SLF001 - subprocess has no name for it
            except OSError as error:
                process.kill()
                raise CannotRun(f"The command {self._words[0]!r} cannot be kept: {error}", 126) from None
        if process.stdin is not None:
            threading.Thread(target=_feed, args=(process.stdin, self._stdin or b""), daemon=True).start()
        if process.stdout is not None:
            self._copying = threading.Thread(target=self._copy, args=(process.stdout,), daemon=True)
            self._copying.start()
        return process

    def _keep(self, process: subprocess.Popen[bytes], session: Session | None, read_end: int) -> int:
        kill_at = float("inf")
        while process.poll() is None:
            now = boottime()
            if session is not None and not self.lost and (session.lost.is_set() or now >= session.stop_at):
                self.lost = True
                # After the end of a session by the broker there is no hurry; otherwise it may still be alive.
                until = now + KILL_SECS if session.ended else min(now + KILL_SECS, session.ends_at - _MARGIN_SECS)
                kill_at = max(until, now + _KILL_MIN_SECS) if self._ask_to_end(process) else now
            if now >= kill_at:
                self._kill(process)
                kill_at = float("inf")
            self._wait(process, read_end, 0.1 if kill_at < float("inf") else _STEP_SECS)
            self._follow_stop(process.pid)
        # It may have run while this process was stopped, and the lock was another's by then.
        self.lost = self.lost or (session is not None and (session.ended or boottime() >= session.ends_at))
        if self.lost:
            self._kill(process)  # the rest of its group
        if self._keep_output:
            self._copying.join(1.0)  # a daemon that it left may keep the pipe open for ever
        if self.lost:
            return LOST
        code: int = process.returncode
        if sys.platform == "win32":  # an exit code of 32 bits, which os._exit() takes with a sign
            return code - (1 << 32) if code >= 1 << 31 else code
        return code if code >= 0 else 128 - code

    def _ask_to_end(self, process: subprocess.Popen[bytes]) -> bool:
        """Tell the command and its group to end; return whether that was possible."""
        if sys.platform == "win32":
            return _break(process)
        _signal_group(process, signal.SIGTERM)
        return True

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        if sys.platform == "win32":
            self._job.kill()
        else:
            _signal_group(process, signal.SIGKILL)

    def _wait(self, process: subprocess.Popen[bytes], read_end: int, secs: float) -> None:
        if read_end < 0:
            try:
                process.wait(secs)
            except subprocess.TimeoutExpired:
                pass
            return
        if select.select([read_end], [], [], secs)[0]:
            try:
                while os.read(read_end, 512):
                    pass
            except BlockingIOError:
                pass

    def _copy(self, pipe: Any) -> None:
        while True:
            data = os.read(pipe.fileno(), 65536)
            if not data:
                pipe.close()
                return
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[os.write(1, rest) :]
            except OSError:  # its reader has gone: only the kept output counts
                pass

    def _guard(self) -> subprocess.Popen[bytes] | None:
        try:
            return subprocess.Popen(  # noqa: S603 - fixed words
                ["/bin/sh", "-c", _GUARD, f"{MARK}={self._mark}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except OSError:  # no shell: the command runs without a guard
            return None

    # --- the terminal, as a shell passes it to a foreground job ---

    def _give_terminal(self, group: int) -> None:
        try:
            if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp():
                os.tcsetpgrp(0, group)
                self._terminal = 0
        except OSError:
            pass

    def _take_terminal(self) -> None:
        if self._terminal < 0:
            return
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            os.tcsetpgrp(self._terminal, os.getpgrp())
        except OSError:
            pass
        signal.signal(signal.SIGTTOU, before)
        self._terminal = -1

    def _follow_stop(self, pid: int) -> None:
        """Stop when the command was stopped at the terminal, as the shell expects, and continue with it."""
        if self._terminal < 0:
            return
        try:
            stopped = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return
        if stopped is None:
            return
        self._take_terminal()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._give_terminal(pid)
        os.killpg(pid, signal.SIGCONT)


class CannotRun(UsageError):
    """The command cannot be run; the exit code is as of a shell: 127 if it does not exist, else 126."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # a shell's two codes


def wait_for_signal(session: Session) -> int:
    """Wait until a signal ends this process or the session is lost; return the exit code."""
    ended = threading.Event()
    for name in (*_ENDING, "SIGINT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: ended.set())
    while not ended.wait(_STEP_SECS):
        if session.lost.is_set():
            return LOST
    return 0


class _Forwarding:
    """Passes signals on to a process group; signals that come before it exists are kept."""

    def __init__(self) -> None:
        self.asked = 0
        """The first signal that ends a process; 0: none came."""
        self._group = 0
        self._early: list[int] = []

    def begin(self, group: int) -> None:
        """Pass on the kept signals, and from now on each one at once."""
        self._group = group
        while self._early:
            self._send(self._early.pop(0))

    def forward(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if not self.asked and signal.Signals(number).name in (*_ENDING, "SIGINT"):
            self.asked = number
        if self._group:
            self._send(number)
        else:
            self._early.append(number)

    def _send(self, number: int) -> None:
        try:
            os.killpg(self._group, number)
        except OSError:  # the group has ended
            pass


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
        if number == signal.SIGTERM:
            os.killpg(process.pid, signal.SIGCONT)  # a stopped process has to get it
    except OSError:
        pass


def _break(process: subprocess.Popen[bytes]) -> bool:
    """Send Ctrl-Break to a command and its group on Windows; return whether that was possible."""
    if sys.platform == "win32":
        return windows.press_break(process.pid)
    return True


def _tell(guard: subprocess.Popen[bytes] | None, group: int) -> None:
    """Tell the guard which group to end if this process is killed."""
    if guard is not None and guard.stdin is not None:
        try:
            guard.stdin.write(b"%d\n" % group)
            guard.stdin.flush()
        except OSError:  # the guard was killed: the command runs without it
            pass


def _dismiss(guard: subprocess.Popen[bytes] | None) -> None:
    if guard is None or guard.stdin is None:
        return
    try:
        guard.stdin.write(b"done\n")
        guard.stdin.close()
        guard.wait(2.0)
    except (OSError, subprocess.TimeoutExpired):
        pass


def _feed(pipe: Any, data: bytes) -> None:
    try:
        pipe.write(data)
        pipe.close()
    except OSError:  # it does not read it
        pass
