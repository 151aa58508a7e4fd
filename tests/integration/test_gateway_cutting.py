"""Whoever loses access is cut within a second, mid-transfer; who may not enter is told nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import asyncssh
import pytest

from runcode.core.errors import RunCodeError
from runcode.gateway.admission import AdmissionPolicy
from runcode.gateway.server import GatewayServer
from support.gateway_box import Client, Scene, connect_asyncssh, open_scene


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        yield opened


async def start_transfer(client: Client) -> asyncio.subprocess.Process:
    """An endless download whose bytes are being read."""
    process = await client.start("box", "cat /dev/zero", stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readexactly(1_000_000)

    async def drain() -> None:
        assert process.stdout is not None
        while await process.stdout.read(1 << 16):
            pass

    process.draining = asyncio.create_task(drain())  # type: ignore[attr-defined]
    return process


_CUTS: dict[str, Callable[[Scene, Client], object]] = {
    "session revoked": lambda scene, client: scene.directory.withdraw(scene.session_of(client).session_id),
    "user revoked": lambda scene, client: scene.directory.withdraw_user(7),
    "workspace stopped": lambda scene, client: scene.directory.set_running("royal-1", False),
    "workspace deleted": lambda scene, client: delete_workspace(scene),
    "everything may have changed": lambda scene, client: forget_all(scene),
}


def delete_workspace(scene: Scene) -> None:
    gone = scene.directory.workspaces.pop("royal-1")
    scene.directory.tell(workspace_ids=frozenset({gone.workspace_id}))


def forget_all(scene: Scene) -> None:
    scene.directory.sessions.clear()
    scene.directory.tell(everything=True)


@pytest.mark.parametrize("what", _CUTS)
async def test_a_transfer_dies_within_a_second(scene: Scene, what: str) -> None:
    client = scene.add_client("royal-1", registered_for=None)
    scene.sessions[client.public_line] = scene.directory.add_session("royal-1", client.public_line, user_id=7)
    process = await start_transfer(client)
    began = time.monotonic()
    _CUTS[what](scene, client)
    async with asyncio.timeout(5):
        status = await process.wait()
    assert time.monotonic() - began < 1.0
    assert status == 255
    assert process.stderr is not None
    assert b"access to this workspace has ended" in await process.stderr.read()
    await scene.until(lambda: all(child.poll() is not None for child in scene.boxes["royal-1"].children))


async def test_a_reader_that_reads_nothing_is_cut_too(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    process = await client.start("box", "cat /dev/zero")
    await asyncio.sleep(0.5)
    scene.directory.withdraw(scene.session_of(client).session_id)
    await scene.until(lambda: len(scene.gateway._registry) == 0, timeout_s=1.0)
    await scene.until(lambda: all(child.poll() is not None for child in scene.boxes["royal-1"].children))
    assert process.stdout is not None
    asyncio.create_task(process.stdout.read())  # noqa: RUF006
    async with asyncio.timeout(5):
        assert await process.wait() == 255


async def test_a_change_of_others_cuts_nobody(scene: Scene) -> None:
    client, other = scene.add_client("royal-1"), scene.add_client("royal-1")
    process = await client.start("box", "sleep 0.5; echo survived")
    await scene.until(lambda: len(scene.gateway._registry) == 1)
    scene.directory.withdraw(scene.session_of(other).session_id)
    scene.directory.tell(everything=True)
    out, _ = await process.communicate()
    assert out == b"survived\n"


async def test_expiry_ends_the_right_to_connect_but_no_connection(scene: Scene) -> None:
    client = scene.add_client("royal-1", ttl_s=1.5)
    process = await client.start("box", "sleep 2; echo survived")
    await scene.until(lambda: len(scene.gateway._registry) == 1)
    await asyncio.sleep(1.5)
    scene.directory.tell(everything=True)
    assert (await client.run("true")).status == 255
    out, _ = await process.communicate()
    assert out == b"survived\n"


async def test_a_change_while_connecting_is_not_missed(scene: Scene) -> None:
    """The right is withdrawn after authentication and before registration: no batch names us, the second look does."""
    client = scene.add_client("royal-1")
    session = scene.session_of(client)
    load = scene.directory.load_admission_facts
    calls = 0

    async def withdraw_after_the_second_look_up(title: str, key_fingerprint: str) -> object:
        nonlocal calls
        calls += 1
        facts = await load(title, key_fingerprint)
        if calls == 2:
            scene.directory.sessions[key_fingerprint] = replace(session, withdrawn=True)
        return facts

    scene.directory.load_admission_facts = withdraw_after_the_second_look_up  # type: ignore[method-assign,assignment]
    finished = await client.run("echo in")
    assert calls == 3
    assert (finished.status, finished.stdout) == (255, b"")
    assert scene.boxes["royal-1"].children == []


async def test_a_stopped_workspace_says_so(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    scene.directory.set_running("royal-1", False)
    finished = await client.run("true")
    assert finished.status == 255
    assert "workspace royal-1 is not running: type `runcode connect royal-1 --start`" in finished.error_text


async def test_a_workspace_that_does_not_answer_says_so(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    scene.boxes["royal-1"].close()
    finished = await client.run("true")
    assert finished.status == 255
    assert "the workspace could not be reached" in finished.error_text


async def test_maximum_age_ends_a_connection() -> None:
    async with open_scene(AdmissionPolicy(max_connection_age_s=0.8)) as scene:
        client = scene.add_client("royal-1")
        finished = await client.run("sleep 20")
        assert finished.status == 255
        assert "maximum age" in finished.error_text


async def test_a_silent_feed_lets_nobody_new_in_and_cuts_nobody() -> None:
    async with open_scene(AdmissionPolicy(feed_silence_s=0.5)) as scene:
        client = scene.add_client("royal-1")
        process = await client.start("box", "read x; echo survived", stdin=asyncio.subprocess.PIPE)
        await scene.until(lambda: len(scene.gateway._registry) == 1)
        scene.directory.heartbeats = False
        await scene.until(lambda: not scene.gateway.health().feed_is_fresh)
        finished = await client.run("true")
        assert finished.status == 255
        assert "try again soon" in finished.error_text
        out, _ = await process.communicate(b"\n")
        assert out == b"survived\n"
        scene.directory.heartbeats = True
        await scene.until(lambda: scene.gateway.health().feed_is_fresh)
        assert (await client.run("true")).status == 0


async def test_a_directory_that_is_down_refuses_new_ones_only(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    process = await client.start("box", "read x; echo survived", stdin=asyncio.subprocess.PIPE)
    await scene.until(lambda: len(scene.gateway._registry) == 1)
    scene.directory.lookups = False
    scene.directory.tell(everything=True)
    finished = await client.run("true")
    assert finished.status == 255
    assert "try again soon" in finished.error_text
    out, _ = await process.communicate(b"\n")
    assert out == b"survived\n"


async def test_closing_waits_for_those_who_finish(scene: Scene) -> None:
    client = scene.add_client("royal-1")
    process = await client.start("box", "sleep 0.5; echo done; exit 4")
    await scene.until(lambda: len(scene.gateway._registry) == 1)
    await scene.gateway.close(grace_s=10)
    out, _ = await process.communicate()
    assert (process.returncode, out) == (4, b"done\n")
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await connect_asyncssh(scene, client)


async def test_a_port_in_use_starts_nothing(scene: Scene) -> None:
    second = GatewayServer(scene.directory, host_key_path=scene.host_key_path)
    with pytest.raises(OSError, match="in use"):
        await second.start("127.0.0.1", scene.port)
    assert second.health().feed_age_s == float("inf")
    await second.close()


async def test_a_host_key_of_another_kind_is_refused(scene: Scene) -> None:
    path = scene.folder / "rsa"
    path.write_bytes(asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_private_key("openssh"))
    with pytest.raises(RunCodeError, match="not an Ed25519 key"):
        await GatewayServer(scene.directory, host_key_path=path).start("127.0.0.1", 0)
    with pytest.raises(RunCodeError, match="cannot be read"):
        await GatewayServer(scene.directory, host_key_path=scene.folder / "none").start("127.0.0.1", 0)
