"""Plans for Linux: System V init scripts of the Debian and the Red Hat family, and systemd units."""

from __future__ import annotations

from pathlib import Path, PurePath, PurePosixPath

from bpbroker.errors import ConfigurationError, StartError
from bpbroker.service.data import files_of, logs_of
from bpbroker.service.machine import Machine, is_ours
from bpbroker.service.steps import Adopt, MakeFolder, Plan, Remove, Run, Service, SetAside, Step, WriteFile
from bpbroker.service.templates import PACKAGED, Recorded, check_plain, init_script, recorded, unit


def log_file(service: Service) -> PurePath:
    """Return the log file that the init script names; under systemd the log is in the journal."""
    return PurePosixPath(f"/var/log/{service.name}/{service.name}.log")


def plan_install(machine: Machine, service: Service, *, by_package: bool = False) -> Plan:
    """Return the steps of install-service.

    Args:
        machine: where to.
        service: what.
        by_package: a Debian or RPM package calls this: it has unit and script itself, and may be unpacked into an
            image, so no certificate is made.

    Raises:
        StartError: this system has no init system that we know, or a package brought this service.
        ConfigurationError: the user does not exist.
    """
    for path in (str(service.config), str(service.home), *service.program):
        check_plain(path)
    if service.user and machine.users and service.user not in machine.users:
        raise ConfigurationError(
            f"There is no user {service.user}. Make one first:\n"
            f"  useradd --system --home-dir {service.home} --no-create-home --shell /usr/sbin/nologin {service.user}"
        )
    packaged = _of_package(machine, service.name)
    if packaged is not None and not by_package:
        raise StartError(
            f"The service {service.name} is that of the package bpbroker ({packaged}); nothing was done.\n"
            "For a second broker give --name NAME and --config FILE."
        )
    if machine.init_folder is None and not machine.systemd and not by_package:
        raise StartError(
            "Neither systemd nor a System V init system was found here; nothing was done.\n"
            "Have your service manager run this in the foreground:\n"
            f"  {' '.join(service.program)} --config {service.config} start"
        )
    steps: list[Step] = []
    if service.user and not machine.foreign:
        # First of all: no other user can change a program in root's own folders.
        trial = ("runuser", "-u", service.user, "--", *service.program, "--version")
        steps.append(Run(trial, f"see that {service.user} can run it"))
    # With the logs: a user cannot append to what belongs to the one before.
    files = (*files_of(service, machine.path), *logs_of(log_file(service), machine.path))
    if files:
        steps.append(Adopt(files, service.user or "root"))
    steps += _folders(machine, service)
    if by_package:
        return Plan(tuple(steps))
    if not machine.foreign:
        # Not into a tree: the key of an image would be the key of every machine made from it.
        steps.append(service.prepare())
    notes: list[str] = []
    if machine.init_folder is not None:
        _install_init_script(machine, service, machine.init_folder, steps, notes)
    if machine.systemd:
        _install_unit(machine, service, steps, notes)
    notes.append(_how_to_start(machine, service))
    return Plan(tuple(steps), tuple(notes))


def installed(machine: Machine, name: str) -> Recorded | None:
    """Return the options that this service was installed with; None when it is not there or does not say."""
    files = [machine.path(_unit_path(name))]
    if machine.init_folder is not None:
        files.append(machine.init_folder / name)
    for file in files:
        try:
            found = recorded(file.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if found is not None:
            return found
    return None


def _of_package(machine: Machine, name: str) -> Path | None:
    """Return the file of this service that a Debian or RPM package brought; None when there is none."""
    candidates = [machine.path(f"{folder}/systemd/system/{name}.service") for folder in ("/usr/lib", "/lib")]
    if machine.init_folder is not None:
        candidates.append(machine.init_folder / name)
    for file in candidates:
        try:
            if PACKAGED in file.read_text(encoding="utf-8", errors="replace"):
                return file
        except OSError:
            continue
    return None


def _folders(machine: Machine, service: Service) -> list[Step]:
    home = str(service.home)
    owner = service.user or "root"
    wanted = {
        home: (0o755, "root"),
        f"{home}/lib": (0o755, "root"),  # modules run as the service; it must not be able to change them
        str(service.config.parent): (0o750, owner),
        str(service.backups): (0o700, owner),
        str(log_file(service).parent): (0o750, owner),
    }
    return [MakeFolder(machine.path(path), mode, of) for path, (mode, of) in wanted.items()]


def _install_init_script(machine: Machine, service: Service, folder: Path, steps: list[Step], notes: list[str]) -> None:
    script = folder / service.name
    _make_room(script, steps, notes)
    steps.append(WriteFile(script, init_script(service), 0o755))
    if "update-rc.d" in machine.tools:
        steps.append(Run(machine.command("update-rc.d", service.name, "defaults"), "start it at boot"))
    elif "chkconfig" in machine.tools:
        steps.append(Run(machine.command("chkconfig", "--add", service.name), "make it known"))
        steps.append(Run(machine.command("chkconfig", service.name, "on"), "start it at boot"))
    elif not machine.systemd:
        notes.append("Neither update-rc.d nor chkconfig was found: the service does not start at boot yet.")


def _install_unit(machine: Machine, service: Service, steps: list[Step], notes: list[str]) -> None:
    file = machine.path(_unit_path(service.name))
    _make_room(file, steps, notes)
    steps.append(WriteFile(file, unit(service), 0o644))
    if "systemctl" not in machine.tools:
        notes.append("systemctl was not found: the service does not start at boot yet.")
        return
    if not machine.foreign:
        steps.append(Run(("systemctl", "daemon-reload"), "make the unit known"))
    steps.append(Run(machine.command("systemctl", "enable", f"{service.name}.service"), "start it at boot"))


def _make_room(path: Path, steps: list[Step], notes: list[str]) -> None:
    """Keep a file that we did not write, such as the script of an older bpbroker."""
    if (path.exists() or path.is_symlink()) and not is_ours(path):
        # .orig is a suffix that insserv and chkconfig pass over.
        to = next(
            to for n in range(1000) if not (to := path.with_name(f"{path.name}{f'.{n}' if n else ''}.orig")).exists()
        )
        steps.append(SetAside(path, to))
        notes.append(f"The {path} that was there was not ours; it is kept as {to}.")


def _how_to_start(machine: Machine, service: Service) -> str:
    if machine.foreign:
        return f"Installed into {machine.root}. The first start there makes configuration and certificate."
    start = f"systemctl start {service.name}" if machine.systemd else f"service {service.name} start"
    return f"Installed, and enabled at boot. It does not run yet; to start it: {start}"


def _unit_path(name: str) -> str:
    return f"/etc/systemd/system/{name}.service"


def plan_uninstall(machine: Machine, service: Service) -> Plan:
    """Return the steps of uninstall-service; none when nothing is installed."""
    steps: list[Step] = []
    file = machine.path(_unit_path(service.name))
    if is_ours(file):
        if "systemctl" in machine.tools:
            if not machine.foreign and machine.systemd:
                steps.append(Run(("systemctl", "stop", f"{service.name}.service"), "stop it"))
            steps.append(
                Run(machine.command("systemctl", "disable", f"{service.name}.service"), "do not start it at boot", True)
            )
        steps.append(Remove(file))
        if "systemctl" in machine.tools and not machine.foreign and machine.systemd:
            steps.append(Run(("systemctl", "daemon-reload"), "forget the unit"))
    script = machine.init_folder / service.name if machine.init_folder else None
    if script is not None and is_ours(script):
        if not machine.foreign:
            steps.append(Run((str(script), "stop"), "stop it"))
        if "update-rc.d" in machine.tools:
            # It wants the script gone before it removes the links.
            steps.append(Remove(script))
            steps.append(Run(machine.command("update-rc.d", service.name, "remove"), "do not start it at boot"))
        else:
            if "chkconfig" in machine.tools:
                steps.append(Run(machine.command("chkconfig", "--del", service.name), "do not start it at boot"))
            steps.append(Remove(script))
    notes = ["Removed." if steps else f"No service named {service.name} is installed here."]
    if script is not None and script.exists() and not is_ours(script):
        notes.append(f"{script} was not written by bpbroker; it is left alone.")
    packaged = _of_package(machine, service.name)
    if packaged is not None:
        notes.append(f"{packaged} is of the package bpbroker, which your package manager removes.")
    if steps:
        steps.append(Remove(machine.path(f"/var/run/{service.name}"), only_if_empty=True))
    return Plan(tuple(steps), tuple(notes))
