"""Records what real OpenSSH and asyncssh sessions say to the gateway, as transcripts for the fuzzer.

Run as a program: `ssh_recording.py FOLDER` writes one file for each story below. Needed
only when a story is added; what it wrote is in tests/adversarial/corpus/ssh.

A line of a transcript is one step, in the form of `ssh_fuzz.parse_plan`. What must be made
anew for each connection (ephemeral keys, signatures) is a live step in place of the bytes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asyncssh
from asyncssh import connection as asyncssh_connection
from asyncssh.packet import SSHPacket

from runcode.gateway.packets import Reader
from runcode.gateway.relay import Leg
from support.gateway_box import Client, Scene, connect_asyncssh, open_scene

_DATA_MAX = 96
_LINES_MAX = 90
_PLAIN_OPTIONS = ("KexAlgorithms=curve25519-sha256",)


class Recorder:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def record(self, leg: Any, payload: bytes) -> None:
        side = "client" if leg.side is Leg.CLIENT else "box"
        if not payload or len(self.lines) >= _LINES_MAX:
            return
        self.lines.append(f"{side} {self._render(side, payload)}")

    def _render(self, side: str, payload: bytes) -> str:
        kind = payload[0]
        if kind in (30, 31):
            return "live ephemeral"
        if kind == 21:
            return "live newkeys"
        if kind == 60 and side == "box":
            return "live confirm"
        if kind == 50 and side == "client":
            reader = Reader(payload)
            _user, _service, method = reader.string(), reader.string(), reader.string()
            if method == b"publickey":
                return "live signed royal-1 good" if reader.boolean() else "live offer royal-1 good"
        if kind in (94, 95):
            at = 9 if kind == 94 else 13
            text = payload[at : at + _DATA_MAX]
            payload = payload[: at - 4] + len(text).to_bytes(4, "big") + text
        return f"send {payload.hex()}"

    def install(self) -> Callable[[], None]:
        def packet(payload: bytes) -> SSHPacket:
            frame = sys._getframe(1)
            leg = frame.f_locals.get("self")
            if frame.f_code.co_name == "_recv_packet" and hasattr(leg, "side"):
                self.record(leg, payload)
            return SSHPacket(payload)

        asyncssh_connection.SSHPacket = packet  # type: ignore[assignment, misc]

        def remove() -> None:
            asyncssh_connection.SSHPacket = SSHPacket  # type: ignore[misc]

        return remove


async def _ssh(client: Client, command: str, *flags: str, options: tuple[str, ...] = ()) -> None:
    await client.run(command, *flags, options=(*_PLAIN_OPTIONS, *options), stdin=b"some input\n")


async def _exec(scene: Scene, client: Client) -> None:
    await _ssh(client, "cat; echo out; echo err >&2; exit 3", options=("SetEnv=RC_A=1", "SendEnv=LANG"))


async def _terminal(scene: Scene, client: Client) -> None:
    await _ssh(client, "tty; stty size; kill -TERM $$", "-tt", options=("RequestTTY=force",))


async def _sftp(scene: Scene, client: Client) -> None:
    await _ssh(client, "sftp", "-s")


async def _listeners(scene: Scene, client: Client) -> None:
    await _ssh(client, "true", "-R", "0:127.0.0.1:9", "-R", "/tmp/recorded:/tmp/none")


async def _direct(scene: Scene, client: Client) -> None:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    await _ssh(client, "true", "-W", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()


async def _agent_and_display(scene: Scene, client: Client) -> None:
    await _ssh(client, "true", "-A", "-X")


async def _stranger(scene: Scene, client: Client) -> None:
    await _ssh(scene.add_client("royal-1", registered_for=None), "true")


async def _methods(scene: Scene, client: Client) -> None:
    await _ssh(client, "true", options=("PreferredAuthentications=password,keyboard-interactive,hostbased,publickey",))


async def _rekey(scene: Scene, client: Client) -> None:
    await _ssh(client, "head -c 3000 /dev/zero", options=("RekeyLimit=1K", "Ciphers=aes256-ctr"))


async def _keepalives(scene: Scene, client: Client) -> None:
    await _ssh(client, "sleep 2.5", options=("ServerAliveInterval=1",))


async def _asyncssh_session(scene: Scene, client: Client) -> None:
    async with connect_asyncssh(scene, client, kex_algs=["curve25519-sha256"]) as connection:
        process = await connection.create_process("cat", term_type="vt100", term_size=(80, 24))
        process.stdin.write("typed\n")
        process.change_terminal_size(100, 30)
        process.send_signal("INT")
        process.stdin.write_eof()
        process.close()
        await process.wait_closed()
        listener = await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 9)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.get_port())
        await reader.read()
        writer.close()
        listener.close()
        await listener.wait_closed()


STORIES: dict[str, Callable[[Scene, Client], Awaitable[None]]] = {
    "exec": _exec,
    "terminal": _terminal,
    "sftp": _sftp,
    "listeners": _listeners,
    "direct": _direct,
    "agent-and-display": _agent_and_display,
    "stranger": _stranger,
    "methods": _methods,
    "rekey": _rekey,
    "keepalives": _keepalives,
    "asyncssh": _asyncssh_session,
}


async def record_stories(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, story in STORIES.items():
        async with open_scene() as scene:
            # All packets go asyncssh's way, where they can be seen.
            scene.gateway._framing.obstacle = "recording"
            recorder = Recorder()
            remove = recorder.install()
            try:
                await story(scene, scene.add_client("royal-1"))
            except (OSError, asyncssh.Error) as error:
                print(f"{name}: {error!r}")
            finally:
                remove()
        text = "\n".join((f"# recorded: {name}", *recorder.lines)) + "\n"
        (folder / f"{name}.txt").write_text(text.replace(str(scene.folder).encode().hex(), b"/tmp/recorded".hex()))


if __name__ == "__main__":
    asyncio.run(record_stories(Path(sys.argv[1])))
