"""The console under attack, in a real Chromium: hostile texts in every field, frames, and forged forms.

The texts are put into the database itself, past every check on the way in: what a page makes of
its values must not depend on who looked at them before.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.browser import Browser, Window, running_browser
from support.hostile_text import MARKUP, SPICES
from support.service import Laptop, Service, running_service

BOB = "bob@example.org"
PAGES = (
    "/workspaces",
    "/workspaces/1",
    "/teams",
    "/teams/1",
    "/auth/cli-tokens",
    "/account",
    "/admin",
    "/admin/sessions",
    "/admin/workspaces",
)
TEXTS = (
    # All of the markup at once, and the spices one beside the other.
    " ".join(MARKUP),
    "".join(SPICES),
    "good\u202egnp.exe\u2066\u200b\x1b[2J\x07",
)
COLUMNS = (
    ("workspaces", "custom_title"),
    ("workspaces", "reason"),
    ("workspaces", "size"),
    ("teams", "name"),
    ("api_tokens", "name"),
    ("sessions", "client"),
    ("web_sessions", "browser"),
    ("web_sessions", "source"),
)
DETAILS = ("text", "client", "source", "target", "form", "reason", "by", "with", "name", "email")
# Controls except tab and newline, what reorders or hides text, and what breaks lines unseen.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service")) as running:
        running.operator("workspace", "create", "royal-tree")
        running.operator("workspace", "start", "royal-tree")
        running.operator("user", "create", BOB)
        running.operator("workspace", "share", "royal-tree", BOB)
        laptop = Laptop(tmp_path_factory.mktemp("laptop"))
        laptop.login(running)
        laptop.runcode("connect", "royal-tree", "--start", "--wait")
        laptop.runcode("exec", "--", MARKUP[0], expect=None)
        yield running


# ---------------------------------------------------------------- texts


def poison(service: Service, text: str) -> None:
    with contextlib.closing(sqlite3.connect(service.data_dir / "runcode.db", timeout=30)) as database, database:
        for table, column in COLUMNS:
            changed = database.execute(f"UPDATE {table} SET {column} = ? || ' ' || id", (text,))
            assert changed.rowcount > 0, f"{table} has no row to be hostile in"
        detail = json.dumps(dict.fromkeys(DETAILS, text))
        changed = database.execute("UPDATE events SET detail = json_patch(detail, ?)", (detail,))
        assert changed.rowcount > 0


def assert_harmless(window: Window) -> None:
    window.assert_only_our_elements()
    window.assert_clean()
    markup = window.page.content()
    assert UNSEEN.search(markup) is None, (window.page.url, UNSEEN.search(markup))


def test_hostile_texts_are_texts_on_every_page(browser: Browser, service: Service) -> None:
    with browser.admin(service) as window:
        window.open("/teams")
        window.page.get_by_label("Name").fill("Payments")
        window.click("Make team")
        for text in TEXTS:
            poison(service, text)
            for path in PAGES:
                assert window.open(path).status == 200, (path, window.text)
                assert_harmless(window)
                shown = window.page.content()
                assert "\ufffd" in shown or MARKUP[0] in window.page.locator("body").inner_text() or path == "/admin"
        # The live parts come by another way than the page that they stand in.
        poison(service, TEXTS[0])
        window.open("/workspaces/1")
        poison(service, "<b id=injected>late</b>")
        window.wait_for_text("<b id=injected>late</b>", within="#activity")
        window.wait_for_text("<b id=injected>late</b>", within="#sessions")
        window.wait_for_text("<b id=injected>late</b>", within="#head")
        assert window.page.locator("#injected").count() == 0
        assert_harmless(window)


def test_words_in_an_address_say_nothing_on_the_page(browser: Browser, service: Service) -> None:
    """Whoever sends a link must not be able to put a sentence into the server's mouth."""
    with browser.admin(service) as window:
        for path in ("/workspaces?done=%3Cb%3EYou+are+hacked", "/workspaces/1?session=1%3Cb%3E", "/workspaces?part=x"):
            window.open(path)
            assert "hacked" not in window.page.content()
            assert_harmless(window)


# ---------------------------------------------------------------- other pages


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    """Another origin's page: whatever the test made of it."""

    page = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(type(self).page)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def elsewhere() -> Iterator[type[_Elsewhere]]:
    class Page(_Elsewhere):
        port = 0

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    Page.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Page
    server.shutdown()
    server.server_close()
    thread.join()


# Another port of the same host is the same site, so that our cookie goes along; another name is another site.
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_page_is_framed(browser: Browser, service: Service, elsewhere: type[_Elsewhere], host: str) -> None:
    base = service.facts["web_base"]
    with browser.admin(service) as window:
        page = window.context.new_page()
        for path in ("/workspaces", "/auth/cli-login/?port=45677&state=s", "/sign-in", "/nothing", "/api/docs"):
            elsewhere.page = f'<!doctype html><iframe src="{base}{path}"></iframe>'.encode()
            page.goto(f"http://{host}:{elsewhere.port}/")
            frame = page.frames[1]
            frame.wait_for_load_state()
            assert frame.url.startswith("chrome-error:"), f"{path} is shown in a frame"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_forms_of_other_pages_are_refused(
    browser: Browser, service: Service, elsewhere: type[_Elsewhere], host: str
) -> None:
    """With the person's own cookie, and even with a proof that was stolen from their page."""
    base = service.facts["web_base"]
    with browser.admin(service) as window:
        window.open("/workspaces/1")
        proof = window.page.locator("input[name=proof]").first.get_attribute("value")
        page = window.context.new_page()
        for action, fields in (
            ("/workspaces/1/stop", {}),
            ("/workspaces/1/delete", {"confirm": "royal-tree"}),
            ("/workspaces/1/share", {"email": "eve@example.org", "role": "manage"}),
            ("/auth/cli-tokens", {"name": "eve", "scope": "manage", "expires": ""}),
            ("/admin/people", {"email": "eve@example.org", "admin": "yes"}),
            ("/sign-out", {"everywhere": "yes"}),
        ):
            inputs = "".join(
                f'<input name="{name}" value="{value}">' for name, value in {**fields, "proof": proof}.items()
            )
            form = f'<form method="post" action="{base}{action}">{inputs}<button>go</button></form>'
            elsewhere.page = f"<!doctype html>{form}".encode()
            page.goto(f"http://{host}:{elsewhere.port}/")
            with page.expect_navigation() as going:
                page.get_by_role("button").click()
            answer = going.value
            assert answer is not None
            if host == "127.0.0.1":
                assert answer.status == 403, (action, answer.status)
            else:
                # Another site: the cookie stayed away, so nobody was there to do it, and a page of ours was led to.
                assert answer.url in (base + "/sign-in", base + "/workspaces"), (action, answer.url)
        # Nothing of it was done.
        window.open("/workspaces/1")
        window.wait_for_text("running", within="#head")
    titles = [row["title"] for row in service.operator_json("workspace", "list")]
    assert titles == ["royal-tree"]
    assert "eve" not in Path(service.log).read_text()
    assert {row["email"] for row in service.operator_json("user", "list")} == {
        service.first_facts["admin_email"],
        BOB,
    }


def test_a_form_without_its_proof_or_with_another_browsers_is_refused(browser: Browser, service: Service) -> None:
    with browser.admin(service) as window, browser.admin(service) as other:
        other.open("/workspaces/1")
        theirs = other.page.locator("input[name=proof]").first.get_attribute("value")
        window.open("/workspaces/1")
        for proof in ("", theirs, "0" * 64):
            window.page.evaluate(
                """proof => document.querySelectorAll('input[name=proof]').forEach(field => field.value = proof)""",
                proof,
            )
            answer = window.page.evaluate(
                """async () => (await fetch('/workspaces/1/stop', {method: 'POST',
                    headers: {'Content-Type': 'application/x-www-form-urlencoded'},
                    body: new URLSearchParams(new FormData(document.querySelector('#head form')))})).status"""
            )
            assert answer == 403, proof
        window.open("/workspaces/1")
        window.wait_for_text("running", within="#head")
