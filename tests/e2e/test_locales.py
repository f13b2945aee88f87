"""Names and values of all scripts round-trip in every locale: what is printed can be given back, byte by byte."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.running import RunningBroker


@pytest.fixture(scope="module", params=["C", "C-plain", "Latin-1"])
def locale(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of a locale; Latin-1 is made for the test."""
    if request.param == "C":
        return {"LC_ALL": "C"}
    if request.param == "C-plain":  # as Python is without its own coercion to UTF-8
        return {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    folder = tmp_path_factory.mktemp("locales")
    if not shutil.which("localedef"):
        pytest.skip("needs localedef")
    words = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(folder / "de_DE.ISO-8859-1")]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("needs the package locales")
    return {"LC_ALL": "de_DE.ISO-8859-1", "LOCPATH": str(folder)}


@pytest.fixture
def client(broker: RunningBroker, locale: Mapping[str, str]) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    def run(*words: bytes) -> subprocess.CompletedProcess[bytes]:
        command = broker.command("bpbroker.client", "-b", f"127.0.0.1:{broker.port}")
        environ = {**broker.environ, **locale}
        return subprocess.run([*command, *words], env=environ, capture_output=True, timeout=60, check=False)

    return run


def test_names_and_values_round_trip(client: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    utf8 = "n\u00e4me-\u65e5".encode()
    value = "w\u00e4rt \u20ac".encode()
    made = client(b"service", b"register", b"--name", utf8, b"--data", value)
    assert made.returncode == 0, made.stderr
    (name,) = client(b"-f", b"csv-noheader", b"service", b"list", b"--cols", b"name").stdout.splitlines()
    assert client(b"service", b"get", b"--name", name).stdout == made.stdout
    again = client(b"service", b"replace", b"--name", name, b"--data", made.stdout.rstrip(b"\n"))
    assert again.stdout == made.stdout
    assert client(b"service", b"list", b"-q", b"--prefix", name).stdout.count(b"\n") == 1


@pytest.mark.parametrize("locale", ["Latin-1"], indirect=True)
def test_latin_1_comes_back_as_latin_1(
    client: Callable[..., subprocess.CompletedProcess[bytes]], broker: RunningBroker, tmp_path: Path
) -> None:
    made = client(b"service", b"register", b"--name", b"b\xe4r", b"--data", b"gr\xf6\xdfe")
    assert (made.stdout, made.returncode) == (b"gr\xf6\xdfe\n", 0), made.stderr
    assert broker.get("b\u00e4r").json["data"]["_str"] == "gr\u00f6\u00dfe"  # others see what was meant
    assert client(b"service", b"get", b"b\xe4r").stdout == b"gr\xf6\xdfe\n"
    assert client(b"service", b"get", "b\u00e4r".encode()).stdout == b"gr\xf6\xdfe\n"
    for spelled in (b"d\xe4ta", "d\u00e4ta".encode()):  # a file's name stays what it is on the disk
        path = bytes(tmp_path) + b"/" + spelled
        with open(path, "wb") as file:  # noqa: PTH123 - no text
            file.write(b"content")
        stored = client(b"service", b"replace", b"--name", b"f", b"--data", b"@" + path)
        assert stored.stdout == b"content\n", stored.stderr
    kept = tmp_path / "seen"
    script = b'printf %s "$BPBROKER_NAME" > ' + bytes(kept) + b"; exit 0"
    watch = (b"--timeout", b"20s", b"watch", b"--prefix", b"b\xe4", b"--initial", b"--count", b"1")
    watched = client(*watch, b"--", b"sh", b"-c", script)
    assert watched.returncode == 0, watched.stderr
    assert kept.read_bytes() == b"b\xe4r"
