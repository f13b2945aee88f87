from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpbroker.client.pins import KnownBrokers, default_path, means
from bpbroker.errors import NotTrusted
from tests.support.systems import is_private

A, B = "aa" * 32, "bb" * 32


def test_the_first_contact_is_pinned_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "new" / "known_brokers"
    KnownBrokers(path, said.append).check("10.0.0.5:20443", A)
    assert path.read_text().splitlines()[-1] == f"10.0.0.5:20443 SHA256:{A}"
    assert is_private(path)
    assert is_private(path.parent)
    (sentence,) = said
    assert "10.0.0.5:20443" in sentence
    assert "AA:AA" in sentence
    KnownBrokers(path, said.append).check("10.0.0.5:20443", A)
    assert len(said) == 1


def test_another_certificate_is_refused_with_both_fingerprints_and_where_the_pin_is(tmp_path: Path) -> None:
    path = tmp_path / "known_brokers"
    pins = KnownBrokers(path)
    pins.check("h:1", A)
    before = path.read_bytes()
    with pytest.raises(NotTrusted) as caught:
        pins.check("h:1", B)
    assert caught.value.exit_code == 6
    for part in ("AA:AA", "BB:BB", "line 2", str(path)):
        assert part in str(caught.value)
    assert path.read_bytes() == before


def test_brokers_are_kept_apart_and_other_lines_alone(tmp_path: Path) -> None:
    path = tmp_path / "known_brokers"
    path.write_text(f"# mine\n\nh:1 SHA256:{A}\nnonsense\nh:2 MD5:xx\n")
    pins = KnownBrokers(path)
    pins.check("h:2", B)
    pins.check("h:1", A)
    assert path.read_text() == f"# mine\n\nh:1 SHA256:{A}\nnonsense\nh:2 MD5:xx\nh:2 SHA256:{B}\n"


def test_a_pin_that_was_spoilt_by_hand_is_no_pin_for_anything(tmp_path: Path) -> None:
    path = tmp_path / "known_brokers"
    path.write_text("h:1 SHA256:spoilt\n")
    with pytest.raises(NotTrusted, match="spoilt"):
        KnownBrokers(path).check("h:1", A)


def test_a_pin_that_cannot_be_kept_is_said_and_no_error(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "file").write_text("")
    KnownBrokers(tmp_path / "file" / "known_brokers", said.append).check("h:1", A)
    assert "Cannot remember" in said[0]


def test_a_file_that_cannot_be_read_trusts_nobody(tmp_path: Path) -> None:
    (tmp_path / "known_brokers").mkdir()
    with pytest.raises(NotTrusted, match="cannot be read"):
        KnownBrokers(tmp_path / "known_brokers").check("h:1", A)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="Unix")
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "/dev/null"])
def test_what_is_no_regular_file_has_no_pins(path: str) -> None:
    with pytest.raises(NotTrusted, match=f"{path} cannot be read: it is no regular file; mend that, or use"):
        KnownBrokers(path).check("h:1", "ab" * 32)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Unix")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "known_brokers")
    with pytest.raises(NotTrusted, match="no regular file"):
        KnownBrokers(tmp_path / "known_brokers").check("h:1", "ab" * 32)


def test_a_file_that_is_larger_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "known_brokers"
    with path.open("wb") as file:
        file.truncate(4 * 1024**4)
    with pytest.raises(NotTrusted, match="more than 1048576 bytes"):
        KnownBrokers(path).check("h:1", "ab" * 32)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_pins_that_powershell_wrote_are_read_and_kept(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "known_brokers"
    path.write_bytes(f"h:1 SHA256:{'ab' * 32}\r\n".encode(encoding))
    with pytest.raises(NotTrusted):
        KnownBrokers(path).check("h:1", "cd" * 32)
    KnownBrokers(path).check("h:2", "cd" * 32)
    assert KnownBrokers(path).known("h:1", "ab" * 32)
    assert KnownBrokers(path).known("h:2", "cd" * 32)


def test_many_processes_pin_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "known_brokers"
    code = (
        "import sys; from bpbroker.client.pins import KnownBrokers\n"
        "for n in range(10): KnownBrokers(sys.argv[1]).check(f'h:{sys.argv[2]}{n}', 'aa' * 32)\n"
        "KnownBrokers(sys.argv[1]).check('shared:1', 'aa' * 32)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), str(number)]) for number in range(8)]
    assert [process.wait(60) for process in running] == [0] * 8
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines)) == 81
    assert not list(tmp_path.glob("known_brokers.??*[!k]"))


@pytest.mark.skipif(sys.platform == "win32", reason="the paths are Unix's")
def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BPBROKER_KNOWN_BROKERS", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert default_path() == "/home/me/.config/bpbroker/known_brokers"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert default_path() == "/home/me/.config/bpbroker/known_brokers"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/me")
    assert default_path() == "/etc/me/bpbroker/known_brokers"
    monkeypatch.setenv("BPBROKER_KNOWN_BROKERS", "/x/y")
    assert default_path() == "/x/y"


def test_this_host_has_one_pin_whatever_it_is_called(tmp_path: Path) -> None:
    said: list[str] = []
    known = KnownBrokers(tmp_path / "known", said.append)
    known.check("localhost:20443", "ab" * 32)
    for address in ("127.0.0.1:20443", "[::1]:20443"):
        known.check(address, "ab" * 32)
    assert len(said) == 1
    known.check("127.0.0.1:20444", "cd" * 32)  # another port is another broker
    known.check("[::1]:20444", "ef" * 32)  # and so may this be
    known.check("10.0.0.1:20443", "ab" * 32)
    assert len(known.pins()) == 4
    with pytest.raises(NotTrusted, match="bpclient trust forget localhost:20443"):
        known.check("localhost:20443", "cd" * 32)


@pytest.mark.parametrize(
    ("word", "gone"),
    [
        ("::1", {"localhost:20443", "127.0.0.1:9"}),
        ("127.0.0.1:9", {"127.0.0.1:9"}),
        ("localhost:9", {"127.0.0.1:9"}),
        ("h", {"h:1", "h:2"}),
        ("[fe80::1%eth0]", {"[fe80::1%eth0]:20443"}),
        ("nope", set()),
    ],
)
def test_a_pin_is_forgotten_by_host_or_by_host_and_port(tmp_path: Path, word: str, gone: set[str]) -> None:
    every = ("localhost:20443", "127.0.0.1:9", "h:1", "h:2", "[fe80::1%eth0]:20443")
    (tmp_path / "known").write_text("# mine\n" + "".join(f"{each} SHA256:{'ab' * 32}\n" for each in every))
    known = KnownBrokers(tmp_path / "known")
    assert set(known.forget(means(word))) == gone
    assert set(known.pins()) == set(every) - gone
    assert (tmp_path / "known").read_text().startswith("# mine\n")


def test_a_byte_order_mark_hides_no_pin(tmp_path: Path) -> None:
    path = tmp_path / "pins"
    path.write_text(f"a:1 SHA256:{'0' * 64}\n", encoding="utf-8-sig")
    assert KnownBrokers(path).pins() == {"a:1": "0" * 64}
    with pytest.raises(NotTrusted):
        KnownBrokers(path).check("a:1", "1" * 64)
