"""Is it the real thing? Evidence that does not come from the runtime itself.

Owns: what a real runtime's column demands of what stands in it. A fake there,
whatever it calls itself and whatever it answers, fails each case.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
import struct
from pathlib import Path

from runcode.runtimes.base import Runtime
from runcode.runtimes.unix_sockets import open_unix_socket
from runcode.server.installed_runtimes import GROUP


def require_installed(runtime: Runtime, name: str) -> None:
    """Exactly the class that a server would load under this name, no stand-in and no subclass."""
    (entry,) = importlib.metadata.entry_points(group=GROUP, name=name)
    assert type(runtime) is entry.load(), f"the column {name!r} holds a {type(runtime).__name__}"


async def require_real_box(socket_path: str) -> None:
    """The kernel's word for it: who listens there is a keeper, and below it lives a box in namespaces of its own."""
    with await open_unix_socket(socket_path) as connection:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    listener, uid, _ = struct.unpack("3i", raw)
    assert listener != os.getpid(), "the test's own process listens on the box's socket"
    command = Path(f"/proc/{listener}/cmdline").read_bytes().split(b"\0")
    assert b"runcode.runtimes.local.keeper" in command, command
    assert uid == os.geteuid()
    inside = [pid for pid in _find_descendants(listener) if _lives_apart(pid)]
    assert inside, "no process of the listener's family lives in namespaces of its own"


def _find_descendants(pid: int) -> list[int]:
    found, pending = [], [pid]
    while pending:
        parent = pending.pop()
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except OSError:
            continue
        pending += [int(child) for child in children]
        found += [int(child) for child in children]
    return found


def _lives_apart(pid: int) -> bool:
    try:
        return all(
            os.stat(f"/proc/{pid}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino
            for kind in ("pid", "user", "mnt", "net")
        )
    except OSError:
        return False
