"""What a workspace's policy forbids: tried by the real ssh, by raw packets, in order, and with a box that agrees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from runcode.core.channel_policy import EVERYTHING, LOOPBACK, ChannelPolicy
from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from runcode.gateway.relay import Leg, PacketRelay
from support.gateway_box import Scene, open_scene
from support.gateway_raw import raw_client
from support.hidden_destinations import METADATA

OPEN, CONFIRMED, REFUSED = 90, 91, 92
REQUEST_FAILURE, CHANNEL_FAILURE = 82, 100
FORBIDDEN, SHORTAGE = 1, 4


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        yield opened


def open_channel(kind: bytes, number: int = 7, rest: bytes = b"") -> bytes:
    return b"\x5a" + s(kind) + u(number) + u(1 << 20) + u(1 << 15) + rest


def direct(host: bytes, number: int = 7, port: int = 80) -> bytes:
    return open_channel(b"direct-tcpip", number, s(host) + u(port) + s(b"127.0.0.1") + u(1))


def refusal(number: int, code: int) -> bytes:
    return b"\x5c" + u(number) + u(code) + s(b"refused by the gateway") + s(b"")


@pytest.mark.parametrize(
    ("policy", "asked"),
    [
        (EVERYTHING, direct(b"169.254.169.254")),
        (EVERYTHING, direct(b"::ffff:a9fe:a9fe")),
        (EVERYTHING, direct(b"0xA9FEA9FE.")),
        (EVERYTHING, direct(b"fd00:ec2::254")),
        (EVERYTHING, direct(b"169.254.169.254\0x")),
        (ChannelPolicy(destinations=LOOPBACK), direct(b"example.org")),
        (ChannelPolicy(direct=False), direct(b"localhost")),
        (
            ChannelPolicy(streamlocal=False),
            open_channel(b"direct-streamlocal@openssh.com", 7, s(b"/run/s") + s(b"") + u(0)),
        ),
    ],
)
async def test_a_forbidden_channel_is_refused_and_becomes_an_event(
    scene: Scene, policy: ChannelPolicy, asked: bytes
) -> None:
    scene.directory.policy = policy
    client = scene.add_client("royal-1")
    async with raw_client(scene) as raw:
        await raw.log_in(client)
        raw.send_raw(asked)
        assert await raw.take(CONFIRMED, REFUSED) == (REFUSED, refusal(7, FORBIDDEN))
        # The connection goes on, and its shell does.
        await raw.open_session(8)
    await scene.until(lambda: bool(scene.events.whole("forward")))
    assert [each["outcome"] for each in scene.events.whole("forward")] == ["refused"]


def test_no_spelling_of_a_metadata_service_reaches_the_box() -> None:
    hosts = [*(host.encode() for host in METADATA), b"\xff169.254.169.254", b"169.254.169.254\xff", b"\0"]
    for host in hosts:
        (answer,) = PacketRelay().receive(Leg.CLIENT, direct(host))
        assert (answer.to, answer.payload) == (Leg.CLIENT, refusal(7, FORBIDDEN)), host


async def test_forbidden_listeners_are_refused_in_the_order_of_asking(scene: Scene) -> None:
    scene.directory.policy = ChannelPolicy(remote=False, streamlocal=False)
    client = scene.add_client("royal-1")
    asked = (
        (b"keepalive@openssh.com", b""),
        (b"tcpip-forward", s(b"127.0.0.1") + u(0)),
        (b"keepalive@openssh.com", b""),
        (b"streamlocal-forward@openssh.com", s(b"/tmp/never-made")),
    )
    async with raw_client(scene) as raw:
        await raw.log_in(client)
        for name, rest in asked:
            raw.send_raw(b"\x50" + s(name) + b"\x01" + rest)
        answers = [await raw.take(81, 82) for _ in asked]
        # sshd knows no keepalive request, and says so: all four are failures, and four there are.
        assert [kind for kind, _ in answers] == [REQUEST_FAILURE] * 4
        await raw.open_session(8)
    await scene.until(lambda: len(scene.events.whole("forward")) == 2)


@pytest.mark.parametrize("name", [b"auth-agent-req@openssh.com", b"x11-req"])
async def test_a_forbidden_agent_or_display_is_refused_by_the_box_in_its_turn(scene: Scene, name: bytes) -> None:
    scene.directory.policy = ChannelPolicy(agent=False, x11=False)
    client = scene.add_client("royal-1")
    async with raw_client(scene) as raw:
        await raw.log_in(client)
        box_number = await raw.open_session(8)
        rest = b"\0" + s(b"MIT-MAGIC-COOKIE-1") + s(b"00" * 16) + u(0) if name == b"x11-req" else b""
        raw.send_raw(b"\x62" + u(box_number) + s(b"env") + b"\x01" + s(b"RC_A") + s(b"1"))
        raw.send_raw(b"\x62" + u(box_number) + s(name) + b"\x01" + rest)
        raw.send_raw(b"\x62" + u(box_number) + s(b"exec") + b"\x01" + s(b"true"))
        answers = [(await raw.take(99, CHANNEL_FAILURE))[0] for _ in range(3)]
        assert answers == [99, CHANNEL_FAILURE, 99]


@pytest.mark.parametrize(
    ("name", "kind"), [(b"auth-agent-req@openssh.com", b"auth-agent@openssh.com"), (b"x11-req", b"x11")]
)
def test_a_box_that_agrees_to_what_was_forbidden_gets_no_channel(name: bytes, kind: bytes) -> None:
    relay = PacketRelay(policy=ChannelPolicy(agent=False, x11=False))
    relay.receive(Leg.CLIENT, open_channel(b"session", 0))
    relay.receive(Leg.BOX, b"\x5b" + u(0) + u(0) + u(1 << 20) + u(1 << 15))
    (passed,) = relay.receive(Leg.CLIENT, b"\x62" + u(0) + s(name) + b"\x01" + s(b"a cookie"))
    assert passed.to is Leg.BOX
    assert name not in passed.payload
    assert b"cookie" not in passed.payload
    relay.receive(Leg.BOX, b"\x63" + u(0))
    (answer,) = relay.receive(Leg.BOX, open_channel(kind, 5, s(b"127.0.0.1") + u(1)))
    assert (answer.to, answer.payload) == (Leg.BOX, refusal(5, FORBIDDEN))


async def test_sessions_at_once_are_counted_and_come_free_again(scene: Scene) -> None:
    scene.directory.policy = ChannelPolicy(sessions=2)
    client = scene.add_client("royal-1")
    async with raw_client(scene) as raw:
        await raw.log_in(client)
        first = await raw.open_session(0)
        await raw.open_session(1)
        raw.send_raw(open_channel(b"session", 2))
        assert await raw.take(CONFIRMED, REFUSED) == (REFUSED, refusal(2, FORBIDDEN))
        raw.send_raw(b"\x61" + u(first))
        await raw.take(97)
        await raw.open_session(3)


def test_channels_a_minute_are_counted_by_the_clock() -> None:
    now = [1000.0]
    relay = PacketRelay(policy=ChannelPolicy(opens_per_minute=2), clock_s=lambda: now[0])

    def ask(number: int) -> Leg:
        (sent,) = relay.receive(Leg.CLIENT, open_channel(b"session", number))
        assert sent.to is Leg.BOX or sent.payload == refusal(number, SHORTAGE)
        return sent.to

    assert [ask(0), ask(1), ask(2)] == [Leg.BOX, Leg.BOX, Leg.CLIENT]
    now[0] += 59
    assert ask(3) is Leg.CLIENT
    now[0] += 1
    assert [ask(4), ask(5), ask(6)] == [Leg.BOX, Leg.BOX, Leg.CLIENT]


async def test_a_narrower_policy_cuts_what_was_opened_under_a_wider_one(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    process = await client.start("box", "cat /dev/zero")
    assert process.stdout is not None
    assert await process.stdout.read(1)
    workspace = scene.directory.workspaces["royal-1"]
    scene.directory.tell(workspace_ids=frozenset({workspace.workspace_id}))
    assert await process.stdout.read(1)  # a change of something else ends nothing
    scene.directory.policy = replace(EVERYTHING, agent=False)
    scene.directory.tell(workspace_ids=frozenset({workspace.workspace_id}))
    async with asyncio.timeout(10):
        await process.stdout.read()
        assert await process.wait() == 255
    assert (await client.run("echo in")).stdout == b"in\n"


async def test_the_real_ssh_is_told_and_its_shell_works(scene: Scene) -> None:
    scene.directory.policy = ChannelPolicy(direct=False, remote=False)
    client = scene.add_client("royal-1")
    local = await client.run("true", "-W", "localhost:22")
    assert local.status != 0
    assert "forwarding failed" in local.error_text
    remote = await client.run("true", "-R", "0:localhost:22", options=("ExitOnForwardFailure=yes",))
    assert remote.status == 255
    assert "remote port forwarding failed" in remote.error_text
    assert (await client.run("echo in")).stdout == b"in\n"
