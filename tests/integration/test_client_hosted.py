"""The whole client against a service that knows only what WIRE.md requires of the hosted one."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_standin import TITLE, Person, signed_in
from support.hosted_standin import EMAIL, HostedService, Waiting, hosted_service

TEAM = 77


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[HostedService]:
    with hosted_service(tmp_path / "service") as service:
        yield service
        # Nothing that it did not understand was ever asked of it.
        assert service.refused == []


@pytest.fixture
def person(tmp_path: Path, hosted: HostedService) -> Iterator[Person]:
    with signed_in(tmp_path / "person", hosted) as someone:
        yield someone


def test_a_day_with_the_hosted_service(tmp_path: Path, hosted: HostedService) -> None:
    """Sign in, look, boot, work, move files, stop, sign out."""
    person = Person(tmp_path / "person")
    waiting = Waiting(person, "--api-base", hosted.base, "--web-base", hosted.base, "--no-browser")
    with urllib.request.urlopen(waiting.url, timeout=60) as page:
        assert "You are signed in" in page.read().decode()
    status, stdout, _ = waiting.end()
    assert status == 0
    assert EMAIL.encode() in stdout
    # The default project folder of the wire is a root's place: work in $HOME here.
    hosted.states[42] = "stopped"
    assert person.json("list") == [
        {
            "id": 42,
            "title": TITLE,
            "custom_title": "Billing API",
            "state": "stopped",
            "shared": False,
            "connectable": False,
        }
    ]
    assert person.json("connect", "42", expect=1)["error"] == "conflict"
    connected = person.json("connect", "Billing API", "--start", "--wait")
    assert connected["started"] is True
    assert connected["workdir"] == "/home/ubuntu/workspace"
    assert connected["web_url"] is None
    assert person.runcode("exec", "--home", "--", "echo", "a  b").stdout == b"a  b\n"
    (person.project / "file").write_bytes(b"\x00\xff" * 1000)
    person.runcode("put", "file", str(hosted.workdir / "up"))
    assert person.runcode("get", str(hosted.workdir / "up")).stdout == b"\x00\xff" * 1000
    assert person.json("stop") == {"stopped": True, "workspace_id": 42, "detached": True}
    assert ("GET", "/api/rc/workspace/stop?workspace_id=42") in hosted.requests
    person.runcode("logout")
    person.runcode("clean", "--all")


def test_nothing_of_the_provider_is_shown(person: Person, hosted: HostedService) -> None:
    for words in (["list"], ["list", "--json"], ["connect", "42"], ["connect", "42", "--json"], ["status", "--json"]):
        done = person.runcode(*words)
        assert b"aws" not in done.stdout + done.stderr, words


def test_a_teams_workspace_stands_in_no_list(person: Person, hosted: HostedService) -> None:
    hosted.states[TEAM] = "stopped"
    assert TEAM not in [row["id"] for row in person.json("list", "--all")]
    connected = person.json("connect", str(TEAM), "--start", "--wait")
    assert (connected["workspace_id"], connected["started"]) == (TEAM, True)
    assert person.runcode("exec", "--home", "--", "echo in").stdout == b"in\n"
    assert ("GET", f"/api/rc/workspace/start?workspace_id={TEAM}") in hosted.requests


@pytest.mark.parametrize(
    ("verb", "reply", "code"),
    [
        ("start", (200, {"error": True, "message": "Not enough balance."}), "start_failed"),
        ("stop", (200, {"error": True, "message": "Not yours."}), "stop_failed"),
        ("start", (403, {"detail": "Forbidden."}), "forbidden"),
        ("start", (404, {"error": "No such workspace."}), "not_found"),
    ],
)
def test_its_refusals_are_told_in_its_own_words(
    person: Person, hosted: HostedService, verb: str, reply: tuple[int, dict[str, object]], code: str
) -> None:
    if verb == "start":
        hosted.states[42] = "stopped"
        hosted.start_reply = reply
        told = person.json("connect", "42", "--start", expect=1)
    else:
        hosted.stop_reply = reply
        told = person.json("stop", "42", expect=1)
    assert told["error"] == code
    words = next(text for text in reply[1].values() if isinstance(text, str))
    assert words in told["message"]


def test_ssh_over_config_ssh(person: Person, hosted: HostedService) -> None:
    person.runcode("config-ssh")
    config = str(person.home / ".ssh" / "config")
    for _ in range(2):
        done = subprocess.run(
            ["ssh", "-F", config, f"runcode.{TITLE}", "echo in"],
            env=person.environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.stdout == b"in\n", done.stderr
    assert len(hosted.mint_requests) == 1


def test_doctor_is_content_with_it(person: Person, hosted: HostedService) -> None:
    assert person.json("doctor")["ok"] is True
