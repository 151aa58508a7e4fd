"""The real OpenSSH client through the gateway to a real sshd."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator

import pytest

from support.gateway_box import Client, Scene, connect_asyncssh, open_scene

TWENTY_MB = 20 * 1024 * 1024


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        yield opened


@pytest.fixture(params=["", "aes128-gcm@openssh.com"], ids=["OpenSSH's choice", "resealed in place"])
def client(scene: Scene, request: pytest.FixtureRequest) -> Client:
    client = scene.add_client("royal-1")
    client.ciphers = request.param
    client.write_config(client.title)
    return client


@pytest.mark.parametrize("status", [0, 1, 77, 255])
async def test_exit_statuses_come_back_whole(client: Client, status: int) -> None:
    finished = await client.run(f"exit {status}")
    assert (finished.status, finished.error_text) == (status, "")


async def test_death_by_signal_travels_as_exit_signal(scene: Scene, client: Client) -> None:
    async with connect_asyncssh(scene, client) as connection:
        result = await connection.run("kill -TERM $$")
        assert result.exit_signal is not None
        assert result.exit_signal[0] == "TERM"


async def test_stderr_stays_apart_from_stdout(client: Client) -> None:
    finished = await client.run("printf out; printf err >&2; exit 3")
    assert (finished.status, finished.stdout, finished.stderr) == (3, b"out", b"err")


async def test_20_mb_through_stdin_and_stdout_unchanged(client: Client) -> None:
    sent = os.urandom(TWENTY_MB)
    finished = await client.run("cat", stdin=sent)
    assert finished.status == 0
    assert hashlib.sha256(finished.stdout).digest() == hashlib.sha256(sent).digest()


async def test_20_mb_to_a_reader_that_sleeps_first(client: Client) -> None:
    """The sleeper's socket fills up; nothing is lost, and stdin's end still arrives on the box."""
    sent = os.urandom(TWENTY_MB)
    argv = client.argv("box", "sleep 1; cat")
    process = await asyncio.create_subprocess_shell(
        " ".join(argv[:-1]) + " 'sleep 1; cat' | (sleep 1; sha256sum)",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate(sent)
    assert out.split()[0].decode() == hashlib.sha256(sent).hexdigest()


async def test_half_close_the_box_answers_after_stdin_ended(client: Client) -> None:
    finished = await client.run("n=$(wc -c); sleep 0.2; echo got $n", stdin=b"x" * 1000)
    assert finished.stdout == b"got 1000\n"


# An ordinary user's plain sshd cannot give a pty to group tty; the local runtime's box can, and tests that.
@pytest.mark.root_only
async def test_a_pty_with_size_and_resize(scene: Scene, client: Client) -> None:
    async with connect_asyncssh(scene, client) as connection:
        process = await connection.create_process(
            # The trap first: a size that changes before it stands would be lost, and the loop have no end.
            "trap 'stty size; exit 5' WINCH; stty size; while :; do sleep 0.05; done",
            term_type="xterm",
            term_size=(101, 37),
        )
        assert (await process.stdout.readline()).strip() == "37 101"
        process.change_terminal_size(120, 50)
        assert (await process.stdout.readline()).strip() == "50 120"
        assert (await process.wait()).exit_status == 5


# An ordinary user's plain sshd cannot give a pty to group tty; the local runtime's box can, and tests that.
@pytest.mark.root_only
async def test_openssh_gets_a_pty(client: Client) -> None:
    finished = await client.run("tty && echo $TERM", "-tt")
    assert finished.stdout.startswith(b"/dev/pts/")


async def test_environment_reaches_the_box(client: Client) -> None:
    finished = await client.run("echo $RC_COLOUR", options=("SetEnv=RC_COLOUR=teal",))
    assert finished.stdout == b"teal\n"


async def test_50_parallel_execs_over_one_master(client: Client, scene: Scene) -> None:
    control = f"ControlPath={scene.folder}/m"
    master = await client.start("-M", "-N", "box", options=(control,))
    await scene.until(lambda: (scene.folder / "m").exists())
    results = await asyncio.gather(
        *(client.run(f"echo {n}; exit {n % 100}", options=(control, "ControlMaster=no")) for n in range(50))
    )
    assert [r.status for r in results] == [n % 100 for n in range(50)]
    assert [r.stdout for r in results] == [b"%d\n" % n for n in range(50)]
    assert len(scene.gateway._registry) == 1
    master.terminate()
    await master.wait()


async def test_20_parallel_connections(client: Client) -> None:
    results = await asyncio.gather(*(client.run(f"echo {n}; exit {n}") for n in range(20)))
    assert [r.status for r in results] == list(range(20))
    assert [r.stdout for r in results] == [b"%d\n" % n for n in range(20)]


async def test_sftp_both_ways(client: Client, scene: Scene) -> None:
    local, remote, back = (scene.folder / name for name in ("local", "remote", "back"))
    local.write_bytes(os.urandom(3_000_000))
    process = await asyncio.create_subprocess_exec(
        *client.argv("-b", "-", program="sftp"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate(f"put {local} {remote}\nget {remote} {back}\n".encode())
    assert process.returncode == 0, err
    assert back.read_bytes() == remote.read_bytes() == local.read_bytes()


async def test_client_disconnects_leave_nothing_behind(client: Client, scene: Scene) -> None:
    await client.run("true")
    await scene.until(lambda: len(scene.gateway._registry) == 0)
    await scene.until(lambda: all(child.poll() is not None for child in scene.boxes["royal-1"].children))
    assert scene.gateway.health().strangers == 0


async def test_a_killed_client_ends_the_workspace_leg(client: Client, scene: Scene) -> None:
    process = await client.start("box", "sleep 100")
    await scene.until(lambda: len(scene.gateway._registry) == 1)
    process.kill()
    await scene.until(lambda: len(scene.gateway._registry) == 0)


async def test_a_dying_box_ends_the_client_cleanly(client: Client, scene: Scene) -> None:
    process = await client.start("box", "echo up; sleep 100")
    assert process.stdout is not None
    assert process.stderr is not None
    assert await process.stdout.readline() == b"up\n"
    scene.boxes["royal-1"].kill_sshds()
    async with asyncio.timeout(5):
        assert await process.wait() == 255
    assert b"the workspace closed the connection" in await process.stderr.read()
    assert len(scene.gateway._registry) == 0


async def test_no_exit_status_is_lost_over_many_short_commands(client: Client, scene: Scene) -> None:
    """The channel relay of the prototype lost 7 of 80."""
    async with connect_asyncssh(scene, client) as connection:
        results = await asyncio.gather(*(connection.run(f"echo {n}; exit {n % 200}") for n in range(80)))
    assert [r.exit_status for r in results] == [n % 200 for n in range(80)]


async def test_ctr_with_encrypt_then_mac_works_for_old_libraries(client: Client) -> None:
    finished = await client.run(
        "head -c 300000 /dev/zero | wc -c", options=("Ciphers=aes256-ctr", "MACs=hmac-sha2-256-etm@openssh.com")
    )
    assert finished.stdout == b"300000\n"


async def test_post_quantum_key_exchange(scene: Scene, client: Client) -> None:
    async with connect_asyncssh(scene, client, kex_algs=["mlkem768x25519-sha256"]) as connection:
        assert (await connection.run("echo pq")).stdout == "pq\n"
