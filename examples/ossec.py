"""Registers OSSEC agents: ``bpclient execute --method ossec.AddAgent --data HOSTNAME`` prints the agent's key line.

The OSSEC manager's folder is ``ossec_dir`` in this extension's section of the
configuration, else ``$OSSEC_DIR``, else ``/var/ossec``.

Safe to be called by many hosts at once, with any ``_workers``:
``etc/client.keys`` is read and written under a file lock and replaced as a
whole, and one restart of the manager serves all agents that were added before
it began. Another program that writes the file has to take the same lock,
``etc/.client.keys.lock``; ``manage_agents`` does not, so do not use it at the
same moment.

Where systemd runs, it restarts the manager: the unit that ``ossec_unit`` names
(``ossec``), or, when there is none, ``ossec-control`` in a unit of its own. What
this module started itself would belong to the broker's service, and
``systemctl stop bpbroker`` would end the manager too.
"""

import fcntl
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bpbroker.extensions import Error, Request

RESTART_SECS = 60
SYSTEMD = Path("/run/systemd/system")
"""It is there where systemd runs."""


def AddAgent(rh: Request) -> None:
    """Add the host named in ``data``, at the requesting address, and give its line of client.keys."""
    name, address = rh.qs.get("data", ""), rh.RequestingHost()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,127}", name):
        raise Error(400, "Invalid source host name content")
    folder = Path(rh.config.get("ossec_dir") or os.environ.get("OSSEC_DIR") or "/var/ossec")
    if not (folder / "etc").is_dir():
        rh.log.error("%s/etc does not exist; is ossec_dir right?", folder)
        raise Error(500, "There is no OSSEC manager here")

    with _locked(folder / "etc" / ".client.keys.lock") as state:
        lines = _read_keys(folder)
        agents = [fields for fields in map(str.split, lines) if len(fields) == 4]
        # manage_agents marks an agent that was removed with a # or a ! before its name.
        for _, used_name, used_address, _ in agents:
            if used_name[0] not in "#!":
                if used_address == address:
                    raise Error(409, "Unable to add requested host IP in use")
                if used_name.lower() == name.lower():
                    raise Error(409, "Unable to add requested host name in use")
        number = 1 + max((int(fields[0]) for fields in agents if fields[0].isdigit()), default=0)
        line = f"{number:03} {name} {address} {secrets.token_hex(32)}"
        _write_keys(folder, [*lines, line])
        turn = _count(state)

    try:
        _restart(rh, folder, turn)
    except Error:
        with _locked(folder / "etc" / ".client.keys.lock"):
            _write_keys(folder, [other for other in _read_keys(folder) if other != line])
        raise
    rh.log.info("agent %03d is %s at %s", number, name, address)
    rh.content_type = "text/plain"
    rh.data = line


def _read_keys(folder: Path) -> list[str]:
    path = folder / "etc" / "client.keys"
    return path.read_text().splitlines() if path.exists() else []


def _write_keys(folder: Path, lines: list[str]) -> None:
    """Replace the file as a whole: no reader ever sees half of it, no crash leaves half of it."""
    path = folder / "etc" / "client.keys"
    descriptor, temporary = tempfile.mkstemp(prefix=".client.keys-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        model = path if path.exists() else path.parent
        shutil.chown(temporary, model.stat().st_uid, model.stat().st_gid)
        Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o640)
        Path(temporary).replace(path)
    except BaseException:  # ended in the middle, too, no half file stays
        Path(temporary).unlink(missing_ok=True)
        raise


def _restart(rh: Request, folder: Path, turn: int) -> None:
    """Restart the manager unless that was done since this agent was added; one at a time."""
    with _locked(folder / "etc" / ".restart.lock") as state:
        state.seek(0)
        if turn <= int(state.read() or 0):
            return
        with _locked(folder / "etc" / ".client.keys.lock") as counter:
            counter.seek(0)
            newest = int(counter.read() or 0)
        # Not a pipe: the daemons that it starts may keep it open, and reading would never end.
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            try:
                subprocess.run(
                    _restart_command(rh, folder), stdout=output, stderr=output, timeout=RESTART_SECS, check=True
                )
            except (OSError, subprocess.SubprocessError) as error:
                output.seek(0)
                rh.log.exception("the manager's restart failed: %s", output.read()[-2000:])
                raise Error(500, "OSSEC could not be restarted, so the agent was not added") from error
        _put(state, newest)


def _restart_command(rh: Request, folder: Path) -> list[str]:
    """Return what restarts the manager so that its daemons outlive the broker."""
    control = [str(folder / "bin" / "ossec-control"), "restart"]
    if not SYSTEMD.is_dir():
        return control
    unit = f"{rh.config.get('ossec_unit') or 'ossec'}.service"
    asked = ["systemctl", "cat", unit]
    known = subprocess.run(asked, capture_output=True, timeout=RESTART_SECS, check=False)
    if known.returncode == 0:
        return ["systemctl", "restart", unit]
    # A unit of several daemons and no main one; it is forgotten when the next restart has ended them.
    return ["systemd-run", "--quiet", "--collect", "--service-type=forking", "--property=GuessMainPID=no", *control]


def _count(state: IO[str]) -> int:
    """Return this agent's number in the order of adding."""
    state.seek(0)
    turn = int(state.read() or 0) + 1
    _put(state, turn)
    return turn


def _put(state: IO[str], number: int) -> None:
    state.seek(0)
    state.truncate()
    state.write(str(number))
    state.flush()
    os.fsync(state.fileno())  # after a power cut the count of agents must not be behind that of the last restart


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    """Hold a file's lock; other processes and threads wait."""
    with open(path, "a+", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
