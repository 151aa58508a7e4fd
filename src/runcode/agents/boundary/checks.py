"""What `runcode doctor` says of the machine boundary: exemptions, and which rules of the person's bind.

Each check is (name, status, detail), in the words of `client.doctor`. Nothing is repaired.
"""

from __future__ import annotations

import os

from runcode.agents.boundary import codex_rules, rules
from runcode.agents.boundary.exemptions import exemptions_path, load_exemptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runcode.client.settings import Settings

OK, WARN = "ok", "warn"


def list_checks(settings: Settings) -> Iterator[tuple[str, Callable[[], tuple[str, str]]]]:
    yield "boundary", lambda: _exemptions(settings)
    yield "claude_rules", lambda: _claude_rules(settings)
    yield "codex_rules", lambda: _codex_rules(settings)


def _exemptions(settings: Settings) -> tuple[str, str]:
    found = load_exemptions(settings)
    path = exemptions_path(settings)
    if not found.commands and not found.paths:
        return OK, f"while attached, an agent runs nothing on this machine (exempt commands and paths in {path})"
    commands = ", ".join(" ".join(words) for words in found.commands) or "none"
    return WARN, f"{path} lets agents run here: {commands}; touch here: {', '.join(found.paths) or 'nothing'}"


def _claude_rules(settings: Settings) -> tuple[str, str]:
    found = rules.load_rules(settings.environ, settings.cwd)
    if not found.bind:
        return (
            OK,
            "no deny or ask rule for Bash in Claude Code's settings; rules given on its command line are not seen",
        )
    shown = ", ".join(f"Bash({rule})" if rule else "Bash" for rule in (*found.deny, *found.ask))
    return OK, f"these bind on a workspace too: {shown} (from {', '.join(found.files)})"


def _codex_rules(settings: Settings) -> tuple[str, str]:
    files = codex_rules.list_rule_files(settings.environ, os.path.realpath(settings.cwd))
    if not files:
        return OK, "no rules of Codex's about commands"
    return OK, f"Codex's own rules bind on a workspace too: {', '.join(files)}"
