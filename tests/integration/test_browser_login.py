"""`runcode login` by browser, whole: the real client, the real server, and the real page between them."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from support.browser_login import Browser
from support.service import RUNCODE, Laptop, Service, running_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service")) as running:
        running.operator("workspace", "create", "royal-tree")
        yield running


def sign_in(service: Service, laptop: Laptop, answer: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of `runcode login`, while a person answers in the browser."""
    bases = ("--api-base", service.facts["api_base"], "--web-base", service.facts["web_base"])
    client = subprocess.Popen(
        [RUNCODE, "login", "--no-browser", "--timeout", "90", *bases],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=laptop.environment,
        cwd=laptop.project,
    )
    try:
        assert client.stderr is not None
        said, found = "", None
        while found is None:
            line = client.stderr.readline().decode()
            assert line, f"no address was printed: {said}"
            said += line
            found = re.search(r"http://\S+", line)
        url = urlsplit(found[0])
        browser = Browser(url.port or 0)
        person = (service.first_facts["admin_email"], service.first_facts["admin_password"])
        page = browser.sign_in(*person, **dict(parse_qsl(url.query)))
        done = browser.submit(page, answer=answer)
        assert done.status == 303, done.text
        with urllib.request.urlopen(done.location, timeout=30) as shown:
            assert b"close this page" in shown.read()
        out, err = client.communicate(timeout=60)
        return client.returncode, out.decode(), said + err.decode()
    finally:
        client.kill()
        client.wait()


def test_a_person_signs_a_machine_in_and_the_operator_ends_it(service: Service, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "laptop")
    status, out, err = sign_in(service, laptop, "authorize")
    assert status == 0, err
    assert service.first_facts["admin_email"] in out
    assert [row["title"] for row in laptop.json("list", "--all")] == ["royal-tree"]
    made = service.operator_json("token", "list")[-1]
    assert made["name"].startswith("browser login: cli on ")
    service.operator("token", "revoke", str(made["id"]))
    assert b"unauthorized" in laptop.runcode("list", expect=1).stderr
    # Neither the code nor anything of the token went through the client's mouth.
    assert "rcc_" not in out + err
    assert "rct_" not in out + err


def test_a_person_says_no(service: Service, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "laptop")
    before = service.operator_json("token", "list")
    status, out, err = sign_in(service, laptop, "deny")
    assert (status, out) == (1, "")
    assert "denied" in err
    assert service.operator_json("token", "list") == before
    assert b"no_token" in laptop.runcode("list", expect=1).stderr


def test_nobody_chooses_the_address_that_tries_are_counted_for(service: Service) -> None:
    """Without a proxy named by --public-url, X-Forwarded-For is only what a caller says."""
    browser = Browser(urlsplit(service.facts["api_base"]).port or 0)
    person = (service.first_facts["admin_email"], service.first_facts["admin_password"])
    query = {"port": "45677", "state": "s"}
    assert "Your address" in browser.sign_in(*person, **query).text
    forwarded = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Forwarded-Proto": "https"}
    shown = browser.get(f"/auth/cli-login/?{urlencode(query)}", **forwarded)
    assert "Your address" in shown.text
    assert "203.0.113.9" not in shown.text
    assert "server" not in shown.headers
