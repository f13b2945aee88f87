"""Putting extension modules into the lib folder, and taking them out again, never half."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bpbroker.errors import ConfigurationError, NotFound, UsageError
from bpbroker.extensions.modules import ExtensionRecord, look_at, name_problem, offered, read_source
from bpbroker.files import alone_in, make_folder, process_owner, rename, sync_folder, temporary_name, write_whole
from bpbroker.text import decode

FILES_MAX: Final = 1000
BYTES_MAX: Final = 64 * 1024 * 1024
_PIECE_BYTES: Final = 1024 * 1024
_KEPT: Final = ".old"


@dataclass(frozen=True, slots=True)
class Installed:
    """What was installed."""

    namespace: str
    path: Path
    """The module, or the package's folder, in the lib folder."""
    changed: bool
    """False when the very same was there already; then nothing was done."""
    modules: tuple[ExtensionRecord, ...]
    """The namespaces that it brings, with their methods; a section of that name enables one."""
    kept: Path | None
    """Where the version that was there before is now."""


Check = Callable[[Path, list[ExtensionRecord]], None]
"""Function of a folder and the modules in it that may be installed. Raises UsageError when they shall not be."""


def install(script: Path, lib: Path, check: Check | None = None, *, force: bool = False) -> Installed:
    """Copy a module or a package's folder into the lib folder, as one step, replacing an older version of it.

    Args:
        script: the module, or the package's folder.
        lib: the lib folder.
        check: called with a finished copy before it takes its place.
        force: whether modules that do not parse are installed as well.

    Raises:
        UsageError: it is nothing that can be an extension; the message says why, nothing was changed.
        ConfigurationError: the lib folder cannot be written, nothing was changed.
    """
    script = Path(os.path.normpath(script.absolute()))
    if script.is_symlink() and not script.resolve().is_relative_to(script.parent.resolve()):
        raise UsageError(f"{script} is a link out of its folder; name the file itself: {script.resolve()}")
    if not script.exists():
        raise UsageError(f"There is no {script}")
    package = script.is_dir()
    if not package and script.suffix != ".py":
        raise UsageError(f"{script.name} is no Python module: its name must end in .py")
    namespace = script.name if package else script.stem
    if package and not (script / "__init__.py").exists() and not any(script.glob("*.py")):
        raise UsageError(f"{script} has no Python module in it")
    problem = name_problem(namespace)
    if "." in namespace:
        problem = "a module of a package is installed with its package's folder"
    if problem:
        raise UsageError(f"{script.name} cannot be installed: {problem}")
    files = list(_checked(script, force)) if package else [_checked_file(script, force)]
    there = lib / f"{namespace}{'' if package else '.py'}"
    if _is_same(script, files, there):
        if check is not None:
            check(lib, list(_brought(namespace, files, lib)))
        # Installed again, say with --enable: the older version that is kept must not be lost to a copy of this one.
        with suppress(OSError):
            sync_folder(lib)  # the one that installed it may have been killed before this
        return Installed(namespace, there, False, tuple(_brought(namespace, files, lib)), None)

    def see(folder: Path) -> None:
        if check is not None:
            check(folder, list(_brought(namespace, files, folder)))

    try:
        path, kept = _put(script, files, lib, f"{namespace}{'' if package else '.py'}", see)
    except OSError as error:
        raise ConfigurationError(
            f"{script.name} was not installed: {error.filename or lib}: {error.strerror or error}"
        ) from None
    return Installed(namespace, path, True, tuple(_brought(namespace, files, lib)), kept)


def uninstall(namespace: str, lib: Path) -> tuple[Path, ...]:
    """Remove a module or package from the lib folder, with the older version that was kept; return what is gone.

    Raises:
        UsageError: it is a module of a package.
        NotFound: it is not there.
        ConfigurationError: it cannot be removed.
    """
    problem = name_problem(namespace)
    if "." in namespace and not problem:
        raise UsageError(f"{namespace} is part of a package; uninstall {namespace.partition('.')[0]}")
    names = () if problem else (namespace, f"{namespace}.py")
    there = [lib / name for name in names if os.path.lexists(lib / name)]
    if not there:
        raise NotFound(f"{lib} has no extension {namespace}")
    there += [kept for path in there if os.path.lexists(kept := _kept(path))]
    for path in reversed(there):  # the older versions first: one that is left alone would get its name back
        try:
            _remove(path)
            sync_folder(lib)
        except OSError as error:
            raise ConfigurationError(f"{path} was not removed: {error.strerror}") from None
    return tuple(there)


# --- for backups ---


def collect(lib: Path, wanted: Collection[str] | None, bytes_max: int) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Read the modules and packages in the lib folder.

    Args:
        lib: the lib folder; need not be there.
        wanted: names of those that count; all with None.
        bytes_max: how large all of them together may be.

    Returns:
        Path in the folder, with ``/``, to content; and those that were left out, each with the reason.
    """
    found: dict[str, bytes] = {}
    left_out = []
    for name in sorted(_names(lib)):
        path = lib / name
        namespace = name.removesuffix(".py")
        if name_problem(namespace) or (wanted is not None and namespace not in wanted):
            continue
        try:
            files = [path / file for file in _checked(path, True)] if path.is_dir() else [_checked_file(path, True)]
            contents = {file.relative_to(lib).as_posix(): file.read_bytes() for file in files}
        except (OSError, UsageError) as error:
            left_out.append(f"the extension {namespace}: {error}")
            continue
        if sum(map(len, (*found.values(), *contents.values()))) > bytes_max:
            left_out.append(f"the extension {namespace}: all together are larger than {bytes_max} bytes")
            continue
        found.update(contents)
    return found, tuple(left_out)


def differing(lib: Path, modules: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the extensions that are not in the lib folder exactly as in ``modules``, see :func:`collect`."""
    return tuple(name.removesuffix(".py") for name, contents in _by_name(modules).items() if not _has(lib, contents))


def put_back(lib: Path, modules: Mapping[str, bytes]) -> tuple[str, ...]:
    """Put modules and packages from a backup into the lib folder, each as one step; return those that differed.

    The version that was there before is kept, as :func:`install` does. Others stay as they are.

    Raises:
        ConfigurationError: one of them can be no extension, or be left out as its name is no path in the folder.
        OSError: the lib folder cannot be written.
    """
    changed = differing(lib, modules)
    for name, contents in _by_name(modules).items():
        if name.removesuffix(".py") in changed:
            make_folder(lib, mode=0o755)
            unpacked = lib / temporary_name(name)
            unpacked.mkdir(0o700)
            try:
                with alone_in(unpacked):  # as long as it is, a start does not sweep it
                    for path, content in contents.items():
                        make_folder((unpacked / path).parent, mode=0o755)
                        (unpacked / path).write_bytes(content)
                    paths = [Path(path).relative_to(name) for path in contents]
                    _put(unpacked / name, paths, lib, name, lambda _: None)
            finally:
                shutil.rmtree(unpacked, ignore_errors=True)
    return changed


def _names(lib: Path) -> Iterator[str]:
    """Yield the modules and packages of the lib folder; a package goes before a module of its name."""
    for path in lib.iterdir() if lib.is_dir() else ():
        if path.is_dir() or (path.suffix == ".py" and not path.with_suffix("").is_dir()):
            yield path.name


def _by_name(modules: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
    """Return the modules and packages, each with its files.

    Raises:
        ConfigurationError: one of them can be no extension.
    """
    result: dict[str, dict[str, bytes]] = {}
    for path, content in modules.items():
        name = path.partition("/")[0]
        problem = name_problem(name.removesuffix(".py"))
        if problem or (path == name) != name.endswith(".py"):
            raise ConfigurationError(f"{path!r} in the backup can be no extension{problem and f': {problem}'}")
        result.setdefault(name, {})[path] = content
    return result


def _has(lib: Path, contents: Mapping[str, bytes]) -> bool:
    """Whether the lib folder has a module or package exactly so."""
    name = next(iter(contents)).partition("/")[0]
    if name not in _names(lib):
        return False
    try:
        there, left_out = collect(lib, {name.removesuffix(".py")}, BYTES_MAX)
    except OSError:
        return False
    return there == dict(contents) and not left_out


# --- what may come in ---


def _checked(folder: Path, force: bool) -> Iterator[Path]:
    """Yield a package's files, relative to its folder, after all of them were checked.

    Raises:
        UsageError: a file cannot be installed, or there are too many.
    """
    count = size = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise UsageError(f"{path} is a link out of the folder; nothing was installed")
            if path.is_symlink() and path.is_dir():
                raise UsageError(f"{path} is a link to a folder; nothing was installed")
        for name in sorted(names):
            if name.startswith(".") or name.endswith((".pyc", ".pyo")):
                continue
            path = _checked_file(Path(place, name), force)
            count, size = count + 1, size + path.stat().st_size
            if count > FILES_MAX or size > BYTES_MAX:
                raise UsageError(
                    f"{folder} is too large for an extension: {FILES_MAX} files, {BYTES_MAX} bytes at most"
                )
            yield path.relative_to(folder)


def _checked_file(path: Path, force: bool) -> Path:
    """Return the path of a file that can be read, and unless forced be parsed if it is a module.

    Raises:
        UsageError: the file cannot be read, or is a module that does not parse.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path} is no regular file; nothing was installed")
        if path.suffix == ".py":
            source = _in_utf8(read_source(path))
            if not force:
                offered(source)
    except SyntaxError as error:
        where = f"{path}, line {error.lineno}" if error.lineno else str(path)
        raise UsageError(f"{where}: {error.msg}; nothing was installed. Extensions are Python 3") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}; nothing was installed") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; nothing was installed") from None
    return path


def _is_same(source: Path, files: list[Path], target: Path) -> bool:
    """Whether the lib folder has these very files under this name, and no others."""
    if target.is_symlink() or any(path.is_symlink() for path in target.rglob("*")):
        return False
    if not source.is_dir():
        return target.is_file() and _content(source) == target.read_bytes()
    there = {path.relative_to(target) for path in target.rglob("*") if path.is_file()}
    return there == set(files) and all(_content(source / path) == (target / path).read_bytes() for path in files)


def _content(source: Path) -> bytes:
    """Return a file's content as it is installed."""
    return _in_utf8(read_source(source)) if source.suffix == ".py" else source.read_bytes()


def _in_utf8(source: bytes) -> bytes:
    """Return a module that PowerShell wrote in UTF-16 as Python can import it; any other as it is.

    Raises:
        UnicodeDecodeError: it has the mark of UTF-16, and is not.
    """
    return decode(source).encode() if source.startswith((b"\xff\xfe", b"\xfe\xff")) else source


# --- putting it there ---


def heal(lib: Path) -> None:
    """Finish what a crash cut off in :func:`install`: give an older version that was moved away its name back.

    Raises:
        OSError: the lib folder cannot be changed.
    """
    if any(_cut_off(lib)):
        with alone_in(lib):
            _heal(lib)


def _heal(lib: Path) -> None:
    for kept in _cut_off(lib):
        rename(kept, kept.with_name(kept.name.removesuffix(_KEPT)))


def _cut_off(lib: Path) -> list[Path]:
    """Return the older versions whose places are free."""
    kept = sorted(lib.glob(f"*{_KEPT}")) if lib.is_dir() else []
    return [path for path in kept if not any(map(os.path.lexists, _both_kinds(path.name.removesuffix(_KEPT), lib)))]


def _both_kinds(name: str, lib: Path) -> tuple[Path, Path]:
    """Return the paths of a namespace's module and package."""
    namespace = name.removesuffix(".py")
    return lib / f"{namespace}.py", lib / namespace


def _put(
    source: Path, files: list[Path], lib: Path, name: str, see: Callable[[Path], None]
) -> tuple[Path, Path | None]:
    """Copy beside the target, then move it to the target's place; return its path and that of the older version.

    Before that ``see`` gets the folder of the copy; what it raises ends the installing.
    """
    make_folder(lib, mode=0o755)
    target = lib / name
    with alone_in(lib):
        _heal(lib)
        workshop = lib / temporary_name(name)
        workshop.mkdir(0o755)
        try:
            with alone_in(workshop):  # as long as it is, a start does not sweep it
                fresh = workshop / name
                if source.is_dir():
                    make_folder(fresh, mode=0o755)
                    for file in files:
                        make_folder((fresh / file).parent, mode=0o755)
                        _copy(source / file, fresh / file)
                else:
                    _copy(source, fresh)
                see(workshop)
                kept = _keep_older(target)
                try:
                    fresh.replace(target)
                except OSError:
                    if kept is not None:
                        kept[1].replace(kept[0])
                    raise
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
        sync_folder(lib)
    return target, kept[1] if kept else None


def _keep_older(target: Path) -> tuple[Path, Path] | None:
    """Keep what ``target`` will replace; return where it was and where it is now.

    A package would go before a module of the same name, so the other kind is
    out of the way afterwards too.
    """
    other = target.with_suffix("") if target.suffix else target.with_name(f"{target.name}.py")
    moved = None
    for path in (target, other):
        if os.path.lexists(path):
            kept = _kept(path)
            if os.path.lexists(kept):
                _remove(kept)
            if path is target and path.is_file() and not path.is_symlink():
                os.link(path, kept)  # the target's name is never without a module
            else:
                path.replace(kept)
            moved = moved or (path, kept)
    return moved


def _kept(path: Path) -> Path:
    """Return the name of the older version: none that can be imported."""
    return path.with_name(f"{path.name}{_KEPT}")


def _copy(source: Path, target: Path) -> None:
    """Copy a file's content to a new file that all users may read and only its owner write."""
    if source.suffix == ".py":
        write_whole(target, [_content(source)], mode=0o644, owner=process_owner(), follow=False)
        return
    with source.open("rb") as reader:
        chunks = iter(lambda: reader.read(_PIECE_BYTES), b"")
        write_whole(target, chunks, mode=0o644, owner=process_owner(), follow=False)


def _remove(path: Path) -> None:
    """Remove a module or package: if this is cut off in the middle, what is left cannot be imported."""
    if path.is_dir() and not path.is_symlink():
        gone = path.with_name(temporary_name(path.name))
        rename(path, gone)
        shutil.rmtree(gone)
    else:
        path.unlink()


def _brought(namespace: str, files: list[Path], lib: Path) -> Iterator[ExtensionRecord]:
    """Yield the namespaces of a module or package; those without a method are left out unless it is the only one."""
    if files and files[0].is_absolute():
        yield look_at(namespace, lib)
        return
    for file in sorted(files):
        if file.suffix == ".py":
            parts = [namespace, *file.with_suffix("").parts]
            record = look_at(".".join(parts[:-1] if parts[-1] == "__init__" else parts), lib)
            if record.methods:
                yield record
