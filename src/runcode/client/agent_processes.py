"""Which agent session an agent's process is in now, for what it started before.

Owns: `agents/<client>-<pid>` in the cache, one line with the session's key. A hook
writes it when a session begins, is cleared or resumed; an MCP server, which lives as
long as the agent's process and still has the first session in its environment, reads
it. The model can touch neither.

Guarantee: a record counts only for the very process that it was made for, not for a
later one with the same number.
"""

from __future__ import annotations

import os
import re

from runcode.client.private_files import (
    ensure_private_folder,
    is_private_folder,
    read_private_file,
    remove_file,
    write_private_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runcode.client.settings import Settings

_KEY = re.compile(r"(?:claude|codex):[A-Za-z0-9._-]{1,128}", re.ASCII)
_RECORDS_KEPT = 50


def is_session_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None


def remember_session(settings: Settings, pid: int, key: str) -> bool:
    """Write down that the agent with this process id is in session `key`. Says whether that could be told."""
    born = _birth_of(pid)
    if born is None or not is_session_key(key):
        return False
    ensure_private_folder(settings.cache_folder)
    folder = ensure_private_folder(_folder(settings))
    write_private_file(os.path.join(folder, str(pid)), f"{born} {key}\n".encode())
    _forget_ended(folder)
    return True


def find_remembered_session(settings: Settings, pid: int) -> str | None:
    """The key that was written down last for this very process, or None."""
    folder = _folder(settings)
    if not is_private_folder(folder):
        return None
    raw = read_private_file(os.path.join(folder, str(pid)))
    born, _, key = (raw or b"").decode("ascii", "replace").strip().partition(" ")
    return key if born and born == _birth_of(pid) and is_session_key(key) else None


def find_parent(pid: int) -> int | None:
    """The process that started this one, or None when nobody can tell."""
    try:
        with open(f"/proc/{pid:d}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1]) or None
    except (OSError, IndexError, ValueError):
        pass
    if os.path.isdir("/proc/self"):
        return None
    text = _ask_ps("ppid=", pid).strip()
    return int(text) if text.isdigit() and int(text) > 1 else None


def _folder(settings: Settings) -> str:
    return os.path.join(settings.cache_folder, "agents")


def _birth_of(pid: int) -> str | None:
    """When the process started, in the system's own terms; None when there is none, or nobody can tell."""
    try:
        with open(f"/proc/{pid:d}/stat", "rb") as file:
            # The name in brackets may hold anything, blanks and brackets too.
            return file.read().rpartition(b")")[2].split()[19].decode("ascii")
    except (OSError, IndexError):
        pass
    if os.path.isdir("/proc/self"):
        return None
    return "-".join(_ask_ps("lstart=", pid).split()) or None


def _ask_ps(field: str, pid: int) -> str:
    """For a system without /proc (macOS)."""
    import subprocess

    try:
        asked = subprocess.run(
            ["/bin/ps", "-o", field, "-p", f"{pid:d}"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout


def _forget_ended(folder: str) -> None:
    names = os.listdir(folder)
    if len(names) <= _RECORDS_KEPT:
        return
    for name in names:
        if name.isdigit() and _birth_of(int(name)) is None:
            remove_file(os.path.join(folder, name))
