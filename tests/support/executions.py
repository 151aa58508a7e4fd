"""Which programs were started below a process: the kernel's word for it, read from strace's own lines.

A command that an agent runs on the laptop must start a program there; one that runs
on a workspace starts it below the box's keeper, in another tree. So this list, and no
file that a command may or may not have left behind, decides where something ran.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

SHELLS = frozenset({"sh", "bash", "dash", "zsh", "fish"})
_LINE = re.compile(
    r'^(?P<pid>\d+) +exec(?:ve|veat)\((?:\w+, )?"(?P<path>(?:[^"\\]|\\.)*)", \[(?P<argv>.*)\], .*= 0$', re.ASCII
)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(\.\.\.)?', re.ASCII)
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|[0-7]{1,3}|.)")
_NAMED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f"}
# How Claude Code frames a command: its shell snapshot first, the folder it ended in last.
_FRAME = re.compile(r"(?s)^.*? && eval (?P<line>.+?)(?: \\?< /dev/null)? && pwd -P >\| \S+$")
# What the clients run in a shell for themselves, before and around a model's command.
_HOUSEKEEPING = re.compile(
    r"env$|ps aux \| grep -E \"code\|cursor|SNAPSHOT_FILE="
    r"|__CODEX_SNAPSHOT_OVERRIDE_|set -e; \. \"[^\"\n]*/shell_snapshots/[^\"\n]*\"$|if \[ -z \"\$\{BASH_ENV-\}\" \]"
)


@dataclass(frozen=True)
class Execution:
    pid: int
    program: str
    argv: list[str]

    @property
    def shell_line(self) -> str | None:
        """What this shell was given with `-c`, without the client's frame around it.

        None for another program, for a shell that runs a file, and for what the client
        asks a shell on its own account.
        """
        if os.path.basename(self.program) not in SHELLS:
            return None
        options = 1
        while options < len(self.argv) and self.argv[options].startswith("-"):
            options += 1
        if options == len(self.argv) or not any("c" in word for word in self.argv[1:options] if word[:2] != "--"):
            return None
        framed = _FRAME.match(self.argv[options])
        line = _unquote(framed["line"]) if framed else self.argv[options]
        return None if not framed and _HOUSEKEEPING.match(line) else line


def _unquote(text: str) -> str:
    """One shell word in single quotes, as it was before them."""
    if text.startswith("'") and text.endswith("'"):
        return text[1:-1].replace("'\"'\"'", "'").replace("'\\''", "'")
    return text


def read_executions(trace: Path) -> list[Execution]:
    """The successful starts in a trace of `strace -f -e trace=execve,execveat -o`, oldest first.

    A line that cannot be read, or one that strace cut, raises: what is not understood
    may be the one start that a test is about.
    """
    found, unfinished = [], {}
    for line in trace.read_text(errors="surrogateescape").splitlines():
        if " <unfinished ...>" in line:
            pid = line.split(None, 1)[0]
            unfinished[pid] = line.partition(" <unfinished ...>")[0]
            continue
        resumed = re.match(r"^(\d+) +<\.\.\. exec(?:ve|veat) resumed>(.*)$", line)
        if resumed:
            line = unfinished.pop(resumed[1]) + resumed[2]
        if " exec" not in line or not line.endswith("= 0"):
            continue
        matched = _LINE.match(line)
        if matched is None:
            raise AssertionError(f"a line of strace that this cannot read: {line[:500]}")
        words = list(_STRING.finditer(matched["argv"]))
        assert not any(word[2] for word in words), f"strace cut a word: {line[:500]}"
        argv = [_decode(word[1]) for word in words]
        found.append(Execution(int(matched["pid"]), _decode(matched["path"]), argv))
    return found


def _decode(text: str) -> str:
    def replace(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code.startswith(b"x"):
            return bytes([int(code[1:], 16)])
        if code.isdigit():
            return bytes([int(code, 8)])
        return _NAMED.get(code, code)

    return _ESCAPE.sub(replace, text.encode(errors="surrogateescape")).decode(errors="surrogateescape")
