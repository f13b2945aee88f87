"""What this process inherited from its starter, made as in a fresh process: descriptors 0 to 2, signals.

Both programs call :func:`settle` first of all. Loads nothing large: it is part
of every call of ``bpclient``.
"""

from __future__ import annotations

import errno
import io
import os
import sys

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:  # novm
    import signal
else:
    import _signal as signal  # without the enumerations that signal makes of it, 0.7 ms of a one-shot call

_PR_SET_DUMPABLE = 4


def settle() -> None:
    """Open descriptors 0 to 2 on the null device if they are closed, and handle signals as in a fresh process.

    Otherwise the next file that is opened becomes standard output, children
    cannot be waited for, and SIGTERM does nothing. ``sys.stdin`` and its
    likes stay None where the stream was closed: code that needs one says so.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _open_null(number)
    if sys.platform != "win32":
        if signal.getsignal(signal.SIGCHLD) != signal.SIG_DFL:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _open_null(number: int) -> None:
    opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    os.set_inheritable(number, True)


def fill_streams() -> None:
    """Put the null device in the place of standard streams that were closed, for code that does not expect None."""
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - a descriptor, for the whole run
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - as above
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - as above


def leave_first_process() -> None:
    """Go on in a child when this is the first process of a container; call before any thread starts.

    The system makes the first process the parent of all that other processes
    leave behind. So it does nothing but wait for them, and pass signals on to
    its child, with whose exit code it ends.
    """
    if sys.platform == "win32" or os.getpid() != 1:
        return
    passed = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
    signal.pthread_sigmask(signal.SIG_BLOCK, passed)  # none is lost before it can be passed on
    child = os.fork()
    if child:
        for number in passed:
            signal.signal(number, lambda number, _frame: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed)
    while child:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def close_inherited(*keep: int) -> None:
    """Close every descriptor but 0 to 2 and those to keep: a lock or a pipe of the starter must not live on in here."""
    kept = sorted({0, 1, 2, *keep})
    ends = [*kept[1:], os.sysconf("SC_OPEN_MAX")]
    for low, high in zip(kept, ends):  # noqa: B905 - strict needs Python 3.10
        os.closerange(low + 1, high)


def keep_out_of_cores() -> None:
    """Let no crash write this process's memory to a file: keys, tokens and what clients send are in it.

    Processes that it starts write no core file either, as long as they do not
    raise their limit. Most systems hand cores to a program of theirs, whatever
    the limit says; so on Linux this process is not to be dumped at all. That
    ends with exec(2), and is not for children: the broker has to see them
    where systemd hides what cannot be traced (ProtectProc).
    """
    try:
        import resource  # not on Windows, which writes no cores by itself
    except ImportError:
        return
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if sys.platform == "linux":
        try:
            import ctypes

            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        except (ImportError, OSError, AttributeError):
            pass  # the limit has to do


def write_utf8() -> None:
    """Let what is printed never fail for its characters: UTF-8 to files and pipes on Windows, escapes elsewhere.

    Without it the last word of a restore that was done may end as an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = "utf-8" if sys.platform == "win32" else None
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def reader_is_gone(error: OSError) -> bool:
    """Whether an error of writing to standard output says that its reader has ended."""
    if sys.platform == "win32" and error.errno == errno.EINVAL:
        return error.filename is None  # what Windows makes of it
    return isinstance(error, BrokenPipeError)


NO_READER = 141
"""Exit code of a program whose reader went away: 128 and the number of SIGPIPE, as shells show it."""


def drop_output() -> None:
    """Point standard output at the null device: its reader has gone, and nothing must complain of it any more."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
