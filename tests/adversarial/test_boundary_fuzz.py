"""Junk on the hook's stdin: refused or answered, never a traceback, and while attached nothing slips past."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adversarial.corpus.shell_lines import SLIPPING
from runcode.agents.boundary.requests import Request, parse_request
from runcode.client import attachments
from runcode.client.settings import load_settings
from runcode.core.errors import RunCodeError
from runcode.core.shell_text import find_lone_command

ENTRY = Path(__file__).resolve().parents[2] / "src/runcode/cli/entry.py"
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = ("session_id", "cwd", "tool_name", "tool_input", "source", "hook_event_name", "workspace")
_QUICKLY = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


class Attached:
    """A home in which session `s` is attached, and the hook as clients start it."""

    def __init__(self, home: Path) -> None:
        self.home, self.project = home, home / "project"
        self.project.mkdir(parents=True)
        self.environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
        os.chdir(self.project)
        for key in ("claude:s", "codex:s"):
            attachments.attach(load_settings(self.environ, agent_session=key), 7, "box-7")

    def ask(self, raw_input: bytes, client: str = "claude", event: str = "pre-tool-use") -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(ENTRY), "hook", event, "--client", client],
            input=raw_input,
            env=self.environ,
            cwd=self.project,
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def request(self, **changes: Any) -> dict[str, Any]:
        said = {
            "session_id": "s",
            "cwd": str(self.project),
            "hook_event_name": "PreToolUse",
            "tool_name": "Bash",
            "tool_input": {"command": "ls"},
        }
        return {**said, **changes}


@pytest.fixture
def attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attached:
    monkeypatch.chdir(tmp_path)
    return Attached(tmp_path / "home")


def well_ended(status: int, stdout: bytes, stderr: bytes) -> dict[str, Any] | None:
    """The answer's fields, None where the client goes on by itself; a refusal is `{}`."""
    assert b"Traceback" not in stdout + stderr
    if status == 2:
        assert not stdout
        assert stderr.startswith(b"runcode: ")
        assert stderr.count(b"\n") == 1
        return {}
    assert status == 0, stderr
    if not stdout:
        return None
    fields = json.loads(stdout)["hookSpecificOutput"]
    assert fields["hookEventName"] == "PreToolUse"
    return dict(fields)


JUNK = [
    b"",
    b" ",
    b"{",
    b"[]",
    b"null",
    b"7",
    b'"x"',
    b"{}",
    b"\xff\xfe",
    b"\0",
    b"{" * 100_000,
    b"[" * 100_000,
    b'{"session_id": "s"}',
    b'{"session_id": ' + b"9" * 5000 + b"}",
    b'{"session_id": NaN}',
    b'{"a": "\\ud800"}',
    b"{} {}",
    b"x" * 2_000_000,
]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
@pytest.mark.parametrize("client", ["claude", "codex"])
def test_junk_is_refused_while_something_is_attached(attached: Attached, junk: bytes, client: str) -> None:
    assert well_ended(*attached.ask(junk, client)) == {}


CHANGES: list[dict[str, Any]] = [
    {"session_id": None},
    {"session_id": ""},
    {"session_id": ["s"]},
    {"cwd": None},
    {"cwd": ""},
    {"cwd": "relative"},
    {"cwd": "/nowhere/at/all"},
    {"cwd": "/etc/passwd"},
    {"cwd": "/\0"},
    {"cwd": "/" + "x" * 5000},
    {"cwd": "/\ud800"},
    {"tool_name": None},
    {"tool_name": ""},
    {"tool_name": 7},
    {"tool_name": "Unknown"},
    {"tool_name": "bash"},
    {"tool_input": None},
    {"tool_input": []},
    {"tool_input": {}},
    {"tool_input": {"command": None}},
    {"tool_input": {"command": ["ls"]}},
    {"tool_input": {"cmd": "ls"}},
    {"tool_input": {"command": ""}},
    {"tool_input": {"command": "ls\0"}},
    {"tool_name": "Read", "tool_input": {}},
    {"tool_name": "Read", "tool_input": {"file_path": "\0"}},
    {"tool_name": "Read", "tool_input": {"file_path": "/\ud800"}},
    {"tool_name": "Read", "tool_input": {"file_path": "/" + "x" * 5000}},
    {"tool_name": "Glob", "tool_input": {"pattern": "\0/*", "path": "/"}},
    {"tool_name": "apply_patch", "tool_input": "no patch"},
    {"tool_name": "apply_patch", "tool_input": {"input": "*** Add File: /\0"}},
]


@pytest.mark.parametrize("changes", CHANGES, ids=range(len(CHANGES)))
def test_a_call_that_cannot_be_placed_is_refused(attached: Attached, changes: dict[str, Any]) -> None:
    answer = well_ended(*attached.ask(json.dumps(attached.request(**changes)).encode()))
    assert answer == {} or (answer is not None and answer["permissionDecision"] == "deny")


@pytest.mark.parametrize("session", ["other", "a b", "../s", "s" * 129])
def test_another_session_goes_on_as_without_us(attached: Attached, session: str) -> None:
    assert well_ended(*attached.ask(json.dumps(attached.request(session_id=session)).encode())) is None


@pytest.mark.parametrize("size", [100, 1_800, 2_000, 2_100, 70_000])
def test_an_answer_is_whole_whatever_its_length(attached: Attached, size: int) -> None:
    """Half of it is no JSON, and a client runs what it asked about when it gets none."""
    given = attached.request(tool_input={"command": "echo " + "x" * size})
    answer = well_ended(*attached.ask(json.dumps(given).encode()))
    assert answer is not None
    assert answer["updatedInput"]["command"].endswith("x" * size + "'")


@pytest.mark.parametrize("text", SLIPPING[::12])
@pytest.mark.parametrize("client", ["claude", "codex"])
def test_no_shell_text_slips_past_the_real_hook(attached: Attached, text: str, client: str) -> None:
    given = attached.request(tool_input={"command": text, "timeout": 5})
    answer = well_ended(*attached.ask(json.dumps(given).encode(), client))
    assert answer is not None
    if "updatedInput" in answer:
        changed = answer["updatedInput"]
        assert changed["timeout"] == 5
        words = find_lone_command(changed["command"])
        assert words is not None
        assert words[1:] == ["exec", "--agent-session", f"{client}:s", "--", text]
        assert answer.get("permissionDecision") == {"claude": None, "codex": "allow"}[client]
    else:
        assert answer.get("permissionDecision", "deny") == "deny"


def test_a_command_as_large_as_a_client_sends_is_answered(attached: Attached) -> None:
    text = "cat > x <<'E'\n" + "line 'with' \"quotes\" $(and) `more`\n" * 20_000 + "E\n"
    answer = well_ended(*attached.ask(json.dumps(attached.request(tool_input={"command": text})).encode()))
    assert answer is not None
    assert (find_lone_command(answer["updatedInput"]["command"]) or [])[-1] == text


@settings(max_examples=25, **_QUICKLY)
@given(changes=st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=3), command=_JSON)
def test_whatever_a_field_holds_the_hook_ends_well(attached: Attached, changes: dict[str, Any], command: Any) -> None:
    given_input = attached.request(**{"tool_input": {"command": command}, **changes})
    answer = well_ended(*attached.ask(json.dumps(given_input).encode()))
    if given_input["session_id"] == "s" and given_input["cwd"] == str(attached.project):
        assert answer is not None, given_input


def parsed(client: str, event: str, raw: bytes) -> Request | None:
    """None for what is refused. Any other error fails the test that asks."""
    try:
        return parse_request(client, event, raw)
    except RunCodeError as error:
        return None if error.code == "bad_request" else pytest.fail(error.code)


@settings(max_examples=500, **_QUICKLY)
@given(raw=st.binary(max_size=60) | _JSON.map(lambda said: json.dumps(said).encode()))
@pytest.mark.parametrize("event", ["pre-tool-use", "session-start", "user-prompt-submit"])
def test_a_request_is_a_type_or_an_error(raw: bytes, event: str) -> None:
    request = parsed("claude", event, raw)
    assert request is None or request.cwd.startswith("/")


@settings(max_examples=300, **_QUICKLY)
@given(changes=st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=4))
def test_a_request_holds_what_its_types_say(changes: dict[str, Any]) -> None:
    said = {"session_id": "s", "cwd": "/", "tool_name": "Bash", "tool_input": {}, **changes}
    request = parsed("codex", "pre-tool-use", json.dumps(said).encode())
    if request is None:
        return
    assert isinstance(request.tool, str)
    assert request.tool
    assert isinstance(request.tool_input, dict)
    assert "\0" not in request.cwd
    assert request.agent_session.startswith("codex:")


# ---------------------------------------------------------------- in doubt


def garble(attached: Attached) -> None:
    for record in (attached.home / ".cache/runcode/attachments").iterdir():
        record.write_bytes(b"\0")


def open_to_others(attached: Attached) -> None:
    (attached.home / ".cache/runcode/attachments").chmod(0o777)


def sign_in_elsewhere(attached: Attached) -> None:
    attached.environ["RUNCODE_API_BASE"] = "https://elsewhere.example"
    for record in (attached.home / ".cache/runcode/attachments").iterdir():
        record.write_bytes(record.read_bytes().replace(b"https://app.runcode.io", b"https://third.example"))


@pytest.mark.parametrize("doubt", [garble, open_to_others, sign_in_elsewhere])
@pytest.mark.parametrize(
    ("command", "passes"),
    [
        ("ls", False),
        ("runcode exec -- ls", False),
        ("runcode local -- ls", False),
        ("runcode get x --out ../y", False),
        ("runcode connect 7; ls", False),
        ("runcode connect 7", True),
        ("runcode disconnect --api-base https://third.example", True),
    ],
)
def test_in_doubt_only_what_mends_it_passes(attached: Attached, doubt: Any, command: str, passes: bool) -> None:
    doubt(attached)
    said = json.dumps(attached.request(tool_input={"command": command})).encode()
    status, stdout, stderr = attached.ask(said)
    assert (status, stdout) == ((0, b"") if passes else (2, b"")), stderr
    # A prompt goes through, and the model is told nothing that is not certain.
    assert attached.ask(said, event="user-prompt-submit")[0] == 1


def test_after_clear_the_same_process_keeps_its_attachment_and_another_gets_nothing(attached: Attached) -> None:
    for pid, source, session, expected in (
        (os.getpid(), "startup", "s", True),
        (os.getpid(), "clear", "after", True),
        (os.getppid(), "clear", "stranger", False),
        (os.getpid(), "resume", "resumed", False),
    ):
        attached.environ["CLAUDE_PID"] = str(pid)
        said = attached.request(session_id=session, source=source, hook_event_name="SessionStart")
        status, stdout, stderr = attached.ask(json.dumps(said).encode(), event="session-start")
        assert status == 0, stderr
        assert (b"attached to the workspace box-7" in stdout) == expected, (source, stdout)
        status, stdout, _ = attached.ask(json.dumps(attached.request(session_id=session)).encode())
        assert (status, b"updatedInput" in stdout) == (0, expected)
