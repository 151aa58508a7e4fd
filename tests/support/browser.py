"""A real Chromium before the console: Debian's program, driven by Playwright, which downloads nothing.

A Browser is one process for a test file; a Window is one person's own browser profile with one
page. A Window writes down whatever a page must never do - an error in the console, a violation of
its policy, a dialog, a request to another origin - and `assert_clean` holds it against that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser as Process
from playwright.sync_api import BrowserContext, Page, Response, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from support.service import Service

CHROMIUM = "/usr/bin/chromium"
AXE = Path(__file__).parent.parent / "vendor" / "axe-core" / "axe.min.js"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 860}
# Chromium's own words for an answer with a status of 400 or more; a page that a test wants to fail has them too.
_STATUS = "Failed to load resource: the server responded with a status of"
_FORM_PROOF_IS_IN_EVERY_FORM = """() => [...document.querySelectorAll('form[method=post]')]
    .filter(form => !form.querySelector('input[name=proof]')).map(form => form.action)"""

# What no page of ours has, with or without hostile text on it.
_FOREIGN_ELEMENTS = """() => [...document.querySelectorAll(
    'iframe, object, embed, base, style, svg, [onerror], [onload], [onfocus], [style], a[href^="javascript:"], ' +
    'script:not([src^="/assets/"]), img:not([src^="/assets/"]), link:not([href^="/assets/"]), ' +
    'form:not([action^="/"]), [hx-get]:not([hx-get^="/workspaces"])'
  )].map(found => found.outerHTML)"""


class Window:
    """One person's browser. `page` is Playwright's."""

    def __init__(self, context: BrowserContext, base: str) -> None:
        self.context, self.base = context, base
        self.faults: list[str] = []
        self.page = context.new_page()
        self._watch(self.page)

    def _watch(self, page: Page) -> None:
        own = urlsplit(self.base).netloc

        def on_console(message: Any) -> None:
            if message.type in ("error", "warning") and not message.text.startswith(_STATUS):
                self.faults.append(f"console: {message.text}")

        def on_dialog(dialog: Any) -> None:
            self.faults.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        def on_request(request: Any) -> None:
            parts = urlsplit(request.url)
            # A client's one-shot listener is where an answered consent leads, by the page as a whole.
            if parts.netloc != own and not (parts.path in ("/callback", "/done") and request.is_navigation_request()):
                self.faults.append(f"request: {request.url}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        page.on("dialog", on_dialog)
        page.on("request", on_request)

    # ---------------------------------------------------------------- moving about

    def open(self, path: str) -> Response:
        response = self.page.goto(self.base + path if path.startswith("/") else path)
        assert response is not None
        return response

    def sign_in(self, email: str, password: str) -> None:
        self.open("/sign-in")
        self.page.get_by_label("E-mail address").fill(email)
        self.page.get_by_label("Password").fill(password)
        self.click("Sign in")
        self.page.wait_for_url(self.base + "/**")
        assert "/sign-in" not in self.page.url, self.text

    def click(self, button: str, *, within: str = "main") -> None:
        self.page.locator(within).get_by_role("button", name=button, exact=True).click()

    @property
    def text(self) -> str:
        return self.page.locator("body").inner_text()

    def wait_for_text(self, text: str, *, within: str = "body", timeout_s: float = 30) -> None:
        self.page.locator(within).get_by_text(text).first.wait_for(timeout=timeout_s * 1000)

    def new_page(self) -> Page:
        page = self.context.new_page()
        self._watch(page)
        return page

    # ---------------------------------------------------------------- judging

    def assert_clean(self) -> None:
        assert self.faults == [], f"{self.page.url}: {self.faults}"

    def assert_accessible(self) -> None:
        """axe-core finds nothing: it runs by the debugger, which no policy of the page binds."""
        if not self.page.evaluate("typeof window.axe === 'object'"):
            self.page.evaluate(AXE.read_text())
        found = self.page.evaluate(
            "axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html + ' ' + n.failureSummary)]))"
        )
        assert found == [], f"{self.page.url}: {found}"
        # A rule that axe-core no longer has; live parts of the page find their place by it.
        twice = self.page.evaluate(
            "[...document.querySelectorAll('[id]')].map(e => e.id).filter((id, n, all) => all.indexOf(id) !== n)"
        )
        assert twice == [], f"{self.page.url} has ids that stand twice: {twice}"

    def assert_fits(self) -> None:
        """Nothing sticks out to the right."""
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{self.page.url} is {wide} px wider than its window"

    def assert_only_our_elements(self) -> None:
        assert self.page.evaluate(_FOREIGN_ELEMENTS) == [], self.page.url

    def assert_forms_are_proven(self) -> None:
        assert self.page.evaluate(_FORM_PROOF_IS_IN_EVERY_FORM) == []


class Browser:
    def __init__(self, process: Process) -> None:
        self.process = process

    @contextlib.contextmanager
    def window(self, base: str, **options: Any) -> Iterator[Window]:
        """A profile of its own, gone afterwards; its faults fail the test."""
        context = self.process.new_context(**{"viewport": DESK, "color_scheme": "light", **options})
        context.set_default_timeout(20_000)
        window = Window(context, base)
        try:
            yield window
            window.assert_clean()
        finally:
            context.close()

    @contextlib.contextmanager
    def admin(self, service: Service, **options: Any) -> Iterator[Window]:
        """Signed in with what the ready file of the first start says."""
        with self.window(service.facts["web_base"], **options) as window:
            window.sign_in(service.first_facts["admin_email"], service.first_facts["admin_password"])
            yield window


@contextlib.contextmanager
def running_browser(arguments: Sequence[str] = ()) -> Iterator[Browser]:
    """Chromium, ended afterwards. Root may not use its sandbox; where nobody else can either, the test is NOT RUN."""
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        try:
            process = playwright.chromium.launch(executable_path=CHROMIUM, args=[*sandbox, *arguments])
        except PlaywrightError as error:
            if not sandbox and "sandbox" in str(error).lower():
                pytest.skip("Chromium's sandbox cannot start for this user: it needs user namespaces")
            raise
        try:
            yield Browser(process)
        finally:
            process.close()
