"""After the door: hostile boxes, hostile clients, and what one of them may cost the others."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator

import pytest

from runcode.gateway import asyncssh_legs, asyncssh_relay
from runcode.gateway.admission import AdmissionPolicy
from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from support.gateway_box import Client, Scene, open_scene
from support.gateway_raw import HostileBox, RawClient, hostile_box, raw_client


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene(box=None) as opened:
        yield opened


async def box_of(arrived: asyncio.Queue[HostileBox], scene: Scene) -> HostileBox:
    async with asyncio.timeout(10):
        box = await arrived.get()
    await scene.until(lambda: bool(box._auth_complete))
    return box


_OPENINGS = {
    b"auth-agent@openssh.com": b"",
    b"x11": s(b"127.0.0.1") + u(6000),
    b"forwarded-tcpip": s(b"127.0.0.1") + u(22) + s(b"10.0.0.1") + u(1),
    b"forwarded-streamlocal@openssh.com": s(b"/run/user/agent") + s(b""),
    b"session": b"",
    b"direct-tcpip": s(b"127.0.0.1") + u(22) + s(b"") + u(0),
    b"tun@openssh.com": u(1) + u(0),
    b"\x1b]52;c;evil\x07": b"",
}


async def test_channels_that_a_box_opens_unasked_never_reach_the_client(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runcode.gateway")
    async with hostile_box(scene, "evil-1") as arrived, raw_client(scene) as raw:
        await raw.log_in(scene.add_client("evil-1"))
        box = await box_of(arrived, scene)
        for number, (kind, rest) in enumerate(_OPENINGS.items()):
            box.send_raw(b"\x5a" + s(kind) + u(number) + u(1 << 20) + u(1 << 15) + rest)
            answer, payload = await box.take()
            assert (answer, payload[1:5]) == (92, u(number))
        for name in (b"tcpip-forward", b"hostkeys-00@openssh.com", b"hostkeys-prove-00@openssh.com", b"x"):
            box.send_raw(b"\x50" + s(name) + b"\x01" + s(b"") + u(1))
            assert await box.take() == (82, b"\x52")
        box.send_raw(b"\x50" + s(b"hostkeys-00@openssh.com") + b"\0" + s(b"key"))
        # The first thing the client hears of is the keepalive, and its answer arrives.
        box.send_raw(b"\x50" + s(b"keepalive@openssh.com") + b"\x01")
        assert (await raw.take())[1] == b"\x50" + s(b"keepalive@openssh.com") + b"\x01"
        raw.send_raw(b"\x51")
        assert await box.take() == (81, b"\x51")
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert sum("refused from the workspace" in record.getMessage() for record in caplog.records) >= 12


@pytest.mark.parametrize(
    "payload",
    [
        b"\x5b" + u(5) + u(1) + u(1) + u(1),
        b"\x51",
        b"\x62" + u(0) + b"\xff\xff\xff\xff",
        b"\x61",
        b"\x50\xff\xff\xff\xff",
        b"\x62" + u(0) + s(b"exec") + b"\x01" + s(b"rm -rf ~"),
    ],
)
async def test_a_box_that_breaks_the_protocol_ends_its_own_connection_only(scene: Scene, payload: bytes) -> None:
    scene.add_box("royal-1")
    good = await scene.add_client("royal-1").start("box", "read x; echo fine", stdin=asyncio.subprocess.PIPE)
    async with hostile_box(scene, "evil-1") as arrived, raw_client(scene) as raw:
        await raw.log_in(scene.add_client("evil-1"))
        box = await box_of(arrived, scene)
        box.send_raw(payload)
        await raw.wait_gone()
        assert raw.inbox.empty()
    out, _ = await good.communicate(b"\n")
    assert out == b"fine\n"


async def test_what_a_box_says_as_it_leaves_is_not_shown_to_the_person(scene: Scene) -> None:
    async with hostile_box(scene, "evil-1") as arrived:
        client = scene.add_client("evil-1")
        process = await client.start("box", "true")
        box = await box_of(arrived, scene)
        box.disconnect(11, "\x1b[2JYour password has expired, send it to evil@example.com")
        _, err = await process.communicate()
        assert process.returncode == 255
        assert b"the workspace closed the connection" in err
        assert b"password" not in err
        assert b"\x1b" not in err


async def test_another_host_key_is_not_the_workspace(scene: Scene) -> None:
    async with hostile_box(scene, "evil-1", own_host_key=False) as arrived:
        finished = await scene.add_client("evil-1").run("echo in", stdin=b"secret")
        assert finished.status == 255
        assert "identity could not be verified" in finished.error_text
        assert not (await arrived.get())._auth_complete


@pytest.mark.parametrize("principal", ["", "ws-1", "ws-1,ws-2"])
async def test_a_certificate_for_something_else_is_not_used(scene: Scene, principal: str) -> None:
    scene.add_box("royal-1")
    scene.directory.signs_for = principal
    finished = await scene.add_client("royal-1").run("echo in")
    assert (finished.status, finished.stdout) == (255, b"")
    assert "access to the workspace was not granted" in finished.error_text
    assert scene.boxes["royal-1"].children == []


async def test_every_connection_has_its_own_key(scene: Scene) -> None:
    scene.add_box("royal-1")
    client = scene.add_client("royal-1")
    for _ in range(3):
        assert (await client.run("true")).status == 0
    assert len(set(scene.directory.signed)) == 3


async def test_nothing_of_the_operators_own_ssh_is_used(scene: Scene, isolated_environment: object) -> None:
    """A key, a config and an agent that lie about are not even looked at: the leg has its certificate only."""
    from pathlib import Path

    home = Path(str(isolated_environment)) / ".ssh"
    home.mkdir(mode=0o700)
    (home / "config").write_text("Host *\n  ProxyCommand false\n  User intruder\n")
    (home / "id_ed25519").write_text("not a key")
    scene.add_box("royal-1")
    assert (await scene.add_client("royal-1").run("echo in")).stdout == b"in\n"


@pytest.mark.parametrize(
    "payload",
    [
        b"\x62" + u(0),
        b"\x5a" + s(b"session"),
        b"\x50",
        b"\x5e",
        b"\x51",
        b"\x5c" + u(1) + u(1) + s(b"") + s(b""),
    ],
)
async def test_a_client_that_breaks_the_protocol_is_dropped(scene: Scene, payload: bytes) -> None:
    scene.add_box("royal-1")
    client = scene.add_client("royal-1")
    async with raw_client(scene) as raw:
        await raw.log_in(client)
        await raw.open_session()
        raw.send_raw(payload)
        await raw.wait_gone()
    assert (await client.run("echo fine")).stdout == b"fine\n"


@pytest.mark.parametrize("kind", [83, 89, 101, 127, 192, 255])
async def test_unknown_messages_are_answered_as_unimplemented_and_not_relayed(scene: Scene, kind: int) -> None:
    async with hostile_box(scene, "evil-1") as arrived, raw_client(scene) as raw:
        await raw.log_in(scene.add_client("evil-1"))
        box = await box_of(arrived, scene)
        raw.send_raw(bytes([kind]) + u(0) + s(b"x"))
        raw.send_raw(b"\x50" + s(b"keepalive@openssh.com") + b"\0")
        assert (await box.take())[0] == 80


async def test_too_much_before_the_workspace_is_there_ends_the_connection() -> None:
    async with open_scene(AdmissionPolicy(max_early_bytes=20_000), box=None) as scene:
        host_key = scene.host_line

        async def never(_path: str) -> object:
            await asyncio.sleep(60)
            raise AssertionError

        scene.directory.add_workspace("slow-1", host_key=host_key, socket_path="/nowhere")
        (context_leg,) = [scene.gateway]
        context_leg._connect_unix = never  # type: ignore[assignment]
        await context_leg.close()
        scene.port = await context_leg.start("127.0.0.1", 0)
        async with raw_client(scene) as raw:
            await raw.log_in(scene.add_client("slow-1"))
            for _ in range(50):
                raw.send_raw(b"\x50" + s(b"keepalive@openssh.com") + b"\0")
            await asyncio.sleep(0.1)
            assert not raw.gone.is_set()
            for _ in range(200):
                raw.send_raw(b"\x50" + s(b"keepalive@openssh.com") + b"\0")
            await raw.wait_gone()
        assert len(scene.gateway._registry) == 0


def client_leg(scene: Scene) -> asyncssh_legs.ClientLeg:
    (leg,) = [leg for leg in scene.gateway._legs if not leg.is_over]
    return leg


async def start_stream(raw: RawClient, client: Client) -> None:
    await raw.log_in(client)
    number = await raw.open_session(window=0xFFFFFFFF)
    raw.send_raw(b"\x62" + u(number) + s(b"exec") + b"\0" + s(b"cat /dev/zero"))
    await raw.take(94)


async def test_a_client_that_stalls_a_key_exchange_holds_the_box_not_our_memory(scene: Scene) -> None:
    scene.add_box("royal-1")
    async with raw_client(scene) as raw:
        await start_stream(raw, scene.add_client("royal-1"))
        leg = client_leg(scene)
        # It begins a renewal, and never answers ours.
        raw._packet_handlers = {k: v for k, v in raw._packet_handlers.items() if k != 20}
        raw._send_kexinit()
        await scene.until(lambda: leg.peer is not None and leg.peer._reading_held)
        await asyncio.sleep(0.3)
        assert leg._deferred_bytes < 2 * 1024 * 1024


async def test_a_key_exchange_that_never_ends_is_ended(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncssh_relay, "_REKEY_TIMEOUT_S", 0.3)
    scene.add_box("royal-1")
    async with raw_client(scene) as raw:
        await start_stream(raw, scene.add_client("royal-1"))
        raw._packet_handlers = {k: v for k, v in raw._packet_handlers.items() if k != 20}
        raw._send_kexinit()
        await scene.until(lambda: len(scene.gateway._registry) == 0)
        await raw.wait_gone()


async def test_messages_inside_a_key_exchange_are_a_violation(scene: Scene) -> None:
    async with hostile_box(scene, "evil-1") as arrived, raw_client(scene) as raw:
        await raw.log_in(scene.add_client("evil-1"))
        await box_of(arrived, scene)
        raw._packet_handlers = {k: v for k, v in raw._packet_handlers.items() if k != 20}
        raw._send_kexinit()
        raw.send_early(b"\x50" + s(b"keepalive@openssh.com") + b"\0")
        await raw.wait_gone()
        assert raw.disconnect_reason == "Message inside a key exchange"


async def test_a_client_that_never_reads_holds_the_box(scene: Scene) -> None:
    scene.add_box("royal-1")
    async with raw_client(scene) as raw:
        await start_stream(raw, scene.add_client("royal-1"))
        assert raw._transport is not None
        raw._transport.pause_reading()
        leg = client_leg(scene)
        await scene.until(lambda: leg.peer is not None and leg.peer._reading_held)
        await asyncio.sleep(0.3)
        assert leg._transport is not None
        assert leg._transport.get_write_buffer_size() < 2 * 1024 * 1024
        raw._transport.resume_reading()
        await scene.until(lambda: leg.peer is not None and not leg.peer._reading_held)


async def test_an_oversized_packet_ends_the_connection(scene: Scene) -> None:
    async with raw_client(scene) as raw:
        raw.send_early(b"\x02" + s(b"x" * 60_000))
        await raw.wait_gone()
        assert raw.disconnect_reason == "Max packet size exceeded"


async def test_what_waits_for_a_key_exchange_is_bounded_whatever_happens(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should holding the other leg not help, the connection is given up before the memory is."""
    monkeypatch.setattr(asyncssh_relay, "_DEFERRED_SOFT", 1 << 40)
    monkeypatch.setattr(asyncssh_relay, "_DEFERRED_HARD", 1 << 20)
    scene.add_box("royal-1")
    async with raw_client(scene) as raw:
        await start_stream(raw, scene.add_client("royal-1"))
        raw._packet_handlers = {k: v for k, v in raw._packet_handlers.items() if k != 20}
        raw._send_kexinit()
        await raw.wait_gone()
    await scene.until(lambda: len(scene.gateway._registry) == 0)


async def test_an_exit_status_that_waits_for_a_key_exchange_outlives_its_box(scene: Scene) -> None:
    """The box ends while the client's keys are being renewed: what it said before still arrives."""
    async with hostile_box(scene, "gone-1") as arrived, raw_client(scene) as raw:
        await raw.log_in(scene.add_client("gone-1"))
        box = await box_of(arrived, scene)
        raw.send_raw(b"\x5a" + s(b"session") + u(0) + u(1 << 20) + u(1 << 15))
        await box.take(90)
        box.send_raw(b"\x5b" + u(0) + u(3) + u(1 << 20) + u(1 << 15))
        await raw.take(91)
        answer_now, original = asyncio.Event(), raw._packet_handlers[20]

        async def answer_later(connection: object, kind: int, number: int, packet: object) -> None:
            await answer_now.wait()
            await original(connection, kind, number, packet)

        raw._packet_handlers = {**raw._packet_handlers, 20: answer_later}
        raw._send_kexinit()
        raw._kexinit_sent = True
        leg = client_leg(scene)
        await scene.until(lambda: not leg._kex_complete)
        box.send_raw(b"\x62" + u(0) + s(b"exit-status") + b"\0" + u(77))
        await scene.until(lambda: bool(leg._deferred_packets))
        box.disconnect(11, "bye")
        await asyncio.sleep(0.1)
        answer_now.set()
        assert (await raw.take(98))[1] == b"\x62" + u(0) + s(b"exit-status") + b"\0" + u(77)
        await raw.wait_gone()
        assert raw.disconnect_reason == "the workspace closed the connection"


async def test_new_keys_before_authentication_change_nothing(scene: Scene) -> None:
    async with hostile_box(scene, "evil-1") as arrived, raw_client(scene) as raw:
        raw._send_kexinit()
        raw._kexinit_sent = True
        await raw.log_in(scene.add_client("evil-1"))
        await box_of(arrived, scene)


async def test_what_a_slow_reader_has_not_read_yet_outlives_the_box(scene: Scene) -> None:
    """The box says its last word and is gone while the client's socket is full: every byte still arrives."""
    async with hostile_box(scene, "gone-1") as arrived, raw_client(scene) as raw:
        await raw.log_in(scene.add_client("gone-1"))
        box = await box_of(arrived, scene)
        leg = client_leg(scene)
        assert raw._transport is not None
        assert leg._transport is not None
        raw._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        leg._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        raw._transport.pause_reading()
        for _ in range(20):
            box.send_raw(b"\x5e" + u(0) + s(b"x" * 10_000))
        box.send_raw(b"\x62" + u(0) + s(b"exit-status") + b"\0" + u(77))
        assert box._transport is not None
        box._transport.close()
        await scene.until(lambda: leg.is_over)
        assert leg._lingering is not None
        assert leg._lingering.get_write_buffer_size() > 10_000
        raw._transport.resume_reading()
        received = [(await raw.take(94, 98))[0] for _ in range(21)]
        assert received == [94] * 20 + [98]
