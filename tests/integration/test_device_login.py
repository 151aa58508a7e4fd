"""`runcode login --device`, whole: the real client, the real server, and a browser on what could be another machine."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import pytest

from support.browser_login import Browser
from support.service import RUNCODE, Laptop, Service, running_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service"), ssh="off") as running:
        yield running


def begin(service: Service, laptop: Laptop, *options: str) -> tuple[subprocess.Popen[bytes], str, str]:
    """(the client, its user code, what it said so far)."""
    base = service.facts["api_base"]
    client = subprocess.Popen(
        [RUNCODE, "login", "--device", "--api-base", base, "--web-base", base, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=laptop.environment,
        cwd=laptop.project,
    )
    assert client.stderr is not None
    said = read_until(client.stderr, "waiting")
    assert f"open {base}/auth/device in a browser" in said
    found = re.search(r"type this code there: ([B-Z]{4}-[B-Z]{4})\n", said)
    assert found is not None, said
    assert f"{base}/auth/device?user_code={found[1]}" in said
    return client, found[1], said


def read_until(stream: IO[bytes], word: str) -> str:
    said = ""
    while word not in said:
        line = stream.readline().decode()
        assert line, said
        said += line
    return said


def answer(service: Service, user_code: str, **fields: str | list[str]) -> None:
    browser = Browser(urlsplit(service.facts["api_base"]).port or 0)
    page = browser.get("/auth/device")
    person = {"email": service.first_facts["admin_email"], "password": service.first_facts["admin_password"]}
    page = browser.get(browser.submit(page, **person).location)
    done = browser.submit(browser.submit(page, user_code=user_code), **fields)
    assert done.status == 200, done.text


def test_a_machine_without_a_browser_is_signed_in(service: Service, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "laptop")
    client, user_code, said = begin(service, laptop, "--json")
    answer(service, user_code, answer="authorize", scope=["connect"])
    out, err = client.communicate(timeout=60)
    assert client.returncode == 0, err
    assert json.loads(out)["email"] == service.first_facts["admin_email"]
    assert laptop.json("list") == []
    made = service.operator_json("token", "list")[-1]
    assert (made["origin"], made["scopes"]) == ("device", ["read", "connect"])
    # A token that was not given the right to stop a workspace.
    service.operator("workspace", "create", "royal-tree")
    assert laptop.json("stop", "royal-tree", expect=1)["error"] == "forbidden"
    token = (laptop.home / ".config" / "runcode" / "token").read_text().strip()
    for text in (said, out.decode(), err.decode()):
        assert "rcd_" not in text
        assert token not in text


def test_a_no_ends_the_wait_and_saves_nothing(service: Service, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "laptop")
    client, user_code, _ = begin(service, laptop)
    answer(service, user_code, answer="deny")
    out, err = client.communicate(timeout=60)
    assert (client.returncode, out) == (1, b"")
    assert b"forbidden: the sign-in was denied" in err
    assert laptop.json("list", expect=1)["error"] == "no_token"


def test_it_ends_by_itself_and_by_ctrl_c(service: Service, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "laptop")
    client, _, _ = begin(service, laptop, "--timeout", "6", "--json")
    out, _ = client.communicate(timeout=60)
    assert (client.returncode, json.loads(out)["error"]) == (1, "timed_out")
    client, _, _ = begin(service, laptop)
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=60)
    assert client.returncode in (130, -signal.SIGINT)


def test_a_server_without_it_is_said_so(tmp_path: Path) -> None:
    import http.server
    import threading

    class Old(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(404)

        def log_message(self, *_arguments: object) -> None:
            pass

    old = http.server.HTTPServer(("127.0.0.1", 0), Old)
    thread = threading.Thread(target=old.serve_forever)
    thread.start()
    try:
        laptop = Laptop(tmp_path / "laptop")
        base = f"http://127.0.0.1:{old.server_port}"
        failure = laptop.json("login", "--device", "--api-base", base, "--web-base", base, expect=1)
        assert failure["error"] == "unavailable"
        assert "--paste" in failure["resolution"]
    finally:
        old.shutdown()
        thread.join()
        old.server_close()
