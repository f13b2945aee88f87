"""The RPM package of the broker."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from deploy.packaging import sbom, tree
from deploy.packaging.deb import version_number
from deploy.packaging.wheels import (
    MACHINES,
    BuildError,
    Target,
    add_target_options,
    gather,
    own_wheel,
    target_of,
)

SPEC: Final = Path(__file__).with_name("redhat") / "bpbroker.spec"
_ZSH: Final = {"zsh": "usr/share/zsh/site-functions/_{0}"}


def build(wheels: Path, target: Target, release: str, to: Path) -> Path:
    """Build the package into a folder and return it."""
    if shutil.which("rpmbuild") is None:
        raise BuildError("rpmbuild is needed, of the package rpm-build (Debian: rpm)")
    with tempfile.TemporaryDirectory() as work:
        root = Path(work, "root")
        site = tree.program(root, wheels, target)
        tree.service_files(root, "usr/lib/systemd/system", None, "etc/sysconfig/bpbroker")
        tree.completions(root, site, tree.PROGRAMS, {**tree.SHELLS, **_ZSH})
        tree.pages(root, tree.PROGRAMS)
        documents = "usr/share/doc/bpbroker"
        tree.put(root, f"{documents}/CHANGELOG.md", tree.changelog())
        tree.put(root, f"{documents}/licences-of-parts", "\n".join(sbom.licences(site)))
        tree.put(root, f"{documents}/sbom.cdx.json", sbom.document(site, timestamp=tree.now().isoformat()))
        spec = Path(work, "bpbroker.spec")
        spec.write_text(
            tree.filled(
                SPEC.read_text(encoding="utf-8"),
                VERSION=version_number(own_wheel(wheels)),
                RELEASE=release,
                PYTHON=f"/usr/bin/python{target.python}",
                GLIBC=target.glibc,
                ARCH=MACHINES[target.architecture],
                ROOT=str(root),
            ),
            encoding="utf-8",
        )
        words = ["rpmbuild", "-bb", "--quiet", "--target", MACHINES[target.architecture]]
        words += ["--define", f"_topdir {work}/top", "--define", "_binary_payload w3.gzdio", str(spec)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
        if done.returncode != 0:
            raise BuildError(f"rpmbuild failed:\n{done.stderr[-3000:]}")
        (made,) = Path(work, "top/RPMS").rglob("*.rpm")
        to.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(made, to))


def main() -> None:
    """Build the package, as the command line says, and print its name."""
    os.umask(0o022)
    parser = argparse.ArgumentParser(prog="build-rpm", description="Build the RPM package.")
    add_target_options(parser)
    parser.add_argument("--wheels", type=Path, help="a folder that build-wheels made; without it pip's index is asked")
    parser.add_argument("--release", default="1", help="the package's release (1)")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help="where the package goes (.)")
    arguments = parser.parse_args()
    # Red Hat Enterprise Linux 9 has glibc 2.34.
    target = replace(target_of(arguments), glibc_minor=34)
    try:
        with tempfile.TemporaryDirectory() as work:
            wheels = arguments.wheels
            if wheels is None:
                wheels = Path(work)
                gather(wheels, target)
            print(build(wheels, target, arguments.release, arguments.folder))  # noqa: T201 - a program's result
    except BuildError as error:
        sys.exit(f"build-rpm: {error}")


if __name__ == "__main__":
    main()
