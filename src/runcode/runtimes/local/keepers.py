"""Keepers as the server sees them: found by their lock, started detached, ended for certain.

Threat: a pid in a file may belong to another process by now; a signal to it would hit
somebody else's work. So the kernel is asked who holds the lock (F_GETLK), the answer
is pinned by a pidfd, and asked again before the pidfd is used.

All functions block; the runtime calls them from its threads.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time

from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable
from runcode.runtimes.local import plan
from runcode.runtimes.local.layout import WorkspaceFolder
from runcode.runtimes.local.machine import KEEPER_ENVIRONMENT, KEEPER_MODULE

# struct flock of Linux on 64-bit machines: type, whence, start, length, pid.
_FLOCK = "hhqqi0q"
_SPAWN_S = 15.0
_TERM_S = 12.0
_KILL_S = 10.0


def find_keeper(folder: WorkspaceFolder) -> int | None:
    """The pid that holds the workspace's lock (0: outside our pid namespace), or None."""
    try:
        descriptor = os.open(folder.lock_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    finally:
        os.close(descriptor)
    return None if answer[0] == fcntl.F_UNLCK else int(answer[4])


def find_serving_state(folder: WorkspaceFolder) -> plan.KeeperState | None:
    """What the keeper says while its box serves; None otherwise."""
    pid = find_keeper(folder)
    state = plan.find_keeper_state(str(folder.state_file))
    return state if state is not None and state.serving and state.pid == pid else None


def spawn_keeper(folder: WorkspaceFolder) -> None:
    """A keeper holds the lock and has started bwrap when this returns. Another one that was quicker is as good.

    Raises `not_ready` with the reason.
    """
    command = [sys.executable, "-I", "-m", KEEPER_MODULE, str(folder.path)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=KEEPER_ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        raw = read_line(process.stdout.fileno(), _SPAWN_S)
    try:
        record = json.loads(raw)
        event, reason = record["event"], record.get("reason", "")
    except (ValueError, KeyError, TypeError):
        event, reason = "failed", "the keeper did not report"
    if event not in ("started", "busy"):
        raise RunCodeError("not_ready", f"the workspace did not start: {printable(str(reason))}")


def read_line(descriptor: int, timeout_s: float) -> bytes:
    """Up to a newline, the end, or the timeout, whichever is first."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    deadline, raw = time.monotonic() + timeout_s, b""
    while b"\n" not in raw and poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        chunk = os.read(descriptor, 4096)
        if not chunk:
            break
        raw += chunk
    return raw


def find_failure(folder: WorkspaceFolder) -> str | None:
    """Why the last box did not come up, in the keeper's words."""
    try:
        raw = (folder.path / plan.FAILURE_FILE).read_text(errors="replace")
    except OSError:
        return None
    return printable(raw.strip()) or None


def end_keeper(folder: WorkspaceFolder, host_uid: int | None) -> None:
    """No process of the box is left afterwards. Raises `io_error` when one cannot be ended."""
    state = plan.find_keeper_state(str(folder.state_file))
    for number, patience_s in ((signal.SIGTERM, _TERM_S), (signal.SIGKILL, _KILL_S)):
        pid = find_keeper(folder)
        if pid is None:
            break
        if pid == 0:
            raise RunCodeError(
                "io_error",
                "the workspace's keeper runs in another pid namespace",
                resolution="stop it from the container or namespace that started it",
            )
        signal_and_wait(folder, pid, number, patience_s)
    else:
        if find_keeper(folder) is not None:
            raise RunCodeError("io_error", "the workspace's keeper does not end")
    end_leftovers(host_uid, state)


def signal_and_wait(folder: WorkspaceFolder, pid: int, number: signal.Signals, patience_s: float) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if find_keeper(folder) != pid:
            return
        signal.pidfd_send_signal(pidfd, number)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(patience_s * 1000)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def end_leftovers(host_uid: int | None, state: plan.KeeperState | None) -> None:
    """What a killed keeper may have left. Normally finds nothing, and costs one look at /proc."""
    deadline = time.monotonic() + _KILL_S
    while left := find_box_processes(host_uid, state):
        for pid in left:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                # Again, now that the pid is pinned.
                if pid in find_box_processes(host_uid, state):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)
        if time.monotonic() > deadline:
            raise RunCodeError("io_error", f"{len(left)} processes of the workspace do not end")
        time.sleep(0.005)


def find_box_processes(host_uid: int | None, state: plan.KeeperState | None) -> list[int]:
    """Living processes of a box, seen from the host: by its own uid (as root), else by its pid namespace.

    A namespace's number is reused once its pid 1 has ended, then perhaps for another
    box of the same user: so it counts only while that very process lives.
    """
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    if host_uid is not None:
        return [pid for pid in pids if runs_as(pid, host_uid)]
    if state is None or state.pid_namespace is None or state.first_pid is None or state.first_ticks is None:
        return []
    found = [pid for pid in pids if lives_in(pid, state.pid_namespace)]
    # Asked last: what was found while pid 1 lives was found in its namespace.
    return found if plan.read_started_ticks(state.first_pid) == state.first_ticks else []


def runs_as(pid: int, uid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
    except OSError:
        return False
    if fields.get(b"State", b"").split()[:1] == [b"Z"]:
        return False
    return str(uid).encode() in fields.get(b"Uid", b"").split()


def lives_in(pid: int, pid_namespace: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino == pid_namespace
    except OSError:
        return False
