"""Runtimes that are slow, never ready, lying, clinging or broken: told apart, and told about.

Each misfit is held against the contract suite itself (a suite that a liar passes
proves nothing), and put under the real reconciler, whose answer a person reads.
One misfit is real: the local runtime with an sshd that never greets.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from contract import test_runtime_contract as suite
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.reconciler import Reconciler
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import Runtime
from runcode.runtimes.local import runtime as local_runtime_module
from runcode.runtimes.local.runtime import LocalRuntime
from support import controlplane_fakes
from support.controlplane_fakes import make_reconciler, open_plane, until
from support.runtime_boxes import find_host_processes, new_workspace_id
from support.runtime_fake import (
    BrokenRuntime,
    ClingingRuntime,
    FakeRuntime,
    LyingRuntime,
    NeverReadyRuntime,
    SlowRuntime,
)
from support.runtime_ssh import WorkspaceCa

pytest_plugins = ["support.runtime_fixtures"]
misfits = pytest.mark.runtime_case("misfits")
# A slow step is given up on soon; a real box gets the time that a busy machine may need.
FAKE_STEP_S, REAL_STEP_S = 0.5, 20.0


@dataclass(frozen=True)
class Expectation:
    """What must come of a misfit. `reason` is part of what a person reads; `breaks` are rows of the contract suite."""

    reason: str
    breaks: tuple[Callable[..., Any], ...]
    keeps: tuple[Callable[..., Any], ...] = field(default=(suite.test_create_makes_storage_and_is_idempotent,))


STARTS = (suite.test_a_started_box_answers_where_inspect_says, suite.test_two_starts_at_once_end_in_one_box)
EXPECTED = {
    "slow": Expectation("did not answer in time", (suite.test_a_started_box_answers_where_inspect_says,)),
    "never-ready": Expectation("no such luck", STARTS),
    "lying": Expectation("the box did not come up", STARTS),
    "clinging": Expectation("still runs after it was stopped", (suite.test_stop_is_idempotent_and_keeps_storage,)),
    "broken": Expectation("failed in an unexpected way", STARTS),
    "local, never answering": Expectation("its sshd does not answer", STARTS),
}


@dataclass
class Case:
    name: str
    runtime: Runtime

    @property
    def expected(self) -> Expectation:
        return EXPECTED[self.name]


@pytest.fixture(params=list(EXPECTED))
async def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    fakes: dict[str, Callable[[], Runtime]] = {
        "slow": lambda: SlowRuntime(tmp_path),
        "never-ready": lambda: NeverReadyRuntime(tmp_path, reason="no such luck"),
        "lying": lambda: LyingRuntime(tmp_path),
        "clinging": lambda: ClingingRuntime(tmp_path),
        "broken": lambda: BrokenRuntime(tmp_path),
    }
    if request.param in fakes:
        yield Case(request.param, fakes[request.param]())
        return
    # A real box in which each connection's sshd ends before it has said a word.
    honest: LocalRuntime = request.getfixturevalue("local_runtime")
    monkeypatch.setattr(local_runtime_module, "_ANSWER_S", 0.3)
    root = tmp_path / "root"
    runtime = LocalRuntime(root)
    assert runtime.find_obstacle() is None
    assert honest._machine is not None
    runtime._machine = dataclasses.replace(honest._machine, sshd="/usr/bin/false")
    yield Case(request.param, runtime)
    assert find_host_processes(root) == {}, "a box that never answered was left running"


@misfits
async def test_the_contract_suite_tells_it_from_an_honest_one(case: Case) -> None:
    for row in (*case.expected.keeps, *case.expected.breaks):
        spec = WorkspaceCa().make_spec(new_workspace_id())
        held = suite.Case(case.runtime, lambda: case.runtime, spec)
        broken = False
        try:
            async with asyncio.timeout(2 if case.name == "slow" else 30):
                await row(held)
        except (AssertionError, RunCodeError, TimeoutError, ZeroDivisionError):
            broken = True
        assert broken == (row in case.expected.breaks), row.__name__
        await case.runtime.destroy(spec.workspace_id)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path / "plane", controlplane_fakes.ManualClock()) as opened:
        await opened.users.create_user("ann@example.org")
        yield opened


async def _reconcile(plane: ControlPlane, case: Case) -> Reconciler:
    """The misfit beside an honest neighbour, each with one workspace."""
    neighbour = FakeRuntime()
    neighbour.name = "honest"
    await plane.workspaces.create_workspace("box", "ann@example.org", runtime=case.runtime.name)
    await plane.workspaces.create_workspace("next", "ann@example.org", runtime="honest")
    step_s = FAKE_STEP_S if isinstance(case.runtime, FakeRuntime) else REAL_STEP_S
    timing = dataclasses.replace(controlplane_fakes.QUICK, step_s=step_s, inspect_s=10.0)
    reconciler = make_reconciler(plane, case.runtime, neighbour, timing=timing)  # type: ignore[arg-type]
    await reconciler.start()
    return reconciler


async def _reach(plane: ControlPlane, title: str, *states: str, reason: str = "") -> None:
    async def reached() -> bool:
        found = await plane.workspaces.load_workspace(title)
        return found.state in states and reason in (found.reason or "")

    try:
        await until(reached, 30)
    except TimeoutError:
        found = await plane.workspaces.load_workspace(title)
        raise AssertionError((title, found.state, found.reason)) from None


@misfits
async def test_a_person_hears_the_truth_with_its_reason(case: Case, plane: ControlPlane) -> None:
    reconciler = await _reconcile(plane, case)
    await plane.workspaces.request_start("box")
    if case.name == "clinging":
        await _reach(plane, "box", "running")
        await plane.workspaces.request_stop("box")
        await _reach(plane, "box", "stopping", reason=case.expected.reason)
    else:
        await _reach(plane, "box", "failed", reason=case.expected.reason)
        assert not (await plane.workspaces.load_workspace("box")).running
        assert "Error" not in str((await plane.workspaces.load_workspace("box")).reason), "no raw text of an exception"
    await reconciler.close()


@misfits
async def test_a_stop_gets_through(case: Case, plane: ControlPlane) -> None:
    reconciler = await _reconcile(plane, case)
    await plane.workspaces.request_start("box")
    await plane.workspaces.request_stop("box")
    if case.name == "clinging":
        await _reach(plane, "box", "stopped", "stopping")
    else:
        await _reach(plane, "box", "stopped")
    await reconciler.close()


@misfits
async def test_its_neighbour_is_not_held_up(case: Case, plane: ControlPlane) -> None:
    reconciler = await _reconcile(plane, case)
    await plane.workspaces.request_start("box")
    await plane.workspaces.request_start("next")
    await _reach(plane, "next", "running")
    await plane.workspaces.request_stop("next")
    await _reach(plane, "next", "stopped")
    await plane.workspaces.delete_workspace("box")
    await reconciler.close()
    await case.runtime.destroy(1)
