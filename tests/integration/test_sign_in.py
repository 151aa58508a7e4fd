"""Signing a browser in at the real server: the first start's link, the operator's, and other users of the machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.browser_login import Browser
from support.ptys import run_in_pty
from support.service import SERVER, Service, running_service

_ASK = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
connection.request("GET", "/account", headers={"Cookie": "runcode_session=" + sys.argv[2]})
print(connection.getresponse().status)
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service"), ssh="off") as running:
        yield running


def port_of(service: Service) -> int:
    return urlsplit(service.facts["api_base"]).port or 0


def follow(browser: Browser, link: str) -> None:
    """A person's way through a sign-in link."""
    parts = urlsplit(link)
    page = browser.get(f"{parts.path}?{parts.query}")
    assert page.status == 200, page.text
    done = browser.submit(page)
    assert (done.status, done.location) == (303, "/account"), done.text


def test_the_operators_link_signs_in_and_their_word_signs_out(service: Service) -> None:
    """At 3 am, the password lost: nobody needs more than the machine."""
    email = service.first_facts["admin_email"]
    base = service.facts["web_base"]
    elsewhere = service.operator_json("user", "sign-in-link", email, "--web-base", "https://rc.example.net")
    assert elsewhere["link"].startswith("https://rc.example.net/sign-in/link?link=rcl_")
    # Unasked, it leads to the server that serves from this folder.
    made = service.operator_json("user", "sign-in-link", email)
    assert made["link"].startswith(f"{base}/sign-in/link?link=rcl_")
    browser = Browser(port_of(service))
    follow(browser, made["link"])
    assert email in browser.get("/account").text
    assert service.operator_json("user", "sign-out", email)["browsers"] == 1
    assert browser.get("/account").status == 303
    for words in (("nobody@example.org",), (email, "--web-base", "ftp://x")):
        assert service.operator("user", "sign-in-link", *words, check=False).returncode != 0


def test_tokens_are_made_within_bounds(service: Service) -> None:
    workspace = service.operator_json("workspace", "create", "royal-tree")
    made = service.operator_json(
        "token", "create", "ci", "--scope", "connect", "--workspace", "royal-tree", "--expires-in", "12h"
    )
    assert (made["scopes"], made["workspace_ids"], made["origin"]) == (
        ["read", "connect"],
        [workspace["id"]],
        "operator",
    )
    assert made["expires_at"] > made["created_at"]
    for words in (("--scope", "admin"), ("--workspace", "none"), ("--expires-in", "soon"), ("--expires-in", "0d")):
        assert service.operator("token", "create", "x", *words, check=False).returncode != 0
    both = ("--expires-in", "1d", "--expires-days", "1")
    assert service.operator("token", "create", "x", *both, check=False).returncode == 2


@pytest.mark.root_only
def test_a_cookie_that_another_user_of_the_machine_took_is_worth_nothing_to_them(service: Service) -> None:
    """With real users and the real kernel: whoever listens on another port of 127.0.0.1 may well have the cookie."""
    browser = Browser(port_of(service))
    made = service.operator_json(
        "user", "sign-in-link", service.first_facts["admin_email"], "--web-base", service.facts["web_base"]
    )
    follow(browser, made["link"])
    secret = browser.cookies["runcode_session"]

    def ask(**options: int) -> str:
        words = ["/usr/bin/python3", "-I", "-S", "-c", _ASK, str(port_of(service)), secret]
        return subprocess.run(words, capture_output=True, text=True, check=True, cwd="/", **options).stdout.strip()

    assert ask() == "200", "this user's other processes are this user"
    assert ask(user=65534, group=65534) == "303"
    assert browser.get("/account").status == 200


def test_the_first_start_shows_a_link_to_a_terminal_alone(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    seen: list[bytes] = []

    def start() -> None:
        command = [SERVER, "up", "--data-dir", str(tmp_path / "data"), "--http", "127.0.0.1:0", "--ssh", "off"]
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        command += ["--ready-file", str(ready)]
        seen.append(run_in_pty(command, environment=environment, folder=tmp_path, columns=400)[1])

    serving = threading.Thread(target=start)
    serving.start()
    try:
        while not ready.exists():
            assert serving.is_alive()
            time.sleep(0.02)
        facts = json.loads(ready.read_text())
        # What starts it reads exactly these.
        assert set(facts) == {
            "api_base",
            "web_base",
            "ssh_host",
            "ssh_port",
            "admin_email",
            "admin_password",
            "token",
        }
    finally:
        pid = int((tmp_path / "data" / "server.lock").read_text())
        os.kill(pid, signal.SIGTERM)
        serving.join()
    found = re.search(rb"sign in at (http://127\.0\.0\.1:[0-9]+/sign-in/link\?link=rcl_[A-Za-z0-9_-]{43}) ", seen[0])
    assert found is not None, seen[0]
    with running_service(tmp_path, ssh="off") as again:
        follow(Browser(port_of(again)), found[1].decode())
        log = again.log.read_text()
        assert "rcl_" not in log
        assert "rct_" not in log


def test_a_first_start_into_a_log_names_no_secret(service: Service) -> None:
    log = service.log.read_text()
    for secret in ("rcl_", "rct_", service.first_facts["admin_password"]):
        assert secret not in log


def test_half_of_a_provider_is_no_provider(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret\n")
    whole = {
        "--oidc-issuer": "https://login.example.org",
        "--oidc-client-id": "x",
        "--oidc-client-secret-file": str(secret),
    }
    cases = [{name: value for name, value in whole.items() if name != left_out} for left_out in whole]
    cases += [
        {**whole, "--oidc-issuer": bad}
        for bad in ("http://login.example.org", "login", "https://u:p@x.example", "https://x.example/?a=b", "https://")
    ]
    cases += [{**whole, "--oidc-domain": bad} for bad in ("", "*.corp.example", "corp", "a b.example")]
    cases += [{"--oidc-domain": "corp.example"}, {**whole, "--oidc-client-secret-file": str(tmp_path / "missing")}]
    for options in cases:
        words = [word for pair in options.items() for word in pair]
        done = subprocess.run(
            [SERVER, "up", "--data-dir", str(tmp_path / "data"), "--http", "127.0.0.1:0", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode != 0, options
        assert re.match(r"runcode-server: (usage|io_error): ", done.stderr), done.stderr
        assert not (tmp_path / "data").exists()
