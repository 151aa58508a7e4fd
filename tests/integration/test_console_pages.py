"""Every page of the console in a real Chromium: what each of them must hold, whatever stands on it.

No violation that axe-core finds, light and dark; nothing wider than a phone; no fault in the
browser's console, no violation of the policy, nothing asked of another origin; a proof in every form.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from support.browser import DESK, PHONE, Browser, Window, running_browser
from support.service import Laptop, Service, running_service

BOB = "bob@example.org"
STRANGERS = ("/", "/sign-in", "/sign-in?next=/auth/device", "/api/docs", "/nothing/here")
PAGES = (
    "/workspaces",
    "/workspaces/1",
    "/workspaces/2",
    "/workspaces/77",
    "/teams",
    "/teams/1",
    "/auth/cli-tokens",
    "/account",
    "/auth/device",
    "/auth/cli-login/?port=45677&state=s",
    "/admin",
    "/admin/sessions",
    "/admin/workspaces",
    "/admin/health",
)
MISSING = ("/77", "/here")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service")) as running:
        running.operator("user", "create", BOB)
        admin = running.first_facts["admin_email"]
        running.operator("workspace", "create", "royal-tree")
        running.operator("workspace", "create", "calm-river", "--owner", BOB)
        running.operator("workspace", "share", "calm-river", admin)
        running.operator("workspace", "start", "royal-tree")
        laptop = Laptop(tmp_path_factory.mktemp("laptop"))
        laptop.login(running)
        laptop.runcode("connect", "royal-tree", "--start", "--wait")
        laptop.runcode("exec", "--", "echo 'seen in the activity'; exit 3", expect=3)
        yield running


@pytest.fixture(scope="module", autouse=True)
def team(browser: Browser, service: Service) -> None:
    with browser.admin(service) as window:
        window.open("/teams")
        window.page.get_by_label("Name").fill("Payments")
        window.click("Make team")
        window.wait_for_text("The team is made")


def look_at(window: Window, path: str) -> None:
    """Light and dark at a desk, then on a phone; with everything that can be unfolded."""
    window.page.set_viewport_size(DESK)
    response = window.open(path)
    assert response.status == (404 if path.endswith(MISSING) else 200), (path, window.text)
    window.page.evaluate("document.querySelectorAll('main details').forEach(fold => { fold.open = true })")
    for scheme in ("light", "dark"):
        window.page.emulate_media(color_scheme=scheme)
        window.assert_accessible()
    window.assert_fits()
    window.page.set_viewport_size(PHONE)
    window.assert_fits()
    window.assert_forms_are_proven()
    window.assert_only_our_elements()
    window.assert_clean()


def test_every_page_of_a_stranger_holds_what_all_must(browser: Browser, service: Service) -> None:
    with browser.window(service.facts["web_base"]) as stranger:
        for path in STRANGERS:
            look_at(stranger, path)


def test_every_page_holds_what_all_must(browser: Browser, service: Service) -> None:
    with browser.admin(service) as admin:
        for path in PAGES:
            look_at(admin, path)


def test_a_failure_is_a_page_for_a_browser_and_json_for_a_program(browser: Browser, service: Service) -> None:
    with browser.window(service.facts["web_base"]) as window:
        for path in ("/nothing/here", "/workspaces/77/start", "/assets/0123456789abcdef/console.css"):
            response = window.page.request.get(window.base + path, headers={"Accept": "text/html,*/*;q=0.8"})
            assert response.status in (404, 405)
            assert "text/html" in response.headers["content-type"]
            assert 'id="problem"' in response.text()
            for accept in ("application/json", "*/*"):
                told = window.page.request.get(window.base + path, headers={"Accept": accept})
                if told.headers["content-type"] != "application/json":
                    # A page's own failure is a page to everybody.
                    assert path.startswith("/assets/")
                    continue
                assert told.json()["error"] is True
        told = window.page.request.get(window.base + "/api/rc/nothing", headers={"Accept": "text/html"})
        assert told.json()["code"] == "not_found"


def test_static_files_are_kept_for_a_year_by_their_content(browser: Browser, service: Service) -> None:
    with browser.admin(service) as window:
        window.open("/workspaces")
        addresses = window.page.evaluate(
            "[...document.querySelectorAll('link[href],script[src],img[src]')].map(e => e.href || e.src)"
        )
        assert len(addresses) >= 3
        for address in addresses:
            response = window.page.request.get(address)
            assert response.status == 200
            assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert len(urlsplit(address).path.split("/")[2]) == 16


def test_pages_themselves_are_never_kept(browser: Browser, service: Service) -> None:
    with browser.admin(service) as window:
        for path in PAGES:
            assert window.open(path).headers["cache-control"] == "no-store", path
