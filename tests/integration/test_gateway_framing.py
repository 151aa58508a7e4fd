"""Our framing on real sockets, against asyncssh's and OpenSSH's: cut up, oversized, forged, and across renewed keys."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runcode.gateway import asyncssh_relay
from runcode.gateway import server as gateway_server
from runcode.gateway.admission import AdmissionPolicy
from runcode.gateway.asyncssh_legs import ClientLeg
from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from runcode.server.front import GatewayNumbers
from support.gateway_box import Scene, connect_asyncssh, open_scene
from support.gateway_raw import HostileBox, RawClient, hostile_box, raw_client

_MB = 1024 * 1024
# OpenSSH before 10 prefers aes256-ctr, which the gateway has for old libraries.
_GCM = "Ciphers=aes128-gcm@openssh.com"
_KEEPALIVE = b"\x50" + s(b"keepalive@openssh.com") + b"\x01"


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene(box=None) as opened:
        yield opened


def data(channel: int, text: bytes) -> bytes:
    return b"\x5e" + u(channel) + s(text)


def client_leg(scene: Scene) -> ClientLeg:
    (leg,) = [leg for leg in scene.gateway._legs if not leg.is_over]
    return leg


@contextlib.asynccontextmanager
async def both_ends(scene: Scene) -> AsyncIterator[tuple[RawClient, HostileBox]]:
    """A client and a box that send what a test says, with one open channel: 0 on either side."""
    async with hostile_box(scene, "ends-1") as arrived, raw_client(scene) as raw:
        await raw.log_in(scene.add_client("ends-1"))
        async with asyncio.timeout(10):
            box = await arrived.get()
        await scene.until(lambda: bool(box._auth_complete))
        raw.send_raw(b"\x5a" + s(b"session") + u(0) + u(1 << 31) + u(1 << 15))
        await box.take(90)
        box.send_raw(b"\x5b" + u(0) + u(0) + u(1 << 31) + u(1 << 15))
        await raw.take(91)
        await scene.until(lambda: client_leg(scene).peer is not None)
        yield raw, box


async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on one at a time; the gateway's loop turns between them."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(4096):
            for byte in chunk:
                writer.write(bytes((byte,)))
                await asyncio.sleep(0)
        writer.write_eof()


def dribbling_between(connect: Any) -> Any:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await connect()
        sock = onward_writer.get_extra_info("socket")
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(dribble(reader, onward_writer), dribble(onward_reader, writer))
        writer.close()
        onward_writer.close()

    return serve


# ---------------------------------------------------------------- cut up, big, and too big


async def test_a_connection_that_arrives_one_byte_at_a_time_on_both_legs(scene: Scene) -> None:
    facts = scene.add_box("slow-1")
    between = str(scene.folder / "between")
    towards_box = await asyncio.start_unix_server(
        dribbling_between(lambda: asyncio.open_unix_connection(facts.socket_path)), between
    )
    scene.directory.workspaces["slow-1"] = type(facts)(**{**vars(facts), "socket_path": between})
    towards_gateway = await asyncio.start_server(
        dribbling_between(lambda: asyncio.open_connection("127.0.0.1", scene.port)), "127.0.0.1", 0
    )
    async with towards_box, towards_gateway:
        client = scene.add_client("slow-1")
        sent = os.urandom(6_000)
        options = {"port": towards_gateway.sockets[0].getsockname()[1]}
        async with connect_asyncssh_at(scene, client, **options) as connection:
            result = await connection.run("cat; echo err >&2; exit 9", input=sent, encoding=None)
        assert (result.stdout, result.stderr, result.exit_status) == (sent, b"err\n", 9)
    assert scene.gateway.health().resealed_bytes > 2 * len(sent)


def connect_asyncssh_at(scene: Scene, client: Any, port: int) -> Any:
    usual, scene.port = scene.port, port
    try:
        return connect_asyncssh(scene, client)
    finally:
        scene.port = usual


@pytest.mark.parametrize("size", [0, 1, 32_768, 131_072, 262_144 - 64])
async def test_packets_of_every_allowed_size_pass_whole(scene: Scene, size: int) -> None:
    async with both_ends(scene) as (raw, box):
        up, down = data(0, os.urandom(size)), data(0, os.urandom(size))
        box._max_recv_pktlen = raw._max_recv_pktlen = 1 << 20
        raw.send_raw(up)
        box.send_raw(down)
        assert (await box.take(94))[1] == up
        assert (await raw.take(94))[1] == down
        assert client_leg(scene).peer is not None


@pytest.mark.parametrize("by_box", [False, True])
async def test_a_packet_beyond_the_limit_ends_the_connection_before_it_is_read(scene: Scene, by_box: bool) -> None:
    async with both_ends(scene) as (raw, box):
        (box if by_box else raw).send_raw(data(0, bytes(asyncssh_relay.PACKET_MAX)))
        await raw.wait_gone()
        told = "the workspace closed the connection" if by_box else "Max packet size exceeded"
        assert raw.disconnect_reason == told
        assert raw.inbox.empty()


# ---------------------------------------------------------------- forged


@pytest.mark.parametrize("by_box", [False, True])
async def test_a_tag_that_does_not_fit_ends_the_connection_after_what_was_good(scene: Scene, by_box: bool) -> None:
    async with both_ends(scene) as (raw, box):
        forger, other = (box, raw) if by_box else (raw, box)
        transport, written = forger._transport, []
        forger._send = written.append  # type: ignore[assignment, method-assign]
        forger.send_raw(data(0, b"good"))
        forger.send_raw(data(0, b"forged"))
        assert transport is not None
        whole = bytearray(b"".join(written))
        whole[-1] ^= 1
        transport.write(bytes(whole))
        assert (await other.take(94))[1] == data(0, b"good")
        await raw.wait_gone()
        assert other.inbox.empty()
        # The side that is told of the end could read it: its own sequence of nonces has no gap.
        told = "the workspace closed the connection" if by_box else "MAC verification failed"
        assert raw.disconnect_reason == told


async def test_a_replayed_packet_ends_the_connection(scene: Scene) -> None:
    async with both_ends(scene) as (raw, box):
        transport, written = raw._transport, []
        raw._send = written.append  # type: ignore[assignment, method-assign]
        raw.send_raw(data(0, b"once"))
        assert transport is not None
        transport.write(b"".join(written) * 2)
        assert (await box.take(94))[1] == data(0, b"once")
        await raw.wait_gone()
        assert box.inbox.empty()
        assert raw.disconnect_reason == "MAC verification failed"


# ---------------------------------------------------------------- renewed keys


async def test_new_keys_of_either_leg_at_every_moment_of_a_transfer(scene: Scene) -> None:
    """A packet a step, both ways; in each step another side renews, before, between and after the data."""
    async with both_ends(scene) as (raw, box):
        leg = client_leg(scene)
        assert leg.peer is not None
        renewers: list[Any] = [raw, box, leg, leg.peer]
        up, down = [], []
        for step in range(36):
            ends: list[Any] = [raw, box]
            moment, who = step % 3, renewers[step // 3 % 4]
            for end, sent in zip(ends, (up, down), strict=True):
                sent += [data(0, b"%d.%d" % (step, n) + bytes(step * 100)) for n in range(4)]
                for n, payload in enumerate(sent[-4:]):
                    if n == moment * 2 and end is ends[step % 2]:
                        renew(who)
                    end.send_raw(payload)
            if moment == 2:
                renew(renewers[(step // 3 + 1) % 4])
            await asyncio.sleep(0.01 if step % 2 else 0)
        assert [(await box.take(94))[1] for _ in up] == up
        assert [(await raw.take(94))[1] for _ in down] == down
        # Sequence numbers went on, or began anew (strict key exchange), on both sides alike.
        for kind in (192, 193):
            raw.send_raw(bytes((kind,)))
            box.send_raw(bytes((kind,)))
            raw.send_raw(_KEEPALIVE)
            await box.take(80)
        assert (leg._strict_kex, leg.peer._strict_kex) == (True, True)
        assert leg._send_seq == raw._recv_seq
        assert leg.peer._send_seq == box._recv_seq
        assert leg._recv_seq == raw._send_seq
        assert leg.peer._recv_seq == box._send_seq


def renew(connection: Any) -> None:
    """Begin a key exchange as asyncssh does by itself, unless one goes on."""
    if connection._kex_complete and not connection._kex and connection._next_recv_encryption is None:
        connection._send_kexinit()
        connection._kexinit_sent = True


@pytest.mark.parametrize("by_gateway", [False, True])
async def test_big_transfers_across_rekeys_go_the_short_way(by_gateway: bool) -> None:
    policy = AdmissionPolicy(rekey_bytes=8 * _MB) if by_gateway else AdmissionPolicy()
    async with open_scene(policy) as scene:
        client = scene.add_client("royal-1")
        sent = os.urandom(40 * _MB)
        options = (_GCM,) if by_gateway else (_GCM, "RekeyLimit=8M")
        finished = await client.run("cat; exit 7", options=options, stdin=sent)
        assert finished.status == 7, finished.error_text
        assert hashlib.sha256(finished.stdout).digest() == hashlib.sha256(sent).digest()
        health = scene.gateway.health()
        assert health.framing_obstacle is None
        assert health.resealed_bytes > 0.9 * (health.resealed_bytes + health.singly_bytes)


async def test_a_cipher_that_changes_at_a_rekey_changes_the_way(scene: Scene) -> None:
    """From AES-GCM to aes256-ctr and back, in mid-connection; data flows all along."""
    async with both_ends(scene) as (raw, box):
        leg = client_leg(scene)
        raw._mac_algs = [b"hmac-sha2-256-etm@openssh.com"]
        for cipher, framed in ((b"aes256-ctr", False), (b"aes256-gcm@openssh.com", True), (b"aes256-ctr", False)):
            raw._enc_algs = [cipher]
            renew(raw)
            for n in range(3):
                raw.send_raw(data(0, cipher + b"%d" % n))
                box.send_raw(data(0, cipher + b"%d" % n))
            for n in range(3):
                assert (await box.take(94))[1] == data(0, cipher + b"%d" % n)
                assert (await raw.take(94))[1] == data(0, cipher + b"%d" % n)
            # The way of a read is chosen as it begins.
            raw.send_raw(data(0, b"next"))
            assert (await box.take(94))[1] == data(0, b"next")
            assert leg._is_framed == framed


# ---------------------------------------------------------------- per hop, and end to end


async def test_extension_info_belongs_to_its_hop(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []
    monkeypatch.setattr(
        RawClient, "_process_ext_info", lambda self, _kind, _number, packet: heard.append(packet.get_full_payload())
    )
    monkeypatch.setattr(RawClient, "_packet_handlers", {**RawClient._packet_handlers, 7: RawClient._process_ext_info})
    async with both_ends(scene) as (raw, box):
        assert [b"rsa-sha2-512" in payload for payload in heard] == [True]
        box.send_raw(b"\x02" + s(b"ignored"))
        box.send_raw(data(0, b"after"))
        assert (await raw.take())[1] == data(0, b"after")
        # Where it has no place (RFC 8308 §2.4) it ends the hop that it came by.
        box.send_raw(b"\x07" + u(1) + s(b"server-sig-algs") + s(b"evil"))
        await raw.wait_gone()
        assert len(heard) == 1


async def test_keepalives_travel_end_to_end_both_ways(scene: Scene) -> None:
    async with both_ends(scene) as (raw, box):
        for asker, answerer in ((raw, box), (box, raw)):
            asker.send_raw(data(0, b"x"))
            asker.send_raw(_KEEPALIVE)
            assert (await answerer.take())[1] == data(0, b"x")
            assert (await answerer.take())[1] == _KEEPALIVE
            answerer.send_raw(b"\x52")
            assert await asker.take() == (82, b"\x52")


async def test_a_bridge_that_is_over_passes_no_more_data(scene: Scene) -> None:
    async with both_ends(scene) as (raw, box):
        leg = client_leg(scene)
        assert leg.owner is not None
        raw.send_raw(data(0, b"before"))
        await box.take(94)
        leg.owner.over = True
        raw.send_raw(data(0, b"behind the end"))
        raw.send_raw(b"\xc0")
        await asyncio.sleep(0.1)
        assert box.inbox.empty()


# ---------------------------------------------------------------- the slow way


async def test_without_our_framing_everything_works_and_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gateway_server, "find_framing_obstacle", lambda: "its trial failed")
    with caplog.at_level(logging.WARNING, "runcode.gateway"):
        async with open_scene(AdmissionPolicy(rekey_bytes=_MB)) as scene:
            client = scene.add_client("royal-1")
            sent = os.urandom(6 * _MB)
            finished = await client.run("cat; exit 7", options=("RekeyLimit=1M",), stdin=sent)
            assert (finished.status, finished.stdout == sent) == (7, True)
            health = scene.gateway.health()
            told = {metric.name: metric.samples for metric in GatewayNumbers(scene.gateway).collect()}
    assert health.framing_obstacle == "its trial failed"
    assert told["runcode_gateway_own_framing"][0].value == 0
    assert {sample.labels["way"] for sample in told["runcode_gateway_data_packet_bytes"] if sample.value} == {
        "handled_singly"
    }
    assert health.resealed_bytes == 0
    assert health.singly_bytes > 12 * _MB
    assert any("by asyncssh's own framing: its trial failed" in record.getMessage() for record in caplog.records)


async def test_an_old_librarys_cipher_goes_the_slow_way_beside_others(scene: Scene) -> None:
    scene.add_box("royal-1")
    client = scene.add_client("royal-1")
    sent = os.urandom(_MB)
    finished = await client.run("cat", options=("Ciphers=aes256-ctr",), stdin=sent)
    assert finished.stdout == sent
    health = scene.gateway.health()
    # The box's leg has AES-GCM, but the client's packets cannot be sealed where they lie.
    assert health.resealed_bytes == 0
    assert health.singly_bytes > 2 * _MB
    assert (await client.run("cat", options=(_GCM,), stdin=sent)).stdout == sent
    assert scene.gateway.health().resealed_bytes > 2 * _MB * 0.9


async def test_openssh_as_it_comes_is_moved_to_the_faster_cipher_once_it_carries_much(scene: Scene) -> None:
    """It prefers aes256-ctr and has AES-GCM: after a megabyte, keys are renewed for that."""
    scene.add_box("royal-1")
    client = scene.add_client("royal-1")
    sent = os.urandom(20 * _MB)
    finished = await client.run("cat; exit 3", options=("Ciphers=aes256-ctr,aes128-gcm@openssh.com",), stdin=sent)
    assert (finished.status, finished.stdout == sent) == (3, True), finished.error_text
    health = scene.gateway.health()
    assert health.singly_bytes < 8 * _MB
    assert health.resealed_bytes > 30 * _MB
