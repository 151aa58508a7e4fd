"""Who is attached to what: every command says the same, and two agents never cross."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_standin import RUNCODE, TITLE, ControlPlane, Person, service, signed_in

ONE, TWO, THREE = {"CLAUDE_CODE_SESSION_ID": "one"}, {"CLAUDE_CODE_SESSION_ID": "two"}, {"CODEX_THREAD_ID": "three"}


class Box:
    """The stand-in's workspaces all land on one sshd; their project folders tell them apart."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self.folders = {}
        for workspace_id in (42, 43, 44):
            self.folders[workspace_id] = folder / f"work-{workspace_id}"
            self.folders[workspace_id].mkdir()
            if workspace_id != 42:
                plane.own.append(plane.workspace(workspace_id, TITLE, custom_title=f"box {workspace_id}"))
                plane.states[workspace_id] = "running"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with service(tmp_path / "service") as plane:
        yield Box(plane, tmp_path)


@pytest.fixture
def person(tmp_path: Path, box: Box) -> Iterator[Person]:
    with signed_in(tmp_path / "person", box.plane) as someone:
        yield someone


def connect(person: Person, box: Box, workspace_id: int, **where: object) -> None:
    box.plane.bundle_changes = {"workdir": str(box.folders[workspace_id])}
    person.runcode("connect", str(workspace_id), **where)  # type: ignore[arg-type]


def claude_says(environment: dict[str, str], cwd: Path) -> bytes:
    """What Claude Code pipes into a status line."""
    if "CODEX_THREAD_ID" in environment:
        return b""  # another client, which pipes nothing of this kind
    said = {
        "session_id": environment.get("CLAUDE_CODE_SESSION_ID", "unknown"),
        "cwd": str(cwd),
        "workspace": {"current_dir": str(cwd), "project_dir": str(cwd), "added_dirs": []},
        "model": {"id": "m", "display_name": 'A "model"'},
        "cost": {"total_cost_usd": 0.1},
    }
    return json.dumps(said).encode()


def seen_by(person: Person, box: Box, environment: dict[str, str], cwd: Path | None = None) -> int | None:
    """The workspace that this agent is attached to, by every command that tells; they must agree."""
    cwd = cwd or person.project
    where = {"environment": environment, "cwd": cwd}
    current = person.runcode("current", "--json", expect=None, **where)  # type: ignore[arg-type]
    executed = person.runcode("exec", "--", "pwd", expect=None, **where)  # type: ignore[arg-type]
    line = person.runcode(
        "statusline",
        "--plain",
        stdin=claude_says(environment, cwd),
        environment=environment,
        cwd=person.home if environment else cwd,
    ).stdout
    rows = person.json("status", **where)  # type: ignore[arg-type]
    attached = [row["workspace_id"] for row in rows if row["attached"]]
    if current.returncode != 0:
        assert json.loads(current.stdout)["error"] == "not_attached"
        assert executed.returncode == 255
        assert executed.stderr.startswith(b"runcode: not_attached: ")
        assert (line, attached) == (b"", [])
        return None
    workspace_id = json.loads(current.stdout)["workspace_id"]
    assert executed.stdout.decode().strip() == str(box.folders[workspace_id])
    assert line.startswith(f"working-on:{TITLE} ~".encode())
    assert attached == [workspace_id]
    return int(workspace_id)


def test_two_agents_in_two_projects_never_cross(person: Person, box: Box) -> None:
    other = person.home / "other"
    other.mkdir()
    assert seen_by(person, box, ONE) is None
    connect(person, box, 42, environment=ONE)
    assert seen_by(person, box, TWO, other) is None
    connect(person, box, 43, environment=TWO, cwd=other)
    connect(person, box, 44, environment=THREE)
    for _ in range(2):
        assert seen_by(person, box, ONE) == 42
        assert seen_by(person, box, TWO, other) == 43
        assert seen_by(person, box, THREE) == 44
    # Each keeps its own wherever it goes, and is asked by its session first.
    assert seen_by(person, box, ONE, other) == 42
    assert seen_by(person, box, TWO) == 43
    person.runcode("disconnect", environment=ONE)
    assert seen_by(person, box, ONE) is None
    assert seen_by(person, box, TWO) == 43
    person.runcode("stop", environment=TWO, cwd=other)
    assert box.plane.states == {42: "running", 43: "stopped", 44: "running"}
    assert seen_by(person, box, TWO, other) is None
    assert seen_by(person, box, THREE) == 44


def test_the_nearest_folder_counts_where_a_session_has_nothing(person: Person, box: Box) -> None:
    inner = person.project / "inner" / "deep"
    inner.mkdir(parents=True)
    connect(person, box, 42)
    connect(person, box, 43, cwd=inner.parent)
    assert seen_by(person, box, {}, inner) == 43
    assert seen_by(person, box, ONE, inner) == 43
    assert seen_by(person, box, ONE) == 42
    link = person.home / "link"
    link.symlink_to(inner)
    assert seen_by(person, box, ONE, link) == 43
    connect(person, box, 44, environment=ONE, cwd=inner)
    assert seen_by(person, box, ONE, inner) == 44
    done = person.runcode("disconnect", environment=ONE, cwd=inner)
    assert b"is attached here now, by this folder" in done.stderr
    assert seen_by(person, box, ONE, inner) == 43


@pytest.mark.parametrize("words", [("disconnect",), ("disconnect", "--keep"), ("stop",), ("stop", "--keep")])
def test_the_status_line_is_dark_at_once(person: Person, box: Box, words: tuple[str, ...]) -> None:
    connect(person, box, 42, environment=ONE)
    assert seen_by(person, box, ONE) == 42
    person.runcode(*words, environment=ONE)
    assert seen_by(person, box, ONE) is None


def test_an_agent_without_a_session_of_its_own_is_never_given_anothers(person: Person, box: Box) -> None:
    connect(person, box, 42, environment=ONE)
    assert seen_by(person, box, {"CLAUDECODE": "1"}) is None
    assert seen_by(person, box, {"CURSOR_AGENT": "1"}) is None
    # A person's own terminal is: there is only one. The status line is a client's, and stays dark.
    assert person.json("current")["workspace_id"] == 42
    assert person.runcode("statusline", "--plain").stdout == b""


def test_what_an_agent_left_behind_does_not_make_a_terminal_ambiguous(person: Person, box: Box) -> None:
    connect(person, box, 42, environment=ONE)
    connect(person, box, 43, environment=TWO)
    assert person.json("current", expect=1)["error"] == "ambiguous"
    path = person.session_folder(43) / "session.json"
    path.write_text(path.read_text().replace('"expires_at": ', '"expires_at": 1,\n"was": '))
    assert person.json("current")["workspace_id"] == 42
    assert person.json("disconnect", "--workspace", "43") == {
        "workspace_id": 43,
        "detached": False,
        "closed": False,
    }


def line(person: Person, stdin: bytes, *words: str, **environment: str) -> str:
    return person.runcode("statusline", *words, stdin=stdin, environment={**ONE, **environment}).stdout.decode()


def test_the_line_and_its_colours(person: Person, box: Box) -> None:
    box.plane.bundle_changes = {"web_url": "https://royal-tree.ws.example.net:8443/x?tkn=secret"}
    person.runcode("connect", "42", environment=ONE)
    said = claude_says(ONE, person.project)
    shown = line(person, said)
    assert re.fullmatch("\x1b\\[32m⬡ working-on:royal-tree\\.ws\\.example\\.net · ~(30|29)m\x1b\\[0m\n", shown)
    assert re.fullmatch("working-on:royal-tree\\.ws\\.example\\.net ~(30|29)m\n", line(person, said, "--plain"))
    path = person.session_folder() / "session.json"
    fresh = path.read_text()

    def with_remaining(seconds: int) -> str:
        old = json.loads(fresh)["expires_at"]
        path.write_text(fresh.replace(str(old), str(int(time.time()) + seconds)))
        return line(person, said)

    assert with_remaining(299).startswith("\x1b[33m⬡ working-on:royal-tree.ws.example.net · ~4m")
    assert with_remaining(110).startswith("\x1b[31m⬡ working-on:royal-tree.ws.example.net · ~1m")
    assert with_remaining(40).startswith("\x1b[31m⬡ working-on:royal-tree.ws.example.net · <1m")
    assert with_remaining(-1) == ""


SAID = [
    b"",
    b"not json",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b"{}",
    b'{"session_id": 5, "workspace": [], "cwd": {}}',
    b'{"session_id": "other", "cwd": "relative/\\u0000"}',
    b'{"cwd": "/nonexistent/folder"}',
    b'{"session_id": "\\ud800", "cwd": "/"}',
    b'{"a": ' + b"[" * 100_000,
    b'{"session_id": "' + b"x" * 2_000_000 + b'"}',
    b'{"session_id": "one"} trailing',
    b"\n  " + b'{"session_id": "\x1b[31m"}',
]


@pytest.mark.parametrize("number", range(len(SAID)))
def test_whatever_is_piped_in_it_never_fails(person: Person, box: Box, number: int) -> None:
    connect(person, box, 42, environment=ONE)
    for words in ([], ["--plain"]):
        done = person.runcode("statusline", *words, stdin=SAID[number], environment=ONE)
        assert done.stderr == b""
        assert done.stdout == b"" or f"working-on:{TITLE} ".encode() in done.stdout
        assert b"31m\x1b" not in done.stdout


def test_a_pipe_that_nobody_closes_does_not_hold_it(person: Person, box: Box) -> None:
    read_end, write_end = os.pipe()
    try:
        process = person.start("statusline", stdin=read_end, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.communicate(timeout=30) == (b"", b"")
        assert process.returncode == 0
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full"])
def test_closed_descriptors_are_no_failure(person: Person, box: Box, closed: str) -> None:
    connect(person, box, 42)
    done = subprocess.run(
        ["sh", "-c", f'"$0" statusline {closed}', RUNCODE],
        env=person.environment,
        cwd=person.project,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_hostile_web_host_in_the_state_is_not_printed(person: Person, box: Box) -> None:
    connect(person, box, 42)
    path = person.session_folder() / "session.json"
    path.write_text(path.read_text().replace('"web_url": null', '"web_url": "https://evil\\u001b]52;c;x\\u0007"'))
    assert person.runcode("statusline", "--plain").stdout.startswith(f"working-on:{TITLE} ~".encode())


def test_the_environments_workspace_is_the_same_for_all(person: Person, box: Box) -> None:
    connect(person, box, 42, environment=ONE)
    connect(person, box, 43, environment=TWO)
    both = {**ONE, "RUNCODE_WORKSPACE": "43"}
    assert person.json("current", environment=both)["workspace_id"] == 43
    assert person.runcode("exec", "--", "pwd", environment=both).stdout.decode().strip() == str(box.folders[43])
    # Also one that an attachment would contradict.
    assert line(person, claude_says(ONE, person.project), "--plain", RUNCODE_WORKSPACE="43").startswith("working-on:")
    assert line(person, claude_says(ONE, person.project), "--plain", RUNCODE_WORKSPACE="999") == ""


def test_without_a_network_and_without_a_server_it_says_the_same(person: Person, box: Box) -> None:
    connect(person, box, 42)
    asked = len(box.plane.requests)
    assert person.runcode("statusline", "--plain").stdout != b""
    assert len(box.plane.requests) == asked
