"""Idle workspaces: the rule with a clock that is moved, the rounds over a fake runtime, and reports of gateways."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runcode.controlplane.idle_watch import IdleWatch
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services.events import NewEvent
from runcode.controlplane.services.idle import IdleCandidate, IdleCount
from runcode.controlplane.services.workspaces import WorkspacePolicy
from runcode.core.errors import RunCodeError
from support.controlplane_fakes import START, FakeRuntime, ManualClock, mark_running, open_plane

ANN = "ann@example.org"
IDLE_S = 1800


@dataclass
class ProbedRuntime(FakeRuntime):
    """A runtime that can tell of jobs; `trouble` is what it fails with."""

    job: str | None = None
    trouble: Exception | None = None
    asked: list[int] = field(default_factory=list)

    async def find_job(self, workspace_id: int) -> str | None:
        self.asked.append(workspace_id)
        if self.trouble is not None:
            raise self.trouble
        return self.job


class Seconds:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def candidate(**changed: Any) -> IdleCandidate:
    made = IdleCandidate(workspace_id=1, runtime="fake", idle_stop_after_s=IDLE_S, mark=(START, None))
    return dataclasses.replace(made, **changed)


class TestTheRule:
    def test_it_counts_from_the_first_look(self) -> None:
        count = IdleCount()
        looks = [count.look(candidate(), busy=False, now_s=at) for at in (5.0, 5.0 + IDLE_S - 1, 5.0 + IDLE_S)]
        assert looks == [False, False, True]

    def test_every_sign_of_use_begins_it_anew(self) -> None:
        count, used = IdleCount(), START + datetime.timedelta(seconds=1)
        assert not count.look(candidate(), busy=False, now_s=0)
        assert not count.look(candidate(), busy=True, now_s=IDLE_S)
        assert not count.look(candidate(), busy=False, now_s=2 * IDLE_S - 1)
        # A report of a gateway, and a box that came up anew.
        assert not count.look(candidate(mark=(START, used)), busy=False, now_s=2 * IDLE_S)
        assert not count.look(candidate(mark=(used, used)), busy=False, now_s=4 * IDLE_S)
        assert count.look(candidate(mark=(used, used)), busy=False, now_s=5 * IDLE_S)

    def test_a_shorter_time_counts_at_once_and_one_is_no_others(self) -> None:
        count = IdleCount()
        assert not count.look(candidate(), busy=False, now_s=0)
        assert not count.look(candidate(workspace_id=2), busy=False, now_s=70)
        assert count.look(candidate(idle_stop_after_s=60), busy=False, now_s=70)
        assert not count.look(candidate(workspace_id=2, idle_stop_after_s=60), busy=False, now_s=80)

    def test_what_stopped_meanwhile_is_forgotten(self) -> None:
        count = IdleCount()
        count.look(candidate(), busy=False, now_s=0)
        count.forget_all_but([])
        assert not count.look(candidate(), busy=False, now_s=2 * IDLE_S)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    policy = WorkspacePolicy(idle_stop_after_s=IDLE_S)
    async with open_plane(tmp_path, ManualClock(), workspaces=policy) as opened:
        await opened.users.create_user(ANN)
        await opened.workspaces.create_workspace("box", ANN, runtime="fake")
        await mark_running(opened, "box")
        yield opened


async def is_asked_to_stop(plane: ControlPlane) -> bool:
    return (await plane.workspaces.load_workspace("box")).desired_state == "stopped"


class TestTheRounds:
    async def test_nobody_uses_it_and_it_is_stopped_with_the_reason(self, plane: ControlPlane) -> None:
        clock = Seconds()
        watch = IdleWatch(plane.idle_stops, {"fake": ProbedRuntime()}, monotonic=clock)
        for _ in range(2):
            assert await watch.look() == []
            clock.now += IDLE_S - 1
        clock.now += 2
        assert await watch.look() == [1]
        found = await plane.workspaces.load_workspace("box")
        assert (found.desired_state, found.stop_cause) == ("stopped", "idle")
        assert found.explanation == "stopped: idle for 30 min"
        # It no longer runs, so that there is nothing to stop.
        assert await watch.look() == []

    async def test_a_job_keeps_it_for_as_long_as_it_works(self, plane: ControlPlane) -> None:
        clock, runtime = Seconds(), ProbedRuntime(job="make")
        watch = IdleWatch(plane.idle_stops, {"fake": runtime}, monotonic=clock)
        for _ in range(5):
            assert await watch.look() == []
            clock.now += IDLE_S
        clock.now -= 1
        runtime.job = None
        assert await watch.look() == []
        clock.now += 1
        assert await watch.look() == [1]

    @pytest.mark.parametrize("trouble", [RunCodeError("io_error", "no"), ZeroDivisionError()])
    async def test_when_nobody_can_tell_it_runs_on(self, plane: ControlPlane, trouble: Exception) -> None:
        clock = Seconds()
        watch = IdleWatch(plane.idle_stops, {"fake": ProbedRuntime(trouble=trouble)}, monotonic=clock)
        for _ in range(3):
            assert await watch.look() == []
            clock.now += IDLE_S

    async def test_the_gateway_here_has_the_last_word(self, plane: ControlPlane) -> None:
        """Data went through after the last report: whoever uses it now must not lose it."""
        clock, quiet_s = Seconds(), 3.0
        watch = IdleWatch(plane.idle_stops, {}, monotonic=clock, find_quiet_s=lambda _workspace_id: quiet_s)
        for _ in range(3):
            assert await watch.look() == []
            clock.now += IDLE_S
        quiet_s = IDLE_S + 1.0
        assert await watch.look() == [1]

    async def test_what_changed_since_the_look_is_not_stopped(self, plane: ControlPlane) -> None:
        (seen,) = await plane.idle_stops.list_candidates()
        await plane.idle_stops.note_use([1])
        assert not await plane.idle_stops.stop(seen)
        (seen,) = await plane.idle_stops.list_candidates()
        await plane.workspaces.request_stop("box")
        assert not await plane.idle_stops.stop(seen)
        assert (await plane.workspaces.load_workspace("box")).explanation == "stopped by the operator"

    @pytest.mark.parametrize(("own", "expected"), [(None, IDLE_S), (60, 60), (0, None)])
    async def test_a_time_of_its_own_goes_before_the_servers(
        self, plane: ControlPlane, own: int | None, expected: int | None
    ) -> None:
        await plane.workspaces.update_workspace("box", idle_stop_after_s=own)
        found = [each.idle_stop_after_s for each in await plane.idle_stops.list_candidates()]
        assert found == ([] if expected is None else [expected])

    async def test_what_is_no_box_of_this_server_is_not_asked_about(self, plane: ControlPlane) -> None:
        runtime = ProbedRuntime()
        await plane.workspaces.update_workspace("box", idle_stop_after_s=0)
        await IdleWatch(plane.idle_stops, {"fake": runtime}).look()
        assert runtime.asked == []


def used(at: datetime.datetime, workspace_id: int = 1) -> NewEvent:
    return NewEvent(kind="used", phase="note", subject_id="ab" * 16, at=at, detail={}, workspace_id=workspace_id)


class TestReports:
    async def test_a_report_is_the_workspaces_time_and_no_event(self, plane: ControlPlane) -> None:
        clock = plane.clock
        assert isinstance(clock, ManualClock)
        kept = len(await plane.events.list_activity())
        clock.advance(hours=1)
        await plane.events.record("gw", [used(clock.now()), used(clock.now(), workspace_id=4711)])
        assert (await plane.workspaces.load_workspace("box")).active_at == clock.now()
        assert len(await plane.events.list_activity()) == kept

    async def test_only_later_moments_count_and_none_ahead_of_the_clock(self, plane: ControlPlane) -> None:
        clock = plane.clock
        assert isinstance(clock, ManualClock)
        now = clock.now()
        await plane.events.record("gw", [used(now + datetime.timedelta(hours=5))])
        assert (await plane.workspaces.load_workspace("box")).active_at == now
        await plane.events.record("gw", [used(now - datetime.timedelta(hours=5))])
        assert (await plane.workspaces.load_workspace("box")).active_at == now
        # Within a minute nothing is written.
        clock.advance(seconds=30)
        await plane.events.record("gw", [used(clock.now())])
        assert (await plane.workspaces.load_workspace("box")).active_at == now
        # The clock went back: what was written before holds nothing up.
        clock.advance(days=-2)
        await plane.events.record("gw", [used(clock.now())])
        assert (await plane.workspaces.load_workspace("box")).active_at == clock.now()
