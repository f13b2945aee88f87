"""The pages in a real browser, of brokers that share a registry on etcd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.test_pages import KEY, LOOKING, PAGES
from tests.support.browser import Looking, chromium
from tests.support.etcd_cluster import needs_etcd
from tests.support.running import RunningBroker

pytestmark = needs_etcd


def test_what_one_broker_is_told_the_pages_of_another_show(
    etcd_section: dict[str, Any], make_broker: Callable[..., RunningBroker], tmp_path: Path
) -> None:
    settings = {
        "api": {"listen_ip": "127.0.0.1"},
        "services": {"_access_key": KEY},
        "_registry": {**etcd_section, "timeout_secs": 5},
    }
    here, there = (make_broker(settings).start() for _ in range(2))
    own = {"Authorization": f"Bearer {KEY}"}

    def call(method: str, **parameters: Any) -> None:
        answer = there.call(f"/services/{method}/", own, **parameters)
        assert answer.status == 200, answer

    made = there.bpbroker("key", "add", "looking", "--allow", LOOKING)
    assert made.returncode == 0, made.stderr
    call("Register", name="db", data={"role": "replica"})
    call("Update", name="db", data={"role": "master"})
    call("Open", session="web-1:4711", ttl=600)
    call("Register", name="alive/web-1", data={"state": "up"}, session="web-1:4711")
    call("Lock", name="db/initial", session="web-1:4711", data="web-1")
    call("Allocate", pool="web/id", owner="web-1")
    with chromium() as browser:
        window = Looking(browser, f"127.0.0.1:{here.port}", KEY)
        window.expected = ["401", "403"]
        window.sign_in(KEY)
        shown = {}
        for name in PAGES:
            window.open(f"/ui/{name}")
            shown[name] = window.text
            window.picture(f"etcd-{name.partition('?')[0] or 'overview'}-1280", tmp_path)
        for name, part in (
            ("", "registry"),
            ("entries", "alive/web-1"),
            ("entry?name=db", "master"),
            ("nodes", "web-1:4711"),
            ("locks", "db/initial"),
            ("numbers", "web/id"),
            ("keys", "looking"),
            ("live", "db"),
        ):
            assert part in shown[name], (name, shown[name])
        window.sign_in(made.stdout.strip(), "/ui/sign-in?to=/ui/live")
        window.until(lambda: "as they happen" in window.text, "that the page follows")
        call("Replace", name="told-to-another", data={"x": 1})
        window.page.wait_for_selector("#events a[href='/ui/entry?name=told-to-another']")
        assert there.bpbroker("key", "revoke", "looking").returncode == 0
        window.page.wait_for_selector("#sign-in")
        window.unharmed()
