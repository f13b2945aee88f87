r"""Discovery datagrams: what they look like on the wire. Pure.

The plain form, which 0.22 speaks too: the request is a name, the reply
``Key Exists\n``. The second form adds what makes a reply trustworthy::

    request  _bpb2 ? <nonce> <mac> <name>\n<padding>
    reply    _bpb2 ! <nonce> <mac> <registry> <fingerprint> <port> <address>\n

Nonce (16 bytes), registry id and fingerprint are hexadecimal. A mac is the
HMAC-SHA256 under the registry's discovery secret, or ``-`` without it. An
access key never signs anything: who hears a packet could try keys against its
mac. The request's mac covers nonce and name; the reply's covers the request's
nonce and name and everything after the mac, so a reply fits one question of
one client, and the address in it shows when another host passes it on.

Two brokers must never answer each other, whatever source address a datagram
pretends. So what has the form of a reply is no question, an echo whose data is
a request or a reply is refused, and some source ports get no answer
(:func:`may_answer`). Requests are padded: no reply is larger than its request
plus 11 bytes, so the port is no amplifier.

The second form begins with ``_`` because such names are the broker's own: a
broker that does not know it stays silent.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from bpbroker import DEFAULT_PORT
from bpbroker.errors import BadRequest
from bpbroker.registry.entry_values import NAME_MAX_BYTES, RESERVED_NAMES, check_name

PLAIN_REPLY: Final = b"Key Exists\n"
MULTICAST_GROUP: Final = "ff12::6270:6272:6f6b:6572"
"""Link-local, transient (RFC 4291, section 2.7); the rest spells ``bpbroker``."""

GROWTH_MAX: Final = len(PLAIN_REPLY)
"""How many bytes a reply may be larger than its request."""

_ECHO: Final = b"ping/Ping?data="
_SECOND_FORM: Final = b"_bpb"
_QUESTION: Final = b"_bpb2 ? "
_ANSWER: Final = b"_bpb2 ! "
_NO_MAC: Final = b"-"
_NONCE_DIGITS: Final = 32
_MAC_DIGITS: Final = 64
_SYSTEM_PORTS: Final = 1024
"""Below this number are the ports of services, some of which answer every datagram (RFC 6335, section 6)."""
_PADDED_BYTES: Final = 280
"""At least as long as any signed reply."""


class Echo(NamedTuple):
    """The UDP ping: answered with the same bytes."""

    data: bytes


class Question(NamedTuple):
    """A client asks whether the broker's registry holds a name."""

    name: str
    nonce: str = ""
    """32 hexadecimal digits; empty in the plain form."""
    mac: str = ""
    """64 hexadecimal digits; empty without the secret."""


class Reply(NamedTuple):
    """A broker's data about itself, in reply to a question of the second form."""

    registry: str
    """The registry's id, the same for all brokers that share it; hexadecimal."""
    fingerprint: str
    """SHA-256 of its certificate, 64 hexadecimal digits."""
    port: int
    """Its HTTPS port."""
    address: str
    """The broker's own address, as seen from where the question came from."""


# --- questions ---


def plain_question(name: str) -> bytes:
    """Return the request as 0.22 sends it."""
    return f"{name}\n".encode()


def signed_question(name: str, nonce: str, secret: str = "") -> bytes:
    """Return the request of the second form; without the discovery secret its reply is not signed either."""
    mac = question_mac(secret, nonce, name).encode() if secret else _NO_MAC
    return (b"%s%s %s %s\n" % (_QUESTION, nonce.encode(), mac, name.encode())).ljust(_PADDED_BYTES)


def question_mac(secret: str, nonce: str, name: str) -> str:
    """Return the HMAC that a question carries, in hexadecimal."""
    return _mac(secret, "question", nonce, name)


def may_answer(sender_port: int, own_port: int) -> bool:
    """Whether a datagram from this source port may be answered: not a broker's port, nor a system service's.

    Its source may be forged, to have the broker and another service answer each other for ever.
    """
    return sender_port >= _SYSTEM_PORTS and sender_port not in (own_port, DEFAULT_PORT)


def decode(payload: bytes, max_name_bytes: int = NAME_MAX_BYTES) -> Echo | Question | None:
    """Read what came in; None for anything that deserves silence."""
    if payload.startswith(_ECHO):
        data = payload[len(_ECHO) :]
        return None if _leads_on(data) else Echo(data)
    if len(payload) > max_name_bytes + 2 * _PADDED_BYTES:
        return None
    stripped = payload.strip()
    if not stripped.startswith(b"_"):
        name = _name(stripped, max_name_bytes)
        return Question(name) if name else None
    if not stripped.startswith(_QUESTION):
        return None
    fields = stripped.split(b" ", 4)
    if len(fields) != 5:
        return None
    _, _, nonce, mac, raw_name = fields
    name = _name(raw_name, max_name_bytes)
    if not name or not _hexadecimal(nonce, _NONCE_DIGITS) or not (mac == _NO_MAC or _hexadecimal(mac, _MAC_DIGITS)):
        return None
    return Question(name, nonce.decode(), "" if mac == _NO_MAC else mac.decode())


def _leads_on(data: bytes) -> bool:
    """Whether data that is echoed to another broker, or to a client, would count as a request or a reply there."""
    stripped = data.strip()
    return stripped.startswith((_ECHO, _SECOND_FORM)) or stripped == PLAIN_REPLY.strip()


def _name(raw: bytes, max_bytes: int) -> str | None:
    if not raw or len(raw) > max_bytes:
        return None
    try:
        name = check_name(raw.decode(), max_bytes=max_bytes)
    except (UnicodeDecodeError, BadRequest):
        return None
    return None if name in RESERVED_NAMES else name


def _hexadecimal(digits: bytes, length: int) -> bool:
    return len(digits) == length and all(digit in b"0123456789abcdef" for digit in digits)


# --- replies ---


def signed_answer(question: Question, answer: Reply, secret: str = "") -> bytes:
    """Return the reply to a question of the second form."""
    claims = f"{answer.registry} {answer.fingerprint} {answer.port} {answer.address}"
    mac = _mac(secret, "answer", question.nonce, question.name, claims) if secret else _NO_MAC.decode()
    return b"%s%s %s %s\n" % (_ANSWER, question.nonce.encode(), mac.encode(), claims.encode())


def decode_answer(payload: bytes, question: Question, secret: str = "") -> Reply | None:
    """Read a reply to a question of ours; None if it is not one, or, with the secret, not authentic."""
    fields = payload[: 2 * _PADDED_BYTES].rstrip(b"\n").split(b" ", 4)
    if len(fields) != 5 or not payload.startswith(_ANSWER) or fields[2] != question.nonce.encode():
        return None
    try:
        claims = fields[4].decode("ascii")
    except UnicodeDecodeError:
        return None
    if secret:
        import hmac

        expected = _mac(secret, "answer", question.nonce, question.name, claims).encode()
        if not hmac.compare_digest(expected, fields[3]):
            return None
    parts = claims.split(" ")
    if len(parts) != 4:
        return None
    registry, fingerprint, port, address = parts
    known = _hexadecimal(registry.encode(), 32) and _hexadecimal(fingerprint.encode(), 64)
    if not known or not (port.isdigit() and 0 < int(port[:6]) < 65536) or not address:
        return None
    return Reply(registry, fingerprint, int(port), address)


def _mac(secret: str, *parts: str) -> str:
    """Return the HMAC of some parts, none of which can hold a NUL, in hexadecimal."""
    import hmac  # here, because a client without a secret need not load it

    text = "\0".join(("bpbroker discovery", *parts))
    return hmac.digest(bytes.fromhex(secret), text.encode(), "sha256").hex()
