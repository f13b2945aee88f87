"""What operators type and meet: impossible names, full disks, files that are new, clocks that are wrong."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bpbroker import files
from bpbroker.commands import doctor as doctor_command
from bpbroker.config import schema
from bpbroker.config.paths import Home
from bpbroker.errors import ConfigurationError, StartError
from bpbroker.registry import named_keys
from bpbroker.runtime import logs, prepare
from bpbroker.runtime.logs import LogOptions, setup_logging
from bpbroker.runtime.pidfile import write_pid
from bpbroker.server import host_certificate, own_pair, tls
from bpbroker.server.certificate_watch import CertificateWatch
from bpbroker.storage import config_file
from bpbroker.storage.embedded.journal import read_journal
from bpbroker.storage.lock_file import FileLock, holder
from tests.commands.conftest import Ran
from tests.support.systems import posix_only

Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _folder(home: Path) -> None:
    (home / "etc").mkdir(parents=True)


def test_a_mistyped_command_is_guessed(bpbroker: Run) -> None:
    done = bpbroker("strat")
    assert done.code == 2
    assert "Did you mean start?" in done.err


@pytest.mark.parametrize("words", [("strat",), ("start", "--listen-port", "x"), ("stop", "--no"), ("-c", "", "stop")])
def test_every_error_begins_with_the_programs_name(bpbroker: Run, words: tuple[str, ...]) -> None:
    done = bpbroker(*words)
    usage, hint, between, error = done.err.splitlines()
    assert usage.startswith("Usage: bpbroker")
    assert hint.startswith("Try 'bpbroker")
    assert between == ""
    assert error.startswith("bpbroker: ")
    assert done.code == 2


def _lock(folder: Path) -> None:
    FileLock(folder / "b.json").acquire()


def _folder_of_new_file(folder: Path) -> None:
    prepare.make_folders(folder / "new" / "b.json", Home(folder))


def _pair(folder: Path) -> None:
    host_certificate.ensure_pair(folder / "b.crt", folder / "b.key")


def _half_made_pair(folder: Path) -> None:
    host_certificate.heal_pair(folder / "b.crt", folder / "b.key")


def _log(folder: Path) -> None:
    setup_logging(LogOptions(folder / "log"))


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, StartError, 1),
        (errno.EDQUOT, StartError, 1),
        (errno.EIO, StartError, 1),
        (errno.EACCES, ConfigurationError, 78),
    ],
)
@pytest.mark.parametrize(
    ("make", "refused"),
    [
        (_lock, (files, "open_private")),
        (lambda folder: write_pid(folder / "pid"), (files, "write_whole")),
        (_folder_of_new_file, (files, "make_folder")),
        (_pair, (own_pair, "put")),
        (_half_made_pair, (own_pair, "heal")),
        (_log, (logs, "handler_of")),
    ],
)
def test_what_cannot_be_written_for_lack_of_room_may_have_some_later(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    refused: tuple[object, str],
    number: int,
    kind: type[Exception],
    code: int,
) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*refused, refuse)
    with pytest.raises(kind, match=os.strerror(number)) as caught:
        make(tmp_path)
    assert getattr(caught.value, "exit_code") == code  # noqa: B009 - not every exception has it


@posix_only("one number of an error for each reason")
@pytest.mark.parametrize(("number", "code"), [(errno.EIO, 1), (errno.EMFILE, 1), (errno.EACCES, 78)])
@pytest.mark.parametrize(
    ("read", "name"),
    [
        (config_file.read_content, "b.json"),
        (read_journal, "b.json.journal"),
        (host_certificate.read_certificate, "b.crt"),
        (lambda path: tls.context(path.with_suffix(".crt"), path), "b.key"),
        (lambda path: holder(path.with_suffix("")), "b.json.lock"),
    ],
)
def test_what_cannot_be_read_for_now_may_be_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any], name: str, number: int, code: int
) -> None:
    host_certificate.make_pair(tmp_path / "b.crt", tmp_path / "b.key")
    path = tmp_path / name
    if not path.exists():
        path.write_bytes(b"{}" * 8192)
    real = io.open, os.open

    def refusing(which: int) -> Callable[..., Any]:
        def opened(file: Any, *how: Any, **more: Any) -> Any:
            if str(file) == str(path):
                raise OSError(number, os.strerror(number), str(file))
            return real[which](file, *how, **more)

        return opened

    monkeypatch.setattr(io, "open", refusing(0))
    monkeypatch.setattr(os, "open", refusing(1))
    with pytest.raises((StartError, ConfigurationError), match=os.strerror(number)) as caught:
        read(path)
    assert getattr(caught.value, "exit_code") == code  # noqa: B009 - not every exception has it
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("host", ["ä..b", "a b", "x" * 64, "", "a..b", "\udcff"])
def test_names_that_no_certificate_takes(bpbroker: Run, home: Path, host: str) -> None:
    assert bpbroker("prepare").code == 0
    before = (home / "etc" / "bpbroker.crt").read_bytes()
    done = bpbroker("certificate", "--renew", "--host", host)
    assert done.code == 78
    assert "can be no host's name" in done.err
    assert (home / "etc" / "bpbroker.crt").read_bytes() == before


@pytest.mark.parametrize("host", ["\udcff\udcfe", "a b", "x" * 64])
def test_an_odd_name_of_the_host_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    host_certificate.make_pair(tmp_path / "a.crt", tmp_path / "a.key")
    assert host not in host_certificate.read_certificate(tmp_path / "a.crt").names


def test_the_certificate_says_what_it_lacks_after_a_rename(bpbroker: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bpbroker("prepare").code == 0
    assert json.loads(bpbroker("certificate", "-f", "json").out)["lacks"] == []
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    done = bpbroker("certificate")
    assert "it lacks of this host's names and addresses: renamed" in done.err
    found = {each["what"]: each for each in json.loads(bpbroker("doctor", "-f", "json").out)}
    assert "renamed" in found["certificate's names"]["detail"]
    assert bpbroker("certificate", "--renew").code == 0
    assert json.loads(bpbroker("certificate", "-f", "json").out)["lacks"] == []


def test_both_ends_of_the_certificates_time_are_watched(tmp_path: Path) -> None:
    cert = tmp_path / "a.crt"
    host_certificate.make_pair(cert, tmp_path / "a.key")
    found = host_certificate.read_certificate(cert)
    assert found.problem(datetime.now(UTC)) == ""
    early = found.not_before - timedelta(days=3)
    assert found.problem(early).startswith("is not valid before")
    assert CertificateWatch(lambda: cert, lambda: early)().detail.startswith("is not valid before")
    assert found.problem(found.not_after + timedelta(days=1)) == "has expired"


def test_an_entry_of_before_that_no_client_can_read_is_warned_of() -> None:
    (said,) = schema.warnings({"services": {"_odd": {"a": 1}, "_access_key": "k", "fine": {}}})
    assert said.startswith("services._odd looks like an entry, but no client can read it")


def test_a_file_that_is_new_is_said_to_be(bpbroker: Run, tmp_path: Path) -> None:
    done = bpbroker("-c", tmp_path / "TYPO.json", "validate")
    assert done.code == 0
    assert f"{tmp_path / 'TYPO.json'} is not there: a start makes it" in done.err


def test_validate_finds_what_a_start_refuses(bpbroker: Run, home: Path) -> None:
    assert bpbroker("prepare").code == 0
    assert bpbroker("validate").code == 0
    key = home / "etc" / "bpbroker.key"
    content = key.read_bytes()
    key.unlink()
    done = bpbroker("validate")
    assert done.code == 78
    assert f"Cannot read the private key {key}" in done.err
    key.write_bytes(content)
    (home / "etc" / "bpbroker.json.journal").write_bytes(b"rubbish" * 100)
    assert bpbroker("validate").code == 78


def test_a_dry_run_of_a_restore_is_for_beside_a_broker_too(bpbroker: Run, home: Path) -> None:
    assert bpbroker("prepare").code == 0
    backup = bpbroker("backup").out.strip()
    with FileLock(home / "etc" / "bpbroker.json"):
        done = bpbroker("restore", "--dry-run", backup)
        assert (done.code, "Nothing was changed" in done.err) == (0, True), done.err
        assert bpbroker("restore", backup).code == 1


def test_the_doctor_tells_an_address_that_is_not_here_from_a_port_in_use(bpbroker: Run) -> None:
    assert bpbroker("configure", stdin='{"api": {"listen_ip": "192.0.2.1"}}').code == 0
    found = {each["what"]: each for each in json.loads(bpbroker("doctor", "-f", "json").out)}
    assert "listen_ip" in found["TCP port"]["advice"]
    assert "stop what uses it" not in found["TCP port"]["advice"]


@posix_only("modes; the lists of Windows are looked at in tests/windows")
def test_the_doctor_says_which_private_files_others_can_read(bpbroker: Run, home: Path) -> None:
    assert bpbroker("prepare").code == 0

    def found() -> list[dict[str, str]]:
        return [each for each in json.loads(bpbroker("doctor", "-f", "json").out) if each["what"] == "access to files"]

    assert found() == []
    own, folder = home / "etc" / "bpbroker.json", home / "backups"
    folder.mkdir(exist_ok=True)
    own.chmod(0o644)
    folder.chmod(0o755)
    assert [(each["detail"], each["advice"]) for each in found()] == [
        (f"{path} can be read by others than its owner", f"chmod {mode} {path}")
        for path, mode in ((own, 600), (folder, 700))
    ]


def test_the_doctor_on_a_filesystem_that_is_read_only(
    bpbroker: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bpbroker("prepare").code == 0
    monkeypatch.setattr(os, "access", lambda _path, mode: not mode & os.W_OK)
    monkeypatch.setattr(doctor_command, "_is_read_only", lambda folder: folder == home / "etc")
    found = [each for each in json.loads(bpbroker("doctor", "-f", "json").out) if each["what"] == "folder"]
    assert [("read-only" in each["detail"], "root" in each["advice"]) for each in found] == [(True, False)]


def test_the_doctor_says_what_is_the_matter_with_keys(bpbroker: Run, tmp_path: Path) -> None:
    """Open namespaces, weak keys, common words, keys that nobody uses, and such as end soon."""
    now = time.time()

    def key(secret: str, allow: str = "guarded", **days: float) -> dict[str, Any]:
        times = {name: named_keys.shown_time(now + 86_400 * value) for name, value in days.items()}
        return {"sha256": hashlib.sha256(secret.encode()).hexdigest(), "allow": [allow], **times}

    file = tmp_path / "b.json"
    document = {
        "services": {},
        "guarded": {},
        "opened": {"_access_key": ""},
        "weak": {"_access_key": "short"},
        "strong": {"_access_key": "8dYt-h2Kq0sLw-71vBnm"},
        "_keys": {
            "fine": key("a-canary-of-its-own-1", made=-1, last_used=-1),
            "idle": key("a-canary-of-its-own-2", made=-200, last_used=-91),
            "never": key("a-canary-of-its-own-3", made=-91),
            "used": key("a-canary-of-its-own-4", made=-200, last_used=-89),
            "ending": key("a-canary-of-its-own-5", made=-100, last_used=-1, until=13),
            "later": key("a-canary-of-its-own-6", made=-100, last_used=-1, until=15),
            "token": key("a-canary-of-its-own-7", made=-0.1, until=0.1),
            "word": key("password", made=-1, last_used=-1),
            "gone": key("a-canary-of-its-own-8", made=-200, last_used=-100, revoked=-99),
        },
    }
    file.write_text(json.dumps(document))
    done = bpbroker("-c", file, "doctor", "--format", "json")
    found = [each for each in json.loads(done.out) if each["what"].startswith("key")]
    said = {(each["what"], each["detail"]) for each in found if each["level"] == "warning"}
    ending = document["_keys"]["ending"]["until"]  # type: ignore[index]  # of a document made above
    assert ("key idle", "unused for 91 days") in said
    assert ("key never", "unused for 91 days") in said
    assert ("key ending", f"it ends at {ending}") in said
    assert ("key word", "its secret is a common word") in said
    assert {what for what, _ in said} == {"keys", "key idle", "key never", "key ending", "key word"}
    of_sections = [detail for what, detail in said if what == "keys"]
    assert any("weak._access_key" in each for each in of_sections)
    (opened,) = [each for each in of_sections if "open" in each.split() or "open to" in each]
    assert "services" in opened
    assert "opened" in opened
    assert not any(name in opened for name in ("guarded", "strong", "weak"))
    assert all(each["advice"] for each in found if each["level"] == "warning")
    assert "canary" not in done.out + done.err
    assert "short" not in done.out.replace("shorter", "")
