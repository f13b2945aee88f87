"""Finding the broker that holds a name, by asking all brokers on this host's networks."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Sequence
from typing import Any, Final

from bpbroker import DEFAULT_PORT
from bpbroker.client.outlets import Outlets
from bpbroker.client.responders import Broker, Responders
from bpbroker.discovery.datagram import PLAIN_REPLY, Question, decode_answer, plain_question, signed_question
from bpbroker.discovery.jointoken import SECRET_DIGITS, canonical_fingerprint, parse_token
from bpbroker.errors import BadRequest, UsageError, WaitTimeout
from bpbroker.registry.entry_values import check_name
from bpbroker.retry import pauses

TIMEOUT_SECS: Final = 3.0
_REPLY_MAX_BYTES: Final = 2048


class Credentials:
    """How an answer is recognised as the right broker's.

    Args:
        secret: the registry's discovery secret; with it, unsigned, forged and passed-on answers are ignored.
        fingerprints: of the certificates of the registry's brokers, canonical; with one, answers that claim another
            are ignored. Only a connection shows whether an unsigned claim is true.

    Raises:
        UsageError: the secret is not valid.
    """

    __slots__ = ("fingerprints", "secret")

    def __init__(self, secret: str = "", fingerprints: Sequence[str] = ()) -> None:
        if secret and (len(secret) != SECRET_DIGITS or not all(digit in "0123456789abcdef" for digit in secret)):
            raise UsageError(f"The discovery secret must be {SECRET_DIGITS} hexadecimal digits")
        self.secret = secret
        self.fingerprints = tuple(fingerprints)

    def __bool__(self) -> bool:
        return bool(self.secret or self.fingerprints)


def discover(
    name: str,
    *,
    token: str = "",
    secret: str = "",
    fingerprint: str = "",
    port: int = DEFAULT_PORT,
    timeout_secs: float = TIMEOUT_SECS,
    interface: str = "",
    first: bool = False,
) -> Broker:
    """Find the broker whose registry holds ``name``.

    Args:
        name: of an entry that this cluster has, and no other.
        token: a join token of the registry: its discovery secret and fingerprints in one.
        secret: the registry's discovery secret, 64 hexadecimal digits; makes question and answer authenticated.
        fingerprint: of the broker's certificate, 64 hexadecimal digits.
        port: UDP port to ask on.
        timeout_secs: how long to ask.
        interface: only on this interface, by its name or by this host's address there.
        first: take the first answer, whatever other brokers answer.

    Raises:
        WaitTimeout: no broker answered.
        SeveralBrokers: different brokers answered.
        UsageError: no such interface, no name that an entry can have, no token.
    """
    credentials = _credentials(token, secret, fingerprint)
    responders = ask(
        name, credentials, port=port, timeout_secs=timeout_secs, interface=interface, first=first, everybody=False
    )
    return responders.the_one(name)


def discover_all(
    name: str,
    *,
    token: str = "",
    secret: str = "",
    fingerprint: str = "",
    port: int = DEFAULT_PORT,
    timeout_secs: float = TIMEOUT_SECS,
    interface: str = "",
) -> list[Broker]:
    """Find all brokers that answer for ``name`` within ``timeout_secs``; the rest as of :func:`discover`."""
    credentials = _credentials(token, secret, fingerprint)
    responders = ask(
        name, credentials, port=port, timeout_secs=timeout_secs, interface=interface, first=False, everybody=True
    )
    return responders.everybody()


def _credentials(token: str, secret: str, fingerprint: str) -> Credentials:
    if fingerprint:
        fingerprint = canonical_fingerprint(fingerprint)
    fingerprints: tuple[str, ...] = (fingerprint,) if fingerprint else ()
    if token:
        joined = parse_token(token)
        secret, fingerprints = secret or joined.secret, fingerprints or joined.fingerprints
    return Credentials(secret, fingerprints)


def ask(
    name: str,
    credentials: Credentials,
    *,
    port: int,
    timeout_secs: float,
    interface: str,
    first: bool,
    everybody: bool,
) -> Responders:
    """Ask until enough brokers have answered, and return their answers; arguments as of :func:`discover`.

    Raises:
        WaitTimeout: no broker answered in time.
        UsageError: no such interface, or no name that an entry can have.
    """
    responders = Responders(first=first, everybody=everybody, expected=bool(credentials.fingerprints))
    try:
        check_name(name, max_bytes=4096)
    except BadRequest as error:
        raise UsageError(f"No broker can hold {name[:80]!r}: {error}") from None
    question = Question(name, os.urandom(16).hex())
    signed = signed_question(name, question.nonce, credentials.secret)
    # With credentials a plain answer is worthless, so it is not asked for.
    wanted = [signed] if credentials else [signed, plain_question(name)]
    # A broker with another secret does not answer a signed question, so an unsigned one looks for it.
    probe = Question(name, os.urandom(16).hex()) if credentials.secret else None
    probing = [signed_question(name, probe.nonce)] if probe else []
    with selectors.DefaultSelector() as selector, Outlets(selector, interface, port) as outlets:
        end = time.monotonic() + timeout_secs
        again = 0.0
        pause = pauses(jitter=False)
        while (now := time.monotonic()) < min(end, responders.enough_at):
            if now >= again:
                # Again each time: a client that waits at boot may have begun before the network was up.
                responders.own_addresses = outlets.refresh()
                outlets.send(wanted if not again else [*wanted, *probing])
                again = now + next(pause)
            pause_secs = max(0.0, min(end, again, responders.enough_at) - now)
            if not selector.get_map():  # no interface yet; on Windows, select() does not accept an empty list
                time.sleep(pause_secs)
                continue
            for key, _ in selector.select(pause_secs):
                assert isinstance(key.fileobj, socket.socket)  # noqa: S101 - nothing else was registered
                _hear(key.fileobj, question, probe, credentials, responders)
        why = f" ({outlets.failure})" if outlets.failure else ""
    if not responders.any():
        rejections = responders.rejections()
        right = ", is the token (or the fingerprint) the right one" if credentials else ""
        advice = f"is one running on this network, is the name registered there, is UDP allowed{right}?"
        raise WaitTimeout(
            f"No broker that holds '{name}' answered within {timeout_secs:.3g} s{why}; {rejections or advice}"
        )
    return responders


def _hear(
    sock: socket.socket, question: Question, probe: Question | None, credentials: Credentials, responders: Responders
) -> None:
    try:
        payload, sender = sock.recvfrom(_REPLY_MAX_BYTES)
    except OSError:  # an earlier question met a closed port
        return
    address = _scoped(sender)
    if payload == PLAIN_REPLY:
        if not credentials:
            responders.heard(Broker(address, int(sender[1])), time.monotonic())
        return
    answer = decode_answer(payload, question, credentials.secret)
    if answer is None:
        unsigned = credentials.secret and any(decode_answer(payload, each) for each in (question, probe) if each)
        if unsigned:
            why = "it does not know the token's discovery secret: is the token an old one, or another registry's?"
            responders.reject(address, why, guess=True)
        return
    if credentials.secret and answer.address != address.partition("%")[0]:
        why = f"its answer was made for {answer.address} and passed on, as a published port or NAT does: use -b instead"
        responders.reject(address, why)
        return
    if credentials.fingerprints and answer.fingerprint not in credentials.fingerprints:
        responders.reject(address, "its certificate is not the token's (or the fingerprint's)")
        return
    authentic = bool(credentials.secret)
    responders.heard(Broker(address, answer.port, answer.registry, answer.fingerprint, authentic), time.monotonic())


def _scoped(sender: tuple[Any, ...]) -> str:
    """Return a socket address's host; for a link-local address, with the interface."""
    address = str(sender[0])
    if len(sender) < 4 or not sender[3] or "%" in address:
        return address
    try:
        return f"{address}%{socket.if_indextoname(sender[3])}"
    except OSError:  # the interface is gone
        return f"{address}%{sender[3]}"
