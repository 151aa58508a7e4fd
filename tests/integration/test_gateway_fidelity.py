"""The gateway against a direct sshd: the same client does the same on both, and sees the same, byte for byte.

The table at the end of a run is client × case. `make fidelity` runs these with the sizes that
people will meet at their worst; here they are bounded. How a client is driven: tests/support/fidelity_clients.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import paramiko
import pytest

from support.fidelity import Command, Outcome, Pair, Way, open_pair
from support.fidelity_clients import CLIENTS, AsyncSsh, NodeSsh2, OpenSsh, Paramiko, find_obstacle
from support.gateway_box import require_program

MB = 1024 * 1024
LONG = os.environ.get("PYTEST_FIDELITY") == "long"
SIZE = 1024 * MB if LONG else 4 * MB
CHANNELS = 100 if LONG else 20


def columns(*names: str) -> Any:
    """A test for each of these clients; those that this machine has not are NOT RUN, by name."""
    marks = []
    for name in names or tuple(CLIENTS):
        obstacle = find_obstacle(name)
        marks.append(pytest.param(name, marks=[pytest.mark.skip(obstacle)] if obstacle else []))
    return pytest.mark.parametrize("case", marks)


pytestmark = pytest.mark.runtime_case("client × case: gateway as a direct sshd")


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with open_pair() as opened:
        yield opened


async def execute(pair: Pair, case: str, *commands: Command) -> list[Outcome]:
    outcomes: list[Outcome] = await pair.compare(lambda way, folder: CLIENTS[case].execute(way, commands))
    return outcomes


# ---------------------------------------------------------------- sessions


@columns()
async def test_exit_statuses(pair: Pair, case: str) -> None:
    for status in (0, 1, 77, 255):
        (seen,) = await execute(pair, case, Command(f"printf out; printf err >&2; exit {status}"))
        assert (seen.status, seen.stdout, seen.stderr) == (status, b"out", b"err")


@columns()
async def test_death_by_a_signal(pair: Pair, case: str) -> None:
    (seen,) = await execute(pair, case, Command("printf x; kill -TERM $$"))
    assert seen.stdout == b"x"
    # Each in its own way: OpenSSH says 255, paramiko -1, and ssh2-python nothing at all.
    assert case == "libssh2" or seen.signal in ("TERM", "SIGTERM") or seen.status in (255, -1)


@columns()
async def test_the_end_of_stdin_and_what_is_said_after_it(pair: Pair, case: str) -> None:
    (seen,) = await execute(pair, case, Command("n=$(wc -c); sleep 0.1; echo got $n; exit 4", stdin=b"x" * 100_001))
    assert (seen.status, seen.stdout) == (4, b"got 100001\n")


@columns()
async def test_every_byte_both_ways(pair: Pair, case: str) -> None:
    every = bytes(range(256)) * 64 + b"\r\n~.\n\x00\xff"
    (seen,) = await execute(pair, case, Command("cat; cat /dev/null >&2", stdin=every))
    assert (seen.status, seen.stdout) == (0, every)


@columns()
async def test_order_within_each_stream(pair: Pair, case: str) -> None:
    text = "for n in $(seq 400); do echo o$n; echo e$n >&2; done"
    (seen,) = await execute(pair, case, Command(text))
    assert seen.stdout.split() == [b"o%d" % n for n in range(1, 401)]
    assert seen.stderr.split() == [b"e%d" % n for n in range(1, 401)]


@columns()
async def test_environment_that_is_taken_and_that_is_not(pair: Pair, case: str) -> None:
    asked = (("RC_COLOUR", "teal"), ("LD_PRELOAD", "/tmp/evil.so"), ("BASH_ENV", "/tmp/evil"), ("OTHER", "x"))
    (seen,) = await execute(pair, case, Command('echo "$RC_COLOUR|$LD_PRELOAD|$BASH_ENV|$OTHER"', environment=asked))
    assert seen.stdout == b"teal|||\n"


@columns()
async def test_many_channels_on_one_connection(pair: Pair, case: str) -> None:
    commands = [Command(f"cat; echo {n} >&2; exit {n}", stdin=b"%d" % n * 1000) for n in range(CHANNELS)]
    seen = await execute(pair, case, *commands)
    assert [one.status for one in seen] == list(range(CHANNELS))
    assert [one.stdout for one in seen] == [command.stdin for command in commands]


# An ordinary user's plain sshd cannot give a pty to group tty.
@pytest.mark.root_only
@columns()
async def test_a_pty_with_its_modes(pair: Pair, case: str) -> None:
    (seen,) = await execute(
        pair, case, Command("stty size; stty -a | tail -n +2; echo $TERM; exit 6", pty=("vt220", 101, 37))
    )
    assert seen.status == 6
    if case != "OpenSSH":  # it takes its own terminal's, and has none here
        assert seen.stdout.startswith(b"24 80\r\n" if case == "libssh2" else b"37 101\r\n")
        assert seen.stdout.endswith(b"vt220\r\n")
    assert b"isig" in seen.stdout


@pytest.mark.root_only
@columns("asyncssh", "paramiko", "npm ssh2")
async def test_a_new_size(pair: Pair, case: str) -> None:
    text = "trap 'stty size; exit 5' WINCH; stty size; echo ready; while :; do sleep 0.05; done"

    def resize(way: Way, folder: Path) -> object:
        client = CLIENTS[case]
        if isinstance(client, NodeSsh2):
            told = client.ask(way, "poke", text=text, resize=[120, 50], pty={"term": "xterm", "cols": 101, "rows": 37})
            return told["status"], told["stdout"]
        if isinstance(client, Paramiko):
            transport = client.open(way)
            channel = transport.open_session()
            channel.get_pty("xterm", 101, 37)
            channel.exec_command(text)
            seen = b""
            while b"ready" not in seen:
                seen += channel.recv(4096)
            channel.resize_pty(120, 50)
            while part := channel.recv(4096):
                seen += part
            status = channel.recv_exit_status()
            transport.close()
            return status, seen

        async def story(connection: asyncssh.SSHClientConnection) -> object:
            process = await connection.create_process(text, term_type="xterm", term_size=(101, 37), encoding=None)
            seen = await process.stdout.readuntil(b"ready\r\n")
            process.change_terminal_size(120, 50)
            seen += await process.stdout.read()
            return (await process.wait()).exit_status, seen

        assert isinstance(client, AsyncSsh)
        return client.drive(way, story)

    status, seen = await pair.compare(resize)
    assert status == 5
    if isinstance(seen, bytes):
        assert seen.splitlines() == [b"37 101", b"ready", b"50 120"]


@columns("asyncssh", "npm ssh2")
async def test_a_signal_to_a_command(pair: Pair, case: str) -> None:
    # sshd passes a signal on for ordinary users only; then the command's own end is seen, on both ways.
    text = "trap 'echo caught; exit 9' USR1; echo ready; for n in $(seq 40); do sleep 0.05; done; exit 3"

    def send(way: Way, folder: Path) -> object:
        client = CLIENTS[case]
        if isinstance(client, NodeSsh2):
            told = client.ask(way, "poke", text=text, signal="USR1")
            return told["status"], told["stdout"]

        async def story(connection: asyncssh.SSHClientConnection) -> object:
            process = await connection.create_process(text, encoding=None)
            seen = await process.stdout.readuntil(b"ready\n")
            process.send_signal("USR1")
            seen += await process.stdout.read()
            return (await process.wait()).exit_status, seen

        assert isinstance(client, AsyncSsh)
        return client.drive(way, story)

    assert (await pair.compare(send))[0] == (3 if os.geteuid() == 0 else 9)


@columns("OpenSSH", "asyncssh", "paramiko", "npm ssh2")
async def test_a_subsystem_that_is_not_there(pair: Pair, case: str) -> None:
    def ask(way: Way, folder: Path) -> object:
        client = CLIENTS[case]
        if isinstance(client, OpenSsh):
            return client.run(way, "-s", "box", "no-such-thing")
        if isinstance(client, NodeSsh2):
            return client.ask(way, "subsystem", name="no-such-thing")
        if isinstance(client, Paramiko):
            transport = client.open(way)
            try:
                transport.open_session().invoke_subsystem("no-such-thing")
            except paramiko.SSHException as error:
                return str(error)
            finally:
                transport.close()
            return "open"

        async def story(connection: asyncssh.SSHClientConnection) -> object:
            try:
                await connection.create_process(subsystem="no-such-thing")
            except asyncssh.ChannelOpenError as error:
                return error.code, error.reason
            return "open"

        assert isinstance(client, AsyncSsh)
        return client.drive(way, story)

    assert await pair.compare(ask) != "open"


# ---------------------------------------------------------------- what no client asks for by itself


@columns("paramiko")
async def test_channels_and_requests_that_nobody_knows(pair: Pair, case: str) -> None:
    def ask(way: Way, folder: Path) -> object:
        transport = Paramiko().open(way)
        seen: list[object] = []
        for kind in ("bogus@example.org", "forwarded-tcpip", "x11", "auth-agent@openssh.com"):
            try:
                transport.open_channel(kind, ("127.0.0.1", 1), ("127.0.0.1", 1), timeout=30)
                seen.append((kind, "open"))
            except paramiko.ChannelException as error:
                # sshd says "connect failed" of them, the gateway "unknown type" (docs/edges.md).
                expected = 3 if way.name == "gateway" else 2
                seen.append((kind, "refused" if error.code == expected else error.code))
        seen.append(transport.global_request("bogus@example.org", wait=True))
        seen.append(transport.global_request("no-more-sessions@openssh.com-x", wait=True))
        # And the connection is none the worse for it.
        channel = transport.open_session()
        channel.exec_command("echo fine")
        seen.append(channel.recv(100))
        transport.close()
        return seen

    seen = await pair.compare(ask)
    assert seen[-1] == b"fine\n"
    assert all(answer == "refused" for _, answer in seen[:4])


# ---------------------------------------------------------------- forwards


def serve_upper(listener: socket.socket) -> None:
    """Answers each connection with what it sent, in capitals, at its end."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            connection.sendall(b"".join(parts).upper())


@contextmanager
def upper(path: Path | None = None) -> Iterator[int]:
    """Such a server on a loopback port, which it yields, or at `path`."""
    if path is None:
        listener = socket.create_server(("127.0.0.1", 0))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
    thread = threading.Thread(target=serve_upper, args=(listener,), daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1] if path is None else 0
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def ask_stream(connection: socket.socket, sent: bytes) -> bytes:
    with connection:
        connection.settimeout(60)
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def dial(port: int | None = None, path: Path | None = None) -> socket.socket:
    """Once something listens there."""
    deadline = time.monotonic() + 60
    while True:
        connection = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
        try:
            connection.connect(("127.0.0.1", port) if path is None else str(path))
            return connection
        except (ConnectionRefusedError, FileNotFoundError):
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@columns()
async def test_a_forward_to_the_box_and_one_that_is_refused(pair: Pair, case: str) -> None:
    closed = free_port()
    with upper() as port:
        answer = await pair.compare(lambda way, folder: CLIENTS[case].call_port(way, port, b"there" * 40_000))
        refused = await pair.compare(lambda way, folder: CLIENTS[case].call_port(way, closed, b"x"))
    assert answer == b"THERE" * 40_000
    assert isinstance(refused, str)


@contextmanager
def running(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


@columns("OpenSSH", "asyncssh", "paramiko")
async def test_a_forward_from_the_box(pair: Pair, case: str) -> None:
    def forward(way: Way, folder: Path) -> object:
        client = CLIENTS[case]
        with upper() as port:
            if isinstance(client, OpenSsh):
                there = free_port()
                with running(client.argv(way, "-N", "-R", f"127.0.0.1:{there}:127.0.0.1:{port}", "box")):
                    return ask_stream(dial(there), b"back" * 30_000)
            if isinstance(client, Paramiko):
                transport = client.open(way)
                there = transport.request_port_forward("127.0.0.1", 0)
                answers: list[bytes] = []
                asking = threading.Thread(target=lambda: answers.append(ask_stream(dial(there), b"back" * 30_000)))
                asking.start()
                channel = transport.accept(60)
                assert channel is not None
                parts = []
                while part := channel.recv(65536):
                    parts.append(part)
                channel.sendall(b"".join(parts).upper())
                channel.close()
                asking.join(60)
                transport.cancel_port_forward("127.0.0.1", there)
                transport.close()
                return answers[0]

            async def story(connection: asyncssh.SSHClientConnection) -> object:
                listener = await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", port)
                return await asyncio.to_thread(ask_stream, dial(listener.get_port()), b"back" * 30_000)

            assert isinstance(client, AsyncSsh)
            return client.drive(way, story)

    assert await pair.compare(forward) == b"BACK" * 30_000


@columns("OpenSSH", "asyncssh", "npm ssh2")
async def test_a_forward_to_a_path_on_the_box(pair: Pair, case: str) -> None:
    def forward(way: Way, folder: Path) -> object:
        client = CLIENTS[case]
        target = folder / "t"
        with upper(target):
            if isinstance(client, OpenSsh):
                with running(client.argv(way, "-N", "-L", f"{folder}/l:{target}", "box")):
                    return ask_stream(dial(path=folder / "l"), b"path" * 30_000)
            if isinstance(client, NodeSsh2):
                told = client.ask(way, "call_path", path=str(target), sent=base64.b64encode(b"path" * 30_000).decode())
                return base64.b64decode(told["answer"]) if "answer" in told else told

            async def story(connection: asyncssh.SSHClientConnection) -> object:
                reader, writer = await connection.open_unix_connection(str(target), encoding=None)
                writer.write(b"path" * 30_000)
                writer.write_eof()
                return await reader.read()

            assert isinstance(client, AsyncSsh)
            return client.drive(way, story)

    assert await pair.compare(forward) == b"PATH" * 30_000


@columns("OpenSSH", "asyncssh")
async def test_a_forward_from_a_path_on_the_box(pair: Pair, case: str) -> None:
    def forward(way: Way, folder: Path) -> object:
        client = CLIENTS[case]
        there = folder / "b"
        with upper(folder / "here"):
            if isinstance(client, OpenSsh):
                with running(client.argv(way, "-N", "-R", f"{there}:{folder}/here", "box")):
                    return ask_stream(dial(path=there), b"up" * 30_000)

            async def story(connection: asyncssh.SSHClientConnection) -> object:
                await connection.forward_remote_path(str(there), f"{folder}/here")
                return await asyncio.to_thread(ask_stream, dial(path=there), b"up" * 30_000)

            assert isinstance(client, AsyncSsh)
            return client.drive(way, story)

    assert await pair.compare(forward) == b"UP" * 30_000


@columns("OpenSSH")
async def test_agent_forwarding(pair: Pair, case: str, tmp_path: Path) -> None:
    def ask(way: Way, folder: Path) -> object:
        agent = folder / "a"
        with running([require_program("ssh-agent", "openssh-client"), "-D", "-a", str(agent)]):
            dial(path=agent).close()
            environment = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
            subprocess.run(
                [require_program("ssh-add", "openssh-client"), "-q", way.key_path], env=environment, check=True
            )
            words = ("-o", "IdentityAgent=SSH_AUTH_SOCK", "box", "ssh-add -l | cut -d' ' -f1,2; echo $?")
            return [OpenSsh().run(way, flag, *words, env=environment) for flag in ("-A", "-a")]

    with_agent, without = await pair.compare(ask)
    assert b"SHA256:" in with_agent.stdout
    assert b"SHA256:" not in without.stdout


@columns("OpenSSH")
async def test_x11_forwarding(pair: Pair, case: str, tmp_path: Path) -> None:
    """A display of our own on the client's side; the box's `nc` to its DISPLAY reaches it."""

    def ask(way: Way, folder: Path) -> object:
        here = socket.create_server(("127.0.0.1", 0))
        number = here.getsockname()[1] - 6000
        if number < 0:
            pytest.fail("no display number for this port")
        authority = folder / "authority"
        environment = {**os.environ, "DISPLAY": f"127.0.0.1:{number}", "XAUTHORITY": str(authority)}
        xauth = require_program("xauth", "xauth")
        subprocess.run(
            [xauth, "-q", "-f", authority, "add", f"127.0.0.1:{number}", "MIT-MAGIC-COOKIE-1", "00" * 16], check=True
        )
        heard: list[bytes] = []

        def display() -> None:
            connection, _ = here.accept()
            with connection:
                heard.append(connection.recv(48))
                connection.sendall(b"the display answers")

        thread = threading.Thread(target=display, daemon=True)
        thread.start()
        # An X client's first message: little endian, protocol 11.0, with the cookie that sshd made.
        program = (
            "import os,socket,subprocess;d=os.environ['DISPLAY'];h,n=d.split(':');n=n.split('.')[0];"
            "c=bytes.fromhex(subprocess.run(['xauth','list',d],capture_output=True,text=True).stdout.split()[-1]);"
            "s=socket.create_connection((h,6000+int(n)));m=b'MIT-MAGIC-COOKIE-1';"
            "s.sendall(b'l\\0\\x0b\\0\\0\\0\\x12\\0\\x10\\0\\0\\0'+m+b'\\0\\0'+c);print(s.recv(100).decode())"
        )
        done = OpenSsh().run(way, "-Y", "box", f'python3 -c "{program}"', env=environment)
        here.close()
        thread.join(10)
        return done.status, done.stdout, heard

    status, out, heard = await pair.compare(ask)
    assert (status, out) == (0, b"the display answers\n")
    assert heard[0][-16:] == bytes(16)


@columns("OpenSSH")
async def test_tunnel_devices(pair: Pair, case: str) -> None:
    options = ("-o", "ExitOnForwardFailure=no", "-o", "Tunnel=point-to-point", "-w", "any:any")
    seen = await pair.compare(lambda way, folder: OpenSsh().run(way, *options, "box", "echo here").stdout)
    assert seen in (b"here\n", b"")


# ---------------------------------------------------------------- files


@columns()
async def test_sftp(pair: Pair, case: str) -> None:
    seen = await pair.compare(lambda way, folder: CLIENTS[case].walk_sftp(way, folder, b"\x00\xff\r\n" * 9000))
    assert len(seen) >= 4


def make_tree(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "deep" / "a b'c").write_bytes(bytes(range(256)) * 400)
    (folder / "deep" / "er" / "run").write_text("#!/bin/sh\n")
    (folder / "deep" / "er" / "run").chmod(0o755)
    (folder / "nothing").touch(mode=0o600)


def read_tree(folder: Path) -> list[object]:
    return [
        (str(path.relative_to(folder)), path.stat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    ]


@columns("OpenSSH")
@pytest.mark.parametrize("by", ["scp", "scp -O", "sftp", "rsync"])
async def test_trees_both_ways(pair: Pair, case: str, by: str) -> None:
    def copy(way: Way, folder: Path) -> object:
        here, there, back = folder / "here", folder / "there", folder / "back"
        make_tree(here)
        client = OpenSsh()
        if by == "rsync":
            shell = " ".join(client.argv(way))
            for source, target in ((f"{here}/", f"box:{there}/"), (f"box:{there}/", f"{back}/")):
                subprocess.run(
                    [require_program("rsync", "rsync"), "-a", "-e", shell, source, target], check=True, timeout=90
                )
        elif by == "sftp":
            lines = f"mkdir {there}\nput -Rp {here}/. {there}/\nget -Rp {there} {back}\n"
            assert client.run(way, "-b", "-", "box", stdin=lines.encode(), program="sftp").status == 0
        else:
            flags = ("-r", "-p", "-q", *by.split()[1:])
            assert client.run(way, *flags, str(here), f"box:{there}", program="scp").stderr == b""
            assert client.run(way, *flags, f"box:{there}", str(back), program="scp").stderr == b""
        return read_tree(here), read_tree(there), read_tree(back)

    here, there, back = await pair.compare(copy)
    assert here == there == back
    assert len(here) == 6


@columns("OpenSSH")
async def test_git_clone_and_push(pair: Pair, case: str) -> None:
    def work(way: Way, folder: Path) -> object:
        git = require_program("git", "git")
        environment = {
            **os.environ,
            "GIT_SSH_COMMAND": " ".join(OpenSsh().argv(way)),
            **{f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
            "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
        }

        def run(*words: str, at: Path = folder) -> str:
            done = subprocess.run([git, *words], cwd=at, env=environment, capture_output=True, check=True, timeout=90)
            return done.stdout.decode()

        run("init", "-q", "--bare", "-b", "main", f"{folder}/origin.git")
        run("clone", "-q", f"box:{folder}/origin.git", "one")
        (folder / "one" / "file").write_bytes(bytes(range(256)) * 2000)
        run("add", ".", at=folder / "one")
        run("commit", "-q", "-m", "first", at=folder / "one")
        run("push", "-q", "origin", "HEAD:main", at=folder / "one")
        run("clone", "-q", "-b", "main", f"box:{folder}/origin.git", "two")
        return run("rev-parse", "HEAD", at=folder / "two"), read_tree_of_files(folder / "two")

    commit, files = await pair.compare(work)
    assert len(commit.strip()) == 40
    assert files == {"file": bytes(range(256)) * 2000}


def read_tree_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---------------------------------------------------------------- much, and keys that change under it


@columns()
async def test_much_both_ways_while_every_leg_changes_its_keys(case: str) -> None:
    """Three key exchanges or more of each leg: the gateway's and both sshds' every quarter, and the client's own."""
    size = SIZE if case in ("OpenSSH", "asyncssh") else min(SIZE, 64 * MB)
    sent = hashlib.sha256(b"seed").digest() * (size // 32)
    digest = hashlib.sha256(sent).hexdigest().encode()
    program = f"for _ in range({size // 32768}): sys.stdout.buffer.write(hashlib.sha256(b'seed').digest() * 1024)"
    repeated = f'python3 -c "import sys, hashlib\n{program}"'
    async with open_pair(rekey_bytes=size // 4) as pair:
        up, down = Command("sha256sum; exit 3", stdin=sent), Command(f"{repeated}; exit 4")
        (first,) = await pair.compare(lambda way, folder: CLIENTS[case].execute(way, [up]), timeout_s=1200)
        (second,) = await pair.compare(lambda way, folder: CLIENTS[case].execute(way, [down]), timeout_s=1200)
    assert (first.status, first.stdout.split()[0]) == (3, digest)
    assert (second.status, hashlib.sha256(second.stdout).hexdigest().encode()) == (4, digest)


# ---------------------------------------------------------------- many


SEQUENTIAL, PARALLEL = (10_000, 500) if LONG else (150, 40)


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


@columns("asyncssh")
async def test_no_exec_of_many_is_wrong_and_nothing_leaks(pair: Pair, case: str) -> None:
    """One after another on one connection, then at once on 20: each exit status and byte, memory and descriptors."""
    client = AsyncSsh()

    async def one(connection: asyncssh.SSHClientConnection, number: int) -> str | None:
        sent = b"%d\n" % number * (1 + number % 50)
        done = await connection.run(f"cat; exit {number % 250}", input=sent, encoding=None)
        if (done.exit_status, done.stdout) == (number % 250, sent):
            return None
        return f"{number}: {done.exit_status}, {len(done.stdout or b'')} of {len(sent)} bytes"

    wrong: list[str | None] = []
    async with client.connect(pair.gateway) as connection:
        for number in range(SEQUENTIAL):
            wrong.append(await one(connection, number))
            if number == SEQUENTIAL // 10:
                descriptors, memory_mb = count_descriptors(), resident_mb()
        assert count_descriptors() <= descriptors
        assert resident_mb() - memory_mb < 8
    for _ in range(2):
        async with contextlib.AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(client.connect(pair.gateway)) for _ in range(20)]
            wrong += await asyncio.gather(*(one(connections[n % 20], n) for n in range(PARALLEL)))
        await pair.scene.until(lambda: len(pair.scene.gateway._registry) == 0, timeout_s=30)
    assert [text for text in wrong if text] == []
    await pair.scene.until(lambda: count_descriptors() <= descriptors, timeout_s=30)
