"""What the real OpenSSH client does through the real gateway, as events; and that nothing waits for them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from runcode.core.errors import RunCodeError
from runcode.gateway.admission import AdmissionPolicy
from runcode.gateway.events import COMMAND, CONNECTION, DROPPED, FORWARD, REFUSED, GatewayEvent
from support.gateway_box import Client, Scene, connect_asyncssh, open_scene

SOON_S = 30.0


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        yield opened


@pytest.fixture
def client(scene: Scene) -> Client:
    return scene.add_client("royal-1")


async def ended(scene: Scene, kind: str, count: int = 1) -> list[dict[str, object]]:
    """Once `count` subjects of a kind have ended: all of them."""
    await scene.until(lambda: len(scene.events.whole(kind)) >= count, timeout_s=SOON_S)
    return scene.events.whole(kind)


async def test_a_command_and_its_connection(scene: Scene, client: Client) -> None:
    before = scene.gateway._clock()
    finished = await client.run("cat; printf 12345; printf err >&2; exit 7", stdin=b"x" * 1000)
    assert finished.status == 7
    (command,) = await ended(scene, COMMAND)
    text = "cat; printf 12345; printf err >&2; exit 7"
    assert command == {
        "form": "exec",
        "text": text,
        "text_bytes": len(text),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "outcome": "finished",
        "exit_status": 7,
        "exit_signal": None,
        "bytes_up": 1000,
        "bytes_down": 1008,
    }
    (connection,) = await ended(scene, CONNECTION)
    assert connection == {
        "workspace": "royal-1",
        "client": "test",
        "source": "127.0.0.1",
        "reason": "the client's connection ended",
        "bytes_up": 1000,
        "bytes_down": 1008,
    }
    (start,), (end,) = scene.events.starts(COMMAND), scene.events.ends(COMMAND)
    session = scene.session_of(client)
    for event in (start, end):
        assert (event.session_id, event.user_id) == (session.session_id, session.user_id)
        assert event.workspace_id == session.workspace_id
        assert event.connection_id == scene.events.starts(CONNECTION)[0].subject_id
    assert before <= start.at == end.started_at <= end.at <= scene.gateway._clock()


async def test_a_refused_connection_is_told_and_a_spare_key_is_none(scene: Scene, client: Client) -> None:
    async def told() -> list[GatewayEvent]:
        scene.gateway._refusals.tell()
        await scene.until(lambda: scene.gateway._recorder.waiting == 0, timeout_s=SOON_S)
        return [event for event in scene.events.rows.values() if event.kind == REFUSED]

    stranger = scene.add_client("royal-1", registered_for=None)
    spare = f"IdentityFile={stranger.folder}/key"
    assert (await client.run("true", options=(spare,))).status == 0
    assert await told() == [], "one of its keys was good"

    expired = scene.add_client("royal-1", ttl_s=-1)
    for refused in (expired, expired, stranger, scene.add_client("nowhere-1", registered_for=None)):
        assert (await refused.run("true")).status == 255
    session = scene.session_of(expired)
    found = {(e.detail["reason"], e.detail["count"], e.workspace_id, e.session_id, e.user_id) for e in await told()}
    assert found == {
        ("the session has expired", 2, session.workspace_id, session.session_id, session.user_id),
        ("no such key", 1, session.workspace_id, None, None),
        ("no such workspace", 1, None, None, None),
    }


async def test_death_by_signal_a_shell_and_sftp(scene: Scene, client: Client) -> None:
    async with connect_asyncssh(scene, client) as connection:
        await connection.run("kill -TERM $$")
        async with connection.start_sftp_client() as sftp:
            await sftp.stat("/")
        shell = await connection.create_process(None)
        shell.stdin.write("exit 5\n")
        assert (await shell.wait()).exit_status == 5
    found = {(c["form"], c["text"], c["exit_status"], c["exit_signal"]) for c in await ended(scene, COMMAND, 3)}
    assert found >= {("exec", "kill -TERM $$", None, "TERM"), ("shell", "", 5, None)}
    assert [c["text"] for c in scene.events.whole(COMMAND) if c["form"] == "subsystem"] == ["sftp"]


async def test_many_commands_over_one_master_keep_their_own_statuses(scene: Scene, client: Client) -> None:
    control = f"ControlPath={scene.folder}/m"
    master = await client.start("-M", "-N", "box", options=(control,))
    await scene.until(lambda: (scene.folder / "m").exists())
    await asyncio.gather(
        *(client.run(f"printf %{n + 1}s; exit {n}", options=(control, "ControlMaster=no")) for n in range(30))
    )
    commands = await ended(scene, COMMAND, 30)
    assert {(c["text"], c["exit_status"], c["bytes_down"]) for c in commands} == {
        (f"printf %{n + 1}s; exit {n}", n, n + 1) for n in range(30)
    }
    assert len(scene.events.starts(CONNECTION)) == 1
    assert scene.events.ends(CONNECTION) == []
    master.terminate()
    await master.wait()
    await ended(scene, CONNECTION)


async def test_forwards_both_ways(scene: Scene, client: Client) -> None:
    echo = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = echo.sockets[0].getsockname()[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        local = probe.getsockname()[1]
    flags = ("-N", "-L", f"{local}:127.0.0.1:{port}", "-R", f"0:127.0.0.1:{port}", "-v")
    process = await client.start(*flags, "box", options=("LogLevel=VERBOSE",))
    assert process.stderr is not None
    async with asyncio.timeout(SOON_S):
        while b"Allocated port" not in (line := await process.stderr.readline()):
            assert line, "ssh ended"
        allocated = int(line.split(b"Allocated port ")[1].split()[0])
        assert await _ask(local, b"hello") == b"hello"
        assert await _ask(allocated, b"answer") == b"answer"
    forwards = await ended(scene, FORWARD, 2)
    assert {(f["form"], f["target"], f["opened_by"], f["bytes_up"], f["bytes_down"]) for f in forwards} == {
        ("direct-tcpip", f"127.0.0.1:{port}", "client", 5, 5),
        ("forwarded-tcpip", f"localhost:{allocated}", "workspace", 6, 6),
    }
    process.terminate()
    await process.wait()
    listener = (await ended(scene, FORWARD, 3))[2]
    assert (listener["form"], listener["target"], listener["outcome"]) == (
        "tcpip-forward",
        f"localhost:{allocated}",
        "closed",
    )
    echo.close()


async def test_a_forward_to_a_unix_socket_and_one_that_is_refused(scene: Scene, client: Client) -> None:
    path = f"{scene.folder}/echo"
    echo = await asyncio.start_unix_server(_echo, path)
    async with connect_asyncssh(scene, client) as connection:
        reader, writer = await connection.open_unix_connection(path)
        writer.write(b"abc")
        assert await reader.read(3) == b"abc"
        writer.close()
        with pytest.raises(Exception, match=r"."):
            await connection.open_connection("127.0.0.1", 1)
    forwards = await ended(scene, FORWARD, 2)
    assert {(f["form"], f["target"], f["outcome"]) for f in forwards} == {
        ("direct-streamlocal", path, "closed"),
        ("direct-tcpip", "127.0.0.1:1", "refused"),
    }
    echo.close()


async def test_a_cut_says_why_and_loses_no_bytes_of_the_account(scene: Scene, client: Client) -> None:
    process = await client.start("box", "head -c 2000000 /dev/zero; sleep 1000")
    assert process.stdout is not None
    await process.stdout.readexactly(2_000_000)
    scene.directory.withdraw(scene.session_of(client).session_id)
    (connection,) = await ended(scene, CONNECTION)
    assert connection["reason"] == "access ended: the session was withdrawn"
    assert connection["bytes_down"] == 2_000_000
    (command,) = await ended(scene, COMMAND)
    assert (command["outcome"], command["exit_status"], command["bytes_down"]) == ("lost", None, 2_000_000)


@pytest.mark.parametrize("how", ["workspace down", "box dies", "too old", "obstacle"])
async def test_each_end_has_its_reason(how: str) -> None:
    policy = AdmissionPolicy(max_connection_age_s=2.0) if how == "too old" else AdmissionPolicy()
    async with open_scene(policy) as scene:
        client = scene.add_client("royal-1")
        if how == "obstacle":
            facts = scene.directory.workspaces["royal-1"]
            scene.directory.workspaces["royal-1"] = replace(facts, running=False)
        process = await client.start("box", "echo up; sleep 1000")
        assert process.stdout is not None
        if how != "obstacle":
            await process.stdout.readline()
        if how == "workspace down":
            scene.directory.set_running("royal-1", False)
        elif how == "box dies":
            scene.boxes["royal-1"].kill_sshds()
        (connection,) = await ended(scene, CONNECTION)
        wanted = {
            "workspace down": "access ended: workspace royal-1 is not running",
            "box dies": "the workspace closed the connection",
            "too old": "this connection has reached its maximum age",
            "obstacle": "workspace royal-1 is not running",
        }
        assert str(connection["reason"]).startswith(wanted[how])


async def test_a_clean_shutdown_ends_and_delivers_everything() -> None:
    async with open_scene() as scene:
        clients = [scene.add_client("royal-1") for _ in range(5)]
        processes = [await client.start("box", "echo up; sleep 1000") for client in clients]
        for process in processes:
            assert process.stdout is not None
            await process.stdout.readline()
        await scene.gateway.close()
        for kind in (CONNECTION, COMMAND):
            assert len(scene.events.starts(kind)) == len(scene.events.ends(kind)) == 5
        assert {c["reason"] for c in scene.events.whole(CONNECTION)} == {"the gateway is shutting down"}


class TestWhenNobodyListens:
    async def test_a_sink_that_hangs_or_fails_slows_no_connection_down(self, scene: Scene, client: Client) -> None:
        await client.run("true")
        scene.events.hang = asyncio.Event()
        for status in (0, 3):
            assert (await client.run(f"exit {status}")).status == status
        sent = os.urandom(3_000_000)
        assert (await client.run("cat", stdin=sent)).stdout == sent
        scene.events.hang.set()
        scene.events.hang = None
        scene.events.error = RunCodeError("io_error", "there is no space left")
        assert (await client.run("exit 9")).status == 9
        await scene.until(lambda: scene.gateway._recorder._failures > 0, timeout_s=SOON_S)
        assert (await client.run("exit 8")).status == 8
        scene.events.error = None
        # Not one was lost: all of them were waiting.
        commands = await ended(scene, COMMAND, 6)
        assert [c["exit_status"] for c in commands] == [0, 0, 3, 0, 9, 8]

    async def test_a_hanging_sink_does_not_hang_the_shutdown(self, scene: Scene, client: Client) -> None:
        await client.run("true")
        scene.events.hang = asyncio.Event()
        await client.run("true")
        async with asyncio.timeout(SOON_S):
            await scene.gateway.close()
        scene.events.hang.set()

    async def test_a_storm_of_commands_is_counted_where_it_finds_no_room(self, scene: Scene, client: Client) -> None:
        other = scene.add_client("royal-1")
        await client.run("true")
        scene.events.hang = asyncio.Event()
        async with connect_asyncssh(scene, client) as connection:
            await asyncio.gather(*(connection.run("x" * 8000) for _ in range(150)))
        assert (await other.run("exit 4")).status == 4
        scene.events.hang.set()
        scene.events.hang = None
        await scene.until(lambda: any(event.kind == DROPPED for event in scene.events.rows.values()), timeout_s=SOON_S)
        assert "exit 4" in [c["text"] for c in await ended(scene, COMMAND, 2)]
        await scene.until(lambda: len(scene.events.ends(CONNECTION)) >= 3, timeout_s=SOON_S)
        (count,) = [event for event in scene.events.rows.values() if event.kind == DROPPED]
        flood = [e for e in scene.events.starts(COMMAND) if e.connection_id == count.connection_id]
        assert count.connection_id is not None
        assert int(count.detail["count"] or 0) >= 150 - len(flood)
        # What was kept of it has an end all the same.
        await scene.until(
            lambda: {e.subject_id for e in flood} <= {e.subject_id for e in scene.events.ends(COMMAND)},
            timeout_s=SOON_S,
        )


class TestUse:
    async def test_open_channels_and_quiet_time(self, scene: Scene, client: Client) -> None:
        number = scene.directory.workspaces["royal-1"].workspace_id
        unused = scene.gateway.find_use(number)
        assert (unused.connections, unused.open_channels, unused.quiet_s) == (0, 0, None)
        process = await client.start("box", "cat", stdin=asyncio.subprocess.PIPE)
        await scene.until(lambda: scene.gateway.find_use(number).open_channels == 1)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"one\n")
        await process.stdout.readline()
        await scene.until(lambda: (scene.gateway.find_use(number).quiet_s or 0) > 2.5, timeout_s=SOON_S)
        quiet = scene.gateway.find_use(number)
        assert quiet.is_idle(2.0)
        assert not quiet.is_idle(600.0)
        process.stdin.write(b"two\n")
        await process.stdout.readline()
        used = scene.gateway.find_use(number)
        assert used.quiet_s is not None
        assert used.quiet_s < 2.0
        process.stdin.close()
        await process.wait()
        await scene.until(lambda: scene.gateway.find_use(number).connections == 0)
        assert scene.gateway.find_use(number).is_idle(600.0)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(1 << 16):
        writer.write(chunk)
    writer.close()


async def _ask(port: int, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(question)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer
