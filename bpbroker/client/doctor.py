"""Looking at everything on the way from this host to a broker, one finding after the other.

For ``bpclient doctor`` and, of the broker on this host, ``bpbroker doctor``.
Nothing is changed: no pin is made, no entry is written.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final, NamedTuple

from bpbroker.client.address import BrokerAddress
from bpbroker.client.answers import refusal
from bpbroker.client.http1 import Response
from bpbroker.client.pins import KnownBrokers
from bpbroker.client.transport import Deadline, Transport, Trust
from bpbroker.discovery.interfaces import interfaces
from bpbroker.discovery.jointoken import shown_fingerprint
from bpbroker.errors import ClientError, NotTrusted

OK: Final = "ok"
WARNING: Final = "warning"
FAIL: Final = "fail"

_EXPIRY_WARN_DAYS: Final = 30
_CLOCK_WARN_SECS: Final = 60
_RENEW: Final = "on the broker's host: bpbroker certificate --renew"
_SEE_STATUS: Final = "on the broker's host: bpbroker status"
_TRUST: Final = "give --token, --fingerprint or --cacert; `bpbroker certificate` on the broker's host shows it"
_UDP_TRIES: Final = 3
_UDP_WAIT_SECS: Final = 1.0

_UTC: Final = timezone.utc  # noqa: UP017 - datetime.UTC needs Python 3.11
# The two times of a certificate's validity (RFC 5280, section 4.1.2.5), each a UTCTime or a GeneralizedTime.
_TIME: Final = rb"(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)"
_VALIDITY: Final = re.compile(rb"\x30[\x1e-\x22]" + _TIME + _TIME)


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    level: str
    """:data:`OK`, :data:`WARNING` or :data:`FAIL`."""
    detail: str
    advice: str = ""
    """What to do about it; empty when all is well."""


def networks() -> Finding:
    """Look at this host's networks: discovery needs one with a broadcast address."""
    found = [item for item in interfaces() if not item.loopback]
    shown = ", ".join(
        f"{item.name or '?'} {item.address}" + (f" (broadcast {item.broadcast})" if item.broadcast else "")
        for item in found
    )
    if any(item.broadcast or item.link_local for item in found):
        return Finding("networks", OK, shown)
    if not found:
        return Finding("networks", WARNING, "there is none but loopback", "bring a network interface up")
    return Finding("networks", WARNING, f"none of them can broadcast: {shown}", "name the broker with --bpbroker")


def examine(
    target: BrokerAddress, trust: Trust, pins: KnownBrokers, *, key: str = "", timeout_secs: float = 5.0
) -> Iterator[Finding]:
    """Look at the way to a broker; what cannot work after a failure is not tried.

    Args:
        target: the broker.
        trust: by what it is to be recognised.
        pins: the certificates seen before.
        key: access key of ``services``.
        timeout_secs: for each step.
    """
    port = f"TCP port {target.port} must be let through by firewalls, and bpbroker must run there"
    try:
        raw = socket.create_connection((target.host, target.port), timeout_secs)
    except socket.gaierror as error:
        yield Finding(
            "name", FAIL, f"{target.host} is not known: {error.strerror}", "check the name, or use the address"
        )
        return
    except OSError as error:
        yield Finding("TCP", FAIL, f"{target} cannot be reached: {error.strerror or error}", port)
        return
    yield Finding("TCP", OK, f"{target} takes connections")
    with raw:
        try:
            certificate = _certificate(raw)
        except OSError as error:
            reason = getattr(error, "reason", "") or error.strerror or error
            yield Finding("TLS", FAIL, f"{target} does not speak it: {reason}", "something else answers on that port")
            return
    found = hashlib.sha256(certificate).hexdigest()
    trusted = _recognised(found, target, trust, pins, timeout_secs)
    yield trusted
    yield _expiry(certificate)
    if trusted.level != FAIL:
        known = _is_known(found, target, trust, pins)
        yield from _requests(target, found, key if known else "", timeout_secs)
        if key and not known:
            untried = "the access key was not tried: this certificate was never seen before"
            yield Finding("key", WARNING, untried, _TRUST)
    yield _udp(target)


def _certificate(raw: socket.socket) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only looked at here
    with context.wrap_socket(raw) as sock:
        return sock.getpeercert(binary_form=True) or b""


def _recognised(found: str, target: BrokerAddress, trust: Trust, pins: KnownBrokers, timeout_secs: float) -> Finding:
    shown = f"SHA-256 {shown_fingerprint(found)}"
    if trust.fingerprints:
        if found in trust.fingerprints:
            return Finding("certificate", OK, f"{shown}, as expected")
        expected = " or ".join(map(shown_fingerprint, trust.fingerprints))
        return Finding(
            "certificate", FAIL, f"{shown}, expected {expected}",
            "if the broker has a new certificate, use its new token or fingerprint; else this is not your broker",
        )  # fmt: skip
    if trust.cacert:
        transport = Transport(target, trust, pins)
        try:
            transport.connect(Deadline(timeout_secs, str(target)))
        except ClientError as error:
            return Finding("certificate", FAIL, str(error), "see `bpbroker certificate` on the broker's host")
        finally:
            transport.close()
        return Finding("certificate", OK, f"{shown}, good by {trust.cacert}")
    if trust.insecure:
        return Finding("certificate", OK, shown)
    try:
        pinned = pins.known(str(target), found)
    except NotTrusted as error:
        return Finding("certificate", FAIL, str(error), "see `bpbroker certificate` on the broker's host")
    if pinned:
        return Finding("certificate", OK, f"{shown}, as pinned in {pins.path}")
    return Finding("certificate", OK, f"{shown}, not seen before; the first call will pin it")


def _is_known(found: str, target: BrokerAddress, trust: Trust, pins: KnownBrokers) -> bool:
    """Whether more is known of a certificate than that it is there: only then may a key go to its owner."""
    return bool(trust.fingerprints or trust.cacert or trust.insecure) or pins.known(str(target), found)


def _expiry(certificate: bytes) -> Finding:
    until = not_after(certificate)
    if until is None:
        return Finding("expiry", WARNING, "the certificate's time cannot be read", "look at it with openssl x509")
    days = (until - datetime.now(_UTC)).days
    detail = f"the certificate is good until {until:%Y-%m-%d %H:%M} UTC ({days} days)"
    if days < 0:
        return Finding("expiry", FAIL, f"the certificate expired on {until:%Y-%m-%d}", _RENEW)
    if days < _EXPIRY_WARN_DAYS:
        return Finding("expiry", WARNING, detail, _RENEW)
    return Finding("expiry", OK, detail)


def _requests(target: BrokerAddress, fingerprint: str, key: str, timeout_secs: float) -> Iterator[Finding]:
    transport = Transport(target, Trust([fingerprint]), KnownBrokers(os.devnull))
    try:
        began = time.monotonic()
        answer = transport.exchange("GET", "/health", {}, None, Deadline(timeout_secs, str(target)))
        millis = (time.monotonic() - began) * 1000
        if answer.status == HTTPStatus.OK and b'"state": "warning"}' in answer.body:
            yield Finding("health", WARNING, "the broker serves, but a part of it needs a look", _SEE_STATUS)
        elif answer.status == HTTPStatus.OK:
            yield Finding("health", OK, f"the broker is well; it answered within {millis:.0f} ms")
        elif answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
            yield Finding("health", FAIL, "the broker says that a part of it is not well", _SEE_STATUS)
        else:
            yield Finding("health", FAIL, f"{target} answers {answer.status}", "it is no bpbroker of this kind")
            return
        yield _clock(answer.headers.get("date", ""))
        headers = {"Content-Type": b"application/x-www-form-urlencoded"}
        if key:
            headers["Authorization"] = f"Bearer {key}".encode()
        name = f"doctor-{os.urandom(8).hex()}".encode()
        deadline = Deadline(timeout_secs, str(target))
        answer = transport.exchange("POST", "/services/Get/", headers, b"name=" + name, deadline)
        yield _access(answer, given=bool(key))
    except ClientError as error:
        yield Finding("requests", FAIL, str(error), "see the broker's log")
    finally:
        transport.close()


def _access(answer: Response, *, given: bool) -> Finding:
    status = answer.status
    if status == HTTPStatus.NOT_FOUND:
        return Finding("access", OK, "the access key is accepted" if given else "the registry needs no access key")
    if status == HTTPStatus.UNAUTHORIZED:
        what = "the access key is refused" if given else "the registry needs an access key"
        return Finding("access", FAIL, what, "see _access_key of services in the broker's configuration, or its token")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Finding("access", FAIL, "too many wrong keys came from this host", "wait a minute")
    return Finding("access", FAIL, f"the registry answers {status}: {refusal(answer)}", _SEE_STATUS)


def _clock(date: str) -> Finding:
    try:
        apart = (parsedate_to_datetime(date) - datetime.now(_UTC)).total_seconds()
    except (ValueError, TypeError):
        return Finding("clock", WARNING, "the broker does not say what time it is", "it may not be a bpbroker")
    if abs(apart) < _CLOCK_WARN_SECS:
        return Finding("clock", OK, "both clocks agree")
    way = "ahead of" if apart > 0 else "behind"
    return Finding("clock", WARNING, f"the broker's clock is {abs(apart):.0f} s {way} this host's", "run an NTP client")


def _udp(target: BrokerAddress) -> Finding:
    nonce = os.urandom(8).hex().encode()
    advice = f"UDP port {target.port} must be let through by firewalls; without it discovery finds nothing"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.settimeout(_UDP_WAIT_SECS)
            sock.connect(address)
            for _ in range(_UDP_TRIES):
                sock.send(b"ping/Ping?data=" + nonce)
                try:
                    if sock.recv(1024) == nonce:
                        return Finding("UDP", OK, f"{target} answers")
                except (TimeoutError, socket.timeout):  # noqa: UP041 - two classes before Python 3.10
                    continue
    except OSError as error:
        return Finding("UDP", WARNING, f"{target} cannot be reached: {error.strerror or error}", advice)
    return Finding("UDP", WARNING, f"{target} does not answer", advice)


def not_after(certificate: bytes) -> datetime | None:
    """Return the moment until which a certificate (DER) is good; None when it cannot be read."""
    found = _VALIDITY.search(certificate)
    if found is None:
        return None
    short, long = found[3], found[4]
    form, text = ("%y%m%d%H%M%S", short) if short else ("%Y%m%d%H%M%S", long)
    try:
        return datetime.strptime(text.decode(), form).replace(tzinfo=_UTC)
    except ValueError:
        return None
