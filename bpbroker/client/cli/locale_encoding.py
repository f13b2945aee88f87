"""Words of the command line and of the environment in a locale other than UTF-8, such as Latin-1.

Python reads words in the encoding of the locale. Scripts pass UTF-8 there as well, such as a name from a JSON
document.
"""

from __future__ import annotations

import os
import sys

from bpbroker.client.cli.shared_options import EVERYWHERE, Invocation
from bpbroker.text import heard, said

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:
    from typing import Any


def understood(call: Invocation) -> Invocation:
    """Return a call with the values of its options as text; names of files and words of a command are unchanged."""
    files = {option.key for option in (*EVERYWHERE, *call.command.options) if option.metavar == "FILE"}
    options = {option.key for option in call.command.options} - files

    def text(key: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(text(key, item) for item in value)
        if not isinstance(value, str) or (value.startswith("@") and key != "data_raw"):
            return value
        return heard(os.fsencode(value), sys.getfilesystemencoding())

    own = {key: text(key, value) if key in options else value for key, value in call.own.items()}
    given = {key: value if key in files else text(key, value) for key, value in call.given.items()}
    return Invocation(call.command, own, given)


def for_system(value: str) -> str:
    """Return text in the form in which it may go into the environment of a command."""
    return os.fsdecode(said(value, sys.getfilesystemencoding()))
