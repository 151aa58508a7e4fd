"""Run a program in a real terminal of a given size, type into it, and read its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
import time
from pathlib import Path


def run_in_pty(
    command: list[str],
    *,
    environment: dict[str, str],
    folder: Path,
    rows: int = 24,
    columns: int = 80,
    typed: bytes = b"",
    timeout_s: float = 60,
) -> tuple[int, bytes]:
    """(exit status, everything that was shown). `typed` goes in once something was shown."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.chdir(folder)
            os.execve(command[0], command, environment)
        finally:
            os._exit(127)
    shown = b""
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.1)[0]:
                continue
            try:
                chunk = os.read(master, 65536)
            except OSError:
                break
            if not chunk:
                break
            shown += chunk
            if typed:
                os.write(master, typed)
                typed = b""
        else:
            os.kill(pid, 9)
            raise AssertionError(f"{command} did not end; it showed {shown!r}")
    finally:
        os.close(master)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown
