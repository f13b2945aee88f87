"""``render``: makes files from the registry by templates, which can only make text."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path

from bpbroker.client.cli import output
from bpbroker.client.cli.keeper import Keeper, end_orderly
from bpbroker.client.cli.templating import Missing, Template
from bpbroker.client.cli.words import content, seconds
from bpbroker.errors import ClientError, CursorExpired, NotShown, UsageError, WaitTimeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpbroker.client.api import Client
    from bpbroker.client.cli.output import Output
    from bpbroker.client.cli.session import Session
    from bpbroker.recipes.coordination import Entry


class Target:
    """The file to make.

    Args:
        path: of the file.
        mode: its permission bits; None: those of the old file, else 0644.
        check: a command that has to succeed; ``{}`` in it becomes the new file's path.
    """

    def __init__(self, path: str, mode: int | None, check: str | None) -> None:
        self._path = Path(path)
        self._mode = mode
        try:
            self._check = shlex.split(check) if check else []
        except ValueError as error:
            raise UsageError(f"--check cannot be read as a command: {error}") from None
        if self._check and not any("{}" in word for word in self._check):
            raise UsageError("--check needs {} where the new file's path is to stand")

    def put(self, text: str) -> bool:
        """Write the file if its content changes; return whether it was written.

        Raises:
            NotShown: it cannot be written, or the check refuses it; the old file is unchanged.
        """
        from bpbroker.files import temporary_name, write_whole

        data = text.encode("utf-8", "replace")
        path = Path(os.path.realpath(self._path)) if self._path.is_symlink() else self._path
        try:
            try:
                before = path.stat()
                same = stat.S_ISREG(before.st_mode) and path.read_bytes() == data
                mode = stat.S_IMODE(before.st_mode) if self._mode is None else self._mode
                if same and mode == stat.S_IMODE(before.st_mode):
                    return False
                owner = (before.st_uid, before.st_gid) if hasattr(os, "fchown") else None
            except FileNotFoundError:
                mode, owner = 0o644 if self._mode is None else self._mode, None
            if self._check:
                trial = path.with_name(temporary_name(path.name))
                try:
                    write_whole(trial, [data], mode=mode, owner=owner, follow=False)
                    self._see_that_it_is_good(trial)
                finally:
                    trial.unlink(missing_ok=True)
            write_whole(path, [data], mode=mode, owner=owner)
        except OSError as error:
            raise NotShown(f"The file {str(self._path)!r} cannot be written: {error.strerror or error}") from None
        return True

    def _see_that_it_is_good(self, trial: Path) -> None:
        words = [word.replace("{}", str(trial)) for word in self._check]
        try:
            done = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr)  # noqa: S603 - the user's own
        except OSError as error:
            raise UsageError(f"The command of --check cannot be run: {error.strerror}") from None
        if done.returncode:
            raise NotShown(f"--check ended with {done.returncode}; {str(self._path)!r} is as it was")


def render(
    session: Session,
    *,
    template: str,
    out: str,
    mode: str | None,
    check: str | None,
    watch: bool,
    wait: str | None,
    command: tuple[str, ...],
) -> Output:
    """Make a file of a template and the registry's entries."""
    made = Template(content("-" if template == "-" else f"@{template}", "--template"), template)
    target = Target(out, _mode(mode), check)
    end = time.monotonic() + (seconds(wait) if wait else 0.0)
    end_orderly()
    first, _ = session.client(seconds(wait) if wait else 0.0)
    with first.sibling() as client:
        with session.waiting_for(f"entries on {client.address}"):
            while True:
                entries, cursor = _state(client)
                try:
                    text = made.text(entries)
                    break
                except Missing as error:
                    if not _changed(client, cursor, end):
                        if wait:
                            raise WaitTimeout(f"{error} within {seconds(wait):g} s") from None
                        raise
        _put(target, text, command)
        while watch:
            _changed(client, cursor, float("inf"))
            entries, cursor = _state(client)
            try:
                _put(target, made.text(entries), command)
            except (Missing, NotShown, _ReloadFailed) as error:
                session.tell(f"{error}; the next change is waited for")
    return output.NOTHING


class _ReloadFailed(ClientError):
    """The reload command failed."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # the command's


def _put(target: Target, text: str, command: tuple[str, ...]) -> None:
    if target.put(text) and command:
        keeper = Keeper(command, {})
        code = keeper.run()
        if keeper.asked:
            raise SystemExit(128 + keeper.asked)
        if code:
            raise _ReloadFailed(f"The command {command[0]!r} ended with {code}; the new file is in place", code)


def _state(client: Client) -> tuple[dict[str, Entry], str]:
    """Return all entries, of one revision, and the cursor behind it."""
    with client.watch() as watching:
        entries = client.list()
        revision = client.response.get("revision")
        if isinstance(revision, int):
            watching.skip(revision)
        return entries, watching.cursor


def _changed(client: Client, cursor: str, end: float) -> bool:
    """Wait for a change of any entry; return False when the time is over."""
    with client.watch(since=cursor) as watching:
        try:
            return any(True for _ in watching.until(end))
        except CursorExpired:
            return True


def _mode(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        value = int(text, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o7777:
        raise UsageError(f"{text[:20]!r} is no mode; write it as chmod takes it, such as 0644")
    return value
