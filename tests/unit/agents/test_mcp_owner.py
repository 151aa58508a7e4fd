"""Whose attachment an MCP call counts for, and which local files it may touch: by construction, without a client."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runcode.agents.mcp.local_paths import find_agents_folder, require_local
from runcode.agents.mcp.sessions import (
    FROM_ENVIRONMENT,
    FROM_HOOK,
    FROM_REQUEST,
    OWN,
    Caller,
    choose_owner,
    parse_thread_id,
)
from runcode.client.agent_processes import find_remembered_session, remember_session
from runcode.client.settings import Settings, load_settings
from runcode.core.errors import RunCodeError

ME = os.getpid()


def settings_of(home: Path, **environ: str) -> Settings:
    return load_settings({"HOME": str(home), **environ})


def caller(client: str, *, thread_id: str = "", parent_pid: int = ME) -> Caller:
    return Caller(client=client, thread_id=thread_id, parent_pid=parent_pid, own_key="mcp:own")


def test_codex_names_its_thread_and_nobody_else_can(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    assert parse_thread_id("codex-mcp-client", {"threadId": "01a2"}) == "01a2"
    assert parse_thread_id("codex-mcp-client", {"threadId": "of-a-subagent", "sessionId": "01a2"}) == "01a2"
    for client, meta in (
        ("claude-code", {"threadId": "01a2"}),
        ("", {"threadId": "01a2"}),
        ("codex-mcp-client", {"threadId": "a+claude:x"}),
        ("codex-mcp-client", {"threadId": "a" * 200}),
        ("codex-mcp-client", {"threadId": 7}),
        ("codex-mcp-client", {}),
    ):
        assert parse_thread_id(client, meta) == "", (client, meta)
    owner = choose_owner(caller("codex-mcp-client", thread_id="01a2"), settings)
    assert (owner.key, owner.told_by) == ("codex:01a2", FROM_REQUEST)


def test_a_codex_without_a_thread_takes_no_session_from_its_environment(tmp_path: Path) -> None:
    """It may have been started by Claude Code, whose session that is."""
    settings = settings_of(tmp_path, CLAUDE_CODE_SESSION_ID="outer")
    assert choose_owner(caller("codex-mcp-client"), settings).told_by == OWN


def test_claude_code_is_what_its_environment_says_until_a_hook_knows_better(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, CLAUDE_CODE_SESSION_ID="first")
    owner = choose_owner(caller("claude-code"), settings)
    assert (owner.key, owner.told_by) == ("claude:first", FROM_ENVIRONMENT)
    assert remember_session(settings, ME, "claude:second") is True
    owner = choose_owner(caller("claude-code"), settings)
    assert (owner.key, owner.told_by) == ("claude:second", FROM_HOOK)


def test_an_editor_in_an_agents_environment_is_not_that_agent(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, CLAUDE_CODE_SESSION_ID="outer")
    assert choose_owner(caller("some-editor", parent_pid=1), settings).told_by == OWN


def test_a_record_of_another_process_with_the_same_number_counts_for_nothing(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    remember_session(settings, ME, "claude:mine")
    record = Path(settings.cache_folder) / "agents" / str(ME)
    assert find_remembered_session(settings, ME) == "claude:mine"
    born, _, key = record.read_text().partition(" ")
    record.write_text(f"{int(born) + 1} {key}")
    assert find_remembered_session(settings, ME) is None
    record.write_text(f"{born} mcp:forged key\n")
    assert find_remembered_session(settings, ME) is None
    record.write_text("")
    assert find_remembered_session(settings, ME) is None


@pytest.mark.parametrize("key", ["", "claude:", "mcp:x", "claude:a b", "claude:../x", "claude:a\ncodex:b"])
def test_odd_keys_are_not_remembered(tmp_path: Path, key: str) -> None:
    settings = settings_of(tmp_path)
    assert remember_session(settings, ME, key) is False
    assert find_remembered_session(settings, ME) is None


def test_local_paths_stay_in_the_working_folder(tmp_path: Path) -> None:
    project = tmp_path / "home" / "project"
    project.mkdir(parents=True)
    (project / "out").symlink_to(tmp_path)
    environ = {"HOME": str(tmp_path / "home")}
    assert require_local("a/b", environ, str(project)) == str(project / "a" / "b")
    for path in ("..", "../x", "/etc/passwd", "out/x", "out", "~root/../../x/../../.."):
        with pytest.raises(RunCodeError) as caught:
            require_local(path, environ, str(project))
        assert caught.value.code == "unsafe_path"


def test_a_server_in_its_plugins_folder_goes_where_the_agent_is(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    (plugin / ".codex-plugin").mkdir(parents=True)
    assert find_agents_folder(str(plugin), ME) == os.getcwd()
    assert find_agents_folder(str(tmp_path), ME) is None
    assert find_agents_folder(str(plugin), 2**22 + 1) is None


def test_neither_root_nor_a_home_is_a_working_folder(tmp_path: Path) -> None:
    """A desktop program starts its servers there."""
    home = tmp_path / "home"
    home.mkdir()
    for cwd in ("/", str(home), str(tmp_path)):
        with pytest.raises(RunCodeError):
            require_local("x", {"HOME": str(home)}, cwd)
    allowed = {"HOME": str(home), "RUNCODE_MCP_LOCAL": f"{home}/project:relative"}
    assert require_local(f"{home}/project/x", allowed, "/") == f"{home}/project/x"
    with pytest.raises(RunCodeError):
        require_local("relative/x", allowed, str(tmp_path))
