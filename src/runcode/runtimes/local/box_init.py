"""Runs inside the box: accepts on the host's socket and gives each connection its own `sshd -i`.

Copied into the box's read-only folder, and run there by an interpreter under /usr
with `-I -S`; standard library only, nothing of runcode.

Descriptors from the keeper: 3 the listening socket (made by the host: no path in the
box leads to it), 4 the lifeline (end of file means that the keeper is gone or wants
us to stop), 5 where one byte says that we serve. 2 is the log.

The lifeline stands beside bwrap's --die-with-parent because that one is a race: a
keeper that dies before bwrap has asked for the signal would leave the box running.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

LISTEN_FD, LIFELINE_FD, STATUS_FD = 3, 4, 5
CONNECTIONS_MAX = 512
GRACE_S = 0.3
PROJECT_FOLDER = "/home/ubuntu/workspace"


def main(sshd: list[str]) -> int:
    with open("/proc/1/comm", "rb") as file:
        # Our end is kill(-1): outside a box that would be every process of the user, or of the machine.
        if file.read().strip() != b"bwrap":
            print("this runs inside a box only", file=sys.stderr)
            return 1
    listener = socket.socket(fileno=LISTEN_FD)
    listener.setblocking(False)
    for descriptor in (LISTEN_FD, LIFELINE_FD, STATUS_FD):
        os.set_inheritable(descriptor, False)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        os.makedirs(PROJECT_FOLDER, exist_ok=True)
    except OSError as error:
        print(f"cannot make {PROJECT_FOLDER}: {error.strerror}", file=sys.stderr, flush=True)
    os.write(STATUS_FD, b"S")
    os.close(STATUS_FD)

    children: set[int] = set()
    poller = select.poll()
    poller.register(wake_read, select.POLLIN)
    poller.register(LIFELINE_FD, select.POLLIN | select.POLLHUP)
    accepting = False
    while True:
        wanted = len(children) < CONNECTIONS_MAX
        if wanted != accepting:
            if wanted:
                poller.register(LISTEN_FD, select.POLLIN)
            else:
                poller.unregister(LISTEN_FD)
            accepting = wanted
        ready = {descriptor for descriptor, _ in poller.poll()}
        if LIFELINE_FD in ready:
            end_everything()
            return 0
        if wake_read in ready:
            drain(wake_read)
            reap(children)
        if LISTEN_FD in ready:
            accept(listener, sshd, children)


def accept(listener: socket.socket, sshd: list[str], children: set[int]) -> None:
    try:
        connection, _ = listener.accept()
    except OSError:
        return
    with connection:
        number = connection.fileno()
        try:
            pid = os.posix_spawn(
                sshd[0],
                sshd,
                dict(os.environ),
                file_actions=[(os.POSIX_SPAWN_DUP2, number, 0), (os.POSIX_SPAWN_DUP2, number, 1)],
                setsid=True,
                setsigmask=[],
                # Python ignores SIGPIPE, and an ignored signal survives exec: `yes | head` would never end.
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGTERM],
            )
        except OSError as error:
            print(f"cannot start sshd: {error.strerror}", file=sys.stderr, flush=True)
            return
    children.add(pid)


def drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 512):
            pass
    except BlockingIOError:
        pass


def reap(children: set[int]) -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        children.discard(pid)


def end_everything() -> None:
    """Ask every process of the box to end, and give it a moment. The kernel kills the rest when we exit."""
    deadline = time.monotonic() + GRACE_S
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCONT):
        try:
            os.kill(-1, number)
        except OSError:
            return
    children: set[int] = set()
    while time.monotonic() < deadline:
        reap(children)
        try:
            os.kill(-1, 0)
        except ProcessLookupError:
            return
        time.sleep(0.002)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
