"""Fakes and factories for the control plane's tests: a clock that is moved, runtimes that misbehave, a real server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import http.client
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import argon2
import uvicorn

from runcode.controlplane.app import make_app
from runcode.controlplane.changes import ChangeFeed
from runcode.controlplane.plane import ControlPlane, ControlPlaneSettings
from runcode.controlplane.reconciler import Reconciler, Timing
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.location import Location
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import (
    Capabilities,
    Checkpoint,
    Endpoint,
    Observation,
    ObservedState,
    UnixEndpoint,
    WorkspaceSpec,
)

START = datetime.datetime(2026, 11, 23, 22, 0, tzinfo=datetime.timezone.utc)
CHEAP_HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


class ManualClock:
    def __init__(self, start: datetime.datetime = START) -> None:
        self._now = start

    def now(self) -> datetime.datetime:
        return self._now

    def advance(self, **delta: float) -> None:
        self._now += datetime.timedelta(**delta)


class Monotonic:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_client_key() -> str:
    """A well-formed public key line that no two tests share. Nobody holds its private half."""

    def string(raw: bytes) -> bytes:
        return len(raw).to_bytes(4, "big") + raw

    blob = string(b"ssh-ed25519") + string(os.urandom(32))
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} somebody@laptop"


_empty_database: list[bytes] = []


async def _lay_empty_database(path: Path) -> None:
    """Migrating takes 0.2 s, and what comes out is always the same: do it once, then copy."""
    if not _empty_database:
        await (await Store.open(path)).close()
        _empty_database.append(path.read_bytes())
    elif not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(_empty_database[0])


@contextlib.asynccontextmanager
async def open_plane(
    folder: Path, clock: Any = None, *, database: Location | None = None, **settings: Any
) -> AsyncIterator[ControlPlane]:
    database = database or folder / "runcode.db"
    if isinstance(database, Path):
        await _lay_empty_database(database)
    plane = await ControlPlane.open(
        ControlPlaneSettings(database=database, keys_folder=folder / "keys", **settings),
        clock=clock,
        hasher=CHEAP_HASHER,
    )
    try:
        yield plane
    finally:
        await plane.close()


def set_endpoint(plane: ControlPlane) -> None:
    plane.ssh_endpoint.set("127.0.0.1", 2222, (make_client_key(),))


_CAPABILITIES = Capabilities(sudo=True, outbound_network=False, limits=False)


@dataclass
class FakeRuntime:
    """A runtime in memory. `on_step` is awaited before each step of a start, so that a test decides what happens."""

    name: str = "fake"
    capabilities: Capabilities = _CAPABILITIES
    steps: tuple[str, ...] = ("storage", "process", "socket")
    obstacle: str | None = None
    fail_start: str | None = None
    fail_stop: str | None = None
    fail_inspect: str | None = None
    hang_inspect: bool = False
    never_ready: bool = False
    running: dict[int, Endpoint] = field(default_factory=dict)
    created: set[int] = field(default_factory=set)
    leftovers: set[int] = field(default_factory=set)
    calls: list[tuple[str, int]] = field(default_factory=list)
    specs: dict[int, WorkspaceSpec] = field(default_factory=dict)
    death_reason: str | None = None
    on_step: Callable[[int, str], Any] | None = None
    on_call: Callable[[], None] | None = None

    def _note(self, call: str, workspace_id: int) -> None:
        if self.on_call is not None:
            self.on_call()
        self.calls.append((call, workspace_id))

    def find_obstacle(self) -> str | None:
        return self.obstacle

    async def create(self, spec: WorkspaceSpec) -> None:
        self._note("create", spec.workspace_id)
        self.created.add(spec.workspace_id)
        self.specs[spec.workspace_id] = spec

    async def start(self, spec: WorkspaceSpec) -> AsyncIterator[Checkpoint]:
        self._note("start", spec.workspace_id)
        for step in self.steps:
            if self.on_step is not None:
                await self.on_step(spec.workspace_id, step)
            self.leftovers.add(spec.workspace_id)
            yield Checkpoint(step=step, record={"pid": 4711})
        if self.fail_start is not None:
            raise RunCodeError("not_ready", self.fail_start)
        if not self.never_ready:
            self.running[spec.workspace_id] = UnixEndpoint(f"/run/fake/{spec.workspace_id}.sock")

    async def stop(self, workspace_id: int) -> None:
        self._note("stop", workspace_id)
        if self.fail_stop is not None:
            raise RunCodeError("io_error", self.fail_stop)
        self.running.pop(workspace_id, None)
        self.leftovers.discard(workspace_id)

    async def destroy(self, workspace_id: int) -> None:
        self._note("destroy", workspace_id)
        self.created.discard(workspace_id)

    async def inspect(self, workspace_id: int) -> Observation:
        if self.on_call is not None:
            self.on_call()
        if self.hang_inspect:
            await asyncio.Event().wait()
        if self.fail_inspect is not None:
            raise RuntimeError(self.fail_inspect)
        endpoint = self.running.get(workspace_id)
        if endpoint is not None:
            return Observation(ObservedState.RUNNING, endpoint)
        state = ObservedState.STOPPED if workspace_id in self.created else ObservedState.ABSENT
        return Observation(state, reason=self.death_reason)

    async def close(self) -> None:
        return None

    def count(self, call: str) -> int:
        return sum(1 for name, _ in self.calls if name == call)


QUICK = Timing(survey_s=0.02, inspect_s=0.3, step_s=2.0)


def make_reconciler(plane: ControlPlane, *runtimes: FakeRuntime, timing: Timing = QUICK) -> Reconciler:
    return Reconciler(
        plane.store,
        ChangeFeed(plane.store, poll_s=0.02),
        {runtime.name: runtime for runtime in runtimes},
        workspace_ca=plane.certificates.workspace_ca_line,
        clock=plane.clock,
        timing=timing,
    )


async def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Wait for a condition (plain or async) that background tasks bring about; the time is a net, not a claim."""
    async with asyncio.timeout(timeout_s):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            await asyncio.sleep(0.005)


async def mark_running(plane: ControlPlane, title: str) -> None:
    """Bring a workspace up by a reconciler over a fake, as a real server would."""
    workspace = await plane.workspaces.load_workspace(title)
    reconciler = make_reconciler(plane, FakeRuntime(name=workspace.runtime))
    await reconciler.start()
    await plane.workspaces.request_start(title)

    async def up() -> bool:
        return (await plane.workspaces.load_workspace(title)).running

    await until(up)
    await reconciler.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class HttpServer:
    """The control plane's app under a real uvicorn on loopback, called by plain http.client as released clients do."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def call(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: object = None,
        raw_body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        return await asyncio.to_thread(self._call, method, path, token, body, raw_body, headers)

    def _call(
        self,
        method: str,
        path: str,
        token: str | None,
        body: object,
        raw_body: bytes | None,
        headers: dict[str, str] | None,
    ) -> Answer:
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Token {token}"
        if body is not None:
            raw_body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body=raw_body, headers=sent)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(status=response.status, headers=found, raw=response.read())
        finally:
            connection.close()


@contextlib.asynccontextmanager
async def serve(plane: ControlPlane) -> AsyncIterator[HttpServer]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(plane), log_config=None, lifespan="off"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        yield HttpServer(listener.getsockname()[1])
    finally:
        server.should_exit = True
        await task
        listener.close()
