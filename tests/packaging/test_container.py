"""The image and the example for Kubernetes: what they say, what a checker says of them, and a broker in the image."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from bpbroker.config import schema
from tests.packaging.conftest import LONG, TOP
from tests.support.ports import free_port
from tests.support.running import RunningBroker
from tests.support.systems import is_root

DOCKERFILE = (TOP / "deploy/Dockerfile").read_text()
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all((TOP / "deploy/kubernetes.yml").read_text()))
SECRET, SERVICE, STATEFUL_SET = OBJECTS
POD: dict[str, Any] = STATEFUL_SET["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def health_check() -> str:
    found = re.search(r"^HEALTHCHECK .*\\\n +CMD (.*)$", DOCKERFILE, re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_health_check(make_broker: Callable[..., RunningBroker], tmp_path: Path) -> None:
    broker = make_broker({"services": {"_access_key": "k" * 20}}).start()
    # Its two programs by the names that they have in the image.
    for name, module in (("bpbroker", "bpbroker"), ("bpclient", "bpbroker.client")):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (tmp_path / name).chmod(0o755)
    environ = {**broker.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(TOP)}

    def result() -> tuple[int, str]:
        done = subprocess.run(
            ["sh", "-c", health_check()], env=environ, capture_output=True, text=True, check=False, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    code, said = result()
    assert code == 0, said
    assert "the access key is accepted" in said
    broker.stop()
    code, said = result()
    assert code == 1, said  # 2 is reserved
    broker.config.write_text("{")
    assert result()[0] == 1


def schemas(tmp_path: Path) -> Path:
    """Return a folder with the schemas of the newest Kubernetes, from the package kubernetes-validate."""
    # Of its hundred megabytes only these are unpacked.
    words = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", tmp_path, "kubernetes-validate")
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        pytest.skip(f"kubernetes-validate cannot be had: {done.stderr[-200:]}")
    (wheel,) = tmp_path.glob("kubernetes_validate-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        strict = [name for name in archive.namelist() if "-local-strict/" in name and name.endswith(".json")]
        newest = max(
            {Path(name).parent for name in strict}, key=lambda path: list(map(int, re.findall(r"\d+", path.name)))
        )
        archive.extractall(tmp_path, [name for name in strict if Path(name).parent == newest])
    return tmp_path / newest


def test_kubernetes_likes_its_objects(tmp_path: Path) -> None:
    folder = schemas(tmp_path)

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text())

    def faults(thing: dict[str, Any]) -> list[str]:
        group, _, version = thing["apiVersion"].rpartition("/")
        name = "-".join(filter(None, (thing["kind"].lower(), group, version)))
        checker = jsonschema_rs.Draft7Validator(
            read(f"{name}.json"), retriever=lambda address: read(address.rpartition("/")[2])
        )
        return [fault.message for fault in checker.iter_errors(thing)]

    for thing in OBJECTS:
        assert faults(thing) == []
    wrong: dict[str, Any] = yaml.safe_load(yaml.safe_dump(STATEFUL_SET))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    assert faults(wrong) != []


def test_what_kubernetes_starts(make_broker: Callable[..., RunningBroker], tmp_path: Path) -> None:
    settings = json.loads(SECRET["stringData"]["settings.json"])
    assert [name for name in settings if name not in schema.KNOWN] == []
    # The same user, port, volume as in the image; no place to write but these.
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert user is not None
    security = POD["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == tuple(map(int, user.groups()))
    (init,) = POD["initContainers"]
    for container in (init, CONTAINER):
        assert container["securityContext"]["readOnlyRootFilesystem"]
    (volume,) = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    (home,) = re.findall(r"^ENV BPBROKER_HOME=(\S+)", DOCKERFILE, re.MULTILINE)
    writable = {mount["mountPath"] for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {volume, "/tmp"}  # noqa: S108 - a mount of the pod
    assert home == volume
    assert f"EXPOSE {CONTAINER['ports'][0]['containerPort']}/tcp" in DOCKERFILE
    assert SERVICE["spec"]["selector"].items() <= STATEFUL_SET["spec"]["template"]["metadata"]["labels"].items()
    assert STATEFUL_SET["spec"]["serviceName"] == SERVICE["metadata"]["name"]

    # What it types and asks, of a real broker.
    broker = make_broker(None, *CONTAINER["args"][1:])
    file = tmp_path / "settings.json"
    file.write_text(SECRET["stringData"]["settings.json"])
    for _ in range(2):  # at each start
        done = broker.bpbroker(*(str(file) if word.endswith(".json") else word for word in init["args"]))
        assert done.returncode == 0, done.stderr
    broker.start()
    paths = {CONTAINER[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"/live", "/ready"}
    for path in paths:
        connection = broker.connect()
        connection.request("GET", path)
        assert connection.getresponse().status == HTTPStatus.OK
        connection.close()


def run(*words: str | Path, timeout: float = 250, **more: Any) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=timeout, **more)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    said: str = done.stdout
    return said.strip()


@pytest.fixture
def image(packed_host: Path, python: str, tmp_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the mounted files of the image, and its configuration."""
    if python != f"{sys.version_info[0]}.{sys.version_info[1]}":
        pytest.skip("the wheels here are for another Python")
    wheels = tmp_path / "wheels"
    run(sys.executable, "-m", "pip", "wheel", "-q", "-w", wheels, TOP, "setuptools>=77")
    storage = ("--storage-driver", "vfs", "--root", str(tmp_path / "storage"), "--runroot", str(tmp_path / "runroot"))
    buildah = ("buildah", *storage)
    try:
        made = run(*buildah, "from", "scratch")
        run(*buildah, "add", "-q", made, packed_host, "/")
        run(*buildah, "commit", "-q", "--rm", made, "localhost/base")
        offline = ("--build-arg", "PIP_NO_INDEX=1", "--build-arg", "PIP_FIND_LINKS=/wheels")
        how = ("--isolation", "chroot", "--format", "docker", "--layers=false", "--pull-never", "--network", "host")
        base = ("--build-arg", "BASE=localhost/base", "--volume", f"{wheels}:/wheels:ro")
        run(*buildah, "bud", *how, *offline, *base, "-t", "bpbroker", "-f", TOP / "deploy/Dockerfile", TOP)
        container = run(*buildah, "from", "--pull-never", "localhost/bpbroker")
        config = json.loads(run(*buildah, "inspect", "--type", "image", "localhost/bpbroker"))["Docker"]["config"]
        yield Path(run(*buildah, "mount", container)), config
    finally:
        subprocess.run([*buildah, "rm", "-a"], check=False, capture_output=True, timeout=120)
        subprocess.run([*buildah, "rmi", "-a", "-f"], check=False, capture_output=True, timeout=120)


@pytest.mark.skipif(not LONG, reason="takes its time: with BPBROKER_LONG=1")
@pytest.mark.skipif(shutil.which("buildah") is None or not is_root(), reason="needs buildah, and root")
def test_a_broker_in_the_image(image: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    files, config = image
    (volume,) = config["Volumes"]
    data = tmp_path / "data"
    data.mkdir()
    shutil.copystat(files / volume[1:], data)
    owner = (files / volume[1:]).stat()
    os.chown(data, owner.st_uid, owner.st_gid)
    port = free_port()
    # What a runtime does: a root that cannot be written, one volume, a /tmp; the broker is process 1.
    script = f"""set -e
mount --bind {files} {files}
mount -o remount,bind,ro {files}
mount -t proc proc {files}/proc
mount -t tmpfs tmpfs {files / "tmp"}
mount --bind /dev {files}/dev
mount --bind {data} {files}{volume}
exec chroot --userspec={config["User"]} {files} "$@"
"""
    words = [*config["Entrypoint"], *config["Cmd"], "--listen-port", str(port)]
    environ = {**dict(item.split("=", 1) for item in config["Env"]), "LC_ALL": "C.UTF-8"}
    environ["PATH"] += ":/usr/sbin:/sbin"
    log = (tmp_path / "log").open("w+")
    outer = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", *words],
        env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        inside = ("nsenter", "-t", "{pid}", "-m", "-p", "chroot", f"--userspec={config['User']}", str(files))
        client = (sys.executable, "-m", "bpbroker.client", "--insecure", "-b", f"127.0.0.1:{port}")
        run(*client, "--timeout", "60s", "ping", "--data", "x", cwd=TOP)
        (pid,) = run("ps", "-o", "pid=", "--ppid", str(outer.pid)).split()
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE)
        assert re.search(r"^Uid:\t10001\t", status, re.MULTILINE)
        assert run(*client, "service", "register", "--name", "foo", "--data", "bar", cwd=TOP) == "bar"
        enter = [word.format(pid=pid) for word in inside]
        assert config["Healthcheck"]["Test"] == ["CMD-SHELL", health_check()]
        run(*enter, "/bin/sh", "-c", health_check(), env=environ)
        refused = subprocess.run(
            [*enter, "/bin/sh", "-c", "touch /opt/bpbroker/x /var/x"], env=environ, capture_output=True, check=False
        )
        assert refused.returncode == 1
        # A process that loses its parent is process 1's: it must not stay as a zombie.
        orphan = run(*enter, "/bin/sh", "-c", "sleep 0.2 >/dev/null 2>&1 & echo", env=environ)
        assert orphan == ""
        deadline = time.monotonic() + 60
        while "sleep" in (children := run("ps", "-o", "stat=,comm=", "--ppid", pid)):
            assert time.monotonic() < deadline, children
            time.sleep(0.1)
        os.kill(int(pid), signal.SIGTERM)
        assert outer.wait(20) == 0
    finally:
        if outer.poll() is None:
            outer.kill()
            outer.wait()
        log.close()
    assert '"foo"' in (data / "etc/bpbroker.json").read_text()
