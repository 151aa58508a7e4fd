"""What a box may say to the host: bounded, printable, at its own cost.

Threat: sshd's log comes through a pipe whose other end is inside the box. Whoever
is in there may write escape sequences for the operator's terminal, forge lines, or
write for ever to fill the disk and burn the host's processor.

Guarantee: two files of at most LIMIT bytes; printable ASCII lines of at most 400
characters, each with our own time stamp; no more than RATE bytes a second are read,
so a flood blocks the writer and nobody else. Standard library only.
"""

from __future__ import annotations

import os
import time

LIMIT = 128 * 1024
RATE = 64 * 1024
_LINE_MAX = 400
_TAIL_LINES = 8


def render_printable(raw: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in raw[:_LINE_MAX])


class KeeperLog:
    """A log file in a folder that only we can write."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._partial = b""
        self._file = -1
        self._size = 0
        self.tail: list[str] = []
        self._open()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size

    def feed(self, raw: bytes) -> None:
        """Bytes from the box. Lines are kept; a line without an end is cut."""
        *lines, self._partial = (self._partial + raw).split(b"\n")
        if len(self._partial) > _LINE_MAX:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            if line.strip():
                self.note("box: " + render_printable(line.rstrip(b"\r")))

    def note(self, line: str) -> None:
        """One line of ours (or already made printable). A full disk loses the line, never the box."""
        self.tail = [*self.tail[-(_TAIL_LINES - 1) :], line]
        stamped = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime()) + line + "\n"
        try:
            if self._size + len(stamped) > LIMIT:
                os.close(self._file)
                os.replace(self._path, self._path + ".1")
                self._open()
            self._size += os.write(self._file, stamped.encode("ascii", "replace"))
        except OSError:
            pass

    def finish(self) -> None:
        if self._partial.strip():
            self.note("box: " + render_printable(self._partial))
        self._partial = b""
