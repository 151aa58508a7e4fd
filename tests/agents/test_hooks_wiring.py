"""How both clients call the plugin's hooks: with which words, for which tools, and what a failing hook comes to.

What the hooks decide is tested elsewhere; here a program of a few lines stands in
for `runcode`, so that each of its ways to fail can be played.

Guarantee: a PreToolUse hook that is missing, is killed, exits with any status but
0, or says nothing, lets nothing run, in every client here that asks it at all.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator
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
    """One tool call; `Monitor` has to be looked up first, as a model would."""
    laptop.program.write_text(_PROGRAM.format(at_tool=at_tool))
    # Where nothing at all is attached the launcher answers by itself, and asks no program.
    attachments = laptop.home / ".cache" / "runcode" / "attachments"
    attachments.mkdir(parents=True, exist_ok=True)
    (attachments / "of-somebody").touch()
    deferred = isinstance(step, Call) and step.tool == "Monitor"
    with FakeModel([Call("ToolSearch", query="select:Monitor", max_results=1), step] if deferred else [step]) as model:
        if way.startswith("codex"):
            name = {"model_name": CODE_MODE_MODEL} if way == "codex-code-mode" else {}
            run = laptop.codex(model, "hello", **name)
        else:
            run = laptop.claude(model, "hello", allow=["Bash", "Read", "Write", "Monitor"], version=way)
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
    names = ["session-start", "user-prompt-submit", "pre-tool-use"]
    assert [words for words, _ in calls] == [f"hook {name} --client {client}" for name in names]
    assert calls[2][1]["tool_name"] == "Bash"
    assert calls[2][1]["tool_input"]["command"] == RAN
    assert len({call["session_id"] for _, call in calls}) == 1


def _every_failure() -> Iterator[Any]:
    for way in WAYS:
        for failure in FAILURES:
            short = way in ("claude", "codex") or failure == "exit-1"
            yield pytest.param(way, failure, marks=() if short else LONG, id=f"{way}-{failure}")


@pytest.mark.parametrize(("way", "failure"), list(_every_failure()))
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


def test_a_hook_that_hangs_lets_nothing_run_in_claude_code(agent_laptop: AgentLaptop) -> None:
    shorten_timeouts(agent_laptop)
    model = play(agent_laptop, "claude", WAYS["claude"], at_tool="sleep 5")
    assert not (agent_laptop.project / "ran.txt").exists()
    assert "timed out; blocking" in model.results[0].text


@pytest.mark.agents_long
@pytest.mark.parametrize("way", ["claude_before", "codex"])
def test_the_others_pass_over_a_hook_that_hangs(laptop: AgentLaptop, way: str) -> None:
    """Known limit: why a tool's hook gets ten minutes. Kept here so that a version that does better is noticed."""
    shorten_timeouts(laptop)
    play(laptop, way, WAYS[way], at_tool="sleep 5")
    assert (laptop.project / "ran.txt").exists()


def shorten_timeouts(laptop: AgentLaptop) -> None:
    for file in [*laptop.home.rglob("hooks/hooks.json"), *laptop.home.rglob("hooks/codex.json")]:
        assert file.read_text().count('"timeout": 600') == 1
        file.write_text(file.read_text().replace('"timeout": 600', '"timeout": 1'))


@pytest.mark.parametrize(
    ("way", "step", "tool"),
    [
        ("claude", Call("Write", file_path="made.txt", content="x"), "Write"),
        ("claude", Call("Read", file_path="/etc/hostname"), "Read"),
        ("claude", Call("Monitor", command="touch made.txt", description="look", timeout_ms=1000), "Monitor"),
        ("codex", Call("view_image", path="/etc/hostname"), "view_image"),
        ("codex", Patch("*** Begin Patch\n*** Add File: made.txt\n+x\n*** End Patch"), "apply_patch"),
    ],
)
def test_file_tools_are_asked_about_too(laptop: AgentLaptop, way: str, step: Step, tool: str) -> None:
    model = play(laptop, way, step, at_tool="echo because >&2; exit 2")
    assert [call["tool_name"] for words, call in read_calls(laptop) if "pre-tool-use" in words] == [tool]
    assert "because" in model.results[-1].text
    assert not (laptop.project / "made.txt").exists()


# What the hook need not be asked about, and why.
_NOT_OF_THIS_MACHINE = {
    "other models": "Agent ListAgents SendMessage TaskStop TaskOutput Workflow multi_agent_v1.*",
    "plans and prompts": "Skill ScheduleWakeup Cron* Task* ReportFindings AskUserQuestion ToolSearch *Plan* *goal "
    "request_user_input update_plan tool_search DeferredToolPlaceholder",
    "another program's server, which the person has set up": "*mcp_resource* *McpResource*",
    "the network": "WebFetch WebSearch web_search",
    "leaves a worktree, which is asked about when it is entered": "ExitWorktree",
    # Known limit (docs/threat-model.md): Codex asks no hook for it.
    "input for a program that was asked about when it began": "write_stdin",
}
_NAMED_OTHERWISE = {"exec_command": "Bash"}


@pytest.mark.parametrize("way", ["claude", pytest.param("claude_before", marks=LONG), "codex"])
def test_no_tool_of_a_client_is_unknown_here(laptop: AgentLaptop, way: str) -> None:
    """A version of a client that brings a new tool fails here, until somebody has decided whether it is asked about."""
    with FakeModel() as model:
        laptop.codex(model, "hello") if way == "codex" else laptop.claude(model, "hello", version=way)
    seen = model.conversation()
    names = set(seen.tools)
    deferred = re.search(r"deferred tools are now available.*?:\n((?:\w+\n)+)", seen.text)
    names |= set(deferred[1].split()) if deferred else set()
    assert ("Monitor" in names) == (way == "claude")
    file = "codex.json" if way == "codex" else "hooks.json"
    (entry,) = json.loads((PLUGIN / "hooks" / file).read_text())["hooks"]["PreToolUse"]
    asked = re.compile(entry["matcher"])
    others = " ".join(_NOT_OF_THIS_MACHINE.values()).split()
    # Tools of MCP servers, ours among them, say themselves where they act.
    for name in (name for name in names if not name.startswith("mcp__")):
        known = any(fnmatch.fnmatchcase(name, pattern) for pattern in others)
        assert known or asked.search(_NAMED_OTHERWISE.get(name, name)), name


@pytest.mark.parametrize("way", ["claude", pytest.param("claude_before", marks=LONG)])
def test_a_folder_name_is_no_shell_text(laptop: AgentLaptop, way: str) -> None:
    """The plugin may stand in a folder with any name; none of it is run."""
    odd = laptop.home / 'it\'s $(touch pwned) `touch pwned` "$HOME"'
    laptop.plugin.rename(odd)
    laptop.plugin = odd
    play(laptop, way, WAYS[way])
    assert len(read_calls(laptop)) == 3
    assert list(laptop.home.rglob("pwned")) == []


def test_the_hooks_files_hold_what_each_client_takes() -> None:
    claude = json.loads((PLUGIN / "hooks" / "hooks.json").read_text())
    codex = json.loads((PLUGIN / "hooks" / "codex.json").read_text())
    # One more key and Codex passes over the whole file without a word.
    assert set(codex) == {"description", "hooks"}
    (entry,) = claude["hooks"]["PreToolUse"]
    assert entry["hooks"][0]["onFailure"] == "block"
    for document in (claude, codex):
        assert set(document["hooks"]) == {"SessionStart", "UserPromptSubmit", "PreToolUse"}
        # Codex, and Claude Code before 2.1.330, let a command run whose hook has timed out.
        for event, entries in document["hooks"].items():
            assert [hook["timeout"] for hook in entries[0]["hooks"]] == [600 if event == "PreToolUse" else 10]
    assert Path(PLUGIN / "hooks" / "hooks.json").read_text().count("|| {") == 1
