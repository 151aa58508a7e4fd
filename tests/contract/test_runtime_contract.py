"""The port's contract (`runtimes/base.py`), run on every runtime: honest fakes, and the local one for real.

Each test that takes a `case` is a row of the table that the run's summary prints,
each runtime a column. What stands in a real runtime's column is held to it by
`support.runtime_witness`, from outside. `tests/contract/test_runtime_misfits.py`
shows that the suite tells misbehaving runtimes from honest ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from runcode.core.errors import RunCodeError
from runcode.runtimes.base import Observation, ObservedState, Runtime, TcpEndpoint, UnixEndpoint, WorkspaceSpec
from runcode.runtimes.local.runtime import LocalRuntime
from runcode.runtimes.unix_sockets import open_unix_socket
from support.runtime_boxes import find_host_processes, new_workspace_id
from support.runtime_fake import (
    BrokenRuntime,
    ClingingRuntime,
    FakeMachine,
    FakeRuntime,
    LyingRuntime,
    NeverReadyRuntime,
    SlowRuntime,
    SluggishRuntime,
)
from support.runtime_ssh import WorkspaceCa
from support.runtime_witness import require_installed, require_real_box

pytest_plugins = ["support.runtime_fixtures"]
contract = pytest.mark.runtime_case("contract")


@dataclass
class Case:
    """A runtime under test, and how another process would open the same one.

    `real` names the installed runtime that this column is for; None for a fake's.
    """

    runtime: Runtime
    reopen: Callable[[], Runtime]
    spec: WorkspaceSpec
    real: str | None = None

    @property
    def id(self) -> int:
        return self.spec.workspace_id

    async def start(self, runtime: Runtime | None = None) -> list[str]:
        steps = []
        async for checkpoint in (runtime or self.runtime).start(self.spec):
            json.dumps(dict(checkpoint.record))
            steps.append(checkpoint.step)
        return steps

    async def state(self) -> ObservedState:
        seen = await self.runtime.inspect(self.id)
        assert (seen.endpoint is not None) == (seen.state is ObservedState.RUNNING), seen
        # What another process sees is no different.
        assert (await self.reopen().inspect(self.id)).state is seen.state
        if self.real is not None:
            await self.require_real(seen)
        return seen.state

    async def require_real(self, seen: Observation) -> None:
        assert self.real is not None
        require_installed(self.runtime, self.real)
        if isinstance(seen.endpoint, UnixEndpoint):
            await require_real_box(seen.endpoint.socket_path)

    async def greeting(self) -> bytes:
        endpoint = (await self.runtime.inspect(self.id)).endpoint
        if isinstance(endpoint, TcpEndpoint):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        else:
            assert isinstance(endpoint, UnixEndpoint)
            reader, writer = await asyncio.open_unix_connection(sock=await open_unix_socket(endpoint.socket_path))
        try:
            return await asyncio.wait_for(reader.readline(), 10)
        finally:
            writer.close()


FAKES = {"fake": FakeRuntime, "slow": SluggishRuntime}


@pytest.fixture(params=[*FAKES, "local"])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    spec = WorkspaceCa().make_spec(new_workspace_id())
    if request.param in FAKES:
        machine, make = FakeMachine(), FAKES[request.param]
        runtime: Runtime = make(tmp_path, machine)
        yield Case(runtime, lambda: make(tmp_path, machine), spec)
        await runtime.destroy(spec.workspace_id)
        assert machine.running == {}
        assert machine.half_started == set()
        return
    root: Path = request.getfixturevalue("local_root")
    runtime = request.getfixturevalue("local_runtime")
    require_installed(runtime, "local")
    yield Case(runtime, lambda: LocalRuntime(root), spec, real="local")
    await runtime.destroy(spec.workspace_id)
    assert find_host_processes(root) == {}
    assert not (root / "workspaces" / str(spec.workspace_id)).exists()


@contract
async def test_a_workspace_nobody_made_is_absent(case: Case) -> None:
    assert await case.state() is ObservedState.ABSENT


@contract
async def test_create_makes_storage_and_is_idempotent(case: Case) -> None:
    await case.runtime.create(case.spec)
    await case.runtime.create(case.spec)
    assert await case.state() is ObservedState.STOPPED


@contract
async def test_a_started_box_answers_where_inspect_says(case: Case) -> None:
    await case.runtime.create(case.spec)
    steps = await case.start()
    assert len(steps) >= 2
    assert await case.state() is ObservedState.RUNNING
    assert (await case.greeting()).startswith(b"SSH-2.0-")


@contract
async def test_start_is_idempotent(case: Case) -> None:
    await case.runtime.create(case.spec)
    await case.start()
    before = await case.runtime.inspect(case.id)
    await case.start()
    await case.start(case.reopen())
    assert await case.runtime.inspect(case.id) == before
    assert (await case.greeting()).startswith(b"SSH-2.0-")


@contract
async def test_two_starts_at_once_end_in_one_box(case: Case) -> None:
    await case.runtime.create(case.spec)
    await asyncio.gather(case.start(), case.start(), case.start())
    assert await case.state() is ObservedState.RUNNING
    assert (await case.greeting()).startswith(b"SSH-2.0-")


@contract
async def test_stop_is_idempotent_and_keeps_storage(case: Case) -> None:
    await case.runtime.create(case.spec)
    await case.runtime.stop(case.id)
    await case.start()
    await case.runtime.stop(case.id)
    await case.runtime.stop(case.id)
    assert await case.state() is ObservedState.STOPPED
    await case.start()
    assert await case.state() is ObservedState.RUNNING


@contract
async def test_stop_and_destroy_of_an_absent_workspace_do_nothing(case: Case) -> None:
    await case.runtime.stop(case.id)
    assert await case.state() is ObservedState.ABSENT
    await case.runtime.destroy(case.id)
    await case.runtime.destroy(case.id)
    assert await case.state() is ObservedState.ABSENT


@contract
async def test_destroy_of_a_running_workspace_leaves_nothing(case: Case) -> None:
    await case.runtime.create(case.spec)
    await case.start()
    await case.runtime.destroy(case.id)
    assert await case.state() is ObservedState.ABSENT
    # And it can be made again.
    await case.runtime.create(case.spec)
    assert await case.state() is ObservedState.STOPPED


@contract
@pytest.mark.parametrize("then", ["start", "stop", "destroy", "create"])
@pytest.mark.parametrize("checkpoint", [1, 2, 3])
async def test_a_crash_at_any_checkpoint_can_be_gone_on_from(case: Case, checkpoint: int, then: str) -> None:
    await case.runtime.create(case.spec)
    half = case.runtime.start(case.spec)
    for _ in range(checkpoint):
        await anext(half)
    # The server that started it is gone; `half` is never resumed nor closed. Another one goes on.
    other = case.reopen()
    if then == "start":
        await case.start(other)
        assert await case.state() is ObservedState.RUNNING
        assert (await case.greeting()).startswith(b"SSH-2.0-")
    elif then == "stop":
        await other.stop(case.id)
        assert await case.state() is ObservedState.STOPPED
    elif then == "destroy":
        await other.destroy(case.id)
        assert await case.state() is ObservedState.ABSENT
    else:
        await other.create(case.spec)
        assert await case.state() in (ObservedState.STOPPED, ObservedState.RUNNING)


@contract
async def test_stop_during_start_wins(case: Case) -> None:
    await case.runtime.create(case.spec)
    half = case.runtime.start(case.spec)
    await anext(half)
    await case.runtime.stop(case.id)
    with pytest.raises(RunCodeError) as caught:
        async for _ in half:
            pass
    assert caught.value.code in ("conflict", "not_ready")
    assert await case.state() is ObservedState.STOPPED


@contract
async def test_destroy_during_start_wins(case: Case) -> None:
    await case.runtime.create(case.spec)
    half = case.runtime.start(case.spec)
    await anext(half)
    await anext(half)
    await case.runtime.destroy(case.id)
    with contextlib.suppress(RunCodeError):
        async for _ in half:
            pass
    assert await case.state() is ObservedState.ABSENT


@contract
async def test_a_cancelled_start_leaves_a_true_state(case: Case) -> None:
    await case.runtime.create(case.spec)
    task = asyncio.create_task(case.start())
    await asyncio.sleep(0.02)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await case.state()
    await case.start()
    assert await case.state() is ObservedState.RUNNING


@contract
async def test_closing_a_runtime_leaves_boxes_running(case: Case) -> None:
    await case.runtime.create(case.spec)
    other = case.reopen()
    await case.start(other)
    await other.close()
    assert await case.state() is ObservedState.RUNNING
    assert (await case.greeting()).startswith(b"SSH-2.0-")


@contract
async def test_capabilities_and_obstacle_are_told(case: Case) -> None:
    assert case.runtime.find_obstacle() is None
    assert case.runtime.name
    assert isinstance(case.runtime.capabilities.sudo, bool)


# A real runtime's column is for the real runtime only.


class BorrowedName(FakeRuntime):
    name = "local"


class Impostor(LocalRuntime):
    """Passes for the real one by its class's name and by isinstance."""


Impostor.__name__ = Impostor.__qualname__ = "LocalRuntime"


async def test_a_fake_in_a_real_runtimes_column_fails(tmp_path: Path, local_root: Path) -> None:
    spec = WorkspaceCa().make_spec(new_workspace_id())
    for fake in (FakeRuntime(tmp_path), BorrowedName(tmp_path), Impostor(local_root)):
        case = Case(fake, lambda: fake, spec, real="local")  # noqa: B023 (used within this turn)
        for row in (test_a_workspace_nobody_made_is_absent, test_create_makes_storage_and_is_idempotent):
            with pytest.raises(AssertionError, match="the column 'local' holds a"):
                await row(case)
        await fake.destroy(spec.workspace_id)


async def test_a_socket_that_nobody_boxed_is_no_real_box(tmp_path: Path) -> None:
    """Past the class as well: what listens must be a keeper with a box below it, as the kernel tells."""
    fake, spec = FakeRuntime(tmp_path), WorkspaceCa().make_spec(new_workspace_id())
    await drain(fake, spec)
    endpoint = (await fake.inspect(spec.workspace_id)).endpoint
    assert isinstance(endpoint, UnixEndpoint)
    with pytest.raises(AssertionError, match="own process listens"):
        await require_real_box(endpoint.socket_path)
    await fake.destroy(spec.workspace_id)


# The fakes that misbehave do so in exactly the way that they promise.


async def drain(runtime: Runtime, spec: WorkspaceSpec) -> list[str]:
    return [checkpoint.step async for checkpoint in runtime.start(spec)]


async def test_the_slow_fake_waits_at_its_gate() -> None:
    runtime, spec = SlowRuntime(step="keeper"), WorkspaceCa().make_spec(1)
    task = asyncio.create_task(drain(runtime, spec))
    await runtime.reached.wait()
    assert (await runtime.inspect(1)).state is ObservedState.STOPPED
    runtime.gate.set()
    assert await task == ["prepared", "keeper", "answering"]
    assert (await runtime.inspect(1)).state is ObservedState.RUNNING


async def test_the_never_ready_fake_fails_with_its_reason() -> None:
    runtime = NeverReadyRuntime(reason="no such luck")
    with pytest.raises(RunCodeError, match="no such luck"):
        await drain(runtime, WorkspaceCa().make_spec(1))
    assert (await runtime.inspect(1)).state is ObservedState.STOPPED


async def test_the_lying_fakes_lie() -> None:
    lying, clinging, spec = LyingRuntime(), ClingingRuntime(), WorkspaceCa().make_spec(1)
    assert await drain(lying, spec) == ["prepared", "keeper", "answering"]
    assert (await lying.inspect(1)).state is ObservedState.STOPPED
    await drain(clinging, spec)
    await clinging.stop(1)
    assert (await clinging.inspect(1)).state is ObservedState.RUNNING


async def test_the_broken_fake_raises_what_no_runtime_should() -> None:
    with pytest.raises(ZeroDivisionError):
        await drain(BrokenRuntime(), WorkspaceCa().make_spec(1))
