from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from bpbroker.client.cli import words
from bpbroker.client.cli.words import content, seconds, secret, secret_file, secrets, split_cols
from bpbroker.discovery.jointoken import JoinToken, make_token
from bpbroker.errors import UsageError

FINGERPRINT = "ab" * 32
TOKEN = f"bpb1:{FINGERPRINT}:from-token"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("3", 3),
        ("0.5", 0.5),
        ("0", 0),
        (" 1s ", 1),
    ],
)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "s", "x", "-1s", "1y", "nan", "inf", "1e9", "5 m x", "1m30s", "400d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="duration"):
        seconds(text)


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    stream = io.BytesIO()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
    return stream


def test_content_is_itself_a_file_or_standard_input(tmp_path: Path, stdin: io.BytesIO) -> None:
    path = tmp_path / "with space"
    path.write_bytes("é\r\n".encode())
    stdin.write(b"from stdin\n")
    stdin.seek(0)
    assert content("plain", "--data") == "plain"
    assert content(f"@{path}", "--data") == "é\r\n"
    assert content("-", "--data") == "from stdin\n"
    assert content("--data", "--data") == "--data"


def test_content_that_cannot_be_read_is_named(
    tmp_path: Path, stdin: io.BytesIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"\xff")
    large = tmp_path / "large"
    large.write_bytes(b"x" * 11)
    monkeypatch.setattr(words, "DATA_MAX_BYTES", 10)
    stdin.write(b"y" * 11)
    stdin.seek(0)
    for text, says in (
        (f"@{bad}", "UTF-8"),
        (f"@{large}", "larger than 10 bytes"),
        (f"@{tmp_path}", "Permission denied" if os.name == "nt" else "directory"),
        ("@/nowhere/at/all", "No such file"),
        ("@", "No such file"),
        ("@a\0b", "null"),
        ("-", "larger than 10 bytes"),
    ):
        with pytest.raises(UsageError, match=says):
            content(text, "--data")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="Unix")
def test_what_never_ends_is_read_no_further_than_its_limit() -> None:
    with pytest.raises(UsageError, match="larger than 16777216 bytes"):
        content("@/dev/zero", "--data")
    for read, text in ((secret, "@/dev/zero"), (secret_file, "/dev/zero")):
        with pytest.raises(UsageError, match="larger than 65536 bytes"):
            read(text, "--access-key")


def test_a_secret_on_standard_input_is_short(stdin: io.BytesIO) -> None:
    stdin.write(b"k" * 65537)
    stdin.seek(0)
    with pytest.raises(UsageError, match="larger than 65536 bytes"):
        secret("-", "--access-key")


def test_a_secret_loses_the_newline_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(" s3cret \r\n\n")
    assert secret(f"@{path}", "--access-key") == " s3cret "
    assert secret_file(str(path), "--access-key-file") == " s3cret "
    assert secret("in line\n", "--access-key") == "in line\n"
    path.write_text("\n")
    with pytest.raises(UsageError, match="--access-key names is empty"):
        secret(f"@{path}", "--access-key")


@pytest.mark.parametrize(
    ("given", "environ", "key", "fingerprint"),
    [
        ({}, {}, "", ""),
        ({"access_key": "k"}, {"BPBROKER_ACCESS_KEY": "e"}, "k", ""),
        ({"access_key": ""}, {"BPBROKER_ACCESS_KEY": "e"}, "", ""),
        ({}, {"BPBROKER_ACCESS_KEY": "e"}, "e", ""),
        ({"token": TOKEN}, {}, "from-token", FINGERPRINT),
        ({"token": TOKEN}, {"BPBROKER_ACCESS_KEY": "e"}, "from-token", FINGERPRINT),
        ({"token": TOKEN, "access_key": "k"}, {}, "k", FINGERPRINT),
        ({}, {"BPBROKER_TOKEN": TOKEN}, "from-token", FINGERPRINT),
        ({}, {"BPBROKER_TOKEN": TOKEN, "BPBROKER_ACCESS_KEY": "e"}, "e", FINGERPRINT),
        ({"token": TOKEN, "fingerprint": "CD" * 32}, {}, "from-token", "cd" * 32),
        ({"token": f"bpb1:{FINGERPRINT}:"}, {"BPBROKER_ACCESS_KEY": "e"}, "e", FINGERPRINT),
    ],
)
def test_options_go_before_the_environment_and_the_particular_before_the_token(
    given: dict[str, str | None], environ: dict[str, str], key: str, fingerprint: str
) -> None:
    found = secrets(given, environ)
    assert (found.key, found.fingerprints) == (key, (fingerprint,) if fingerprint else ())


def test_secrets_from_files(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(f"{TOKEN}\n")
    (tmp_path / "k").write_text("k\n")
    found = secrets({}, {"BPBROKER_TOKEN": f"@{tmp_path / 't'}"})
    assert (found.key, found.fingerprints) == ("from-token", (FINGERPRINT,))
    assert secrets({"access_key_file": str(tmp_path / "k")}, {}).key == "k"
    assert secrets({"access_key": f"@{tmp_path / 'k'}"}, {}).key == "k"


def test_a_token_tells_addresses_and_the_discovery_secret() -> None:
    token = make_token(JoinToken(["10.0.0.5:20443"], [FINGERPRINT], "k", "cd" * 32, "ab" * 16))
    found = secrets({"token": token}, {})
    assert (found.addresses, found.discovery) == (("10.0.0.5:20443",), "cd" * 32)
    assert (found.key, found.registry) == ("k", "ab" * 16)
    other = secrets({"token": token, "access_key": "other"}, {})
    assert (other.key, other.registry) == ("other", "")  # the token says nothing of that key


COMMANDS, FLAGS = frozenset(("service", "get", "ping")), frozenset(("--raw", "-q"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--cols a b -f csv ping", "--cols=a --cols=b -f csv ping"),
        ("--cols a b service get --name x", "--cols=a --cols=b service get --name x"),
        ("service get --name x --cols a b", "service get --name x --cols=a --cols=b"),
        ("--cols ping", "ping"),
        ("--cols=a ping", "--cols=a ping"),
        ("-q --cols a ping", "-q --cols=a ping"),
        ("--name --cols x", "--name --cols x"),
        ("--raw --cols x", "--raw --cols=x"),
        ("-fjson --cols x", "-fjson --cols=x"),
        ("-qfjson --cols x", "-qfjson --cols=x"),
        ("-qf --cols x", "-qf --cols x"),
        ("- --cols x", "- --cols=x"),
        ("--data=1 --cols x", "--data=1 --cols=x"),
        ("-- --cols a b", "-- --cols a b"),
        ("--cols a -- b", "--cols=a -- b"),
        ("--data", "--data"),
        ("", ""),
    ],
)
def test_columns_are_understood_as_0_22s_users_write_them(arguments: str, expected: str) -> None:
    assert list(split_cols(arguments.split(), COMMANDS, FLAGS)) == expected.split()
