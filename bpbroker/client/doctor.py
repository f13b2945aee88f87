"""Checks of the way from this host to a broker, one finding after the other.

For ``bpclient doctor`` and, of the broker on this host, ``bpbroker doctor``.
Nothing is changed: no pin is made, no entry is written.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from bpbroker.client.address import BrokerAddress, host_bytes, lacks_interface, not_known
from bpbroker.client.answers import refusal
from bpbroker.client.dialing import Lookup
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
    """The result of one check."""

    what: str
    level: str
    """:data:`OK`, :data:`WARNING` or :data:`FAIL`."""
    detail: str
    advice: str = ""
    """What to do about it; empty when all is well."""


def networks() -> Finding:
    """Check this host's networks: discovery needs one with a broadcast address."""
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
    target: BrokerAddress,
    trust: Trust,
    pins: KnownBrokers,
    *,
    key: str = "",
    timeout_secs: float = 5.0,
    total_secs: float = float("inf"),
) -> Iterator[Finding]:
    """Check the way to a broker; after a failure, checks that depend on it are not made.

    Args:
        target: the broker.
        trust: how the broker is recognised.
        pins: the certificates seen before.
        key: access key of ``services``.
        timeout_secs: for each step.
        total_secs: for all together.
    """
    end = time.monotonic() + total_secs

    def left() -> float:
        return max(0.001, min(timeout_secs, end - time.monotonic()))

    try:
        places = _places(target, left())
    except (OSError, UnicodeError) as error:
        silent = isinstance(error, TimeoutError)
        advice = "see that this host's name server answers" if silent else "check the name"
        yield Finding("name", FAIL, str(not_known(target.host, error)), f"{advice}, or use the address")
        return
    try:
        raw = _connected(places, left())
    except OSError as error:
        yield Finding("TCP", FAIL, f"{target} cannot be reached: {error.strerror or error}", _to_reach(target, error))
        return
    where = raw.getpeername()
    yield Finding("TCP", OK, f"{target} takes connections")
    with raw:
        try:
            raw.settimeout(left())
            certificate = _certificate(raw)
        except OSError as error:
            reason = getattr(error, "reason", "") or error.strerror or error
            yield Finding("TLS", FAIL, f"{target} does not speak it: {reason}", "something else answers on that port")
            return
    found = hashlib.sha256(certificate).hexdigest()
    trusted = _recognised(found, target, trust, pins, left())
    yield trusted
    yield _validity(certificate)
    if trusted.level != FAIL:
        known = _is_known(found, target, trust, pins)
        yield from _requests(target, found, key if known else "", left)
        if key and not known:
            untried = "the access key was not tried: this certificate was never seen before"
            yield Finding("key", WARNING, untried, _TRUST)
    yield _udp(target, where, left)


def _places(target: BrokerAddress, secs: float) -> list[tuple[Any, ...]]:
    """Return the addresses of the broker's name, as :func:`socket.getaddrinfo` does, looked up in this time.

    Raises:
        OSError, UnicodeError: there are none, or no name server answered.
    """
    lookup = Lookup(host_bytes(target.host), target.port)
    with lookup.over, selectors.DefaultSelector() as selector:
        selector.register(lookup.over, selectors.EVENT_READ)
        if not selector.select(secs):
            raise TimeoutError(errno.ETIMEDOUT, f"no name server answered within {secs:.3g} s")
    if lookup.error is not None:
        raise lookup.error
    return lookup.places


def _connected(places: Sequence[tuple[Any, ...]], secs: float) -> socket.socket:
    """Return a connection to the first of these addresses that accepts it; each has its share of the time.

    Raises:
        OSError: none did; the error of the last one.
    """
    end = time.monotonic() + secs
    for number, (family, kind, protocol, _, where) in enumerate(places):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(max(0.001, (end - time.monotonic()) / (len(places) - number)))
            sock.connect(where)
        except OSError:
            sock.close()
            if number == len(places) - 1:
                raise
        else:
            return sock
    raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def _to_reach(target: BrokerAddress, error: OSError) -> str:
    """Return the advice for a connection that could not be made."""
    if lacks_interface(target):
        return f"name the interface that leads there: {target.host}%INTERFACE, such as %eth0"
    if error.errno == errno.ENETUNREACH:
        loopback = target.host in ("127.0.0.1", "localhost", "::1")
        how = "loopback is down here: ip link set lo up" if loopback else "bring an interface or a route up"
        return f"this host has no way there; {how}"
    return f"TCP port {target.port} must be let through by firewalls, and bpbroker must run there"


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
    """Whether the certificate is known to be the broker's: only then may a key be sent."""
    return bool(trust.fingerprints or trust.cacert or trust.insecure) or pins.known(str(target), found)


def _validity(certificate: bytes) -> Finding:
    since, until = validity(certificate)
    if since is None or until is None:
        return Finding("expiry", WARNING, "the certificate's time cannot be read", "look at it with openssl x509")
    now = datetime.now(_UTC)
    if now < since:
        detail = f"the certificate is not valid before {since:%Y-%m-%d %H:%M} UTC; here it is {now:%Y-%m-%d %H:%M}"
        return Finding("expiry", FAIL, detail, f"see that both clocks are right; if they are, {_RENEW}")
    days = (until - now).days
    detail = f"the certificate is good until {until:%Y-%m-%d %H:%M} UTC ({days} days)"
    if days < 0:
        return Finding("expiry", FAIL, f"the certificate expired on {until:%Y-%m-%d}", _RENEW)
    if days < _EXPIRY_WARN_DAYS:
        return Finding("expiry", WARNING, detail, _RENEW)
    return Finding("expiry", OK, detail)


def _requests(target: BrokerAddress, fingerprint: str, key: str, left: Callable[[], float]) -> Iterator[Finding]:
    transport = Transport(target, Trust([fingerprint]), KnownBrokers(os.devnull))
    try:
        began = time.monotonic()
        answer = transport.exchange("GET", "/health", {}, None, Deadline(left(), str(target)))
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
        deadline = Deadline(left(), str(target))
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


def _udp(target: BrokerAddress, where: Any, left: Callable[[], float]) -> Finding:
    nonce = os.urandom(8).hex().encode()
    advice = f"UDP port {target.port} must be let through by firewalls; without it discovery finds nothing"
    try:
        with socket.socket(socket.AF_INET6 if ":" in where[0] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(where)
            for _ in range(_UDP_TRIES):
                sock.settimeout(min(_UDP_WAIT_SECS, left()))
                sock.send(b"ping/Ping?data=" + nonce)
                try:
                    if sock.recv(1024) == nonce:
                        return Finding("UDP", OK, f"{target} answers")
                except (TimeoutError, socket.timeout):  # noqa: UP041 - two classes before Python 3.10
                    continue
    except OSError as error:
        return Finding("UDP", WARNING, f"{target} cannot be reached: {error.strerror or error}", advice)
    return Finding("UDP", WARNING, f"{target} does not answer", advice)


def validity(certificate: bytes) -> tuple[datetime | None, datetime | None]:
    """Return the begin and end of a certificate's validity (DER); None if they cannot be read."""
    found = _VALIDITY.search(certificate)
    if found is None:
        return None, None
    return _moment(found[1], found[2]), _moment(found[3], found[4])


def _moment(short: bytes | None, long: bytes | None) -> datetime | None:
    form, text = ("%y%m%d%H%M%S", short) if short else ("%Y%m%d%H%M%S", long or b"")
    try:
        return datetime.strptime(text.decode(), form).replace(tzinfo=_UTC)
    except ValueError:
        return None
