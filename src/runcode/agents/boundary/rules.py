"""The person's own rules about shell commands in Claude Code: which are denied, and which want to be asked.

Claude Code matches its rules against the command that a hook has rewritten, so a rule
such as `Bash(git push:*)` would lose its effect while a workspace is attached. Here
they are matched against the command as the model wrote it.

Guarantee: a rule may bind more here than in Claude Code, and never less: every simple
command in the text is held against it, also behind `env`, `timeout`, `sh -c` and the
like; a text that cannot be read to its end counts as one that every rule matches.
Not seen: rules that stand nowhere in a file (`--disallowedTools`, answers given in this
session); the threat model says so.

Source: Claude Code's settings documentation, "Permission rule syntax".
"""

from __future__ import annotations

import glob
import json
import os
import re

from runcode.agents.boundary.calls import list_calls
from runcode.client.claude_settings import settings_path
from runcode.core.errors import RunCodeError
from runcode.core.shell_text import Unclear
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_RULE = re.compile(r"Bash(?:\((.*)\))?", re.DOTALL)
_MANAGED = ("/etc/claude-code", "/Library/Application Support/ClaudeCode")
_FILE_SIZE_MAX = 4 * 1024 * 1024


class Rules(Value):
    """What stands between the brackets of `Bash(…)`; "" for a bare `Bash`. `files` is where they come from."""

    deny: tuple[str, ...]
    ask: tuple[str, ...]
    allow: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def bind(self) -> bool:
        return bool(self.deny or self.ask)


NO_RULES = Rules(deny=(), ask=(), allow=(), files=())


def load_rules(environ: Mapping[str, str], project: str) -> Rules:
    """Raises `io_error` for a settings file that is there and cannot be read: its rules are then unknown."""
    found: dict[str, list[str]] = {"deny": [], "ask": [], "allow": []}
    files = []
    for path in _settings_files(environ, project):
        permissions = _read_permissions(path)
        counts = False
        for name, texts in found.items():
            given = permissions.get(name)
            for rule in given if isinstance(given, list) else []:
                match = _RULE.fullmatch(rule.strip()) if isinstance(rule, str) else None
                if match is not None:
                    texts.append(match[1] or "")
                    counts = counts or name != "allow"
        if counts:
            files.append(path)
    return Rules(deny=tuple(found["deny"]), ask=tuple(found["ask"]), allow=tuple(found["allow"]), files=tuple(files))


def _settings_files(environ: Mapping[str, str], project: str) -> Iterator[str]:
    for folder in _MANAGED:
        yield os.path.join(folder, "managed-settings.json")
        yield from sorted(glob.glob(os.path.join(glob.escape(folder), "managed-settings.d", "*.json")))
    yield settings_path(environ)
    for name in ("settings.json", "settings.local.json"):
        yield os.path.join(project, ".claude", name)


def _read_permissions(path: str) -> dict[str, object]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise _unreadable(path) from error
    with open(descriptor, "rb") as file:
        raw_settings = file.read(_FILE_SIZE_MAX + 1)
    try:
        settings = json.loads(raw_settings) if raw_settings.strip() else {}
    except (ValueError, RecursionError) as error:
        raise _unreadable(path) from error
    permissions = settings.get("permissions", {}) if isinstance(settings, dict) else None
    if not isinstance(permissions, dict):
        raise _unreadable(path)
    return permissions


def _unreadable(path: str) -> RunCodeError:
    return RunCodeError(
        "io_error", f"the permission rules in {path} cannot be read, so they cannot be kept", resolution="mend the file"
    )


def find_matching(rules: tuple[str, ...], command: str) -> str | None:
    """The first of the rules that binds for this shell text, as a person wrote it; None when none does."""
    if not rules:
        return None
    try:
        candidates = {command.strip(), *_list_candidates(command)}
    except Unclear:
        return _shown(rules[0])
    for rule in rules:
        pattern = _compile(rule)
        if any(pattern.fullmatch(candidate) for candidate in candidates):
            return _shown(rule)
    return None


def allows_whole(rules: tuple[str, ...], words: list[str]) -> bool:
    """Does a rule allow exactly this plain command? Only as it stands: what is behind a wrapper allows nothing."""
    return any(_compile(rule).fullmatch(" ".join(words)) for rule in rules)


def _shown(rule: str) -> str:
    return f"Bash({rule})" if rule else "Bash"


def _compile(rule: str) -> re.Pattern[str]:
    """`git push:*` and `git push *` match with and without further words; `*` elsewhere any text; "" everything."""
    # A star behind a backslash may be meant as itself; as any text it binds more.
    rule = rule.strip().replace("\\*", "*")
    if rule in ("", "*", ":*"):
        return re.compile(r".*", re.DOTALL)
    ending = ""
    for suffix in (":*", " *"):
        if rule.endswith(suffix):
            rule, ending = rule.removesuffix(suffix), r"(?:\s.*)?"
            break
    return re.compile(".*".join(re.escape(part) for part in rule.split("*")) + ending, re.DOTALL)


def _list_candidates(text: str) -> Iterator[str]:
    """What a rule may mean: each call as it stands, and as its program would get it."""
    for words in list_calls(text):
        yield " ".join(word.raw for word in words)
        # As the program gets them: the name without its folder too, and what an expansion decides as it stands.
        known = [word.raw if word.literal is None else word.literal for word in words]
        yield " ".join(known)
        yield " ".join([os.path.basename(known[0]), *known[1:]])
