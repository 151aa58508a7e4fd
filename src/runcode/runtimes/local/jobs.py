"""Does something work in a box, or does everything there only wait?

Owns: the measure of a box's processes, and what difference between two of them is a
job. Standard library only; called by the runtime, in its threads.

A process that waits costs nothing: shells, `sleep`, a server without callers, an
editor's server (below a twentieth of a processor). A job computes, or moves bytes.
sshd's own work is a connection's, which the gateway counts, and is left out; so is
the box's first process, which inherits what others had used.

Source: proc(5), stat and io.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

JOB_CPUS = 0.05
JOB_BYTES_PER_S = 64 * 1024
# What carries connections and the box itself. A box that hides a job under such a name harms itself alone.
_SERVICES = frozenset(("bwrap", "sshd", "sshd-session", "sshd-auth"))
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ProcessUse:
    """Since it started, with those children that it has waited for. `name` is the process's own word."""

    name: str
    cpu_s: float
    moved_bytes: int
    working: bool


@dataclass(frozen=True)
class BoxUse:
    """All processes of a box at one moment; a key is (pid, start), so that no other process is taken for it."""

    at_s: float
    processes: Mapping[tuple[int, int], ProcessUse]


def measure_box(pids: Iterable[int], first_pid: int | None) -> BoxUse:
    found = {}
    for pid in pids:
        process = None if pid == first_pid else _measure_process(pid)
        if process is not None and process[1].name not in _SERVICES:
            found[(pid, process[0])] = process[1]
    return BoxUse(time.monotonic(), found)


def find_job(before: BoxUse | None, now: BoxUse) -> str | None:
    """The name of what worked most in between, if that is a job. Without `before`: of what works at this moment."""
    if before is None:
        return next((process.name for process in now.processes.values() if process.working), None)
    elapsed_s = max(now.at_s - before.at_s, 0.001)
    nothing = ProcessUse("", 0.0, 0, working=False)
    cpu_s, moved, most, name = 0.0, 0, -1.0, ""
    for key, process in now.processes.items():
        earlier = before.processes.get(key, nothing)
        used_s, carried = process.cpu_s - earlier.cpu_s, process.moved_bytes - earlier.moved_bytes
        cpu_s, moved = cpu_s + max(0.0, used_s), moved + max(0, carried)
        share = max(used_s / elapsed_s / JOB_CPUS, carried / elapsed_s / JOB_BYTES_PER_S)
        if share > most:
            most, name = share, process.name
    works = cpu_s / elapsed_s >= JOB_CPUS or moved / elapsed_s >= JOB_BYTES_PER_S
    return name if works else None


def _measure_process(pid: int) -> tuple[int, ProcessUse] | None:
    """(when it started, what it used); None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            before, _, after = file.read().rpartition(b")")
    except OSError:
        return None
    # From field 3 on: the state, …, 14 to 17 are times, 22 is the start.
    fields = after.split()
    try:
        ticks = sum(int(field) for field in fields[11:15])
        started, state = int(fields[19]), fields[0]
    except (IndexError, ValueError):
        return None
    name = before.partition(b"(")[2].decode("utf-8", "replace")
    return started, ProcessUse(name, ticks / _TICKS_PER_S, _moved_bytes(pid), working=state in (b"R", b"D"))


def _moved_bytes(pid: int) -> int:
    """Read and written, by whatever means; 0 where this user may not know it."""
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
        return int(fields.get(b"rchar", b"0")) + int(fields.get(b"wchar", b"0"))
    except (OSError, ValueError):
        return 0
