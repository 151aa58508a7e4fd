"""The client as on a system whose OpenSSH shares no connections, and that has no posix_spawn: Windows' branches, here.

The whole CLI runs in a process of its own in which `platforms.current` answers
as Windows does in these two points; ssh, sshd and the files are real.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_standin import ControlPlane, Person, service

_DRIVER = """
import sys
from runcode.client import platforms
unshared = platforms.Platform(kind="posix", can_multiplex=False, has_posix_processes=False)
platforms.current = lambda: unshared
from runcode.cli.main import main
sys.exit(main(["runcode", *sys.argv[1:]]))
"""


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with service(tmp_path / "service") as running:
        yield running


class Unshared:
    """One person's calls by the driver."""

    def __init__(self, person: Person) -> None:
        self.person = person

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", _DRIVER, *words],
            env={**self.person.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=self.person.project,
            stdin=-1,
            stdout=-1,
            stderr=-1,
        )

    def run(self, *words: str, stdin: bytes = b"", expect: int = 0) -> subprocess.CompletedProcess[bytes]:
        running = self.start(*words)
        stdout, stderr = running.communicate(stdin, timeout=60)
        assert running.returncode == expect, (words, running.returncode, stdout[-500:], stderr[-2000:])
        return subprocess.CompletedProcess(words, running.returncode, stdout, stderr)


@pytest.fixture
def unshared(tmp_path: Path, plane: ControlPlane) -> Unshared:
    person = Person(tmp_path / "person")
    person.login(plane)
    return Unshared(person)


def connection_processes(pid: int) -> list[int]:
    """A connection's sshd processes: for an ordinary user the one with the socket is a child of the monitor."""
    if Path(f"/proc/{pid}/comm").read_text().strip() != "sshd":
        return []
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in connection_processes(int(child)))]


def test_commands_statuses_and_streams(unshared: Unshared, plane: ControlPlane) -> None:
    unshared.run("connect", "42", "--wait")
    config = (unshared.person.session_folder() / "config").read_text()
    assert "Control" not in config
    assert unshared.run("exec", "--", "printf", "<%s>", "a b", "it's", "").stdout == b"<a b><it's><>"
    assert unshared.run("exec", "--", "exit 7", expect=7).stdout == b""
    # Its own 255 is told from ours.
    assert unshared.run("exec", "--", "exit 255", expect=255).stderr == b""
    blob = os.urandom(2_000_000)
    assert unshared.run("exec", "--", "cat", stdin=blob).stdout == blob
    assert unshared.run("run", "42", "--", "pwd").stdout.decode().strip() == str(plane.workdir)
    # No control socket and no log is left anywhere.
    assert os.listdir(unshared.person.cache / "run") == []
    assert not (unshared.person.runtime / "rc").exists()
    assert len(plane.mint_requests) == 1


def test_a_refused_key_is_renewed_once_and_the_command_runs_once(
    unshared: Unshared, plane: ControlPlane, tmp_path: Path
) -> None:
    unshared.run("connect", "42")
    assert plane.sshd is not None
    plane.sshd.authorized_keys.write_text("")
    counter = tmp_path / "counter"
    unshared.run("exec", "--", f"echo x >>{counter}")
    assert counter.read_text() == "x\n"
    assert len(plane.mint_requests) == 2


def test_what_may_have_started_is_never_run_again(unshared: Unshared, plane: ControlPlane, tmp_path: Path) -> None:
    unshared.run("connect", "42")
    counter = tmp_path / "counter"
    running = unshared.start("exec", "--", f"echo x >>{counter}; sleep 60")
    deadline = time.monotonic() + 60
    while not counter.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert plane.sshd is not None
    for pid in [one for child in plane.sshd.connections() for one in connection_processes(child)]:
        os.kill(pid, signal.SIGKILL)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 255
    # ssh may add a line of its own before ours.
    assert stderr.splitlines()[-1].startswith(b"runcode: connection_lost: ")
    assert counter.read_text() == "x\n"


def test_time_ends_the_remote_command_too(unshared: Unshared, tmp_path: Path) -> None:
    unshared.run("connect", "42")
    pid_file = tmp_path / "pid"
    done = unshared.run("exec", "--timeout", "1", "--", f"echo $$ >{pid_file}; sleep 600; true", expect=124)
    assert b"timed_out" in done.stderr
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid_file.read_text().strip()}").exists():
        assert time.monotonic() < deadline, "the command still runs on the box"
        time.sleep(0.1)


def test_ctrl_c_ends_the_remote_command_too(unshared: Unshared, tmp_path: Path) -> None:
    unshared.run("connect", "42")
    pid_file = tmp_path / "pid"
    running = unshared.start("exec", "--", f"echo $$ >{pid_file}; sleep 600; true")
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid_file.read_text().strip()}").exists():
        assert time.monotonic() < deadline, "the command still runs on the box"
        time.sleep(0.1)


def test_nobody_listens_and_a_wrong_host_key(unshared: Unshared, plane: ControlPlane, tmp_path: Path) -> None:
    assert plane.sshd is not None
    plane.bundle_changes = {"port": 1, "known_hosts": f"[127.0.0.1]:1 {plane.sshd.host_key}\n"}
    unshared.run("connect", "42")
    done = unshared.run("exec", "--", "true", expect=255)
    assert done.stderr.startswith(b"runcode: network: ")
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")]
    subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
    wrong = " ".join((tmp_path / "key.pub").read_text().split()[:2])
    plane.bundle_changes = {"known_hosts": f"x {wrong}\n"}
    unshared.run("connect", "42", "--force")
    done = unshared.run("exec", "--", "true", expect=255)
    assert done.stderr.startswith(b"runcode: unsafe_bundle: ")


def test_forward_says_what_to_run_instead(unshared: Unshared) -> None:
    unshared.run("connect", "42")
    done = unshared.run("forward", "8080", expect=1)
    assert b"unavailable" in done.stderr
    assert b"-L" in done.stdout + done.stderr
