"""Installing extension modules."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bpbroker.errors import ConfigurationError, NotFound, UsageError
from bpbroker.extensions import installing
from bpbroker.extensions.installing import install, uninstall
from tests.support.systems import posix_only

SOURCE = "def Hello(rh):\n    pass\n\ndef _hidden(rh):\n    pass\n"


@pytest.fixture
def lib(tmp_path: Path) -> Path:
    return tmp_path / "home" / "lib"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    return work


def script(work: Path, name: str = "hello.py", source: str | bytes = SOURCE) -> Path:
    path = work / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_a_module(work: Path, lib: Path) -> None:
    path = script(work)
    path.chmod(0o600)
    installed = install(path, lib)
    assert (installed.namespace, installed.path, installed.kept) == ("hello", lib / "hello.py", None)
    assert [(record.namespace, record.methods) for record in installed.modules] == [("hello", ("Hello",))]
    assert content(lib) == {"hello.py": SOURCE.encode()}
    if os.name == "posix":
        assert (lib / "hello.py").stat().st_mode & 0o777 == 0o644
        assert (lib / "hello.py").stat().st_uid == os.geteuid()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_module_that_powershell_wrote_becomes_one_that_python_reads(work: Path, lib: Path, encoding: str) -> None:
    path = script(work, source=f"\ufeff{SOURCE}# \u017e\n".encode(encoding))
    assert install(path, lib).changed
    assert content(lib) == {"hello.py": f"{SOURCE}# \u017e\n".encode()}
    assert not install(path, lib).changed
    with pytest.raises(UsageError, match="nothing was installed"):
        install(script(work, source=b"\xff\xfea"), lib)


def test_one_older_version_is_kept(work: Path, lib: Path) -> None:
    for number in range(3):
        installed = install(script(work, source=f"{SOURCE}# {number}\n"), lib)
    assert installed.kept == lib / "hello.py.old"
    assert content(lib) == {"hello.py": f"{SOURCE}# 2\n".encode(), "hello.py.old": f"{SOURCE}# 1\n".encode()}


def test_the_same_again_changes_nothing(work: Path, lib: Path) -> None:
    """Else the version before would be lost to a copy of the present one."""
    script(work, "pkg/__init__.py", "")
    for number in range(2):
        script(work, "pkg/one.py", f"{SOURCE}# {number}\n")
        for path in (script(work, source=f"{SOURCE}# {number}\n"), work / "pkg"):
            assert install(path, lib).changed
    before = content(lib)
    for path in (work / "hello.py", work / "pkg"):
        again = install(path, lib)
        assert (again.changed, again.kept) == (False, None)
        assert [record.methods for record in again.modules] == [("Hello",)]
    assert content(lib) == before
    script(lib, "pkg/more.py")
    assert install(work / "pkg", lib).changed
    assert (lib / "pkg.old" / "more.py").exists()


def test_a_package(work: Path, lib: Path) -> None:
    script(work, "pkg/__init__.py", "")
    script(work, "pkg/one.py")
    script(work, "pkg/deep/two.py")
    script(work, "pkg/data.txt", "x")
    script(work, "pkg/.git/config", "x")
    script(work, "pkg/__pycache__/one.pyc", "x")
    installed = install(work / "pkg", lib)
    assert [record.namespace for record in installed.modules] == ["pkg.deep.two", "pkg.one"]
    assert sorted(content(lib)) == ["pkg/__init__.py", "pkg/data.txt", "pkg/deep/two.py", "pkg/one.py"]
    assert os.name != "posix" or all(
        path.stat().st_mode & 0o777 == 0o755 for path in (lib / "pkg", lib / "pkg" / "deep")
    )
    script(work, "pkg/one.py", "def Other(rh): pass\n")
    again = install(work / "pkg", lib)
    assert again.kept == lib / "pkg.old"
    assert (lib / "pkg.old" / "one.py").read_text() == SOURCE


def test_a_module_takes_the_place_of_a_package_of_its_name(work: Path, lib: Path) -> None:
    script(work, "pkg/__init__.py")
    install(work / "pkg", lib)
    installed = install(script(work, "pkg.py", "def New(rh): pass\n"), lib)
    assert installed.modules[0].methods == ("New",)
    assert installed.kept == lib / "pkg.old"
    assert not (lib / "pkg").exists()


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("hello.txt", SOURCE, "must end in .py"),
        ("hello", SOURCE, "must end in .py"),
        ("json.py", SOURCE, "standard library"),
        ("os.py", SOURCE, "standard library"),
        ("bpbroker.py", SOURCE, "the broker's own"),
        ("services.py", SOURCE, "the broker's own"),
        ("worker.py", SOURCE, "the broker's own"),
        ("he-llo.py", SOURCE, "no name of a Python module"),
        ("_hello.py", SOURCE, "no name of a Python module"),
        ("1st.py", SOURCE, "no name of a Python module"),
        ("class.py", SOURCE, "Python's own"),
        ("a.b.py", SOURCE, "with its package's folder"),
        ("old.py", "print 'hello'\n", "line 1: .*Extensions are Python 3"),
        ("half.py", "def Hello(rh:\n", "line 1"),
        ("null.py", b"x = 1\0\n", "null"),
        ("bytes.py", b"x = '\xff'\n", "nothing was installed"),
        ("deep.py", "(" * 5000 + ")" * 5000, "nothing was installed"),
    ],
)
def test_what_is_refused(work: Path, lib: Path, name: str, source: str | bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        install(script(work, name, source), lib)
    assert not lib.exists()


@posix_only("pipes that have a name")
def test_nothing_special_is_installed(work: Path, lib: Path) -> None:
    os.mkfifo(work / "pipe.py")
    with pytest.raises(UsageError, match="no regular file"):
        install(work / "pipe.py", lib)
    with pytest.raises(UsageError, match="There is no"):
        install(work / "nothing.py", lib)
    (work / "empty").mkdir()
    with pytest.raises(UsageError, match="no Python module"):
        install(work / "empty", lib)
    assert not lib.exists()


@posix_only("links without an administrator's right")
def test_links_out_of_the_folder_are_refused(work: Path, lib: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.py"
    secret.write_text("KEY = 'canary-7391'\n")
    (work / "hello.py").symlink_to(secret)
    with pytest.raises(UsageError, match="link out of its folder"):
        install(work / "hello.py", lib)
    script(work, "pkg/__init__.py")
    (work / "pkg" / "data.py").symlink_to(secret)
    with pytest.raises(UsageError, match="link out of the folder"):
        install(work / "pkg", lib)
    (work / "pkg" / "data.py").unlink()
    (work / "pkg" / "more").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="link"):
        install(work / "pkg", lib)
    assert not lib.exists()


@posix_only("links without an administrator's right")
def test_a_link_inside_the_folder_becomes_a_file(work: Path, lib: Path) -> None:
    script(work, "real.py")
    (work / "hello.py").symlink_to("real.py")
    install(work / "hello.py", lib)
    assert not (lib / "hello.py").is_symlink()
    assert content(lib) == {"hello.py": SOURCE.encode()}


def test_a_link_in_the_lib_folder_is_replaced_and_not_followed(work: Path, lib: Path, tmp_path: Path) -> None:
    lib.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text("# untouched\n")
    (lib / "hello.py").symlink_to(elsewhere)
    install(script(work), lib)
    assert not (lib / "hello.py").is_symlink()
    assert elsewhere.read_text() == "# untouched\n"


def test_a_package_with_one_bad_file_is_not_installed_in_part(work: Path, lib: Path) -> None:
    script(work, "pkg/__init__.py")
    install(work / "pkg", lib)
    before = content(lib)
    script(work, "pkg/__init__.py", "def New(rh): pass\n")
    script(work, "pkg/zz.py", "no python")
    with pytest.raises(UsageError, match=r"zz\.py, line 1"):
        install(work / "pkg", lib)
    assert content(lib) == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_copy_that_fails_changes_nothing(work: Path, lib: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    script(work, "pkg/__init__.py")
    script(work, "pkg/one.py")
    install(work / "pkg", lib)
    before = content(lib)
    script(work, "pkg/one.py", "def New(rh): pass\n")
    real = os.replace
    calls = 0

    def fail(*arguments: Any, **more: Any) -> None:
        nonlocal calls
        if call == "fsync" or Path(arguments[-1]) == lib / "pkg":
            calls += 1
            if call == "fsync" or calls == 1:  # then the older version is put back
                raise OSError(28, "No space left on device")
        real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(ConfigurationError, match="No space left"):
            install(work / "pkg", lib)
    assert calls
    assert content(lib) == before


def test_a_package_of_endless_size_is_refused(work: Path, lib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "FILES_MAX", 3)
    for number in range(4):
        script(work, f"pkg/m{number}.py")
    with pytest.raises(UsageError, match="too large"):
        install(work / "pkg", lib)


def test_uninstall(work: Path, lib: Path) -> None:
    for number in range(2):
        install(script(work, source=f"{SOURCE}# {number}\n"), lib)
    script(work, "pkg/__init__.py")
    install(work / "pkg", lib)
    assert uninstall("hello", lib) == (lib / "hello.py", lib / "hello.py.old")
    assert uninstall("pkg", lib) == (lib / "pkg",)
    assert content(lib) == {}
    for name in ("hello", "", "..", "../etc", "/etc/passwd", "a/b"):
        with pytest.raises(NotFound, match="has no extension"):
            uninstall(name, lib)
    with pytest.raises(UsageError, match="uninstall pkg"):
        uninstall("pkg.one", lib)


def test_a_package_whose_change_was_cut_off_gets_its_name_back(work: Path, lib: Path) -> None:
    script(work, "pkg/__init__.py")
    install(work / "pkg", lib)
    before = content(lib)
    (lib / "pkg").rename(lib / "pkg.old")
    installing.heal(lib)
    assert content(lib) == before
    # A module took the package's place: the older version stays where it is.
    (lib / "pkg").rename(lib / "pkg.old")
    (lib / "pkg.py").write_text(SOURCE)
    installing.heal(lib)
    assert (lib / "pkg.old").is_dir()
    installing.heal(lib / "not there")
