"""What root finds and does in folders that other users may write to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from bpbroker import foreign_folders


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="it is about root")
def test_what_others_may_write_to_is_found(tmp_path: Path) -> None:
    lib = tmp_path / "home" / "lib"
    lib.mkdir(parents=True)
    module = lib / "m.py"
    module.touch(0o644)
    assert foreign_folders.exposed(module) is None
    module.chmod(0o666)
    assert foreign_folders.exposed(module) == module
    module.chmod(0o644)
    os.chown(lib, 1234, 0)
    assert foreign_folders.exposed(module) == lib
    assert foreign_folders.exposed(module, (0, 1234)) is None
    lib.parent.chmod(0o777)
    assert foreign_folders.exposed(module, (0, 1234)) == lib.parent
    lib.parent.chmod(0o1777)
    assert foreign_folders.exposed(module, (0, 1234)) is None


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="it is about root")
def test_who_can_change_a_link_on_the_way_can_change_what_it_leads_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    real, links, more = (tmp_path / name for name in ("real", "links", "more"))
    for folder in (real, links, more):
        folder.mkdir(0o755)
    (real / "python").touch(0o755)
    (more / "python").symlink_to("../real/python")
    (links / "python").symlink_to(more / "python")  # as that of a virtual environment
    (links / "folder").symlink_to(more)
    for path in (links / "python", links / "folder" / "python"):
        assert foreign_folders.exposed(path) is None
        for folder in (links, more, real):
            folder.chmod(0o777)
            assert foreign_folders.exposed(path) == folder
            folder.chmod(0o755)
        os.lchown(more / "python", 1234, 1234)
        assert foreign_folders.exposed(path) is not None  # who owns a link in a sticky folder can put another one there
        os.lchown(more / "python", 0, 0)
    (links / "round").symlink_to("round")
    foreign_folders.exposed(links / "round")  # ends


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="it is about root")
def test_a_folder_is_opened_through_links_of_roots_alone(tmp_path: Path) -> None:
    real, link, theirs = tmp_path / "real", tmp_path / "link", tmp_path / "theirs"
    for folder in (real, theirs):
        folder.mkdir()
    link.symlink_to("real")
    (theirs / "link").symlink_to(real)
    os.chown(theirs, 1234, 1234)
    assert foreign_folders.permit_folder(link / "sub", 0o750, (1234, 1234))
    assert (real / "sub").stat().st_uid == 1234
    assert not foreign_folders.permit_folder(link / "sub", 0o750, (1234, 1234))
    for path in (theirs / "link", theirs / "link" / "sub"):
        with pytest.raises(OSError, match="another user"):
            foreign_folders.permit_folder(path, 0o700, (1234, 1234))
        assert stat.S_IMODE(real.stat().st_mode) != 0o700
