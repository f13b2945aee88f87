"""The pages, read as a browser reads them: signing in, each page, what a key may see, and that nothing changes."""

from __future__ import annotations

import json
import logging
import re
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import click
import pytest

from bpbroker.cli import cli
from bpbroker.client.cli.click_tree import bpclient
from bpbroker.config import layers
from bpbroker.discovery.jointoken import JoinToken, make_token
from bpbroker.frontend import access_log, pages
from bpbroker.frontend.access_log import Line
from bpbroker.frontend.pages.viewer import Credential
from bpbroker.messages import ChangeKey, Health
from bpbroker.registry import named_keys
from bpbroker.registry.requests import Allocate, Next
from tests.support.own_logging import faults
from tests.support.people import CANARY, KEY, PORT, SECRET, People, fields_of, words

PAGES = ("", "entries", "nodes", "locks", "numbers", "keys", "extensions", "backups", "requests", "live")
TEMPLATES = Path(pages.__file__).parent / "templates"
LOOKING = "services:get,list,watch,holder"


@pytest.fixture
def people() -> People:
    return People()


@pytest.fixture
def inside(people: People) -> People:
    assert people.sign_in().status == 303
    return people


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let requests be logged, as a broker's settings have it."""
    caplog.set_level(logging.INFO, "bpbroker.access")
    access_log.flush()
    access_log._book.recent.clear()
    yield
    access_log.flush()


# --- signing in ---


@pytest.mark.parametrize("page", PAGES)
def test_no_page_without_signing_in(people: People, page: str) -> None:
    answer = people.send(f"/ui/{page}")
    assert answer.status == 303
    to = f"?to=/ui/{page}" if page else ""
    assert fields_of(answer)["Location"] == f"https://broker:{PORT}/ui/sign-in{to}"
    assert "Set-Cookie" not in fields_of(answer)


@pytest.mark.parametrize("page", PAGES)
def test_each_page_opens_and_has_no_secret(inside: People, page: str) -> None:
    inside.give("ci", "services:*", "ossec.*")
    inside.put("foo", a=1)
    html = inside.get(page)
    assert CANARY not in html
    assert named_keys.digest_of(SECRET).hex() not in html
    assert '<html lang="en">' in html
    assert 'aria-current="page"' in html
    answer = inside.send(f"/ui/{page}")
    assert set(plain_headers()) <= set(answer.headers)
    assert "unsafe" not in fields_of(answer)["Content-Security-Policy"]
    assert "Strict-Transport-Security" not in fields_of(answer)
    assert fields_of(answer)["Cache-Control"] == "no-store"
    assert not re.search(r"<script(?! src=)|\bon\w+=|style=", html)


def test_browsers_are_told_to_insist_on_https_only_where_that_is_asked_for() -> None:
    people = People({"_ui": {"hsts_secs": 3600}})
    people.sign_in()
    for page in (*PAGES, "nothing", "static/style.css", "live/events"):
        assert fields_of(people.send(f"/ui/{page}"))["Strict-Transport-Security"] == "max-age=3600", page
    people.application.settings_changed(layers.freeze({**people.settings, "_ui": {}}))
    assert "Strict-Transport-Security" not in fields_of(people.send("/ui/"))


def plain_headers() -> tuple[tuple[str, str], ...]:
    return (("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "same-origin"))


def test_the_cookie_is_for_this_site_alone(people: People) -> None:
    answer = people.sign_in()
    cookie = fields_of(answer)["Set-Cookie"]
    assert re.fullmatch(
        rf"__Host-bpbroker-{PORT}=[0-9a-f]{{40}}; HttpOnly; Max-Age=(43200|43199); Path=/; SameSite=Strict; Secure",
        cookie,
    )
    assert fields_of(answer)["Location"] == f"https://broker:{PORT}/ui/"
    assert "Set-Cookie" not in fields_of(people.send("/ui/"))  # the browser has it


def test_the_id_that_a_browser_came_with_is_never_the_one_that_is_signed_in(people: People) -> None:
    people.cookie = f"__Host-bpbroker-{PORT}={'ab' * 20}"
    people.sign_in()
    first = people.cookie
    assert "ab" * 20 not in first
    people.sign_in()
    assert people.cookie != first
    second, people.cookie = people.cookie, first
    assert people.send("/ui/").status == 303  # the id before is no session any more
    people.cookie = second
    assert people.send("/ui/").status == 200


def test_a_wrong_key_is_counted_with_all_others(people: People) -> None:
    answer = people.sign_in("wrong")
    assert answer.status == 401
    assert "Incorrect access key" in words(answer.body.decode())
    assert "wrong" not in answer.body.decode()
    assert "Set-Cookie" not in fields_of(answer)
    assert people.application._wrong_keys._counted["10.0.0.9"].times


def test_after_too_many_wrong_keys_the_answer_comes_late_and_a_right_key_passes() -> None:
    people = People({"api": {"wrong_keys_per_minute": 2}})
    for _ in range(2):
        assert people.sign_in("wrong").status == 401
    answer = people.sign_in("wrong")
    assert answer.status == 429
    assert "Too many wrong access keys" in answer.body.decode()
    assert answer.content_type.startswith("text/html")
    assert people.sign_in().status == 303


def test_signing_in_by_a_token_or_a_named_key(people: People) -> None:
    key = people.give("ci", LOOKING)
    for given in (make_token(JoinToken(["broker:20443"], ["0" * 64], KEY)), key, f" {key}\n"):
        assert people.sign_in(given).status == 303
        people.get("entries")
    assert "key ci" in people.get("entries")
    for given in ("bpb2:xyz", "bpb1:", f"ci.{SECRET}x", "ci.", ".", "x" * 5000, "\ud800", "é" * 100):
        assert people.sign_in(given.encode("utf-8", "surrogatepass").decode("utf-8", "replace")).status == 401


def test_a_key_that_is_right_and_does_not_count_is_told_why(people: People) -> None:
    for members, why in (
        ({"until": "2020-01-01T00:00:00Z"}, "ended at"),
        ({"revoked": "2020-01-01T00:00:00Z"}, "was revoked at"),
        ({"from": ["192.168.0.0/16"]}, "may not be used from 10.0.0.9"),
        ({"uses": 3}, "pages use none up"),
    ):
        key = people.give("ci", LOOKING, **members)
        answer = people.sign_in(key)
        assert answer.status == 401
        assert why in words(answer.body.decode())
    key = people.give("ci", LOOKING, uses=1, used_by={"10.0.0.9": "2026-01-01T00:00:00Z"})
    assert people.sign_in(key).status == 303


@pytest.mark.parametrize("end", ["revoke", "rotate", "drop", "elsewhere"])
def test_a_key_that_ends_signs_out(people: People, end: str) -> None:
    people.sign_in(people.give("ci", LOOKING))
    people.get("entries")
    if end == "revoke":
        people.give("ci", LOOKING, revoked="2026-01-01T00:00:00Z")
    elif end == "rotate":
        people.give("ci", LOOKING, sha256="0" * 64)
    elif end == "drop":
        people.named.take(named_keys.stored_name("ci"), None)
    else:
        people.give("ci", LOOKING, **{"from": ["192.168.0.0/16"]})
    answer = people.send("/ui/entries")
    assert answer.status == 401
    assert "Max-Age=0" in fields_of(answer)["Set-Cookie"]
    people.give("ci", LOOKING)
    assert people.send("/ui/entries").status == 303  # it does not come back


def test_a_section_s_key_that_goes_signs_out(inside: People) -> None:
    inside.get("entries")
    inside.application.settings_changed(layers.freeze({**inside.settings, "services": {"_access_key": "another"}}))
    assert inside.send("/ui/entries").status == 401


def test_signing_out_takes_a_post(inside: People) -> None:
    assert inside.send("/ui/sign-out").status == 303
    inside.get("")
    kept = inside.cookie
    assert inside.send("/ui/sign-out", "POST", ORIGIN=f"https://broker:{PORT}").status == 303
    inside.cookie = kept
    assert inside.send("/ui/").status == 303


def test_an_open_registry_can_be_looked_at_without_a_key() -> None:
    people = People({"services": {}})
    form = people.send("/ui/sign-in").body.decode()
    assert "Look without a key" in form
    assert "From then on the registry needs a key from everybody" in form  # what the command there does
    assert people.sign_in("").status == 303
    people.put("foo", a=1)
    assert "foo" in people.get("entries")
    assert people.send("/ui/backups").status == 403
    people.give("ci", LOOKING)  # this closes it
    assert people.send("/ui/entries").status == 401
    assert People().sign_in("").status == 401


@pytest.mark.parametrize(
    "to",
    [
        "https://evil.example/",
        "//evil.example/ui/",
        "/ui/\\evil",
        "/services/Get",
        "/ui/../x\r\nX: y",
        "/ui/sign-out",
        "",
    ],
)
def test_signing_in_leads_to_our_own_pages_only(people: People, to: str) -> None:
    location = fields_of(people.sign_in(to=to))["Location"]
    assert location.startswith(f"https://broker:{PORT}/ui/")
    assert "sign-out" not in location


def test_signing_in_leads_to_the_page_that_was_wanted(people: People) -> None:
    wanted = "/ui/entry?name=a%2Fb%25%22"
    location = fields_of(people.send(wanted))["Location"]
    assert location.endswith(f"/ui/sign-in?to={quote(wanted)}")
    html = people.send(location.removeprefix(f"https://broker:{PORT}")).body.decode()
    (to,) = re.findall(r'name="to" value="([^"]*)"', html)
    assert fields_of(people.sign_in(to=to))["Location"] == f"https://broker:{PORT}{wanted}"


def test_requests_of_other_sites_are_refused_with_a_page(inside: People) -> None:
    for headers in ({"ORIGIN": "https://evil.example"}, {"SEC_FETCH_SITE": "cross-site"}, {"ORIGIN": "null"}):
        answer = inside.send("/ui/", "GET", b"", **headers)
        assert answer.status == 403
        assert answer.content_type.startswith("text/html")
    assert inside.send("/ui/", HOST="evil.example").status == 421


def test_sessions_are_bounded_and_one_key_s_do_not_push_out_others(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bpbroker.frontend.pages import sessions

    monkeypatch.setattr(sessions, "PER_CLIENT_MAX", 3)
    people.sign_in()
    other = people.cookie
    key = people.give("ci", LOOKING)
    for _ in range(10):
        people.cookie = ""
        people.sign_in(key)
    people.cookie = other
    people.get("")
    assert people.pages._sessions is not None
    assert len(people.pages._sessions) == 4
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 2)
    people.cookie = ""
    people.sign_in(key)
    assert len(people.pages._sessions) == 2


def test_sessions_of_one_address_do_not_push_out_those_of_others() -> None:
    from bpbroker.frontend.pages import sessions

    kept, without_a_key = sessions.Sessions(), Credential("open")
    kept.begin("mine", without_a_key, "10.0.0.1")
    for number in range(200):
        kept.begin(f"theirs-{number}", without_a_key, "10.0.0.2")
    assert kept.find("mine") is without_a_key
    assert len(kept) == 1 + sessions.PER_CLIENT_MAX
    for number in range(2000):
        kept.begin(f"many-{number}", without_a_key, f"10.0.1.{number % 40}")
    assert kept.find("mine") is without_a_key
    assert len(kept) == sessions.SESSIONS_MAX


def test_a_session_ends_after_twelve_hours_however_often_it_is_used(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("bpbroker.frontend.pages.sessions.time.monotonic", lambda: now)
    people.sign_in()
    for _ in range(5):
        now += 2.3 * 3600
        people.get("")
    now += 3600
    assert people.send("/ui/").status == 303


# --- that nothing changes ---


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("page", [*PAGES, "entry", "static/style.css", "live/events"])
def test_pages_take_no_other_method(inside: People, method: str, page: str) -> None:
    answer = inside.send(f"/ui/{page}", method)
    assert answer.status == 405
    assert fields_of(answer)["Allow"] == "GET, HEAD"


def test_no_request_changes_the_registry(people: People) -> None:
    people.put("foo", a=1)
    people.node("s1", "node-1", "db")
    key = people.give("ci", "services:*", last_used="2999-01-01T00:00:00Z")  # else that day is noted by signing in
    before, commits = people.ledger.sequence, len(people.ledger.commits)
    people.sign_in("wrong")
    people.sign_in(key)
    for page in (*PAGES, "entry?name=foo", "raw?name=foo", "entries?prefix=f", "sign-in", "nothing"):
        people.send(f"/ui/{page}")
        people.send(f"/ui/{page}", "HEAD")
    people.send("/ui/sign-out", "POST")
    assert (people.ledger.sequence, len(people.ledger.commits)) == (before, commits)


def test_signing_in_is_a_use_of_the_key_and_looking_is_none(people: People) -> None:
    key = people.give("ci", "services:*")

    def last_used() -> float | None:
        return people.named.by_name["ci"].last_used

    # As the registry has it: what only the view has cannot be noted.
    stored = {"sha256": named_keys.digest_of(SECRET).hex(), "allow": ["services:*"]}
    people.registry.ask(ChangeKey(named_keys.stored_name("ci"), "add", stored), 1.0).result(1)
    people.send("/ui/sign-in", "POST", b"key=ci.wrong", ORIGIN=f"https://broker:{PORT}")
    assert last_used() is None
    people.sign_in(key)
    assert last_used() is not None
    commits = len(people.ledger.commits)
    for page in PAGES:
        people.get(page)
    assert len(people.ledger.commits) == commits


# --- each page ---


def test_the_overview_tells_each_part_s_story(inside: People) -> None:
    shown = words(inside.get(""))
    for told in (
        "It serves, with something to look at",
        "extension ossec",
        "&lt;b&gt;boom&lt;/b&gt;",
        "replaced 2 times",
        "fail",
    ):
        assert told in shown
    assert inside.healthcheck.asked == [Health()]


def test_entries_are_searched_and_paged(inside: People) -> None:
    for number in range(120):
        inside.put(f"node-{number:03}", n=number)
    inside.put("other", x=1)
    html = inside.get("entries", prefix="node-")
    assert "1\u201350 of 120" in html
    assert "node-000" in html
    assert "node-050" not in html
    assert "other" not in html
    assert 'href="/ui/entries?prefix=node-&amp;page=2"' in html or 'href="/ui/entries?prefix=node-&page=2"' in html
    html = inside.get("entries", prefix="node-", page="3")
    assert "101\u2013120 of 120" in html
    assert 'rel="next"' not in html
    assert "101\u2013120 of 120" in inside.get("entries", prefix="node-", page="99")
    for odd in ("0", "-1", "x", "1e9", "\uff19"):
        assert "1\u201350 of 121" in inside.get("entries", page=odd)
    assert "There is no entry" in inside.get("entries", prefix="zzz")
    assert "There is no entry" in inside.get("entries", prefix="_session/")


def test_an_entry_is_a_tree_with_its_history(inside: People) -> None:
    inside.put("db", role="replica", ports=[5432, 5433], tls={"on": True, "ca": None})
    inside.put("db", role="master")
    inside.put("db2", x=1)
    html = inside.get("entry", name="db")
    shown = words(html)
    assert "role master" in shown
    assert "10.0.0.7" in shown
    assert html.count('class="state put"') == 2
    assert "replica" in shown  # the version before
    assert re.search(r'<time datetime="[\d:TZ-]+" title="[\d: -]+ UTC">', html)
    answer = inside.send("/ui/raw?name=db")
    assert json.loads(answer.body)["role"] == "master"
    assert answer.content_type == "application/json"
    assert fields_of(answer)["Content-Disposition"].startswith("attachment")
    assert inside.send("/ui/entry?name=nothing").status == 404
    assert inside.send("/ui/entry?name=_keys/ci").status == 404
    assert inside.send("/ui/entry").status == 404


def test_nodes_locks_and_who_waits(inside: People) -> None:
    inside.node("one", "node-1", "db/initial")
    inside.node("two", "node-2", "db/initial")
    shown = words(inside.get("nodes"))
    for told in ("one", "two", "node-1", "db/initial", "1 min", "10.0.0.8", "Nothing was lost"):
        assert told in shown
    # Only one of them holds it.
    assert re.search(r"\bone 10.0.0.8 .{,20} 1 min node-1 ; lock db/initial", shown), shown
    assert re.search(r"\btwo 10.0.0.8 .{,20} 1 min node-2 ; waits for lock db/initial", shown), shown
    shown = words(inside.get("locks"))
    assert re.search(r"db/initial.*node one came.*session one.*node one came.*session two", shown)
    assert "db/initial" in inside.get("locks", prefix="db/")
    assert "No lock" in inside.get("locks", prefix="x")


def test_numbers(inside: People) -> None:
    inside.registry.ask(Allocate("foo/id", "node-1", "10.0.0.7"), 1.0).result(1)
    inside.registry.ask(Next("serial", "10.0.0.7", 5), 1.0).result(1)
    inside.put("entry", role="x", n=1)
    html = inside.get("numbers")
    shown = words(html)
    assert "foo/id 1 node-1 1" in shown
    assert "serial 5" in shown
    assert "name=entry" not in html
    assert "There is no pool here" in inside.get("numbers", prefix="serial")


def test_keys_by_name_and_which_namespaces_need_one(inside: People) -> None:
    inside.give(
        "ci", "services:get@foo/", until="2999-01-01T00:00:00Z", uses=2, used_by={"10.0.0.1": "2026-01-01T00:00:00Z"}
    )
    inside.give("old", "ossec.*", revoked="2026-01-01T00:00:00Z")
    shown = words(inside.get("keys"))
    assert "ci in force services:get@foo/" in shown
    assert "1 of 2 addresses" in shown
    assert "old revoked" in shown
    assert "services the key in the configuration" in shown


def test_backups_by_name_without_their_folder(inside: People) -> None:
    html = inside.get("backups")
    assert "bpbroker.json.1" in html
    assert "2.0 KiB" in html
    assert "/var/x" not in html
    inside.backup.outcome = ()
    assert "bpbroker backup" in inside.get("backups")


@pytest.mark.usefixtures("logged")
def test_the_last_requests(inside: People) -> None:
    for name, key in (("<i>foo</i>", "ci"), ("bar", None)):
        access_log.write(Line("10.0.0.7", 200, 5, "id1", "services", "Get", name, None, key))
    access_log.write(Line("10.0.0.9", 200, 5, "id2", "ui", "entries"))
    access_log.write(Line("10.0.0.9", 200, 5, "id3", "services", "Holder", "db/lock"))
    access_log.flush()
    html = inside.get("requests")
    assert 'href="/ui/locks?prefix=db/lock"' in html
    assert "&lt;i&gt;foo&lt;/i&gt;" in html
    assert words(html).index("bar") < words(html).index("foo")  # the newest first
    assert "id2" not in html
    inside.sign_in(inside.give("ci", "services:get"))
    html = inside.get("requests")
    assert "foo" in html
    assert ">bar<" not in html
    inside.sign_in(inside.give("other", "services:get"))
    assert "none with your key" in inside.get("requests")


def test_requests_that_are_not_logged_are_said_to_be(inside: People, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "bpbroker.access")
    assert "Requests are not logged" in words(inside.get("requests"))


def test_empty_pages_say_what_to_type(inside: People) -> None:
    for page, command in (
        ("entries", "bpclient service register"),
        ("nodes", "bpclient session run"),
        ("locks", "bpclient lock"),
        ("numbers", "bpclient number"),
        ("keys", "bpbroker key add"),
        ("live", "bpclient service replace"),
    ):
        assert command in inside.get(page)
        assert not re.search(r"[.:][A-Z]", words(inside.get(page))), "two sentences without a space"


@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*.html")), ids=lambda path: path.stem)
def test_what_a_page_says_to_type_is_a_command_with_its_options(template: Path) -> None:
    source = template.read_text()
    written: list[str] = re.findall(r"typed\((\"(?:[^\"\\]|\\.)*\")\)", source)
    assert len(written) == source.count("typed(") - source.count("macro typed(")
    for command in map(json.loads, written):
        program, *rest = shlex.split(command)
        root = {"bpbroker": cli, "bpclient": bpclient()}[program]
        context = click.Context(root, info_name=program)
        while isinstance(context.command, click.Group) and not rest[0].startswith("-"):
            found = context.command.get_command(context, rest[0])
            assert found is not None, command
            context, rest = click.Context(found, parent=context, info_name=rest[0]), rest[1:]
        context.command.make_parser(context).parse_args(args=list(rest))  # an option that there is not raises


def test_extensions_with_their_last_error(inside: People) -> None:
    html = inside.get("extensions")
    assert "its module cannot be imported: &lt;b&gt;boom&lt;/b&gt;" in html
    inside.sign_in(inside.give("ci", LOOKING, "ping.*"))
    assert "boom" not in inside.get("extensions")
    assert "boom" not in inside.get("")
    inside.sign_in(inside.give("ci", "ossec.AddAgent"))
    assert "boom" in inside.get("extensions")


# --- what a key may see ---


def test_a_key_sees_what_it_may_read(people: People) -> None:
    for name in ("a/1", "a/2", "b/1", "c/1", "c/x/1"):
        people.put(name, mark=f"value of {name}")
    people.node("one", "a/node", "a/lock")
    people.node("two", "b/node", "b/lock")
    people.sign_in(people.give("ci", "services:list,get,watch,holder@a/", "services:get@b/", "services:list@c/x/"))
    html = people.get("entries")
    assert [re.search(rf"\b{name}\b", html) is not None for name in ("a/1", "a/node", "b/1", "c/1", "c/x/1")] == [
        True, True, False, False, True,
    ]  # fmt: skip
    assert "of 4" in html
    assert "a/1" in people.get("entries", prefix="a")
    assert "There is no entry" in people.get("entries", prefix="b/")
    assert people.send("/ui/entry?name=b%2F1").status == 200
    for name in ("c/1", "c/x/1"):
        for page in ("entry", "raw"):
            answer = people.send(f"/ui/{page}?name={name}")
            assert answer.status == 403
            assert f"services:get@{name}" in answer.body.decode()
    html = people.get("nodes")
    assert "a/node" in html
    assert "b/node" in html
    assert "b/lock" not in html
    assert "b/lock" not in people.get("locks")
    assert "a/lock" in people.get("locks")
    html = people.get("live")
    assert "a/1" in html
    assert "b/1" not in html
    assert words(people.get("keys")).count("in force") == 1
    for page, current in (("backups", "backups"), ("entry?name=c/1", "entries"), ("nothing", None)):
        answer = people.send(f"/ui/{page}")
        html = answer.body.decode()
        assert answer.status == (404 if current is None else 403)
        assert current is None or "services:" in html
        # From there one goes on as from every page.
        assert [f'href="/ui/{each}"' in html for each in PAGES] == [True] * len(PAGES)
        assert (f'href="/ui/{current}" aria-current="page"' in html) == (current is not None)
        assert "Sign out" in html


def test_a_key_for_something_else_sees_no_entry(people: People) -> None:
    people.put("xyzzy-1", a=1)
    people.node("one", "xyzzy-2", "xyzzy-3")
    people.sign_in(people.give("ci", "ossec.*"))
    for page in PAGES:
        answer = people.send(f"/ui/{page}")
        assert b"xyzzy" not in answer.body
    assert people.send("/ui/entry?name=xyzzy-1").status == 403
    assert people.send("/ui/entry?name=nothing").status == 403


# --- bad input ---

ODD = {
    "script": "<script>alert(1)</script>",
    "link": "javascript:alert(1)",
    "quotes": "\"'`><img src=x onerror=alert(1)>",
    "percent": "50%/a%2Fb%00",
    "slashes": "a//b/../c",
    "emoji": "👩‍🚀🎉",
    "bidi": "user\u202egnp.exe",
    "zero width": "fo\u200bo",
    "template": "{{ 7*7 }}{% raw %}",
    "long": "n" * 250 + "é☃",
    "query": "a&b=c#d?e+f g",
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_names_and_values_are_shown_as_text_and_linked_right(inside: People, odd: str) -> None:
    inside.put(odd, **{odd: [odd, {odd: odd}]})
    for page in ("entries", "live"):
        html = inside.get(page)
        (target,) = re.findall(r'href="/ui/(entry\?name=[^"]*)"', html)
        assert re.fullmatch(r"entry\?name=[A-Za-z0-9%/._~+-]*", target)
        assert harmless(html)
        answer = inside.send(f"/ui/{target}")
        assert answer.status == 200
        assert harmless(answer.body.decode())
    assert json.loads(inside.send(f"/ui/raw?name={quote(odd)}").body)[odd] == [odd, {odd: odd}]
    html = inside.get("entries", prefix=odd)
    assert harmless(html)
    assert "of 1" in html


def harmless(html: str) -> bool:
    """Whether nothing in a page is an element, a script or a character that the entry brought."""
    return (
        not re.search(r"<script(?! src=\"/ui/static/)|<img|\son\w+=(?![^<]*&)|href=\"javascript|49", strip(html))
        and not re.search("[\u202e\u200b\x00\x1b]", strip(html))
        and ">alert(1)</script>" not in html
    )


def strip(html: str) -> str:
    """Return a page without the numbers that it has of itself, and without what is escaped."""
    return re.sub(
        r"<time.*?</time>|\d\d:\d\d:\d\d UTC|<title>.*?</title>|value=\"[^\"]*\"|\d{4,}|\d[\d.]* (?:KiB|bytes)",
        "",
        html,
    )


def test_characters_that_cannot_be_seen_are_shown_by_number(inside: People) -> None:
    inside.put("ctl", value="a\x00b\x1b[31m\u202e\u2066\ufeff\x7f\x85", tabs="a\tb\nc", emoji="👩‍🚀 ✌️")
    html = inside.get("entry", name="ctl")
    for number in ("0000", "001B", "202E", "2066", "FEFF", "007F", "0085"):
        assert f'<span class="odd">U+{number}</span>' in html
    assert "a\tb\nc" in html
    assert "👩‍🚀 ✌️" in html


def test_large_and_deep_entries(inside: People) -> None:
    inside.put("large", value="<" * (512 * 1024))
    html = inside.get("entry", name="large")
    assert "491,520 more characters" in html
    assert len(inside.send("/ui/raw?name=large").body) > 512 * 1024
    assert len(inside.get("entries")) < 20_000
    deep: object = "bottom"
    for level in range(31):
        deep = {f"level{level}": deep} if level % 2 else [deep]
    inside.put("deep", top=deep)
    html = inside.get("entry", name="deep")
    assert html.count("<details open>") == html.count("</details>") == 31
    assert "bottom" in html
    inside.put("wide", **{f"field{number}": {"x": number} for number in range(5000)})
    html = inside.get("entry", name="wide")
    assert "more lines" in html
    assert html.count("<li>") < 2100


@pytest.mark.parametrize(
    "target",
    ["/ui/entries?prefix=%ff", "/ui/entries?prefix=a&prefix=b", "/ui/entries?page=1&page=2", "/ui/entries?nothing=1",
     "/ui/%2e%2e/x", "/ui/static/../site.py", "/ui/static/%2e%2e/site.py", "/ui/static/", "/ui/static", "/ui/_page",
     "/ui/render", "/ui/answer", "/ui/nothing", "/ui/entries/more", "/ui//", "/uix",
     "/ui/live/nothing", "/ui/sign-in/x", "/ui/sign-out/x", "/ui/raw/foo", "/ui/\xff", "/ui/index/",
     "/ui/__class__", "/ui/__class__/", "/ui/--class--/", "/ui/__class__/sign-in", "/ui/__class__/__base__/",
     "/ui/entries/__func__", "/ui/entries/__wrapped__", "/ui/entries/__self__/", "/ui/sign-in/__func__",
     "/ui/sign-in/__self__/entries", "/ui/sign-in/__self__/backups", "/ui/_reading/health"],
)  # fmt: skip
def test_odd_addresses_are_answered_with_a_page_and_no_traceback(inside: People, target: str) -> None:
    answer = inside.send(target)
    assert answer.status in (200, 301, 303, 401, 403, 404), answer
    assert b"Traceback" not in answer.body
    assert b"class Site" not in answer.body
    assert b"/bpbroker/frontend" not in answer.body


@pytest.mark.parametrize("page", [*PAGES, "entry", "raw", "sign-in", "sign-out"])
def test_a_parameter_may_have_any_name(inside: People, page: str) -> None:
    for name in ("self", "args", "kwargs", "site", "read", "cls", "func", "callable"):
        assert inside.send(f"/ui/{page}?{name}=1").status in (200, 303, 404)


def test_what_breaks_in_a_page_is_in_the_log_alone(inside: People, caplog: pytest.LogCaptureFixture) -> None:
    inside.healthcheck.outcome = RuntimeError("canary-in-an-error /etc/x")
    answer = inside.send("/ui/")
    assert answer.status == 500
    text = answer.body.decode()
    assert CANARY not in text
    assert "the broker&#x27;s log has it under id" in text
    assert "canary-in-an-error" in caplog.text
    assert inside.cookie.partition("=")[2] not in caplog.text
    assert "Set-Cookie" not in fields_of(answer)
    assert set(plain_headers()) <= set(answer.headers)


# --- files, and being switched off ---


def test_static_files_need_no_key_and_may_be_kept(people: People) -> None:
    answer = people.send("/ui/static/style.css")
    assert answer.status == 200
    assert answer.content_type.startswith("text/css")
    assert fields_of(answer)["Cache-Control"] == "max-age=3600"
    assert fields_of(answer)["X-Content-Type-Options"] == "nosniff"
    answer = people.send("/ui/static/style.css", ACCEPT_ENCODING="gzip")
    assert fields_of(answer)["Content-Encoding"] == "gzip"
    assert len(answer.body) < 4000
    assert people.send("/ui/static/style.css", IF_MODIFIED_SINCE=fields_of(answer)["Last-Modified"]).status == 304
    for name, kind in (
        ("live.js", "text/javascript"),
        ("sign_in.js", "text/javascript"),
        ("icon.svg", "image/svg+xml"),
    ):
        answer = people.send(f"/ui/static/{name}")
        assert (answer.status, answer.content_type.partition(";")[0]) == (200, kind)


@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/sign-in", "/ui/static/style.css", "/ui/live/events"])
def test_pages_that_are_off_are_as_if_they_were_not_there(path: str) -> None:
    people = People({"_ui": {"enabled": False}})
    nothing = people.send("/nothing/Here")
    answer = people.send(path)
    assert (answer.status, answer.body) == (nothing.status, nothing.body)
    people.application.settings_changed(layers.freeze({**people.settings, "_ui": {"enabled": True}}))
    assert people.send(path).status != nothing.status or path == "/ui/live/events"
    people.application.settings_changed(layers.freeze({**people.settings, "_ui": {"enabled": False}}))
    assert people.send(path).body == nothing.body


def test_an_extension_of_that_name_is_called_as_before() -> None:
    people = People({"ui": {"_access_key": "x"}})
    answer = people.send("/ui/Method")
    assert answer.status == 401
    assert answer.content_type == "application/json"


def test_a_page_that_hangs_holds_up_nothing_but_pages(inside: People) -> None:
    inside.put("foo", a=1)
    inside.healthcheck.outcome = ...  # it never answers
    hangs = threading.Thread(target=lambda: inside.send("/ui/"), daemon=True)
    hangs.start()
    answer = inside.send("/services/Get?name=foo", "POST", X_ACCESS_KEY=KEY)
    assert answer.status == 200
    assert hangs.is_alive()


# --- what a request without a key may cost ---

HEADER_BYTES = 15_900
"""Nearly all that a head may have."""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cookie", f'__Host-bpbroker-{PORT}="' + "\\" * HEADER_BYTES + '"'),
        ("cookie", f'__Host-bpbroker-{PORT}="' + '\\"' * (HEADER_BYTES // 2) + '"'),
        ("accept-encoding", '",' * (HEADER_BYTES // 2)),
        ("accept-charset", '",' * (HEADER_BYTES // 2)),
        ("accept", '",' * (HEADER_BYTES // 2)),
        ("if-none-match", '",' * (HEADER_BYTES // 2)),
        ("if-modified-since", "1" * HEADER_BYTES),
        ("content-type", '",' * (HEADER_BYTES // 2)),
        ("range", "bytes=" + "0-," * (HEADER_BYTES // 3) + "0-"),
        ("x-forwarded-host", '",' * (HEADER_BYTES // 2)),
    ],
)
@pytest.mark.parametrize("path", ["/ui/sign-in", "/ui/static/style.css"])
def test_no_header_costs_more_than_reading_it(people: People, path: str, name: str, value: str) -> None:
    people.send(path)  # makes the site
    plain = len(people.send(path).body)
    took = []
    for _ in range(3):
        begun = time.process_time()
        answer = people.send(path, "GET", b"", **{name: value})
        took.append(time.process_time() - begun)
        assert len(answer.body) <= plain
    assert min(took) < 0.1  # of CPU time; it was up to 1.2 s, with Python's lock held


def test_a_browser_that_takes_it_gets_pages_compressed(inside: People) -> None:
    for accepted in ("gzip", "deflate, gzip;q=1.0, br", "br;q=1.0, GZIP"):
        assert fields_of(inside.send("/ui/keys", accept_encoding=accepted))["Content-Encoding"] == "gzip"
    for accepted in ("", "br", "gzip;q=0", "gzip; q=0.0", "xgzip"):
        assert "Content-Encoding" not in fields_of(inside.send("/ui/keys", accept_encoding=accepted))


def test_a_form_of_too_many_fields_is_the_clients_fault(people: People, caplog: pytest.LogCaptureFixture) -> None:
    answer = people.send("/ui/sign-in", "POST", b"a=1&" * 20, origin=f"https://broker:{PORT}")
    assert answer.status == 400
    assert not faults(caplog)  # no traceback for each
