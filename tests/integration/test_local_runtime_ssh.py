"""The real OpenSSH client on a real box: what a person's session relies on."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import secrets
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from support.runtime_boxes import Boxes, start_box, wait_until
from support.runtime_ssh import SshClient

pytest_plugins = ["support.runtime_fixtures"]


async def test_lands_as_ubuntu_in_its_home_with_a_project_folder(boxes: Boxes) -> None:
    ssh = await boxes.open(boxes.new_spec("billing-api"))
    assert ssh.text("id -un; id -u; pwd; hostname; ls -d workspace; echo $LANG").split("\n") == [
        "ubuntu",
        "1000",
        "/home/ubuntu",
        "billing-api",
        "workspace",
        "C.UTF-8",
    ]


@pytest.mark.parametrize("status", [0, 1, 77, 255])
async def test_exit_statuses_come_through_whole(boxes: Boxes, status: int) -> None:
    ran = (await boxes.open()).run(f"echo out; echo err >&2; exit {status}")
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, b"out\n", b"err\n")


async def test_binary_streams_come_through_unchanged(boxes: Boxes) -> None:
    ssh = await boxes.open()
    content = secrets.token_bytes(4 * 1024 * 1024)
    assert ssh.run("cat", stdin=content).stdout == content


async def test_a_broken_pipe_ends_the_writer(boxes: Boxes) -> None:
    # An ignored SIGPIPE would survive every exec from the init down to here.
    ran = (await boxes.open()).run("yes | head -n 1; echo ${PIPESTATUS[0]}")
    assert ran.stdout == b"y\n141\n"


async def test_signals_are_at_their_defaults(boxes: Boxes) -> None:
    blocked, ignored, umask = (
        (await boxes.open()).text("awk '/SigBlk|SigIgn/ {print $2}' /proc/self/status; umask").split()
    )
    # 32 and 33 are glibc's own; it lets nobody change what an ancestor of this test run may have set.
    assert int(ignored, 16) & 0x7FFFFFFF == 0
    assert (int(blocked, 16), umask) == (0, "0022")


class Terminal:
    """A pty of ours with the real `ssh -tt` on it."""

    def __init__(self, argv: list[str], rows: int, columns: int) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
                os.execvpe(argv[0], argv, {**os.environ, "TERM": "xterm"})
            finally:
                os._exit(127)
        self.seen = b""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, pattern: str, timeout_s: float = 15) -> re.Match[bytes]:
        deadline = time.monotonic() + timeout_s
        while (match := re.search(pattern.encode(), self.seen)) is None:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:
                    raise AssertionError(self.seen) from None
        self.seen = self.seen[match.end() :]
        return match

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> int:
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


async def test_an_interactive_shell_has_a_pty_with_size_resize_and_job_control(boxes: Boxes) -> None:
    ssh = await boxes.open()
    terminal = Terminal(ssh.command("-tt", "box"), 40, 123)
    terminal.expect(r"ubuntu@royal-tree:~/workspace\$ ")
    terminal.type("tty; stty size; pwd\n")
    terminal.expect(r"/dev/pts/\d+\r\n40 123\r\n/home/ubuntu/workspace\r\n")
    terminal.resize(50, 99)
    terminal.type("sleep 0.2; stty size\n")
    terminal.expect(r"50 99\r\n")
    # Job control: Ctrl-Z stops, fg goes on, Ctrl-C interrupts.
    terminal.type("sleep 300\n")
    terminal.expect(r"sleep 300\r\n")
    time.sleep(0.2)
    terminal.type("\x1a")
    terminal.expect(r"Stopped +sleep 300")
    terminal.type("fg\n")
    terminal.expect(r"sleep 300\r\n")
    time.sleep(0.2)
    terminal.type("\x03")
    terminal.expect(r"\^C")
    terminal.type("exit 7\n")
    assert terminal.close() == 7


async def test_three_ptys_at_once_are_three(boxes: Boxes) -> None:
    ssh = await boxes.open()
    terminals = [Terminal(ssh.command("-tt", "box"), 24, 80) for _ in range(3)]
    names = set()
    for terminal in terminals:
        terminal.expect(r"workspace\$ ")
        terminal.type("tty\n")
        names.add(terminal.expect(r"(/dev/pts/\d+)\r\n")[1])
    assert len(names) == 3
    for terminal in terminals:
        terminal.type("exit\n")
        assert terminal.close() == 0


async def test_sftp_moves_files_both_ways(boxes: Boxes, tmp_path: Path) -> None:
    ssh = await boxes.open()
    (tmp_path / "up").write_bytes(content := secrets.token_bytes(300_000))
    batch = f"put {tmp_path}/up workspace/file\nchmod 750 workspace/file\nget workspace/file {tmp_path}/down\n"
    ran = subprocess.run(
        ssh.command("-b", "-", "box", program="sftp"), input=batch.encode(), capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "down").read_bytes() == content
    assert ssh.text("stat -c '%a %U %G' workspace/file") == "750 ubuntu ubuntu"


async def test_forwards_reach_into_the_box_and_back(boxes: Boxes, tmp_path: Path) -> None:
    ssh = await boxes.open()
    serve = "mkdir -p s && cd s && echo hello > f && exec python3 -m http.server --bind 127.0.0.1 8080"
    local = tmp_path / "l.sock"
    forward = ssh.command("-L", f"{local}:127.0.0.1:8080", "-R", "/tmp/back.sock:127.0.0.1:9", "box", serve)
    process = subprocess.Popen(forward, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        fetch = ["curl", "-s", "--unix-socket", str(local), "http://box/f"]
        assert wait_until(lambda: subprocess.run(fetch, capture_output=True, check=False).stdout == b"hello\n")
        assert ssh.text("test -S /tmp/back.sock && echo yes") == "yes"
    finally:
        process.terminate()
        process.wait()


async def test_fifty_execs_in_parallel(boxes: Boxes) -> None:
    ssh = await boxes.open()
    running = [
        subprocess.Popen(ssh.command("box", f"echo {n}; exit {n}"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        for n in range(50)
    ]
    for number, process in enumerate(running):
        out, _ = process.communicate(timeout=60)
        assert (out, process.returncode) == (f"{number}\n".encode(), number)


async def test_many_sessions_over_one_connection(boxes: Boxes, tmp_path: Path) -> None:
    ssh = await boxes.open()
    control = ["-o", f"ControlPath={tmp_path}/m", "-o", "ControlMaster=auto", "-o", "ControlPersist=30"]
    assert ssh.run("true", *control).returncode == 0
    # sshd's own default allows ten; ours must not stand in the way of an agent.
    held = [
        subprocess.Popen(ssh.command(*control, "box", "echo up; cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(30)
    ]
    for process in held:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
    for process in held:
        process.communicate(timeout=30)
    subprocess.run(ssh.command(*control, "-O", "exit", "box"), capture_output=True, check=True)


async def test_sudo_says_that_there_is_no_root(boxes: Boxes) -> None:
    ran = (await boxes.open()).run("sudo -n true")
    assert ran.returncode == 1
    assert b"no root" in ran.stderr


async def test_the_usual_tools_work(boxes: Boxes) -> None:
    ssh = await boxes.open()
    assert ssh.text("python3 -c 'import ssl; print(len(ssl.create_default_context().get_ca_certs()) > 50)'") == "True"
    assert ssh.text("git init -q x && cd x && git status -s && ls -d .git") == ".git"
    assert ssh.text("ps -e -o comm= | grep -c sshd")
    assert ssh.text("df -h /tmp | tail -1 | awk '{print $2}'") == "1.0G"
    assert ssh.text("python3 -c 'import multiprocessing as m; print(m.Pool(2).map(abs, [-1, 2]))'") == "[1, 2]"
    assert ssh.text("getent hosts localhost | wc -l") == "1"


async def test_client_environment_is_limited_to_the_locale(boxes: Boxes) -> None:
    ssh = await boxes.open()
    sent = ssh.command("-o", "SendEnv=LD_PRELOAD LC_TEST FOO", "box", "env")
    ran = subprocess.run(
        sent,
        env={**os.environ, "LC_TEST": "ok", "FOO": "bad", "LD_PRELOAD": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    lines = ran.stdout.decode().splitlines()
    assert "LC_TEST=ok" in lines
    assert not any(line.startswith(("FOO=", "LD_")) for line in lines)


async def test_no_environment_of_a_client_changes_what_runs_in_the_box(boxes: Boxes) -> None:
    ssh = await boxes.open()
    names = "LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT BASH_ENV ENV PATH IFS SHELLOPTS PYTHONPATH GIT_SSH_COMMAND"
    names += " SSH_AUTH_SOCK HOME SHELL PROMPT_COMMAND BASH_FUNC_ls%%"
    ssh.text("echo 'echo EVIL >&2; touch ~/was-read' > /tmp/evil")
    words = " ".join(f"{name}=/tmp/evil" for name in names.split())
    sent = ssh.command("-o", f"SetEnv={words} LC_TEST=ok", "box", "env; test ! -e was-read")
    ran = subprocess.run(sent, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert b"LC_TEST=ok" in ran.stdout
    assert b"/tmp/evil" not in ran.stdout
    assert b"EVIL" not in ran.stderr


async def test_storage_survives_stop_and_tmp_does_not(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    ssh = await boxes.open(spec)
    ssh.text("echo precious > workspace/file; echo gone > /tmp/file; rm -r .profile")
    await boxes.runtime.stop(spec.workspace_id)
    assert ssh.run("true").returncode == 255
    await start_box(boxes.runtime, spec)
    again = await boxes.client(spec)
    assert again.text("cat workspace/file; ls /tmp; ls -A") == "precious\n.bashrc\nworkspace"


async def test_a_project_folder_that_was_removed_is_made_again(boxes: Boxes) -> None:
    spec = boxes.new_spec()
    (await boxes.open(spec)).text("rm -r workspace")
    await boxes.runtime.stop(spec.workspace_id)
    await start_box(boxes.runtime, spec)
    assert (await boxes.client(spec)).text("cd workspace && pwd") == "/home/ubuntu/workspace"


def cut(ssh: SshClient, command: str) -> None:
    """ssh dies in the middle of a command."""
    process = subprocess.Popen(ssh.command("box", command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()


async def test_a_client_that_dies_leaves_no_sshd_behind(boxes: Boxes) -> None:
    ssh = await boxes.open()
    for _ in range(3):
        cut(ssh, "echo up; exec cat")
    # Our own session's sshd (two processes: monitor and session) is all there is.
    assert wait_until(lambda: ssh.text("pgrep -c '^sshd$'") in ("1", "2"))
