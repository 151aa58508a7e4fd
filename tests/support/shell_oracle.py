"""Real shells as judges of what a text means: which programs it starts, with which words.

The programs are recorders on a PATH of their own. Nothing else can be found there, the
folder is empty, and what is made in it is told.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from runcode.core.shell_text import SimpleCommand

# A zsh that reads no file of anybody's; the others read none with `-c`.
SHELLS = {
    "bash": ("bash", "-c"),
    "zsh": ("zsh", "-fc"),
    "dash": ("dash", "-c"),
    "busybox": ("busybox", "sh", "-c"),
}
# One `printf`, so that what runs at the same time does not mix.
_END = "end of this call"
_RECORDER = """#!{shell}
printf '%s\\0' "${{0##*/}}" "$@" '{end}' >> "$ORACLE_LOG"
"""


class Oracle:
    """`run` gives each started program's words, in the order in which they started."""

    def __init__(self, folder: Path, programs: Sequence[str]) -> None:
        self._bin, self._logs, self._room = folder / "bin", folder / "logs", folder / "room"
        self._runs = 0
        self._bin.mkdir(parents=True)
        self._logs.mkdir()
        self._room.mkdir()
        for name in programs:
            path = self._bin / name
            path.write_text(_RECORDER.format(shell=shutil.which("dash"), end=_END))
            path.chmod(0o755)
        self.words = {name: (str(shutil.which(words[0])), *words[1:]) for name, words in SHELLS.items()}
        self.made: list[str] = []

    def run(self, shell: str, text: str) -> list[tuple[str, ...]]:
        # A log for each run: what an earlier text left in the background may still write.
        self._runs += 1
        log = self._logs / str(self._runs)
        log.touch()
        # A function that calls itself must end. FUNCNEST does it in bash and zsh.
        environ = {"PATH": str(self._bin), "FUNCNEST": "5", "ORACLE_LOG": str(log), "LC_ALL": "C.UTF-8"}
        subprocess.run(
            [*self.words[shell], os.fsencode(text)],
            env=environ,
            cwd=self._room,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_limit,
            check=False,
        )
        self.made = sorted(os.listdir(self._room))
        for name in self.made:
            path = self._room / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        fields = log.read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
        calls: list[tuple[str, ...]] = []
        words: list[str] = []
        for field in fields:
            if field == _END:
                calls.append(tuple(words))
                words = []
            else:
                words.append(field)
        return calls


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def lists(found: Sequence[SimpleCommand], call: Sequence[str]) -> bool:
    """Is a call that was seen among the commands that were read? An expansion may stand for any words."""
    return any(_fits([word.literal for word in command.words], list(call)) for command in found)


def _fits(literals: list[str | None], call: list[str]) -> bool:
    if not literals:
        return not call
    if literals[0] is None:
        return any(_fits(literals[1:], call[at:]) for at in range(len(call) + 1))
    return bool(call) and call[0] == literals[0] and _fits(literals[1:], call[1:])
