"""What Windows does otherwise: job objects, access control lists, locks, console events, waiting for many sockets.

Only the standard library: kernel32 and its likes by ctypes. The functions are
for Windows alone; what is pure (:func:`strangers`, :func:`how_ended`) works
everywhere and is tested everywhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from typing import Final

# --- pure ---

SYSTEM_SIDS: Final = frozenset({"SY", "BA", "S-1-5-18", "S-1-5-32-544"})
"""SYSTEM and the group Administrators, as security descriptors write them: they reach every file anyway."""

_ENTRY: Final = re.compile(r"\(([^;()]*);([^;()]*);[^;()]*;[^;()]*;[^;()]*;([^;()]+)\)")

_STATUS: Final = {
    0xC0000005: "access violation",
    0xC000001D: "illegal instruction",
    0xC0000094: "division by zero",
    0xC00000FD: "stack overflow",
    0xC0000142: "a DLL could not be initialised",
    0xC0000409: "fail fast",
    0xC000013A: "Ctrl-C",
    0xC0000374: "heap corruption",
}


def strangers(descriptor: str, owners: Collection[str]) -> tuple[str, ...]:
    """Return whom a security descriptor lets in beside its owners, SYSTEM and Administrators.

    Args:
        descriptor: in SDDL, Microsoft's text form: ``D:P(A;;FA;;;SY)(A;;FR;;;BU)``.
        owners: security identifiers that may.

    Returns:
        The identifiers as they stand there, such as ``BU`` or ``S-1-1-0``; ``WD`` (everybody) where there is no list.
    """
    _, found, listed = descriptor.partition("D:")
    if not found or listed.startswith("NO_ACCESS_CONTROL"):
        return ("WD",)
    listed = listed.partition("S:")[0] if "(" not in listed else listed
    allowed = {*SYSTEM_SIDS, *owners, "OW"}
    met = [
        who
        for kind, flags, who in _ENTRY.findall(listed)
        if kind.startswith(("A", "XA")) and not kind.startswith("AU") and "IO" not in flags
    ]
    return tuple(dict.fromkeys(who for who in met if who not in allowed))


def how_ended(code: int) -> str:
    """Say how a process of Windows ended: ``exit code 7``, ``exit code 0xC0000005, access violation``."""
    unsigned = code & 0xFFFFFFFF
    if unsigned < 0xC0000000:
        return f"exit code {code}"
    known = _STATUS.get(unsigned)
    return f"exit code 0x{unsigned:08X}" + (f", {known}" if known else "")


# --- Windows itself ---

if sys.platform == "win32":
    import ctypes
    import errno
    import functools
    import hashlib
    import msvcrt
    import os
    import selectors
    import time
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import contextmanager
    from ctypes import wintypes
    from pathlib import Path
    from typing import Any

    _HANDLE: Final = wintypes.HANDLE
    _kernel32: Final = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel32.CreateJobObjectW.restype = _HANDLE
    _kernel32.CreateMutexW.restype = _HANDLE
    _kernel32.OpenProcess.restype = _HANDLE
    _kernel32.CreateFileW.restype = _HANDLE
    _kernel32.GetCurrentProcess.restype = _HANDLE
    _INVALID: Final = _HANDLE(-1).value

    def _failed(path: object = None) -> OSError:
        number = ctypes.get_last_error()
        return OSError(None, ctypes.FormatError(number).strip(), None if path is None else str(path), number)

    # --- who this is ---

    @functools.cache
    def is_administrator() -> bool:
        """Whether this process has the rights of an administrator, not only its user."""
        return bool(ctypes.windll.shell32.IsUserAnAdmin())

    @functools.cache
    def own_sid() -> str:
        """Return the security identifier of this process's user.

        Raises:
            OSError: the system does not say.
        """
        advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)
        token = _HANDLE()
        if not advapi32.OpenProcessToken(_HANDLE(_kernel32.GetCurrentProcess()), 0x0008, ctypes.byref(token)):
            raise _failed()
        try:
            size = wintypes.DWORD()
            advapi32.GetTokenInformation(token, 1, None, 0, ctypes.byref(size))
            buffer = ctypes.create_string_buffer(size.value)
            if not advapi32.GetTokenInformation(token, 1, buffer, size, ctypes.byref(size)):
                raise _failed()
            sid = ctypes.c_void_p.from_buffer(buffer)
            text = wintypes.LPWSTR()
            if not advapi32.ConvertSidToStringSidW(sid, ctypes.byref(text)):
                raise _failed()
            found = str(text.value)
            _free(text)
            return found
        finally:
            _kernel32.CloseHandle(token)

    def _free(memory: object) -> None:
        _kernel32.LocalFree(ctypes.cast(memory, ctypes.c_void_p))  # type: ignore[arg-type]  # a pointer of any kind

    # --- access control lists ---

    class _SecurityAttributes(ctypes.Structure):
        _fields_ = (("length", wintypes.DWORD), ("descriptor", ctypes.c_void_p), ("inherit", wintypes.BOOL))

    def _private(*, folder: bool, right: str = "FA") -> str:
        inherited = "OICI" if folder else ""
        return "D:P" + "".join(f"(A;{inherited};{right};;;{who})" for who in dict.fromkeys((own_sid(), "BA", "SY")))

    @contextmanager
    def _descriptor(text: str) -> Iterator[ctypes.c_void_p]:
        advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)
        made = ctypes.c_void_p()
        if not advapi32.ConvertStringSecurityDescriptorToSecurityDescriptorW(text, 1, ctypes.byref(made), None):
            raise _failed()
        try:
            yield made
        finally:
            _free(made)

    def create_private(path: str | os.PathLike[str], flags: int) -> int:
        """Create a file that only its owner, Administrators and SYSTEM can open, and return its descriptor.

        Its list is there before the file has a name, so that no other can open it first.

        Raises:
            FileExistsError: there is one.
            OSError: it cannot be made.
        """
        access = 0x80000000 if not flags & (os.O_WRONLY | os.O_RDWR) else 0x40000000
        if flags & os.O_RDWR:
            access = 0xC0000000
        with _descriptor(_private(folder=False)) as descriptor:
            attributes = _SecurityAttributes(ctypes.sizeof(_SecurityAttributes), descriptor, False)
            handle = _kernel32.CreateFileW(
                os.fspath(path), access, 0x3, ctypes.byref(attributes), 1, 0x80, None
            )  # shared for reading and writing, CREATE_NEW
            if handle in (None, _INVALID):
                raise _failed(path)
        try:
            return msvcrt.open_osfhandle(handle, flags & (os.O_APPEND | os.O_RDONLY) | os.O_NOINHERIT)
        except BaseException:  # interrupted, too, the handle is closed
            _kernel32.CloseHandle(_HANDLE(handle))
            raise

    def make_private(path: str | os.PathLike[str], *, folder: bool = False) -> None:
        """Let only its owner, Administrators and SYSTEM into a file or folder that is there.

        Raises:
            OSError: this user may not say that.
        """
        advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)
        with _descriptor(_private(folder=folder)) as descriptor:
            # the list, and that it takes nothing from the folder above
            if not advapi32.SetFileSecurityW(os.fspath(path), 0x80000004, descriptor):
                raise _failed(path)

    def who_may(path: str | os.PathLike[str]) -> tuple[str, ...]:
        """Return who can open a file beside this user, its owner, SYSTEM and Administrators; see :func:`strangers`.

        Raises:
            OSError: this user may not know.
        """
        advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)
        descriptor, owner = ctypes.c_void_p(), ctypes.c_void_p()
        code = advapi32.GetNamedSecurityInfoW(
            os.fspath(path), 1, 0x5, ctypes.byref(owner), None, None, None, ctypes.byref(descriptor)
        )
        if code:
            raise OSError(None, ctypes.FormatError(code).strip(), str(path), code)
        try:
            text = wintypes.LPWSTR()
            if not advapi32.ConvertSecurityDescriptorToStringSecurityDescriptorW(
                descriptor, 1, 0x5, ctypes.byref(text), None
            ):
                raise _failed(path)
            said = str(text.value)
            _free(text)
            who = wintypes.LPWSTR()
            owners = {own_sid()}
            if advapi32.ConvertSidToStringSidW(owner, ctypes.byref(who)):
                owners.add(str(who.value))
                _free(who)
            found = re.match(r"O:(S-[\d-]+|[A-Z]{2})", said)
            if found:
                owners.add(found[1])
        finally:
            _free(descriptor)
        return strangers(said, owners)

    def may_add_to(folder: str | os.PathLike[str]) -> bool:
        """Whether this process may make files in a folder; asked of the system, as nothing else tells there."""
        handle = _kernel32.CreateFileW(os.fspath(folder), 0x2, 0x7, None, 3, 0x02000000, None)
        # FILE_ADD_FILE, shared with all, OPEN_EXISTING, a folder
        if handle in (None, _INVALID):
            return False
        _kernel32.CloseHandle(_HANDLE(handle))
        return True

    # --- locks ---

    class _Overlapped(ctypes.Structure):
        _fields_ = (
            ("internal", ctypes.c_void_p),
            ("internal_high", ctypes.c_void_p),
            ("offset", wintypes.DWORD),
            ("offset_high", wintypes.DWORD),
            ("event", _HANDLE),
        )

    def try_lock(descriptor: int, offset: int, *, alone: bool) -> bool:
        """Lock one byte of an open file without waiting, alone or beside others who only look; False if it is taken.

        The lock goes when the file is closed or the process ends.
        """
        where = _Overlapped(offset=offset)
        flags = 0x3 if alone else 0x1  # LOCKFILE_FAIL_IMMEDIATELY, LOCKFILE_EXCLUSIVE_LOCK
        handle = _HANDLE(msvcrt.get_osfhandle(descriptor))
        return bool(_kernel32.LockFileEx(handle, flags, 0, 1, 0, ctypes.byref(where)))

    class Mutex:
        """A lock of a name that processes share; the system takes it from one that dies.

        It belongs to the thread that acquired it. Its user, Administrators and SYSTEM may use it: by default an
        administrator's command could not have that of a service.
        """

        def __init__(self, name: str) -> None:
            with _descriptor(_private(folder=False, right="GA")) as descriptor:
                attributes = _SecurityAttributes(ctypes.sizeof(_SecurityAttributes), descriptor, False)
                self._handle = _HANDLE(_kernel32.CreateMutexW(ctypes.byref(attributes), False, name))
            if not self._handle.value:
                raise _failed()

        def acquire(self, timeout_secs: float | None = None) -> bool:
            """Take it; False when it is not to be had in that time. None waits for ever."""
            wait = 0xFFFFFFFF if timeout_secs is None else int(timeout_secs * 1000)
            return _kernel32.WaitForSingleObject(self._handle, wait) in (0, 0x80)  # 0x80: its holder has died

        def release(self) -> None:
            """Let go of it once."""
            _kernel32.ReleaseMutex(self._handle)

        def close(self) -> None:
            """Forget it; the others keep it."""
            _kernel32.CloseHandle(self._handle)

    def folder_mutex(folder: Path) -> Mutex:
        """Return the lock that stands for a folder, whatever path leads there."""
        real = os.path.normcase(os.path.realpath(folder))
        return Mutex(f"Global\\bpbroker-{hashlib.sha256(real.encode(errors='surrogatepass')).hexdigest()[:32]}")

    # --- processes ---

    def started(pid: int) -> int | None:
        """Return when a process was started, in 100 ns since 1601; 0 when there is none, None when it is not told."""
        handle = _kernel32.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return 0 if ctypes.get_last_error() == 87 else None  # ERROR_INVALID_PARAMETER
        try:
            times = [wintypes.FILETIME() for _ in range(4)]
            if not _kernel32.GetProcessTimes(_HANDLE(handle), *map(ctypes.byref, times)):
                return None
            code = wintypes.DWORD()
            if _kernel32.GetExitCodeProcess(_HANDLE(handle), ctypes.byref(code)) and code.value != 259:  # STILL_ACTIVE
                return 0  # it has ended, and another process still holds it
            return int(times[0].dwHighDateTime) << 32 | int(times[0].dwLowDateTime)
        finally:
            _kernel32.CloseHandle(_HANDLE(handle))

    class _BasicLimits(ctypes.Structure):
        _fields_ = (
            ("process_time", ctypes.c_int64),
            ("job_time", ctypes.c_int64),
            ("flags", wintypes.DWORD),
            ("working_set_min", ctypes.c_size_t),
            ("working_set_max", ctypes.c_size_t),
            ("processes", wintypes.DWORD),
            ("affinity", ctypes.c_size_t),
            ("priority", wintypes.DWORD),
            ("scheduling", wintypes.DWORD),
        )

    class _Limits(ctypes.Structure):
        _fields_ = (
            ("basic", _BasicLimits),
            ("io", ctypes.c_uint64 * 6),
            ("process_memory", ctypes.c_size_t),
            ("job_memory", ctypes.c_size_t),
            ("process_peak", ctypes.c_size_t),
            ("job_peak", ctypes.c_size_t),
        )

    SUSPENDED: Final = 0x4
    """Flag of a new process: it waits for :func:`resume` before its first instruction."""

    def resume(process_handle: int) -> None:
        """Let a process that was started :data:`SUSPENDED` run.

        Raises:
            OSError: the system does not allow it.
        """
        status = ctypes.WinDLL("ntdll").NtResumeProcess(_HANDLE(process_handle))
        if status < 0:
            raise OSError(errno.EINVAL, f"the process cannot be resumed: status 0x{status & 0xFFFFFFFF:08X}")

    class Job:
        """A job object: all that a process starts belongs to it, and ends with it.

        It ends when it is closed, by this process or by the system after this process's death.

        Args:
            memory_max_bytes: what each process in it may commit.

        Raises:
            OSError: the system makes none.
        """

        def __init__(self, memory_max_bytes: int | None = None) -> None:
            self._handle = _HANDLE(_kernel32.CreateJobObjectW(None, None))
            if not self._handle.value:
                raise _failed()
            limits = _Limits()
            # KILL_ON_JOB_CLOSE; DIE_ON_UNHANDLED_EXCEPTION: no window asks a service's screen what to do
            limits.basic.flags = 0x2000 | 0x400
            if memory_max_bytes is not None:
                limits.basic.flags |= 0x100
                limits.process_memory = memory_max_bytes
            try:
                self._limit(limits)
            except OSError:
                self.close()
                raise

        def _limit(self, limits: _Limits) -> None:
            if not _kernel32.SetInformationJobObject(self._handle, 9, ctypes.byref(limits), ctypes.sizeof(limits)):
                raise _failed()

        def take(self, process_handle: int) -> None:
            """Take in a process that was started :data:`SUSPENDED`, and let it run.

            It has to be suspended, because processes that it starts before stay outside: the ``python.exe`` of a
            virtual environment only starts another one.

            Raises:
                OSError: the system does not allow it.
            """
            if not _kernel32.AssignProcessToJobObject(self._handle, _HANDLE(process_handle)):
                raise _failed()
            resume(process_handle)

        def let_go(self) -> None:
            """Close it, and let what still runs in it go on.

            Raises:
                OSError: the system does not allow it; nothing has changed.
            """
            self._limit(_Limits())
            self.close()

        def kill(self) -> None:
            """End all processes in it, now."""
            _kernel32.TerminateJobObject(self._handle, 1)

        def close(self) -> None:
            """Close the job: all processes in it end. A second call does nothing."""
            if self._handle.value:
                _kernel32.CloseHandle(self._handle)
                self._handle = _HANDLE()

    # --- the console ---

    _Handler: Final = ctypes.WINFUNCTYPE(wintypes.BOOL, wintypes.DWORD)
    _CLOSING: Final = (2, 6)
    """The window is closed; the system shuts down. Not 5: services get that for every user that logs off."""

    def on_closing(stop: Callable[[], None]) -> Callable[[], None]:
        """Call ``stop`` when the console is closed or the system shuts down; return a function that undoes this.

        The system ends the process as soon as its handler returns, or some seconds later. So the handler does not.
        """

        def told(event: int) -> bool:
            if event not in _CLOSING:
                return False
            stop()
            while True:
                time.sleep(1)

        handler = _Handler(told)
        _kernel32.SetConsoleCtrlHandler(handler, True)

        def undo() -> None:
            _kernel32.SetConsoleCtrlHandler(handler, False)

        return undo

    def press_break(group: int) -> bool:
        """Send Ctrl-Break to the processes of a group; return whether there was a way to.

        There is none without a console, as in a service. Not by ``os.kill``, which then ends the process instead.
        """
        return bool(_kernel32.GenerateConsoleCtrlEvent(1, group))

    def paints(descriptor: int) -> bool:
        """Enable the sequences of a console that move the cursor and set colours; return False where it has none."""
        handle = _HANDLE(msvcrt.get_osfhandle(descriptor))
        mode = wintypes.DWORD()
        if not _kernel32.GetConsoleMode(handle, ctypes.byref(mode)):
            return False
        return bool(_kernel32.SetConsoleMode(handle, mode.value | 0x4))  # ENABLE_VIRTUAL_TERMINAL_PROCESSING

    # --- waiting for sockets ---

    class PollSelector(selectors.BaseSelector):
        """A selector for as many sockets as there may be, by ``WSAPoll``; ``select`` there takes 512.

        The table of sockets is kept between the calls; who is ready is found in it by the regular expression engine,
        as a loop in Python would cost more than the requests.
        """

        _SOCKET: Final = ctypes.sizeof(ctypes.c_void_p)
        _ROW: Final = 16 if _SOCKET == 8 else 8
        """Bytes of a WSAPOLLFD: the socket, what to wait for 2, what is there 2, on 64 bits nothing 4."""
        _READ: Final = 0x0100
        _WRITE: Final = 0x0010

        def __init__(self) -> None:
            self._poll = ctypes.WinDLL("ws2_32", use_last_error=True).WSAPoll
            self._keys: dict[int, selectors.SelectorKey] = {}
            self._rows: dict[int, int] = {}
            self._sockets: list[int] = []
            self._table = bytearray()

        def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            """See :meth:`selectors.BaseSelector.register`."""
            number = fileobj if isinstance(fileobj, int) else int(fileobj.fileno())
            if number < 0:
                raise ValueError(f"Invalid file descriptor: {number}")
            if number in self._keys:
                raise KeyError(f"{fileobj!r} (FD {number}) is already registered")
            self._keys[number] = key = selectors.SelectorKey(fileobj, number, events, data)
            self._rows[number] = len(self._sockets)
            self._sockets.append(number)
            self._table += self._row(number, events)
            return key

        def unregister(self, fileobj: Any) -> selectors.SelectorKey:
            """See :meth:`selectors.BaseSelector.unregister`."""
            number = self._number(fileobj)
            key = self._keys.pop(number)
            row, last = self._rows.pop(number), self._sockets.pop()
            moved = self._table[-self._ROW :]
            del self._table[-self._ROW :]
            if last != number:
                self._sockets[row], self._rows[last] = last, row
                self._table[row * self._ROW : (row + 1) * self._ROW] = moved
            return key

        def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            """See :meth:`selectors.BaseSelector.modify`."""
            number = self._number(fileobj)
            key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
            row = self._rows[number]
            self._table[row * self._ROW : (row + 1) * self._ROW] = self._row(number, events)
            return key

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """See :meth:`selectors.BaseSelector.select`; a broken socket counts as ready."""
            if not self._sockets:
                time.sleep(timeout or 0)
                return []
            wait = -1 if timeout is None else max(0, -int(-timeout * 1000))
            table = (ctypes.c_char * len(self._table)).from_buffer(self._table)
            count = self._poll(table, len(self._sockets), wait)
            seen = bytes(self._table) if count > 0 else b""
            del table  # it holds the bytearray's size
            if count < 0:
                number = ctypes.get_last_error()
                raise OSError(errno.EBADF, ctypes.FormatError(number).strip(), None, number)
            found = {
                match.start()
                for part in (seen[self._SOCKET + 2 :: self._ROW], seen[self._SOCKET + 3 :: self._ROW])
                for match in _READY.finditer(part)
            }
            return [self._ready(row, seen) for row in sorted(found)]

        def _ready(self, row: int, seen: bytes) -> tuple[selectors.SelectorKey, int]:
            key = self._keys[self._sockets[row]]
            at = row * self._ROW + self._SOCKET + 2
            there = int.from_bytes(seen[at : at + 2], "little")
            events = 0
            if there & ~self._WRITE:
                events |= selectors.EVENT_READ
            if there & ~self._READ:
                events |= selectors.EVENT_WRITE
            return key, events & key.events or key.events

        def _row(self, number: int, events: int) -> bytes:
            wanted = (self._READ if events & selectors.EVENT_READ else 0) | (
                self._WRITE if events & selectors.EVENT_WRITE else 0
            )
            return (number.to_bytes(self._SOCKET, "little") + wanted.to_bytes(2, "little")).ljust(self._ROW, b"\0")

        def _number(self, fileobj: Any) -> int:
            if isinstance(fileobj, int):
                return fileobj
            number = int(fileobj.fileno())
            if number >= 0:
                return number
            for key in self._keys.values():  # it was closed before
                if key.fileobj is fileobj:
                    return key.fd
            raise KeyError(f"{fileobj!r} is not registered")

        def close(self) -> None:
            """See :meth:`selectors.BaseSelector.close`."""
            self._keys.clear()
            self._rows.clear()
            self._sockets.clear()
            self._table.clear()

        def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
            """See :meth:`selectors.BaseSelector.get_map`; by descriptor."""
            return self._keys

    _READY: Final = re.compile(rb"[^\0]")
