"""A real sshd behind a unix socket, a gateway in front of it, and the real OpenSSH client.

The box here is no sandbox: `sshd -i` as the user who runs the tests, per
connection, trusting the fake directory's workspace CA. Isolation is the local
runtime's business; this proves the relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from runcode.gateway.admission import AdmissionPolicy
from runcode.gateway.directory import SessionFacts, WorkspaceFacts
from runcode.gateway.doorstep import Network
from runcode.gateway.server import GatewayServer
from support.gateway_fakes import FakeDirectory, FakeSink


def require_program(name: str, package: str) -> str:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise RuntimeError(f"{name} is missing: apt-get install {package}")
    return path


class Box:
    """`sshd -i` for each connection to `socket_path`; the host made the socket."""

    def __init__(self, folder: Path, ca_line: str, *, extra_config: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.socket_path = str(folder / "s")
        self.login = getpass.getuser()
        self.children: list[subprocess.Popen[bytes]] = []
        self._ca_line = ca_line
        self._extra_config = extra_config
        self._server: socket.socket | None = None
        self._sshd = require_program("sshd", "openssh-server")
        key = asyncssh.generate_private_key("ssh-ed25519")
        host_key_path = folder / "host"
        host_key_path.write_bytes(key.export_private_key("openssh"))
        host_key_path.chmod(0o600)
        self.host_key_line = key.export_public_key("openssh").decode().strip()

        # Never the home of whoever runs the tests: a bash that sshd starts reads its ~/.bashrc first. One that calls
        # `pyenv init` costs each command 0.2 s, and many at once wait up to a minute for that program's lock.
        self.home = folder / "home"
        self.home.mkdir()

    def trust(self, principal: str) -> None:
        (self.folder / "ca.pub").write_text(self._ca_line + "\n")
        (self.folder / "principals").write_text(principal + "\n")
        (self.folder / "sshd_config").write_text(
            f"""HostKey {self.folder}/host
TrustedUserCAKeys {self.folder}/ca.pub
AuthorizedPrincipalsFile {self.folder}/principals
AuthorizedKeysFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin yes
PidFile none
MaxSessions 1000
AllowAgentForwarding yes
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
StreamLocalBindUnlink yes
X11Forwarding yes
AcceptEnv LANG RC_*
PrintMotd no
PrintLastLog no
LogLevel ERROR
Subsystem sftp internal-sftp
SetEnv HOME={self.home}
{self._extra_config}
"""
        )

    def start(self) -> None:
        if os.geteuid() == 0:
            # sshd's compiled-in privilege separation folder; the distribution's unit makes it otherwise.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(self.socket_path)
        server.listen(128)
        server.setblocking(False)
        self._server = server
        asyncio.get_running_loop().add_reader(server, self._accept)

    def _accept(self) -> None:
        assert self._server is not None
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._server.accept()
            with connection, (self.folder / "sshd.log").open("ab") as log:
                self.children.append(
                    subprocess.Popen(
                        [self._sshd, "-i", "-e", "-f", str(self.folder / "sshd_config")],
                        stdin=connection,
                        stdout=connection,
                        stderr=log,
                        env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin"},
                    )
                )

    def kill_sshds(self) -> None:
        """As a box dies: without a word, and with all that it started."""
        # The sshds first and in order: one that outlives its shell by a moment would tell how that ended.
        family = [child.pid for child in self.children if child.poll() is None]
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        for ancestor in family:  # grows as it is walked
            family += [pid for pid, parent in parents.items() if parent == ancestor]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        if self._server is not None:
            asyncio.get_running_loop().remove_reader(self._server)
            self._server.close()
            self._server = None
        for child in self.children:
            if child.poll() is None:
                child.terminate()
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)


@dataclass
class Finished:
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def error_text(self) -> str:
        return self.stderr.decode("utf-8", "replace")


@dataclass
class Client:
    """One client key and the isolated OpenSSH configuration that uses it."""

    folder: Path
    title: str
    port: int
    host_line: str
    # As `Ciphers` in the configuration; OpenSSH before 10 prefers aes256-ctr by itself, which goes the slow way.
    ciphers: str = ""
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.public_line = self.key.export_public_key("openssh").decode().strip()
        self.key_path = self.folder / "key"
        self.key_path.write_bytes(self.key.export_private_key("openssh"))
        self.key_path.chmod(0o600)
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {self.host_line}\n")
        self.config_path = self.folder / "config"
        self.write_config(self.title)

    def write_config(self, user: str) -> None:
        self.config_path.write_text(
            f"""Host box
  HostName 127.0.0.1
  Port {self.port}
  User "{user}"
  IdentityFile {self.key_path}
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {self.folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  BatchMode yes
  UpdateHostKeys yes
  LogLevel ERROR
  ConnectTimeout 20
"""
            + (f"  Ciphers {self.ciphers}\n" if self.ciphers else "")
        )

    def argv(self, *arguments: str, program: str = "ssh", options: tuple[str, ...] = ()) -> list[str]:
        found = require_program(program, "openssh-client")
        flags = [flag for option in options for flag in ("-o", option)]
        if program == "sftp":
            return [found, "-F", str(self.config_path), *flags, *arguments, "box"]
        return [found, "-F", str(self.config_path), *flags, *arguments]

    async def start(
        self, *arguments: str, options: tuple[str, ...] = (), **pipes: object
    ) -> asyncio.subprocess.Process:
        """`ssh -F config ARGUMENTS`; name `box` yourself."""
        streams: dict[str, object] = {
            "stdin": asyncio.subprocess.DEVNULL,
            "stdout": asyncio.subprocess.PIPE,
            "stderr": asyncio.subprocess.PIPE,
        }
        streams.update(pipes)
        process = await asyncio.create_subprocess_exec(*self.argv(*arguments, options=options), **streams)  # type: ignore[arg-type]
        self.processes.append(process)
        return process

    async def run(
        self, command: str, *flags: str, options: tuple[str, ...] = (), stdin: bytes | None = None
    ) -> Finished:
        process = await self.start(
            *flags,
            "box",
            command,
            options=options,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            stdout, stderr = await process.communicate(stdin)
        assert process.returncode is not None
        return Finished(process.returncode, stdout, stderr)

    async def close(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


class Scene:
    """A directory, a running gateway, boxes and clients; everything ends with it."""

    def __init__(self, folder: Path, policy: AdmissionPolicy | None = None, balancers: Sequence[Network] = ()) -> None:
        self.folder = folder
        self.directory = FakeDirectory()
        host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.host_key_path = folder / "gateway_host_key"
        self.host_key_path.write_bytes(host_key.export_private_key("openssh"))
        self.host_line = host_key.export_public_key("openssh").decode().strip()
        self.events = FakeSink()
        self.gateway = GatewayServer(
            self.directory, host_key_path=self.host_key_path, policy=policy, events=self.events, balancers=balancers
        )
        self.port = 0
        self.boxes: dict[str, Box] = {}
        self.clients: list[Client] = []
        self.sessions: dict[str, SessionFacts] = {}

    def add_box(self, title: str, *, extra_config: str = "") -> WorkspaceFacts:
        box = Box(self.folder / title, self.directory.ca_line, extra_config=extra_config)
        facts = self.directory.add_workspace(
            title, host_key=box.host_key_line, socket_path=box.socket_path, login=box.login
        )
        box.trust(facts.principal)
        box.start()
        self.boxes[title] = box
        return facts

    def add_client(self, title: str, *, registered_for: str | None = "", ttl_s: float = 1800) -> Client:
        """A client that connects as `title`; its key is registered for that title unless said otherwise."""
        client = Client(self.folder / f"c{len(self.clients)}", title, self.port, self.host_line)
        if registered_for is not None:
            session = self.directory.add_session(registered_for or title, client.public_line, ttl_s=ttl_s)
            self.sessions[client.public_line] = session
        self.clients.append(client)
        return client

    def session_of(self, client: Client) -> SessionFacts:
        return self.sessions[client.public_line]

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)


def connect_asyncssh(scene: Scene, client: Client, **options: object) -> Any:
    """asyncssh as the client: for packets and orders that OpenSSH would not send. An async context manager."""
    given: dict[str, Any] = {
        "username": client.title,
        "client_keys": [client.key],
        "known_hosts": ([asyncssh.import_public_key(client.host_line)], [], []),
        "config": None,
        "agent_path": None,
        "encryption_algs": ["aes128-gcm@openssh.com"],
        **options,
    }
    return asyncssh.connect("127.0.0.1", scene.port, **given)


@contextlib.asynccontextmanager
async def open_scene(
    policy: AdmissionPolicy | None = None, *, box: str | None = "royal-1", balancers: Sequence[Network] = ()
) -> AsyncIterator[Scene]:
    """A scene in a folder short enough for unix sockets, with one box unless told otherwise."""
    folder = Path(tempfile.mkdtemp(prefix="rcg"))
    scene = Scene(folder, policy, balancers)
    try:
        scene.port = await scene.gateway.start("127.0.0.1", 0)
        if box is not None:
            scene.add_box(box)
        yield scene
    finally:
        for client in scene.clients:
            await client.close()
        await scene.gateway.close()
        for started in scene.boxes.values():
            started.close()
        shutil.rmtree(folder, ignore_errors=True)
