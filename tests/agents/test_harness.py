"""The harness itself: what it says of the real clients is so, and what it must notice it notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.agent_clients import AgentLaptop
from support.executions import Execution, read_executions
from support.fake_model import Call, FakeModel
from support.file_watch import watch_files

pytest_plugins = ["support.agent_fixtures"]
LINE = "printf 'it'\"'\"'s \\\\n\\n'; id -u > here.txt"


@pytest.mark.agents
@pytest.mark.parametrize("version", ["claude", pytest.param("claude_before", marks=pytest.mark.agents_long)])
def test_what_claude_code_runs_here_is_seen(agent_laptop: AgentLaptop, version: str) -> None:
    script = [Call("Bash", command=LINE)]
    with FakeModel(script) as model, watch_files(agent_laptop.project) as changes:
        run = agent_laptop.claude(model, "hello", allow=["Bash"], plugin=False, version=version)
    assert (run.status, run.shell_lines, changes.seen) == (0, [LINE], ["+here.txt"])
    assert model.results[0].text == "it's \\n"
    assert ["id", "-u"] in [one.argv for one in run.executions]


@pytest.mark.agents
def test_a_subagent_is_a_conversation_of_its_own(agent_laptop: AgentLaptop) -> None:
    ask = Call("Agent", description="look", prompt="MARK-7 go", subagent_type="general-purpose")
    with FakeModel([ask], others={"MARK-7": [Call("Bash", command="echo from $CLAUDE_CODE_SESSION_ID")]}) as model:
        run = agent_laptop.claude(model, "hello", allow=["Bash", "Agent"], plugin=False)
    assert model.conversation("MARK-7").results[0].text == f"from {run.session_id}"
    assert run.shell_lines == ["echo from $CLAUDE_CODE_SESSION_ID"]


@pytest.mark.agents
def test_a_deny_rule_reaches_claude_code(agent_laptop: AgentLaptop) -> None:
    with FakeModel([Call("Bash", command="id -u")]) as model:
        run = agent_laptop.claude(model, "hello", allow=["Bash"], deny=["Bash(id:*)"], plugin=False)
    assert model.results[0].is_error
    assert run.shell_lines == []


@pytest.mark.agents
def test_what_codex_runs_here_is_seen(agent_laptop: AgentLaptop) -> None:
    with FakeModel([Call("exec_command", cmd=LINE)]) as model, watch_files(agent_laptop.project) as changes:
        run = agent_laptop.codex(model, "hello")
    assert (run.status, run.shell_lines, changes.seen) == (0, [LINE], ["+here.txt"])
    assert "it's \\n" in model.results[0].text
    assert ["id", "-u"] in [one.argv for one in run.executions]


def test_a_line_that_strace_cut_or_garbled_is_not_passed_over(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text('7 execve("/bin/sh", ["sh", "-c", "echo \\"\\\\n\\" \\x7f"], 0x1 /* 3 vars */) = 0\n')
    assert read_executions(trace) == [Execution(7, "/bin/sh", ["sh", "-c", 'echo "\\n" \x7f'])]
    assert read_executions(trace)[0].shell_line == 'echo "\\n" \x7f'
    for bad in (
        '7 execve("/bin/sh", ["sh", "-c"...], 0x1 /* 3 vars */) = 0',
        '7 execve("/bin/sh", 0x5, 0x1) = 0',
        '7 execve("/bin/sh", ["sh", "abc"...], 0x1 /* 3 vars */) = 0',
    ):
        trace.write_text(bad + "\n")
        with pytest.raises(AssertionError):
            read_executions(trace)
    trace.write_text(
        '7 execve("/bin/sh", ["sh"], 0x1 /* 3 vars */ <unfinished ...>\n9 execve("/x", ["x"], 0x1) = -1 ENOENT\n'
        "7 <... execve resumed>) = 0\n"
    )
    assert read_executions(trace) == [Execution(7, "/bin/sh", ["sh"])]


def test_the_watch_sees_content_mode_and_links(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a")
    (tmp_path / "gone").write_text("a")
    (tmp_path / "mode").write_text("a")
    with watch_files(tmp_path) as changes:
        (tmp_path / "kept").write_text("b")
        (tmp_path / "gone").unlink()
        (tmp_path / "mode").chmod(0o755)
        (tmp_path / "new").symlink_to("kept")
    assert changes.seen == ["+new", "-gone", "~kept", "~mode"]
