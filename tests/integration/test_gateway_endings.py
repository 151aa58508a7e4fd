"""The last words of a connection: they arrive, unless the peer does not want them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator

import pytest

from runcode.gateway import asyncssh_ending
from runcode.gateway.asyncssh_legs import ClientLeg
from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from support.gateway_box import Scene, open_scene
from support.gateway_raw import HostileBox, RawClient, hostile_box, raw_client

GONE = "the workspace closed the connection"


def data(text: bytes) -> bytes:
    return b"\x5e" + u(0) + s(text)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr("runcode.gateway.asyncssh_relay.LINGER_S", 0.3)
    async with open_scene(box=None) as opened:
        yield opened


@contextlib.asynccontextmanager
async def both_ends(scene: Scene) -> AsyncIterator[tuple[RawClient, HostileBox, ClientLeg]]:
    async with hostile_box(scene, "ends-1") as arrived, raw_client(scene) as raw:
        await raw.log_in(scene.add_client("ends-1"))
        async with asyncio.timeout(10):
            box = await arrived.get()
        (leg,) = [leg for leg in scene.gateway._legs if not leg.is_over]
        await scene.until(lambda: leg.peer is not None)
        yield raw, box, leg


def stop_reading(raw: RawClient, leg: ClientLeg) -> None:
    """With sockets so small that most of what is sent waits in the gateway."""
    assert raw._transport is not None
    assert leg._transport is not None
    raw._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    leg._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    raw._transport.pause_reading()


async def read_slowly(raw: RawClient) -> None:
    """A buffer's worth at a time, with pauses: several patiences in all."""
    for _ in range(30):
        if raw._transport is None:
            return
        raw._transport.resume_reading()
        await asyncio.sleep(0.001)
        if raw._transport is None:
            return
        raw._transport.pause_reading()
        await asyncio.sleep(0.04)


def die(box: HostileBox) -> None:
    assert box._transport is not None
    box._transport.abort()


async def test_a_client_in_the_middle_of_an_upload_reads_why_its_box_is_gone(scene: Scene) -> None:
    """What it still sends is read and thrown away: a socket closed with that in it would reset the connection."""
    async with both_ends(scene) as (raw, box, _leg):

        async def send_on() -> None:
            while raw._transport is not None and not raw.gone.is_set():
                raw.send_raw(data(bytes(30_000)))
                await asyncio.sleep(0)

        sending = asyncio.create_task(send_on())
        await box.take(94)
        die(box)
        await raw.wait_gone()
        await sending
        assert raw.disconnect_reason == GONE


async def test_a_reader_slower_than_the_patience_gets_everything(scene: Scene) -> None:
    """It takes a little in each while, for many times as long as one that takes nothing is waited for."""
    async with both_ends(scene) as (raw, box, leg):
        stop_reading(raw, leg)
        for _ in range(20):
            box.send_raw(data(bytes(10_000)))
        await scene.until(lambda: leg._transport is not None and leg._transport.get_write_buffer_size() > 100_000)
        die(box)
        await scene.until(lambda: leg.is_over)
        await read_slowly(raw)
        if raw._transport is not None:
            raw._transport.resume_reading()
        assert [(await raw.take(94))[0] for _ in range(20)] == [94] * 20
        await raw.wait_gone()
        assert raw.disconnect_reason == GONE


async def test_whoever_is_cut_gets_no_more_however_he_reads(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """His access has ended: what waits for him is not his any more."""
    left = itertools.count(1 << 30, -1)
    monkeypatch.setattr(asyncssh_ending, "_count_untaken", lambda _transport: next(left))
    async with both_ends(scene) as (raw, box, leg):
        stop_reading(raw, leg)
        for _ in range(20):
            box.send_raw(data(bytes(10_000)))
        await scene.until(lambda: leg._transport is not None and leg._transport.get_write_buffer_size() > 100_000)
        leg.cut("access ended")
        await scene.until(lambda: leg.is_over and leg._lingering is None)


async def test_a_client_that_takes_nothing_is_not_waited_for(scene: Scene) -> None:
    async with both_ends(scene) as (raw, box, leg):
        stop_reading(raw, leg)
        for _ in range(20):
            box.send_raw(data(bytes(10_000)))
        await scene.until(lambda: leg._transport is not None and leg._transport.get_write_buffer_size() > 100_000)
        die(box)
        await scene.until(lambda: leg.is_over and leg._lingering is None)


async def test_a_client_that_sends_without_end_behind_the_last_word_is_cut(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runcode.gateway.asyncssh_relay.LINGER_S", 60.0)
    monkeypatch.setattr(asyncssh_ending, "_THROWN_AWAY_MAX", 1_000_000)
    async with both_ends(scene) as (raw, _box, leg):
        leg._linger_s = 60.0
        # It does not hear of the end: it reads no more.
        assert raw._transport is not None
        raw._transport.pause_reading()
        leg.finish(GONE)
        await scene.until(lambda: leg._lingering is not None)
        for _ in range(100):
            raw.send_raw(data(bytes(30_000)))
            await asyncio.sleep(0.002)
        await scene.until(lambda: leg._lingering is None)
