"""A gateway with a crowd on it: what an idle connection costs in memory, and what the crowd costs everyone else.

Owns: three processes: the gateway (with a fake directory), a box that answers
whatever comes (thousands of sshds would not fit), and this one with the clients. The
`true` that is timed goes through the same gateway to a real sshd.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import multiprocessing
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import asyncssh

from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from runcode.gateway.server import GatewayServer
from support.gateway_box import Box, Client
from support.gateway_fakes import FakeDirectory
from support.gateway_raw import HostileBox, RawClient, _Anything, _LetsGatewayIn

IDLE = 2000
ACTIVE = 200
# A keystroke that is echoed, twice a second, on each active connection.
_BEAT_S = 0.5
_KEYSTROKE = bytes(64)
_CONNECTING_AT_ONCE = 40
_SAMPLES = 300

_spawn = multiprocessing.get_context("spawn")


def serve_gateway(facts: dict[str, Any], pipe: Connection) -> None:
    """Answers `rss` with its private memory in KiB, until it is told to `stop`."""

    async def main() -> None:
        directory = FakeDirectory(ca=asyncssh.import_private_key(facts["ca"]))
        for title, endpoint in facts["workspaces"].items():
            directory.add_workspace(title, **endpoint)
            directory.add_session(title, facts["public_lines"][title])
        gateway = GatewayServer(directory, host_key_path=Path(facts["host_key_path"]))
        pipe.send(await gateway.start("127.0.0.1", 0))
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()

        def answer() -> None:
            if pipe.recv() == "stop":
                stopped.set()
                return
            lines = Path("/proc/self/status").read_text().splitlines()
            pipe.send(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))

        loop.add_reader(pipe.fileno(), answer)
        await stopped.wait()

    asyncio.run(main())


class _EchoBox(HostileBox):
    """Takes every channel, and sends back what it gets."""

    def take_over(self) -> None:
        self._channels = _Anything(self)  # type: ignore[assignment]

    def process_packet(self, pkttype: int, pktid: int, packet: Any) -> Any:
        if pkttype < 80:
            return super().process_packet(pkttype, pktid, packet)
        payload = packet.get_full_payload()
        if pkttype == 90:
            self.send_raw(b"\x5b" + u(0) + u(0) + u(1 << 31) + u(1 << 15))
        elif pkttype in (94, 97):
            self.send_raw(payload)
        return True


def serve_echo(path: str, key: bytes, ready: Connection) -> None:
    async def main() -> None:
        options = asyncssh.SSHServerConnectionOptions(
            config=None,
            server_factory=_LetsGatewayIn,
            server_host_keys=[asyncssh.import_private_key(key)],
            gss_host=None,
            encoding=None,
        )
        loop = asyncio.get_running_loop()

        def make() -> _EchoBox:
            box = _EchoBox(loop, options)
            box.take_over()
            return box

        await loop.create_unix_server(make, path, backlog=512)
        ready.send("ready")
        await asyncio.Event().wait()

    asyncio.run(main())


@contextlib.contextmanager
def _processes(folder: Path) -> Iterator[tuple[Connection, int, Client, Client, str]]:
    """The gateway's pipe and port, the crowd's client, the real one, and the gateway's host key."""
    directory = FakeDirectory()
    box = Box(folder / "box", directory.ca_line)
    # The second workspace of a fresh directory: its ids begin at 101, a session takes one too.
    box.trust("ws-103")
    echo_key, host_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    (folder / "gwhost").write_bytes(host_key.export_private_key("openssh"))
    host_line = host_key.export_public_key("openssh").decode().strip()
    crowd, real = (Client(folder / title, title, 1, host_line) for title in ("crowd-1", "real-1"))
    facts = {
        "ca": directory.ca.export_private_key("openssh"),
        "host_key_path": str(folder / "gwhost"),
        "public_lines": {"crowd-1": crowd.public_line, "real-1": real.public_line},
        "workspaces": {
            "crowd-1": {
                "host_key": echo_key.export_public_key("openssh").decode().strip(),
                "socket_path": str(folder / "echo"),
                "login": "ws-101",
            },
            "real-1": {"host_key": box.host_key_line, "socket_path": box.socket_path, "login": getpass.getuser()},
        },
    }
    ours, theirs = _spawn.Pipe()
    ready, readies = _spawn.Pipe(duplex=False)
    echo = _spawn.Process(
        target=serve_echo, args=(str(folder / "echo"), echo_key.export_private_key("openssh"), readies)
    )
    gateway = _spawn.Process(target=serve_gateway, args=(facts, theirs))
    echo.start()
    gateway.start()
    box.start()
    try:
        ready.recv()
        port = ours.recv()
        for client in (crowd, real):
            client.port = port
            (client.folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_line}\n")
            client.write_config(client.title)
        yield ours, port, crowd, real, host_line
    finally:
        box.close()
        with contextlib.suppress(BrokenPipeError):
            ours.send("stop")
        gateway.join(20)
        for process in (gateway, echo):
            process.kill()
            process.join()


class _Crowd:
    def __init__(self, client: Client, port: int, host_line: str) -> None:
        self._client, self._port = client, port
        self._options = asyncssh.SSHClientConnectionOptions(
            config=None,
            host="127.0.0.1",
            username="raw",
            known_hosts=([asyncssh.import_public_key(host_line)], [], []),
            client_keys=None,
            agent_path=None,
            encryption_algs=["aes128-gcm@openssh.com"],
            kex_algs=["curve25519-sha256"],
        )
        self._options.waiter = None  # type: ignore[assignment]
        self._turns = asyncio.Semaphore(_CONNECTING_AT_ONCE)

    async def connect(self) -> RawClient:
        async with self._turns:
            loop = asyncio.get_running_loop()
            _, raw = await loop.create_connection(lambda: RawClient(loop, self._options), "127.0.0.1", self._port)
            await raw.ready.wait()
            await raw.log_in(self._client)
            # A channel that has come and gone says that both legs stand.
            raw.send_raw(b"\x5a" + s(b"session") + u(0) + u(1 << 31) + u(1 << 15))
            await raw.take(91)
            raw.send_raw(b"\x61" + u(0))
            await raw.take(97)
            return raw


async def _type(raw: RawClient, starts_in_s: float) -> None:
    await asyncio.sleep(starts_in_s)
    raw.send_raw(b"\x5a" + s(b"session") + u(0) + u(1 << 31) + u(1 << 15))
    while True:
        raw.send_raw(b"\x5e" + u(0) + s(_KEYSTROKE))
        await asyncio.sleep(_BEAT_S)
        while not raw.inbox.empty():
            raw.inbox.get_nowait()


async def _p99_ms(client: Client, folder: Path) -> float:
    """Of `true` over a live master."""
    control = folder / "master"
    # -f: it is there once this returns.
    await asyncio.to_thread(
        subprocess.run, client.argv("-f", "-M", "-N", "-S", str(control), "box"), stdin=subprocess.DEVNULL, check=True
    )
    argv = client.argv("-S", str(control), "box", "true")
    took = []
    for _ in range(_SAMPLES):
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*argv, stdin=subprocess.DEVNULL)
        if await process.wait() != 0:
            raise SystemExit("bench: true failed beside a crowd")
        took.append((time.perf_counter() - began) * 1000)
    await asyncio.to_thread(
        subprocess.run, client.argv("-S", str(control), "-O", "exit", "box"), stderr=subprocess.DEVNULL, check=True
    )
    return statistics.quantiles(took, n=100)[98]


async def measure(folder: Path, say: Callable[[str], None]) -> tuple[float, float, float]:
    """KiB of an idle connection; p99 of `true` beside nobody, and beside the crowd, in ms."""
    with _processes(folder) as (pipe, port, crowd_client, real, host_line):
        crowd = _Crowd(crowd_client, port, host_line)
        for raw in await asyncio.gather(*(crowd.connect() for _ in range(100))):
            raw.abort()
        quiet = await _p99_ms(real, folder)
        before = _ask_rss(pipe)
        say(f"{IDLE} idle connections …")
        idle = await asyncio.gather(*(crowd.connect() for _ in range(IDLE)))
        await asyncio.sleep(2)
        kib = (_ask_rss(pipe) - before) / IDLE
        active = await asyncio.gather(*(crowd.connect() for _ in range(ACTIVE)))
        typing = [asyncio.create_task(_type(raw, n / ACTIVE * _BEAT_S)) for n, raw in enumerate(active)]
        await asyncio.sleep(2)
        say(f"`true` beside {IDLE} idle and {ACTIVE} active connections …")
        loaded = await _p99_ms(real, folder)
        for task in typing:
            task.cancel()
        for raw in (*idle, *active):
            raw.abort()
        return kib, quiet, loaded


def _ask_rss(pipe: Connection) -> int:
    pipe.send("rss")
    return int(pipe.recv())
