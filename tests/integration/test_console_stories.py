"""Whole stories, with the real server, the real client and a real Chromium before the console.

A person signs in, signs machines in, makes a workspace, works in it, shares it, and ends access
while it is used.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from support.browser import Browser, Window, running_browser
from support.service import RUNCODE, Laptop, Service, running_service

BOB = "bob@example.org"
# A net for what should be gone within a second: whatever still lives then has been forgotten.
ALIVE_S = 10


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@contextlib.contextmanager
def client_signs_in(service: Service, laptop: Laptop, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real `runcode login` that waits, with what it has printed up to its address; ended afterwards."""
    bases = ("--api-base", service.facts["api_base"], "--web-base", service.facts["web_base"])
    client = subprocess.Popen(
        [RUNCODE, "login", *options, "--timeout", "90", *bases],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=laptop.environment,
        cwd=laptop.project,
        text=True,
    )
    assert client.stderr is not None
    said = ""
    try:
        while re.search(r"http://\S+", said) is None:
            line = client.stderr.readline()
            assert line, f"no address was printed: {said}"
            said += line
        yield client, said
    finally:
        client.kill()
        client.wait()
        client.communicate()


def sign_in_here(window: Window, service: Service) -> None:
    """On a page that asks for it."""
    window.page.get_by_label("E-mail address").fill(service.first_facts["admin_email"])
    window.page.get_by_label("Password").fill(service.first_facts["admin_password"])
    window.click("Sign in")


# ---------------------------------------------------------------- people


def test_the_first_admin_signs_in_and_out(browser: Browser, service: Service) -> None:
    with browser.window(service.facts["web_base"]) as window:
        window.open("/workspaces/1?session=2")
        assert window.page.url.endswith("/sign-in?next=%2Fworkspaces%2F1%3Fsession%3D2")
        window.open("/")
        window.page.get_by_role("link", name="Sign in").last.click()
        window.page.get_by_label("E-mail address").fill(service.first_facts["admin_email"])
        window.page.get_by_label("Password").fill("not the password")
        window.click("Sign in")
        expect(window.page.get_by_role("alert")).to_contain_text("wrong")
        sign_in_here(window, service)
        expect(window.page.get_by_role("heading", name="Workspaces", exact=True)).to_be_visible()
        window.open("/account")
        expect(window.page.get_by_text("this one")).to_be_visible()
        window.click("Sign out", within="header")
        window.open("/workspaces")
        assert urlsplit(window.page.url).path == "/sign-in"


def test_a_one_time_link_signs_its_person_in_once(browser: Browser, service: Service) -> None:
    made = service.operator("user", "sign-in-link", service.first_facts["admin_email"]).stdout
    link = re.search(r"(?:http://\S+)?(/sign-in/link\?link=\S+)", made)
    assert link is not None, made
    with browser.window(service.facts["web_base"]) as window:
        # Whatever looks at links in advance uses nothing up.
        window.open(link[1])
        window.open(link[1])
        window.click("Sign in")
        expect(window.page.get_by_role("heading", name="Your account")).to_be_visible()
    with browser.window(service.facts["web_base"]) as another:
        another.open(link[1])
        expect(another.page.get_by_role("alert")).to_contain_text("unknown, used, or too old")


# ---------------------------------------------------------------- machines


@pytest.mark.parametrize("answer", ["Authorize", "Deny"])
def test_a_machine_is_signed_in_by_a_click(browser: Browser, service: Service, tmp_path: Path, answer: str) -> None:
    laptop = Laptop(tmp_path / "laptop")
    with browser.window(service.facts["web_base"]) as window, client_signs_in(service, laptop, "--no-browser") as found:
        client, said = found
        address = re.search(r"http://\S+", said)
        assert address is not None
        window.open(address[0])
        sign_in_here(window, service)
        expect(window.page.get_by_role("heading", name="Let this client act as you?")).to_be_visible()
        window.assert_accessible()
        window.click(answer)
        # The client's own page, without the answer in its address.
        window.page.wait_for_url("http://127.0.0.1:*/done")
        out, err = client.communicate(timeout=60)
    if answer == "Authorize":
        assert client.returncode == 0, err
        laptop.json("list")
    else:
        assert (client.returncode, out) == (1, "")
        assert "denied" in err
        assert b"no_token" in laptop.runcode("list", expect=1).stderr


def test_a_machine_without_a_browser_is_signed_in_by_its_code(
    browser: Browser, service: Service, tmp_path: Path
) -> None:
    laptop = Laptop(tmp_path / "laptop")
    with browser.admin(service) as window, client_signs_in(service, laptop, "--device") as found:
        client, said = found
        code = re.search(r"\b[A-Z0-9]{4}-[A-Z0-9]{4}\b", said)
        while code is None:
            assert client.stderr is not None
            line = client.stderr.readline()
            assert line, said
            said += line
            code = re.search(r"\b[A-Z0-9]{4}-[A-Z0-9]{4}\b", said)
        window.open("/auth/device")
        window.page.get_by_label("Code").fill("AAAA-AAAA")
        window.click("Continue")
        expect(window.page.get_by_role("alert")).to_be_visible()
        window.page.get_by_label("Code").fill(code[0].lower())
        window.click("Continue")
        expect(window.page.get_by_role("heading", name="Let this device act as you?")).to_be_visible()
        expect(window.page.get_by_text(code[0])).to_be_visible()
        window.assert_accessible()
        window.click("Authorize")
        window.wait_for_text("go back to your terminal")
        _, err = client.communicate(timeout=60)
    assert client.returncode == 0, err
    laptop.json("list")


def test_a_token_is_shown_once_works_and_is_revoked(browser: Browser, service: Service, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "laptop")
    with browser.admin(service) as window:
        window.open("/auth/cli-tokens")
        window.page.get_by_text("New token").click()
        window.page.get_by_label("Name").fill("CI of billing")
        window.click("Make token")
        token = window.page.locator("section:has(#h-made) pre").inner_text()
        assert token.startswith("rct_")
        # The browser sends the form again, and gets no second token for it.
        window.page.reload()
        window.wait_for_text("This form was sent before")
        assert token not in window.page.content()
        assert window.page.get_by_role("row", name="CI of billing").count() == 1
        laptop.login(service, token)
        laptop.json("list")
        window.open("/auth/cli-tokens")
        assert token not in window.page.content()
        window.page.get_by_role("row", name="CI of billing").get_by_role("button").click()
        window.wait_for_text("Revoked")
    assert b"unauthorized" in laptop.runcode("list", expect=1).stderr


# ---------------------------------------------------------------- a workspace


def make_workspace(window: Window, title: str) -> None:
    window.open("/workspaces")
    fold = window.page.locator("details:not([open]) > summary", has_text="New workspace")
    if fold.count():
        fold.click()
    window.page.get_by_label("Title").fill(title)
    window.click("Create workspace")
    expect(window.page.get_by_role("heading", name=title)).to_be_visible()


class Transfer:
    """A real `runcode exec` that reads an endless file from the box."""

    def __init__(self, laptop: Laptop) -> None:
        self.received = 0
        self.flowing = threading.Event()
        self.process = subprocess.Popen(
            [RUNCODE, "exec", "--", "cat", "/dev/zero"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=laptop.environment,
            cwd=laptop.project,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while raw := self.process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
            self.received += len(raw)
            if self.received > 1_000_000:
                self.flowing.set()

    def until_dead(self) -> bytes:
        """Its last words. Fails when it outlives the net."""
        self.process.wait(ALIVE_S)
        self._reader.join(ALIVE_S)
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def test_create_work_see_it_and_end_it_mid_transfer(browser: Browser, service: Service, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "laptop")
    laptop.login(service)
    with browser.admin(service) as window:
        make_workspace(window, "royal-tree")
        expect(window.page.locator("#head")).to_contain_text("stopped")
        window.page.locator("#head").get_by_role("button", name="Start").click()
        # The page follows by itself from here on.
        expect(window.page.locator("#head .state")).to_have_text("running")
        laptop.runcode("connect", "royal-tree")
        assert laptop.runcode("exec", "--", "echo", "hello from the box").stdout == b"hello from the box\n"
        window.wait_for_text("hello from the box", within="#activity")
        expect(window.page.locator("#sessions")).to_contain_text("connected")
        transfer = Transfer(laptop)
        try:
            assert transfer.flowing.wait(60)
            window.page.locator("#sessions").get_by_role("button", name="Revoke").click()
            last_words = transfer.until_dead()
        finally:
            transfer.end()
        assert transfer.process.returncode == 255
        assert b"connection_lost" in last_words
        expect(window.page.locator("#sessions")).to_contain_text("None.")
        window.wait_for_text("Revoked a session", within="#activity")
        # By its session alone.
        window.page.locator("#activity").get_by_role("link", name=re.compile("session #")).first.click()
        expect(window.page.locator("#activity header")).to_contain_text("of session #")
        window.wait_for_text("hello from the box", within="#activity")


def test_sharing_lets_a_second_person_in(browser: Browser, service: Service, tmp_path: Path) -> None:
    bob = Laptop(tmp_path / "bob")
    with browser.admin(service) as window:
        window.open("/admin")
        window.page.get_by_label("E-mail address").fill(BOB)
        window.click("Add person")
        password = window.page.locator("section:has(#h-made) pre").inner_text()
        make_workspace(window, "shared-box")
        window.page.locator("#head").get_by_role("button", name="Start").click()
        window.page.get_by_label("Share with a person").fill(BOB)
        window.page.locator("form:has(#share-email)").get_by_role("button", name="Share").click()
        window.wait_for_text("Shared.")
        expect(window.page.get_by_role("row", name=BOB)).to_contain_text("May use")
        with browser.window(service.facts["web_base"]) as theirs:
            theirs.sign_in(BOB, password)
            shared = theirs.page.get_by_role("region", name="Shared with you")
            shared.get_by_role("link", name="shared-box").click()
            expect(theirs.page.locator("#head .state")).to_have_text("running")
            # Used, not governed.
            assert theirs.page.get_by_text("Delete this workspace").count() == 0
            assert theirs.page.locator("#head").get_by_role("button", name="Stop").count() == 0
            theirs.open("/auth/cli-tokens")
            theirs.page.locator("summary", has_text="New token").click()
            theirs.page.get_by_label("Name").fill("bob's laptop")
            theirs.click("Make token")
            bob.login(service, theirs.page.locator("section:has(#h-made) pre").inner_text())
            assert theirs.open("/admin").status == 404
        bob.runcode("connect", "shared-box")
        assert bob.runcode("exec", "--", "whoami").stdout == b"ubuntu\n"
        window.page.get_by_role("row", name=BOB).get_by_role("button", name="Remove").click()
        window.wait_for_text("No longer shared")
        assert bob.runcode("exec", "--", "whoami", expect=None).returncode != 0
        assert [row for row in bob.json("list", "--all") if row["title"] == "shared-box"] == []


def test_a_workspace_is_made_started_and_deleted_by_keyboard_alone(browser: Browser, service: Service) -> None:
    with browser.admin(service) as window:
        window.open("/workspaces")
        keys = window.page.keyboard

        def tab_to(text: str) -> None:
            for _ in range(60):
                keys.press("Tab")
                focus = window.page.evaluate(
                    "(e => e.labels?.[0]?.textContent ?? e.textContent)(document.activeElement)"
                )
                if focus.strip().startswith(text):
                    return
            raise AssertionError(f"the keyboard does not reach {text!r}")

        keys.press("Tab")
        assert window.page.evaluate("document.activeElement.textContent") == "Skip to content"
        keys.press("Enter")
        if window.page.locator("details#new:not([open])").count():
            tab_to("New workspace")
            keys.press("Enter")
        tab_to("Title")
        keys.type("keyboard-box")
        tab_to("Create workspace")
        keys.press("Enter")
        expect(window.page.get_by_role("heading", name="keyboard-box")).to_be_visible()
        tab_to("Start")
        keys.press("Enter")
        expect(window.page.locator("#head .state")).to_have_text("running")
        tab_to("Type keyboard-box to confirm")
        keys.type("keyboard-bo")
        keys.press("Enter")
        expect(window.page.get_by_role("alert")).to_contain_text("nothing was deleted")
        window.page.go_back()
        tab_to("Type keyboard-box to confirm")
        keys.press("Control+A")
        keys.type("keyboard-box")
        keys.press("Enter")
        window.wait_for_text("The workspace is being deleted")
        expect(window.page.get_by_text("keyboard-box")).to_have_count(0)


def test_everything_works_without_a_script(browser: Browser, service: Service) -> None:
    with browser.admin(service, java_script_enabled=False) as window:
        make_workspace(window, "plain-box")
        window.page.locator("#head").get_by_role("button", name="Start").click()
        for _ in range(100):
            window.page.reload()
            if window.page.locator("#head .state").inner_text() == "running":
                break
        expect(window.page.locator("#head .state")).to_have_text("running")
        window.page.locator("summary", has_text="Settings").click()
        window.page.locator("details").get_by_label("Display name").fill("No script here")
        window.page.locator("details").get_by_role("button", name="Save").click()
        expect(window.page.get_by_role("heading", name="No script here")).to_be_visible()
        window.open("/workspaces")
        row = window.page.get_by_role("row", name="No script here")
        row.get_by_role("button", name="Stop").click()
        assert urlsplit(window.page.url).path == "/workspaces"
        window.open("/workspaces")
        window.page.get_by_role("row", name="No script here").get_by_role("link").click()
        window.page.get_by_label("to confirm").fill("plain-box")
        window.click("Delete it for good")
        window.wait_for_text("The workspace is being deleted")
