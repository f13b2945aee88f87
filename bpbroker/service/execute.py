"""Carrying out a plan, step by step, saying each; whatever fails ends it with a clear message."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bpbroker import files, foreign_folders, progress
from bpbroker.errors import ConfigurationError, StartError
from bpbroker.service.machine import within
from bpbroker.service.steps import Adopt, MakeFolder, Plan, Remove, Run, SetAside, Step, WriteFile

_PROGRAM_TIMEOUT_SECS = 120
_AGAIN = "What was done before it stays; this can be run again."
_NOTHING = "Nothing was done; this can be run again."


def execute(plan: Plan, root: Path, say: Callable[[str], None]) -> None:
    """Do what the plan says; doing it again after a failure is safe.

    Raises:
        StartError: a step failed; the message names it, and what was done before stays.
    """
    for number, step in enumerate(plan.steps, 1):
        try:
            with progress.Work(f"Step {number} of {len(plan.steps)}: {step}"):
                changed = _do(step, root, say)
            if changed:
                say(str(step))
        except (OSError, StartError) as error:
            reason = str(error) if isinstance(error, StartError) else f"Could not {step}: {error.strerror or error}."
            raise StartError(f"{reason}\n{_AGAIN if step is not plan.steps[0] else _NOTHING}") from error


def _do(step: Step, root: Path, say: Callable[[str], None]) -> bool:
    """Do a step; False when everything was as it should be already."""
    if isinstance(step, MakeFolder):
        return _make_folder(Path(step.path), step.mode, step.owner, root)
    if isinstance(step, WriteFile):
        return _write(Path(step.path), step.content.encode(), step.mode)
    if isinstance(step, SetAside):
        Path(step.path).replace(step.to)
        if not Path(step.to).is_symlink():
            Path(step.to).chmod(0o644)
        return True
    if isinstance(step, Remove):
        return foreign_folders.remove_all(Path(step.path), only_if_empty=step.only_if_empty)
    if isinstance(step, Adopt):
        given = [path for path in step.paths if _adopt(Path(path), step.owner, root)]
        return bool(given)
    return _run(step, say)


def _make_folder(path: Path, mode: int, owner: str, root: Path) -> bool:
    given = _ids(owner, root) if owner and sys.platform != "win32" and os.geteuid() == 0 else None
    return foreign_folders.permit_folder(path, mode, given)


def _ids(owner: str, root: Path) -> tuple[int, int]:
    """Look up a user: on the running machine by its own means, in a tree of files in its ``/etc/passwd``."""
    if owner == "root":
        return 0, 0
    if root == Path("/"):
        import pwd

        found = pwd.getpwnam(owner)
        return found.pw_uid, found.pw_gid
    for line in within(root, "etc/passwd").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(":")
        if fields[0] == owner and len(fields) > 3:
            return int(fields[2]), int(fields[3])
    raise ConfigurationError(f"There is no user {owner} in {root}")


def others_files(paths: Iterable[Path], owner: str, root: Path) -> list[Path]:
    """Return the files that belong to another user than ``owner``; none where the system has no such users."""
    if sys.platform == "win32":
        return []
    uid, _ = _ids(owner, root)
    return [path for path in paths if path.lstat().st_uid != uid]


def _adopt(path: Path, owner: str, root: Path) -> bool:
    """Make another user the owner of a file, but of no link: the folder's owner may have put one there."""
    return os.geteuid() == 0 and foreign_folders.give_file(path, _ids(owner, root))


def _write(path: Path, content: bytes, mode: int) -> bool:
    if path.is_file() and not path.is_symlink() and path.read_bytes() == content:
        files.sync_folder(path.parent)  # the one that wrote it may have been killed before this
        if path.stat().st_mode & 0o7777 == mode:
            return False
        path.chmod(mode)  # its folder is root's: /etc
        return True
    files.make_folder(path.parent, mode=0o755)
    # A link in its place, such as that of a masked unit, is replaced and not followed.
    files.write_whole(path, [content], mode=mode, owner=files.process_owner(), follow=False)
    return True


def _run(step: Run, say: Callable[[str], None]) -> bool:
    """Run a program; False, and the reason is said, if one that may fail could not be run."""
    try:
        done = subprocess.run(  # noqa: S603 - the plan's own words, no shell
            step.argv, capture_output=True, timeout=_PROGRAM_TIMEOUT_SECS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no end within {_PROGRAM_TIMEOUT_SECS} s"
        if step.may_fail:
            say(f"could not {step}: {reason}")
            return False
        raise StartError(f"Could not {step}: {reason}") from error
    if done.returncode != 0 and not step.may_fail:
        # nssm writes UTF-16; without the NULs it reads well enough.
        said = (done.stderr + done.stdout).replace(b"\0", b"").decode(errors="replace").strip()
        raise StartError(
            f"Could not {step}:\n  it ended with exit code {done.returncode}" + (f" and said: {said}" if said else "")
        )
    return True
