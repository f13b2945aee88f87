r"""Plans for Windows, where ``nssm.exe`` from ``%ProgramFiles%\bpbroker\bin`` runs the broker as a service."""

from __future__ import annotations

import re
import shlex
import subprocess  # for list2cmdline only: Windows' own rules for quoting
from collections.abc import Iterator
from pathlib import PurePath, PureWindowsPath

from bpbroker.errors import ConfigurationError, StartError
from bpbroker.service.steps import MakeFolder, Plan, Run, Service
from bpbroker.service.templates import Recorded, check_plain, fill, template
from bpbroker.text import command_line

_BY_HAND = "If Windows' firewall is on, let clients in with --firewall, or by hand:"


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


def recorded(parameters: str) -> Recorded | None:
    """Return the configuration file that a service runs on, from its arguments; None when they name none.

    Args:
        parameters: as ``nssm get NAME AppParameters`` says them: :func:`plan_install` wrote them.
    """
    found = _CONFIG.search(parameters)
    return None if found is None else Recorded(PureWindowsPath(found[1] or found[2]), "")


_CONFIG = re.compile(r'--config (?:"([^"]+)"|(\S+)) start\s*\Z')


def firewall_rules(name: str) -> tuple[str, ...]:
    """Return the names of a service's rules in Windows' firewall, for TCP and UDP."""
    return f"{name} (TCP)", f"{name} (UDP)"


def open_firewall(name: str, port: int) -> tuple[Run, ...]:
    """Return the steps that let the broker's port through Windows' firewall; those before them are replaced."""
    return (
        *close_firewall(name),
        *(
            Run(
                (
                    "netsh", "advfirewall", "firewall", "add", "rule", f"name={rule}",
                    "dir=in", "action=allow", f"protocol={protocol}", f"localport={port}",
                ),
                "open the firewall",
            )
            for rule, protocol in zip(firewall_rules(name), ("TCP", "UDP"), strict=True)
        ),
    )  # fmt: skip


def close_firewall(name: str) -> tuple[Run, ...]:
    """Return the steps that take the rules away; fine when there are none."""
    return tuple(
        Run(("netsh", "advfirewall", "firewall", "delete", "rule", f"name={rule}"), "close the firewall", may_fail=True)
        for rule in firewall_rules(name)
    )


def plan_install(nssm: PurePath, service: Service, *, installed: bool, port: int, firewall: bool) -> Plan:
    """Return the steps of install-service; the commands for nssm are those of ``deploy/nssm.commands``.

    Args:
        nssm: the program.
        service: what to install.
        installed: whether there is a service of this name already; it is then only set anew.
        port: what the broker listens on, for TCP and UDP.
        firewall: whether to open that in Windows' firewall; else the notes say how.

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
    # Modes of the owner alone become lists for the owner, Administrators and SYSTEM, and what is made inside has them.
    folders = {service.home: 0o755, service.home / "lib": 0o755}
    folders |= dict.fromkeys((service.config.parent, service.backups, log.parent), 0o700)
    rules = open_firewall(service.name, port)
    commands = [tuple(fill(word, values) for word in words) for words in _commands()]
    return Plan(
        (
            *(MakeFolder(folder, mode, "") for folder, mode in folders.items()),
            service.prepare(),
            *(
                Run((str(nssm), *words), "make the service" if words[0] == "install" else "set it up")
                for words in commands
                if words[0] != "install" or not installed
            ),
            *(rules if firewall else ()),
        ),
        (
            f"Installed; it starts at boot. It does not run yet; to start it: net start {service.name}",
            f"Its log is {log}",
            *(
                ()
                if firewall
                else (_BY_HAND, *(f"  {command_line(*rule.argv)}" for rule in rules if not rule.may_fail))
            ),
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
            *close_firewall(service.name),
        ),
        ("Removed.",),
    )


def _commands() -> Iterator[list[str]]:
    for line in template("nssm.commands").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words
