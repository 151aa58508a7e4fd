"""Forwarding of every kind, with the real OpenSSH client and sshd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.gateway_box import Client, Scene, connect_asyncssh, open_scene, require_program


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        yield opened


@pytest.fixture
def client(scene: Scene) -> Client:
    return scene.add_client("royal-1")


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Upper-cases until the end of input, then closes: proves data both ways and half-close."""
    writer.write((await reader.read()).upper())
    await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def tcp_echo() -> AsyncIterator[int]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> bytes:
    writer.write(text)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def ask_tcp(port: int, text: bytes) -> bytes:
    """Connects as soon as the listener is there."""
    for _ in range(200):
        try:
            streams = await asyncio.open_connection("127.0.0.1", port)
            break
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
    return await ask(*streams, text)


async def wait_for_path(path: Path) -> None:
    async with asyncio.timeout(10):
        while not path.exists():
            await asyncio.sleep(0.02)


async def test_local_forward(client: Client) -> None:
    async with tcp_echo() as target:
        port = free_port()
        await client.start("-N", "-L", f"127.0.0.1:{port}:127.0.0.1:{target}", "box")
        assert await ask_tcp(port, b"local" * 50_000) == b"LOCAL" * 50_000


async def test_remote_forward(client: Client) -> None:
    async with tcp_echo() as target:
        port = free_port()
        await client.start("-N", "-R", f"127.0.0.1:{port}:127.0.0.1:{target}", "box")
        assert await ask_tcp(port, b"remote" * 50_000) == b"REMOTE" * 50_000


async def test_remote_forward_with_a_port_that_the_box_chooses(scene: Scene, client: Client) -> None:
    async with tcp_echo() as target, connect_asyncssh(scene, client) as connection:
        listener = await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", target)
        assert await ask_tcp(listener.get_port(), b"chosen") == b"CHOSEN"
        listener.close()
        await listener.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", listener.get_port())


async def test_dynamic_forward(client: Client) -> None:
    async with tcp_echo() as target:
        port = free_port()
        await client.start("-N", "-D", f"127.0.0.1:{port}", "box")
        for _ in range(200):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
        writer.write(b"\x05\x01\x00")
        assert await reader.readexactly(2) == b"\x05\x00"
        writer.write(b"\x05\x01\x00\x01" + socket.inet_aton("127.0.0.1") + target.to_bytes(2, "big"))
        assert (await reader.readexactly(10))[1] == 0
        assert await ask(reader, writer, b"socks") == b"SOCKS"


async def test_streamlocal_forward_towards_the_box(client: Client, scene: Scene) -> None:
    target, listen = scene.folder / "t", scene.folder / "l"
    async with await asyncio.start_unix_server(_echo, str(target)):
        await client.start("-N", "-L", f"{listen}:{target}", "box")
        await wait_for_path(listen)
        assert await ask(*await asyncio.open_unix_connection(str(listen)), b"path") == b"PATH"


async def test_streamlocal_forward_from_the_box(client: Client, scene: Scene) -> None:
    target, listen = scene.folder / "t", scene.folder / "l"
    async with await asyncio.start_unix_server(_echo, str(target)):
        await client.start("-N", "-R", f"{listen}:{target}", "box")
        await wait_for_path(listen)
        assert await ask(*await asyncio.open_unix_connection(str(listen)), b"back") == b"BACK"


async def test_a_refused_forward_is_told_by_the_box_itself(client: Client) -> None:
    port = free_port()
    await client.start("-N", "-L", f"127.0.0.1:{port}:127.0.0.1:{free_port()}", "box")
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        answer = await ask_tcp(port, b"nobody there")
    assert answer == b""


@contextlib.asynccontextmanager
async def ssh_agent(folder: Path, key_path: Path) -> AsyncIterator[dict[str, str]]:
    socket_path = folder / "agent"
    process = await asyncio.create_subprocess_exec(
        require_program("ssh-agent", "openssh-client"), "-D", "-a", str(socket_path), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        await wait_for_path(socket_path)
        environment = {**os.environ, "SSH_AUTH_SOCK": str(socket_path)}
        adding = await asyncio.create_subprocess_exec(
            require_program("ssh-add", "openssh-client"), "-q", str(key_path), env=environment
        )
        assert await adding.wait() == 0
        yield environment
    finally:
        process.terminate()
        await process.wait()


async def test_agent_forwarding(client: Client, scene: Scene) -> None:
    async with ssh_agent(scene.folder, client.key_path) as environment:
        agent = ("IdentityAgent=SSH_AUTH_SOCK",)
        process = await client.start("-A", "box", "ssh-add -l", env=environment, options=agent)
        out, err = await process.communicate()
        assert client.key.get_fingerprint().encode() in out, err
        # Not asked for: sshd offers no agent socket, and the gateway would refuse the channel.
        process = await client.start("-a", "box", "ssh-add -l", env=environment, options=agent)
        out, _ = await process.communicate()
        assert process.returncode == 2
        assert b"SHA256" not in out


async def test_tunnel_devices_are_refused_cleanly(client: Client) -> None:
    finished = await client.run("echo still here", "-w", "any:any", options=("ExitOnForwardFailure=no",))
    assert finished.stdout in (b"still here\n", b"")
    assert finished.status in (0, 255)
    assert (await client.run("echo fine")).stdout == b"fine\n"


async def test_a_keepalive_waits_its_turn_behind_a_pending_forward(scene: Scene, client: Client) -> None:
    """Replies to global requests have no number: an overtaking one would be taken for the forward's."""
    async with connect_asyncssh(scene, client) as connection:
        requests = [
            connection._make_global_request(b"tcpip-forward", b"\0\0\0\x09127.0.0.1" + bytes(4)),
            connection._make_global_request(b"hostkeys-prove-00@openssh.com"),
            connection._make_global_request(b"tcpip-forward", b"\0\0\0\x09127.0.0.1" + bytes(4)),
            connection._make_global_request(b"keepalive@openssh.com"),
            connection._make_global_request(b"nobody-knows@example.com"),
            connection._make_global_request(b"tcpip-forward", b"\0\0\0\x09127.0.0.1" + bytes(4)),
        ]
        answers = await asyncio.gather(*requests)
    ports = [packet.get_uint32() for kind, packet in answers if kind == 81 and packet]
    # sshd answers a keepalive with a failure (it knows no such request), which is as good as any answer.
    assert [kind for kind, _packet in answers] == [81, 82, 81, 82, 82, 81]
    assert len(set(ports)) == 3


async def test_server_alive_works_end_to_end(client: Client) -> None:
    finished = await client.run("sleep 2.5; echo alive", options=("ServerAliveInterval=1", "ServerAliveCountMax=1"))
    assert finished.stdout == b"alive\n"
