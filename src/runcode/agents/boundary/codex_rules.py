"""The person's own rules about commands in Codex (`*.rules` files), asked of Codex itself.

Codex takes a hook's rewritten command only with `allow`, which would pass over them.

Guarantee: where a file of rules forbids anything or wants to be asked about it, every
simple command of the text is put before the real `codex execpolicy check`; what cannot
be read, or cannot be asked, is refused.

Source: `codex execpolicy check --help` of Codex 0.169.0.
"""

from __future__ import annotations

import glob
import json
import os
import subprocess

from runcode.agents.boundary.calls import list_calls
from runcode.client import processes
from runcode.client.agent_processes import find_parent
from runcode.core.errors import RunCodeError
from runcode.core.shell_text import Unclear

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT_S = 20
_COMMANDS_MAX = 50
_ANCESTORS_MAX = 8
_BINDING = (b"forbidden", b"prompt")


def find_forbidding(command: str, environ: Mapping[str, str], folder: str) -> str | None:
    """Why a rule keeps this command from running unasked, for the model; None when none does."""
    files = [path for path in list_rule_files(environ, folder) if _may_bind(path)]
    if not files:
        return None
    try:
        commands = _list_words(command)
    except Unclear:
        return "the person has rules about commands, and this one cannot be read to its end: write it plainly"
    for words in commands:
        decision = _ask_codex(words, files, environ)
        if decision in ("forbidden", "prompt"):
            verb = "forbid" if decision == "forbidden" else "want to be asked about"
            return f"the person's own Codex rules {verb} `{' '.join(words[:3])}`, on the workspace as here"
    return None


def list_rule_files(environ: Mapping[str, str], folder: str) -> list[str]:
    home = environ.get("CODEX_HOME") or os.path.join(environ.get("HOME", ""), ".codex")
    places = [os.path.join(home, "rules"), "/etc/codex/rules"]
    while True:
        places.append(os.path.join(folder, ".codex", "rules"))
        if os.path.dirname(folder) == folder:
            break
        folder = os.path.dirname(folder)
    return [path for place in places for path in sorted(glob.glob(os.path.join(glob.escape(place), "*.rules")))]


def _may_bind(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            text = file.read(4 * 1024 * 1024)
    except OSError:
        return True
    return any(word in text for word in _BINDING)


def _list_words(command: str) -> list[list[str]]:
    found: list[list[str]] = []
    for call in list_calls(command):
        words = [word.literal for word in call if word.literal is not None]
        if len(words) < len(call):
            raise Unclear
        if words not in found:
            found.append(words)
        plain = [os.path.basename(words[0]), *words[1:]]
        if plain not in found:
            found.append(plain)
        if len(found) > _COMMANDS_MAX:
            raise Unclear
    return found


def _ask_codex(words: list[str], files: list[str], environ: Mapping[str, str]) -> str:
    rules = [word for path in files for word in ("--rules", path)]
    try:
        codex = _find_codex(environ)
        done = subprocess.run(
            [codex, "execpolicy", "check", *rules, "--", *words],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        said = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise _unknown() from error
    except RunCodeError as error:
        raise _unknown() from error
    if not isinstance(said, dict):
        raise _unknown()
    decision = said.get("decision", "allow")
    return decision if isinstance(decision, str) else "forbidden"


def _find_codex(environ: Mapping[str, str]) -> str:
    """The very Codex that called the hook, where the system tells; else the one on PATH."""
    pid: int | None = os.getppid()
    for _ in range(_ANCESTORS_MAX):
        if pid is None or pid <= 1:
            break
        try:
            program = os.readlink(f"/proc/{pid:d}/exe")
        except OSError:
            break
        if os.path.basename(program) == "codex" and os.access(program, os.X_OK):
            return program
        pid = find_parent(pid)
    return processes.find_program("codex", environ)


def _unknown() -> RunCodeError:
    return RunCodeError(
        "io_error",
        "your Codex rules cannot be asked, so they cannot be kept",
        resolution="`codex execpolicy check` says why",
    )
