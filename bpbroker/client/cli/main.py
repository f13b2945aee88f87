"""``bpclient``: the client on a command line.

Standard output has the result and nothing else, and nothing at all when there
is none; messages for people go to standard error. The exit code
tells a script what happened.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run ``bpclient`` and end the process with its exit code."""
    import gc

    from bpbroker import process

    gc.disable()  # a call ends before collecting garbage is worth its 1 ms
    process.settle()
    if sys.platform == "win32":
        process.write_utf8()
    code = _run(sys.argv[1:])
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    finally:
        # All is written; Python's orderly end would take 3 ms.
        os._exit(code)


def _run(arguments: list[str]) -> int:
    from bpbroker.errors import BpbrokerError
    from bpbroker.process import NO_READER

    try:
        return _perform(arguments)
    except BpbrokerError as error:
        return _failed(str(error), error.exit_code)
    except BrokenPipeError:
        return NO_READER
    except KeyboardInterrupt:
        return _failed("Interrupted", 130)
    except SystemExit as end:  # help or the version was printed
        return _flushed(end)


def _flushed(end: SystemExit) -> int:
    """Return the exit code of what click has printed, once all of it is written."""
    from bpbroker.process import NO_READER, reader_is_gone

    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if reader_is_gone(error):
            return NO_READER
        return _failed(f"The help cannot be written to standard output: {error.strerror}", 1)
    return end.code if isinstance(end.code, int) else 0


def _perform(arguments: list[str]) -> int:
    """Carry out the command line; return the exit code."""
    from bpbroker.client.cli.command_table import FLAGS, WORDS
    from bpbroker.client.cli.parser import parse
    from bpbroker.client.cli.session import Session
    from bpbroker.client.cli.words import split_cols
    from bpbroker.errors import NotShown
    from bpbroker.process import reader_is_gone

    words = list(split_cols(arguments, WORDS, FLAGS))
    if "_BPCLIENT_COMPLETE" in os.environ:
        from bpbroker.client.cli import click_tree

        click_tree.complete(words)
    call = parse(words)
    if call is None:
        from bpbroker.client.cli import click_tree

        try:
            call = click_tree.parse(words)
        except OSError as error:
            if reader_is_gone(error):
                raise BrokenPipeError from None
            raise NotShown(f"The help cannot be written to standard output: {error.strerror}") from None
    if sys.getfilesystemencoding() != "utf-8":
        from bpbroker.client.cli import locale_encoding

        call = locale_encoding.understood(call)
    session = Session(call.given)
    result = call.command.action(session, **call.own)
    try:
        _print(session.render(result))
    except NotShown as error:
        if not call.command.acts:
            raise
        raise NotShown(f"The call was carried out, but its answer cannot be shown: {error}") from None
    if result.after is not None:
        result.after()
    return result.exit_code


def _print(data: bytes) -> None:
    """Write the result.

    Raises:
        NotShown: it could not be written, such as on a full disk.
    """
    from bpbroker.errors import NotShown
    from bpbroker.process import reader_is_gone

    if sys.stdout is None:
        raise NotShown("The result cannot be written: standard output is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        if reader_is_gone(error):
            raise BrokenPipeError from None
        raise NotShown(f"The result cannot be written to standard output: {error.strerror}") from None


def _failed(message: str, exit_code: int) -> int:
    from bpbroker.client.answers import printable

    if sys.stderr is not None:
        sys.stderr.write(f"Fatal error: {printable(message)}\n")
    return exit_code
