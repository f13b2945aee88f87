from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.discovery.datagram import (
    GROWTH_MAX,
    PLAIN_REPLY,
    Echo,
    Question,
    Reply,
    decode,
    decode_answer,
    may_answer,
    plain_question,
    question_mac,
    signed_answer,
    signed_question,
)

NONCE = "0f" * 16
SECRET, OTHER = "5e" * 32, "07" * 32
ANSWER = Reply("ab" * 16, "cd" * 32, 20443, "10.0.0.5")
LONGEST = Reply("ab" * 16, "cd" * 32, 65535, "2001:0db8:1111:2222:3333:4444:255.255.255.255")

names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=60).filter(
    lambda name: not name.startswith("_") and name not in (".", "..") and not name.startswith("ping/Ping?data=")
)


def test_the_plain_form_is_0_22s_to_the_byte() -> None:
    assert plain_question("foo") == b"foo\n"
    assert PLAIN_REPLY == b"Key Exists\n"


@pytest.mark.parametrize("payload", [b"foo", b"foo\n", b"  foo\r\n", b"\tfoo \x0b"])
def test_white_space_around_a_name_is_nothing(payload: bytes) -> None:
    assert decode(payload) == Question("foo")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" \n\t",
        b"_access_key",
        b"_x\n",
        b"\xff\xfe",
        b"a\0b",
        b"a\nb",
        b"..",
        b"x" * 257,
        b"\xc2\xa0foo",
        b"_bpb2 ? ",
        b"_bpb2 ? " + NONCE.encode() + b" - \n",
        b"_bpb2 ? " + NONCE.encode() + b" - _secret\n",
        b"_bpb2 ? " + NONCE.encode() + b" zz foo\n",
        b"_bpb2 ? " + NONCE.encode().upper() + b" - foo\n",
        b"_bpb2 ? short - foo\n",
        b"_bpb2 ! " + NONCE.encode() + b" - foo\n",
        b"_bpb1 ? " + NONCE.encode() + b" - foo\n",
        PLAIN_REPLY,
        b" Key Exists",
        b"ping/Ping?data=ping/Ping?data=x",
        b"ping/Ping?data= \nping/Ping?data=x",
        b"ping/Ping?data=_bpb2 ? ",
        b"ping/Ping?data=" + signed_question("foo", NONCE),
        b"ping/Ping?data=" + signed_answer(Question("foo", NONCE), ANSWER),
        b"ping/Ping?data=" + PLAIN_REPLY,
    ],
)
def test_everything_else_deserves_silence(payload: bytes) -> None:
    assert decode(payload) is None


@given(st.binary(max_size=2000))
def test_random_bytes_raise_nothing(payload: bytes) -> None:
    decode(payload)
    decode_answer(payload, Question("foo", NONCE), SECRET)


@given(st.binary(max_size=300))
def test_the_udp_ping_echoes_its_data(data: bytes) -> None:
    said = data.strip()  # what would be a question or a reply somewhere else is not echoed
    expected = None if said.startswith((b"_bpb", b"ping/Ping?data=")) or said == b"Key Exists" else Echo(data)
    assert decode(b"ping/Ping?data=" + data) == expected


@given(st.one_of(st.binary(max_size=300), st.text(max_size=60).map(lambda text: b"ping/Ping?data=" + text.encode())))
def test_what_one_broker_answers_to_another_is_the_end(payload: bytes) -> None:
    """Amplification over a chain of brokers: an echo may lead to one reply, which together are less than it."""
    sent = 0
    question = decode(payload)
    answer: bytes | None = payload
    while answer is not None and question is not None:
        answer = question.data if isinstance(question, Echo) else PLAIN_REPLY
        sent += len(answer)
        question = decode(answer)
    assert sent <= len(payload) + GROWTH_MAX
    if payload.startswith(b"ping/Ping"):
        assert sent <= len(payload)


@pytest.mark.parametrize(
    ("port", "answered"),
    [(0, False), (7, False), (53, False), (1023, False), (1024, True), (20443, False), (5000, False)],
)
def test_ports_of_brokers_and_of_system_services_get_no_answer(port: int, answered: bool) -> None:
    assert may_answer(port, 5000) is answered


@given(names, st.sampled_from(["", SECRET]))
def test_a_question_of_the_signed_form_comes_through(name: str, key: str) -> None:
    mac = question_mac(key, NONCE, name) if key else ""
    assert decode(signed_question(name, NONCE, key)) == Question(name, NONCE, mac)


@given(names, st.sampled_from(["", SECRET]), st.sampled_from([ANSWER, LONGEST]))
def test_an_answer_comes_through_and_is_no_larger_than_its_question(name: str, key: str, answer: Reply) -> None:
    request = signed_question(name, NONCE, key)
    question = decode(request)
    assert isinstance(question, Question)
    reply = signed_answer(question, answer, key)
    assert decode_answer(reply, question, key) == answer
    assert len(reply) <= len(request) + GROWTH_MAX


def test_a_longer_limit_for_names_is_kept() -> None:
    name = "n" * 4096
    assert decode(plain_question(name), 4096) == Question(name)
    assert decode(signed_question(name, NONCE, SECRET), 4096) is not None


@pytest.mark.parametrize(
    "other",
    [
        Question("bar", NONCE),
        Question("foo", "00" * 16),
    ],
)
def test_an_answer_fits_one_question(other: Question) -> None:
    reply = signed_answer(Question("foo", NONCE), ANSWER, SECRET)
    assert decode_answer(reply, other, SECRET) is None


def test_with_a_key_only_that_keys_answers_count() -> None:
    question = Question("foo", NONCE)
    assert decode_answer(signed_answer(question, ANSWER, OTHER), question, SECRET) is None
    assert decode_answer(signed_answer(question, ANSWER), question, SECRET) is None
    assert decode_answer(PLAIN_REPLY, question, SECRET) is None


@pytest.mark.parametrize("field", range(4))
def test_no_field_of_an_answer_can_be_changed(field: int) -> None:
    question = Question("foo", NONCE)
    forged = ANSWER._replace(
        **[{"registry": "00" * 16}, {"fingerprint": "00" * 32}, {"port": 1}, {"address": "1.2.3.4"}][field]
    )  # type: ignore[arg-type]  # each dictionary fits its field
    mac = signed_answer(question, ANSWER, SECRET).split(b" ")[3]
    parts = signed_answer(question, forged, SECRET).split(b" ")
    parts[3] = mac
    assert decode_answer(b" ".join(parts), question, SECRET) is None


@pytest.mark.parametrize(
    "claims",
    [
        "",
        "x y z",
        f"{'ab' * 16} {'cd' * 32} 0 10.0.0.5",
        f"{'ab' * 16} {'cd' * 32} 65536 10.0.0.5",
        f"{'ab' * 16} {'cd' * 32} -1 10.0.0.5",
        f"{'ab' * 16} {'cd' * 32} 99999999999999 10.0.0.5",
        f"{'ab' * 16} {'cd' * 31} 20443 10.0.0.5",
        f"{'AB' * 16} {'cd' * 32} 20443 10.0.0.5",
        f"{'ab' * 16} {'cd' * 32} 20443 ",
        f"{'ab' * 16} {'cd' * 32} 20443 10.0.0.5 more",
        f"{'ab' * 16} {'cd' * 32} \u0663 10.0.0.5",
    ],
)
def test_malformed_claims_are_no_answer(claims: str) -> None:
    payload = f"_bpb2 ! {NONCE} - {claims}\n".encode()
    assert decode_answer(payload, Question("foo", NONCE)) is None
