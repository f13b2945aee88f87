"""Control groups: where ours is, whether it was given to us, and that nothing gets out of one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpbroker.extensions import cgroups
from bpbroker.extensions.cgroups import Groups, Tree, kill_one_by_one, own_folder
from tests.support.cgroup import control_group
from tests.support.extension import gone
from tests.support.running import RunningBroker
from tests.support.systems import posix_only
from tests.support.witness import eventually

pytestmark = posix_only("control groups")

MOUNT = "35 30 0:30 {root} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
HYBRID = "31 30 0:26 / /sys/fs/cgroup/pids rw shared:5 - cgroup cgroup rw,pids\n"


@pytest.mark.parametrize(
    ("groups", "mounts", "expected"),
    [
        ("0::/a.slice/b.service\n", MOUNT.format(root="/", point="/sys/fs/cgroup"), ("/a.slice/b.service", False)),
        ("9:pids:/x\n0::/b\n", HYBRID + MOUNT.format(root="/", point="/sys/fs/cgroup"), ("/b", False)),
        ("0::/\n", MOUNT.format(root="/", point="/sys/fs/cgroup"), ("", True)),  # a container's own
        ("0::/docker/1\n", MOUNT.format(root="/docker/1", point="/sys/fs/cgroup"), ("", True)),
        ("0::/docker/1/b\n", MOUNT.format(root="/docker/1", point="/sys/fs/cgroup"), ("/b", False)),
        ("0::/docker/12\n", MOUNT.format(root="/docker/1", point="/sys/fs/cgroup"), None),
        ("0::/../x\n", MOUNT.format(root="/", point="/sys/fs/cgroup"), None),
        ("0::/b (deleted)\n", MOUNT.format(root="/", point="/sys/fs/cgroup"), None),
        ("9:pids:/x\n", HYBRID, None),
        ("0::/b\n", HYBRID, None),
        ("", "", None),
    ],
)
def test_the_folder_of_ones_own_group(groups: str, mounts: str, expected: tuple[str, bool] | None) -> None:
    found = own_folder(groups, mounts)
    assert found == (None if expected is None else (Path(f"/sys/fs/cgroup{expected[0]}"), expected[1]))


def test_a_mount_point_with_blanks() -> None:
    found = own_folder("0::/b\n", MOUNT.format(root="/", point=r"/srv/my\040groups\134x"))
    assert found == (Path(r"/srv/my groups\x/b"), False)


@pytest.mark.parametrize(
    ("name", "marked", "parent_writable", "given"),
    [
        ("own", False, True, True),
        ("bpbroker.service", False, True, False),  # root could, but systemd would not know
        ("bpbroker.service", True, True, True),
        ("bpbroker.service", False, False, True),  # the only one that is ours to write
        ("session-1.scope", False, True, False),
    ],
)
def test_only_what_was_given_is_used(
    tmp_path: Path, name: str, marked: bool, parent_writable: bool, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file in ("cgroup.type", "cgroup.procs"):
        (folder / file).touch()
    if marked:
        monkeypatch.setattr(os, "getxattr", lambda path, key: {(folder, "user.delegate"): b"1"}[path, key])
    real = cgroups._writable
    monkeypatch.setattr(cgroups, "_writable", lambda path: parent_writable if path == tmp_path else real(path))
    assert cgroups._is_given(folder, topmost=False) == given


def test_the_root_of_all_groups_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()  # it has no type
    assert not cgroups._is_given(tmp_path, topmost=True)


# --- with the real hierarchy ---

RUN = """
import os, sys
while line := sys.stdin.readline().strip():
    if line == "leave":  # twice forked, in a session of its own, and of nobody's family
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print(os.getpid(), flush=True)
                os.execvp("sleep", ["sleep", "300"])
            os._exit(0)
        os.wait()
    elif line == "end":
        os._exit(0)
"""


class Root:
    """A process that starts others and may end before them."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def leave(self) -> int:
        self.say("leave")
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Path]:
    with control_group(tmp_path) as folder:
        yield folder


@pytest.fixture
def root() -> Iterator[Root]:
    started = Root()
    yield started
    started.process.kill()
    started.process.communicate()


def extensions(group: Path) -> list[str]:
    return sorted(each.name for each in group.iterdir() if each.is_dir())


@pytest.mark.system
@pytest.mark.parametrize("old_kernel", [False, True], ids=["at once", "one by one"])
def test_everything_in_a_group_is_killed_even_without_its_root(group: Path, root: Root, old_kernel: bool) -> None:
    groups = Groups(group)
    tree = Tree(groups, "demo", root.pid)
    tree.begin()
    away = root.leave()
    root.say("end")
    root.process.wait()
    os.kill(away, 0)
    if old_kernel:
        kill_one_by_one(group / extensions(group)[0])
    else:
        tree.kill()
    assert gone(away)
    tree.close()
    assert extensions(group) == []


@pytest.mark.system
def test_what_an_earlier_call_has_left_is_not_this_calls(group: Path, root: Root) -> None:
    groups = Groups(group)
    tree = Tree(groups, "demo", root.pid)
    first = extensions(group)
    tree.begin()
    assert extensions(group) == first  # it was alone: nothing is moved
    before = root.leave()
    tree.begin()
    assert len(extensions(group)) == 2
    this = root.leave()
    tree.kill()
    assert gone(this)
    assert root.process.wait(30) == -9
    os.kill(before, 0)
    tree.close()
    assert extensions(group) == first  # something lives in it
    os.kill(before, 9)
    assert gone(before)

    def tidied() -> bool:
        groups.tidy()
        return extensions(group) == []

    eventually(tidied)


@pytest.mark.system
def test_a_broker_is_a_leaf_and_removes_what_dead_brokers_left(group: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (f"bpbroker-{ended.pid}", f"extension-a.b-{ended.pid}-3", f"bpbroker-{os.getpid()}", "other"):
        (group / name).mkdir()
    # It goes in, as a service manager or a container has it go in, and is a broker for a moment.
    code = (
        "import pathlib, sys; from bpbroker.extensions.cgroups import Groups; top = pathlib.Path(sys.argv[1]);"
        "(top / 'cgroup.procs').write_text('0'); groups = Groups.enter();"
        "print(pathlib.Path('/proc/self/cgroup').read_text().split('/')[-1]); groups.leave();"
        "print((top / 'cgroup.procs').read_text())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(group)], stdout=subprocess.PIPE, text=True, check=True)
    inside, after = done.stdout.split()
    assert inside == f"bpbroker-{after}"
    assert extensions(group) == [f"bpbroker-{os.getpid()}", "other"]


ESCAPE = """
import ctypes, os, subprocess, sys, time

AWAY = (
    "import subprocess; null = subprocess.DEVNULL;"
    "print(subprocess.Popen(['sleep', '300'], stdout=null, stderr=null, start_new_session=True).pid)"
)


def Hang(rh):
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)  # no subreaper any more: nothing shows whose child it was
    done = subprocess.run([sys.executable, "-c", AWAY], stdout=subprocess.PIPE, start_new_session=True)
    with open(rh.qs["data"], "w") as file:
        file.write(done.stdout.decode())
    time.sleep(300)


def Ping(rh):
    rh.data = "here"
"""


def test_a_call_past_its_limit_leaves_nothing_that_left_the_family(
    group: Path, make_broker: Callable[..., RunningBroker], tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    broker = make_broker({"away": {"_timeout_secs": 5}})
    (broker.lib / "away.py").write_text(ESCAPE)
    broker.prefix = ("sh", "-c", f'echo 0 >{group}/cgroup.procs; exec "$@"', "sh")
    broker.start()
    assert broker.request("/away/Ping/").status == 200
    first = extensions(group)
    assert [name.rpartition("-")[0] for name in first] == ["bpbroker", f"extension-away-{broker.pid}"]
    assert broker.request(f"/away/Hang/?data={note}").status == 504
    assert gone(int(note.read_text()))
    assert broker.request("/away/Ping/").status == 200
    broker.stop()
    assert extensions(group) == []
