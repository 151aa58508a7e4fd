"""Claude Code as a person sees it: in a terminal, with keys, and its screen as text."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pyte

from support.agent_clients import PROGRAMS, AgentLaptop
from support.fake_model import FakeModel

_ROWS, _COLUMNS = 40, 150
_PATIENCE_S = 60


class ClaudeScreen:
    """`with ClaudeScreen(laptop, model) as screen:` starts it; leaving ends it."""

    def __init__(
        self,
        laptop: AgentLaptop,
        model: FakeModel,
        *,
        allow: tuple[str, ...] = (),
        settings: dict[str, Any] | None = None,
        version: str = "claude",
        arguments: tuple[str, ...] = (),
    ) -> None:
        document = {**(settings or {}), "permissions": {"allow": list(allow)}}
        (laptop.claude_config / "settings.json").write_text(json.dumps(document))
        # The first start's questions, answered as a person would have.
        answers = {
            "hasCompletedOnboarding": True,
            "theme": "dark",
            "projects": {str(laptop.project): {"hasTrustDialogAccepted": True}},
            "customApiKeyResponses": {"approved": ["loopback-only"], "rejected": []},
        }
        (laptop.claude_config / ".claude.json").write_text(json.dumps(answers))
        self._words = [str(PROGRAMS[version]), "--permission-mode", "default", "--plugin-dir", str(laptop.plugin)]
        self._words += arguments
        self._environment = {
            **laptop.environment,
            "ANTHROPIC_BASE_URL": model.address,
            "ANTHROPIC_API_KEY": "loopback-only",
            "TERM": "xterm-256color",
            # Else an interactive start clones a repository from the internet.
            "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
        }
        self._folder = laptop.project
        self._screen = pyte.Screen(_COLUMNS, _ROWS)
        self._stream = pyte.ByteStream(self._screen)

    def __enter__(self) -> ClaudeScreen:
        self._pid, self._master = pty.fork()
        if self._pid == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
                os.chdir(self._folder)
                os.execve(self._words[0], self._words, self._environment)
            finally:
                os._exit(127)
        self.wait_for(lambda text: "❯" in text)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._master)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display if line.strip())

    def wait_for(self, seen: Callable[[str], bool], *, timeout_s: float = _PATIENCE_S) -> str:
        """The screen's text as soon as it satisfies `seen`."""
        deadline = time.monotonic() + timeout_s
        while not seen(self.text):
            if time.monotonic() > deadline:
                raise AssertionError(f"the screen never came to that:\n{self.text}")
            self._read(0.1)
        return self.text

    def watch(self, seconds: float) -> list[str]:
        """Every state of the screen during that time, for what must not show up."""
        states = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._read(0.1)
            states.append(self.text)
        return states

    def say(self, prompt: str) -> None:
        """Type a prompt and send it."""
        self._type(prompt)
        self.wait_for(lambda text: prompt in text)
        self._type("\r")

    def _type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def _read(self, patience_s: float) -> None:
        if select.select([self._master], [], [], patience_s)[0]:
            try:
                content = os.read(self._master, 65536)
            except OSError:  # the terminal of a program that has ended
                raise AssertionError(f"Claude Code has ended:\n{self.text}") from None
            self._stream.feed(content)
