"""Finding the broker that holds a name, by asking everybody nearby."""

from __future__ import annotations

import os
import selectors
import socket
import time
from typing import Any, Final, NamedTuple

from bpbroker import DEFAULT_PORT
from bpbroker.client.outlets import Outlets
from bpbroker.client.responders import Broker, Responders
from bpbroker.client.retry import pauses
from bpbroker.discovery.datagram import PLAIN_REPLY, Question, decode_answer, plain_question, signed_question
from bpbroker.errors import BadRequest, UsageError, WaitTimeout
from bpbroker.registry.entry import check_name

TIMEOUT_SECS: Final = 3.0
_REPLY_MAX_BYTES: Final = 2048


class Credentials(NamedTuple):
    """By what an answer is known to come from the right broker."""

    key: str = ""
    """An access key of the broker; with one, unsigned, forged and passed-on answers are ignored."""
    fingerprint: str = ""
    """SHA-256 of the broker's certificate, canonical; with one, other answers are ignored."""


def discover(
    name: str,
    *,
    key: str = "",
    fingerprint: str = "",
    port: int = DEFAULT_PORT,
    timeout_secs: float = TIMEOUT_SECS,
    interface: str = "",
    first: bool = False,
) -> Broker:
    """Find the broker whose registry holds ``name``.

    Args:
        name: of an entry; what one cluster shares, and no other.
        key: an access key of the broker; makes question and answer authenticated.
        fingerprint: of the broker's certificate, 64 hexadecimal digits.
        port: UDP port to ask on.
        timeout_secs: how long to ask.
        interface: only on this interface, by its name or by this host's address there.
        first: take the first answer, whoever else answers.

    Raises:
        WaitTimeout: nobody answered.
        SeveralBrokers: brokers with different registries answered.
        UsageError: no such interface, or no name that an entry can have.
    """
    responders = Responders(first=first)
    _ask(name, Credentials(key, fingerprint), port, timeout_secs, interface, responders)
    return responders.the_one(name)


def discover_all(
    name: str,
    *,
    key: str = "",
    fingerprint: str = "",
    port: int = DEFAULT_PORT,
    timeout_secs: float = TIMEOUT_SECS,
    interface: str = "",
) -> list[Broker]:
    """Find everybody who answers for ``name`` within ``timeout_secs``; arguments and errors as of :func:`discover`."""
    responders = Responders(everybody=True)
    _ask(name, Credentials(key, fingerprint), port, timeout_secs, interface, responders)
    return responders.everybody()


def _ask(
    name: str, credentials: Credentials, port: int, timeout_secs: float, interface: str, responders: Responders
) -> None:
    """Ask until ``responders`` have heard enough.

    Raises:
        WaitTimeout: nobody answered in time.
    """
    try:
        check_name(name, max_bytes=4096)
    except BadRequest as error:
        raise UsageError(f"No broker can hold {name[:80]!r}: {error}") from None
    if not credentials.key.isprintable():
        raise UsageError("The access key has control characters or invalid UTF-8 in it, so no broker can have it")
    question = Question(name, os.urandom(16).hex())
    signed = signed_question(name, question.nonce, credentials.key)
    # With credentials a plain answer counts for nothing, so it is not asked for.
    wanted = [signed] if any(credentials) else [signed, plain_question(name)]
    with selectors.DefaultSelector() as selector, Outlets(selector, interface, port) as outlets:
        end = time.monotonic() + timeout_secs
        again = 0.0
        pause = pauses(jitter=False)
        while (now := time.monotonic()) < min(end, responders.enough_at):
            if now >= again:
                # Anew each time: whoever waits at boot began before its network was there.
                responders.own_addresses = outlets.refresh()
                outlets.send(wanted)
                again = now + next(pause)
            pause_secs = max(0.0, min(end, again, responders.enough_at) - now)
            if not selector.get_map():  # no interface yet; Windows does not wait for nothing
                time.sleep(pause_secs)
                continue
            for key, _ in selector.select(pause_secs):
                assert isinstance(key.fileobj, socket.socket)  # noqa: S101 - nothing else was registered
                _hear(key.fileobj, question, credentials, responders)
        why = f" ({outlets.failure})" if outlets.failure else ""
    if not responders.any():
        raise WaitTimeout(
            f"No broker that holds '{name}' answered within {timeout_secs:g} s{why}; "
            "is one running on this network, is the name registered there, is UDP allowed?"
        )


def _hear(sock: socket.socket, question: Question, credentials: Credentials, responders: Responders) -> None:
    try:
        payload, sender = sock.recvfrom(_REPLY_MAX_BYTES)
    except OSError:  # an earlier question met a closed port
        return
    address = _scoped(sender)
    if payload == PLAIN_REPLY:
        if not any(credentials):
            responders.heard(Broker(address, int(sender[1])), time.monotonic())
        return
    answer = decode_answer(payload, question, credentials.key)
    if answer is None or (credentials.fingerprint and answer.fingerprint != credentials.fingerprint):
        return
    if credentials.key and answer.address != address.partition("%")[0]:
        return  # honest words, passed on by somebody else
    authentic = bool(credentials.key)
    responders.heard(Broker(address, answer.port, answer.registry, answer.fingerprint, authentic), time.monotonic())


def _scoped(sender: tuple[Any, ...]) -> str:
    """Give a socket address's host, with the interface where it means nothing without that."""
    address = str(sender[0])
    if len(sender) < 4 or not sender[3] or "%" in address:
        return address
    try:
        return f"{address}%{socket.if_indextoname(sender[3])}"
    except OSError:  # the interface is gone
        return f"{address}%{sender[3]}"
