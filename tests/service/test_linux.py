"""Installing and removing on Linux: plans, and what is left in a tree of the Debian and of the Red Hat family."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from bpbroker.errors import ConfigurationError, StartError
from bpbroker.service.data import plan_purge
from bpbroker.service.execute import execute
from bpbroker.service.linux import plan_install, plan_uninstall
from bpbroker.service.machine import Machine, look
from bpbroker.service.steps import Plan, Run, Service
from bpbroker.service.templates import PACKAGED, init_script, template, unit
from tests.support.systems import is_root

needs_root = pytest.mark.skipif(not is_root(), reason="chroot and chown need root")

SERVICE = Service(
    name="bpbroker",
    program=("/opt/venv/bin/bpbroker",),
    config=PurePosixPath("/usr/local/bpbroker/etc/bpbroker.json"),
    home=PurePosixPath("/usr/local/bpbroker"),
)
HERE = Machine(Path("/"), frozenset({"update-rc.d"}), systemd=False, init_folder=Path("/etc/init.d"), users=frozenset())

Calls = Callable[[Path], list[str]]


def do(plan: Plan, root: Path) -> list[str]:
    said: list[str] = []
    execute(plan, root, said.append)
    return said


def listing(root: Path) -> dict[str, tuple[int, int, int]]:
    """Everything in a tree with mode and owner."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode & 0o7777, path.lstat().st_uid, path.lstat().st_gid)
        for path in sorted(root.rglob("*"))
        if path.name != "calls"
    }


@needs_root
@pytest.mark.parametrize(
    ("programs", "expected"),
    [
        (("update-rc.d",), ["update-rc.d bpbroker defaults"]),
        (("chkconfig",), ["chkconfig --add bpbroker", "chkconfig bpbroker on"]),
    ],
    ids=["Debian", "Red Hat"],
)
def test_a_tree_without_systemd(
    make_tree: Callable[..., Path], calls: Calls, programs: tuple[str, ...], expected: list[str]
) -> None:
    root = make_tree(*programs)
    do(plan_install(look(root), SERVICE), root)
    script = root / "etc/init.d/bpbroker"
    assert script.read_text() == init_script(SERVICE)
    assert script.stat().st_mode & 0o7777 == 0o755
    assert calls(root) == expected
    assert not (root / "etc/systemd").exists()
    made = listing(root)
    assert made["usr/local/bpbroker"] == (0o755, 0, 0)
    assert made["usr/local/bpbroker/lib"] == (0o755, 0, 0)
    assert made["usr/local/bpbroker/etc"] == (0o750, 0, 0)
    assert made["usr/local/bpbroker/backups"] == (0o700, 0, 0)
    assert made["var/log/bpbroker"] == (0o750, 0, 0)
    assert not list((root / "usr/local/bpbroker/etc").iterdir())  # no key goes into an image


@needs_root
def test_a_tree_with_systemd(make_tree: Callable[..., Path], calls: Calls) -> None:
    root = make_tree("update-rc.d", "systemctl", folders=("etc/init.d", "lib/systemd"))
    (root / "lib/systemd/systemd").touch()
    do(plan_install(look(root), SERVICE), root)
    file = root / "etc/systemd/system/bpbroker.service"
    assert file.read_text() == unit(SERVICE)
    assert file.stat().st_mode & 0o7777 == 0o644
    assert calls(root) == ["update-rc.d bpbroker defaults", "systemctl enable bpbroker.service"]


@needs_root
def test_an_absolute_link_to_the_init_folder_stays_in_the_tree(make_tree: Callable[..., Path]) -> None:
    root = make_tree("chkconfig", folders=("etc/rc.d/init.d",))
    (root / "etc/init.d").symlink_to("/etc/rc.d/init.d")
    do(plan_install(look(root), SERVICE), root)
    assert (root / "etc/rc.d/init.d/bpbroker").is_file()


@needs_root
def test_twice_is_once(make_tree: Callable[..., Path]) -> None:
    root = make_tree("update-rc.d")
    do(plan_install(look(root), SERVICE), root)
    before = listing(root)
    said = do(plan_install(look(root), SERVICE), root)
    assert listing(root) == before
    assert all("start it at boot" in line for line in said), said


@needs_root
def test_a_user_owns_what_the_broker_writes_but_not_the_modules(make_tree: Callable[..., Path]) -> None:
    root = make_tree("update-rc.d")
    do(plan_install(look(root), SERVICE), root)
    own = root / "usr/local/bpbroker/etc/bpbroker.json"
    for path in (own, own.with_name("bpbroker.json.journal"), own.with_name("bpbroker.key")):
        path.write_text("x")
    (own.parent / "bpbroker.json.lock").symlink_to("/etc/passwd")
    os.link(root / "etc/passwd", own.parent / "bpbroker.crt")
    do(plan_install(look(root), replace(SERVICE, user="broker")), root)
    made = listing(root)
    assert made["usr/local/bpbroker/etc"] == (0o750, 4321, 4322)
    assert made["usr/local/bpbroker/backups"] == (0o700, 4321, 4322)
    assert made["usr/local/bpbroker/lib"] == (0o755, 0, 0)
    for name in ("bpbroker.json", "bpbroker.json.journal", "bpbroker.key"):
        assert made[f"usr/local/bpbroker/etc/{name}"][1:] == (4321, 4322)
    assert made["etc/passwd"][1:] == (0, 0)  # neither through a hard link
    assert made["usr/local/bpbroker/etc/bpbroker.json.lock"][1:] == (0, 0)  # nor a symbolic one


@needs_root
def test_a_change_of_user_takes_the_logs_along(make_tree: Callable[..., Path]) -> None:
    root = make_tree("update-rc.d")
    do(plan_install(look(root), SERVICE), root)
    logs = root / "var/log/bpbroker"
    for name in ("bpbroker.log", "bpbroker.log.1", "of-another.log"):
        (logs / name).write_text("x")
    do(plan_install(look(root), replace(SERVICE, user="broker")), root)
    made = listing(root)
    assert made["var/log/bpbroker/bpbroker.log"][1:] == (4321, 4322)
    assert made["var/log/bpbroker/bpbroker.log.1"][1:] == (4321, 4322)
    assert made["var/log/bpbroker/of-another.log"][1:] == (0, 0)
    do(plan_install(look(root), SERVICE), root)
    assert listing(root)["var/log/bpbroker/bpbroker.log"][1] == 0


def test_a_user_that_is_not_there_is_refused_with_how_to_make_it(make_tree: Callable[..., Path]) -> None:
    root = make_tree("update-rc.d")
    with pytest.raises(ConfigurationError, match=r"useradd --system .* nobody-knows"):
        plan_install(look(root), replace(SERVICE, user="nobody-knows"))


def test_without_an_init_system_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"/opt/venv/bin/bpbroker --config .* start"):
        plan_install(look(tmp_path), SERVICE)


@needs_root
def test_a_foreign_script_is_kept_aside_each_time(make_tree: Callable[..., Path]) -> None:
    root = make_tree("update-rc.d")
    script = root / "etc/init.d/bpbroker"
    for number, aside in enumerate(("bpbroker.orig", "bpbroker.1.orig")):
        script.write_text(f"#!/bin/sh\necho {number}\n")
        script.chmod(0o755)
        plan = plan_install(look(root), SERVICE)
        do(plan, root)
        assert any(aside in note for note in plan.notes)
        kept = root / "etc/init.d" / aside
        assert kept.read_text() == f"#!/bin/sh\necho {number}\n"
        assert not kept.stat().st_mode & 0o111
        assert script.read_text() == init_script(SERVICE)


@needs_root
@pytest.mark.parametrize(
    ("programs", "expected"),
    [
        (("update-rc.d",), ["update-rc.d bpbroker remove"]),
        (("chkconfig",), ["chkconfig --del bpbroker"]),
        (("update-rc.d", "systemctl"), ["systemctl disable bpbroker.service", "update-rc.d bpbroker remove"]),
    ],
)
def test_uninstall_leaves_nothing_but_data(
    make_tree: Callable[..., Path], calls: Calls, programs: tuple[str, ...], expected: list[str]
) -> None:
    root = make_tree(*programs, folders=("etc/init.d", "etc/systemd/system", "var/log", "usr/local", "lib/systemd"))
    if "systemctl" in programs:
        (root / "lib/systemd/systemd").touch()
    before = listing(root)
    do(plan_install(look(root), SERVICE), root)
    (root / "usr/local/bpbroker/etc/bpbroker.json").write_text("{}")
    (root / "calls").unlink()
    do(plan_uninstall(look(root), SERVICE), root)
    assert calls(root) == expected
    left = set(listing(root)) - set(before)
    assert left == {
        "var/log/bpbroker", "usr/local/bpbroker", "usr/local/bpbroker/lib", "usr/local/bpbroker/backups",
        "usr/local/bpbroker/etc", "usr/local/bpbroker/etc/bpbroker.json",
    }  # fmt: skip
    assert not plan_uninstall(look(root), SERVICE).steps


@needs_root
def test_purge_removes_its_own_data_only(make_tree: Callable[..., Path]) -> None:
    root = make_tree("update-rc.d", folders=("etc/init.d", "var/log", "usr/local"))
    before = listing(root)
    do(plan_install(look(root), SERVICE), root)
    home = root / "usr/local/bpbroker"
    mine = [
        home / "etc" / f"bpbroker.{end}"
        for end in (
            "json",
            "json.lock",
            "json.journal",
            "json.journal-wal",
            "json.answers",
            "json.revisions",
            "json.etcd",
            "json.0123456789abcdef.tmp",
            "crt",
            "key",
            "key.staged",
            "crt.staged.0123456789abcdef.tmp",
        )
    ]
    mine.append(home / "backups/bpbroker-20260131T235959.123456Z.json")
    mine.append(home / "backups/bpbroker.json.edited-20260131T235959.123456Z")
    mine.append(home / "backups/bpbroker.json.journal.damaged-20260131T235959.123456Z")
    mine.append(home / "backups/bpbroker.key.replaced-20260131T235959.123456Z")
    mine.append(home / "backups/bpbroker.json.answers.other-20260131T235959.123456Z")
    mine.append(home / "etc/bpbroker.json.sock")
    others = [home / "etc/second.json", home / "backups/second-20260131T235959.123456Z.json", home / "lib/ossec.py"]
    for path in (*mine, *others, root / "var/log/bpbroker/bpbroker.log"):
        path.write_text("x")
    do(plan_uninstall(look(root), SERVICE), root)
    logs = PurePosixPath("/var/log/bpbroker")
    do(plan_purge(SERVICE, logs, look(root).path), root)
    assert not any(path.exists() for path in mine)
    assert all(path.exists() for path in others)
    assert not (root / "var/log/bpbroker").exists()
    for path in others:
        path.unlink()
    do(plan_purge(SERVICE, logs, look(root).path), root)
    assert listing(root) == before


def test_a_foreign_script_is_not_removed(make_tree: Callable[..., Path]) -> None:
    root = make_tree("update-rc.d")
    (root / "etc/init.d/bpbroker").write_text("#!/bin/sh\n")
    plan = plan_uninstall(look(root), SERVICE)
    assert not plan.steps
    assert any("was not written by bpbroker" in note for note in plan.notes)
    assert any("No service named bpbroker" in note for note in plan.notes)


@needs_root
def test_a_tool_that_fails_ends_it_with_what_it_said(make_tree: Callable[..., Path]) -> None:
    root = make_tree("update-rc.d")
    (root / "usr/sbin/update-rc.d").write_text("#!/bin/sh\necho no such runlevel >&2\nexit 3\n")
    with pytest.raises(
        StartError, match=r"start it at boot(.|\n)*exit code 3 and said: no such runlevel\nWhat was done"
    ):
        do(plan_install(look(root), SERVICE), root)
    (root / "usr/sbin/update-rc.d").write_text("#!/bin/sh\n")
    do(plan_install(look(root), SERVICE), root)  # and again works


def test_on_the_running_system_it_is_never_started() -> None:
    for systemd in (False, True):
        tools = frozenset({"update-rc.d", "chkconfig", "systemctl"})
        plan = plan_install(replace(HERE, systemd=systemd, tools=tools), SERVICE)
        commands = [step.argv for step in plan.steps if isinstance(step, Run)]
        assert not any("start" in argv for argv in commands)
        assert (("systemctl", "daemon-reload") in commands) is systemd
        assert ((*SERVICE.program, "--config", str(SERVICE.config), "prepare")) in commands


def test_a_program_that_the_user_cannot_reach_ends_it_before_anything_is_done() -> None:
    plan = plan_install(HERE, replace(SERVICE, user="daemon"))
    first = plan.steps[0]
    assert isinstance(first, Run)
    assert first.argv == ("runuser", "-u", "daemon", "--", *SERVICE.program, "--version")
    with pytest.raises(StartError, match=r"see that daemon can run it(.|\n)*Nothing was done"):
        execute(Plan((replace(first, argv=("false",)), *plan.steps[1:])), Path("/"), lambda _: None)


# --- the files ---

AWKWARD = replace(
    SERVICE,
    program=("/opt/my venv/bin/it's", "-m", "$x%h;"),
    config=PurePosixPath('/srv/a "b" $HOME %n/c\\d.json'),
    user="broker",
)


def test_every_path_survives_the_init_script(tmp_path: Path) -> None:
    recorder = tmp_path / "my venv" / "it's"
    recorder.parent.mkdir()
    recorder.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
    recorder.chmod(0o755)
    service = replace(AWKWARD, program=(str(recorder), *AWKWARD.program[1:]), user="", name="bpbroker-test")
    script = tmp_path / "script"
    # What stands before the case statement, then the function itself.
    script.write_text(init_script(service).split("case ${1:-} in")[0] + "bpbroker start\n")
    done = subprocess.run(["sh", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.splitlines() == ["-m", "$x%h;", "--config", str(service.config), "start"]


def test_every_path_is_quoted_in_the_unit() -> None:
    text = unit(AWKWARD)
    command = r'''"/opt/my venv/bin/it's" -m "$$x%%h;" --config "/srv/a \"b\" $$HOME %%n/c\\d.json"'''
    assert f"ExecStart={command} start\n" in text
    assert f"ExecReload={command} reload\n" in text
    assert r'ReadWritePaths="/srv/a \"b\" $HOME %%n" "-/srv/a \"b\" $HOME %%n/backups"' in text
    assert "User=broker\n" in text


def test_the_units_own_control_group_alone_is_the_brokers() -> None:
    lines = unit(SERVICE).splitlines()
    assert "Delegate=pids" in lines
    assert "ProtectControlGroups=yes" in lines
    assert "ReadWritePaths=-/sys/fs/cgroup/system.slice/%n -/sys/fs/cgroup/unified/system.slice/%n" in lines


def test_no_path_brings_a_line_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match="control character"):
        plan_install(HERE, replace(SERVICE, config=PurePosixPath("/srv/a\nExecStart=/bin/sh")))


def test_shellcheck_has_no_complaint(tmp_path: Path) -> None:
    for number, service in enumerate((SERVICE, AWKWARD)):
        script = tmp_path / f"script{number}"
        script.write_text(init_script(service))
        # SC2016: what looks like an expansion in a quoted path is none.
        done = subprocess.run(
            ["shellcheck", "--exclude=SC2016", script], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("user", ["", "root", "daemon"])
def test_systemd_has_no_complaint_and_finds_it_hardened(tmp_path: Path, user: str) -> None:
    program = tmp_path / "bpbroker"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    file = tmp_path / "bpbroker.service"
    file.write_text(unit(replace(SERVICE, program=(str(program),), user=user)))
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", file],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Overall exposure level" in done.stdout
    assert done.returncode == 0, done.stdout


def test_systemd_takes_the_example_of_a_drop_in(tmp_path: Path) -> None:
    program = tmp_path / "bpbroker"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    file = tmp_path / "bpbroker.service"
    file.write_text(unit(replace(SERVICE, program=(str(program),))))
    folder = tmp_path / "bpbroker.service.d"
    folder.mkdir()
    (folder / "extensions.conf").write_text(template("bpbroker-extensions.conf"))
    environ = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(
        ["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=60, check=False, env=environ
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (folder / "extensions.conf").write_text("[Service]\nNoSuchOption=1\n")  # it is the drop-in that is looked at
    done = subprocess.run(
        ["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=60, check=False, env=environ
    )
    assert "NoSuchOption" in done.stderr


@needs_root
def test_a_package_has_unit_and_script_itself(make_tree: Callable[..., Path], calls: Calls) -> None:
    root = make_tree("update-rc.d", "systemctl", folders=("etc/init.d", "usr/lib/systemd/system"))
    (root / "usr/lib/systemd/systemd").touch()
    mine = replace(SERVICE, user="broker")
    do(plan_install(look(root), mine, by_package=True), root)
    assert (root / "usr/local/bpbroker/etc").stat().st_uid == 4321
    assert not calls(root)
    assert not list(root.rglob("*.service"))
    assert not list((root / "etc/init.d").iterdir())
    for file in ("usr/lib/systemd/system/bpbroker.service", "etc/init.d/bpbroker"):
        (root / file).write_text(f"# {PACKAGED}\n")
        with pytest.raises(StartError, match=r"(?s)is that of the package bpbroker \(.*--name NAME"):
            plan_install(look(root), SERVICE)
        plan_install(look(root), replace(SERVICE, name="second"))
        plan = plan_uninstall(look(root), SERVICE)
        assert "your package manager removes" in "\n".join(plan.notes)
        assert not plan.steps
        (root / file).unlink()
