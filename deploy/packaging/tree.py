"""What a package of any family installs: the program in ``/opt/bpbroker``, service files, completions, pages."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final

from bpbroker.service.data import backups_patterns, config_patterns
from bpbroker.service.steps import Service
from bpbroker.service.templates import MARK, PACKAGED, init_script, unit
from deploy.packaging.wheels import CLIENT_WHEELS, TOP, BuildError, Target, install

PREFIX: Final = PurePosixPath("/opt/bpbroker")
HOME: Final = PurePosixPath("/usr/local/bpbroker")
"""Where data is, as with every other way to install; the package's scripts make it, the package has no file there."""
CONFIG: Final = HOME / "etc/bpbroker.json"
USER: Final = "bpbroker"
PROGRAMS: Final = {"bpbroker": "bpbroker.cli", "bpclient": "bpbroker.client.cli.main"}
SHELLS: Final = {
    "bash": "usr/share/bash-completion/completions/{0}",
    "zsh": "usr/share/zsh/vendor-completions/_{0}",
    "fish": "usr/share/fish/vendor_completions.d/{0}.fish",
}

_SCRIPT = """\
#!{prefix}/bin/python3 -IP
import sys

from {module} import main

sys.exit(main())
"""
_OPTIONS = """\
# Options of the service bpbroker, one NAME=value a line, for instance
#
# BPBROKER_LOG_LEVEL=debug
"""
_WRITTEN = f"{MARK}, which overwrites it when it runs again."
_INIT_PATH = "export PATH BPBROKER_HOME\n"
_INIT_REMOVED = """
# The package was removed and not purged: this file is still there.
[ -x /usr/bin/bpbroker ] || exit 0
"""


def service() -> Service:
    """Return the service that a package brings."""
    return Service("bpbroker", ("/usr/bin/bpbroker",), CONFIG, HOME, USER)


def put(root: Path, path: str | PurePosixPath, content: str | bytes, mode: int = 0o644) -> Path:
    """Write a file of the package and return it."""
    file = root / str(path).lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    file.chmod(mode)
    return file


def put_gzipped(root: Path, path: str, content: str | bytes) -> None:
    """Write a compressed file, the same each time."""
    raw = content.encode() if isinstance(content, str) else content
    put(root, f"{path}.gz", gzip.compress(raw, 9, mtime=0))


def program(root: Path, wheels: Path, target: Target) -> Path:
    """Make ``/opt/bpbroker``, an environment of the target's own Python, and the links in ``/usr/bin``.

    Returns:
        The folder of its modules.
    """
    top = root / str(PREFIX).lstrip("/")
    site = top / f"lib/python{target.python}/site-packages"
    site.mkdir(parents=True)
    install(wheels, site, target)
    put(top, "pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {target.python}\n")
    for name, module in PROGRAMS.items():
        put(top, f"bin/{name}", _SCRIPT.format(prefix=PREFIX, module=module), 0o755)
        link(root, f"usr/bin/{name}", PREFIX / "bin" / name)
    (top / "bin/python3").symlink_to(f"/usr/bin/python{target.python}")
    tidy(top)
    return site


def link(root: Path, path: str, to: PurePosixPath) -> None:
    """Make a symbolic link of the package."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).symlink_to(to)


def tidy(top: Path) -> None:
    """Give all files plain modes, and leave out what is of no use installed: byte code, debris of building."""
    for path in sorted(top.rglob("*")):
        if path.is_symlink():
            continue
        if path.is_dir():
            path.chmod(0o755)
        elif path.parent != top / "bin":
            path.chmod(0o644)
    for pattern in ("__pycache__", "*.dist-info/RECORD", "*.dist-info/INSTALLER", "*.dist-info/REQUESTED"):
        for path in list(top.rglob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def service_files(root: Path, unit_folder: str, init_folder: str | None, options: str) -> None:
    """Write unit, init script and the file of options for :func:`service`."""
    if _WRITTEN not in unit(service()) or any(text not in init_script(service()) for text in (_WRITTEN, _INIT_PATH)):
        raise BuildError("the templates of the service do not say any more what wrote them")
    put(root, f"{unit_folder}/bpbroker.service", unit(service()).replace(_WRITTEN, PACKAGED))
    script = init_script(service()).replace(_WRITTEN, PACKAGED).replace(_INIT_PATH, _INIT_PATH + _INIT_REMOVED)
    if init_folder is not None:
        put(root, f"{init_folder}/bpbroker", script, 0o755)
    put(root, options, _OPTIONS)


def completions(root: Path, site: Path, names: Iterable[str], shells: Mapping[str, str] = SHELLS) -> None:
    """Write what the shells need to complete the programs; ``site`` has their modules."""
    for name in names:
        code = f"import sys; sys.argv = [{name!r}]; from {PROGRAMS[name]} import main; main()"
        for shell, path in shells.items():
            words = ("-c", code)
            put(root, path.format(name), _said(site, words, {f"_{name.upper()}_COMPLETE": f"{shell}_source"}))


def pages(root: Path, names: Iterable[str]) -> None:
    """Write the manual pages of the programs."""
    for name in names:
        put_gzipped(root, f"usr/share/man/man1/{name}.1", (TOP / f"deploy/man/{name}.1").read_bytes())


def _said(site: Path, words: tuple[str, ...], environ: dict[str, str]) -> str:
    """Run this Python with the modules that are packaged, of which the pure ones will do; return what it prints."""
    known = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-P", *words], env={**known, **environ}, capture_output=True, text=True, check=False, cwd=site
    )
    if done.returncode != 0 or not done.stdout:
        raise BuildError(f"{words[-2:]} prints nothing: {done.stderr}")
    return done.stdout


def filled(text: str, **more: str) -> str:
    """Put what the product says of its own files into a package's script."""
    values = {
        "MARK": MARK,
        "PREFIX": str(PREFIX),
        "HOME": str(HOME),
        "USER": USER,
        "CONFIG_PATTERNS": " ".join(config_patterns(CONFIG)),
        "BACKUPS_PATTERNS": " ".join(backups_patterns(CONFIG)),
        **more,
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    if "@" in text:
        raise BuildError(f"a place is not filled: {text[text.index('@') :][:30]!r}")
    return text


def client(wheels: Path) -> bytes:
    """Return ``bpclient`` in one file, for the system's own Python."""
    with tempfile.TemporaryDirectory() as work:
        made = Path(work, "bpclient.pyz")
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str((wheels / CLIENT_WHEELS).absolute())}
        environ = {**os.environ, **offline, "PYTHON": sys.executable, "INTERPRETER": "/usr/bin/python3"}
        words = [str(TOP / "deploy/build-zipapp"), str(made)]
        done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)  # noqa: S603 - our own
        if done.returncode != 0:
            raise BuildError(f"build-zipapp failed: {done.stderr}")
        return made.read_bytes()


def now() -> datetime:
    """Return the time that a package says, in UTC; SOURCE_DATE_EPOCH makes builds the same."""
    return datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()), UTC)


def changelog() -> str:
    """Return the changelog for users."""
    return (TOP / "CHANGELOG.md").read_text(encoding="utf-8")
