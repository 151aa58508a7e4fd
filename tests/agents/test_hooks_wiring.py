"""How both clients call the plugin's hooks: with which words, for which tools, and what a failing hook comes to.

What the hooks decide is tested elsewhere; here a program of a few lines stands in
for `runcode`, so that each of its ways to fail can be played.

Guarantee: a PreToolUse hook that is missing, is killed, exits with any status but
0, or says nothing, lets nothing run, in every client here that asks it at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.agent_clients import CODE_MODE_MODEL, PLUGIN, AgentLaptop
from support.fake_model import Call, Code, FakeModel, Patch, Step

pytest_plugins = ["support.agent_fixtures"]
pytestmark = pytest.mark.agents
RAN = "echo $((40 + 2)) > ran.txt"
_PROGRAM = """#!/bin/sh
if [ "$1" = hook ]; then
    printf '%s\\n' "$*" >>"$HOME/hook.log"
    cat >>"$HOME/hook.log"
    printf '\\n' >>"$HOME/hook.log"
    if [ "$2" = pre-tool-use ]; then {at_tool}
    fi
fi
exit 0
"""
FAILURES = {
    "exit-1": "exit 1",
    "exit-2-without-a-word": "exit 2",
    "exit-2-with-a-reason": "echo because >&2; exit 2",
    "killed": "kill -KILL $$",
    "killed-half-way": "printf '{\"hookSpecificOutput\":'; kill -KILL $$",
}
WAYS: dict[str, Step] = {
    "claude": Call("Bash", command=RAN),
    "claude_before": Call("Bash", command=RAN),
    "codex": Call("exec_command", cmd=RAN),
    "codex-code-mode": Code(f"text((await tools.exec_command({{cmd: {json.dumps(RAN)}}})).output)"),
}
LONG = pytest.mark.agents_long


def play(laptop: AgentLaptop, way: str, step: Step, *, at_tool: str = "true") -> FakeModel:
    laptop.program.write_text(_PROGRAM.format(at_tool=at_tool))
    with FakeModel([step]) as model:
        if way.startswith("codex"):
            name = {"model_name": CODE_MODE_MODEL} if way == "codex-code-mode" else {}
            run = laptop.codex(model, "hello", **name)
        else:
            run = laptop.claude(model, "hello", allow=["Bash", "Read", "Write"], version=way)
    assert run.status == 0, run.stderr
    return model


def read_calls(laptop: AgentLaptop) -> list[tuple[str, dict[str, Any]]]:
    lines = (laptop.home / "hook.log").read_text().splitlines()
    words = [line for line in lines if line.startswith("hook ")]
    return list(zip(words, [json.loads(line) for line in lines if line.startswith("{")], strict=True))


@pytest.fixture
def laptop(agent_laptop: AgentLaptop, request: pytest.FixtureRequest) -> AgentLaptop:
    if str(request.node.callspec.params["way"]).startswith("codex"):
        agent_laptop.install_in_codex()
    return agent_laptop


@pytest.mark.parametrize("way", ["claude", pytest.param("claude_before", marks=LONG), "codex", "codex-code-mode"])
def test_each_event_calls_the_launcher_with_its_words(laptop: AgentLaptop, way: str) -> None:
    play(laptop, way, WAYS[way])
    assert (laptop.project / "ran.txt").read_text() == "42\n"
    client = "codex" if way.startswith("codex") else "claude"
    calls = read_calls(laptop)
    names = ["session-start", "user-prompt-submit", "pre-tool-use", "post-tool-use"]
    assert [words for words, _ in calls] == [f"hook {name} --client {client}" for name in names]
    assert calls[2][1]["tool_name"] == "Bash"
    assert calls[2][1]["tool_input"]["command"] == RAN
    assert len({call["session_id"] for _, call in calls}) == 1


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize(
    "way", ["claude", pytest.param("claude_before", marks=LONG), "codex", pytest.param("codex-code-mode", marks=LONG)]
)
def test_a_hook_that_fails_lets_nothing_run(laptop: AgentLaptop, way: str, failure: str) -> None:
    play(laptop, way, WAYS[way], at_tool=FAILURES[failure])
    assert not (laptop.project / "ran.txt").exists()


@pytest.mark.parametrize("way", ["claude", pytest.param("claude_before", marks=LONG), "codex"])
def test_without_the_launcher_nothing_runs(laptop: AgentLaptop, way: str) -> None:
    for launcher in laptop.home.rglob("bin/runcode"):
        launcher.unlink()
    model = play(laptop, way, WAYS[way])
    assert not (laptop.project / "ran.txt").exists()
    assert "RunCode could not decide" in model.results[0].text


@pytest.mark.parametrize(
    ("way", "step", "tool"),
    [
        ("claude", Call("Write", file_path="made.txt", content="x"), "Write"),
        ("claude", Call("Read", file_path="/etc/hostname"), "Read"),
        ("codex", Patch("*** Begin Patch\n*** Add File: made.txt\n+x\n*** End Patch"), "apply_patch"),
    ],
)
def test_file_tools_are_asked_about_too(laptop: AgentLaptop, way: str, step: Step, tool: str) -> None:
    model = play(laptop, way, step, at_tool="echo because >&2; exit 2")
    assert [call["tool_name"] for words, call in read_calls(laptop) if "pre-tool-use" in words] == [tool]
    assert "because" in model.results[0].text
    assert not (laptop.project / "made.txt").exists()


@pytest.mark.parametrize("way", ["claude"])
def test_a_folder_name_is_no_shell_text(laptop: AgentLaptop, way: str) -> None:
    """The plugin may stand in a folder with any name; none of it is run."""
    odd = laptop.home / 'it\'s $(touch pwned) `touch pwned` "$HOME"'
    laptop.plugin.rename(odd)
    laptop.plugin = odd
    play(laptop, way, WAYS[way])
    assert len(read_calls(laptop)) == 4
    assert list(laptop.home.rglob("pwned")) == []


def test_the_hooks_files_hold_what_each_client_takes() -> None:
    claude = json.loads((PLUGIN / "hooks" / "hooks.json").read_text())
    codex = json.loads((PLUGIN / "hooks" / "codex.json").read_text())
    # One more key and Codex passes over the whole file without a word.
    assert set(codex) == {"description", "hooks"}
    (entry,) = claude["hooks"]["PreToolUse"]
    assert entry["hooks"][0]["onFailure"] == "block"
    for document in (claude, codex):
        assert set(document["hooks"]) == {"SessionStart", "UserPromptSubmit", "PreToolUse", "PostToolUse"}
        for entries in document["hooks"].values():
            assert all(hook["timeout"] <= 30 for one in entries for hook in one["hooks"])
    assert Path(PLUGIN / "hooks" / "hooks.json").read_text().count("|| {") == 1
