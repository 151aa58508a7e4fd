"""What /proc says: whose process is whose, and what nobody owns. For the kill rounds.

Nothing here believes a pid file or the server: parents, locks, host uids, pid
namespaces and the paths that a process carries are read from the kernel.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    name: str
    command: str
    # Clock ticks since boot.
    started: int = 0
    ended: bool = False

    def __str__(self) -> str:
        return f"{self.pid} (parent {self.parent}) {self.name}: {self.command[:160]}"


def look() -> dict[int, Process]:
    """Every process that is there now, zombies included."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                found[int(entry)] = _read(int(entry))
    return found


def _read(pid: int) -> Process:
    before, _, after = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
    fields = after.split()
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid, int(fields[1]), before.partition("(")[2], command, int(fields[19]), fields[0] in "ZX")


def children_of(parent: int, processes: dict[int, Process]) -> list[Process]:
    return sorted((p for p in processes.values() if p.parent == parent and not p.ended), key=lambda p: p.pid)


def descendants_of(roots: Iterable[int], processes: dict[int, Process]) -> set[int]:
    """The roots themselves and everything below them."""
    below: dict[int, list[int]] = {}
    for process in processes.values():
        below.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    pending = [pid for pid in roots if pid in processes]
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending += below.get(pid, [])
    return found


def carries(pid: int, text: bytes) -> bool:
    """Does the process hold this path in argv, environment, working folder, root or an open file?"""
    for name in ("cmdline", "environ"):
        with contextlib.suppress(OSError):
            if text in Path(f"/proc/{pid}/{name}").read_bytes():
                return True
    links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
    with contextlib.suppress(OSError):
        links += [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    for link in links:
        with contextlib.suppress(OSError):
            if text in os.fsencode(os.readlink(link)):
                return True
    return False


def has_uid(pid: int, uids: set[int]) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid in uids or _real_uid(pid) in uids
    except OSError:
        return False


def _real_uid(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[1])
    return -1


@dataclass
class Footprint:
    """How to recognise everything that one campaign may ever have started.

    By the paths that a process carries, as root by the boxes' own uids, and by having
    been seen below a keeper before (pid and start time, since pids come again).
    Nothing else: whoever is recognised here may be killed at the end.
    """

    folder: Path
    host_uids: set[int] = field(default_factory=set)
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def remember(self, pids: Iterable[int], processes: dict[int, Process]) -> None:
        self._seen |= {(pid, processes[pid].started) for pid in pids if pid in processes}

    def find_members(self, processes: dict[int, Process]) -> set[int]:
        text = os.fsencode(self.folder)
        return {
            pid
            for pid, process in processes.items()
            if pid != os.getpid()
            and not process.ended
            and ((pid, process.started) in self._seen or carries(pid, text) or has_uid(pid, self.host_uids))
        }


def find_masters(control_folder: Path) -> set[int]:
    """The pids that answer on the control sockets of this folder: masters that a session still names."""
    found = set()
    for path in control_folder.glob("*"):
        if not path.is_socket():
            continue
        with contextlib.suppress(subprocess.TimeoutExpired):
            asked = subprocess.run(
                ["ssh", "-F", "/dev/null", "-o", f"ControlPath={path}", "-O", "check", "x"],
                capture_output=True,
                text=True,
                check=False,
                timeout=10,
            )
            _, _, number = asked.stderr.partition("pid=")
            if number.split(")")[0].isdigit():
                found.add(int(number.split(")")[0]))
    return found


def find_mounts(folder: Path) -> list[str]:
    """Mounts of this namespace below or from the folder."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]


def kill_exactly(pid: int) -> bool:
    """SIGKILL through a pidfd; False when it is gone already."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True
