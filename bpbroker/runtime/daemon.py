"""Running the broker in the background, so that the caller's exit code is the truth.

CherryPy's daemoniser lets its parent exit 0 before anything has started. Here
the caller's process stays until the background process says over a pipe that
it is ready, or what stopped it.
"""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from bpbroker import files, process, progress
from bpbroker.errors import BpbrokerError, ConfigurationError, StartError
from bpbroker.runtime.log_files import open_log

READY = "ready"


Ready = Callable[[str], None]
"""Called once, when the broker is ready, with the message for its starter."""
AtWork = Callable[[str], None]
"""Called with the progress of a long start, one line."""

_AT_WORK = "\x02"
_LINE_MAX = 400


def in_background(serve: Callable[[Ready, AtWork], int], log_file: Path) -> str:
    """Run ``serve`` in a background process of its own session; return the message that it called ``ready`` with.

    Must be called before the first thread starts. Standard output and error of
    the background process go to ``log_file``.

    Raises:
        ConfigurationError, StartError: why it ended before it was ready.
    """
    if not hasattr(os, "fork"):
        raise StartError("--daemon does not exist on this system; use install-service instead")
    try:
        files.make_folder(log_file.parent, mode=0o755)
        os.close(open_log(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    except OSError as error:
        raise StartError(f"Cannot write the log file {log_file}: {error.strerror}") from None
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        process.close_inherited(writer)
        _background(serve, log_file, writer)
    os.close(writer)
    os.waitpid(pid, 0)
    progress.show_on_terminal()  # not before: the background must not begin with a thread
    outcome = ""
    with os.fdopen(reader, encoding="utf-8", errors="replace") as pipe, progress.Work("The broker starts") as work:
        for line in pipe:
            if line.startswith(_AT_WORK):
                work.what = f"The broker starts: {line[1:].strip()}"
            else:
                outcome = line + pipe.read()
    code, _, message = outcome.partition("\n")
    if code == READY:
        return message
    if not message:
        raise StartError(f"The broker ended before it was ready; {log_file} may say why")
    raise ConfigurationError(message) if code == str(ConfigurationError.exit_code) else StartError(message)


def _background(serve: Callable[[Ready, AtWork], int], log_file: Path, writer: int) -> None:
    """Become the background process, serve, and end; never returns."""
    from cherrypy.process.plugins import Daemonizer

    said = False

    def say(outcome: str) -> None:
        nonlocal said
        if not said:
            said = True
            os.write(writer, outcome.encode())
            os.close(writer)

    def at_work(text: str) -> None:
        if said:
            return
        os.set_blocking(writer, False)  # the starter may be asleep, and is not to be waited for
        try:
            os.write(writer, f"{_AT_WORK}{' '.join(text.split())}"[:_LINE_MAX].encode() + b"\n")
        except OSError:
            pass
        finally:
            os.set_blocking(writer, True)

    code = 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves three files open for a moment
            Daemonizer.daemonize(stdout=str(log_file), stderr=str(log_file))
        os.umask(0o022)  # the daemoniser leaves 0: files of extensions would be writable by all
        os.chdir("/")
        code = serve(lambda told: say(f"{READY}\n{told}"), at_work)
    except BpbrokerError as error:
        code = error.exit_code
        say(f"{code}\n{error}")
    except BaseException as error:  # noqa: BLE001 - the last frame of this process: log it and end
        traceback.print_exc()
        say(f"1\nThe broker could not start: {error!r}; {log_file} has the details")
    finally:
        os._exit(code)
