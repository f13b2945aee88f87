"""What is pure of ``bpbroker.windows``, and the words of command lines; the rest is in ``tests/windows``."""

from __future__ import annotations

import pytest

from bpbroker.text import command_line
from bpbroker.windows import how_ended, strangers

ME = "S-1-5-21-1-2-3-1000"


@pytest.mark.parametrize(
    ("descriptor", "met"),
    [
        ("O:BAD:P(A;;FA;;;S-1-5-21-1-2-3-1000)(A;;FA;;;BA)(A;;FA;;;SY)", ()),
        ("O:BAG:SYD:AI(A;ID;FA;;;BA)(A;ID;0x1200a9;;;BU)", ("BU",)),
        ("D:(A;OICIIO;GA;;;CO)(A;;FA;;;SY)", ()),  # for what will be made in it, not for itself
        ("D:(D;;FA;;;WD)(A;;FA;;;BA)", ()),  # a denial lets nobody in
        ("D:(A;;FR;;;S-1-1-0)(A;;FR;;;S-1-1-0)(A;;FW;;;AU)", ("S-1-1-0", "AU")),
        ("O:BAG:BA", ("WD",)),
        ("D:NO_ACCESS_CONTROL", ("WD",)),
        ("D:P", ()),
    ],
)
def test_whom_a_list_lets_in(descriptor: str, met: tuple[str, ...]) -> None:
    assert strangers(descriptor, {ME}) == met


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, "exit code 0"),
        (7, "exit code 7"),
        (0xC0000005, "exit code 0xC0000005, access violation"),
        (-1073741571, "exit code 0xC00000FD, stack overflow"),
        (0xC0DE0001, "exit code 0xC0DE0001"),
    ],
)
def test_how_a_process_ended(code: int, said: str) -> None:
    assert how_ended(code) == said


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        (r"C:\bp\a.json", r"C:\bp\a.json"),
        (r"C:\Program Files\a.json", '"C:\\Program Files\\a.json"'),
        ("C:\\with end\\", '"C:\\with end\\\\"'),
        (r"C:\a&b\c.json", '"C:\\a&b\\c.json"'),
        (r"\\server\share\a.json", r"\\server\share\a.json"),
        ("C:\\Users\\Žofie\\a.json", '"C:\\Users\\Žofie\\a.json"'),
        ("C:\\it's\\a.json", '"C:\\it\'s\\a.json"'),
        ("", '""'),
    ],
)
def test_a_word_for_cmd_and_powershell(word: str, quoted: str) -> None:
    assert command_line("bpbroker", "--config", word, windows=True) == f"bpbroker --config {quoted}"


def test_a_word_for_sh() -> None:
    assert command_line("bpbroker", "a b", windows=False) == "bpbroker 'a b'"
