r"""Discovery datagrams: what they look like on the wire. Pure.

The plain form, which 0.22 speaks too: the request is a name, the reply
``Key Exists\n``. The signed form adds what makes an answer trustworthy::

    request  _bpb1 ? <nonce> <mac> <name>\n<padding>
    reply    _bpb1 ! <nonce> <mac> <registry> <fingerprint> <port> <address>\n

Nonce (16 bytes), registry id and fingerprint are hexadecimal. A mac is the
HMAC-SHA256 under an access key, or ``-`` when there is no key. The request's
covers nonce and name; the reply's covers the request's nonce and name and
everything after the mac, so a reply fits one question of one client, and
whoever passes an honest broker's reply on from elsewhere is found out by the
address in it. Requests are padded: no reply is larger than its request plus
11 bytes, so the port is no amplifier.

The form begins with ``_`` because such names are the broker's own: a broker
that does not know it stays silent.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from bpbroker.errors import BadRequest
from bpbroker.registry.entry import NAME_MAX_BYTES, check_name

PLAIN_REPLY: Final = b"Key Exists\n"
MULTICAST_GROUP: Final = "ff12::6270:6272:6f6b:6572"
"""Link-local, transient (RFC 4291, section 2.7); the rest spells ``bpbroker``."""

GROWTH_MAX: Final = len(PLAIN_REPLY)
"""How many bytes a reply may be larger than its request."""

_ECHO: Final = b"ping/Ping?data="
_QUESTION: Final = b"_bpb1 ? "
_ANSWER: Final = b"_bpb1 ! "
_NO_MAC: Final = b"-"
_NONCE_DIGITS: Final = 32
_MAC_DIGITS: Final = 64
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
    """64 hexadecimal digits; empty without a key."""


class Reply(NamedTuple):
    """A broker's word on itself, in reply to a question of the signed form."""

    registry: str
    """Same for all brokers that share one registry, else different; hexadecimal."""
    fingerprint: str
    """SHA-256 of its certificate, 64 hexadecimal digits."""
    port: int
    """Where it serves HTTPS."""
    address: str
    """The broker's own address, as seen from where the question came from."""


# --- questions ---


def plain_question(name: str) -> bytes:
    """Give the request as 0.22 sends it."""
    return f"{name}\n".encode()


def signed_question(name: str, nonce: str, key: str = "") -> bytes:
    """Give the request of the signed form; without a key it asks for the same reply, unauthenticated."""
    mac = question_mac(key, nonce, name).encode() if key else _NO_MAC
    return (b"%s%s %s %s\n" % (_QUESTION, nonce.encode(), mac, name.encode())).ljust(_PADDED_BYTES)


def question_mac(key: str, nonce: str, name: str) -> str:
    """Give the HMAC that a question carries, in hexadecimal."""
    return _mac(key, "question", nonce, name)


def decode(payload: bytes, max_name_bytes: int = NAME_MAX_BYTES) -> Echo | Question | None:
    """Read what came in; None for anything that deserves silence."""
    if payload.startswith(_ECHO):
        return Echo(payload[len(_ECHO) :])
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


def _name(raw: bytes, max_bytes: int) -> str | None:
    if not raw or len(raw) > max_bytes:
        return None
    try:
        return check_name(raw.decode(), max_bytes=max_bytes)
    except (UnicodeDecodeError, BadRequest):
        return None


def _hexadecimal(digits: bytes, length: int) -> bool:
    return len(digits) == length and all(digit in b"0123456789abcdef" for digit in digits)


# --- answers ---


def signed_answer(question: Question, answer: Reply, key: str = "") -> bytes:
    """Give the reply to a question of the signed form."""
    claims = f"{answer.registry} {answer.fingerprint} {answer.port} {answer.address}"
    mac = _mac(key, "answer", question.nonce, question.name, claims) if key else _NO_MAC.decode()
    return b"%s%s %s %s\n" % (_ANSWER, question.nonce.encode(), mac.encode(), claims.encode())


def decode_answer(payload: bytes, question: Question, key: str = "") -> Reply | None:
    """Read a reply to a question of ours; None if it is not one, or, with a key, not authentic."""
    fields = payload[: 2 * _PADDED_BYTES].rstrip(b"\n").split(b" ", 4)
    if len(fields) != 5 or not payload.startswith(_ANSWER) or fields[2] != question.nonce.encode():
        return None
    try:
        claims = fields[4].decode("ascii")
    except UnicodeDecodeError:
        return None
    if key:
        import hmac

        expected = _mac(key, "answer", question.nonce, question.name, claims).encode()
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


def _mac(key: str, *parts: str) -> str:
    """Give the HMAC of some parts, none of which can hold a NUL, in hexadecimal."""
    import hmac  # here, because a client without a key need not load it

    return hmac.digest(key.encode(), "\0".join(("bpbroker discovery", *parts)).encode(), "sha256").hex()
