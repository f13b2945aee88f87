"""Debian packages: ``bpbroker`` and ``bpbroker-client``."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from email.utils import format_datetime
from pathlib import Path
from typing import Final

from deploy.packaging import sbom, tree
from deploy.packaging.wheels import (
    CLIENT_WHEELS,
    BuildError,
    Target,
    add_target_options,
    gather,
    metadata_of,
    own_wheel,
    target_of,
)

HERE: Final = Path(__file__).with_name("debian")
RELEASES: Final = {"3.11": 12, "3.13": 13}
"""Python's version to the release of Debian that has it."""

_SUMMARY: Final = "message broker for the installation of applications"
_DESCRIPTION: Final = """\
 A durable registry, discovery on the local network, and calls into your own
 modules over HTTPS, for scripts that bring up clusters of servers."""
_COPYRIGHT: Final = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: bpbroker

Files: *
Copyright: 2026 the authors of bpbroker
License: Apache-2.0
 On Debian systems the full text of the Apache License 2.0 is in
 /usr/share/common-licenses/Apache-2.0.
"""
_OVERRIDES: Final = """\
# One environment with all that it needs, apart from the system's Python modules: what is tested together
# is installed together, and Debian's releases have other versions of it.
bpbroker: dir-or-file-in-opt *
# Such an environment has its own way to the system's Python.
bpbroker: wrong-path-for-interpreter /opt/bpbroker/bin/python3 *
# The machine code of the wheels is as its makers built and tested it.
bpbroker: unstripped-binary-or-object *
"""


def version_number(wheel: Path) -> str:
    """Return the version that a wheel says of itself."""
    found = re.search(r"^Version: (.+)$", metadata_of(wheel), re.MULTILINE)
    if found is None:
        raise BuildError(f"{wheel} has no version")
    return found[1]


def build(wheels: Path, target: Target, revision: str, maintainer: str, to: Path) -> list[Path]:
    """Build both packages into a folder and return them."""
    version = f"{version_number(own_wheel(wheels))}-{revision}~deb{RELEASES[target.python]}"
    with tempfile.TemporaryDirectory() as work:
        Path(work).chmod(0o755)
        server, client = Path(work, "server"), Path(work, "client")
        site = tree.program(server, wheels, target)
        return [
            _broker(server, site, target, version, maintainer, to),
            _client(client, wheels, site, version, maintainer, to),
        ]


def _broker(root: Path, site: Path, target: Target, version: str, maintainer: str, to: Path) -> Path:
    release = RELEASES[target.python]
    # Debian 12 looks for units in /lib alone when it checks packages, Debian 13 wants nothing behind that link.
    unit_folder = "lib/systemd/system" if release < 13 else "usr/lib/systemd/system"
    tree.service_files(root, unit_folder, "etc/init.d", "etc/default/bpbroker")
    tree.completions(root, site, tree.PROGRAMS)
    tree.pages(root, tree.PROGRAMS)
    _documents(root, "bpbroker", version, maintainer, "\n".join(sbom.licences(site)))
    tree.put(root, "usr/share/doc/bpbroker/sbom.cdx.json", sbom.document(site, timestamp=tree.now().isoformat()))
    tree.put(root, "usr/share/lintian/overrides/bpbroker", _OVERRIDES)
    for name in ("preinst", "postinst", "prerm", "postrm"):
        tree.put(root, f"DEBIAN/{name}", tree.filled((HERE / name).read_text(encoding="utf-8")), 0o755)
    tree.put(root, "DEBIAN/conffiles", "/etc/default/bpbroker\n/etc/init.d/bpbroker\n")
    major, minor = map(int, target.python.split("."))
    needs = (
        f"python3 (>= {target.python}), python3 (<< {major}.{minor + 1}), libc6 (>= {target.glibc}),"
        " adduser, init-system-helpers (>= 1.54)"
    )
    fields = {
        "Architecture": target.architecture,
        "Depends": needs,
        "Suggests": "etcd-server",
        "Conflicts": "bpbroker-client",
        "Replaces": "bpbroker-client",
        "Provides": "bpbroker-client",
        "Description": f"{_SUMMARY}\n{_DESCRIPTION}\n .\n This package has the broker and its client.",
    }
    return _pack(root, "bpbroker", version, maintainer, fields, to)


def _client(root: Path, wheels: Path, site: Path, version: str, maintainer: str, to: Path) -> Path:
    program = tree.put(root, "usr/bin/bpclient", tree.client(wheels), 0o755)
    if not program.read_bytes().startswith(b"#!/usr/bin/python3\n"):
        raise BuildError("bpclient does not begin with its interpreter")
    tree.completions(root, site, ["bpclient"])
    tree.pages(root, ["bpclient"])
    _documents(root, "bpbroker-client", version, maintainer, "\n".join(sbom.licences_of_wheels(wheels / CLIENT_WHEELS)))
    fields = {
        "Architecture": "all",
        "Depends": "python3 (>= 3.9)",
        "Description": f"client of bpbroker, a {_SUMMARY}\n{_DESCRIPTION}\n .\n This package has the client alone.",
    }
    return _pack(root, "bpbroker-client", version, maintainer, fields, to)


def _documents(root: Path, package: str, version: str, maintainer: str, licences: str) -> None:
    folder = f"usr/share/doc/{package}"
    tree.put(root, f"{folder}/copyright", _COPYRIGHT)
    tree.put_gzipped(root, f"{folder}/licences-of-parts", licences)
    tree.put_gzipped(root, f"{folder}/changelog", tree.changelog())
    entry = f"{package} ({version}) stable; urgency=medium\n\n  * See changelog.gz.\n\n"
    tree.put_gzipped(
        root, f"{folder}/changelog.Debian", f"{entry} -- {maintainer}  {format_datetime(tree.now(), usegmt=False)}\n"
    )


def _pack(root: Path, package: str, version: str, maintainer: str, fields: Mapping[str, str], to: Path) -> Path:
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    shipped = [path for path in files if (root / "DEBIAN") not in path.parents]
    control = {
        "Package": package,
        "Version": version,
        "Maintainer": maintainer,
        "Section": "net",
        "Priority": "optional",
        "Installed-Size": str(sum(path.stat().st_size // 1024 + 1 for path in shipped)),
        **fields,
    }
    tree.put(root, "DEBIAN/control", "".join(f"{name}: {value}\n" for name, value in control.items()))
    sums = subprocess.run(  # noqa: S603 - our own files
        ["/usr/bin/md5sum", *(str(path.relative_to(root)) for path in shipped)],
        cwd=root, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    tree.put(root, "DEBIAN/md5sums", sums)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]:
        folder.chmod(0o755)
    to.mkdir(parents=True, exist_ok=True)
    made = to / f"{package}_{version}_{fields['Architecture']}.deb"
    words = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z3", "--build", str(root), str(made)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    if done.returncode != 0:
        raise BuildError(f"dpkg-deb failed: {done.stderr}")
    return made


def main() -> None:
    """Build the packages, as the command line says, and print their names."""
    os.umask(0o022)
    parser = argparse.ArgumentParser(prog="build-deb", description="Build the Debian packages.")
    add_target_options(parser)
    parser.add_argument("--wheels", type=Path, help="a folder that build-wheels made; without it pip's index is asked")
    parser.add_argument("--revision", default="1", help="the Debian revision (1)")
    name, address = os.environ.get("DEBFULLNAME", "bpbroker"), os.environ.get("DEBEMAIL", "bpbroker@packages.invalid")
    parser.add_argument("--maintainer", default=f"{name} <{address}>", help="default: $DEBFULLNAME <$DEBEMAIL>")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help="where the packages go (.)")
    arguments = parser.parse_args()
    target = target_of(arguments)
    try:
        if shutil.which("dpkg-deb") is None:
            raise BuildError("dpkg-deb is needed, of Debian's package dpkg")
        with tempfile.TemporaryDirectory() as work:
            wheels = arguments.wheels
            if wheels is None:
                wheels = Path(work)
                gather(wheels, target)
            for made in build(wheels, target, arguments.revision, arguments.maintainer, arguments.folder):
                print(made)  # noqa: T201 - a program's result
    except BuildError as error:
        sys.exit(f"build-deb: {error}")


if __name__ == "__main__":
    main()
