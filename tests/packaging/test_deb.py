"""The Debian packages, installed, upgraded, removed and purged in roots of Debian itself."""

from __future__ import annotations

import email.parser
import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from bpbroker import __version__
from bpbroker.service.templates import MARK
from tests.packaging.conftest import LONG, Packages
from tests.support.debian_root import Root
from tests.support.ports import free_port

CONFIG = "/usr/local/bpbroker/etc/bpbroker.json"
LOG = "/var/log/bpbroker/bpbroker.log"


long = pytest.mark.skipif(not LONG, reason="takes its time: with BPBROKER_LONG=1")


def control(package: Path, *names: str) -> list[str]:
    """Return fields of a package."""
    return [
        subprocess.run(
            ["dpkg-deb", "-f", package, name], capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()
        for name in names
    ]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def not_from_files(listed: str, folders: Iterable[Path]) -> str:
    """Return what a list of licences has that is not in the files of the distributions that it is about.

    Each must say its licence, and must bring a text of it.
    """
    for folder in folders:
        fields = email.parser.Parser().parsestr((folder / "METADATA").read_text())
        head = re.search(rf"^{fields['Name']} {re.escape(fields['Version'])}: (.+)\n", listed, re.MULTILINE)
        assert head, folder
        licence = head[1]
        said = [fields["License-Expression"], fields["License"], *(fields.get_all("Classifier") or ())]
        assert all(any(each and each.endswith(word) for each in said) for word in licence.split(" / ")), (
            folder,
            licence,
        )
        listed = listed[: head.start()] + listed[head.end() :]
        without = listed
        for file in folder.rglob("*"):
            if file.is_file():
                title = f"--- {fields['Name']}: {file.relative_to(folder)}\n"
                without = without.replace(f"{title}{file.read_text(errors='replace').rstrip()}\n", "", 1)
        assert without != listed, f"{folder.name} has no text of its licence"
        listed = without
    return listed.strip()


def dpkg(root: Root, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return root.run("dpkg", *(root.add(word) if isinstance(word, Path) else word for word in words))


def installed(root: Root, package: Path) -> None:
    done = dpkg(root, "-i", package)
    assert done.returncode == 0, done.stdout + done.stderr


def traces(root: Root) -> set[str]:
    """Return every file, and what has our name, outside of /root, /proc and dpkg's own notes."""
    passed_over = {"root", "proc", "var/lib/dpkg", "var/lib/systemd", "var/log", "run", "var/cache", "tmp"}
    found = set()
    for top, folders, files in os.walk(root.folder):
        inside = Path(top).relative_to(root.folder)
        folders[:] = [name for name in folders if str(inside / name) not in passed_over]
        found |= {str(inside / name) for name in files}
        found |= {str(inside / name) for name in folders if "bpbroker" in name or (Path(top) / name).is_symlink()}
    return found


@pytest.fixture
def configured(root: Root, packages: Packages) -> Callable[..., int]:
    """Return what installs the package, configures and starts its broker, and returns the port."""

    def make() -> int:
        installed(root, packages.first)
        port = free_port()
        root.do("bpbroker", "configure", stdin=json.dumps({"api": {"listen_port": port, "listen_ip": "127.0.0.1"}}))
        root.do("/etc/init.d/bpbroker", "start")
        return port

    return make


def client(root: Root, port: int, *words: str) -> str:
    return root.do("bpclient", "--insecure", "-b", f"127.0.0.1:{port}", "service", *words)


def test_lintian_finds_no_error(packages: Packages) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    words = ["lintian", "--allow-root", "--fail-on", "error", str(packages.first), str(packages.client)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_in_the_packages(packages: Packages, tmp_path: Path) -> None:
    assert control(packages.first, "Architecture") == [
        subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    ]
    assert control(packages.client, "Architecture", "Depends") == ["all", "python3 (>= 3.9)"]
    subprocess.run(["dpkg-deb", "-x", packages.first, tmp_path], check=True, timeout=60)
    for name in ("bpbroker", "bpclient"):
        assert (tmp_path / f"usr/bin/{name}").readlink() == Path(f"/opt/bpbroker/bin/{name}")
        page = subprocess.run(
            ["zcat", tmp_path / f"usr/share/man/man1/{name}.1.gz"], capture_output=True, text=True, check=True
        ).stdout
        assert page.count("\n.SS ") > 10
        completion = (tmp_path / f"usr/share/bash-completion/completions/{name}").read_text()
        assert f"_{name.upper()}_COMPLETE=bash_complete" in completion
        assert (tmp_path / f"usr/share/zsh/vendor-completions/_{name}").read_text().startswith(f"#compdef {name}")
    assert not list(tmp_path.rglob("__pycache__"))
    assert not list(tmp_path.rglob("usr/local"))
    # What has the broker needs no second bpclient: dpkg takes that package away.
    assert control(packages.first, "Conflicts", "Replaces") == ["bpbroker-client"] * 2
    bill = json.loads((tmp_path / "usr/share/doc/bpbroker/sbom.cdx.json").read_text())
    shipped = {path.name.removesuffix(".dist-info") for path in tmp_path.rglob("*.dist-info")}
    named = {f"{part['name']}-{part['version']}" for part in bill["components"]}
    assert {plain(name) for name in named} == {plain(name) for name in shipped} - {plain(f"bpbroker-{__version__}")}
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(json.dumps(bill)) is None
    licences = gzip.decompress((tmp_path / "usr/share/doc/bpbroker/licences-of-parts.gz").read_bytes()).decode()
    own = f"bpbroker-{__version__}.dist-info"
    parts = sorted(tmp_path.rglob("*.dist-info"), key=lambda path: -len(path.parts))
    once = {plain(path.name): path for path in parts if path.name != own}  # the one on top, where setuptools has it too
    assert not_from_files(licences, once.values()) == ""
    for text in (path.read_text(errors="replace") for path in (tmp_path / "etc").rglob("*") if path.is_file()):
        assert MARK not in text  # uninstall-service would take it for its own


def see_that_a_broken_configuration_is_not_upgraded(root: Root, packages: Packages, port: int) -> None:
    """See how the second version, which runs, goes on when what is installed over it could not."""
    client(root, port, "register", "--name", "foo", "--data", "bar")
    pid = root.path("/run/bpbroker/bpbroker.pid").read_text()
    good = root.path(CONFIG).read_text()
    root.path(CONFIG).write_text("{")
    done = dpkg(root, "-i", packages.first)
    assert done.returncode == 1
    assert "nothing is upgraded while the configuration is broken" in done.stderr
    assert "line 1" in done.stderr or "line 2" in done.stderr
    status = root.do("dpkg", "-s", "bpbroker")
    assert "Status: install ok installed" in status
    assert control(packages.second, "Version")[0] in status
    assert root.path("/run/bpbroker/bpbroker.pid").read_text() == pid
    assert client(root, port, "get", "--name", "foo") == "bar\n"

    # One that only the new version refuses: its own validate says so, after it was unpacked.
    root.path(CONFIG).write_text(good)
    refuses = (
        root.path("/opt/bpbroker/bin/bpbroker")
        .read_text()
        .replace(
            "from bpbroker.cli",
            "sys.argv[1:] == ['validate'] and sys.exit('this version wants more')\nfrom bpbroker.cli",
        )
    )
    work = root.path("/root/work")
    root.do("dpkg-deb", "-R", root.add(packages.first), "/root/work")
    (work / "opt/bpbroker/bin/bpbroker").write_text(refuses)
    (work / "DEBIAN/control").write_text((work / "DEBIAN/control").read_text().replace("-1~deb", "-3~deb"))
    root.do("dpkg-deb", "-Zgzip", "-z1", "-b", "/root/work", "/root/strict.deb")
    shutil.rmtree(work)
    done = root.run("dpkg", "-i", "/root/strict.deb")
    assert done.returncode == 1
    assert "this version wants more" in done.stderr
    assert "the old version goes on" in done.stderr
    assert root.path("/run/bpbroker/bpbroker.pid").read_text() == pid
    assert client(root, port, "get", "--name", "foo") == "bar\n"
    installed(root, packages.second)  # that one likes it
    assert root.path("/run/bpbroker/bpbroker.pid").read_text() != pid
    assert client(root, port, "get", "--name", "foo") == "bar\n"


def test_the_life_of_the_package(root: Root, packages: Packages, configured: Callable[..., int]) -> None:
    before = traces(root)
    port = configured()
    # Of the service's own user, which can change neither the program nor the modules.
    (pid,) = {int(root.path("/run/bpbroker/bpbroker.pid").read_text())}
    owner = Path(f"/proc/{pid}").stat().st_uid
    assert root.do("id", "-u", "bpbroker").strip() == str(owner) != "0"
    assert root.path(CONFIG).stat().st_uid == owner
    assert root.path("/usr/local/bpbroker/lib").stat().st_uid == 0
    assert list(root.path("/opt/bpbroker/lib").rglob("__pycache__"))

    # While it is written to, without a pause.
    acknowledged: list[str] = []
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            name = f"n{len(acknowledged)}"
            done = root.run("bpclient", "--insecure", "-b", f"127.0.0.1:{port}", "--timeout", "20s",
                            "service", "replace", "--name", name, "--data", name)  # fmt: skip
            if done.returncode == 0:
                acknowledged.append(name)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        installed(root, packages.second)
        at_the_upgrade = len(acknowledged)
    finally:
        ended.set()
        writer.join()
    assert at_the_upgrade > 0
    found = json.loads(client(root, port, "list", "--format", "json"))
    names = set(found if isinstance(found, dict) else [entry["name"] for entry in found])
    assert names >= set(acknowledged)
    second = int(root.path("/run/bpbroker/bpbroker.pid").read_text())
    assert second != pid
    assert root.path(LOG).read_text().count("is ready") == 2  # once restarted
    assert control(packages.second, "Version")[0] in root.do("dpkg", "-s", "bpbroker")

    see_that_a_broken_configuration_is_not_upgraded(root, packages, port)
    second = int(root.path("/run/bpbroker/bpbroker.pid").read_text())

    assert dpkg(root, "-r", "bpbroker").returncode == 0
    with suppress(psutil.NoSuchProcess):  # it has stopped; its last instructions may come after those of dpkg
        psutil.Process(second).wait(30)
    assert not root.path("/opt/bpbroker").exists()
    assert root.path(CONFIG).exists()
    root.do("/etc/init.d/bpbroker", "start")  # at the next boot: says nothing, does nothing
    installed(root, packages.second)  # and back again
    root.do("/etc/init.d/bpbroker", "start")
    client(root, port, "get", "--name", acknowledged[0])
    assert dpkg(root, "-P", "bpbroker").returncode == 0
    # The extension modules' folder and all else are gone; adduser's and dpkg's own notes may differ.
    left = {path for path in traces(root) - before if not path.startswith("etc/") or "bpbroker" in path}
    assert left == set()
    assert root.run("id", "bpbroker").returncode != 0
    assert not root.path("/var/log/bpbroker").exists()


@long
def test_a_broker_of_another_name_is_untouched(root: Root, configured: Callable[..., int]) -> None:
    configured()
    port = free_port()
    own = {"api": {"listen_port": port, "listen_ip": "127.0.0.1"}}
    other = "/usr/local/bpbroker/etc/other.json"
    root.do("bpbroker", "-c", other, "configure", stdin=json.dumps(own))
    root.do("bpbroker", "-c", other, "install-service", "--name", "other", "--user", "bpbroker")
    root.do("/etc/init.d/other", "start")
    client(root, port, "register", "--name", "foo", "--data", "bar")
    backups = root.path("/usr/local/bpbroker/backups")
    (backups / "other-20260101T000000.000000Z.json").write_text("{}")
    refused = root.run("bpbroker", "install-service")
    assert refused.returncode == 1
    assert "is that of the package bpbroker" in refused.stderr

    done = dpkg(root, "-P", "bpbroker")
    assert done.returncode == 0
    assert "/etc/init.d/other runs this program too" in done.stderr
    left = {path.name for path in root.path("/usr/local/bpbroker/etc").iterdir()}
    assert {"other.json", "other.json.lock", "other.crt", "other.key"} <= left
    assert not [name for name in left if name.startswith("bpbroker")]
    assert {path.name for path in backups.iterdir()} >= {"other-20260101T000000.000000Z.json"}
    assert root.path("/etc/init.d/other").exists()
    assert root.run("id", "bpbroker").returncode == 0  # it runs as that user
    pid = int(root.path("/run/other/other.pid").read_text())
    with socket.create_connection(("127.0.0.1", port), timeout=10):
        os.kill(pid, 0)


def test_what_dpkg_refuses(root: Root, packages: Packages, tmp_path: Path) -> None:
    work = tmp_path / "work"
    subprocess.run(["dpkg-deb", "-R", packages.first, work], check=True, timeout=60)
    text = (work / "DEBIAN/control").read_text()
    own = control(packages.first, "Architecture")[0]
    (work / "DEBIAN/control").write_text(text.replace(f"Architecture: {own}", "Architecture: riscv64"))
    foreign = tmp_path / "foreign.deb"
    subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "-b", work, foreign], check=True, timeout=60)
    done = dpkg(root, "-i", foreign)
    assert done.returncode == 1
    assert "package architecture (riscv64) does not match system" in done.stderr
    # A service that install-service made is not taken over in silence.
    script = root.path("/etc/init.d/bpbroker")
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!/bin/sh\n# {MARK}, which overwrites it when it runs again.\n")
    done = dpkg(root, "-i", packages.first)
    assert done.returncode == 1
    assert "bpbroker uninstall-service" in done.stderr
    script.unlink()
    # Nor is an environment of one's own.
    root.path("/opt/bpbroker/bin").mkdir(parents=True)
    done = dpkg(root, "-i", packages.first)
    assert done.returncode == 1
    assert "is not of this package" in done.stderr
    assert not root.path("/usr/bin/bpbroker").exists()


@long
def test_the_client_alone(root: Root, packages: Packages) -> None:
    installed(root, packages.client)
    assert root.do("bpclient", "--version").startswith("bpclient ")
    assert "register" in root.do("bpclient", "service", "--help")
    assert dpkg(root, "-P", "bpbroker-client").returncode == 0
    assert not root.path("/usr/bin/bpclient").exists()


def test_a_wheel_of_another_architecture_is_refused(wheels: Path, python: str, tmp_path: Path) -> None:
    from deploy.packaging.wheels import BuildError, Target, install, own_architecture

    other = next(name for name in ("amd64", "arm64") if name != own_architecture())
    with pytest.raises(BuildError):
        install(wheels, tmp_path / "tree", Target(python, other))
