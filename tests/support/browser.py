"""A real browser, without a screen, and what it must not do on any page."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    Response,
    sync_playwright,
)

SCREENSHOTS: Final = "BPBROKER_SCREENSHOTS"
"""Names the folder for pictures of all pages."""
WAIT_MS: Final = 20_000
"""For everything that must come; machines may be slow."""

_axe: Final = Axe()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield Debian's chromium."""
    program = shutil.which("chromium")
    assert program, "chromium is not there: apt-get install chromium"
    # Without a sandbox: root may have none.
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments, headless=True)
        try:
            yield browser
        finally:
            browser.close()


class Looking:
    """One person's browser window. What no page may do is noted, and asserted by :meth:`unharmed`.

    Args:
        browser: from :func:`chromium`.
        address: ``127.0.0.1:port`` of the broker.
        canary: what may be in no page.
        options: of the browser's context, such as its width.
    """

    def __init__(self, browser: Browser, address: str, canary: str, **options: Any) -> None:
        self.address = address
        self.canary = canary
        self.context: BrowserContext = browser.new_context(ignore_https_errors=True, **options)
        self.context.set_default_timeout(WAIT_MS)
        self.page: Page = self.context.new_page()
        self.expected: list[str] = []
        """Parts of console messages that a test means to bring about."""
        self._faults: list[str] = []
        self._watch(self.page)

    def _watch(self, page: Page) -> None:
        page.on("console", self._said)
        page.on("pageerror", lambda error: self._faults.append(f"script: {error}"))
        page.on("dialog", self._shown)
        page.on("request", self._asked)
        page.on("response", self._answered)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._faults.append(f"console: {message.text} ({message.location})")

    def _shown(self, dialog: Dialog) -> None:
        self._faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _asked(self, request: Request) -> None:
        host = urlsplit(request.url).netloc
        if host != self.address:
            self._faults.append(f"request to another host: {request.url}")
        if self.canary in request.url:
            self._faults.append(f"secret in an address: {request.url}")

    def _answered(self, response: Response) -> None:
        if response.status >= 500:
            self._faults.append(f"{response.status}: {response.url}")

    def unharmed(self) -> None:
        """See that no page did what none may do; close the window."""
        self.context.close()
        faults = [fault for fault in self._faults if not any(part in fault for part in self.expected)]
        assert not faults, faults

    # --- what a person does ---

    def open(self, path: str) -> Page:
        """Open a page; see that it holds no secret."""
        self.page.goto(f"https://{self.address}{path}")
        assert self.canary not in self.page.content()
        return self.page

    def sign_in(self, key: str, path: str = "/ui/") -> Page:
        """Sign in on the way to a page."""
        self.page.goto(f"https://{self.address}{path}")
        self.page.fill("#key", key)
        self.page.click("#sign-in button")
        self.page.wait_for_selector("header nav")
        self.page.wait_for_load_state()  # what stands below may come a moment later
        return self.page

    @property
    def text(self) -> str:
        """What is to be read on the page."""
        return re.sub(r"\s+", " ", self.page.inner_text("main"))

    def until(self, seen: Callable[[], bool], what: str) -> None:
        """Wait until something is to be seen."""
        for _ in range(WAIT_MS // 50):
            if seen():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{what} is not to be seen: {self.text}")

    # --- how it looks ---

    def overflows(self) -> list[str]:
        """Return what is wider than the window."""
        found: list[str] = self.page.evaluate(
            """() => document.documentElement.scrollWidth <= innerWidth ? [] :
                [...document.querySelectorAll("body *")]
                    .filter(each => each.getBoundingClientRect().right > innerWidth + 1)
                    .map(each => each.tagName + "." + each.className + ": " + each.textContent.slice(0, 60))"""
        )
        return found

    def faults_by_axe(self) -> list[str]:
        """Return the serious faults that axe-core finds for people who hear a page, or see it badly."""
        results = _axe.run(self.page).response
        return [
            f"{each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes'][:3]]}"
            for each in results["violations"]
            if each["impact"] in ("serious", "critical")
        ]

    def picture(self, name: str, otherwise: Path) -> None:
        """Make a picture of the whole page."""
        folder = Path(os.environ.get(SCREENSHOTS) or otherwise)
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png", full_page=True)
