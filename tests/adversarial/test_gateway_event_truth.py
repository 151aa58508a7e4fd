"""A client that hides, a box that lies: the events say what passed, of whom, as plain bounded text."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from runcode.gateway.events import COMMAND, CONNECTION
from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from support.gateway_box import Scene, open_scene
from support.gateway_raw import hostile_box, raw_client

SOON_S = 30.0


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        yield opened


async def test_a_command_of_256_kb_of_anything_is_kept_as_bounded_text(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    # Through a raw client: OpenSSH and the gateway's packet limit allow just under 256 KB.
    command = b": '\xff\xfe\x1b]52;c;QQ==\x07\x00\r\xe2\x80\xae" + bytes(range(256)) * 1000
    async with raw_client(scene) as raw:
        await raw.log_in(client)
        box = await raw.open_session()
        raw.send_raw(b"\x62" + u(box) + s(b"exec") + b"\x01" + s(command))
        await scene.until(lambda: bool(scene.events.starts(COMMAND)), timeout_s=SOON_S)
    detail = scene.events.starts(COMMAND)[0].detail
    text = detail["text"]
    assert isinstance(text, str)
    assert len(text) < 4500
    assert all(c.isprintable() or c in "\t\n" for c in text)
    assert text.startswith(": '\\xff\\xfe\\x1b]52;c;QQ==\\x07\\x00\\r\\u202e")
    assert detail["text_bytes"] == len(command)
    assert detail["text_sha256"] == hashlib.sha256(command).hexdigest()


async def test_a_program_cannot_be_started_ahead_of_its_channels_confirmation(scene: Scene) -> None:
    """OpenSSH's sshd numbers channels from 0 and would run it: the effect must not be there either."""
    client = scene.add_client("royal-1")
    effect = scene.folder / "effect"
    async with raw_client(scene) as raw:
        await raw.log_in(client)
        # The box is joined, and its number 0 is free again.
        first = await raw.open_session(0)
        raw.send_raw(b"\x61" + u(first))
        await raw.take(97)
        raw.send_raw(
            b"\x5a" + s(b"session") + u(1) + u(1 << 21) + u(1 << 15),
        )
        raw.send_raw(b"\x62" + u(first) + s(b"exec") + b"\x00" + s(f"touch {effect}".encode()))
        await raw.wait_gone()
    await scene.until(lambda: bool(scene.events.ends(CONNECTION)), timeout_s=SOON_S)
    assert scene.events.ends(CONNECTION)[0].detail["reason"] == (
        "the client asked for a program on a channel that is not open"
    )
    assert scene.events.starts(COMMAND) == []
    await asyncio.sleep(0.3)
    assert not effect.exists()


async def test_a_hostile_box_speaks_for_its_own_channels_only(scene: Scene) -> None:
    honest = scene.add_client("royal-1")
    async with hostile_box(scene, "evil-1") as arrived:
        victim = scene.add_client("evil-1")
        honest_run = asyncio.create_task(honest.run("sleep 1; exit 5"))
        async with raw_client(scene) as raw:
            await raw.log_in(victim)
            raw.send_raw(b"\x5a" + s(b"session") + u(3) + u(1 << 21) + u(1 << 15))
            box = await asyncio.wait_for(arrived.get(), SOON_S)
            await box.take(90)
            box.send_raw(b"\x5b" + u(3) + u(77) + u(1 << 21) + u(1 << 15))
            await raw.take(91)
            raw.send_raw(b"\x62" + u(77) + s(b"exec") + b"\x01" + s(b"true"))
            await box.take(98)
            for number in (0, 1, 2, 77, 0xFFFFFFFF):
                box.send_raw(b"\x62" + u(number) + s(b"exit-status") + b"\x00" + u(0))
            box.send_raw(b"\x62" + u(3) + s(b"exit-signal") + b"\x00" + s(b"\x1b[31mKILL\xff\n" * 500) + b"\x00")
            box.send_raw(b"\x61" + u(3))
            await raw.take(97)
        assert (await honest_run).status == 5
    await scene.until(lambda: len(scene.events.whole(COMMAND)) == 2, timeout_s=SOON_S)
    by_text = {c["text"]: c for c in scene.events.whole(COMMAND)}
    assert (by_text["sleep 1; exit 5"]["exit_status"], by_text["sleep 1; exit 5"]["exit_signal"]) == (5, None)
    lie = by_text["true"]
    assert lie["exit_status"] is None
    assert isinstance(lie["exit_signal"], str)
    assert "\x1b" not in lie["exit_signal"]
    assert len(lie["exit_signal"]) < 120
    workspaces = {e.detail["workspace"]: e.workspace_id for e in scene.events.starts(CONNECTION)}
    for event in scene.events.ends(COMMAND):
        wanted = "evil-1" if event.detail["exit_status"] is None else "royal-1"
        assert event.workspace_id == workspaces[wanted]


async def test_a_box_that_never_closes_keeps_its_command_open_until_the_connection_ends(scene: Scene) -> None:
    async with hostile_box(scene, "evil-1") as arrived:
        victim = scene.add_client("evil-1")
        async with raw_client(scene) as raw:
            await raw.log_in(victim)
            raw.send_raw(b"\x5a" + s(b"session") + u(3) + u(1 << 21) + u(1 << 15))
            box = await asyncio.wait_for(arrived.get(), SOON_S)
            await box.take(90)
            box.send_raw(b"\x5b" + u(3) + u(0) + u(1 << 21) + u(1 << 15))
            await raw.take(91)
            raw.send_raw(b"\x62" + u(0) + s(b"exec") + b"\x01" + s(b"true"))
            raw.send_raw(b"\x61" + u(0))
            await box.take(97)
            await scene.until(lambda: bool(scene.events.starts(COMMAND)), timeout_s=SOON_S)
            assert scene.events.ends(COMMAND) == []
        await scene.until(lambda: bool(scene.events.ends(COMMAND)), timeout_s=SOON_S)
    (command,) = scene.events.whole(COMMAND)
    assert (command["outcome"], command["exit_status"]) == ("lost", None)
