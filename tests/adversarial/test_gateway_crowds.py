"""Too many at once: strangers and the admitted, by address, by user and in all; and balancers that lie or dawdle."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from runcode.gateway import doorstep
from runcode.gateway.admission import AdmissionPolicy
from runcode.gateway.proxy_protocol import SIGNATURE
from support.gateway_box import Client, Scene, open_scene

PATIENCE_S = 60.0
BALANCER, STRANGER = "127.0.0.2", "127.0.0.3"
HELLO = b"SSH-2.0-OpenSSH_9.2\r\n"


async def hold(client: Client, scene: Scene) -> asyncio.subprocess.Process:
    """A connection that has authenticated, and stays."""
    before = len(scene.gateway._registry)
    process = await client.start("box", "cat", stdin=asyncio.subprocess.PIPE)
    await scene.until(lambda: len(scene.gateway._registry) > before, timeout_s=PATIENCE_S)
    return process


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (AdmissionPolicy(max_connections=2), "the gateway has no room for another connection"),
        (AdmissionPolicy(max_connections_per_source=2), "there are too many connections from this address"),
        (AdmissionPolicy(max_connections_per_user=2), "this user has too many connections"),
    ],
)
async def test_the_admitted_get_their_places_and_no_more(policy: AdmissionPolicy, words: str) -> None:
    async with open_scene(policy) as scene:
        client = scene.add_client("royal-1")
        held = [await hold(client, scene) for _ in range(2)]
        refused = await client.run("echo in")
        assert (refused.status, refused.stdout) == (255, b"")
        assert words in refused.error_text
        assert len(scene.gateway._registry) == 2
        # What ends gives its place back; and what there was goes on.
        held[0].kill()
        await scene.until(lambda: len(scene.gateway._registry) == 1, timeout_s=PATIENCE_S)
        assert (await client.run("echo in")).stdout == b"in\n"
        out, _ = await held[1].communicate(b"still\n")
        assert out == b"still\n"
    assert scene.gateway._registry._sources == {}


async def test_one_users_crowd_keeps_no_other_user_out() -> None:
    async with open_scene(AdmissionPolicy(max_connections_per_user=1)) as scene:
        crowd, other = scene.add_client("royal-1"), scene.add_client("royal-1", registered_for=None)
        scene.directory.add_session("royal-1", other.public_line, user_id=2)
        await hold(crowd, scene)
        assert (await crowd.run("true")).status == 255
        assert (await other.run("echo in")).stdout == b"in\n"


async def test_strangers_of_one_address_leave_room_for_others() -> None:
    policy = AdmissionPolicy(max_unauthenticated=8, max_unauthenticated_per_source=2)
    async with open_scene(policy) as scene:
        client = scene.add_client("royal-1")
        streams = [await asyncio.open_connection("127.0.0.1", scene.port, local_addr=(STRANGER, 0)) for _ in range(5)]
        async with asyncio.timeout(PATIENCE_S):
            greetings = [await reader.read(100) for reader, _ in streams]
        assert [bool(greeting) for greeting in greetings] == [True, True, False, False, False]
        assert (await client.run("echo in")).stdout == b"in\n"
        for _, writer in streams:
            writer.close()


# -- behind a balancer --------------------------------------------------------


@pytest.fixture
async def behind() -> AsyncIterator[Scene]:
    policy = AdmissionPolicy(max_unauthenticated_per_source=1)
    async with open_scene(policy, box=None, balancers=(ipaddress.ip_network(f"{BALANCER}/32"),)) as opened:
        yield opened


def header(source: str = "203.0.113.9", *, command: int = 0x21, family: int = 0x11, size: int | None = None) -> bytes:
    body = socket.inet_aton(source) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 40000, 22)
    return SIGNATURE + bytes((command, family)) + struct.pack("!H", len(body) if size is None else size) + body


async def call(
    scene: Scene, raw: bytes, *, caller: str = BALANCER
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", scene.port, local_addr=(caller, 0))
    writer.write(raw)
    return reader, writer


async def hear(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await reader.read(100)
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize(
    "raw",
    [
        HELLO,
        b"PROXY TCP4 203.0.113.9 127.0.0.1 40000 22\r\n" + HELLO,
        header(command=0x11) + HELLO,
        header(command=0x22) + HELLO,
        header(family=0x12) + HELLO,
        header(family=0x31) + HELLO,
        header(family=0x00) + HELLO,
        header(size=0) + HELLO,
        header(size=11) + HELLO,
        header(size=0xFFFF) + HELLO,
        SIGNATURE[:11] + b"\0" + HELLO,
        b"\0" * 4000,
    ],
)
async def test_a_named_balancer_with_a_malformed_header_gets_no_ssh(behind: Scene, raw: bytes) -> None:
    reader, writer = await call(behind, raw)
    assert await hear(reader) == b""
    writer.close()
    assert behind.gateway.health().strangers == 0
    # The control, on the same gateway.
    reader, writer = await call(behind, header())
    assert (await hear(reader)).startswith(b"SSH-2.0-")
    writer.close()


async def test_a_header_that_never_ends_is_not_waited_for(behind: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorstep, "HEADER_S", 0.3)
    for raw in (b"", header()[:20]):
        reader, writer = await call(behind, raw)
        assert await hear(reader) == b""
        writer.close()


async def test_whoever_is_behind_a_balancer_has_his_own_places(behind: Scene) -> None:
    heard, writers = [], []
    for source in ("203.0.113.9", "203.0.113.9", "203.0.113.10"):
        reader, writer = await call(behind, header(source))
        heard.append(bool(await hear(reader)))
        writers.append(writer)
    assert heard == [True, False, True]
    for writer in writers:
        writer.close()


async def test_a_strangers_header_neither_chooses_his_address_nor_frees_him_from_the_cap(
    behind: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runcode.gateway")
    # An SSH peer may send other lines before its version; so these are waited on, until more of them come.
    heard, writers = [], []
    for number in (1, 2):
        reader, writer = await call(behind, header(f"203.0.113.{number}")[:12], caller=STRANGER)
        heard.append(bool(await hear(reader)))
        writers.append(writer)
    assert heard == [True, False]
    for writer in writers:
        writer.write(header()[12:] + HELLO)
        writer.close()
    await behind.until(lambda: behind.gateway.health().strangers == 0, timeout_s=PATIENCE_S)
    assert "203.0.113" not in caplog.text
