"""What a disk may hold when the power goes: records the file operations of real programs, and replays their loss.

:func:`record` runs a program, and all that it starts, under ``strace``, and
:class:`Recording` has every operation in one folder: files made, written,
cut, renamed, removed, synced. :func:`states` then builds what the disk may hold
if the power goes just before a sync is over, or at the end.

The disk that is modelled promises no more than POSIX does, which is less than
ext4, XFS or btrfs keep with their usual options:

* What was synced is there: for a file its content and its size; for a folder the names in it. Syncing a file does not
  make its name durable, and syncing a folder not the content of what is named there.
* Of everything else any part may be missing, in any order: the second write without the first, a name without its
  content (the file is empty then), a rename or removal without what happened before it.
* A write that is missing leaves what was there before. Where it would have made the file longer, the file has its old
  size, or the new one with zeros in the gap.
* A write is torn only between blocks of 4,096 bytes of the file: what lies in one block is written wholly or not at
  all. SQLite and every journalling file system rely on as much for a sector.
* A rename is one operation: no state has both names or none of them, and what it replaced is there if it is not.
* Nothing changes that was not being written to.

``-shm`` files, which SQLite makes anew after a crash, lock files and logs are left out.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Final

_CALLS: Final = (
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,truncate,ftruncate,fallocate,copy_file_range,"
    "sendfile,splice,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,mkdir,mkdirat,"
    "fsync,fdatasync,sync,syncfs,sync_file_range,dup,dup2,dup3,clone,clone3,fork,vfork,sendto,sendmsg"
)
_NOT_MODELLED: Final = frozenset(
    {"fallocate", "copy_file_range", "sendfile", "splice", "sync", "syncfs", "sync_file_range"}
)
_LEFT_OUT: Final = ("-shm", ".log", ".lock")
_BLOCK: Final = 4096

Tree = Mapping[str, bytes | None]
"""What a folder holds: relative path to content, None for a folder."""


# --- recording ---


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes that were written to a file, all in one block."""

    node: int
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """A file that got another size."""

    node: int
    size: int


@dataclass(frozen=True, slots=True)
class Names:
    """Names that were made, changed or removed at once: folder, name, what it leads to now."""

    changes: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that the disk may have missed."""

    what: Data | Cut | Names
    end: int
    """Line of the trace where it was over."""
    text: str


@dataclass(frozen=True, slots=True)
class Sync:
    """A file or folder that was made durable."""

    node: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """What the recorded program says of itself: one line of JSON."""

    at: int
    value: Mapping[str, Any]


@dataclass
class Recording:
    """The operations on one folder, in the order in which they were over."""

    first: dict[int, bytes | None] = field(default_factory=dict)
    """Node to content, None for a folder: what there was before. Node 0 is the folder itself."""
    first_names: dict[tuple[int, str], int] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    end: int = 0


def record(command: Sequence[str], root: Path, trace: Path, **options: Any) -> tuple[Recording, int]:
    """Run a program to its end; return what it did in ``root`` and its exit code.

    The program, or one that it starts, may write notes, JSON objects one a line, to the file ``notes`` beside
    ``root``. A note with a ``port`` counts from the moment at which the last bytes were sent to that TCP port: so a
    client's note that it got an answer counts from the moment when the answer left the server.

    Args:
        command: what to run; it and its children use absolute paths.
        root: must be there.
        trace: where the trace is written.
        options: of :func:`subprocess.run`.
    """
    recorder = _Recorder(Path(os.path.realpath(root)))
    done = subprocess.run(
        [
            "strace", "-f", "-yy", "-xx", "-s", str(64 << 20), "--seccomp-bpf", "-qqq", "-e", "signal=none",
            "-e", f"trace={_CALLS}", "-o", str(trace), "--", *command,
        ],
        check=False, **options,
    )  # fmt: skip
    with trace.open(encoding="ascii") as lines:
        return recorder.read(lines), done.returncode


_LINE: Final = re.compile(r"(\d+) +(.*)\n?")
_CALL: Final = re.compile(r"(\w+)\((.*)\) += (-?\d+|\?)(.*)")
_RESUMED: Final = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_FD: Final = re.compile(r"(-?\d+|AT_FDCWD)<(.*)>(\(deleted\))?")
_TO_PORT: Final = re.compile(r"->.*:(\d+)\]>?")
_STRING: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@dataclass(slots=True)
class _Call:
    pid: int
    name: str
    arguments: list[str]
    result: int
    rest: str
    start: int
    end: int
    text: str


@dataclass(slots=True)
class _Position:
    """Of an open file, shared by all descriptors that were made from one."""

    offset: int = 0
    append: bool = False


class _Recorder:
    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._notes = str(root.with_name("notes"))
        self._recording = Recording()
        self._names: dict[tuple[int, str], int] = {}
        self._sizes: dict[int, int] = {0: 0}
        self._folders: set[int] = {0}
        self._next = 1
        self._open: dict[tuple[int, int], _Position] = {}
        self._group: dict[int, int] = {}
        self._sent: dict[str, int] = {}
        self._note_text = b""
        self._recording.first[0] = None
        self._take_over(root, 0)

    def _take_over(self, folder: Path, node: int) -> None:
        for path in sorted(folder.iterdir()):
            made = self._new(folder=path.is_dir())
            self._names[node, path.name] = self._recording.first_names[node, path.name] = made
            content = None if path.is_dir() else path.read_bytes()
            self._recording.first[made] = content
            self._sizes[made] = len(content or b"")
            if content is None:
                self._take_over(path, made)

    def read(self, lines: Iterator[str]) -> Recording:
        calls = list(_calls(lines))
        children = {call.result: call for call in calls if call.name in ("clone", "clone3", "fork", "vfork")}
        for call in calls:
            if call.pid not in self._group:
                self._enter(call.pid, children)
            self._take(call)
            self._recording.end = call.end + 1
        return self._recording

    def _enter(self, pid: int, children: Mapping[int, _Call]) -> None:
        """Let a new thread use its process's descriptors, a new process get a copy of its parent's."""
        made = children.get(pid)
        if made is None:
            self._group[pid] = pid
            return
        if made.pid not in self._group:
            self._enter(made.pid, children)
        parent = self._group[made.pid]
        thread = "CLONE_THREAD" in made.text
        self._group[pid] = parent if thread else pid
        if not thread:
            for (group, descriptor), position in list(self._open.items()):
                if group == parent:
                    self._open[pid, descriptor] = position

    # --- one call ---

    def _take(self, call: _Call) -> None:
        if call.result < 0:
            return
        take: Callable[[_Call], None] | None = getattr(self, f"_take_{call.name}", None)
        if take is not None:
            take(call)
        elif call.name in _NOT_MODELLED:
            ours = any(self._is_inside(self._path(argument)) for argument in call.arguments)
            if ours or call.name == "sync":
                raise NotImplementedError(call.text)

    def _take_openat(self, call: _Call) -> None:
        self._opened(call, self._at(call, 0), call.arguments[2])

    def _take_open(self, call: _Call) -> None:
        self._opened(call, self._absolute(call, 0), call.arguments[1])

    def _take_creat(self, call: _Call) -> None:
        self._opened(call, self._absolute(call, 0), "O_WRONLY|O_CREAT|O_TRUNC")

    def _opened(self, call: _Call, path: str, flags: str) -> None:
        if not self._is_inside(path):
            return
        node = self._node(path)
        self._open[self._group[call.pid], call.result] = _Position(append="O_APPEND" in flags)
        if node is None and "O_CREAT" in flags:
            node = self._new(folder=False)
            self._name(call, [(path, node)])
        elif node is not None and "O_TRUNC" in flags and self._sizes[node]:
            self._cut(call, node, 0)

    def _take_write(self, call: _Call) -> None:
        path = self._path(call.arguments[0])
        if path == self._notes:
            self._note(call, _text(call.arguments[1])[: call.result])
            return
        self._sequential(call, _text(call.arguments[1]))
        self._take_sendto(call)

    def _take_writev(self, call: _Call) -> None:
        self._sequential(call, b"".join(_bytes(text) for text, _ in _STRING.findall(call.text)))

    def _sequential(self, call: _Call, content: bytes) -> None:
        node = self._open_node(call)
        if node is not None:
            group, descriptor = self._group[call.pid], int(call.arguments[0].partition("<")[0])
            position = self._open[group, descriptor]
            if position.append:
                position.offset = self._sizes[node]
            self._write(call, node, position.offset, content[: call.result])
            position.offset += call.result

    def _take_pwrite64(self, call: _Call) -> None:
        node = self._open_node(call)
        if node is not None:
            self._write(call, node, int(call.arguments[3]), _text(call.arguments[1])[: call.result])

    def _take_pwritev(self, call: _Call) -> None:
        if self._open_node(call) is not None:
            raise NotImplementedError(call.text)

    _take_pwritev2 = _take_pwritev

    def _take_lseek(self, call: _Call) -> None:
        position = self._open.get((self._group[call.pid], int(call.arguments[0].partition("<")[0])))
        if position is not None and self._open_node(call) is not None:
            position.offset = call.result

    def _take_ftruncate(self, call: _Call) -> None:
        node = self._open_node(call)
        if node is not None and self._sizes[node] != int(call.arguments[1]):
            self._cut(call, node, int(call.arguments[1]))

    def _take_truncate(self, call: _Call) -> None:
        node = self._node(self._absolute(call, 0))
        if node is not None:
            self._cut(call, node, int(call.arguments[1]))

    def _take_fsync(self, call: _Call) -> None:
        node = self._open_node(call)
        if node is not None:
            self._recording.syncs.append(Sync(node, call.start, call.end, self._said(call)))

    _take_fdatasync = _take_fsync

    def _take_dup(self, call: _Call) -> None:
        group = self._group[call.pid]
        position = self._open.get((group, int(call.arguments[0].partition("<")[0])))
        if position is not None:
            self._open[group, call.result] = position

    _take_dup2 = _take_dup3 = _take_dup

    def _take_mkdir(self, call: _Call) -> None:
        self._make_folder(call, self._absolute(call, 0))

    def _take_mkdirat(self, call: _Call) -> None:
        self._make_folder(call, self._at(call, 0))

    def _make_folder(self, call: _Call, path: str) -> None:
        if self._is_inside(path):
            self._name(call, [(path, self._new(folder=True))])

    def _take_unlink(self, call: _Call) -> None:
        self._removed(call, self._absolute(call, 0))

    _take_rmdir = _take_unlink

    def _take_unlinkat(self, call: _Call) -> None:
        self._removed(call, self._at(call, 0))

    def _removed(self, call: _Call, path: str) -> None:
        if self._is_inside(path):
            self._name(call, [(path, None)])

    def _take_rename(self, call: _Call) -> None:
        self._renamed(call, self._absolute(call, 0), self._absolute(call, 1))

    def _take_renameat(self, call: _Call) -> None:
        self._renamed(call, self._at(call, 0), self._at(call, 2))

    def _take_renameat2(self, call: _Call) -> None:
        if "RENAME_EXCHANGE" in call.text:
            raise NotImplementedError(call.text)
        self._take_renameat(call)

    def _renamed(self, call: _Call, old: str, new: str) -> None:
        inside = self._is_inside(old), self._is_inside(new)
        if all(inside):
            self._name(call, [(old, None), (new, self._node(old))])
        elif any(inside):
            raise NotImplementedError(f"into the folder, or out of it: {call.text}")

    def _take_link(self, call: _Call) -> None:
        self._linked(call, self._absolute(call, 0), self._absolute(call, 1))

    def _take_linkat(self, call: _Call) -> None:
        self._linked(call, self._at(call, 0), self._at(call, 2))

    def _linked(self, call: _Call, old: str, new: str) -> None:
        if self._is_inside(new):
            self._name(call, [(new, self._node(old))])

    def _take_symlink(self, call: _Call) -> None:
        if self._is_inside(self._absolute(call, 1)):
            raise NotImplementedError(call.text)

    def _take_symlinkat(self, call: _Call) -> None:
        if self._is_inside(self._at(call, 1)):
            raise NotImplementedError(call.text)

    def _take_sendto(self, call: _Call) -> None:
        port = _TO_PORT.search(call.arguments[0])
        if port is not None:
            self._sent[port[1]] = call.start

    _take_sendmsg = _take_sendto

    # --- what became of it ---

    def _note(self, call: _Call, content: bytes) -> None:
        *whole, self._note_text = (self._note_text + content).split(b"\n")
        for line in whole:
            value = json.loads(line)
            self._recording.notes.append(Note(self._sent.get(str(value.get("port")), call.start), value))

    def _write(self, call: _Call, node: int, offset: int, content: bytes) -> None:
        at = offset
        while at < offset + len(content):
            upto = min(offset + len(content), (at // _BLOCK + 1) * _BLOCK)
            self._add(call, Data(node, at, content[at - offset : upto - offset]))
            at = upto
        self._sizes[node] = max(self._sizes[node], offset + len(content))

    def _cut(self, call: _Call, node: int, size: int) -> None:
        self._add(call, Cut(node, size))
        self._sizes[node] = size

    def _name(self, call: _Call, changes: list[tuple[str, int | None]]) -> None:
        done = []
        for path, node in changes:
            folder, name = os.path.split(path)
            parent = self._node(folder)
            if parent is None:
                raise LookupError(f"{folder} is not known: {call.text}")
            done.append((parent, name, node))
        for parent, name, node in done:
            if node is None:
                self._names.pop((parent, name), None)
            else:
                self._names[parent, name] = node
        self._add(call, Names(tuple(done)))

    def _add(self, call: _Call, what: Data | Cut | Names) -> None:
        self._recording.operations.append(Operation(what, call.end, self._said(call)))

    def _said(self, call: _Call) -> str:
        def shown(match: re.Match[str]) -> str:
            content = _bytes(match[0])
            return content.decode(errors="replace") if len(content) < 200 else f"{len(content)} bytes"

        return re.sub(r"(?:\\x[0-9a-f]{2})+", shown, call.text).replace(self._root, "")

    def _new(self, *, folder: bool) -> int:
        node, self._next = self._next, self._next + 1
        self._sizes[node] = 0
        if folder:
            self._folders.add(node)
            self._recording.first.setdefault(node, None)
        return node

    # --- paths ---

    def _is_inside(self, path: str) -> bool:
        return path.startswith(f"{self._root}/") and not path.endswith(_LEFT_OUT)

    def _node(self, path: str) -> int | None:
        if path == self._root:
            return 0
        if not self._is_inside(path):
            return None
        node: int | None = 0
        for name in path[len(self._root) + 1 :].split("/"):
            node = self._names.get((node, name)) if node is not None else None
        return node

    def _open_node(self, call: _Call) -> int | None:
        """Return the file or folder that a call's first argument is a descriptor of, if it has a name."""
        match = _FD.fullmatch(call.arguments[0])
        return None if match is None or match[3] else self._node(self._path(call.arguments[0]))

    def _path(self, argument: str) -> str:
        match = _FD.fullmatch(argument)
        return _bytes(match[2]).decode() if match is not None and match[2].startswith("\\x2f") else ""

    def _at(self, call: _Call, index: int) -> str:
        name = _text(call.arguments[index + 1]).decode()
        return os.path.normpath(Path(self._path(call.arguments[index])) / name)

    def _absolute(self, call: _Call, index: int) -> str:
        path = _text(call.arguments[index]).decode()
        if not path.startswith("/"):
            raise NotImplementedError(f"a relative path: {call.text}")
        return os.path.normpath(path)


def _calls(lines: Iterator[str]) -> Iterator[_Call]:
    """Yield the calls of a trace in the order in which they were over."""
    begun: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(lines):
        parts = _LINE.fullmatch(line)
        if parts is None:
            continue
        pid, text = parts[1], parts[2]
        start = number
        if text.endswith("<unfinished ...>"):
            begun[pid] = text.removesuffix("<unfinished ...>").rstrip(), number
            continue
        resumed = _RESUMED.fullmatch(text)
        if resumed is not None:
            text, start = begun.pop(pid, ("", number))
            text += resumed[1]
        call = _CALL.fullmatch(text)
        if call is not None:
            arguments = [argument.strip() for argument in call[2].split(", ")]
            result = -1 if call[3] == "?" else int(call[3])
            yield _Call(int(pid), call[1], arguments, result, call[4], start, number, text)


def _text(argument: str) -> bytes:
    match = _STRING.fullmatch(argument)
    if match is None or match[2]:
        raise ValueError(f"not a whole string: {argument[:100]}")
    return _bytes(match[1])


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


# --- replaying ---


@dataclass(frozen=True, slots=True)
class Crash:
    """One state that the disk may hold."""

    at: int
    """Line of the trace before which the power went: what was noted before it must hold."""
    tree: Tree
    before: str
    """The call that was under way."""
    lost: tuple[str, ...]
    """Calls that the disk has missed."""
    zeros: bool


def states(recording: Recording, seed: int, near: int, more: int) -> Iterator[Crash]:
    """Yield what the disk may hold when the power goes, by the syncs before which it goes.

    Every subset of the latest unsynced operations is lost, together with none and with all of those before them: what
    depends on each other is near. Of other subsets (each operation alone lost, each one alone there, all after each one
    lost, random ones) some.

    Args:
        recording: what was done.
        seed: of the choice.
        near: of how many of the latest operations every subset is lost.
        more: how many of the other subsets at each sync.
    """
    dice = random.Random(seed)  # noqa: S311 - not for secrets
    disk = _Disk(recording)
    operations = iter(recording.operations)
    following = next(operations, None)
    pending: list[tuple[int, Operation]] = []
    number = 0
    end = Sync(-1, recording.end, recording.end, "the end")
    for sync in sorted((*recording.syncs, end), key=lambda each: each.end):
        while following is not None and following.end < sync.end:
            pending.append((number, following))
            number += 1
            following = next(operations, None)
        for kept in _subsets(len(pending), dice, near, more):
            lost = tuple(operation.text for index, (_, operation) in enumerate(pending) if index not in kept)
            for zeros in (False, True) if lost else (False,):
                tree = disk.tree(pending, kept, zeros=zeros)
                yield Crash(sync.end, tree, sync.text, lost, zeros)
        still = []
        for each in pending:
            if _is_durable(each[1], sync):
                disk.apply(*each)
            else:
                still.append(each)
        pending = still


def kills(recording: Recording) -> Iterator[Crash]:
    """Yield what is there when the processes are killed behind each operation: all that was done up to then."""
    disk = _Disk(recording)
    for number, operation in enumerate(recording.operations):
        disk.apply(number, operation)
        tree = disk.tree([], frozenset(), zeros=False)
        yield Crash(operation.end + 1, tree, f"a kill behind {operation.text}", (), zeros=False)


def _is_durable(operation: Operation, sync: Sync) -> bool:
    what = operation.what
    if operation.end >= sync.start:
        return False
    if isinstance(what, Names):
        return any(folder == sync.node for folder, _, _ in what.changes)
    return what.node == sync.node


def _subsets(count: int, dice: random.Random, near: int, more: int) -> list[frozenset[int]]:
    """Return which of ``count`` operations the disk has got, for every state that is tried."""
    everything = range(count)
    whole = frozenset(everything)
    latest = everything[-near:]
    before = whole - set(latest)
    some = [frozenset(kept) for size in range(len(latest) + 1) for kept in combinations(latest, size)]
    always = [frozenset(), whole, *some, *(before | kept for kept in some)]
    alone = [frozenset({index}) for index in everything]
    upto = [frozenset(range(end)) for end in everything]
    wild = [frozenset(index for index in everything if dice.random() < odds) for odds in (0.1, 0.5, 0.9)]
    wild += [frozenset(index for index in everything if dice.random() < 0.5) for _ in everything]
    others = list(set(chain(alone, (whole - one for one in alone), upto, wild)) - set(always))
    others.sort(key=sorted)
    return [*dict.fromkeys(always), *dice.sample(others, min(len(others), more))]


class _Disk:
    """What is durable, and what it becomes with some of the rest."""

    def __init__(self, recording: Recording) -> None:
        self._content = {node: content or b"" for node, content in recording.first.items()}
        self._folders = {node for node, content in recording.first.items() if content is None}
        self._names: dict[tuple[int, str], tuple[int, int | None]] = {
            key: (-1, node) for key, node in recording.first_names.items()
        }

    def apply(self, number: int, operation: Operation) -> None:
        """Make an operation durable."""
        what = operation.what
        if isinstance(what, Names):
            self._rename(self._names, number, what)
        else:
            self._content[what.node] = _changed(self._content.get(what.node, b""), [(what, True)], zeros=False)

    def tree(self, pending: Sequence[tuple[int, Operation]], kept: frozenset[int], *, zeros: bool) -> Tree:
        """Return what is there with the ``kept`` ones of the pending operations."""
        names = dict(self._names)
        changes: dict[int, list[tuple[Data | Cut, bool]]] = defaultdict(list)
        for index, (number, operation) in enumerate(pending):
            what = operation.what
            if not isinstance(what, Names):
                changes[what.node].append((what, index in kept))
            elif index in kept:
                self._rename(names, number, what)
        content = {node: _changed(self._content.get(node, b""), done, zeros=zeros) for node, done in changes.items()}
        below: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for (folder, name), (_, node) in names.items():
            if node is not None:
                below[folder].append((name, node))
        tree: dict[str, bytes | None] = {}
        todo = [("", 0)]
        while todo:
            path, folder = todo.pop()
            for name, node in below[folder]:
                where = f"{path}{name}"
                if node in self._folders:
                    tree[where] = None
                    todo.append((f"{where}/", node))
                else:
                    tree[where] = content.get(node, self._content.get(node, b""))
        return tree

    @staticmethod
    def _rename(names: dict[tuple[int, str], tuple[int, int | None]], number: int, what: Names) -> None:
        for folder, name, node in what.changes:
            if names.get((folder, name), (-1, None))[0] <= number:
                names[folder, name] = (number, node)


def _changed(content: bytes, changes: Sequence[tuple[Data | Cut, bool]], *, zeros: bool) -> bytes:
    """Return a file's content after those of its changes that are kept."""
    changed = bytearray(content)
    for change, kept in changes:
        if isinstance(change, Cut):
            if kept:
                del changed[change.size :]
                changed.extend(bytes(change.size - len(changed)))
        elif kept or zeros:
            changed.extend(bytes(max(0, change.offset + (len(change.content)) - len(changed))))
            if kept:
                changed[change.offset : change.offset + len(change.content)] = change.content
    return bytes(changed)


def put(tree: Tree, root: Path) -> None:
    """Let a folder hold just this."""
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for name in sorted(tree):
        content = tree[name]
        if content is None:
            (root / name).mkdir(mode=0o755)
        else:
            (root / name).touch(0o600)
            (root / name).write_bytes(content)
