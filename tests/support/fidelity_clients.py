"""Five SSH programs and libraries behind one blocking interface, so that a case runs on each alike.

Owns: how each is driven. Every call opens a connection of its own, checks the pinned host
key and gives back plain values. What a client cannot do is not in `CAN`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import asyncssh
import paramiko
from ssh2 import session as libssh2
from ssh2.exceptions import ChannelRequestDenied

from support.fidelity import Command, Outcome, Way, key_blob
from support.gateway_box import require_program

ROOT = Path(__file__).resolve().parents[2]
NODE_MODULES = ROOT / ".cache" / "ssh2" / "node_modules"
_NODE_DRIVER = Path(__file__).with_name("fidelity_ssh2.cjs")
PATIENCE_S = 600.0


class FidelityClient(Protocol):
    """`execute` runs the commands on one connection, all channels open before any output is read."""

    def execute(self, way: Way, commands: Sequence[Command]) -> list[Outcome]: ...

    def call_port(self, way: Way, port: int, sent: bytes) -> bytes | str:
        """What comes back over direct-tcpip to that port of the box; a text when the channel is refused."""
        ...

    def walk_sftp(self, way: Way, folder: Path, content: bytes) -> list[object]:
        """Make, list, read, rename and remove in `folder` over SFTP, with two errors on the way."""
        ...


# ---------------------------------------------------------------- OpenSSH


class OpenSsh:
    def argv(self, way: Way, *words: str, program: str = "ssh") -> list[str]:
        found = require_program(program, "openssh-client")
        return [found, "-F", str(way.config_path), *words]

    def run(self, way: Way, *words: str, stdin: bytes = b"", program: str = "ssh", **options: Any) -> Outcome:
        done = subprocess.run(
            self.argv(way, *words, program=program),
            input=stdin,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
            **options,
        )
        return Outcome(done.returncode, None, done.stdout, done.stderr)

    def execute(self, way: Way, commands: Sequence[Command]) -> list[Outcome]:
        if len(commands) == 1:
            return [self._one(way, commands[0])]
        control = way.config_path.parent / "m"
        opened = ("-o", f"ControlPath={control}")
        self.run(way, *opened, "-M", "-N", "-f", "box", stdin=b"", env=None)
        outcomes: list[Outcome | None] = [None] * len(commands)

        def run(index: int) -> None:
            outcomes[index] = self._one(way, commands[index], *opened)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(len(commands))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        self.run(way, *opened, "-O", "exit", "box")
        return [outcome for outcome in outcomes if outcome is not None]

    def _one(self, way: Way, command: Command, *more: str) -> Outcome:
        words = list(more)
        if command.environment:
            words += ["-o", "SetEnv " + " ".join(f"{name}={value}" for name, value in command.environment)]
        if command.pty is not None:
            words.append("-tt")
        return self.run(way, *words, "box", command.text, stdin=command.stdin)

    def call_port(self, way: Way, port: int, sent: bytes) -> bytes | str:
        done = self.run(way, "-W", f"127.0.0.1:{port}", "box", stdin=sent)
        return done.stdout if done.status == 0 else done.stderr.decode().strip()

    def walk_sftp(self, way: Way, folder: Path, content: bytes) -> list[object]:
        # The box and this machine are one; names that differ would be seen.
        local = folder / "put me"
        local.write_bytes(content)
        local.chmod(0o640)
        back = folder / "got"
        lines = [
            f'put -p "{local}" "{folder}/a b"',
            f'-mkdir "{folder}/sub"',
            f'rename "{folder}/a b" "{folder}/sub/c"',
            f'ls -1 "{folder}/sub"',
            f'get "{folder}/sub/c" "{back}"',
            f'-get "{folder}/absent" "{back}.2"',
            f'-rmdir "{folder}/sub"',
            f'rm "{folder}/sub/c"',
            f'rmdir "{folder}/sub"',
        ]
        done = self.run(way, "-b", "-", "box", stdin="\n".join(lines).encode(), program="sftp")
        return [done.status, done.stdout, done.stderr, back.read_bytes()]


# ---------------------------------------------------------------- asyncssh


class AsyncSsh:
    def __init__(self, **by_gateway: Any) -> None:
        """`by_gateway`: what only the gateway has of the two; the direct sshd is the distribution's."""
        self._by_gateway = by_gateway

    def connect(self, way: Way, **options: Any) -> Any:
        return asyncssh.connect(
            "127.0.0.1",
            way.port,
            username=way.user,
            client_keys=[str(way.key_path)],
            known_hosts=([asyncssh.import_public_key(way.host_line)], [], []),
            config=None,
            agent_path=None,
            **(self._by_gateway if way.name == "gateway" else {}),
            **options,
        )

    def drive(self, way: Way, story: Callable[[asyncssh.SSHClientConnection], Any], **options: Any) -> Any:
        async def go() -> Any:
            async with asyncio.timeout(PATIENCE_S), self.connect(way, **options) as connection:
                return await story(connection)

        return asyncio.run(go())

    def execute(self, way: Way, commands: Sequence[Command]) -> list[Outcome]:
        async def story(connection: asyncssh.SSHClientConnection) -> list[Outcome]:
            processes = []
            for command in commands:
                terminal: dict[str, Any] = {}
                if command.pty is not None:
                    kind, columns, rows = command.pty
                    terminal = {"term_type": kind, "term_size": (columns, rows)}
                processes.append(
                    await connection.create_process(
                        command.text, env=dict(command.environment), encoding=None, **terminal
                    )
                )

            async def finish(process: Any, command: Command) -> Outcome:
                out, err = await process.communicate(command.stdin)
                return Outcome(
                    process.exit_status if process.exit_signal is None else None,
                    None if process.exit_signal is None else process.exit_signal[0],
                    out,
                    err,
                )

            return list(await asyncio.gather(*(finish(*pair) for pair in zip(processes, commands, strict=True))))

        return list(self.drive(way, story))

    def call_port(self, way: Way, port: int, sent: bytes) -> bytes | str:
        async def story(connection: asyncssh.SSHClientConnection) -> bytes | str:
            try:
                reader, writer = await connection.open_connection("127.0.0.1", port, encoding=None)
            except asyncssh.ChannelOpenError as error:
                return f"{error.code} {error.reason}"
            writer.write(sent)
            writer.write_eof()
            return bytes(await reader.read())

        answer: bytes | str = self.drive(way, story)
        return answer

    def walk_sftp(self, way: Way, folder: Path, content: bytes) -> list[object]:
        async def story(connection: asyncssh.SSHClientConnection) -> list[object]:
            seen: list[object] = []
            async with connection.start_sftp_client() as sftp:
                async with sftp.open(f"{folder}/a b", "wb") as file:
                    await file.write(content)
                await sftp.chmod(f"{folder}/a b", 0o640)
                await sftp.mkdir(f"{folder}/sub")
                await sftp.rename(f"{folder}/a b", f"{folder}/sub/c")
                seen.append(sorted(await sftp.listdir(f"{folder}/sub")))
                found = await sftp.stat(f"{folder}/sub/c")
                seen += [found.size, found.permissions]
                async with sftp.open(f"{folder}/sub/c", "rb") as file:
                    seen.append(await file.read())
                for wrong in (sftp.stat(f"{folder}/absent"), sftp.rmdir(f"{folder}/sub")):
                    try:
                        await wrong
                    except asyncssh.SFTPError as error:
                        seen.append(f"{error.code} {error.reason}")
                await sftp.remove(f"{folder}/sub/c")
                await sftp.rmdir(f"{folder}/sub")
            return seen

        return list(self.drive(way, story))


# ---------------------------------------------------------------- paramiko


class Paramiko:
    def open(self, way: Way) -> paramiko.Transport:
        transport = paramiko.Transport(("127.0.0.1", way.port))
        transport.start_client(timeout=PATIENCE_S)
        assert transport.get_remote_server_key().asbytes() == key_blob(way.host_line)
        transport.auth_publickey(way.user, paramiko.Ed25519Key.from_private_key_file(str(way.key_path)))
        return transport

    def execute(self, way: Way, commands: Sequence[Command]) -> list[Outcome]:
        transport = self.open(way)
        try:
            channels = []
            for command in commands:
                channel = transport.open_session(timeout=PATIENCE_S)
                for name, value in command.environment:
                    # `update_environment` asks for no reply; this one does, and a refusal is no error of ours.
                    channel.set_environment_variable(name, value)
                if command.pty is not None:
                    kind, columns, rows = command.pty
                    channel.get_pty(kind, columns, rows)
                channel.exec_command(command.text)
                channels.append(channel)
            outcomes: list[Outcome | None] = [None] * len(commands)

            def finish(index: int) -> None:
                outcomes[index] = _finish_paramiko(channels[index], commands[index])

            threads = [threading.Thread(target=finish, args=(index,)) for index in range(len(commands))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_S)
            return [outcome for outcome in outcomes if outcome is not None]
        finally:
            transport.close()

    def call_port(self, way: Way, port: int, sent: bytes) -> bytes | str:
        transport = self.open(way)
        try:
            channel = transport.open_channel("direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 1), timeout=PATIENCE_S)
            channel.sendall(sent)
            channel.shutdown_write()
            return _read_all(channel.recv)
        except paramiko.ChannelException as error:
            return f"{error.code} {error.text}"
        finally:
            transport.close()

    def walk_sftp(self, way: Way, folder: Path, content: bytes) -> list[object]:
        transport = self.open(way)
        seen: list[object] = []
        try:
            sftp = paramiko.SFTPClient.from_transport(transport)
            assert sftp is not None
            with sftp.open(f"{folder}/a b", "wb") as file:
                file.write(content)
            sftp.chmod(f"{folder}/a b", 0o640)
            sftp.mkdir(f"{folder}/sub")
            sftp.rename(f"{folder}/a b", f"{folder}/sub/c")
            seen.append(sftp.listdir(f"{folder}/sub"))
            found = sftp.stat(f"{folder}/sub/c")
            seen += [found.st_size, found.st_mode]
            with sftp.open(f"{folder}/sub/c", "rb") as file:
                seen.append(file.read())
            for wrong in (lambda: sftp.stat(f"{folder}/absent"), lambda: sftp.rmdir(f"{folder}/sub")):
                try:
                    wrong()
                except OSError as error:
                    seen.append(str(error))
            sftp.remove(f"{folder}/sub/c")
            sftp.rmdir(f"{folder}/sub")
        finally:
            transport.close()
        return seen


def _finish_paramiko(channel: paramiko.Channel, command: Command) -> Outcome:
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(_read_all(channel.recv_stderr)))
    reader.start()

    def feed() -> None:
        channel.sendall(command.stdin)
        channel.shutdown_write()

    writer = threading.Thread(target=feed)
    writer.start()
    out = _read_all(channel.recv)
    reader.join(PATIENCE_S)
    writer.join(PATIENCE_S)
    status = channel.recv_exit_status()
    return Outcome(status, None, out, errors[0])


def _read_all(receive: Callable[[int], bytes]) -> bytes:
    parts = []
    while part := receive(65536):
        parts.append(part)
    return b"".join(parts)


# ---------------------------------------------------------------- libssh2


class LibSsh2:
    def open(self, way: Way) -> Any:
        connection = socket.create_connection(("127.0.0.1", way.port), timeout=PATIENCE_S)
        connection.settimeout(None)
        session = libssh2.Session()
        session.handshake(connection)
        assert session.hostkey()[0] == key_blob(way.host_line)
        session.userauth_publickey_fromfile(way.user, str(way.key_path))
        return session

    def execute(self, way: Way, commands: Sequence[Command]) -> list[Outcome]:
        session = self.open(way)
        channels = []
        for command in commands:
            channel = session.open_session()
            for name, value in command.environment:
                with contextlib.suppress(ChannelRequestDenied):
                    channel.setenv(name, value)
            if command.pty is not None:
                # It asks for 80 columns and 24 rows, always.
                channel.pty(command.pty[0])
            channel.execute(command.text)
            channels.append(channel)
        outcomes = []
        for channel, command in zip(channels, commands, strict=True):
            view = memoryview(command.stdin)
            while view:
                _, written = channel.write(bytes(view[:32768]))
                view = view[written:]
            channel.send_eof()
            out = _read_all(lambda size, channel=channel: channel.read(size)[1])
            err = _read_all(lambda size, channel=channel: channel.read_stderr(size)[1])
            channel.wait_eof()
            channel.close()
            channel.wait_closed()
            _, signal, _, _ = channel.get_exit_signal()
            outcomes.append(Outcome(channel.get_exit_status(), signal.decode() if signal else None, out, err))
        session.disconnect()
        return outcomes

    def call_port(self, way: Way, port: int, sent: bytes) -> bytes | str:
        session = self.open(way)
        try:
            channel = session.direct_tcpip("127.0.0.1", port)
        except Exception as error:
            return type(error).__name__
        channel.write(sent)
        channel.send_eof()
        answer = _read_all(lambda size: channel.read(size)[1])
        session.disconnect()
        return answer

    def walk_sftp(self, way: Way, folder: Path, content: bytes) -> list[object]:
        from ssh2.sftp import LIBSSH2_FXF_CREAT, LIBSSH2_FXF_READ, LIBSSH2_FXF_WRITE

        session = self.open(way)
        sftp = session.sftp_init()
        seen: list[object] = []
        with sftp.open(f"{folder}/a b", LIBSSH2_FXF_CREAT | LIBSSH2_FXF_WRITE, 0o640) as file:
            file.write(content)
        sftp.mkdir(f"{folder}/sub", 0o755)
        sftp.rename(f"{folder}/a b", f"{folder}/sub/c")
        with sftp.opendir(f"{folder}/sub") as listing:
            seen.append(sorted(name for _, name, _ in listing.readdir()))
        found = sftp.stat(f"{folder}/sub/c")
        seen += [found.filesize, found.permissions]
        with sftp.open(f"{folder}/sub/c", LIBSSH2_FXF_READ, 0) as file:
            seen.append(b"".join(part for _, part in file))
        for wrong in (lambda: sftp.stat(f"{folder}/absent"), lambda: sftp.rmdir(f"{folder}/sub")):
            try:
                wrong()
            except Exception as error:
                seen.append(type(error).__name__)
        sftp.unlink(f"{folder}/sub/c")
        sftp.rmdir(f"{folder}/sub")
        session.disconnect()
        return seen


# ---------------------------------------------------------------- npm's ssh2


class NodeSsh2:
    def ask(self, way: Way, job: str, **facts: Any) -> Any:
        """One run of the driver: a job and its facts in, JSON out; bytes travel as base64."""
        line = {
            "job": job,
            "port": way.port,
            "user": way.user,
            "key": way.key_path.read_text(),
            "host": base64.b64encode(key_blob(way.host_line)).decode(),
            **facts,
        }
        done = subprocess.run(
            ["node", str(_NODE_DRIVER)],
            input=json.dumps(line).encode(),
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
            env={"PATH": os.environ["PATH"], "NODE_PATH": str(NODE_MODULES)},
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def execute(self, way: Way, commands: Sequence[Command]) -> list[Outcome]:
        told = self.ask(
            way,
            "execute",
            commands=[
                {
                    "text": command.text,
                    "stdin": base64.b64encode(command.stdin).decode(),
                    "env": dict(command.environment),
                    "pty": None
                    if command.pty is None
                    else {"term": command.pty[0], "cols": command.pty[1], "rows": command.pty[2]},
                }
                for command in commands
            ],
        )
        return [
            Outcome(one["status"], one["signal"], base64.b64decode(one["stdout"]), base64.b64decode(one["stderr"]))
            for one in told
        ]

    def call_port(self, way: Way, port: int, sent: bytes) -> bytes | str:
        told = self.ask(way, "call_port", target=port, sent=base64.b64encode(sent).decode())
        return base64.b64decode(told["answer"]) if "answer" in told else str(told["refused"])

    def walk_sftp(self, way: Way, folder: Path, content: bytes) -> list[object]:
        return list(self.ask(way, "sftp", folder=str(folder), content=base64.b64encode(content).decode()))


CLIENTS: dict[str, FidelityClient] = {
    "OpenSSH": OpenSsh(),
    "asyncssh": AsyncSsh(),
    "asyncssh, mlkem768x25519": AsyncSsh(kex_algs=["mlkem768x25519-sha256"]),
    "paramiko": Paramiko(),
    "libssh2": LibSsh2(),
    "npm ssh2": NodeSsh2(),
}


def find_obstacle(name: str) -> str | None:
    """Why this client cannot run on this machine."""
    if name == "npm ssh2" and not (NODE_MODULES / "ssh2").is_dir():
        return "npm's ssh2 is not installed: `make npm-ssh2` says why"
    if name == "npm ssh2" and shutil.which("node") is None:
        return "node is missing: apt-get install nodejs"
    return None
