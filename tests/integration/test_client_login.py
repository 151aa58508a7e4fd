"""`login` and `logout`: a browser over plain HTTP, the stand-in of the hosted service, and our own server."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from support.browser_login import Browser
from support.client_standin import RUNCODE, TOKEN, Person
from support.hosted_standin import EMAIL, HostedService, Waiting
from support.ptys import run_in_pty
from support.service import Laptop, running_service


class ExchangingService(HostedService):
    """Knows the code exchange, as our own server does."""

    def __init__(self) -> None:
        super().__init__(None, Path("/nowhere"))
        self.challenge = ""
        self.email = EMAIL
        self.redeemed: list[dict[str, Any]] = []

    def consent(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        query = dict(pair.split("=", 1) for pair in urlsplit(handler.path).query.split("&"))
        assert query["code_challenge_method"] == "S256"
        self.challenge = query["code_challenge"]
        answer = urlencode({"state": query["state"], "code": "one-time-code", "email": EMAIL})
        handler.send_response(302)
        handler.send_header("Location", f"http://127.0.0.1:{int(query['port'])}/callback?{answer}")
        handler.end_headers()

    def reply(self, handler: http.server.BaseHTTPRequestHandler, body: dict[str, Any] | None) -> tuple[int, object]:
        if handler.path != "/api/rc/auth/cli-token":
            return super().reply(handler, body)
        assert body is not None
        assert handler.headers.get("Authorization") is None
        self.redeemed.append(body)
        digest = hashlib.sha256(body["code_verifier"].encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != self.challenge:
            return 400, {"error": True, "message": "The verifier is not the challenge's."}
        return 200, {"error": False, "token": self.token, "email": self.email}


@pytest.fixture
def hosted() -> Iterator[HostedService]:
    service = HostedService(None, Path("/nowhere"))
    yield service
    service.close()


@pytest.fixture
def exchanging() -> Iterator[ExchangingService]:
    service = ExchangingService()
    yield service
    service.close()


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path / "person")


def login(person: Person, service: HostedService, *words: str, **options: Any) -> Waiting:
    return Waiting(person, "--api-base", service.base, "--web-base", service.base, *words, **options)


def browse(url: str) -> tuple[str, str]:
    """Open a page as a browser does, following redirects; (last address, its text)."""
    with urllib.request.urlopen(url, timeout=60) as page:
        return page.url, page.read().decode()


def saved_token(person: Person) -> str | None:
    file = person.home / ".config" / "runcode" / "token"
    return file.read_text().strip() if file.exists() else None


def test_a_browser_brings_the_plain_token_of_a_server_without_code_exchange(
    person: Person, hosted: HostedService
) -> None:
    waiting = login(person, hosted, "--no-browser")
    assert waiting.url.startswith(f"{hosted.base}/auth/cli-login/?port=")
    last_url, text = browse(waiting.url)
    status, stdout, stderr = waiting.end()
    assert status == 0, stderr
    assert f"signed in at {hosted.base} as {EMAIL}".encode() in stdout
    # The address that stays in the browser's history holds nothing.
    assert last_url == f"http://127.0.0.1:{waiting.port}/done"
    assert "You are signed in" in text
    assert TOKEN.encode() not in stdout + stderr
    folder = person.home / ".config" / "runcode"
    assert saved_token(person) == TOKEN
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert [row["id"] for row in person.json("list")] == [42]


def test_a_code_is_exchanged_and_no_token_stands_in_an_address(person: Person, exchanging: ExchangingService) -> None:
    waiting = login(person, exchanging, "--no-browser", "--json")
    browse(waiting.url)
    status, told = waiting.end_json()
    assert status == 0
    assert told == {"api_base": exchanging.base, "web_base": exchanging.base, "email": EMAIL}
    assert saved_token(person) == TOKEN
    assert [body["code"] for body in exchanging.redeemed] == ["one-time-code"]
    assert exchanging.redeemed[0]["code_verifier"] not in waiting.url
    assert not any(TOKEN in path for _, path in exchanging.requests)


def test_the_browser_is_opened_and_no_browser_opens_none(person: Person, hosted: HostedService, tmp_path: Path) -> None:
    log = tmp_path / "opened"
    opener = tmp_path / "opener"
    opener.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" "${{RUNCODE_TOKEN-none}}" >{log}.new && mv {log}.new {log}\n')
    opener.chmod(0o755)
    environment = {"BROWSER": str(opener), "RUNCODE_TOKEN": "another-token"}
    for word, expected in (("--timeout=180", True), ("--no-browser", False)):
        waiting = login(person, hosted, word, environment=environment)
        deadline = time.monotonic() + 30
        while expected and not log.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        browse(waiting.url)
        assert waiting.end()[0] == 0
        assert log.exists() == expected
        if expected:
            # Whole, as one word, and without our environment's token.
            assert log.read_text().split("\n")[:2] == [waiting.url, "none"]
            log.unlink()


def test_the_consent_page_is_the_same_servers(person: Person, hosted: HostedService) -> None:
    """The token of another server's page would be sent to this one: no default leads there."""
    person.login(hosted)
    for words, environment, expected in (
        (["--api-base", "http://127.0.0.1:9"], {}, "http://127.0.0.1:9"),
        ([], {"RUNCODE_API_BASE": "http://127.0.0.1:9"}, "http://127.0.0.1:9"),
        (["--api-base", "https://app.runcode.io"], {}, "https://runcode.io"),
        ([], {}, hosted.base),
        (["--web-base", "http://127.0.0.1:8"], {}, "http://127.0.0.1:8"),
    ):
        waiting = Waiting(person, "--no-browser", "--timeout", "0.1", *words, environment=environment)
        assert waiting.url.startswith(f"{expected}/auth/cli-login/?"), words
        assert waiting.end()[0] == 1


def test_a_browser_that_never_comes_back(person: Person, hosted: HostedService) -> None:
    done = person.runcode(
        "login", "--no-browser", "--api-base", hosted.base, "--web-base", hosted.base, "--timeout", "0.3", expect=1
    )
    assert done.stderr.endswith(b"runcode: timed_out: login timed out (run `runcode login --paste`)\n")
    told = person.json("login", "--no-browser", "--api-base", hosted.base, "--timeout", "0.3", expect=1)
    assert told["error"] == "timed_out"
    assert saved_token(person) is None


def test_a_no_in_the_browser_ends_the_wait(person: Person, hosted: HostedService) -> None:
    hosted.deny = True
    waiting = login(person, hosted, "--no-browser")
    assert "You said no" in browse(waiting.url)[1]
    status, _, stderr = waiting.end()
    assert status == 1
    assert b"runcode: forbidden: the sign-in was denied" in stderr
    assert saved_token(person) is None


def test_a_token_that_the_server_does_not_know_is_not_kept(person: Person, hosted: HostedService) -> None:
    waiting = login(person, hosted, "--no-browser")
    target = f"http://127.0.0.1:{waiting.port}/callback?state={waiting.state}&token=forged&email=x"
    assert "The sign-in failed" in browse(target)[1]
    status, _, stderr = waiting.end()
    assert status == 1
    assert b"runcode: unauthorized: " in stderr
    assert b"forged" not in stderr
    assert saved_token(person) is None


def test_a_code_that_the_server_refuses_keeps_nothing(person: Person, exchanging: ExchangingService) -> None:
    waiting = login(person, exchanging, "--no-browser")
    # The attacker's code, made for the attacker's own challenge.
    exchanging.challenge = "x" * 43
    browse(f"http://127.0.0.1:{waiting.port}/callback?state={waiting.state}&code=theirs")
    status, _, stderr = waiting.end()
    assert status == 1
    assert b"runcode: bad_request: " in stderr
    assert saved_token(person) is None


@pytest.mark.parametrize("email", ["\x1b]52;c;eA==\x07", "a\nb", "\u202emoc.elpmaxe@live", "x" * 100_000, 5, None])
def test_the_servers_word_for_who_signed_in_is_harmless(
    person: Person, exchanging: ExchangingService, email: object
) -> None:
    exchanging.email = email  # type: ignore[assignment]
    waiting = login(person, exchanging, "--no-browser")
    browse(waiting.url)
    status, stdout, _ = waiting.end()
    assert status == 0
    assert stdout.decode().count("\n") == 1
    assert stdout.decode().rstrip("\n").isprintable()
    assert len(stdout) < 1000


def test_paste_prompts_without_echo_and_reads_a_pipe(person: Person, hosted: HostedService) -> None:
    words = [RUNCODE, "login", "--paste", "--api-base", hosted.base, "--web-base", hosted.base]
    status, shown = run_in_pty(
        words, environment=person.environment, folder=person.project, typed=f"{TOKEN}\n".encode()
    )
    assert status == 0, shown
    assert b"API token: " in shown
    assert TOKEN.encode() not in shown
    assert saved_token(person) == TOKEN
    person.runcode("logout")
    person.runcode(*words[1:], stdin=TOKEN.encode())
    assert saved_token(person) == TOKEN
    person.runcode(*words[1:], stdin=b"", expect=1)


def test_a_closed_stdin_does_not_hang_a_paste(person: Person, hosted: HostedService) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" login --paste --api-base {hosted.base} <&-', RUNCODE],
        env=person.environment,
        cwd=person.project,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"runcode: no_token: ")


def test_logout_revokes_only_when_asked_and_says_what_stays(person: Person, hosted: HostedService) -> None:
    person.login(hosted)
    # The hosted service has no such call: nothing is forgotten, and it says where to revoke.
    told = person.json("logout", "--revoke", expect=1)
    assert told["error"] == "not_found"
    assert "still saved" in told["message"]
    assert saved_token(person) == TOKEN
    done = person.runcode("logout")
    assert b"stays valid" in done.stdout
    assert saved_token(person) is None
    assert person.runcode("logout").stdout == b"you were not signed in\n"
    # The environment's token is not what is saved: it is neither sent nor revoked.
    hosted.tokens_seen.clear()
    done = person.runcode("logout", "--revoke", environment={"RUNCODE_TOKEN": "other", "RUNCODE_API_BASE": hosted.base})
    assert b"RUNCODE_TOKEN is still set" in done.stderr
    assert hosted.tokens_seen == []


def test_the_real_server_signs_a_person_in_and_out(tmp_path: Path) -> None:
    """Password, consent, code, token, list, revoke: our two halves by WIRE.md alone."""
    with running_service(tmp_path / "service") as service:
        laptop = Laptop(tmp_path / "laptop")
        made = service.operator_json("user", "create", "mira@example.net")
        person = Person(tmp_path / "person")
        base = service.facts["api_base"]
        waiting = Waiting(person, "--api-base", base, "--web-base", base, "--no-browser")
        browser = Browser(urlsplit(base).port or 80, host=urlsplit(base).netloc)
        consent = browser.sign_in("mira@example.net", made["password"], **waiting.query)
        assert consent.status == 200, consent.text
        assert "cli" in consent.text
        answer = browser.submit(consent, answer="authorize")
        assert "token" not in answer.answer
        assert "You are signed in" in browse(answer.location)[1]
        status, stdout, stderr = waiting.end()
        assert status == 0, stderr
        assert b"as mira@example.net" in stdout
        assert person.json("list") == []
        token = saved_token(person)
        assert token is not None
        # The consent page said no: another attempt ends at once.
        denied = Waiting(person, "--api-base", base, "--web-base", base, "--no-browser")
        asked = browser.sign_in("mira@example.net", made["password"], **denied.query)
        browse(browser.submit(asked, answer="deny").location)
        assert denied.end()[0] == 1
        assert person.json("logout", "--revoke") == {"signed_out": True, "revoked": True, "api_base": base}
        failure = person.json("list", "--api-base", base, expect=1, environment={"RUNCODE_TOKEN": token})
        assert failure["error"] == "unauthorized"
        laptop.login(service)
        assert json.loads(laptop.runcode("logout", "--revoke", "--json").stdout)["revoked"] is True


def test_an_address_is_only_for_this_user_when_the_listener_is_asked_by_root(tmp_path: Path) -> None:
    """`sudo runcode login`: the browser is the person's own, and its process is not root's."""
    from runcode.client import loopback

    assert loopback.is_own_process(("127.0.0.1", 1), ("127.0.0.1", 2), {}) is False
    assert loopback.is_own_process(("127.0.0.1", 1), ("127.0.0.1", 2), {"WSL_DISTRO_NAME": "Debian"}) is True
    assert sys.platform != "linux" or os.path.exists("/proc/net/tcp")
