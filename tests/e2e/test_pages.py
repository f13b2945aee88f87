"""The pages in a real browser, on a real broker: one of each for all tests, so what a test puts there is its own."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support.browser import Looking, chromium
from tests.support.running import RunningBroker

KEY = "canary-" + "5d1c7a90b2"
LOOKING = "services:get,list,watch,holder"
PAGES = (
    "", "entries", "entry?name=db", "nodes", "locks", "numbers", "keys", "extensions", "backups", "requests", "live",
)  # fmt: skip
ODD = {
    "script": "<script>alert(1)</script>",
    "image": "\"'><img src=x onerror=alert(1)>",
    "link": "javascript:alert(1)",
    "percent": "50%/a%2Fb%00//../c",
    "emoji": "👩‍🚀/🎉",
    "bidi": "user\u202egnp.exe\u2066",
    "long": "n" * 250 + "é☃",
    "query": "a&b=c#d?e+f g;h",
}


class Seen:
    """A broker with something to see in it, and calls that wait for a lock."""

    def __init__(self, broker: RunningBroker) -> None:
        self.broker = broker
        self.address = f"127.0.0.1:{broker.port}"
        self._waiting: list[http.client.HTTPSConnection] = []

    def call(self, method: str, **parameters: Any) -> Any:
        answer = self.broker.call(f"/services/{method}/", {"Authorization": f"Bearer {KEY}"}, **parameters)
        assert answer.status == 200, answer
        return answer.json

    def wait_for_lock(self, name: str, session: str) -> None:
        connection = self.broker.connect(60)
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        body = json.dumps({"name": name, "session": session, "wait": 300})
        connection.request("POST", "/services/Lock/", body, headers)
        self._waiting.append(connection)

    def key(self, name: str, *allow: str) -> str:
        rules = [word for rule in allow for word in ("--allow", rule)]
        made = self.broker.bpbroker("key", "add", name, *rules)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    def fill(self) -> None:
        call = self.call
        call("Open", session="gone", ttl=2)
        call("Register", name="gone-1", data={"state": "up"}, session="gone")
        for number in range(120):
            call("Register", name=f"node-{number:03}", data={"role": "replica", "number": number})
        call("Register", name="db", data={"role": "replica", "ports": [5432, 5433], "tls": {"on": True, "ca": None}})
        call("Update", name="db", data={"role": "master"})
        for session in ("web-1:4711", "web-2:4712"):
            call("Open", session=session, ttl=600)
            call("Register", name=f"alive/{session[:5]}", data={"state": "up"}, session=session)
        call("Lock", name="db/initial", session="web-1:4711", data="web-1")
        self.wait_for_lock("db/initial", "web-2:4712")
        for owner in ("web-1", "web-2", "web-3"):
            call("Allocate", pool="web/id", owner=owner)
        call("Next", name="serial")
        for name, odd in ODD.items():
            call("Register", name=f"odd/{odd}"[:250] if name == "long" else f"odd/{odd}", data={odd: [odd, {"x": odd}]})
        deep: Any = "bottom"
        for level in range(31):
            deep = {"level": deep} if level % 2 else [deep]
        call("Register", name="odd/deep", data={"top": deep})
        call("Register", name="odd/large", data={"text": "large text. " * 43_000})
        self.key("looking", LOOKING)
        assert self.broker.bpbroker("key", "revoke", self_named("old", self)).returncode == 0
        assert self.broker.bpbroker("backup").returncode == 0
        self.broker.request("/demo/Fail/", "POST")
        self.broker.request("/broken/Call/", "POST")
        deadline = time.monotonic() + 30
        while not call("List", lost="1")["data"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        deadline = time.monotonic() + 30
        while "web-2:4712" not in json.dumps(call("Holder", name="db/initial")):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def close(self) -> None:
        for connection in self._waiting:
            connection.close()


def self_named(name: str, seen: Seen) -> str:
    """Make a key; return its name."""
    seen.key(name, "demo.*")
    return name


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    settings = {
        "api": {"listen_ip": "127.0.0.1"},
        "_global": {"healthcheck_freq_sec": 1},
        "services": {"_access_key": KEY},
        "demo": {"_access_key": ""},
        "broken": {},
    }
    broker = RunningBroker(tmp_path_factory.mktemp("seen"), settings)
    (broker.lib / "demo.py").write_text("def Fail(rh):\n    raise RuntimeError('it fails')\n")
    (broker.lib / "broken.py").write_text("import nothing_of_that_name\n")
    broker.start()
    made = Seen(broker)
    try:
        made.fill()
        yield made
    finally:
        made.close()
        broker.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def look(seen: Seen, browser: Browser) -> Iterator[Callable[..., Looking]]:
    """Yield what opens a window; each must have done nothing that no page may do."""
    opened: list[Looking] = []

    def make(**options: Any) -> Looking:
        opened.append(Looking(browser, seen.address, KEY, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.unharmed()


def sized(width: int) -> dict[str, Any]:
    return {"viewport": {"width": width, "height": 800}}


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1440, "dark")])
def test_each_page_fits_and_can_be_used_by_all(
    look: Callable[..., Looking], width: int, scheme: str, tmp_path: Path
) -> None:
    window = look(color_scheme=scheme, **sized(width))
    window.open("/ui/sign-in")
    found = {"sign-in": (window.overflows(), window.faults_by_axe())}
    window.picture(f"sign-in-{width}-{scheme}", tmp_path)
    window.sign_in(KEY)
    for page in PAGES:
        window.open(f"/ui/{page}")
        name = page.partition("?")[0] or "overview"
        found[name] = window.overflows(), window.faults_by_axe()
        window.picture(f"{name}-{width}-{scheme}", tmp_path)
    assert {name: faults for name, faults in found.items() if faults != ([], [])} == {}


def test_signing_in_and_out(look: Callable[..., Looking], tmp_path: Path) -> None:
    window = look(**sized(360))
    window.expected = ["401"]
    page = window.open("/ui/entries?prefix=db")
    assert page.url.endswith("/ui/sign-in?to=/ui/entries%3Fprefix%3Ddb")
    page.fill("#key", "wrong")
    page.click("#sign-in button")
    assert "Incorrect access key" in page.inner_text("[role=alert]")
    assert window.faults_by_axe() == []
    window.picture("wrong-key-360", tmp_path)
    page.fill("#key", KEY)
    page.click("#sign-in button")
    page.wait_for_selector("header nav")
    assert page.url.endswith("/ui/entries?prefix=db")
    (cookie,) = window.context.cookies()
    assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Strict")
    assert 0 < cookie["expires"] - time.time() < 12 * 3600 + 60
    page.click("text=Sign out")
    page.wait_for_selector("#sign-in")
    page.go_back()
    page.goto(f"https://{window.address}/ui/entries")
    assert page.query_selector("#sign-in")
    assert window.context.cookies() == []


def test_a_token_behind_the_hash_signs_in_and_is_never_in_an_address(seen: Seen, look: Callable[..., Looking]) -> None:
    window = look()
    window.page.goto(f"https://{seen.address}/ui/sign-in#{seen.broker.token()}")
    window.page.wait_for_selector("header nav")
    assert window.page.url == f"https://{seen.address}/ui/"
    window.page.goto(f"https://{seen.address}/ui/sign-in#{KEY}")
    window.page.wait_for_selector("header nav")


def test_search_and_paging(look: Callable[..., Looking]) -> None:
    window = look()
    page = window.sign_in(KEY, "/ui/entries")
    page.fill("#prefix", "node-")
    page.press("#prefix", "Enter")
    page.wait_for_url("**/ui/entries?prefix=node-")
    assert "1\u201350 of 120" in window.text
    assert "node-000" in window.text
    page.click("text=Next >> nth=0")
    page.wait_for_url("**page=2")
    assert "node-050" in window.text
    page.click("text=Last >> nth=0")
    page.wait_for_url("**page=3")
    assert "101\u2013120 of 120" in window.text
    assert page.query_selector("a[rel=next]") is None
    page.click("text=Previous >> nth=0")
    page.wait_for_url("**page=2")
    page.click("text=node-050")
    page.wait_for_url("**/ui/entry?name=node-050")
    assert "number 50" in window.text
    page.click("text=Entries >> nth=0")
    page.fill("#prefix", "nothing-of-that")
    page.press("#prefix", "Enter")
    page.wait_for_url("**nothing-of-that")
    assert "There is no entry whose name begins with" in window.text


def test_a_change_is_on_an_open_page_within_a_second(seen: Seen, look: Callable[..., Looking]) -> None:
    window = look()
    page = window.sign_in(KEY, "/ui/live")
    window.until(lambda: "as they happen" in window.text, "that the page follows")
    took = []
    for number in range(3):
        name = f"live-{number}"
        seen.broker.environ["BPBROKER_ACCESS_KEY"] = KEY
        done = seen.broker.bpclient("-a", KEY, "service", "replace", "--name", name, "--data", "<b>x</b>")
        assert done.returncode == 0, done.stderr
        written = time.monotonic()
        page.wait_for_selector(f"#events a[href='/ui/entry?name={name}']")
        took.append(time.monotonic() - written)
    assert min(took) < 1.0, took
    exact = page.get_attribute("#events time >> nth=0", "title")
    assert exact is not None
    assert exact.endswith(" UTC")
    assert window.faults_by_axe() == []
    page.click("#events a[href='/ui/entry?name=live-2']")
    page.wait_for_url("**/ui/entry?name=live-2")


def test_a_page_that_was_asleep_catches_up(seen: Seen, look: Callable[..., Looking]) -> None:
    window = look()
    window.expected = ["ERR_INTERNET_DISCONNECTED", "Failed to load resource"]
    page = window.sign_in(KEY, "/ui/live")
    window.until(lambda: "as they happen" in window.text, "that the page follows")
    window.context.set_offline(True)
    seen.call("Replace", name="asleep", data={"x": 0})  # what is under way still comes through
    window.until(lambda: "does not answer" in window.text, "that the page is cut off")
    for number in range(5):
        seen.call("Replace", name=f"asleep-{number}", data={"x": number})
    seen.call("Delete", name="asleep-0")
    window.context.set_offline(False)
    page.wait_for_selector("#events a[href='/ui/entry?name=asleep-4']")
    window.until(lambda: "as they happen" in window.text, "that the page follows again")
    names = page.eval_on_selector_all("#events tbody th", "all => all.slice(0, 7).map(each => each.innerText)")
    assert names == ["asleep-0", "asleep-4", "asleep-3", "asleep-2", "asleep-1", "asleep-0", "asleep"]
    assert page.inner_text("#events .state >> nth=0") == "delete"


def test_a_key_that_is_revoked_signs_an_open_page_out(seen: Seen, look: Callable[..., Looking]) -> None:
    window = look()
    window.expected = ["401"]
    key = seen.key("short", LOOKING)
    page = window.sign_in(key, "/ui/live")
    window.until(lambda: "as they happen" in window.text, "that the page follows")
    assert seen.broker.bpbroker("key", "revoke", "short").returncode == 0
    page.wait_for_selector("#sign-in")
    assert "was revoked" in page.inner_text("[role=alert]")
    page.goto(f"https://{window.address}/ui/entries")
    assert page.query_selector("#sign-in")


def test_by_keyboard_alone(look: Callable[..., Looking], tmp_path: Path) -> None:
    window = look()
    page = window.open("/ui/sign-in")
    page.keyboard.type(KEY)  # the field has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector("header nav")

    def focused() -> str:
        return str(page.evaluate("document.activeElement.innerText || document.activeElement.tagName")).strip()

    page.keyboard.press("Tab")
    assert focused() == "To the contents"
    window.picture("focus-1440", tmp_path)
    for _ in range(20):
        page.keyboard.press("Tab")
        if focused() == "Entries":
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/entries")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # over the navigation
    page.keyboard.press("Tab")
    assert focused() == "INPUT"
    page.keyboard.type("db")
    page.keyboard.press("Enter")
    page.wait_for_url("**prefix=db")
    page.focus("main a.name")
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/entry?name=db")
    page.focus("summary")
    assert page.evaluate("document.querySelector('details').open")
    page.keyboard.press("Enter")
    assert not page.evaluate("document.querySelector('details').open")
    page.focus("text=Sign out")
    page.keyboard.press("Enter")
    page.wait_for_selector("#sign-in")


def test_without_javascript(seen: Seen, look: Callable[..., Looking]) -> None:
    window = look(java_script_enabled=False)
    page = window.sign_in(KEY)
    for name in PAGES:
        window.open(f"/ui/{name}")
        assert page.query_selector("h1")
    seen.call("Replace", name="plain-1", data={"x": 1})
    assert "plain-1" not in window.text
    page.click("text=load the page again")
    window.until(lambda: "plain-1" in window.text, "what was written meanwhile")
    page.click("text=plain-1 >> nth=0")
    page.wait_for_url("**/ui/entry?name=plain-1")


def test_odd_entries_are_text_and_lead_where_they_should(look: Callable[..., Looking], tmp_path: Path) -> None:
    window = look(**sized(360))
    page = window.sign_in(KEY, "/ui/entries?prefix=odd/")
    assert window.overflows() == []
    window.picture("odd-entries-360", tmp_path)
    links = page.eval_on_selector_all("tbody th a", "all => all.map(each => each.getAttribute('href'))")
    assert len(links) == len(ODD) + 2
    for number, link in enumerate(links):
        page.goto(f"https://{window.address}{link}")
        assert page.inner_text("h1").startswith("odd/")
        assert window.overflows() == []
        assert page.evaluate("document.querySelectorAll('main script, main img').length") == 0
        window.picture(f"odd-{number}-360", tmp_path)
        with page.expect_download() as download:
            page.click("text=JSON >> nth=0")
        assert json.loads(Path(download.value.path()).read_bytes())
    page = window.open("/ui/live")
    assert len(page.query_selector_all("main script, main img")) == 0
    page.set_viewport_size({"width": 1440, "height": 800})
    window.open("/ui/entries?prefix=odd/")
    window.picture("odd-entries-1440", tmp_path)


def test_a_key_for_a_part_sees_that_part(seen: Seen, look: Callable[..., Looking], tmp_path: Path) -> None:
    window = look()
    window.expected = ["403"]
    page = window.sign_in(seen.key("part", "services:get,list,watch@node-0"), "/ui/entries")
    assert "of 100" in window.text
    assert "Your key may list names that begin with node-0" in window.text
    window.picture("part-1440", tmp_path)
    page.goto(f"https://{window.address}/ui/entry?name=db")
    assert "lacks the right services:get@db" in window.text
    window.picture("refused-1440", tmp_path)
    page.goto(f"https://{window.address}/ui/backups")
    assert "services:*" in window.text


def test_empty_pages(browser: Browser, tmp_path: Path) -> None:
    broker = RunningBroker(tmp_path / "empty", {"api": {"listen_ip": "127.0.0.1", "access_log": "off"}}).start()
    window = Looking(browser, f"127.0.0.1:{broker.port}", KEY, **sized(360))
    try:
        page = window.open("/ui/")
        page.click("text=Look without a key")
        page.wait_for_selector("header nav")
        for name in ("entries", "nodes", "locks", "numbers", "keys", "extensions", "requests", "live"):
            page = window.open(f"/ui/{name}")
            assert page.query_selector(".empty code.typed"), name
            assert window.overflows() == []
            window.picture(f"empty-{name}-360", tmp_path)
        window.unharmed()
    finally:
        broker.kill()


def test_a_hundred_thousand_entries_open_in_a_second(tmp_path: Path) -> None:
    stamp = {"last_write_ip": "10.0.0.7", "last_write_ts": 1_700_000_000}
    entries = {f"node-{number:06}": {"role": "replica", "number": number, **stamp} for number in range(100_000)}
    broker = RunningBroker(tmp_path / "many", {"api": {"listen_ip": "127.0.0.1"}, "services": entries}).start()
    try:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        signed = broker.request("/ui/sign-in", "POST", "key=", form)
        cookie = {"Cookie": signed.headers["Set-Cookie"].partition(";")[0]}
        broker.request("/ui/entries", "GET", None, cookie)  # the first page makes the application
        took = {}
        for target in (
            "entries",
            "entries?page=2000",
            "entries?prefix=node-09",
            "entry?name=node-099999",
            "numbers",
            "live",
            "",
        ):
            began = time.monotonic()
            answer = broker.request(f"/ui/{target}", "GET", None, cookie)
            took[target] = time.monotonic() - began
            assert answer.status == 200
            assert len(answer.body) < 100_000
        assert max(took.values()) < 1.0, took
    finally:
        broker.kill()
