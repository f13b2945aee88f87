r"""Plans for Windows, where ``nssm.exe`` from ``%ProgramFiles%\bpbroker\bin`` runs the broker as a service."""

from __future__ import annotations

import shlex
import subprocess  # for list2cmdline only: Windows' own rules for quoting
from collections.abc import Iterator
from pathlib import PurePath

from bpbroker.errors import ConfigurationError, StartError
from bpbroker.service.steps import MakeFolder, Plan, Run, Service
from bpbroker.service.templates import check_plain, fill, template


def nssm_path(home: PurePath) -> PurePath:
    """Return the path that nssm must have."""
    return home / "bin" / "nssm.exe"


def log_file(service: Service) -> PurePath:
    """Return the file that nssm writes the service's output to."""
    return service.home / "logs" / f"{service.name}.log"


def missing(nssm: PurePath) -> StartError:
    """Return the error that says that nssm is not there, and where to put it."""
    return StartError(
        f"{nssm} is missing. On Windows nssm runs bpbroker as a service:\n"
        "put nssm.exe (2.24 or newer) there and run this again. Nothing was done."
    )


def plan_install(nssm: PurePath, service: Service, *, installed: bool) -> Plan:
    """Return the steps of install-service; the commands for nssm are those of ``deploy/nssm.commands``.

    Args:
        nssm: the program.
        service: what to install.
        installed: whether there is a service of this name already; it is then only set anew.

    Raises:
        ConfigurationError: a user was asked for.
    """
    if service.user:
        raise ConfigurationError(
            "On Windows a service's user needs a password, which does not belong on a command line:\n"
            f"install without --user, then set the account in services.msc (service {service.name})."
        )
    for path in (str(service.config), str(service.home), *service.program):
        check_plain(path)
    log = log_file(service)
    values = {
        "NAME": service.name,
        "PROGRAM": service.program[0],
        "ARGUMENTS": subprocess.list2cmdline([*service.program[1:], "--config", str(service.config), "start"]),
        "HOME": str(service.home),
        "LOG": str(log),
    }
    folders = (service.home, service.home / "lib", service.config.parent, service.backups, log.parent)
    commands = [tuple(fill(word, values) for word in words) for words in _commands()]
    return Plan(
        (
            *(MakeFolder(folder, 0o755, "") for folder in folders),
            service.prepare(),
            *(
                Run((str(nssm), *words), "make the service" if words[0] == "install" else "set it up")
                for words in commands
                if words[0] != "install" or not installed
            ),
        ),
        (
            f"Installed; it starts at boot. It does not run yet; to start it: net start {service.name}",
            f"Its log is {log}",
        ),
    )


def plan_uninstall(nssm: PurePath, service: Service, *, installed: bool) -> Plan:
    """Return the steps of uninstall-service: stop, then remove."""
    if not installed:
        return Plan((), (f"No service named {service.name} is installed here.",))
    return Plan(
        (
            Run((str(nssm), "stop", service.name), "stop it", may_fail=True),
            Run((str(nssm), "remove", service.name, "confirm"), "remove it"),
        ),
        ("Removed.",),
    )


def _commands() -> Iterator[list[str]]:
    for line in template("nssm.commands").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words
