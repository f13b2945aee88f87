from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpbroker.client import Client
from bpbroker.discovery.interfaces import interfaces
from bpbroker.errors import (
    AlreadyExists,
    CannotConnect,
    NotFound,
    PreconditionFailed,
    RequestError,
    TimedOut,
    Unauthorized,
    Unavailable,
    UsageError,
    WaitTimeout,
)
from tests.support.fake_broker import FakeBroker, answer, failure, success
from tests.support.ports import refusing_port

ENTRY = {"key": "x", "last_write_ip": "127.0.0.1", "last_write_ts": 1}


# --- what is sent ---


@pytest.mark.parametrize(
    ("call", "path", "sent"),
    [
        (lambda c: c.register("n", "d"), "/services/Register/", {"name": "n", "data": "d"}),
        (lambda c: c.register("n", {"a": "é"}), "/services/Register/", {"name": "n", "data": '{"a": "é"}'}),
        (lambda c: c.replace("n", "d"), "/services/Replace/", {"name": "n", "data": "d"}),
        (lambda c: c.update("n", "d"), "/services/Update/", {"name": "n", "data": "d"}),
        (lambda c: c.delete("n"), "/services/Delete/", {"name": "n"}),
        (lambda c: c.get("n"), "/services/Get/", {"name": "n"}),
        (lambda c: c.list("p"), "/services/List/", {"prefix": "p"}),
        (lambda c: c.get("n", consistency="strong"), "/services/Get/", {"name": "n"}),
        (lambda c: c.get("n", consistency="local"), "/services/Get/", {"name": "n", "consistency": "local"}),
        (lambda c: c.list("p", consistency="local"), "/services/List/", {"prefix": "p", "consistency": "local"}),
        (lambda c: c.execute("pkg.sub.F", "d", more="m"), "/pkg.sub/F/", {"data": "d", "more": "m"}),
        (lambda c: c.execute("pkg.F"), "/pkg/F/", {}),
    ],
)
def test_parameters_go_in_the_body_and_the_key_in_a_header(
    fake: FakeBroker,
    make_client: Callable[..., Client],
    call: Callable[[Client], object],
    path: str,
    sent: dict[str, str],
) -> None:
    call(make_client(access_key="geheim-ß"))
    (request,) = fake.requests
    assert (request.method, request.path) == ("POST", path)
    assert request.json == sent
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"].encode("utf-8") == "Bearer geheim-ß".encode()
    assert request.headers["host"] == fake.address


def test_without_a_key_none_is_sent(fake: FakeBroker, client: Client) -> None:
    client.get("n")
    assert "authorization" not in fake.requests[0].headers


@pytest.mark.parametrize("tag", ["abc", '"abc"'])
def test_tags_are_taken_with_and_without_quotes(fake: FakeBroker, client: Client, tag: str) -> None:
    client.replace("n", "d", if_match=tag)
    client.update("n", "d", if_match=tag)
    client.delete("n", if_match=tag)
    client.replace("n", "d", if_match="*")
    assert [request.headers["if-match"] for request in fake.requests] == ['"abc"', '"abc"', '"abc"', "*"]


@pytest.mark.parametrize("tag", ['a"b', "é", "a\nb", '""'])
def test_what_is_no_tag_is_refused(client: Client, tag: str) -> None:
    with pytest.raises(UsageError, match="entity tag"):
        client.replace("n", "d", if_match=tag)


@pytest.mark.parametrize("method", ["", "F", ".F", "pkg.", "pkg..F", "pkg/F.x", "pkg.F?a=b", "pkg.F\n", "pkg.é"])
def test_what_is_no_method_is_refused(client: Client, method: str) -> None:
    with pytest.raises(UsageError, match=r"namespace\.Function"):
        client.execute(method)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c: c.get("n", consistency="weak"), "'weak'"),
        (lambda c: c.list(consistency=""), "strong or local"),
        (lambda c: c.get("n", consistency="local", wait_secs=1), "wait"),
        (lambda c: c.list(consistency="local", at_least=1, wait_secs=1), "wait"),
    ],
)
def test_a_consistency_that_makes_no_sense_is_refused(
    fake: FakeBroker, client: Client, call: Callable[[Client], object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        call(client)
    assert not fake.requests


@pytest.mark.parametrize("data", [{"a": float("nan")}, {"a": object()}])
def test_data_that_is_no_json_is_refused(client: Client, data: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="JSON"):
        client.register("n", data)


def test_text_that_is_no_unicode_is_refused(client: Client) -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        client.register("n\udcff", "d")


# --- what comes back ---


def test_an_entry_knows_its_tag_and_what_is_its_own(fake: FakeBroker, client: Client) -> None:
    fake.answers = [success(ENTRY, ETag='"tag"')]
    entry = client.get("n")
    assert entry == ENTRY
    assert (entry.etag, entry.own) == ('"tag"', {"key": "x"})
    assert client.response == {"success": True, "message": "Success", "data": ENTRY}


def test_a_list_is_entries_by_name(fake: FakeBroker, client: Client) -> None:
    fake.answers = [success({"a": ENTRY, "b": ENTRY})]
    assert list(client.list()) == ["a", "b"]
    assert client.list()["a"].own == {"key": "x"}


def test_an_extension_answers_with_whatever_bytes(fake: FakeBroker, client: Client) -> None:
    fake.answers = [answer(200, b"001 h 10.0.0.7 k\xff", Content_Type="text/plain")]
    result = client.execute("ossec.AddAgent", "h")
    assert (result.body, result.content_type, result.text) == (
        b"001 h 10.0.0.7 k\xff",
        "text/plain",
        "001 h 10.0.0.7 k\ufffd",
    )
    fake.answers = [answer(200, {"a": 1})]
    assert client.execute("ossec.AddAgent", "h").json() == {"a": 1}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestError),
        (401, Unauthorized),
        (404, NotFound),
        (409, AlreadyExists),
        (412, PreconditionFailed),
        (418, RequestError),
        (500, RequestError),
    ],
)
def test_a_refusal_is_an_error_with_the_brokers_words(
    fake: FakeBroker, client: Client, status: int, kind: type[RequestError]
) -> None:
    fake.answers = [failure(status, "What it says")]
    with pytest.raises(kind, match="What it says"):
        client.register("n", "d")


def test_an_extensions_refusal_is_one_even_in_html(fake: FakeBroker, client: Client) -> None:
    fake.answers = [answer(500, b"<html>oops</html>")]
    with pytest.raises(RequestError, match="Some Reason"):
        client.execute("a.B")


def test_control_characters_in_a_message_do_not_reach_the_terminal(fake: FakeBroker, client: Client) -> None:
    fake.answers = [failure(400, "a\x1b[2Jb\nc")]
    with pytest.raises(RequestError) as caught:
        client.get("n")
    assert str(caught.value) == "a [2Jb c"


def test_0_22s_way_to_refuse_is_understood(fake: FakeBroker, client: Client) -> None:
    fake.answers = [answer(200, {"success": False, "message": "Entry 'n' already exists", "data": {}})]
    with pytest.raises(AlreadyExists):
        client.register("n", "d")
    with pytest.raises(NotFound):
        client.get("n")
    with pytest.raises(RequestError):
        client.replace("n", "d")


def test_another_web_servers_404_is_not_taken_for_a_missing_entry(fake: FakeBroker, client: Client) -> None:
    fake.answers = [answer(404, b"<html>Not Found</html>")]
    with pytest.raises(CannotConnect, match="not a bpbroker"):
        client.get("n")


# --- again ---


def test_an_overloaded_broker_is_asked_again(fake: FakeBroker, client: Client, quick: list[float]) -> None:
    fake.answers = [failure(503, "Overloaded", Retry_After="1")] * 2 + [success(ENTRY)]
    assert client.register("n", "d") == ENTRY
    assert len(quick) == 2
    assert all(secs >= 1 for secs in quick)


def test_pauses_grow_and_are_spread(fake: FakeBroker, make_client: Callable[..., Client], quick: list[float]) -> None:
    fake.answers = [failure(503, "Unavailable")]
    with pytest.raises(Unavailable):
        make_client(retries=4).get("n")
    assert len(quick) == 4
    for pause, longest in zip(quick, (0.25, 0.5, 1.0, 2.0), strict=True):
        assert longest / 2 <= pause <= longest


def test_a_refusal_that_may_have_been_carried_out_is_not_repeated_for_register(
    fake: FakeBroker, client: Client, quick: list[float]
) -> None:
    fake.answers = [failure(503, "The disk failed; whether it is stored is not known")]
    with pytest.raises(Unavailable):
        client.register("n", "d")
    assert len(fake.requests) == 1
    assert not quick


def test_no_retry_means_none(fake: FakeBroker, make_client: Callable[..., Client], quick: list[float]) -> None:
    fake.answers = [failure(503, "Overloaded", Retry_After="1")]
    with pytest.raises(Unavailable):
        make_client(retries=0).get("n")
    assert not quick


def test_the_time_for_a_call_bounds_its_retries(
    fake: FakeBroker, make_client: Callable[..., Client], quick: list[float]
) -> None:
    fake.answers = [failure(503, "Overloaded", Retry_After="20")]
    with pytest.raises(Unavailable):
        make_client(timeout_secs=5).get("n")
    assert not quick


@pytest.mark.parametrize(
    ("call", "repeated"),
    [
        (lambda c: c.get("n"), True),
        (lambda c: c.list(), True),
        (lambda c: c.replace("n", "d"), True),
        (lambda c: c.update("n", "d"), True),
        (lambda c: c.delete("n"), True),
        (lambda c: c.register("n", "d", idempotent=True), True),
        (lambda c: c.execute("a.B"), True),
        (lambda c: c.register("n", "d"), False),
        (lambda c: c.replace("n", "d", if_match="t"), False),
        (lambda c: c.delete("n", if_match="t"), False),
    ],
)
def test_a_lost_answer_is_asked_for_again_only_where_that_is_safe(
    fake: FakeBroker, client: Client, quick: list[float], call: Callable[[Client], object], repeated: bool
) -> None:
    fake.answers = [b"", success(ENTRY)]
    if repeated:
        call(client)
        assert len(fake.requests) == 2
        assert fake.requests[0].json == fake.requests[1].json
        keys = {request.headers.get("idempotency-key") for request in fake.requests}
        assert len(keys) == 1
    else:
        with pytest.raises(CannotConnect, match="not known"):
            call(client)
        assert len(fake.requests) == 1
        assert not quick


def test_each_execution_has_a_key_of_its_own(fake: FakeBroker, make_client: Callable[..., Client]) -> None:
    client = make_client()
    client.execute("a.B")
    client.execute("a.B")
    first, second = (request.headers["idempotency-key"] for request in fake.requests)
    assert first != second
    make_client(retries=0).execute("a.B")
    assert "idempotency-key" not in fake.requests[-1].headers


# --- idempotent ---


def test_the_same_data_from_this_host_is_success(fake: FakeBroker, client: Client) -> None:
    fake.answers = [failure(409, "Entry 'n' already exists"), success(ENTRY, ETag='"t"')]
    assert client.register("n", '{"key": "x"}', idempotent=True).etag == '"t"'


@pytest.mark.parametrize("there", [{**ENTRY, "key": "y"}, {**ENTRY, "last_write_ip": "10.0.0.9"}, {**ENTRY, "more": 1}])
def test_anything_else_there_is_not(fake: FakeBroker, client: Client, there: dict[str, Any]) -> None:
    fake.answers = [
        failure(409, "Entry 'n' already exists"),
        success(there),
        answer(200, {"src": "127.0.0.1", "data": {}}),
    ]
    with pytest.raises(AlreadyExists):
        client.register("n", '{"key": "x"}', idempotent=True)


def test_behind_nat_the_broker_says_who_we_are(fake: FakeBroker, client: Client) -> None:
    fake.answers = [
        failure(409, "Entry 'n' already exists"),
        success({**ENTRY, "last_write_ip": "10.0.0.9"}),
        answer(200, {"src": "10.0.0.9", "data": {}}),
    ]
    assert client.register("n", '{"key": "x"}', idempotent=True).own == {"key": "x"}


def test_on_the_brokers_own_host_the_writer_is_any_address_of_the_host(fake: FakeBroker, client: Client) -> None:
    mine = next((each.address for each in interfaces() if not each.loopback), "127.0.0.1")
    fake.answers = [failure(409, "Entry 'n' already exists"), success({**ENTRY, "last_write_ip": mine})]
    assert client.register("n", '{"key": "x"}', idempotent=True).own == {"key": "x"}


# --- waiting ---


def test_waiting_for_an_entry_is_the_brokers_work(fake: FakeBroker, client: Client) -> None:
    fake.answers = [success(ENTRY)]
    client.get("n", wait_secs=300)
    client.get("n", wait_secs=10)
    assert [request.json["wait"] for request in fake.requests] == [60, pytest.approx(10, abs=0.1)]


def test_a_wait_goes_on_over_several_requests(fake: FakeBroker, client: Client, quick: list[float]) -> None:
    fake.answers = [failure(404, "Entry 'n' not found")] * 3 + [success(ENTRY)]
    assert client.get("n", wait_secs=300) == ENTRY
    assert len(quick) == 3  # this broker did not wait as it was asked to, so the client does


def test_a_wait_outlives_restarts_and_overload(fake: FakeBroker, client: Client, quick: list[float]) -> None:
    fake.answers = [b"", failure(503, "Overloaded"), failure(504, "timed out"), success(ENTRY)]
    assert client.get("n", wait_secs=300) == ENTRY
    assert quick


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [(b"", CannotConnect), (failure(503, "Overloaded"), Unavailable), (failure(504, "timed out"), TimedOut)],
)
def test_a_wait_without_retries_ends_with_the_first_trouble(
    fake: FakeBroker, make_client: Callable[..., Client], quick: list[float], trouble: bytes, kind: type[Exception]
) -> None:
    fake.answers = [failure(404, "Entry 'n' not found")] * 2 + [trouble]
    with pytest.raises(kind):
        make_client(retries=0).get("n", wait_secs=300)
    assert len(fake.requests) == 3  # that it is not there yet is no trouble
    assert len(quick) == 2


def test_a_wait_without_retries_finds_nobody_at_once() -> None:
    with Client("127.0.0.1:1", retries=0) as nobody, pytest.raises(CannotConnect, match="refused"):
        nobody.get("n", wait_secs=300)


def test_a_wait_does_not_outlive_a_wrong_key(fake: FakeBroker, client: Client) -> None:
    fake.answers = [failure(401, "Incorrect access key")]
    with pytest.raises(Unauthorized):
        client.get("n", wait_secs=300)


def test_a_wait_that_is_over_is_said(fake: FakeBroker, client: Client) -> None:
    fake.answers = [failure(404, "Entry 'n' not found")]
    with pytest.raises(WaitTimeout, match=r"'n' did not appear within 0\.3 s"):
        client.get("n", wait_secs=0.3)
    fake.answers = [b""]
    with pytest.raises(WaitTimeout, match=r"did not appear.*the last try: .*ended the connection"):
        client.get("n", wait_secs=0.3)


def test_a_broker_that_is_not_there_yet_is_waited_for(make_client: Callable[..., Client], fake: FakeBroker) -> None:
    fake.answers = [success(ENTRY)]
    with Client("127.0.0.1:1", timeout_secs=5) as nobody, pytest.raises(WaitTimeout, match="the last try"):
        nobody.get("n", wait_secs=0.2)
    assert make_client().get("n", wait_secs=5) == ENTRY


@pytest.mark.usefixtures("quick")
def test_waiting_for_a_change(fake: FakeBroker, client: Client) -> None:
    fake.answers = [answer(304, b"", ETag='"old"'), success(ENTRY, ETag='"old"'), success(ENTRY, ETag='"new"')]
    assert client.get("n", wait_secs=60, changed_from="old").etag == '"new"'
    assert {request.headers["if-none-match"] for request in fake.requests} == {'"old"'}
    fake.answers = [answer(304, b"", ETag='"new"')]
    with pytest.raises(WaitTimeout, match="did not change"):
        client.get("n", changed_from='"new"')


@pytest.mark.usefixtures("quick")
def test_a_barrier(fake: FakeBroker, client: Client) -> None:
    fake.answers = [success({"node-1": ENTRY}), success({"node-1": ENTRY, "node-2": ENTRY})]
    assert list(client.list("node-", at_least=2, wait_secs=60)) == ["node-1", "node-2"]
    assert fake.requests[0].json["count"] == 2
    fake.answers = [success({"node-1": ENTRY})]
    with pytest.raises(WaitTimeout, match=r"fewer than 2 entries 'node-…' within 0\.1 s: 1 of 2: node-1"):
        client.list("node-", at_least=2, wait_secs=0.1)


def test_no_call_lasts_longer_than_it_may(fake: FakeBroker, make_client: Callable[..., Client]) -> None:
    over = threading.Event()

    def silent(_: object) -> None:
        over.wait(30)

    fake.handler = silent
    client = make_client(timeout_secs=0.3)
    for call in (client.ping, lambda: client.register("n", "d"), lambda: client.execute("a.B")):
        began = time.monotonic()
        with pytest.raises(WaitTimeout):
            call()
        assert time.monotonic() - began < 10
    over.set()


def test_a_pause_that_took_too_long_does_not_hide_why_the_try_before_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BPBROKER_KNOWN_BROKERS", str(tmp_path / "known_brokers"))
    sleep = time.sleep
    monkeypatch.setattr("bpbroker.client.calls.time.sleep", lambda _secs: sleep(0.4))  # as on a busy machine
    with (
        refusing_port() as port,
        Client(f"127.0.0.1:{port}", timeout_secs=0.3, retries=1000) as client,
        pytest.raises(CannotConnect),
    ):
        client.ping()
