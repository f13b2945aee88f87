"""What is found out about a system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bpbroker.errors import ConfigurationError
from bpbroker.service.machine import is_ours, look, within
from bpbroker.service.templates import MARK
from tests.support.systems import posix_only


@posix_only("services of Linux")
def test_a_link_never_leads_out_of_the_tree(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc" / "rc.d" / "init.d").mkdir(parents=True)
    (root / "etc" / "init.d").symlink_to("/etc/rc.d/init.d")
    (root / "relative").symlink_to("etc/rc.d")
    (root / "above").symlink_to("../../../etc")
    assert within(root, "/etc/init.d/x") == root / "etc/rc.d/init.d/x"
    assert within(root, "relative/init.d") == root / "etc/rc.d/init.d"
    assert within(root, "above/rc.d") == root / "etc/rc.d"
    assert within(root, "../../x") == root / "x"
    assert within(Path("/"), "/no/such/../thing") == Path("/no/thing")


@posix_only("services of Linux")
def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ConfigurationError, match="too many symbolic links"):
        within(tmp_path, "a/x")


@posix_only("services of Linux")
def test_both_families_and_systemd_are_told_apart(make_tree: Callable[..., Path]) -> None:
    debian = look(make_tree("update-rc.d"))
    assert debian.tools == {"update-rc.d"}
    assert not debian.systemd
    assert debian.init_folder == debian.root / "etc/init.d"
    assert debian.users == {"root", "broker"}
    assert debian.command("update-rc.d", "x") == ("chroot", str(debian.root), "update-rc.d", "x")
    root = make_tree("chkconfig", "systemctl", folders=("etc/rc.d/init.d", "usr/lib/systemd"))
    (root / "usr/lib/systemd/systemd").touch()
    red_hat = look(root)
    assert red_hat.tools == {"update-rc.d", "chkconfig", "systemctl"}
    assert red_hat.systemd


def test_an_empty_tree_has_nothing(tmp_path: Path) -> None:
    machine = look(tmp_path)
    assert (machine.tools, machine.systemd, machine.init_folder, machine.users) == (
        frozenset(),
        False,
        None,
        frozenset(),
    )


def test_ours_is_what_has_the_mark(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(f"# {MARK}\n")
    (tmp_path / "b").write_text("# something else\n")
    assert is_ours(tmp_path / "a")
    assert not is_ours(tmp_path / "b")
    assert not is_ours(tmp_path / "c")
