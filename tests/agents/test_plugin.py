"""The plugin as the clients judge it: valid, installable from each of its marketplaces, seen whole, and cheap."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

import runcode
from support.agent_clients import PLUGIN, PROGRAMS, ROOT, AgentLaptop, copy_marketplace

pytest_plugins = ["support.agent_fixtures"]
SKILLS = sorted(folder.name for folder in (PLUGIN / "skills").iterdir())
EXPECTED = ["config-ssh", "connect", "context", "disconnect", "doctor", "forward", "list", "login", "ssh"]
EXPECTED += ["statusline", "stop"]
ALWAYS_ON_MAX = 400


# ---------------------------------------------------------------- validators


@pytest.mark.agents
@pytest.mark.parametrize("options", [("--strict",), ("--strict", "--profile", "directory")])
def test_claude_code_finds_nothing_to_complain_of(agent_laptop: AgentLaptop, options: tuple[str, ...]) -> None:
    said = agent_laptop.ask_client("claude", "plugin", "validate", *options, str(agent_laptop.plugin)).stdout
    assert "Validation passed" in said
    assert not re.search(r"[✘⚠]|Found \d+ ", said), said


@pytest.mark.agents
def test_the_older_claude_code_takes_it_too(agent_laptop: AgentLaptop) -> None:
    for folder in (agent_laptop.plugin, copy_marketplace(agent_laptop.plugin)):
        said = agent_laptop.ask_client("claude_before", "plugin", "validate", str(folder)).stdout
        assert "Validation passed" in said
        assert "warning" not in said.lower(), said
    # The marketplace's manifest stands in the way of the plugin's own: judged apart.
    (agent_laptop.plugin / ".claude-plugin" / "marketplace.json").unlink()
    said = agent_laptop.ask_client("claude_before", "plugin", "validate", str(agent_laptop.plugin)).stdout
    assert "Validation passed" in said
    assert "warning" not in said.lower(), said


@pytest.mark.agents
@pytest.mark.agents_long
def test_the_validator_would_say_so(agent_laptop: AgentLaptop) -> None:
    """What these tests trust: a hook that Claude Code does not know fails the same call."""
    file = agent_laptop.plugin / "hooks" / "hooks.json"
    file.write_text(file.read_text().replace('"UserPromptSubmit"', '"BeforePrompt"'))
    done = agent_laptop.ask_client("claude", "plugin", "validate", "--strict", str(agent_laptop.plugin), expect=None)
    assert done.returncode != 0


# ---------------------------------------------------------------- marketplaces


@pytest.mark.agents
@pytest.mark.parametrize("version", ["claude", pytest.param("claude_before", marks=pytest.mark.agents_long)])
@pytest.mark.parametrize("of_root", [True, False], ids=["the-repository", "the-folder-itself"])
def test_it_installs_in_claude_code(agent_laptop: AgentLaptop, of_root: bool, version: str) -> None:
    marketplace = copy_marketplace(agent_laptop.plugin) if of_root else agent_laptop.plugin
    agent_laptop.ask_client(version, "plugin", "marketplace", "add", str(marketplace))
    agent_laptop.ask_client(version, "plugin", "install", "runcode@runcode")
    (one,) = json.loads(agent_laptop.ask_client(version, "plugin", "list", "--json").stdout)
    assert (one["id"], one["enabled"], one["version"]) == ("runcode@runcode", True, runcode.__version__)
    assert not one.get("errors")


@pytest.mark.agents
def test_claude_code_counts_all_of_it_and_few_tokens(agent_laptop: AgentLaptop) -> None:
    agent_laptop.ask_client("claude", "plugin", "marketplace", "add", str(agent_laptop.plugin))
    agent_laptop.ask_client("claude", "plugin", "install", "runcode@runcode")
    said = agent_laptop.ask_client("claude", "plugin", "details", "runcode").stdout
    assert f"Skills ({len(EXPECTED)})  {', '.join(EXPECTED)}" in said
    assert "SessionStart, UserPromptSubmit, PreToolUse" in said
    always_on = re.search(r"Always-on: +~(\d+) tok", said)
    assert always_on is not None, said
    assert int(always_on[1]) <= ALWAYS_ON_MAX


@pytest.mark.agents
def test_it_installs_in_codex(agent_laptop: AgentLaptop) -> None:
    installed = agent_laptop.install_in_codex()
    (one,) = json.loads(agent_laptop.ask_client("codex", "plugin", "list", "--json").stdout)["installed"]
    assert (one["pluginId"], one["enabled"], one["version"]) == ("runcode@runcode", True, runcode.__version__)
    (server,) = json.loads(agent_laptop.ask_client("codex", "mcp", "list", "--json").stdout)
    command = Path(server["transport"]["cwd"]) / server["transport"]["command"]
    assert command.resolve() == (installed / "bin" / "runcode").resolve()
    assert server["transport"]["args"] == ["mcp"]


@pytest.mark.agents
def test_codex_sees_each_hook_and_warns_of_none(agent_laptop: AgentLaptop) -> None:
    agent_laptop.install_in_codex()
    (listed,) = ask_app_server(agent_laptop, "hooks/list", {"cwds": [str(agent_laptop.project)]})["data"]
    assert (listed["warnings"], listed["errors"]) == ([], [])
    assert [hook["eventName"] for hook in listed["hooks"]] == [
        "preToolUse",
        "sessionStart",
        "userPromptSubmit",
    ]
    # Nobody but the person may trust them.
    assert {hook["trustStatus"] for hook in listed["hooks"]} == {"untrusted"}


@pytest.mark.agents
@pytest.mark.agents_long
def test_codex_drops_a_hooks_file_with_one_unknown_key(agent_laptop: AgentLaptop) -> None:
    """Why hooks/codex.json is a file of its own: Claude Code's keys would cost every hook."""
    file = agent_laptop.plugin / "hooks" / "codex.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "modules": []}))
    agent_laptop.install_in_codex()
    (listed,) = ask_app_server(agent_laptop, "hooks/list", {"cwds": [str(agent_laptop.project)]})["data"]
    assert listed["hooks"] == []


def ask_app_server(laptop: AgentLaptop, method: str, parameters: dict[str, Any]) -> Any:
    """One question to Codex's app-server, as the app asks it."""
    server = subprocess.Popen(
        [str(PROGRAMS["codex"]), "app-server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=laptop.environment,
        cwd=laptop.project,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    client = {"clientInfo": {"name": "runcode-tests", "version": "0"}}
    try:
        for message in (
            {"id": 1, "method": "initialize", "params": client},
            {"method": "initialized"},
            {"id": 2, "method": method, "params": parameters},
        ):
            server.stdin.write(json.dumps(message) + "\n")
            server.stdin.flush()
        for line in server.stdout:
            answer = json.loads(line)
            if answer.get("id") == 2:
                return answer["result"]
        raise AssertionError("Codex's app-server ended without an answer")
    finally:
        server.kill()
        server.communicate()


# ---------------------------------------------------------------- the folder


def load(name: str) -> Any:
    return json.loads((ROOT / name).read_text())


def test_there_is_one_name_and_one_version() -> None:
    for manifest in ("plugin/.claude-plugin/plugin.json", "plugin/.codex-plugin/plugin.json"):
        assert (load(manifest)["name"], load(manifest)["version"]) == ("runcode", runcode.__version__)
    for marketplace, source in (
        (".claude-plugin/marketplace.json", "./plugin"),
        ("plugin/.claude-plugin/marketplace.json", "./"),
        (".agents/plugins/marketplace.json", {"source": "local", "path": "./plugin"}),
    ):
        (plugin,) = load(marketplace)["plugins"]
        assert (load(marketplace)["name"], plugin["name"], plugin["source"]) == ("runcode", "runcode", source)
    pinned = PLUGIN / "bin" / "RUNCODE_VERSION"
    assert not pinned.exists() or pinned.read_text().strip().lstrip("v") == runcode.__version__


def test_every_file_that_a_manifest_names_is_there() -> None:
    for manifest in (".claude-plugin/plugin.json", ".codex-plugin/plugin.json"):
        text = (PLUGIN / manifest).read_text()
        named = re.findall(r'"(\./[^"]*)"', text)
        assert named
        for path in named:
            assert (PLUGIN / path).exists(), path


def test_the_icon_is_a_square_png_of_a_size_that_directories_take() -> None:
    head = (PLUGIN / "assets" / "icon.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert width == height
    assert 512 <= width <= 2048


def test_the_plugin_carries_the_license_of_the_project() -> None:
    assert (PLUGIN / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_folder_holds_no_logic_but_the_launchers() -> None:
    """A plugin's folder is copied and cached by clients: what decides stands in the program, which is verified."""
    allowed = {".json", ".md", ".png", ".yaml", ".ts", ""}
    for path in PLUGIN.rglob("*"):
        if path.is_file() and path.parent != PLUGIN / "bin":
            assert path.suffix in allowed, path
