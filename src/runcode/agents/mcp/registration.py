"""Our MCP server in a client's settings: put in, taken out, and never over somebody else's.

Owns: where each client keeps its servers, and the shape of an entry there. A client
that has a command for it and is on PATH is asked to do it itself; else its file is
edited (`core.jsonc`, `core.toml_tables`) as any file of the person's
(`client.person_files`: backed up, atomic, through links, mode kept).

Guarantee: an entry named `runcode` that does not start a runcode is replaced or taken
out only by force; all else in the file stays byte for byte; twice is like once.
"""

from __future__ import annotations

import json
import os
import re

from runcode.client import platforms
from runcode.client.person_files import read_person_file, replace_person_file
from runcode.client.processes import find_program
from runcode.core import jsonc, toml_tables
from runcode.core.errors import RunCodeError
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

NAME = "runcode"
# Codex and desktop programs give a server next to nothing of the environment: what says where our state is.
KEPT_VARIABLES = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "RUNCODE_MCP_LOCAL")
_OURS = re.compile(r"(?:^|[\\/])runcode[^\\/]*$")
_ATTEMPTS = 5
_COMMAND_TIMEOUT_S = 60
# (JSON clients) where the servers stand in the file.
_CONTAINERS = {
    "claude": "mcpServers",
    "gemini": "mcpServers",
    "cursor": "mcpServers",
    "vscode": "servers",
    "zed": "context_servers",
}


class Wish(Value):
    """Whose settings, for the person (`user`) or the folder `cwd` (`project`); `program` is our absolute path."""

    client: str
    scope: str
    program: str
    force: bool
    environ: Mapping[str, str]
    cwd: str


class Done(Value):
    path: str
    changed: bool


def install(wish: Wish) -> Done:
    """Raises `conflict` over another program's server of our name."""
    path = settings_path(wish)
    found = _find_entry(wish, path)
    wanted = render_entry(wish)
    if found is not None and not is_ours(found) and not wish.force:
        raise _foreign(path)
    if found == wanted:
        return Done(path=path, changed=False)
    if _has_command(wish):
        if found is not None:
            _ask_client(wish, ["mcp", "remove", *_scope_words(wish), NAME])
        _ask_client(wish, _add_words(wish))
        if not is_ours(_find_entry(wish, path)):
            raise RunCodeError(
                "io_error", f"{wish.client} did not put the server into {path}", resolution="see its own message, retry"
            )
        return Done(path=path, changed=True)
    return Done(path=path, changed=_edit(path, lambda text: _set(wish, text, wanted)))


def remove(wish: Wish) -> Done:
    """Take our server out, if it is ours."""
    path = settings_path(wish)
    found = _find_entry(wish, path)
    if found is None:
        return Done(path=path, changed=False)
    if not is_ours(found) and not wish.force:
        raise _foreign(path)
    if _has_command(wish):
        _ask_client(wish, ["mcp", "remove", *_scope_words(wish), NAME])
        return Done(path=path, changed=True)
    return Done(path=path, changed=_edit(path, lambda text: _unset(wish, text)))


def settings_path(wish: Wish) -> str:
    """The file that holds this client's servers. Raises `usage` for a scope that it does not have."""
    home = platforms.current().home(wish.environ)
    config = wish.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    claude = os.path.join(wish.environ.get("CLAUDE_CONFIG_DIR") or home, ".claude.json")
    codex = os.path.join(wish.environ.get("CODEX_HOME") or os.path.join(home, ".codex"), "config.toml")
    paths = {
        ("claude", "user"): claude,
        ("claude", "project"): os.path.join(wish.cwd, ".mcp.json"),
        ("codex", "user"): codex,
        ("gemini", "user"): os.path.join(home, ".gemini", "settings.json"),
        ("gemini", "project"): os.path.join(wish.cwd, ".gemini", "settings.json"),
        ("cursor", "user"): os.path.join(home, ".cursor", "mcp.json"),
        ("cursor", "project"): os.path.join(wish.cwd, ".cursor", "mcp.json"),
        ("vscode", "user"): os.path.join(_vscode_folder(wish, home, config), "mcp.json"),
        ("vscode", "project"): os.path.join(wish.cwd, ".vscode", "mcp.json"),
        ("zed", "user"): os.path.join(config, "zed", "settings.json"),
        ("zed", "project"): os.path.join(wish.cwd, ".zed", "settings.json"),
    }
    found = paths.get((wish.client, wish.scope))
    if found is None:
        raise RunCodeError(
            "usage", f"{wish.client} has no servers for one project", resolution="leave out `--scope project`"
        )
    return found


def _vscode_folder(wish: Wish, home: str, config: str) -> str:
    system = platforms.current()
    if system.is_windows:
        return os.path.join(wish.environ.get("APPDATA") or os.path.join(home, "AppData", "Roaming"), "Code", "User")
    mac = os.path.join(home, "Library", "Application Support", "Code", "User")
    return mac if os.path.isdir(mac) else os.path.join(config, "Code", "User")


def render_entry(wish: Wish) -> dict[str, Any]:
    """What starts our server, in this client's shape."""
    entry: dict[str, Any] = {"command": wish.program, "args": ["mcp"]}
    kept = {name: wish.environ[name] for name in KEPT_VARIABLES if wish.environ.get(name)}
    if wish.client in ("claude", "vscode"):
        entry = {"type": "stdio", **entry}
    # A project's file is shared with others, whose folders are elsewhere.
    if wish.client == "claude" or (kept and wish.scope == "user"):
        entry["env"] = kept if wish.scope == "user" else {}
    return entry


def is_ours(entry: Any) -> bool:
    """Does it start `runcode mcp`, wherever that is installed?"""
    if not isinstance(entry, dict):
        return False
    command, words = entry.get("command"), entry.get("args")
    return isinstance(command, str) and _OURS.search(command) is not None and words == ["mcp"]


def _find_entry(wish: Wish, path: str) -> Any:
    text = _text_of(read_person_file(path), path)
    if wish.client == "codex":
        return toml_tables.find_table(text, ("mcp_servers", NAME))
    return jsonc.find(jsonc.parse(text), (_CONTAINERS[wish.client], NAME))


def _set(wish: Wish, text: str, entry: dict[str, Any]) -> str:
    if wish.client == "codex":
        return toml_tables.set_table(text, ("mcp_servers", NAME), entry)
    return jsonc.set_member(text, (_CONTAINERS[wish.client], NAME), entry)


def _unset(wish: Wish, text: str) -> str:
    if wish.client == "codex":
        return toml_tables.remove_table(text, ("mcp_servers", NAME))
    return jsonc.remove_member(text, (_CONTAINERS[wish.client], NAME))


def _edit(path: str, change: Callable[[str], str]) -> bool:
    for _ in range(_ATTEMPTS):
        before = read_person_file(path)
        text = _text_of(before, path)
        after = change(text)
        if after == text:
            return False
        if replace_person_file(path, before, after.encode("utf-8", "surrogatepass")):
            return True
    raise RunCodeError("busy", f"{path} keeps changing under us", resolution="close the program, then retry")


def _text_of(content: bytes | None, path: str) -> str:
    try:
        return (content or b"").decode("utf-8")
    except UnicodeDecodeError as error:
        raise RunCodeError("io_error", f"{path} is not UTF-8, so it was left as it is") from error


# ---------------------------------------------------------------- a client's own command


def _has_command(wish: Wish) -> bool:
    if wish.client not in ("claude", "codex"):
        return False
    try:
        find_program(wish.client, wish.environ)
    except RunCodeError:
        return False
    return True


def _scope_words(wish: Wish) -> list[str]:
    return ["--scope", wish.scope] if wish.client == "claude" else []


def _add_words(wish: Wish) -> list[str]:
    entry = render_entry(wish)
    if wish.client == "claude":
        return ["mcp", "add-json", *_scope_words(wish), NAME, json.dumps(entry)]
    given = [word for name, value in entry.get("env", {}).items() for word in ("--env", f"{name}={value}")]
    return ["mcp", "add", NAME, *given, "--", entry["command"], *entry["args"]]


def _ask_client(wish: Wish, words: list[str]) -> None:
    import subprocess

    program = find_program(wish.client, wish.environ)
    secrets = ("RUNCODE_TOKEN",)
    environment = {name: value for name, value in wish.environ.items() if name not in secrets}
    try:
        done = subprocess.run(
            [program, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            cwd=wish.cwd,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunCodeError("io_error", f"`{wish.client} mcp` did not run: {type(error).__name__}") from error
    if done.returncode != 0:
        told = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise RunCodeError("io_error", f"`{wish.client} mcp` refused: {told[:300]}")


def _foreign(path: str) -> RunCodeError:
    return RunCodeError(
        "conflict",
        f"{path} has another MCP server that is called {NAME}",
        resolution="`--force` replaces it; the file before is kept with `.bak` behind its name",
    )
