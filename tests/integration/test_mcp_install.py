"""`runcode mcp install` for the six clients: their files, and with the real Claude Code and Codex."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.client_standin import RUNCODE, Person
from support.mcp_clients import client_environment, client_home, require_client

FILES = {
    "gemini": (".gemini/settings.json", "mcpServers"),
    "cursor": (".cursor/mcp.json", "mcpServers"),
    "vscode": (".config/Code/User/mcp.json", "servers"),
    "zed": (".config/zed/settings.json", "context_servers"),
    # Without their programs on PATH.
    "claude": (".claude.json", "mcpServers"),
}
COMMENTED = '// mine\n{\n  "a": 1, // kept\n  "%s": {\n    "other": {"command": "x",},\n  },\n}\n'


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


def install(person: Person, client: str, *words: str, expect: int = 0) -> dict[str, Any]:
    return dict(person.json("mcp", "install", "--client", client, *words, expect=expect))


@pytest.mark.parametrize("client", FILES)
def test_a_file_that_is_not_there_is_made_for_its_owner_alone(person: Person, client: str) -> None:
    name, container = FILES[client]
    file = person.home / name
    done = install(person, client)
    assert (done["path"], done["changed"], done["installed"]) == (str(file), True, True)
    entry = json.loads(file.read_text())[container]["runcode"]
    assert os.path.isabs(entry["command"])
    assert (entry["command"], entry["args"]) == (RUNCODE, ["mcp"])
    assert entry.get("type") == ("stdio" if client in ("claude", "vscode") else None)
    # Where our state is: a desktop program has no such variable.
    assert entry["env"] == {"XDG_RUNTIME_DIR": str(person.runtime)}
    assert file.stat().st_mode & 0o777 == 0o600
    assert install(person, client)["changed"] is False
    assert install(person, client, "--remove")["changed"] is True
    assert json.loads(file.read_text()) == {container: {}}
    assert install(person, client, "--remove")["changed"] is False


@pytest.mark.parametrize("client", [name for name in FILES if name != "claude"])
def test_comments_mode_and_link_stay_and_a_backup_is_kept(person: Person, client: str) -> None:
    name, container = FILES[client]
    link, real = person.home / name, person.home / "dotfiles" / "settings"
    real.parent.mkdir()
    link.parent.mkdir(parents=True)
    before = COMMENTED % container
    real.write_text(before)
    real.chmod(0o640)
    link.symlink_to(real)
    install(person, client)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert Path(f"{link}.bak").read_text() == before
    for line in before.splitlines():
        assert line in real.read_text()
    install(person, client, "--remove")
    assert real.read_text() == before


@pytest.mark.parametrize("client", FILES)
def test_another_programs_server_of_our_name_is_left_alone_unless_forced(person: Person, client: str) -> None:
    name, container = FILES[client]
    file = person.home / name
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({container: {"runcode": {"command": "/opt/else", "args": ["serve"]}}})
    file.write_text(text)
    for words in ((), ("--remove",)):
        assert install(person, client, *words, expect=1)["error"] == "conflict"
        assert file.read_text() == text
    assert install(person, client, "--force")["changed"] is True
    assert json.loads(file.read_text())[container]["runcode"]["command"] == RUNCODE


def test_a_runcode_elsewhere_is_ours_and_is_replaced(person: Person) -> None:
    file = person.home / ".cursor" / "mcp.json"
    file.parent.mkdir()
    old = {"command": "/old/place/runcode", "args": ["mcp"]}
    file.write_text(json.dumps({"mcpServers": {"runcode": old}}))
    assert install(person, "cursor")["changed"] is True
    assert json.loads(file.read_text())["mcpServers"]["runcode"]["command"] == RUNCODE


@pytest.mark.parametrize("client", FILES)
def test_a_file_that_is_not_understood_is_left_alone(person: Person, client: str) -> None:
    file = person.home / FILES[client][0]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{ half")
    assert install(person, client, expect=1)["error"] == "io_error"
    assert file.read_text() == "{ half"


def test_a_projects_file_names_no_folder_of_one_person(person: Person) -> None:
    for client, name in (("cursor", ".cursor/mcp.json"), ("vscode", ".vscode/mcp.json"), ("claude", ".mcp.json")):
        done = install(person, client, "--scope", "project")
        assert done["path"] == str(person.project / name)
        assert str(person.runtime) not in (person.project / name).read_text()
    assert install(person, "codex", "--scope", "project", expect=2)["error"] == "usage"


def test_codex_without_its_program_keeps_the_rest_of_its_file(person: Person) -> None:
    file = person.home / ".codex" / "config.toml"
    file.parent.mkdir()
    before = 'model = "m" # mine\n\n[mcp_servers.other]\ncommand = "x"\n'
    file.write_text(before)
    assert install(person, "codex")["changed"] is True
    assert file.read_text().startswith(before)
    entry = tomllib.loads(file.read_text())["mcp_servers"]["runcode"]
    assert (entry["command"], entry["args"]) == (RUNCODE, ["mcp"])
    assert install(person, "codex")["changed"] is False
    assert install(person, "codex", "--remove")["changed"] is True
    assert file.read_text().strip() == before.strip()


@pytest.mark.parametrize(
    "words", [["mcp", "install"], ["mcp", "--client", "zed"], ["mcp", "install", "--client", "emacs"]]
)
def test_half_a_wish_is_a_usage_error(person: Person, words: list[str]) -> None:
    assert person.json(*words, expect=2)["error"] == "usage"


# ---------------------------------------------------------------- the real programs


@pytest.fixture
def owner(person: Person) -> Iterator[Person]:
    with client_home() as home:
        person.environment = client_environment(home, person.environment)
        yield person


def ask(owner: Person, client: str, *words: str) -> str:
    command = [require_client(client), "mcp", *words]
    done = subprocess.run(
        command, env=owner.environment, cwd=owner.project, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.agents
def test_the_real_claude_code_knows_it_and_starts_it(owner: Person) -> None:
    assert install(owner, "claude")["changed"] is True
    assert install(owner, "claude")["changed"] is False
    told = ask(owner, "claude", "get", "runcode")
    assert RUNCODE in told
    assert "Connected" in told
    assert install(owner, "claude", "--remove")["changed"] is True
    assert RUNCODE not in ask(owner, "claude", "list")


@pytest.mark.agents
def test_the_real_codex_knows_it(owner: Person) -> None:
    assert install(owner, "codex")["changed"] is True
    assert install(owner, "codex")["changed"] is False
    known = json.loads(ask(owner, "codex", "get", "runcode", "--json"))
    assert (known["transport"]["command"], known["transport"]["args"]) == (RUNCODE, ["mcp"])
    assert install(owner, "codex", "--remove")["changed"] is True
    assert "runcode" not in ask(owner, "codex", "list", "--json")
