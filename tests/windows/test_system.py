"""What Windows does otherwise, on Windows: locks, lists of who may, jobs, many sockets, files that others hold open."""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "win32", reason="it is about Windows")

if sys.platform == "win32":
    from bpbroker import files, windows
    from bpbroker.client.pins import KnownBrokers
    from bpbroker.config import paths, schema
    from bpbroker.extensions import child_process
    from bpbroker.runtime import log_files, logs
    from bpbroker.server import host_certificate
    from bpbroker.storage import lock_file, offline
    from bpbroker.storage.embedded.journal import Mark, journal_path, read_journal
    from tests.support import heartbeat, own_logging
    from tests.support.systems import is_wine

    def until(true: Callable[[], bool], secs: float = 20.0) -> None:
        end = time.monotonic() + secs
        while not true():
            assert time.monotonic() < end
            time.sleep(0.02)

    def python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    # --- sockets ---

    def test_more_sockets_than_select_takes_are_waited_for() -> None:
        selector = windows.PollSelector()
        pairs = [socket.socketpair() for _ in range(600)]
        try:
            for number, (mine, _) in enumerate(pairs):
                selector.register(mine, selectors.EVENT_READ, number)
            assert selector.select(0) == []
            for number in (0, 511, 512, 599):
                pairs[number][1].send(b"x")
            assert {key.data for key, _ in selector.select(1)} == {0, 511, 512, 599}
            for number in (0, 300, 599):  # the last one takes the free row
                selector.unregister(pairs[number][0])
            assert {key.data for key, _ in selector.select(1)} == {511, 512}
            selector.modify(pairs[100][0], selectors.EVENT_WRITE, "writes")
            assert ("writes", selectors.EVENT_WRITE) in {(key.data, events) for key, events in selector.select(1)}
            pairs[200][1].close()
            assert 200 in {key.data for key, _ in selector.select(1)}
        finally:
            for pair in pairs:
                for end in pair:
                    end.close()
            selector.close()

    # --- who may ---

    def test_private_files_are_for_their_owner_alone(tmp_path: Path) -> None:
        path = tmp_path / "secret"
        files.write_whole(path, [b"new"])
        assert windows.who_may(path) == ()
        files.write_whole(path, [b"again"])
        assert (path.read_bytes(), windows.who_may(path)) == (b"again", ())
        files.write_whole(path, [b"open"], mode=0o644)
        assert files.open_to_others(path) == bool(windows.who_may(tmp_path))

    def test_a_file_that_was_open_is_closed_to_others(tmp_path: Path) -> None:
        path = tmp_path / "a.json.lock"
        path.touch()
        subprocess.run(["icacls", str(path), "/grant", "*S-1-1-0:R"], check=False, capture_output=True)
        os.close(files.open_private(path, os.O_RDWR | os.O_CREAT, tighten=True))
        assert windows.who_may(path) == ()

    def test_a_private_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
        folder = tmp_path / "backups"
        files.make_folder(folder)
        assert windows.who_may(folder) == ()

    def test_a_new_pair_has_a_key_for_nobody_else(tmp_path: Path) -> None:
        cert, key = tmp_path / "a.crt", tmp_path / "a.key"
        host_certificate.ensure_pair(cert, key)
        assert not host_certificate.is_open(key)

    # --- locks ---

    def test_who_looks_is_not_taken_for_a_broker(tmp_path: Path) -> None:
        own = tmp_path / "a.json"
        with lock_file.FileLock(own):
            pass
        first = os.open(lock_file.lock_path(own), os.O_RDWR)
        try:
            assert lock_file._try_lock(first, alone=False)
            assert lock_file.holder(own) is None
        finally:
            os.close(first)

    def test_the_note_of_a_broker_that_died_is_not_the_next_ones(tmp_path: Path) -> None:
        own = tmp_path / "a.json"
        code = (
            "import sys, time; from pathlib import Path; from bpbroker.storage.lock_file import FileLock\n"
            "FileLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)"
        )
        dead = python(code, str(own))
        assert dead.stdout is not None
        assert dead.stdout.readline().strip() == b"held"
        assert (lock_file.holder(own) or {})["pid"] == dead.pid
        dead.kill()
        dead.communicate()
        descriptor = os.open(lock_file.lock_path(own), os.O_RDWR)
        try:
            until(lambda: lock_file._try_lock(descriptor, alone=True))
            assert lock_file.holder(own) == {}
        finally:
            os.close(descriptor)

    def test_many_processes_pin_at_once(tmp_path: Path) -> None:
        code = (
            "import sys; from bpbroker.client.pins import KnownBrokers\n"
            "for n in range(15): KnownBrokers(sys.argv[1]).check(f'10.0.{sys.argv[2]}.{n}:1', f'{n:064x}')"
        )
        known = tmp_path / "known_brokers"
        everyone = [python(code, str(known), str(number)) for number in range(6)]
        assert [each.wait(120) for each in everyone] == [0] * 6
        for each in everyone:
            each.communicate()
        pins = KnownBrokers(known)
        assert all(pins.known(f"10.0.{who}.{n}:1", f"{n:064x}") for who in range(6) for n in range(15))

    def test_one_at_a_time_changes_a_folder(tmp_path: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from bpbroker.files import alone_in\n"
            "with alone_in(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
        )
        other = python(code, str(tmp_path))
        assert other.stdout is not None
        assert other.stdout.readline().strip() == b"in"
        mutex = windows.folder_mutex(tmp_path)
        assert not mutex.acquire(0)
        other.communicate(b"")
        with files.alone_in(tmp_path):
            pass
        mutex.close()

    def test_an_administrators_command_may_use_a_services_mutex() -> None:
        mutex = windows.Mutex(f"Global\\bpbroker-test-{os.getpid()}")
        advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)
        descriptor, text = ctypes.c_void_p(), ctypes.c_wchar_p()
        kernel_object, its_list = 6, 4
        code = advapi32.GetSecurityInfo(
            mutex._handle, kernel_object, its_list, None, None, None, None, ctypes.byref(descriptor)
        )
        assert code == 0
        assert advapi32.ConvertSecurityDescriptorToStringSecurityDescriptorW(
            descriptor, 1, its_list, ctypes.byref(text), None
        )
        mutex.close()
        assert text.value is not None
        assert windows.strangers(text.value, {windows.own_sid()}) == ()
        assert ";;;BA)" in text.value
        assert ";;;SY)" in text.value

    # --- processes ---

    def test_a_job_ends_what_was_started_in_it(tmp_path: Path) -> None:
        beat = tmp_path / "beat"
        code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]])"
        words = [sys.executable, "-c", code, heartbeat.CODE, str(beat)]
        child = subprocess.Popen(words, creationflags=windows.SUSPENDED)
        job = windows.Job(64 << 20)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(1)  # what it starts before it is in the job would be outside
        job.take(int(child._handle))
        child.wait(20)
        assert heartbeat.goes_on(beat)  # its parent is gone
        job.close()
        assert heartbeat.ends(beat)

    def test_an_extensions_process_starts_nothing_before_it_is_in_its_job(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As with the python.exe of a virtual environment, which does nothing but start another one."""
        beat = tmp_path / "beat"
        (tmp_path / "demo.py").write_text("def A(rh):\n    pass\n")
        words = f"[sys.executable, '-c', {heartbeat.CODE!r}, {str(beat)!r}]"
        starts = f"import subprocess, sys; subprocess.Popen({words})\n"
        monkeypatch.setattr(child_process, "_BOOT", starts + child_process._BOOT)
        take = windows.Job.take

        def late(job: windows.Job, process_handle: int) -> None:
            time.sleep(2)
            take(job, process_handle)

        monkeypatch.setattr(windows.Job, "take", late)
        made = child_process.Child(child_process.Launch("demo", tmp_path))
        try:
            assert made.start() == ("A",)
            assert heartbeat.goes_on(beat)
        finally:
            made.kill()
            made.end()
        assert heartbeat.ends(beat)

    def test_a_job_is_told_its_limit_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[tuple[int, int, int]] = []

        class Kernel:
            def __getattr__(self, name: str) -> object:
                return getattr(kernel, name)

            def SetInformationJobObject(self, job: Any, kind: int, limits: Any, size: int) -> int:  # noqa: N802 - its own
                told.append((kind, limits._obj.basic.flags, limits._obj.process_memory))
                return int(kernel.SetInformationJobObject(job, kind, limits, size))

        kernel = windows._kernel32
        monkeypatch.setattr(windows, "_kernel32", Kernel())
        windows.Job(123 << 20).close()
        windows.Job().close()
        # KILL_ON_JOB_CLOSE, DIE_ON_UNHANDLED_EXCEPTION, PROCESS_MEMORY
        assert told == [(9, 0x2500, 123 << 20), (9, 0x2400, 0)]

    @pytest.mark.skipif(is_wine(), reason="Wine does not tell a job's limits")
    def test_the_system_knows_a_jobs_limit_of_memory() -> None:
        job = windows.Job(123 << 20)
        limits = windows._Limits()
        asked = windows._kernel32.QueryInformationJobObject(
            job._handle, 9, ctypes.byref(limits), ctypes.sizeof(limits), None
        )
        assert asked, ctypes.get_last_error()
        assert (limits.basic.flags & 0x2500, limits.process_memory) == (0x2500, 123 << 20)
        job.close()

    def test_a_closed_window_asks_for_the_end_and_holds_the_process_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
        handlers: list[Callable[[int], bool]] = []

        class Kernel:
            @staticmethod
            def SetConsoleCtrlHandler(handler: Callable[[int], bool], add: bool) -> bool:  # noqa: N802 - Windows' name
                handlers.append(handler) if add else handlers.remove(handler)
                return True

        monkeypatch.setattr(windows, "_kernel32", Kernel)
        asked = threading.Event()
        undo = windows.on_closing(asked.set)
        for event in (0, 1, 5):  # Ctrl-C and Ctrl-Break are Python's; a user logs off
            assert not handlers[0](event)
        assert not asked.is_set()
        closing = threading.Thread(target=handlers[0], args=(2,), daemon=True)
        closing.start()
        assert asked.wait(20)
        closing.join(0.2)
        assert closing.is_alive()  # when it returns, the system ends the process
        undo()
        assert handlers == []

    def test_when_a_process_was_started_is_known() -> None:
        assert windows.started(os.getpid())
        assert windows.started(os.getpid()) == windows.started(os.getpid())
        assert windows.started(0x7FFFFFF0) == 0

    # --- files that others hold open ---

    def test_a_full_log_is_rotated_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(log_files, "FILE_MAX_BYTES", 2000)
        path = tmp_path / "x.log"
        log = logging.getLogger("bpbroker.test")
        with own_logging.restored():
            logs.setup_logging(logs.LogOptions(file=path))
            for number in range(60):
                log.info("line %03d %s", number, "x" * 60)
            assert (tmp_path / "x.log.1").exists()
            with path.open():  # as a reader that is still there: it cannot be moved now
                for number in range(60, 100):
                    log.info("line %03d %s", number, "x" * 60)
            assert "line 099" in path.read_text()

    def test_a_file_that_is_open_for_a_moment_is_replaced(tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_text("old")
        other = python("import sys, time; f = open(sys.argv[1]); print(1, flush=True); time.sleep(1)", str(path))
        assert other.stdout is not None
        other.stdout.readline()
        files.write_whole(path, [b"new"])
        other.communicate()
        assert path.read_text() == "new"

    def test_a_mark_that_is_held_open_lets_the_next_start_go_on(tmp_path: Path) -> None:
        own = tmp_path / "a.json"
        journal = journal_path(own)
        Mark(journal).block()
        with (tmp_path / "a.json.journal-mark").open("rb"):
            offline._put(own, {"api": {}}, {}, offline._origin_left(own))
        assert read_journal(journal).changes == {}

    # --- whose home ---

    def test_a_plain_user_has_a_home_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        environ = {"ProgramFiles": str(tmp_path / "programs"), "LOCALAPPDATA": str(tmp_path / "local")}
        system, own = tmp_path / "programs" / "bpbroker", tmp_path / "local" / "bpbroker"
        assert paths.find_home(environ) == paths.Home(system)  # an administrator's
        monkeypatch.setattr(windows, "is_administrator", lambda: False)
        assert paths.find_home(environ) == paths.Home(own)
        (system / "etc").mkdir(parents=True)  # an administrator installed the service
        assert paths.find_home(environ) == paths.Home(system)
        may = {tmp_path: False}
        monkeypatch.setattr(windows, "may_add_to", lambda folder: may.get(Path(folder), Path(folder) != system / "etc"))
        assert paths.find_home(environ) == paths.Home(own, passed_over=system)
        assert paths.find_home(environ, for_file=True) == paths.Home(system)

    def test_whether_one_may_write_is_asked_of_the_system(tmp_path: Path) -> None:
        assert windows.may_add_to(tmp_path)
        assert not windows.may_add_to(tmp_path / "nowhere")

    # --- settings ---

    def test_a_user_is_refused_with_the_reason() -> None:
        assert any("password" in problem for problem in schema.problems({"demo": {"_user": "me"}}))
