"""stdout for results, stderr for everything else, and nothing unprintable on either.

Threat: titles, messages and paths come from strangers; see `core.terminal`.

Guarantee: `line`, `notice`, `failure` and `json` write printable text only
(JSON is ASCII with every control character escaped).
"""

from __future__ import annotations

import sys

from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable, printable_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

# Longer than any text of ours; a message that quotes untrusted text was cut where it was made.
_LINE_MAX = 2000


class Output:
    """Two binary streams. Text goes out as UTF-8 whatever the locale says."""

    def __init__(self, stdout: BinaryIO | None, stderr: BinaryIO | None) -> None:
        self._stdout = stdout
        self._stderr = stderr

    @classmethod
    def standard(cls) -> Output:
        # None where the descriptor was closed before we started.
        return cls(*(getattr(stream, "buffer", None) for stream in (sys.stdout, sys.stderr)))

    def line(self, text: str) -> None:
        """A result for a person."""
        if self._stdout is not None:
            self._stdout.write(printable_lines(text, limit=_LINE_MAX).encode() + b"\n")

    def raw(self, text: str) -> None:
        """Text with escape sequences of our own; whatever strangers wrote in it was checked by the caller."""
        if self._stdout is not None:
            self._stdout.write(text.encode())

    def json(self, value: object) -> None:
        """A result for a program: one line of JSON."""
        import json

        if self._stdout is not None:
            text = json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")
            self._stdout.write(text.encode() + b"\n")

    def notice(self, text: str) -> None:
        """Progress or a warning, on stderr at once."""
        if self._stderr is None:
            return
        try:
            self._stderr.write(f"runcode: {printable(text, limit=_LINE_MAX)}\n".encode())
            self._stderr.flush()
        except OSError:
            pass

    def failure(self, error: RunCodeError, *, as_json: bool) -> None:
        if as_json:
            message = printable(error.message, limit=_LINE_MAX)
            self.json({"error": error.code, "message": message, "resolution": error.resolution})
            self.flush_quietly()
        else:
            self.notice(f"{error.code}: {error.message} ({error.resolution})")

    def flush(self) -> None:
        if self._stdout is not None:
            self._stdout.flush()

    def flush_quietly(self) -> None:
        try:
            self.flush()
        except OSError:
            self.abandon()

    def abandon(self) -> None:
        """Stop the interpreter from complaining at exit about a stdout that nobody reads."""
        import os

        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
        except OSError:
            pass
