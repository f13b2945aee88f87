"""With the C module alone, the client checks and says what it does with ``ssl``."""

from __future__ import annotations

import importlib.util
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trustme

from bpbroker import client as package
from bpbroker.client import Client, sockets, tls
from bpbroker.errors import BpbrokerError
from tests.support.fake_broker import FakeBroker, success

pytestmark = pytest.mark.skipif(not sockets.BARE, reason="this Python takes ssl anyway")

Use = Callable[[str], ModuleType]
KINDS = ("bare", "ssl")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Return what puts one of the two kinds in the place of the client's module."""

    def put(kind: str) -> ModuleType:
        module = tls
        if kind == "ssl":
            spec = importlib.util.spec_from_file_location("bpbroker.client.tls", str(tls.__file__))
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            with monkeypatch.context() as patch:
                patch.setattr(sockets, "BARE", False)
                spec.loader.exec_module(module)
        assert (kind == "bare") == vars(module)["BARE"]
        monkeypatch.setitem(sys.modules, "bpbroker.client.tls", module)
        monkeypatch.setattr(package, "tls", module)
        return module

    return put


@pytest.mark.parametrize("checks", [True, False])
def test_the_settings_are_those_of_ssl(use: Use, checks: bool) -> None:
    def known(settings: Any) -> dict[str, Any]:
        names = (
            *("check_hostname", "verify_mode", "verify_flags", "options", "minimum_version", "maximum_version"),
            *("post_handshake_auth", "protocol", "security_level"),
        )
        found = {name: int(getattr(settings, name)) for name in names}
        return {**found, "ciphers": settings.get_ciphers(), "store": settings.cert_store_stats()}

    bare, other = (known(use(kind).new_settings(checks=checks)) for kind in KINDS)
    assert bare == other
    assert bare["minimum_version"] == ssl.TLSVersion.TLSv1_2
    assert (bare["check_hostname"], bare["verify_mode"]) == ((1, ssl.CERT_REQUIRED) if checks else (0, ssl.CERT_NONE))


def said(call: Callable[[], object]) -> str:
    """Return what a call returns, or the error that it raises, as text."""
    try:
        return repr(call())
    except BpbrokerError as error:
        return f"{type(error).__name__}: {error}"


def _old(_fake: FakeBroker, context: ssl.SSLContext) -> None:
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")


def _silent(fake: FakeBroker, _context: ssl.SSLContext) -> None:
    def wait_for_the_end(sock: ssl.SSLSocket) -> None:
        while sock.recv(65536):
            pass

    fake.handler = wait_for_the_end


def _answers_once(fake: FakeBroker, what: bytes) -> None:
    """Answer, and end the connection without saying so in TLS."""

    def once(sock: ssl.SSLSocket) -> None:
        sock.recv(65536)
        sock.sendall(what)

    fake.handler = once


def _cut_in_the_middle(fake: FakeBroker, _context: ssl.SSLContext) -> None:
    _answers_once(fake, success({"a": 1})[:-5])


def _cut_at_the_end(fake: FakeBroker, _context: ssl.SSLContext) -> None:
    """Let the answer last until the connection ends."""
    _answers_once(fake, success({"a": 1}).replace(b"Content-Length", b"X-Length"))


@pytest.mark.parametrize(
    ("behaves", "options", "expected"),
    [
        (None, {}, "{'a': 1}"),
        (None, {"fingerprint": "ab" * 32}, "NotTrusted: "),
        (None, {"cacert": "other"}, "NotTrusted: The certificate of "),
        (None, {"cacert": "wrong name"}, "NotTrusted: The certificate of "),
        (None, {"cacert": "good"}, "{'a': 1}"),
        (None, {"cacert": "empty"}, "UsageError: The file "),
        (_old, {}, "CannotConnect: "),
        (_silent, {"timeout_secs": 0.3}, "WaitTimeout: "),
        (_cut_in_the_middle, {}, "Interrupted: "),
        (_cut_at_the_end, {}, "{'a': 1}"),
    ],
    ids=[
        *("pinned", "another certificate", "another authority", "another name", "authority", "no authority"),
        *("old TLS", "silent", "cut in the middle", "cut at the end"),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_call_ends_the_same_with_both(
    fake: FakeBroker,
    known_brokers: Path,
    tmp_path: Path,
    authority: trustme.CA,
    use: Use,
    behaves: Callable[[FakeBroker, ssl.SSLContext], None] | None,
    options: dict[str, Any],
    expected: str,
    host: str,
) -> None:
    assert not known_brokers.exists()
    fake.show(authority)  # a context of its own, for it may be changed
    trust = dict(options)
    if "cacert" in options:
        if options["cacert"] == "wrong name":
            fake.show(authority, "another.example")
        bundle = tmp_path / "bundle.pem"
        issuer = trustme.CA() if options["cacert"] == "other" else authority
        bundle.write_bytes(b"nothing" if options["cacert"] == "empty" else issuer.cert_pem.bytes())
        trust["cacert"] = bundle
    elif "fingerprint" not in options:
        trust["fingerprint"] = fake.fingerprint
    ends = []
    for kind in KINDS:
        use(kind)
        fake.answers = [success({"a": 1})]
        if behaves is not None:
            behaves(fake, fake._identity.context)
        with Client(f"{host}:{fake.port}", **{"timeout_secs": 30, "retries": 0, **trust}) as client:
            ends.append(said(partial(client.get, "a")))
    assert ends[0] == ends[1]
    assert ends[0].startswith(expected)


def _handshake(module: ModuleType, authority: trustme.CA, made: trustme.LeafCert, host: bytes) -> str:
    """Return what comes of a handshake with a server that has this certificate: nothing, or what is wrong with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.configure_cert(context)
    settings = module.new_settings(checks=True)
    settings.load_verify_locations(cadata=authority.cert_pem.bytes().decode())
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with closing(theirs), suppress(OSError), context.wrap_socket(theirs, server_side=True) as taken:
            taken.recv(1)

    server = threading.Thread(target=serve)
    server.start()
    ours.settimeout(30)
    sock = module.wrap(ours, settings, host)
    try:
        sock.do_handshake()
    except module.CertificateRefused as error:
        return str(error.verify_message)
    finally:
        sock.close()
        server.join(30)
    return ""


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"127.0.0.1", ""),
        (b"127.0.0.2", "IP address mismatch"),
        (b"::1", ""),
        (b"0:0::1", ""),
        (b"fe80::1", "IP address mismatch"),
        (b"LOCALHOST", ""),
        (b"xn--mnchen-3ya.example", ""),
        (b"a.wild.example", ""),
        (b"a.b.wild.example", "Hostname mismatch"),
        (b"wild.example", "Hostname mismatch"),
    ],
)
def test_a_certificate_is_for_the_same_names_with_both(
    authority: trustme.CA, use: Use, host: bytes, expected: str
) -> None:
    made = authority.issue_cert("127.0.0.1", "::1", "localhost", "m\u00fcnchen.example", "*.wild.example")
    ends = [_handshake(use(kind), authority, made, host) for kind in KINDS]
    assert ends[0] == ends[1]
    assert ends[0].startswith(expected) if expected else not ends[0]


def test_a_certificate_whose_time_is_over_is_refused_with_both(authority: trustme.CA, use: Use) -> None:
    made = authority.issue_cert("localhost", not_after=datetime.now(UTC) - timedelta(days=1))
    assert {_handshake(use(kind), authority, made, b"localhost") for kind in KINDS} == {"certificate has expired"}


def test_a_name_that_is_only_the_subject_of_a_certificate_counts_with_neither(authority: trustme.CA, use: Use) -> None:
    made = authority.issue_cert("other.example", common_name="localhost")
    ends = [_handshake(use(kind), authority, made, b"localhost") for kind in KINDS]
    assert ends[0] == ends[1]
    assert ends[0].startswith("Hostname mismatch")


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_is_kept_and_one_that_has_ended_is_noticed(fake: FakeBroker, use: Use, kind: str) -> None:
    use(kind)
    fake.answers = [
        success({"a": 1}),
        success({"a": 1}),
        success({"a": 1}).replace(b"\r\n", b"\r\nConnection: close\r\n", 1),
    ]
    with Client(fake.address, fingerprint=fake.fingerprint, retries=0) as client:
        for _ in range(4):
            client.get("a")
    assert (len(fake.requests), fake.connections) == (4, 2)


def test_fingerprints_are_those_of_hashlib(use: Use) -> None:
    assert len({use(kind).fingerprint(b"certificate") for kind in KINDS}) == 1
