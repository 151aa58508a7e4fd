"""Runtimes for everyone's tests: an honest fake, and ones that misbehave in the ways real ones do.

The honest one passes the same contract suite as the real ones. With a folder it
really listens on a unix socket there and greets like an ssh server; without one its
endpoint is only a name, for tests that must not open sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

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


class FakeMachine:
    """What outlives a server: storage, and which boxes run. Two FakeRuntimes may share one."""

    def __init__(self) -> None:
        self.storage: set[int] = set()
        self.running: dict[int, Endpoint] = {}
        self.half_started: set[int] = set()
        self.listeners: dict[int, asyncio.Server] = {}
        # One entry a box that came up: two starts at once must make one.
        self.boxes_made: list[int] = []


class FakeRuntime:
    """Honest and quick. `calls` is what was asked of it, in order."""

    name = "fake"
    capabilities = Capabilities(sudo=True, outbound_network=True, limits=True)
    steps = ("prepared", "keeper", "answering")

    def __init__(self, folder: Path | None = None, machine: FakeMachine | None = None) -> None:
        self.folder = folder
        self.machine = machine if machine is not None else FakeMachine()
        self.calls: list[tuple[str, int]] = []
        self.obstacle: str | None = None
        self._stops: dict[int, int] = {}
        self._locks: dict[int, asyncio.Lock] = {}

    def find_obstacle(self) -> str | None:
        return self.obstacle

    async def create(self, spec: WorkspaceSpec) -> None:
        self.calls.append(("create", spec.workspace_id))
        self.machine.storage.add(spec.workspace_id)

    async def start(self, spec: WorkspaceSpec) -> AsyncIterator[Checkpoint]:
        wid = spec.workspace_id
        self.calls.append(("start", wid))
        stops = self._stops.get(wid, 0)
        for step in self.steps:
            await self.before_step(step)
            if self._stops.get(wid, 0) != stops:
                raise RunCodeError("conflict", "the workspace was stopped while it started")
            async with self._locks.setdefault(wid, asyncio.Lock()):
                await self._take(step, wid)
            yield Checkpoint(step, {"pid": 4242} if step == "keeper" else {})

    async def before_step(self, step: str) -> None:
        """A seam for the ones that misbehave."""
        await asyncio.sleep(0)

    async def _take(self, step: str, wid: int) -> None:
        self.machine.storage.add(wid)
        if wid in self.machine.running:
            return
        if step == "answering":
            self.machine.running[wid] = await self._listen(wid)
            self.machine.boxes_made.append(wid)
            self.machine.half_started.discard(wid)
        else:
            self.machine.half_started.add(wid)

    async def _listen(self, wid: int) -> Endpoint:
        if self.folder is None:
            return UnixEndpoint(f"/nowhere/{wid}/ssh.sock")

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-Fake\r\n")
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()

        path = self.folder / f"{wid}.sock"
        path.unlink(missing_ok=True)
        self.machine.listeners[wid] = await asyncio.start_unix_server(greet, path)
        return UnixEndpoint(str(path))

    async def stop(self, workspace_id: int) -> None:
        self.calls.append(("stop", workspace_id))
        await self._end(workspace_id)

    async def _end(self, workspace_id: int) -> None:
        self._stops[workspace_id] = self._stops.get(workspace_id, 0) + 1
        self.machine.half_started.discard(workspace_id)
        self.machine.running.pop(workspace_id, None)
        listener = self.machine.listeners.pop(workspace_id, None)
        if listener is not None:
            listener.close()

    async def destroy(self, workspace_id: int) -> None:
        self.calls.append(("destroy", workspace_id))
        await self._end(workspace_id)
        self.machine.storage.discard(workspace_id)

    async def inspect(self, workspace_id: int) -> Observation:
        if workspace_id not in self.machine.storage:
            return Observation(ObservedState.ABSENT)
        endpoint = self.machine.running.get(workspace_id)
        if endpoint is None:
            return Observation(ObservedState.STOPPED)
        return Observation(ObservedState.RUNNING, endpoint)

    async def close(self) -> None:
        self.calls.append(("close", 0))

    def crash_box(self, workspace_id: int) -> None:
        """The box dies on its own."""
        self.machine.running.pop(workspace_id, None)


class SlowRuntime(FakeRuntime):
    """Stands still before `step` until `gate` is set; `reached` tells that it stands there."""

    def __init__(self, folder: Path | None = None, *, step: str = "answering") -> None:
        super().__init__(folder)
        self.step = step
        self.gate = asyncio.Event()
        self.reached = asyncio.Event()

    async def before_step(self, step: str) -> None:
        if step == self.step:
            self.reached.set()
            await self.gate.wait()


class SluggishRuntime(FakeRuntime):
    """Honest, but each step takes its time, so that others get in between."""

    async def before_step(self, step: str) -> None:
        await asyncio.sleep(0.03)


class NeverReadyRuntime(FakeRuntime):
    """Leaves something behind, then says that it cannot, each time."""

    def __init__(self, folder: Path | None = None, *, reason: str = "the box ended before it served") -> None:
        super().__init__(folder)
        self.reason = reason

    async def before_step(self, step: str) -> None:
        if step == "answering":
            raise RunCodeError("not_ready", self.reason)


class BrokenRuntime(FakeRuntime):
    """Raises what is not a RunCodeError at `step`, as a faulty implementation would."""

    def __init__(self, folder: Path | None = None, *, step: str = "keeper") -> None:
        super().__init__(folder)
        self.step = step

    async def before_step(self, step: str) -> None:
        if step == self.step:
            raise ZeroDivisionError("a fault of the runtime's own")


class LyingRuntime(FakeRuntime):
    """Every start ends well, and nothing runs afterwards."""

    async def _take(self, step: str, wid: int) -> None:
        self.machine.storage.add(wid)


class ClingingRuntime(FakeRuntime):
    """stop returns, and the box goes on running."""

    async def stop(self, workspace_id: int) -> None:
        self.calls.append(("stop", workspace_id))
