"""Which programs a shell text would start, for rules about commands: behind `env`, `timeout`, `sh -c` and the like too.

Owns: what is known of programs that start others. How text becomes commands is for
`core.shell_text`. `rules` (Claude Code) and `codex_rules` ask.

Guarantee: `list_calls` yields every simple command of the text and, for the programs
named here, what they would start. It may yield more than what runs. Where it cannot
tell which program runs, it raises Unclear. Not seen: what a script's file or another
program's own language holds (`make`, `python -c`), and arguments that an expansion makes.
"""

from __future__ import annotations

import os

from runcode.core.shell_text import SimpleCommand, Unclear, Word, list_commands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Programs whose arguments are a command again. Their own options are stepped over: every later word may begin it.
_WRAPPERS = frozenset(
    ("env", "command", "builtin", "exec", "nohup", "nice", "ionice", "time", "timeout", "stdbuf", "setsid")
    + ("sudo", "doas", "xargs", "noglob", "nocorrect", "repeat", "busybox", "chroot", "unshare", "strace", "flock")
    + ("taskset", "chrt", "setpriv", "prlimit", "watch", "parallel", "fakeroot", "unbuffer", "script", "su", "runuser")
)
_SHELLS = frozenset(("sh", "bash", "zsh", "dash", "ksh", "ash", "mksh", "rbash"))
# Programs of which any argument may be a shell text.
_READERS = _SHELLS | frozenset(("eval", "trap", "su", "runuser", "watch", "parallel", "script", "flock", "env", "ssh"))
_FIND_ACTIONS = ("-exec", "-execdir", "-ok", "-okdir")
_DEPTH_MAX = 5


def list_calls(text: str, depth: int = 0) -> Iterator[Sequence[Word]]:
    """Raises Unclear as `list_commands` does, and where an expansion decides which program runs."""
    if depth > _DEPTH_MAX:
        raise Unclear
    for command in list_commands(text):
        words = command.words
        for at in range(len(words)):
            if at and not _steps_over(words, at):
                continue
            yield from _list_from(command, words[at:], depth)


def _list_from(command: SimpleCommand, words: tuple[Word, ...], depth: int) -> Iterator[Sequence[Word]]:
    if words[0].literal is None:
        raise Unclear
    yield words
    name = os.path.basename(words[0].literal)
    if name == "alias" and any("=" in word.raw for word in words[1:]):
        raise Unclear  # another name for a command, which later lines may use
    if name in _SHELLS and _reads_input(command, words):
        raise Unclear
    if name in ("source", ".") and (command.redirections or any(word.raw.startswith("<(") for word in words)):
        raise Unclear
    if name not in _READERS:
        return
    literals = [word.literal for word in words[1:] if word.literal is not None]
    if len(literals) < len(words) - 1:
        raise Unclear
    # `eval` and `ssh` join their words. Option letters among them are harmless: no rule names those.
    texts = [" ".join(literals)] if name in ("eval", "ssh") else []
    texts += [literal for literal in literals if name in _SHELLS or any(c.isspace() for c in literal)]
    if name == "trap":
        texts = literals[:1]
    for one in texts:
        yield from list_calls(one, depth + 1)


def _reads_input(command: SimpleCommand, words: tuple[Word, ...]) -> bool:
    """Does a shell take its commands from what is piped in?"""
    if any("<<" in one for one in command.redirections):
        return True
    given = [word.raw for word in words[1:]]
    return all(one.startswith("-") for one in given) and "--version" not in given


def _steps_over(words: tuple[Word, ...], at: int) -> bool:
    """May the word at this place be the program that the words before it start?"""
    before = [word.literal for word in words[:at]]
    first = os.path.basename(before[0] or "")
    if first == "find":
        return before[-1] in _FIND_ACTIONS
    if None in before:
        return False
    return first in _WRAPPERS or (before[0] or "").startswith("-")
