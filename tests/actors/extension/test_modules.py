"""Which modules and functions can be called, and what is said of those that cannot."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bpbroker.actors import extension
from bpbroker.errors import (
    Unauthorized,
)
from tests.support.extension import MODULE, Made, Make
from tests.support.systems import is_root

# --- what may be called ---


@pytest.mark.parametrize(
    "method",
    [
        "_Private",
        "__class__",
        "__import__",
        "system",
        "Class",
        "CONSTANT",
        "json",
        "nothing",
        "Later",
        "Many",
        "a.b",
        "",
        "É",
    ],
)
def test_only_functions_of_the_module_itself_are_methods(demo: Made, method: str) -> None:
    for _ in range(2):  # before the module is imported, and after
        with pytest.raises(Unauthorized, match=r"^Unauthorized method$"):
            demo.call(method)
        demo.call("Test")


@pytest.mark.parametrize(
    "namespace", ["os", "subprocess", "json", "bpbroker", "bpbroker.config", "a-b", "class", "..", "x/y", "É"]
)
def test_names_that_are_no_extensions(make: Make, namespace: str) -> None:
    made = make(namespace, source=None)
    (made.lib / "os.py").write_text(MODULE)
    made.reload()
    with pytest.raises(Unauthorized):
        made.call("Test")
    assert not made.health().ok


def test_a_module_of_a_package(make: Make) -> None:
    made = make("pkg.sub", "from . import other\n\ndef F(rh):\n    rh.data = __name__ + other.WORD\n")
    (made.lib / "pkg" / "other.py").write_text("WORD = '!'\n")
    assert made.call("F").body == b"pkg.sub!"
    whole = make("pkg", source=None)
    with pytest.raises(Unauthorized):
        whole.call("sub.F")


def test_a_package_wherever_else_its_name_exists(make: Make) -> None:
    assert (
        make("pytest", "def F(rh):\n    rh.data = __file__\n")
        .call("F")
        .body.replace(b"\\", b"/")
        .endswith(b"/lib/pytest.py")
    )


def test_the_lib_folder_shadows_nothing_of_python(make: Make) -> None:
    made = make("shadow", "import colorsys\nimport mine\n\ndef F(rh):\n    rh.data = colorsys.__file__ + mine.WORD\n")
    (made.lib / "colorsys.py").write_text("raise RuntimeError\n")
    (made.lib / "mine.py").write_text("WORD = '!'\n")
    assert b"/lib/colorsys.py" not in made.call("F").body.replace(b"/usr/lib", b"")


def test_decorated_functions_are_methods(make: Make) -> None:
    source = """
import functools
from decorators import loud
def Plain(rh):
    rh.data = "plain"
@loud
def Loud(rh):
    rh.data = "loud"
@functools.wraps(Plain)
def Wrapped(rh):
    rh.data = "wrapped"
"""
    made = make("decorated", source)
    (made.lib / "decorators.py").write_text(
        """
import functools
def loud(f):
    @functools.wraps(f)
    def g(rh):
        f(rh)
        rh.data += "!"
    return g
"""
    )
    assert made.call("Loud").body == b"loud!"
    assert made.call("Wrapped").body == b"wrapped"
    with pytest.raises(Unauthorized):
        made.call("loud")


# --- modules that cannot be used ---


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        (None, "there is no demo.py in the lib folder"),
        ("def F(rh:\n", "it does not parse: '(' was never closed, line 1"),
        ("import nothing_of_this_name\ndef F(rh): pass\n", "ModuleNotFoundError of nothing_of_this_name, line 1"),
        ("def F(rh): pass\n\nraise ValueError('canary-7391')\n", "it cannot be imported: ValueError, line 3"),
        ("def F(rh): pass\nimport sys\nsys.exit(0)\n", "it cannot be imported: SystemExit, line 3"),
        (
            "def F(rh): pass\nimport os\nos._exit(0)\n",
            "it cannot be imported: importing it ended its process (exit code 0)",
        ),
        ("def F(rh): pass\nimport os\nos.kill(os.getpid(), 11)\n", "ended its process (signal SIGSEGV)"),
        ("def F(rh): pass\nfrom . import x\n", "ImportError"),
    ],
)
def test_a_module_that_cannot_be_used(
    make: Make, source: str | None, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = make("demo", source)
    for _ in range(3):
        with pytest.raises(Unauthorized, match=r"^Unauthorized method$"):
            made.call("F")
    pong = made.health()
    assert not pong.ok
    assert detail in pong.detail
    assert "canary" not in pong.detail
    assert sum(detail in each.message for each in caplog.records) == 1
    assert ("canary" in caplog.text) == ("canary" in (source or ""))


def test_a_failed_import_is_tried_again_after_a_while(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "RETRY_IMPORT_SECS", 0.0)
    made = make(
        "demo", "from pathlib import Path\nif not Path(__file__ + '.ok').exists(): raise OSError\ndef F(rh): pass\n"
    )
    with pytest.raises(Unauthorized):
        made.call("F")
    (made.lib / "demo.py.ok").touch()
    assert made.call("F").status == 200
    assert made.health().ok


def test_a_user_that_does_not_exist(make: Make) -> None:
    made = make(_user="nobody-of-this-name")
    with pytest.raises(Unauthorized):
        made.call("Test")
    assert ("another user" if os.name == "nt" else "there is no user nobody-of-this-name") in made.health().detail


@pytest.fixture
def python_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have children run by an interpreter that every user may execute; the tests' own may lie in root's home."""
    if not is_root():
        pytest.skip("only root can become another user")
    for candidate in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable):
        command = [candidate, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        with contextlib.suppress(PermissionError):
            if subprocess.run(command, user="nobody", check=False).returncode == 0:
                monkeypatch.setattr(sys, "executable", candidate)
                return
    pytest.skip("there is no Python 3.11 or newer that another user may execute")


@pytest.mark.usefixtures("python_of_all")
def test_another_user(make: Make, tmp_path: Path) -> None:
    top = next(parent for parent in tmp_path.parents if parent.name.startswith("pytest-of-"))
    for folder in (tmp_path, *list(tmp_path.parents)):
        if folder.is_relative_to(top):
            folder.chmod(0o755)
    source = "import os\ndef Who(rh):\n    rh.data = [os.getuid(), os.getgid(), os.environ['HOME'], os.getgroups()]\n"
    made = make("who", source, _user="nobody")
    import pwd

    found = pwd.getpwnam("nobody")
    uid, gid, home, groups = made.body("Who")
    assert (uid, gid, home) == (found.pw_uid, found.pw_gid, found.pw_dir)
    assert set(groups) <= {gid}


@pytest.mark.usefixtures("python_of_all")
@pytest.mark.parametrize("closed", ["above", "lib", "file"])
def test_what_another_user_may_not_read_is_named(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, closed: str
) -> None:
    top = next(parent for parent in tmp_path.parents if parent.name.startswith("pytest-of-"))
    for folder in (tmp_path, *list(tmp_path.parents)):
        if folder.is_relative_to(top):
            folder.chmod(0o755)
    made = make("who", "def Who(rh):\n    rh.data = 1\n", _user="nobody")
    path = {"above": made.lib.parent, "lib": made.lib, "file": made.lib / "who.py"}[closed]
    before = path.stat().st_mode
    path.chmod(0o600 if closed == "file" else 0o700)
    try:
        with pytest.raises(Unauthorized):
            made.call("Who")
        assert "may not read" in made.health().detail
        assert str(path) not in made.health().detail
        assert f"chmod o+rX {path}" in caplog.text
    finally:
        path.chmod(before)
