"""``bpclient`` as a process against a real broker: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from bpbroker.discovery.interfaces import own_address
from bpbroker.discovery.jointoken import JoinToken, make_token, parse_token
from tests.support.ports import refusing_port
from tests.support.running import RunningBroker

EXAMPLES = Path(__file__).parents[2] / "examples"
Ended = subprocess.CompletedProcess[str]


def value(ended: Ended) -> str:
    """Return what a successful command printed."""
    assert ended.returncode == 0, ended
    return ended.stdout


def fails(ended: Ended, code: int, says: str) -> None:
    """See that a command failed with one line that says why, and printed nothing."""
    assert ended.returncode == code, ended
    assert ended.stdout == ""
    lines = [line for line in ended.stderr.splitlines() if not line.startswith(("First contact", "Warning: "))]
    assert len(lines) == 1, ended
    assert lines[0].startswith("Fatal error: ")
    assert says in lines[0]


def here(broker: RunningBroker) -> str:
    return f"127.0.0.1:{broker.port}"


def run(broker: RunningBroker, *arguments: str, stdin: str = "", **environ: str) -> Ended:
    """Run ``bpclient`` without telling it which broker."""
    return subprocess.run(
        broker.command("bpbroker.client", *arguments),
        env={**broker.environ, **environ},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_row_of_the_protocols_table(broker: RunningBroker) -> None:
    client = broker.bpclient
    assert value(client("ping", "--data", "foo")) == "foo\n"
    assert value(client("service", "register", "--name", "foo", "--data", "bar")) == "bar\n"
    again = client("service", "register", "--name", "foo", "--data", "bar")
    assert (again.stdout, again.stderr, again.returncode) == ("", "Fatal error: Entry 'foo' already exists\n", 4)
    registered = value(client("service", "register", "--name", "foo3", "--data", '{"key": "x"}'))
    assert value(client("service", "get", "--name", "foo3")) == registered
    writer = own_address() or "127.0.0.1"
    assert registered.startswith(f'{{"key": "x", "last_write_ip": "{writer}", "last_write_ts": ')
    assert registered.endswith("}\n")
    updated = json.loads(value(client("service", "update", "--name", "foo3", "--data", '{"new": "y"}')))
    assert (updated["key"], updated["new"]) == ("x", "y")
    missing = client("service", "get", "--name", "nope")
    assert (missing.stdout, missing.stderr, missing.returncode) == ("", "Fatal error: Entry 'nope' not found\n", 3)
    for _ in range(2):
        assert value(client("service", "delete", "--name", "foo")) == ""
    raw = json.loads(value(client("service", "get", "--name", "foo3", "--raw")))
    assert raw.pop("revision") > 0
    assert raw == {"success": True, "message": "Success", "data": updated}
    local = json.loads(value(client("service", "get", "--name", "foo3", "--consistency", "local", "--raw")))
    assert local.pop("revision") > 0
    assert local == {**raw, "age_secs": 0.0}
    assert value(client("service", "list", "--consistency", "local", "--keys")) == "foo3\n"
    assert value(client("--port", str(broker.port), "discover", "--name", "foo3")).count(".") == 3
    fails(client("--port", str(broker.port), "--timeout", "300ms", "discover", "--name", "nope"), 124, "'nope'")


def test_an_extensions_answer_comes_as_it_is(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker({"example_extension_module": {"_access_key": "k"}})
    shutil.copy(EXAMPLES / "example_extension_module.py", broker.lib)
    broker.start()
    method = ("execute", "--method", "example_extension_module.Test", "--data", "h")
    assert json.loads(value(broker.bpclient("-a", "k", *method))) == {"data": "h", "from": "127.0.0.1"}
    fails(broker.bpclient("-a", "wrong", *method), 5, "Incorrect access key")
    fails(broker.bpclient("execute", "--method", "nope.Test", "--data", "h"), 5, "Unauthorized package")


def test_options_may_stand_where_0_22s_users_put_them_and_anywhere_else(broker: RunningBroker) -> None:
    where = here(broker)
    broker.register("foo", '{"a": 1, "b": 2}')
    for arguments in (
        ("-b", where, "--cols", "a", "b", "-f", "csv", "service", "get", "--name", "foo"),
        ("service", "-b", where, "-f", "csv", "get", "--name", "foo", "--cols", "a", "b"),
        ("service", "get", "--name", "foo", "--bpbroker", where, "--format=csv", "--cols", "a", "--cols", "b"),
    ):
        assert value(run(broker, *arguments)) == "a,b\n1,2\n"
    assert value(run(broker, "service", "get", "--name", "foo", "--field", "a", BPBROKER=where)) == "1\n"
    assert value(run(broker, "-b", where, "ping", "--data", "x", BPBROKER="127.0.0.1:1")) == "x\n"


# --- exit codes ---


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("service", "get"), "--name"),
        (("service", "register", "--name", "x"), "--data"),
        (("service", "register", "--name", "x", "--data", "1", "--data-raw", "2"), "--data-raw"),
        (("service", "nonsense"), "nonsense"),
        (("--nonsense", "ping"), "--nonsense"),
        (("-f", "xml", "ping"), "xml"),
        (("--timeout", "soon", "ping"), "duration"),
        (("--timeout", "0", "ping"), "--timeout"),
        (("--retry", "-1", "ping"), "-1"),
        (("--port", "x", "discover", "--name", "foo"), "port"),
        (("--interface", "nonsense0", "discover", "--name", "foo"), "nonsense0"),
        (("discover", "--name", "_access_key"), "_access_key"),
        (("discover", "--name", "x", "--all", "--first"), "--all"),
        (("--discover", "x", "ping"), "--discover"),
        (("--fingerprint", "abc", "ping"), "64 hexadecimal"),
        (("--token", "hush-hush", "ping"), "bpb2:"),
        (("--access-key-file", "/nowhere", "ping"), "/nowhere"),
        (("--cacert", "/nowhere", "ping"), "/nowhere"),
        (("service", "register", "--name", "x", "--data", "@/nowhere"), "/nowhere"),
        (("execute", "--method", "nodot", "--data", "x"), "nodot"),
        (("service", "replace", "--name", "x", "--data", "y", "--if-match", 'a"b'), "entity tag"),
        (("service", "get", "--name", "x", "--consistency", "weak"), "weak"),
        (("service", "get", "--name", "x", "--consistency", "local", "--wait", "1s"), "wait"),
    ],
)
def test_2_the_words_make_no_sense(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    broker = RunningBroker(tmp_path / "home")
    broker.port = 1  # nobody is there, and nobody is asked
    ended = broker.bpclient(*arguments)
    fails(ended, 2, says)
    assert "hush-hush" not in ended.stderr


@pytest.mark.parametrize("address", ["host:", "host:abc", "host:0", "host:65536", ":1", "[::1", "https://host", "a b"])
def test_2_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    fails(run(RunningBroker(tmp_path / "home"), "-b", address, "ping"), 2, "HOST:PORT")


def test_2_which_broker(tmp_path: Path) -> None:
    fails(run(RunningBroker(tmp_path / "home"), "ping"), 2, "BPBROKER")


def test_2_nothing_to_do_shows_the_help(tmp_path: Path) -> None:
    ended = run(RunningBroker(tmp_path / "home"))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Usage: bpclient" in ended.stderr


def test_0_help_and_version(tmp_path: Path) -> None:
    broker = RunningBroker(tmp_path / "home")
    for arguments in (("-h",), ("--help",), ("service", "--help"), ("service", "get", "-h"), ("discover", "-h")):
        assert "Usage: bpclient" in value(run(broker, *arguments))
    assert value(run(broker, "--version")).startswith("bpclient ")


def test_2_what_the_broker_cannot_do(broker: RunningBroker) -> None:
    fails(broker.bpclient("service", "get", "--name", "_access_key"), 2, "_")
    fails(broker.bpclient("service", "register", "--name", "x", "--data", '{"last_write_ip": 1}'), 2, "reserved")
    fails(broker.bpclient("service", "register", "--name", "x", "--data", '{"a": NaN}'), 2, "NaN")


def test_1_a_result_that_cannot_be_written(broker: RunningBroker) -> None:
    broker.register("foo")
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            broker.command("bpbroker.client", "-b", f"127.0.0.1:{broker.port}", "service", "get", "--name", "foo"),
            env=broker.environ, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    assert "standard output" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_reader_of_the_result_went_away_or_is_none(broker: RunningBroker) -> None:
    broker.register("foo")
    command = broker.command("bpbroker.client", "-q", "-b", here(broker), "service", "get", "--name", "foo")
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        command, env=broker.environ, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")  # quietly, as any program whose reader went away
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command],
        env=broker.environ, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (closed.returncode, closed.stderr.count("\n")) == (1, 1)
    assert "standard output is closed" in closed.stderr


def test_1_help_that_cannot_be_written(tmp_path: Path) -> None:
    broker = RunningBroker(tmp_path / "home")
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            broker.command("bpbroker.client", "--help"),
            env=broker.environ, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    assert ended.returncode != 0


def test_3_without_standard_error(broker: RunningBroker) -> None:
    command = broker.command("bpbroker.client", "-q", "-b", here(broker), "service", "get", "--name", "nope")
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command],
        env=broker.environ, stdout=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (3, "")


def test_a_large_result_comes_whole_through_a_pipe(broker: RunningBroker) -> None:
    """The process ends without an orderly end; nothing that it has written is lost."""
    data = "x" * 400_000
    assert broker.call("/services/Register/", name="big", data=data).status == 200
    assert value(broker.bpclient("service", "get", "--name", "big")) == f"{data}\n"


def test_3_and_4_what_is_and_what_is_not_there(broker: RunningBroker) -> None:
    fails(broker.bpclient("service", "get", "--name", "foo"), 3, "not found")
    value(broker.bpclient("service", "register", "--name", "foo", "--data", "x"))
    fails(broker.bpclient("service", "get", "--name", "foo", "--field", "role"), 3, "no field 'role'")
    fails(broker.bpclient("service", "register", "--name", "foo", "--data", "x"), 4, "already exists")
    fails(broker.bpclient("service", "delete", "--name", "foo", "--if-match", "other"), 4, "")
    tag = value(broker.bpclient("service", "get", "--name", "foo", "--etag")).strip()
    new = value(broker.bpclient("service", "replace", "--name", "foo", "--data", "y", "--if-match", tag, "--etag"))
    assert new.strip() != tag
    fails(broker.bpclient("service", "update", "--name", "foo", "--data", "z", "--if-match", tag), 4, "")
    assert value(broker.bpclient("service", "delete", "--name", "foo", "--if-match", new.strip())) == ""


def test_5_and_6_nobody_there_and_somebody_else(broker: RunningBroker, tmp_path: Path) -> None:
    with refusing_port() as port:
        fails(run(broker, "-b", f"127.0.0.1:{port}", "--retry", "0", "ping"), 6, "Cannot connect")
    fails(run(broker, "-b", "no.such.host.invalid", "--retry", "0", "ping"), 6, "looked up")
    fails(broker.bpclient("--fingerprint", "00" * 32, "ping"), 6, "nothing was sent")
    known = tmp_path / "known"
    known.write_text(f"127.0.0.1:{broker.port} SHA256:{'00' * 32}\n")
    changed = run(broker, "-b", f"127.0.0.1:{broker.port}", "ping", BPBROKER_KNOWN_BROKERS=str(known))
    fails(changed, 6, "00:00")
    assert broker.note["fingerprint"] in changed.stderr
    assert str(known) in changed.stderr


def test_6_servers_that_are_no_brokers(tmp_path: Path) -> None:
    broker = RunningBroker(tmp_path / "home")
    for content in (b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def serve(content: bytes = content, listening: socket.socket = listening) -> None:
                sock, _ = listening.accept()
                with sock, suppress(ConnectionResetError):  # it may go before it has read all
                    sock.sendall(content)
                    sock.recv(1000)

            thread = threading.Thread(target=serve)
            thread.start()
            ended = run(broker, "-b", f"127.0.0.1:{listening.getsockname()[1]}", "--retry", "0", "ping")
            thread.join(10)
        fails(ended, 6, "")


# 7, several brokers: test_discovery_netns.py, because it takes two hosts.


def test_124_a_server_that_never_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        began = time.monotonic()
        ended = run(RunningBroker(tmp_path / "home"), "-b", address, "--timeout", "500ms", "ping")
    fails(ended, 124, "did not answer within 0.5 s")
    assert time.monotonic() - began < 20


def test_124_what_did_not_come_in_time(broker: RunningBroker) -> None:
    fails(broker.bpclient("service", "get", "--name", "foo", "--wait", "300ms"), 124, "did not appear within 0.3 s")
    fails(
        broker.bpclient("service", "wait", "--prefix", "node-", "--count", "2", "--timeout", "300ms"),
        124,
        "fewer than 2",
    )
    broker.register("foo")
    tag = value(broker.bpclient("service", "get", "--name", "foo", "--etag")).strip()
    fails(broker.bpclient("service", "get", "--name", "foo", "--wait", "300ms", "--changed-from", tag), 124, "change")


def test_130_an_interrupt_is_no_traceback(broker: RunningBroker) -> None:
    process = subprocess.Popen(
        broker.command("bpbroker.client", "-b", here(broker), "service", "get", "--name", "x", "--wait", "1m"),
        env=broker.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("First contact")
    process.send_signal(2)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "Fatal error: Interrupted\n")


# --- no loop needed ---


def test_a_wait_ends_the_moment_that_the_entry_is_there(broker: RunningBroker) -> None:
    waiting = subprocess.Popen(
        broker.command("bpbroker.client", "-b", here(broker), "service", "get", "--name", "m", "--wait", "1m"),
        env=broker.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert waiting.stderr is not None
    assert waiting.stderr.readline().startswith("First contact")
    broker.register("m", "10.0.0.5")
    began = time.monotonic()
    assert waiting.communicate(timeout=60) == ("10.0.0.5\n", "")
    assert time.monotonic() - began < 20


def test_a_wait_and_a_plain_call_outlive_a_broker_that_starts_later(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker().start()
    broker.register("foo", "bar")
    assert broker.stop() == 0
    commands = (
        ("service", "get", "--name", "foo", "--wait", "1m"),
        ("--retry", "30", "service", "get", "--name", "foo"),
    )
    waiting = [
        subprocess.Popen(
            broker.command("bpbroker.client", "-q", "-b", f"127.0.0.1:{broker.port}", *command),
            env=broker.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for command in commands
    ]  # fmt: skip
    broker.start()
    for process in waiting:
        assert process.communicate(timeout=90) == ("bar\n", "")


def test_a_barrier(broker: RunningBroker) -> None:
    waiting = subprocess.Popen(
        broker.command(
            "bpbroker.client", "-b", f"127.0.0.1:{broker.port}",
            "service", "wait", "--prefix", "node-", "--count", "3", "--timeout", "1m",
        ),
        env=broker.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for number in (3, 1, 2):
        broker.register(f"node-{number}")
    out, _ = waiting.communicate(timeout=60)
    assert out == "node-1\nnode-2\nnode-3\n"


def test_running_the_same_script_twice(broker: RunningBroker) -> None:
    register = ("service", "register", "--name", "node", "--data", '{"role": "replica"}', "--idempotent")
    assert value(broker.bpclient(*register)) == value(broker.bpclient(*register))
    fails(broker.bpclient("service", "register", "--name", "node", "--data", "other", "--idempotent"), 4, "exists")


def test_find_then_do_in_one_call(broker: RunningBroker) -> None:
    broker.register("foo-cluster1", "here")
    found = run(
        broker, "--port", str(broker.port), "--discover", "foo-cluster1", "service", "get", "--name", "foo-cluster1"
    )
    assert value(found) == "here\n"
    # A flag beats the environment.
    value(run(broker, "--port", str(broker.port), "--discover", "foo-cluster1", "ping", BPBROKER="127.0.0.1:1"))


# --- trust ---


def test_a_join_token_is_all_that_a_machine_needs(make_broker: Callable[..., RunningBroker], tmp_path: Path) -> None:
    broker = make_broker({"services": {"_access_key": "canary"}, "_global": {"discovery": "authenticated"}}).start()
    token = broker.token()
    (tmp_path / "token").write_text(f"{token}\n")
    where, port = here(broker), ("--port", str(broker.port))
    value(run(broker, "-b", where, "--token", token, "service", "register", "--name", "foo", "--data", "bar"))
    for how, environ in (
        (("--token", token), {}),
        (("--token", f"@{tmp_path / 'token'}"), {}),
        ((), {"BPBROKER_TOKEN": token}),
        ((), {"BPBROKER_TOKEN": f"@{tmp_path / 'token'}"}),
    ):
        for more in ((), ("--discover", "foo")):
            ended = run(broker, *port, *how, *more, "service", "get", "--name", "foo", **environ)
            assert (ended.stdout, ended.stderr, ended.returncode) == ("bar\n", "", 0)
    assert not Path(broker.environ["BPBROKER_KNOWN_BROKERS"]).exists()
    # Without the secret, or with another, there is no answer; that of a broker with another certificate is not taken.
    quick = (*port, "--timeout", "400ms")
    fails(run(broker, *quick, "discover", "--name", "foo"), 124, "answered")
    fails(run(broker, *quick, "-a", "canary", "discover", "--name", "foo"), 124, "answered")
    other = make_token(JoinToken((), ["00" * 32], "canary", broker.discovery_secret))
    fails(run(broker, *quick, "--token", other, "discover", "--name", "foo"), 124, "answered")
    fails(run(broker, "-b", where, "--token", other, "ping"), 6, "nothing was sent")
    assert "canary" not in broker.text
    assert broker.discovery_secret not in broker.text


def test_of_a_tokens_addresses_the_first_that_is_the_broker_is_taken(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker({"services": {"_access_key": "canary"}}).start()
    stranger = make_broker().start()
    token = broker.token("--address", here(stranger), "--address", "127.0.0.1:1", "--address", here(broker))
    ended = run(broker, "--token", token, "service", "register", "--name", "foo", "--data", "bar")
    assert value(ended) == "bar\n"
    assert "is not the expected one; nothing was sent" in ended.stderr
    assert stranger.get("foo").status == 404


def test_the_discovery_secret_is_made_once_and_outlives_a_start_and_a_reload(broker: RunningBroker) -> None:
    secret = broker.discovery_secret
    assert len(secret) == 64
    broker.restart()
    assert broker.discovery_secret == secret
    done = broker.bpbroker("token", "--renew-secret", "--address", "h:1")
    renewed = parse_token(done.stdout).secret
    assert done.returncode == 0, done.stderr
    assert renewed not in ("", secret)
    secret = broker.discovery_secret
    assert secret == renewed
    content = json.loads(broker.config.read_text())
    del content["_discovery"]["secret"]
    broker.config.write_text(json.dumps(content))
    assert broker.bpbroker("reload").returncode == 0
    assert broker.stop() == 0
    assert broker.discovery_secret == secret
    assert secret not in broker.text
    refused = broker.bpbroker("token", "--renew-secret", "--address", "h:1")
    assert (refused.returncode, refused.stdout) == (1, ""), refused
    assert broker.discovery_secret == secret


def test_a_fingerprint_alone_lets_tls_decide(broker: RunningBroker) -> None:
    value(broker.bpclient("service", "register", "--name", "foo", "--data", "bar"))
    known = ("--port", str(broker.port), "--fingerprint", broker.note["fingerprint"])
    assert value(run(broker, *known, "discover", "--name", "foo"))
    assert value(run(broker, *known, "-a", "k", "--discover", "foo", "service", "get", "--name", "foo")) == "bar\n"


def test_no_key_goes_to_whichever_host_answered_a_discovery(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker({"services": {"_access_key": "canary"}}).start()
    value(broker.bpclient("-a", "canary", "service", "register", "--name", "foo", "--data", "bar"))
    pins = Path(broker.environ["BPBROKER_KNOWN_BROKERS"])
    pins.unlink()
    port = ("--port", str(broker.port))
    get = ("--discover", "foo", "service", "get", "--name", "foo")
    before = broker.text.count('"Get"')
    for how, environ in ((("-a", "canary"), {}), ((), {"BPBROKER_ACCESS_KEY": "canary"}), (("-q", "-a", "canary"), {})):
        ended = run(broker, *port, *how, *get, **environ)
        fails(ended, 6, "nothing was sent")
        for way in ("--token", "--fingerprint", "--cacert", broker.note["fingerprint"]):
            assert way in ended.stderr
        assert "canary" not in ended.stderr
    assert not pins.exists()
    assert broker.text.count('"Get"') == before
    certificate = str(broker.config.with_suffix(".crt"))
    for how in (("--token", broker.token()), ("--fingerprint", broker.note["fingerprint"]), ("--cacert", certificate)):
        assert value(run(broker, *port, "-a", "canary", *how, *get)) == "bar\n"
    found = value(run(broker, *port, "discover", "--name", "foo")).strip()
    value(run(broker, "-b", found, "ping"))  # pins it
    assert value(run(broker, *port, "-a", "canary", *get)) == "bar\n"


def test_a_key_goes_to_a_named_address_with_a_warning_that_shows_the_certificate(broker: RunningBroker) -> None:
    first, second = broker.bpclient("-a", "k", "ping"), broker.bpclient("-a", "k", "ping")
    assert value(first)
    assert "Warning: the access key goes to" in first.stderr
    assert broker.note["fingerprint"] in first.stderr
    assert (second.returncode, second.stderr) == (0, "")


@pytest.mark.parametrize(("options", "environ"), [(("--strict",), {}), ((), {"BPBROKER_TRUST": "strict"})])
def test_strict_trust_takes_no_first_contact(
    broker: RunningBroker, options: tuple[str, ...], environ: dict[str, str]
) -> None:
    for key in ((), ("-a", "k")):
        ended = run(broker, "-b", here(broker), *key, *options, "ping", "--data", "x", **environ)
        fails(ended, 6, "nothing was sent")
        assert broker.note["fingerprint"] in ended.stderr
    known = ("--fingerprint", broker.note["fingerprint"])
    assert value(run(broker, "-b", here(broker), *options, *known, "ping", "--data", "x", **environ)) == "x\n"
    assert not Path(broker.environ["BPBROKER_KNOWN_BROKERS"]).exists()
    value(broker.bpclient("ping"))
    assert value(run(broker, "-b", here(broker), *options, "ping", "--data", "x", **environ)) == "x\n"


def test_a_word_for_trust_that_means_nothing_is_refused(broker: RunningBroker) -> None:
    fails(run(broker, "-b", here(broker), "ping", BPBROKER_TRUST="stict"), 2, "BPBROKER_TRUST")
    fails(run(broker, "-b", here(broker), "--insecure", "--strict", "ping"), 2, "--insecure")


@pytest.mark.parametrize(("said", "code"), [("y\n", 0), ("n\n", 6), ("\n", 6), ("\x04", 6)])
def test_on_a_terminal_a_person_is_asked(broker: RunningBroker, said: str, code: int) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        broker.command("bpbroker.client", "-b", here(broker), "-a", "k", "ping", "--data", "x"),
        env=broker.environ, stdin=follower, stdout=subprocess.PIPE, stderr=follower, text=True,
    )  # fmt: skip
    os.close(follower)
    shown = ""
    while "[y/N]" not in shown:
        shown += os.read(leader, 1000).decode()
    assert broker.note["fingerprint"] in shown
    os.write(leader, said.encode())
    assert process.communicate(timeout=30)[0] == ("x\n" if code == 0 else "")
    os.close(leader)
    assert process.returncode == code


def test_insecure_warns_and_a_ca_file_is_enough(broker: RunningBroker) -> None:
    ended = broker.bpclient("--insecure", "ping", "--data", "x")
    assert value(ended) == "x\n"
    assert "not checked" in ended.stderr
    assert broker.bpclient("--insecure", "-q", "ping").stderr == ""
    ended = broker.bpclient("--cacert", str(broker.config.with_suffix(".crt")), "ping", "--data", "x")
    assert (ended.stdout, ended.stderr) == ("x\n", "")


def test_the_first_contact_is_said_once(broker: RunningBroker) -> None:
    first, second = broker.bpclient("ping"), broker.bpclient("ping")
    assert broker.note["fingerprint"] in first.stderr
    assert first.stderr.count("\n") == 1
    assert second.stderr == ""


def test_no_secret_is_in_the_log_or_in_an_error(make_broker: Callable[..., RunningBroker], tmp_path: Path) -> None:
    broker = make_broker({"services": {"_access_key": "right"}}).start()
    (tmp_path / "key").write_text("canary\n")
    for how, environ in (
        (("-a", "canary"), {}),
        (("-a", f"@{tmp_path / 'key'}"), {}),
        (("--access-key-file", str(tmp_path / "key")), {}),
        ((), {"BPBROKER_ACCESS_KEY": "canary"}),
    ):
        ended = run(broker, "-b", f"127.0.0.1:{broker.port}", *how, "service", "get", "--name", "x", **environ)
        fails(ended, 5, "Incorrect access key")
        assert "canary" not in ended.stderr
    assert value(run(broker, "-b", f"127.0.0.1:{broker.port}", "-a", "-", "service", "list", stdin="right\n")) == ""
    assert "canary" not in broker.text


def test_a9_too_many_wrong_keys_end_with_a_clear_word(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker({"services": {"_access_key": "right"}, "api": {"wrong_keys_per_minute": 2}}).start()
    for _ in range(2):
        fails(broker.bpclient("-a", "wrong", "service", "list"), 5, "Incorrect access key")
    fails(broker.bpclient("-a", "wrong", "service", "list"), 1, "Too many wrong access keys")


def test_progress_is_for_terminals(broker: RunningBroker) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        broker.command("bpbroker.client", "-b", here(broker), "service", "get", "--name", "m", "--wait", "3s"),
        env={**broker.environ, "TERM": "xterm"}, stdout=subprocess.PIPE, stderr=follower, text=True,
    )  # fmt: skip
    os.close(follower)
    shown = ""
    while "\n" not in shown.partition("Waiting for entry 'm'")[2]:
        shown += os.read(leader, 1000).decode()
    assert process.communicate(timeout=30)[0] == ""
    os.close(leader)
    assert process.returncode == 124
