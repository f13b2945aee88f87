"""Discovery against real sockets on loopback, in a made-up time; over real networks it is tested end to end."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from bpbroker.client import discover, discover_all, discovery
from bpbroker.client.outlets import Outlets
from bpbroker.discovery.datagram import PLAIN_REPLY, Question, Reply, decode, signed_answer
from bpbroker.discovery.jointoken import JoinToken, make_token
from bpbroker.errors import UsageError, WaitTimeout

SECRET, OTHER = "5e" * 32, "07" * 32
ANSWER = Reply("ab" * 16, "cd" * 32, 20443, "127.0.0.1")
Answerer = Callable[[Question], list[bytes]]


class Clock:
    """Time that passes only while the client waits and everything that was sent is answered."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked = 0
        """How many datagrams were sent to responders that hear them."""
        self.heard = threading.Semaphore(0)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, secs: float) -> None:
        self.now += secs

    def await_answers(self) -> None:
        """Wait until the responder has answered all that it was asked."""
        while self.asked:
            assert self.heard.acquire(timeout=30)
            self.asked -= 1


class Responder:
    """Answers on a loopback port as a test likes it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]
        self.heard: list[tuple[float, bytes]] = []
        self.reply: Answerer = lambda _: []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            payload, sender = self.sock.recvfrom(65535)
            if payload == b"stop":
                return
            self.heard.append((self.clock.now, payload))
            question = decode(payload)
            if isinstance(question, Question):
                for reply in self.reply(question):
                    self.sock.sendto(reply, sender)
            self.clock.heard.release()

    def close(self) -> None:
        self.sock.sendto(b"stop", self.sock.getsockname())
        self._thread.join(10)
        self.sock.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the time that the client goes by."""
    clock = Clock()

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            clock.await_answers()
            found: list[tuple[selectors.SelectorKey, int]] = super().select(0)
            if not found and timeout is not None:
                clock.now += timeout
            return found

    class Counted(Outlets):
        def send(self, payloads: list[bytes]) -> None:
            super().send(payloads)
            clock.asked += len(payloads)

    monkeypatch.setattr(discovery, "time", clock)
    monkeypatch.setattr("bpbroker.client.discovery.selectors.DefaultSelector", Selector)
    monkeypatch.setattr(discovery, "Outlets", Counted)
    return clock


@pytest.fixture
def responder(clock: Clock) -> Iterator[Responder]:
    each = Responder(clock)
    yield each
    each.close()


def signed(secret: str = "", answer: Reply = ANSWER) -> Answerer:
    return lambda question: [signed_answer(question, answer, secret)] if question.nonce else []


def plain(question: Question) -> list[bytes]:
    return [] if question.nonce else [PLAIN_REPLY]


def nobody(responder: Responder, *, secret: str = "", fingerprint: str = "") -> None:
    with pytest.raises(WaitTimeout, match="'foo'") as caught:
        discover("foo", port=responder.port, timeout_secs=0.3, secret=secret, fingerprint=fingerprint)
    assert caught.value.exit_code == 124


def test_a_broker_of_0_22_is_found(responder: Responder) -> None:
    responder.reply = plain
    assert discover("foo", port=responder.port) == ("127.0.0.1", responder.port, "", "", False)


def test_a_signed_answer_tells_more(responder: Responder) -> None:
    responder.reply = lambda question: plain(question) + signed()(question)
    assert discover("foo", port=responder.port) == ("127.0.0.1", 20443, "ab" * 16, "cd" * 32, False)


def test_an_authentic_answer_is_known_as_such(responder: Responder) -> None:
    responder.reply = signed(SECRET)
    assert discover("foo", secret=SECRET, port=responder.port).authentic
    token = make_token(JoinToken((), (), "key", SECRET))
    assert discover("foo", token=token, port=responder.port).authentic


@pytest.mark.parametrize("reply", [plain, signed(), signed(OTHER), signed(SECRET, ANSWER._replace(address="10.0.0.9"))])
def test_with_the_secret_nothing_else_counts(responder: Responder, reply: Answerer) -> None:
    responder.reply = reply
    nobody(responder, secret=SECRET)
    assert all(payload.startswith(b"_bpb2 ? ") for _, payload in responder.heard)  # and nothing plain was asked


@pytest.mark.parametrize("reply", [plain, signed(answer=ANSWER._replace(fingerprint="00" * 32))])
def test_with_a_fingerprint_no_other_counts(responder: Responder, reply: Answerer) -> None:
    responder.reply = reply
    nobody(responder, fingerprint="cd" * 32)
    responder.reply = signed()
    assert discover("foo", fingerprint="cd" * 32, port=responder.port).port == 20443


def test_an_old_answer_is_none(responder: Responder) -> None:
    old = signed_answer(Question("foo", "00" * 16), ANSWER, SECRET)
    responder.reply = lambda _: [old]
    nobody(responder, secret=SECRET)


def test_rubbish_is_ignored(responder: Responder) -> None:
    responder.reply = lambda question: [b"", b"\xff" * 3000, b"_bpb2 ! x", b"Key Exists", *plain(question)]
    assert discover("foo", port=responder.port).address == "127.0.0.1"


def test_it_asks_again_after_growing_pauses(responder: Responder) -> None:
    with pytest.raises(WaitTimeout):
        discover("foo", port=responder.port, timeout_secs=1.2)
    times = [moment for moment, payload in responder.heard if payload == b"foo\n"]
    assert len(times) == 3  # at 0, 0.25 and 0.75 s
    assert times[1] - times[0] >= 0.2
    assert times[2] - times[1] >= 0.4


def test_a_lost_question_does_no_harm(responder: Responder) -> None:
    def second(question: Question) -> list[bytes]:
        return plain(question) if len(responder.heard) > 2 else []

    responder.reply = second
    assert discover("foo", port=responder.port).address == "127.0.0.1"


def test_the_first_answer_ends_it_at_once(responder: Responder) -> None:
    responder.reply = plain
    began = responder.clock.now
    discover("foo", port=responder.port, first=True, timeout_secs=60)
    assert responder.clock.now == began


def test_everybody_is_waited_for(responder: Responder) -> None:
    responder.reply = plain
    began = responder.clock.now
    assert [broker.address for broker in discover_all("foo", port=responder.port, timeout_secs=0.5)] == ["127.0.0.1"]
    assert responder.clock.now - began >= 0.5


@pytest.mark.parametrize("name", ["", " ", "_x", "a\nb", "..", "\udcff"])
def test_what_no_entry_can_be_called_is_not_asked_for(name: str) -> None:
    with pytest.raises(UsageError):
        discover(name, timeout_secs=0.1)


def test_an_interface_that_is_not_there_is_named(responder: Responder) -> None:
    with pytest.raises(UsageError, match="nonsense0"):
        discover("foo", port=responder.port, interface="nonsense0")
    responder.reply = plain
    assert discover("foo", port=responder.port, interface="127.0.0.1").address == "127.0.0.1"


class WindowsSelector(selectors.SelectSelector):
    """As on Windows: to wait for no socket at all is an error (WSAEINVAL)."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if not self.get_map():
            raise OSError(10022, "An invalid argument was supplied")
        return super().select(timeout)


def test_a_host_without_any_interface_waits_for_one_on_windows_too(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = clock.now
    monkeypatch.setattr("bpbroker.client.discovery.selectors.DefaultSelector", WindowsSelector)
    monkeypatch.setattr("bpbroker.client.outlets.interfaces", list)
    with pytest.raises(WaitTimeout, match="no network"):
        discover("foo", timeout_secs=0.3)
    assert clock.now - began == pytest.approx(0.3)


@pytest.mark.parametrize("secret", ["\udcff", "key", "AB" * 32, "ab" * 31])
def test_a_secret_that_is_none_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(UsageError, match="discovery secret") as caught:
        discover("foo", secret=secret, timeout_secs=0.3)
    assert secret not in str(caught.value)


def test_a_token_of_several_brokers_takes_each_of_them(responder: Responder) -> None:
    token = make_token(JoinToken((), ("00" * 32, "cd" * 32)))
    responder.reply = signed()
    assert discover("foo", token=token, port=responder.port).port == 20443
    responder.reply = signed(answer=ANSWER._replace(fingerprint="11" * 32))
    with pytest.raises(WaitTimeout):
        discover("foo", token=token, port=responder.port, timeout_secs=0.3)


def test_with_secret_and_fingerprint_both_must_fit(responder: Responder) -> None:
    responder.reply = signed(SECRET)
    nobody(responder, secret=SECRET, fingerprint="00" * 32)
    assert discover("foo", secret=SECRET, fingerprint="CD" * 32, port=responder.port).authentic


# --- answers that must not be used leave a trace ---


@pytest.mark.parametrize(
    ("reply", "secret", "fingerprint", "why"),
    [
        (signed(), SECRET, "", "does not know the token's discovery secret"),
        (signed(OTHER), SECRET, "", "does not know the token's discovery secret"),
        (signed(SECRET, ANSWER._replace(address="10.0.0.9")), SECRET, "", "was made for 10.0.0.9 and passed on"),
        (signed(), "", "00" * 32, "its certificate is not the token's"),
        (signed(SECRET), SECRET, "00" * 32, "its certificate is not the token's"),
    ],
)
def test_an_answer_that_is_rejected_is_named_with_the_reason(
    responder: Responder, reply: Answerer, secret: str, fingerprint: str, why: str
) -> None:
    responder.reply = reply
    with pytest.raises(WaitTimeout, match=f"; 127.0.0.1 answered, but .*{why}"):
        discover("foo", port=responder.port, timeout_secs=0.4, secret=secret, fingerprint=fingerprint)


def test_a_broker_with_another_secret_is_noticed_though_it_is_silent(responder: Responder) -> None:
    responder.reply = lambda question: [] if question.mac else signed()(question)
    with pytest.raises(WaitTimeout, match=r"127\.0\.0\.1 answered, but it does not know the token's discovery secret"):
        discover("foo", port=responder.port, timeout_secs=1.0, secret=SECRET)
    assert len(responder.heard) >= 3


def test_silence_has_the_token_doubted_too(responder: Responder) -> None:
    with pytest.raises(WaitTimeout, match=r"is the token \(or the fingerprint\) the right one"):
        discover("foo", port=responder.port, timeout_secs=0.3, secret=SECRET)
    with pytest.raises(WaitTimeout, match=r"is UDP allowed\?$"):
        discover("foo", port=responder.port, timeout_secs=0.3)
