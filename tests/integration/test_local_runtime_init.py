"""The box's init by itself, in a bare pid namespace: the lifeline, the bound, the refusal outside."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runcode.runtimes.local import box_init
from support.runtime_boxes import wait_until

_INIT = Path(box_init.__file__)


@dataclass
class Init:
    process: subprocess.Popen[bytes]
    lifeline: int
    status: int
    socket_path: Path

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.socket_path))
        connection.settimeout(10)
        return connection


@pytest.fixture
def init(tmp_path: Path) -> Iterator[Init]:
    """Without --die-with-parent: what ends it here is the lifeline alone. `cat` plays the sshd."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(16)
    lifeline_read, lifeline = os.pipe()
    status, status_write = os.pipe()
    (tmp_path / "log").touch()
    # High first: a number that the init expects may be one that still has to be copied.
    given = (listener.fileno(), lifeline_read, status_write)
    sources = tuple(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 100) for descriptor in given)
    # bash puts the descriptors at the numbers that the init expects.
    move = " ".join(f"{target}<&{source} {source}<&-" for target, source in zip((3, 4, 5), sources, strict=True))
    bwrap = "bwrap --bind / / --unshare-user --unshare-pid --proc /proc --dev /dev"
    script = f"exec {bwrap} /usr/bin/python3 -I -S {_INIT} /usr/bin/cat {move} 2>>{tmp_path}/log"
    process = subprocess.Popen(
        ["bash", "-c", script], pass_fds=sources, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    listener.close()
    for descriptor in (lifeline_read, status_write, *sources):
        os.close(descriptor)
    made = Init(process, lifeline, status, tmp_path / "s")
    yield made
    # The namespace's pid 1 first: with the lifeline broken nothing else would end it.
    if process.poll() is None:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    process.kill()
    process.wait()
    for descriptor in (made.lifeline, made.status):
        if descriptor >= 0:
            os.close(descriptor)


def test_it_says_that_it_serves_and_gives_each_connection_its_own_process(init: Init) -> None:
    assert os.read(init.status, 16) == b"S"
    connections = [init.connect() for _ in range(5)]
    for number, connection in enumerate(connections):
        connection.sendall(b"%d" % number)
    for number, connection in enumerate(connections):
        assert connection.recv(16) == b"%d" % number
        connection.close()
    assert init.process.poll() is None


def test_the_end_of_the_lifeline_ends_the_box(init: Init) -> None:
    assert os.read(init.status, 16) == b"S"
    held = init.connect()
    held.sendall(b"x")
    assert held.recv(1) == b"x"
    os.close(init.lifeline)
    init.lifeline = -1
    assert wait_until(lambda: init.process.poll() is not None)
    assert held.recv(1) == b""
    held.close()
    with pytest.raises(OSError):
        init.connect()


def test_outside_a_box_it_refuses_to_run() -> None:
    ran = subprocess.run(["/usr/bin/python3", "-I", "-S", str(_INIT), "/usr/bin/cat"], capture_output=True, check=False)
    assert ran.returncode == 1
    assert b"inside a box only" in ran.stderr
