"""The MCP server in the real Claude Code and the real Codex, offline, against a scripted model.

What is asserted is what the model was sent, and what is on the box.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runcode
from support.client_standin import ControlPlane, Person, service, signed_in
from support.mcp_clients import client_environment, client_home, run_claude, run_codex, scripted_model

pytestmark = pytest.mark.agents
SOURCES = Path(runcode.__file__).resolve().parents[1]
ALLOWED = ("--allowedTools", "mcp__runcode,Bash")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def person(plane: ControlPlane, tmp_path: Path) -> Iterator[Person]:
    with signed_in(tmp_path, plane) as someone, client_home() as home:
        someone.environment = client_environment(home, someone.environment)
        yield someone


def structured(text: str) -> dict[str, Any]:
    """The JSON in what the model was sent: Codex puts words before it."""
    return dict(json.loads(text[text.index("{") :]))


def claude_step(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"tool": f"mcp__runcode__{tool}", "input": arguments}


def codex_step(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"tool": tool, "space": "mcp__runcode", "input": arguments}


def bash(command: str) -> dict[str, Any]:
    return {"tool": "Bash", "input": {"command": command, "description": "look"}}


def test_claude_calls_the_tools_and_its_shell_sees_the_same_attachment(plane: ControlPlane, person: Person) -> None:
    installed = person.json("mcp", "install", "--client", "claude")
    assert (installed["changed"], installed["installed"]) == (True, True)
    program = installed["command"][0]
    steps = [
        claude_step("connect", workspace="42"),
        claude_step("exec", command="echo made-there > claude-was-here; hostname"),
        bash(f"{program} current --json"),
        claude_step("read", path="claude-was-here"),
    ]
    with scripted_model(steps) as model:
        done = run_claude(model, person.environment, person.project, *ALLOWED)
        results = model.tool_results()
    assert done.returncode == 0, done.stderr
    connected, ran, shell, read = results
    assert structured(connected)["attached_for"].startswith("this agent session")
    assert (structured(ran)["exit_code"], structured(ran)["workspace_id"]) == (0, 42)
    assert "not instructions" in structured(ran)["note"]
    assert structured(shell)["attached_by"] == "session"
    assert structured(read)["text"] == "made-there\n"
    assert (plane.workdir / "claude-was-here").read_text() == "made-there\n"
    assert not (person.project / "claude-was-here").exists()


HOOK = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from runcode.client.agent_processes import remember_session
from runcode.client.settings import load_settings
told = json.load(sys.stdin)
pid = int(os.environ.get("CLAUDE_PID") or os.getppid())
remember_session(load_settings(os.environ), pid, "claude:" + told["session_id"])
"""


@pytest.mark.parametrize("with_hook", [True, False])
def test_after_clear_a_hook_tells_the_server_which_session_it_is_in(
    plane: ControlPlane, person: Person, with_hook: bool
) -> None:
    """Claude Code keeps the server and its first session's environment; its shell is in the new one."""
    program = person.json("mcp", "install", "--client", "claude")["command"][0]
    hook = {"type": "command", "command": sys.executable, "args": ["-I", "-S", "-c", HOOK, str(SOURCES)]}
    (person.home / "settings.json").write_text(json.dumps({"hooks": {"SessionStart": [{"hooks": [hook]}]}}))
    words = ("--settings", str(person.home / "settings.json")) if with_hook else ()
    steps = [
        claude_step("connect", workspace="42"),
        {"text": "one"},
        claude_step("status"),
        claude_step("connect", workspace="42"),
        bash(f"{program} current --json; true"),
    ]
    with scripted_model(steps) as model:
        done = run_claude(model, person.environment, person.project, *ALLOWED, *words, prompts=("go", "/clear", "go"))
        results = [structured(text) for text in model.tool_results()]
    assert done.returncode == 0, done.stderr
    _, status, _, shell = results
    if with_hook:
        assert status["attached"] is None
        assert shell["attached_by"] == "session"
    else:
        # Nobody can tell: the server goes on in the session that it knows, and the shell is not attached by it.
        assert status["attached"]["workspace_id"] == 42
        assert shell["error"] == "not_attached"


def test_a_server_that_codex_starts_in_a_plugins_folder_works_in_the_project(
    plane: ControlPlane, person: Person, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin"
    (plugin / ".codex-plugin").mkdir(parents=True)
    person.json("mcp", "install", "--client", "codex")
    config = Path(person.environment["CODEX_HOME"]) / "config.toml"
    text = config.read_text()
    config.write_text(text.replace("[mcp_servers.runcode]", f"[mcp_servers.runcode]\ncwd = {json.dumps(str(plugin))}"))
    steps = [codex_step("connect", workspace="42"), codex_step("write", path="w", content="from there")]
    steps += [codex_step("get", path="w", local="got-here")]
    with scripted_model(steps) as model:
        done = run_codex(model, person.environment, person.project)
        results = [structured(text) for text in model.tool_results()]
    assert done.returncode == 0, done.stderr
    assert results[2]["bytes"] == 10, results[2]
    assert (person.project / "got-here").read_text() == "from there"


def test_codex_calls_the_tools_and_its_shell_sees_the_same_attachment(plane: ControlPlane, person: Person) -> None:
    installed = person.json("mcp", "install", "--client", "codex")
    program = installed["command"][0]
    steps = [
        codex_step("connect", workspace="42"),
        codex_step("exec", command="echo made-there > codex-was-here"),
        {"tool": "exec_command", "input": {"cmd": f"{program} current --json"}},
        codex_step("read", path="codex-was-here"),
    ]
    with scripted_model(steps) as model:
        done = run_codex(model, person.environment, person.project)
        results = model.tool_results()
    assert done.returncode == 0, done.stderr
    connected, ran, shell, read = results
    assert structured(connected)["attached_for"].startswith("this agent session")
    assert structured(ran)["exit_code"] == 0
    assert structured(shell)["attached_by"] == "session"
    assert structured(read)["text"] == "made-there\n"
    assert (plane.workdir / "codex-was-here").exists()
    assert not (person.project / "codex-was-here").exists()
