"""The two ways to one box, a direct sshd and the gateway, and what a client saw on each.

Owns: the direct sshd (the same program, configuration and host as the one behind the
gateway), and the form of what is compared. Clients: `fidelity_clients`.

A case is a blocking function of a client and a way; it runs in a thread, since the
gateway lives on the test's event loop. What it returns must be equal on both ways, byte
for byte, and must hold what the test asserts of it: two equal failures prove nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from runcode.gateway.admission import AdmissionPolicy
from support.gateway_box import Box, Client, Scene, open_scene, require_program

TITLE = "royal-1"


@dataclass(frozen=True)
class Way:
    """Where a client goes, as whom, and with what. `host_line` is the key that it must meet there."""

    name: str
    port: int
    user: str
    host_line: str
    key_path: Path
    config_path: Path


@dataclass(frozen=True)
class Command:
    """One session channel. `pty` is (terminal type, columns, rows), `environment` what is asked for."""

    text: str
    stdin: bytes = b""
    environment: tuple[tuple[str, str], ...] = ()
    pty: tuple[str, int, int] | None = None


@dataclass(frozen=True)
class Outcome:
    """`status` and `signal` as the client tells them; None for what it does not tell."""

    status: int | None
    signal: str | None
    stdout: bytes
    stderr: bytes


class DirectSshd:
    """`sshd -i` per connection on a loopback port, trusting one key: the box without anything before it."""

    def __init__(self, box: Box, client: Client) -> None:
        self._config = box.folder / "direct_config"
        authorized = box.folder / "direct_keys"
        authorized.write_text(client.public_line + "\n")
        text = (box.folder / "sshd_config").read_text()
        self._config.write_text(text.replace("AuthorizedKeysFile none", f"AuthorizedKeysFile {authorized}"))
        self._log = box.folder / "direct.log"
        self._children: list[subprocess.Popen[bytes]] = []
        self.port = 0

    async def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener.setblocking(False)
        self._listener = listener
        self.port = listener.getsockname()[1]
        asyncio.get_running_loop().add_reader(listener, self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(True)
            with connection, self._log.open("ab") as log:
                self._children.append(
                    subprocess.Popen(
                        [require_program("sshd", "openssh-server"), "-i", "-e", "-f", str(self._config)],
                        stdin=connection,
                        stdout=connection,
                        stderr=log,
                        env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin"},
                    )
                )

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        for child in self._children:
            child.wait(10)


@dataclass
class Pair:
    """Both ways, and a folder for what cases make (`work` is on the box and here alike: it is one machine)."""

    scene: Scene
    direct: Way
    gateway: Way
    work: Path
    _count: int = field(default=0)

    async def compare(self, case: Callable[[Way, Path], Any], *, timeout_s: float = 120) -> Any:
        """What `case` saw on both ways, if that is the same. Each way gets a folder of the same name."""
        self._count += 1
        seen = []
        for way in (self.direct, self.gateway):
            folder = self.work / f"case{self._count}"
            folder.mkdir()
            async with asyncio.timeout(timeout_s):
                seen.append(await asyncio.to_thread(case, way, folder))
            folder.rename(self.work / f"done{self._count}-{way.name}")
        assert seen[1] == seen[0], f"through the gateway: {seen[1]!r:.2000}\ndirectly: {seen[0]!r:.2000}"
        return seen[0]


@contextlib.asynccontextmanager
async def open_pair(*, rekey_bytes: int | None = None) -> AsyncIterator[Pair]:
    """`rekey_bytes`: keys of the gateway's legs, of both sshds and of OpenSSH's client are renewed that often."""
    policy = None if rekey_bytes is None else AdmissionPolicy(rekey_bytes=rekey_bytes)
    async with open_scene(policy, box=None) as scene:
        scene.add_box(TITLE, extra_config="" if rekey_bytes is None else f"RekeyLimit {rekey_bytes}")
        client = scene.add_client(TITLE)
        box = scene.boxes[TITLE]
        direct = DirectSshd(box, client)
        await direct.start()
        try:
            work = scene.folder / "w"
            work.mkdir()
            ways = []
            for name, port, user, line in (
                ("direct", direct.port, box.login, box.host_key_line),
                ("gateway", scene.port, TITLE, scene.host_line),
            ):
                folder = scene.folder / name
                folder.mkdir()
                (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {line}\n")
                config = folder / "config"
                text = client.config_path.read_text().replace(f"Port {client.port}", f"Port {port}")
                if rekey_bytes is not None:
                    text += f"  RekeyLimit {rekey_bytes}\n"
                text = text.replace(f'User "{client.title}"', f'User "{user}"')
                config.write_text(text.replace(f"{client.folder}/known_hosts", f"{folder}/known_hosts"))
                ways.append(Way(name, port, user, line, client.key_path, config))
            yield Pair(scene, ways[0], ways[1], work)
        finally:
            direct.close()


def key_blob(line: str) -> bytes:
    """The wire form of a public key line."""
    return asyncssh.import_public_key(line).public_data
