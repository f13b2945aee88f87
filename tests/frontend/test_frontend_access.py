"""Access through the frontend: sections, keys, methods, origins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bpbroker.config import layers
from bpbroker.registry.named_keys import digest_of
from bpbroker.server.request import Request
from bpbroker.server.response import PendingResponse
from tests.support.application import SETTINGS, Answer, Broker


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.mark.parametrize(
    "path",
    ["/_config/X", "/_global/X", "/api/X", "/worker/X", "/os/system", "/subprocess/run", "/pkg/sub.F", "/pkg/X", "/a/"],
)
def test_only_enabled_sections_are_namespaces(broker: Broker, path: str) -> None:
    answer = broker.call(path)
    assert (answer.status, answer.message) == (401, "Unauthorized package")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "method", ["", "_x", "__class__", "a.b", "..%2Fx", "/", "Get//", "get", "Snapshot", "Get/x", "\xff"]
)
def test_only_methods_are_called(broker: Broker, method: str) -> None:
    for namespace in ("services", "ping", "pkg.sub"):
        if namespace == "pkg.sub" and method in ("get", "Snapshot"):
            continue  # that is for the module to say
        answer = broker.call(f"/{namespace}/{method}")
        assert (answer.status, answer.message) == (401, "Unauthorized method")


def test_a_section_is_looked_at_before_the_key_and_the_key_before_the_method(broker: Broker) -> None:
    assert broker.call("/nope/_x").message == "Unauthorized package"
    assert broker.call("/ossec/_x").message == "Incorrect access key"
    assert broker.call("/ossec/_x?access_key=secret").message == "Unauthorized method"


def keyed() -> Iterator[Callable[[Broker, str], Answer]]:
    yield lambda broker, key: broker.call("/ossec/AddAgent/", AUTHORIZATION=f"Bearer {key}")
    yield lambda broker, key: broker.call("/ossec/AddAgent/", AUTHORIZATION=f"bearer  {key}")
    yield lambda broker, key: broker.call("/ossec/AddAgent/", X_ACCESS_KEY=key)
    yield lambda broker, key: broker.call(f"/ossec/AddAgent/?access_key={key}")
    yield lambda broker, key: broker.call(f"/ossec/AddAgent/?access-key={key}&access_key=")
    yield lambda broker, key: broker.post("/ossec/AddAgent/", access_key=key)
    yield lambda broker, key: broker.post("/ossec/AddAgent/", **{"access-key": key})
    yield lambda broker, key: broker.call(
        "/ossec/AddAgent/", body=f"access_key={key}".encode(), CONTENT_TYPE="application/x-www-form-urlencoded"
    )


@pytest.mark.parametrize("call", list(keyed()))
def test_a_key_is_taken_from_anywhere(broker: Broker, call: Callable[[Broker, str], Answer]) -> None:
    assert call(broker, "secret").body == b"done"
    (message,) = broker.ossec.asked
    assert message.qs == {}
    for wrong in ("Secret", "secret ", "secre", "", "x" * 2000, "None"):
        answer = call(broker, wrong) if wrong != "secret " else call(broker, "secretx")
        assert (answer.status, answer.message) == (401, "Incorrect access key")
    assert len(broker.ossec.asked) == 1


@pytest.mark.parametrize("key", [["secret"], {"secret": 1}, 1, True, False, 0, [], {}])
def test_a_key_that_is_no_text_is_wrong(broker: Broker, key: Any) -> None:
    assert broker.post("/ossec/AddAgent/", access_key=key).status == 401


def test_a_key_given_twice_is_wrong_even_if_both_are_right(broker: Broker) -> None:
    assert broker.call("/ossec/AddAgent/?access_key=secret&access_key=secret").status == 401
    assert broker.call("/ossec/AddAgent/?access_key=secret", X_ACCESS_KEY="secret").status == 401
    assert broker.post("/ossec/AddAgent/", **{"access_key": "secret", "access-key": "secret"}).status == 401
    assert not broker.ossec.asked


def test_any_of_several_keys_is_right_and_a_header_is_utf_8() -> None:
    broker = Broker({**SETTINGS, "ossec": {"_access_key": ["old", "schlüssel"]}})
    for key in ("old", "schlüssel".encode().decode("latin-1")):
        assert broker.call("/ossec/AddAgent/", X_ACCESS_KEY=key).status == 200
    # Another normal form looks the same but is not.
    assert broker.call("/ossec/AddAgent/", X_ACCESS_KEY="schlu\u0308ssel".encode().decode("latin-1")).status == 401


def test_an_open_namespace_takes_any_key(broker: Broker) -> None:
    assert broker.call("/services/Get/?name=foo&access_key=whatever&access_key=x").status == 200


def test_guessing_is_slowed_down_for_who_guesses(broker: Broker) -> None:
    for _ in range(100):
        assert broker.call("/ossec/AddAgent/?access_key=guess").status == 401
    answer = broker.call("/ossec/AddAgent/?access_key=guess")
    assert answer.status == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    # The guilty one must not lock out others behind the same address, nor elsewhere.
    assert broker.call("/ossec/AddAgent/?access_key=secret").status == 200
    assert broker.call("/ossec/AddAgent/?access_key=secret", source="10.0.0.8").status == 200
    assert broker.call("/services/Get/?name=foo").status == 200
    broker.application.settings_changed(layers.freeze({**SETTINGS, "api": {"wrong_keys_per_minute": 1000}}))
    assert broker.call("/ossec/AddAgent/?access_key=secret").status == 200


def test_a_missing_key_is_no_guess(broker: Broker) -> None:
    for _ in range(101):
        assert broker.call("/ossec/AddAgent/").status == 401
    assert broker.call("/ossec/AddAgent/?access_key=secret").status == 200


def test_settings_that_change_are_in_force_at_once(broker: Broker) -> None:
    broker.application.settings_changed(layers.freeze({**SETTINGS, "services": {"_access_key": "new"}}))
    assert broker.call("/services/Get/?name=foo").status == 401
    assert broker.call("/services/Get/?name=foo", X_ACCESS_KEY="new").status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://broker:20443", "https://broker"])
def test_a_page_of_another_origin_is_not_served(broker: Broker, origin: str) -> None:
    for target in ("/services/Replace/?name=a&data=b", "/health", "/nope", "/_control/Stop"):
        assert broker.call(target, ORIGIN=origin).status == 403
    assert broker.call("/services/Get/?name=foo", ORIGIN="https://broker:20443").status == 200


@pytest.mark.parametrize(
    ("site", "status"),
    [("cross-site", 403), ("same-site", 403), ("Cross-Site", 403), ("same-origin", 200), ("none", 200)],
)
def test_a_page_of_another_site_is_not_served_without_an_origin_either(broker: Broker, site: str, status: int) -> None:
    for target in ("/services/Get/?name=foo", "/live", "/pkg.sub/F"):
        assert broker.call(target, "GET", SEC_FETCH_SITE=site).status == status


BROWSER = {"USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64)"}


@pytest.mark.parametrize("marks", [BROWSER, {"SEC_FETCH_SITE": "same-origin"}, {"SEC_FETCH_MODE": "cors"}])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("broker", 200),
        ("BROKER.:20443", 200),
        ("localhost:20443", 200),
        ("a.example.org", 200),
        ("a.b.example.org", 421),
        ("example.org", 421),
        ("10.0.0.5:20443", 200),
        ("[fe80::1]:20443", 200),
        ("rebound.example:20443", 421),
        ("broker.evil.example", 421),
        ("10.0.0.5.evil.example", 421),
        ("", 421),
    ],
)
def test_a_browser_has_to_know_the_broker_by_its_own_name(
    broker: Broker, host: str, status: int, marks: dict[str, Any]
) -> None:
    assert broker.call("/services/Get/?name=foo", "GET", HOST=host, **marks).status == status
    assert broker.call("/services/Get/?name=foo", "GET", HOST=host, USER_AGENT="curl/8").status == 200


def test_more_names_can_be_set(broker: Broker) -> None:
    def status() -> int:
        return broker.call("/live", "GET", HOST="alias.example", USER_AGENT=BROWSER["USER_AGENT"]).status

    assert status() == 421
    broker.application.settings_changed(layers.freeze({**SETTINGS, "api": {"host_names": ["Alias.Example"]}}))
    assert status() == 200
    broker.application.settings_changed(layers.freeze(SETTINGS))
    assert status() == 421
    broker.application.names_changed(["alias.example"])
    assert status() == 200


def test_methods_are_not_called_with_head(broker: Broker) -> None:
    for target in ("/services/Get/?name=foo", "/services/List/", "/ping/Ping/", "/pkg.sub/F"):
        answer = broker.call(target, "HEAD")
        assert answer.status == 405
        assert "HEAD" not in answer.headers["Allow"]
    assert not broker.registry.asked


# --- by the head alone ---


def admitted(broker: Broker, target: str, **headers: str) -> int:
    path, _, query = target.partition("?")
    fields = {"host": "broker", **{name.lower().replace("_", "-"): value for name, value in headers.items()}}
    refusal = broker.application.admit(Request("POST", path, query, fields, "10.0.0.7"))
    return 200 if refusal is None else refusal.status


def test_a_key_in_a_header_is_checked_before_the_body_is_read(broker: Broker) -> None:
    assert admitted(broker, "/ossec/F", X_ACCESS_KEY="secret") == 200
    assert admitted(broker, "/ossec/F", AUTHORIZATION="Bearer wrong") == 401
    assert admitted(broker, "/ossec/F?access_key=secret") == 200
    assert admitted(broker, "/ossec/F?access_key=wrong") == 401
    assert admitted(broker, "/ossec/F?name=x") == 401  # with a query, the body has no parameters
    assert admitted(broker, "/ossec/F") == 200  # the key may be in the body
    assert admitted(broker, "/nope/F") == 401
    assert admitted(broker, "/services/Replace") == 200
    assert admitted(broker, "/_control/ApplyConfiguration", AUTHORIZATION="Bearer wrong") == 401
    assert admitted(broker, "/health") == 405
    assert admitted(broker, "/services/Replace", ORIGIN="https://evil.example") == 403


def test_a_wrong_key_is_counted_once_wherever_it_is_found(broker: Broker) -> None:
    broker.application.settings_changed(layers.freeze({**SETTINGS, "api": {"wrong_keys_per_minute": 4}}))
    assert admitted(broker, "/ossec/F", X_ACCESS_KEY="wrong") == 401
    assert broker.call("/ossec/F", X_ACCESS_KEY="wrong").status == 401
    assert broker.call("/ossec/F?access_key=wrong").status == 401
    assert broker.call("/ossec/F?access_key=secret", X_ACCESS_KEY="secret").status == 401
    assert broker.call("/ossec/F", X_ACCESS_KEY="wrong").status == 429
    assert admitted(broker, "/ossec/F", X_ACCESS_KEY="wrong") == 429


def test_a_network_of_ipv6_guesses_as_one_client(broker: Broker) -> None:
    broker.application.settings_changed(layers.freeze({**SETTINGS, "api": {"wrong_keys_per_minute": 3}}))
    for number in range(3):
        assert broker.call("/ossec/F?access_key=guess", source=f"2001:db8::{number}").status == 401
    assert broker.call("/ossec/F?access_key=guess", source="2001:db8::ffff:1").status == 429
    assert broker.call("/ossec/F?access_key=secret", source="2001:db8:0:1::1").status == 200


def test_wrong_keys_in_datagrams_count_together_with_those_over_connections(broker: Broker) -> None:
    broker.application.settings_changed(layers.freeze({**SETTINGS, "api": {"wrong_keys_per_minute": 3}}))
    for _ in range(3):
        broker.application.count_unproven_wrong_key("10.0.0.7")
    assert broker.call("/ossec/F?access_key=secret").status == 200  # the source of a datagram can be forged
    assert broker.call("/ossec/F?access_key=guess").status == 401
    assert broker.call("/ossec/F?access_key=guess").status == 429


def test_of_ipv6_a_network_counts_for_datagrams_and_connections_together(broker: Broker) -> None:
    broker.application.settings_changed(layers.freeze({**SETTINGS, "api": {"wrong_keys_per_minute": 3}}))
    for number in range(3):
        broker.application.count_unproven_wrong_key(f"2001:db8::{number}")
    broker.application.count_unproven_wrong_key("2001:db8::1%eth0")
    assert broker.call("/ossec/F?access_key=guess", source="2001:db8::7").status == 401
    assert broker.call("/ossec/F?access_key=guess", source="2001:db8::8").status == 429


def test_who_may_look_at_who_am_i_counts_as_who_calls(broker: Broker) -> None:
    """Else it would tell for each guess, as often as one likes, whether it is a key."""
    broker.application.settings_changed(layers.freeze({**SETTINGS, "api": {"wrong_keys_per_minute": 3}}))
    for number in range(3):
        assert broker.call("/whoami", method="GET", X_ACCESS_KEY=f"guess{number}").status == 401
    assert broker.call("/whoami", method="GET", X_ACCESS_KEY="guess").status == 429
    assert broker.call("/whoami", method="GET", X_ACCESS_KEY="secret").status == 200
    assert broker.call("/whoami", method="GET").status == 200
    opened = Broker({"services": {}, "ping": {}})
    assert opened.call("/whoami", method="GET", X_ACCESS_KEY="whatever").status == 200


def test_of_who_guesses_in_parallel_only_few_keys_are_looked_at(broker: Broker) -> None:
    """Who leaves before the answer, which comes late, must not learn from that which key is right."""
    broker.application.settings_changed(layers.freeze({**SETTINGS, "api": {"wrong_keys_per_minute": 100}}))
    generated = "x" * 43
    stored = {"sha256": digest_of(generated).hex(), "allow": ["ossec"], "last_used": "2999-01-01T00:00:00Z"}
    broker.keys.take("_keys/ci", json.dumps(stored).encode())
    assert broker.call("/ossec/F", source="10.0.0.8", X_ACCESS_KEY="secret").status == 200

    def looked(source: str, key: str) -> bool:
        fields = {"host": "broker:20443", "x-access-key": key}
        result = broker.application(Request("POST", "/ossec/F", "", fields, source, b""))
        if not isinstance(result, PendingResponse):
            assert result.status == 401
            return False
        result.ask()
        held = not result.done
        result.give_up()
        return not held

    def guess(source: str, times: int) -> None:
        for number in range(times):
            assert not looked(source, f"guess{number}")

    guess("10.0.0.6", 103)
    assert looked("10.0.0.6", "secret")  # a new client behind the same address
    for source in ("10.0.0.7", "10.0.0.8"):
        guess(source, 300)
    assert not looked("10.0.0.7", "secret")
    assert looked("10.0.0.8", "secret")  # it was right from there before
    # What is generated cannot be guessed, so it passes always; a long name makes no long secret.
    assert looked("10.0.0.7", f"ci.{generated}")
    assert not looked("10.0.0.7", f"{'ci' * 30}.secret")
    assert looked("10.0.0.9", "secret")
