"""What docs/troubleshooting.md says that a person reads is what they read, word for word."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.client_standin import BARE_PATH, TITLE, TOKEN, Person, service, signed_in
from support.hosted_standin import HostedService, Waiting, hosted_service

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ELSEWHERE = "https://other.example.net"


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedService]:
    with hosted_service(tmp_path_factory.mktemp("service")) as running:
        running.shared = [running.workspace(43, "quiet-lake")]
        yield running


@pytest.fixture(scope="module")
def person(hosted: HostedService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with signed_in(tmp_path_factory.mktemp("person"), hosted) as someone:
        yield someone


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Person]:
    someone = Person(tmp_path / "stranger")
    yield someone
    shutil.rmtree(someone.runtime)


def as_on_the_page(stderr: bytes, hosted: HostedService) -> str:
    """The line of the failure, with the names that the page uses."""
    (line,) = [line for line in stderr.decode().splitlines() if re.match(r"runcode: [a-z_]+: ", line)]
    line = line.replace(hosted.base, "SERVER").replace(TITLE, "NAME")
    return re.sub(r"http://127\.0\.0\.1:\d+", "SERVER", line)


def assert_told(stderr: bytes, hosted: HostedService, code: str) -> None:
    line = as_on_the_page(stderr, hosted)
    assert line.startswith(f"runcode: {code}: ")
    assert f"| `{line}` |" in PAGE, line


def not_signed_in(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    return stranger.runcode("list", expect=1).stderr


def signed_in_elsewhere(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    return person.runcode("list", "--api-base", ELSEWHERE, expect=1).stderr


def a_refused_token(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    hosted.token = "another"
    try:
        return person.runcode("list", expect=1).stderr
    finally:
        hosted.token = TOKEN


def no_browser_comes_back(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    bases = ("--api-base", hosted.base, "--web-base", hosted.base)
    return stranger.runcode("login", *bases, "--no-browser", "--timeout", "0.2", expect=1).stderr


def a_no_in_the_browser(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    hosted.deny = True
    try:
        waiting = Waiting(stranger, "--api-base", hosted.base, "--web-base", hosted.base, "--no-browser")
        with urllib.request.urlopen(waiting.url, timeout=60):
            pass
        return waiting.end()[2]
    finally:
        hosted.deny = False


def a_wrong_name(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    return person.runcode("connect", "nonsense", expect=1).stderr


def a_stopped_workspace(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    hosted.states[42] = "stopped"
    return person.runcode("connect", "42", "--force", expect=1).stderr


def a_server_without_ssh(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    said = json.dumps({"error": True, "message": "SSH access is not configured"}).encode()
    hosted.overrides["/api/rc/workspace/42/ssh-session"] = (503, {}, said)
    return person.runcode("connect", "42", "--force", expect=1).stderr


def a_start_without_end(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    hosted.states[42], hosted.boot_polls = "stopped", 10**6
    return person.runcode("connect", "42", "--start", "--timeout", "0.5", expect=1).stderr


def a_refused_start(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    hosted.states[42], hosted.start_reply = "stopped", (200, {"error": True, "message": "Not enough balance."})
    return person.runcode("connect", "42", "--start", expect=1).stderr


def an_insecure_address(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    return stranger.runcode("list", "--api-base", "http://example.net", expect=1).stderr


def a_redirect_elsewhere(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    hosted.overrides["/api/rc/workspaces"] = (302, {"Location": "https://evil.example/"}, b"")
    return person.runcode("list", expect=1).stderr


def nobody_there(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{probe.getsockname()[1]}"
    return person.runcode("list", "--api-base", base, expect=1, environment={"RUNCODE_TOKEN": "t"}).stderr


def nothing_attached(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    return person.runcode("exec", "--", "true", expect=255, environment={"CLAUDE_CODE_SESSION_ID": "new"}).stderr


def several_attached(hosted: HostedService, person: Person, stranger: Person) -> bytes:
    hosted.states[43] = "running"
    for number, session in (("43", "one"), ("42", "two")):
        person.runcode("connect", number, environment={"CLAUDE_CODE_SESSION_ID": session})
    # The stand-in names every box alike; the page shows two names.
    return re.sub(rb"43 \([^)]*\)", b"43 (quiet-lake)", person.runcode("exec", "--", "true", expect=255).stderr)


SITUATIONS: list[tuple[Callable[[HostedService, Person, Person], bytes], str]] = [
    (not_signed_in, "no_token"),
    (signed_in_elsewhere, "no_token"),
    (a_refused_token, "unauthorized"),
    (no_browser_comes_back, "timed_out"),
    (a_no_in_the_browser, "forbidden"),
    (a_wrong_name, "not_found"),
    (a_stopped_workspace, "conflict"),
    (a_server_without_ssh, "unavailable"),
    (a_start_without_end, "not_ready"),
    (a_refused_start, "start_failed"),
    (an_insecure_address, "insecure_base"),
    (a_redirect_elsewhere, "insecure_base"),
    (nobody_there, "network"),
    (nothing_attached, "not_attached"),
    (several_attached, "ambiguous"),
]


@pytest.mark.parametrize(("meet", "code"), SITUATIONS, ids=[meet.__name__ for meet, _ in SITUATIONS])
def test_the_line_is_the_pages(
    meet: Callable[[HostedService, Person, Person], bytes],
    code: str,
    hosted: HostedService,
    person: Person,
    stranger: Person,
) -> None:
    try:
        assert_told(meet(hosted, person, stranger), hosted, code)
    finally:
        hosted.overrides.clear()
        hosted.states = {42: "running"}
        hosted.start_reply, hosted.boot_polls = (200, {"error": False}), 2
        person.runcode("clean", "--all")


def test_a_missing_ssh_is_named_with_what_installs_it(person: Person, tmp_path: Path) -> None:
    """The brackets are this system's; the rest is the page's."""
    person.runcode("connect", "42")
    for name in ("ssh", "ssh-keygen"):
        tools = tmp_path / name
        tools.mkdir()
        for entry in {"env", "sh", "ssh", "ssh-keygen"} - {name}:
            found = shutil.which(entry, path=BARE_PATH)
            assert found is not None
            (tools / entry).symlink_to(found)
        done = person.runcode("connect", "42", "--force", "--wait", expect=1, environment={"PATH": str(tools)})
        line = done.stderr.decode().splitlines()[-1]
        assert line.startswith(f"runcode: missing_program: `{name}` is not on PATH (install the OpenSSH client")
    assert "`runcode: missing_program: `ssh` is not on PATH (…)`" in PAGE


def test_a_lost_connection_says_what_the_page_says(hosted: HostedService, person: Person, tmp_path: Path) -> None:
    person.runcode("connect", "42", "--wait")
    started = tmp_path / "started"
    process = person.start("exec", "--home", "--", f"touch {started}; exec sleep 60", stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert hosted.sshd is not None
    for pid in hosted.sshd.connections():
        subprocess.run(["kill", "-9", str(pid)], check=False)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 255
    assert_told(stderr, hosted, "connection_lost")


def test_a_missing_project_folder_says_what_the_page_says(tmp_path: Path) -> None:
    with service(tmp_path / "service") as plane, signed_in(tmp_path / "person", plane) as somebody:
        somebody.runcode("connect", "42")
        plane.workdir.rmdir()
        stderr = somebody.runcode("exec", "--", "true", expect=255).stderr.decode()
    assert f"| `{stderr.strip().replace(str(plane.workdir), 'WORKDIR')}` |" in PAGE


def test_a_taken_port_says_what_the_page_says(hosted: HostedService, person: Person) -> None:
    person.runcode("connect", "42", "--wait")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        stderr = person.runcode("forward", port, expect=1).stderr.replace(port.encode(), b"8000")
    assert_told(re.sub(rb"--local \d+", b"--local 40123", stderr), hosted, "busy")


def test_another_host_key_says_what_the_page_says(hosted: HostedService, person: Person) -> None:
    assert hosted.sshd is not None
    right = hosted.sshd.host_key
    hosted.sshd.host_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
    try:
        stderr = person.runcode("connect", "42", "--force", "--wait", expect=1).stderr.decode()
    finally:
        hosted.sshd.host_key = right
        person.runcode("clean", "--all")
    told = stderr.splitlines()[-1].partition(" (")[0]
    assert f"`{told}`" in PAGE.partition("## What happens")[0]
