"""The control plane's rows: how fast sessions are minted, and whether a list grows with what others have.

The real app under a real uvicorn, set up as `up` does, in a process of its own, on a
database with real syncs; the callers are 50 kept connections of another process,
which does little but count. The reference is an empty endpoint, which this file
mounts in the same app: what routing and HTTP cost by themselves. Rates are medians of
interleaved rounds, beside the server's processor time for one answer, which other
work on the machine does not change.

By itself: `python benchmarks/controlplane.py [--seconds 2] [--rounds 5] [--profile FILE]`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import gc
import http.client
import json
import os
import pstats
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

import uvicorn  # noqa: E402

from runcode.controlplane.app import make_app  # noqa: E402
from runcode.controlplane.plane import ControlPlane, ControlPlaneSettings  # noqa: E402
from runcode.controlplane.records import STANDARD_SIZE  # noqa: E402
from runcode.controlplane.services.tokens import hash_token  # noqa: E402
from runcode.controlplane.states import RUNNING, SCOPES  # noqa: E402
from runcode.controlplane.store.models import ShareRow, TokenRow, UserRow, WorkspaceRow  # noqa: E402
from runcode.server.listeners import bind, parse_address  # noqa: E402
from support.controlplane_fakes import make_client_key, set_endpoint  # noqa: E402

CALLERS = 50
PEOPLE = 50
EMPTY_PATH = "/bench/empty"
MINT_RATE_TARGET = 0.5
MINT_TAIL_TARGET = 10.0
LIST_TARGET = 2.0
# Of a caller's mints, those that extend the session which it minted last.
_REMINT_SHARE = 0.25
_LIST_RUNS = 400


@dataclass
class Load:
    """What 50 callers saw in one round. `cpu_ms`: the server's processor time for one answer."""

    rate: float
    latencies_ms: list[float]
    errors: int
    cpu_ms: float


@dataclass
class Server:
    port: int
    pid: int
    tokens: list[str]
    workspaces: list[int]
    base: dict[str, Any] = field(default_factory=dict)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running_server(folder: Path, *, people: int, each: int, options: tuple[str, ...] = ()) -> Iterator[Server]:
    """A server with `people` users that own `each` running workspaces; the first ones stand in its facts."""
    command = [sys.executable, __file__, "--serve", str(folder), "--people", str(people), "--each", str(each), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("bench: the control plane's server did not start")
        facts = json.loads(line)
        yield Server(facts["port"], process.pid, facts["tokens"], facts["workspaces"])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


# ---------------------------------------------------------------- callers


class _Caller(asyncio.Protocol):
    """One kept connection that sends the next request as soon as the last answer is whole."""

    def __init__(self, next_request: Callable[[], bytes], load: Load, until: float) -> None:
        self._next_request, self._load, self._until = next_request, load, until
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rest = b""
        self._sent_at = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        if self._sent_at >= self._until:
            self._transport.close()
            return
        self._transport.write(self._next_request())

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, found, body = self._rest.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._rest = body[length:]
        self._load.latencies_ms.append((time.perf_counter() - self._sent_at) * 1000)
        if not head.startswith(b"HTTP/1.1 200"):
            self._load.errors += 1
        self._send()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def drive(server: Server, requests: list[Callable[[], bytes]], seconds: float) -> Load:
    """One round: a connection for each of `requests`."""

    async def run() -> Load:
        load = Load(0.0, [], 0, 0.0)
        loop = asyncio.get_running_loop()
        cpu_s, began = server.cpu_s(), time.perf_counter()
        callers = [
            (await loop.create_connection(lambda r=r: _Caller(r, load, began + seconds), "127.0.0.1", server.port))[1]  # type: ignore[misc]
            for r in requests
        ]
        await asyncio.gather(*(caller.done for caller in callers))
        took = time.perf_counter() - began
        load.rate = len(load.latencies_ms) / took
        load.cpu_ms = (server.cpu_s() - cpu_s) * 1000 / len(load.latencies_ms)
        return load

    return asyncio.run(run())


def empty_requests(server: Server) -> list[Callable[[], bytes]]:
    raw = f"GET {EMPTY_PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    return [lambda: raw] * CALLERS


def mint_requests(server: Server) -> list[Callable[[], bytes]]:
    """Each with a person's token, a new key mostly, the last one again at times; some for a box of others."""
    return [_mints(server, caller, random.Random(caller)) for caller in range(CALLERS)]


def _mints(server: Server, caller: int, chance: random.Random) -> Callable[[], bytes]:
    token, own = server.tokens[caller % PEOPLE], server.workspaces[caller % PEOPLE]
    last: bytes = b""

    def next_request() -> bytes:
        nonlocal last
        if not last or chance.random() >= _REMINT_SHARE:
            body = json.dumps({"public_key": make_client_key(), "ttl": 1800, "client": "claude-code"}).encode()
            # The setup shares each workspace with the next person too.
            wanted = server.workspaces[(caller - 1) % PEOPLE] if chance.random() < 0.2 else own
            last = (
                f"POST /api/rc/workspace/{wanted}/ssh-session HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Authorization: Token {token}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            ).encode() + body
        return last

    return next_request


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True)
class MintFigures:
    rate_ratio: float
    mint_rate: float
    empty_rate: float
    p50_ms: float
    p99_ms: float
    errors: int
    mint_cpu_ms: float
    empty_cpu_ms: float
    empty_p50_ms: float


def measure_mints(server: Server, *, rounds: int, seconds: float) -> MintFigures:
    drive(server, mint_requests(server), min(seconds, 0.5))
    drive(server, empty_requests(server), min(seconds, 0.5))
    pairs = [
        (drive(server, mint_requests(server), seconds), drive(server, empty_requests(server), seconds))
        for _ in range(rounds)
    ]
    mints, empties = [mint for mint, _ in pairs], [empty for _, empty in pairs]
    latencies = sorted(ms for mint in mints for ms in mint.latencies_ms)
    return MintFigures(
        rate_ratio=statistics.median(mint.rate / empty.rate for mint, empty in pairs),
        mint_rate=statistics.median(mint.rate for mint in mints),
        empty_rate=statistics.median(empty.rate for empty in empties),
        p50_ms=latencies[len(latencies) // 2],
        p99_ms=latencies[int(len(latencies) * 0.99)],
        errors=sum(mint.errors for mint in mints) + sum(empty.errors for empty in empties),
        mint_cpu_ms=statistics.median(mint.cpu_ms for mint in mints),
        empty_cpu_ms=statistics.median(empty.cpu_ms for empty in empties),
        empty_p50_ms=statistics.median(ms for empty in empties for ms in empty.latencies_ms),
    )


def measure_list(many: Server, few: Server, runs: int = _LIST_RUNS) -> tuple[float, float]:
    """Median ms of one person's `list` of ten, on the server of 2,000 workspaces and on the one of 20."""
    with _lister(many) as ours, _lister(few) as reference:
        for _ in range(20):
            ours(), reference()
        pairs = [(ours(), reference()) for _ in range(runs)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


@contextlib.contextmanager
def _lister(server: Server) -> Iterator[Callable[[], float]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    headers = {"Authorization": f"Token {server.tokens[0]}"}

    def run() -> float:
        began = time.perf_counter()
        connection.request("GET", "/api/rc/workspaces", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        elapsed = (time.perf_counter() - began) * 1000
        if answer.status != 200 or len(json.loads(body)["data"]["workspaces"]) != 10:
            raise SystemExit(f"bench: the list answered {answer.status}: {body[:200]!r}")
        return elapsed

    try:
        yield run
    finally:
        connection.close()


MINT_RATE_ROW = "empty endpoint / mint rate, 50 callers"
MINT_TAIL_ROW = "mint p99 / p50, 50 callers"
LIST_ROW = "list of 10, 2,000 workspaces / 20"


def add_rows(folder: Path, add_row: Callable[[str, float, float, float], None], only: str) -> None:
    """For `make bench`: ours and reference in ms, target as a ratio of them."""
    if only in MINT_RATE_ROW or only in MINT_TAIL_ROW:
        print("bench: mints …", file=sys.stderr, flush=True)
        with running_server(folder / "mints", people=PEOPLE, each=1) as server:
            figures = measure_mints(server, rounds=5, seconds=2)
        if figures.errors:
            raise SystemExit(f"bench: {figures.errors} of the mints were refused")
        # The ratio of the rates, as time for one answer.
        add_row(MINT_RATE_ROW, 1000 / figures.mint_rate, 1000 / figures.empty_rate, 1 / MINT_RATE_TARGET)
        add_row(MINT_TAIL_ROW, figures.p99_ms, figures.p50_ms, MINT_TAIL_TARGET)
    if only in LIST_ROW:
        print("bench: list …", file=sys.stderr, flush=True)
        with (
            running_server(folder / "many", people=200, each=10) as many,
            running_server(folder / "few", people=2, each=10) as few,
        ):
            ours, reference = measure_list(many, few)
        add_row(LIST_ROW, ours, reference, LIST_TARGET)


# ---------------------------------------------------------------- the server's process


def serve(folder: Path, people: int, each: int, profile: Path | None) -> None:
    profiler = cProfile.Profile() if profile is not None else None
    asyncio.run(_serve(folder, people, each, profiler))
    if profiler is not None and profile is not None:
        with profile.open("w") as stream:
            pstats.Stats(profiler, stream=stream).sort_stats("tottime").print_stats(70)


class _WebServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(folder: Path, people: int, each: int, profiler: cProfile.Profile | None) -> None:
    plane = await ControlPlane.open(ControlPlaneSettings(database=folder / "runcode.db", keys_folder=folder / "keys"))
    facts = await _populate(plane, people, each)
    set_endpoint(plane)
    app = make_app(plane)

    async def empty() -> dict[str, object]:
        return {"error": False}

    app.add_api_route(EMPTY_PATH, empty, methods=["GET"])
    # The router's first, where it costs the least: after all others it would pay for each of them.
    app.router.routes.insert(0, app.router.routes.pop())
    listener = bind(parse_address("127.0.0.1:0", "--http"), "--http")
    server = _WebServer(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", server_header=False, proxy_headers=False)
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, server.handle_exit, signal.SIGINT, None)
    # As `up` does.
    gc.collect()
    gc.freeze()
    print(json.dumps({"port": listener.getsockname()[1], **facts}), flush=True)
    if profiler is not None:
        profiler.enable()
    try:
        await server.serve(sockets=[listener])
    finally:
        if profiler is not None:
            profiler.disable()
        await plane.close()


async def _populate(plane: Any, people: int, each: int) -> dict[str, object]:
    """Rows as a reconciler leaves them: no runtime takes part in what is measured."""
    now = plane.clock.now()
    tokens = [f"rct_{index:043d}" for index in range(people)]
    async with plane.store.write() as session:
        users = [UserRow(email=f"person{index}@example.org", created_at=now) for index in range(people)]
        session.add_all(users)
        await session.flush()
        for user, token in zip(users, tokens, strict=True):
            session.add(
                TokenRow(
                    user_id=user.id,
                    name="bench",
                    token_hash=hash_token(token),
                    scopes=list(SCOPES),
                    origin="operator",
                    created_at=now,
                )
            )
        boxes = [
            WorkspaceRow(
                title=f"box-{index}-{number}",
                custom_title="",
                owner_id=user.id,
                runtime="local",
                size=STANDARD_SIZE,
                host_public_key="ssh-ed25519 AAAA",
                desired_state=RUNNING,
                observed_state=RUNNING,
                observed_at=now,
                endpoint_socket_path="/run/none",
                failures=0,
                checkpoints=[],
                created_at=now,
            )
            for index, user in enumerate(users)
            for number in range(each)
        ]
        session.add_all(boxes)
        await session.flush()
        for index, user in enumerate(users):
            shared = boxes[((index - 1) % people) * each]
            session.add(ShareRow(workspace_id=shared.id, user_id=user.id, role="use", created_at=now))
    return {"tokens": tokens[:PEOPLE], "workspaces": [box.id for box in boxes[:PEOPLE]]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--list", action="store_true", help="the list's row too")
    parser.add_argument("--profile", type=Path, help="where to write the server's profile of the mints (slows them)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--people", type=int, default=PEOPLE, help=argparse.SUPPRESS)
    parser.add_argument("--each", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.people, options.each, options.profile)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if options.profile is not None:
            profiled = ("--profile", str(options.profile))
            with running_server(Path(folder) / "mints", people=PEOPLE, each=1, options=profiled) as server:
                drive(server, mint_requests(server), options.seconds)
            return 0
        with running_server(Path(folder) / "mints", people=PEOPLE, each=1) as server:
            figures = measure_mints(server, rounds=options.rounds, seconds=options.seconds)
        for name, value in vars(figures).items():
            print(f"{name:14} {value:10.3f}")
        print(f"{'p99/p50':14} {figures.p99_ms / figures.p50_ms:10.3f}")
        print(f"{'cpu ratio':14} {figures.empty_cpu_ms / figures.mint_cpu_ms:10.3f}")
        if options.list:
            add_rows(Path(folder), lambda *row: print(row[0], [round(x, 3) for x in row[1:]]), LIST_ROW)
    return 0


if __name__ == "__main__":
    sys.exit(main())
