"""Frames that lie, come where none may, or come without end, on the short way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from support.gateway_box import Scene, open_scene
from support.gateway_raw import hostile_box, raw_client


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene(box=None) as opened:
        yield opened


def data(text: bytes) -> bytes:
    return b"\x5e" + u(0) + s(text)


async def test_data_inside_a_key_exchange_is_a_violation_on_the_short_way_too(scene: Scene) -> None:
    async with hostile_box(scene, "evil-1") as arrived, raw_client(scene) as raw:
        await raw.log_in(scene.add_client("evil-1"))
        box = await arrived.get()
        (leg,) = [leg for leg in scene.gateway._legs if not leg.is_over]
        await scene.until(lambda: leg.peer is not None)
        raw.send_raw(data(b"before"))
        assert (await box.take(94))[1] == data(b"before")
        raw._packet_handlers = {k: v for k, v in raw._packet_handlers.items() if k != 20}
        raw._send_kexinit()
        raw.send_early(data(b"inside"))
        await raw.wait_gone()
        assert raw.disconnect_reason == "Message inside a key exchange"
        assert box.inbox.empty()


async def test_half_a_packet_costs_no_more_than_itself(scene: Scene) -> None:
    """Two connections share the buffer that is read into: what one has left in it never becomes another's."""
    async with (
        hostile_box(scene, "evil-1") as arrived,
        raw_client(scene) as one,
        raw_client(scene) as other,
    ):
        client = scene.add_client("evil-1")
        await one.log_in(client)
        box_of_one = await arrived.get()
        await other.log_in(client)
        box_of_other = await arrived.get()
        await scene.until(lambda: sum(leg.peer is not None for leg in scene.gateway._legs) == 2)
        written: list[bytes] = []
        transport, one._send = one._transport, written.append  # type: ignore[assignment, method-assign]
        one.send_raw(data(b"1" * 30_000))
        assert transport is not None
        frame = b"".join(written)
        transport.write(frame[:20_000])
        await asyncio.sleep(0.05)
        for _ in range(3):
            other.send_raw(data(b"2" * 30_000))
            assert (await box_of_other.take(94))[1] == data(b"2" * 30_000)
        transport.write(frame[20_000:])
        assert (await box_of_one.take(94))[1] == data(b"1" * 30_000)
        assert box_of_one.inbox.empty()
        assert box_of_other.inbox.empty()
