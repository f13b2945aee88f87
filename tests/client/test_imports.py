"""What starting the client loads: that is most of what a one-shot call costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpbroker.client.sockets import BARE
from tests.support.fake_broker import FakeBroker, success

ROOT = Path(__file__).parents[2]
SERVER = {"pykka", "cherrypy", "cheroot", "OpenSSL", "cryptography", "sqlite3"}
COSTLY = {
    *("click", "typing", "dataclasses", "contextlib", "pathlib", "ipaddress", "inspect", "threading", "logging"),
    *("http.client", "email", "urllib", "asyncio", "tempfile", "random", "csv", "ctypes", "datetime", "encodings.idna"),
    *("signal", *(("ssl", "socket", "hashlib") if BARE else ())),
}


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Return what code loads in a Python that has loaded nothing, not even ``site``, and so finds only ours."""
    begin = f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules)"
    end = "print('loaded:', *(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"{begin}\n{code.format(end=end)}", *arguments],
        env={name: text for name, text in os.environ.items() if name in ("BPBROKER_KNOWN_BROKERS", "SYSTEMROOT")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.rpartition("loaded:")[2].split())


def ours(loaded: set[str]) -> set[str]:
    return {name.removeprefix("bpbroker.") for name in loaded if name.startswith("bpbroker.")}


@pytest.mark.parametrize("module", ["bpbroker.client", "bpbroker.client.api", "bpbroker.client.cli.parser"])
def test_nothing_that_a_call_may_not_need_is_loaded(module: str) -> None:
    loaded = loaded_by(f"import {module}\n{{end}}")
    assert loaded.isdisjoint({*SERVER, *COSTLY, "_ssl"})
    assert not {name for name in ours(loaded) if not name.startswith("client")} - {
        *("errors", "recipes", "recipes.coordination", "registry", "registry.entry_values", "retry"),
    }


def test_the_public_names_are_there_and_load_nothing_of_the_server() -> None:
    names = "Broker, Client, Entry, Result, discover, discover_all"
    loaded = loaded_by(f"from bpbroker.client import {names}\nassert callable(discover)\n{{end}}")
    assert loaded.isdisjoint({*SERVER, "click", "_ssl", "http", "email"})
    assert {name for name in ours(loaded) if not name.startswith("client")} == {
        *("errors", "recipes", "recipes.coordination", "registry", "registry.entry_values", "retry"),
        *("discovery", "discovery.datagram", "discovery.interfaces", "discovery.jointoken"),
    }


# The process ends in os._exit, where this looks.
ONE_SHOT = """
import os
def look(code):
    {end}
    sys.stdout.flush()
    end(code)
end, os._exit = os._exit, look
from bpbroker.client.cli.main import main
main()
"""


@pytest.mark.parametrize(
    "words",
    [
        ("service", "get", "--name", "foo"),
        ("service", "get", "--name", "foo", "-fjson", "--cols", "a", "b"),
        ("service", "register", "--name", "foo", "--data", '{"a": 1}'),
        ("-q", "service", "list", "--keys"),
    ],
)
def test_all_that_a_one_shot_call_loads(fake: FakeBroker, known_brokers: Path, words: tuple[str, ...]) -> None:
    fake.answers = [success({"a": {"b": 1}} if "list" in words else {"a": 1})]
    known_brokers.parent.mkdir()
    known_brokers.write_text(f"{fake.address} SHA256:{fake.fingerprint}\n")
    loaded = loaded_by(ONE_SHOT, "-b", fake.address, *words)
    assert loaded.isdisjoint({*SERVER, *COSTLY})
    assert "_ssl" in loaded
    assert ours(loaded) == {
        *("errors", "process", "progress", "recipes", "recipes.coordination"),
        *("registry", "registry.entry_values", "retry"),
        *(
            f"client.{name}"
            for name in ("address", "api", "calls", "answers", "http1", "transport", "sockets", "tls", "pins")
        ),
        *("client", "client.cli"),
        *(f"client.cli.{name}" for name in ("main", "parser", "shared_options", "words")),
        *(f"client.cli.{name}" for name in ("command_table", "session", "output")),
    }
