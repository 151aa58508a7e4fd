"""The reconciler over runtimes that fail, hang, lie and die; and the one pure decision behind it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from runcode.controlplane.decisions import Action, back_off, count_failures, decide
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.reconciler import Timing
from runcode.controlplane.records import WorkspaceRecord
from runcode.controlplane.services.lifecycle import LeaseLost, Lifecycle, Outcome, Work
from runcode.controlplane.store.models import ChangeRow, HostKeyRow, WorkspaceRow
from runcode.runtimes.base import Checkpoint, Observation, ObservedState, UnixEndpoint
from support.controlplane_fakes import START, FakeRuntime, ManualClock, make_reconciler, open_plane, until


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def plane(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, clock) as opened:
        await opened.users.create_user("ann@example.org")
        await opened.workspaces.create_workspace("box", "ann@example.org", runtime="fake")
        yield opened


async def look(plane: ControlPlane) -> WorkspaceRecord:
    return await plane.workspaces.load_workspace("box")


async def until_state(plane: ControlPlane, state: str) -> WorkspaceRecord:
    async def reached() -> bool:
        return (await look(plane)).state == state

    await until(reached)
    return await look(plane)


async def row_of(plane: ControlPlane) -> WorkspaceRow:
    async with plane.store.read() as session:
        row = await session.scalar(select(WorkspaceRow))
    assert row is not None
    return row


async def test_start_stop_delete(plane: ControlPlane) -> None:
    runtime = FakeRuntime()
    reconciler = make_reconciler(plane, runtime)
    await reconciler.start()
    box = await plane.workspaces.request_start("box")
    running = await until_state(plane, "running")
    assert running.endpoint == UnixEndpoint(f"/run/fake/{box.id}.sock")
    assert running.running
    spec = runtime.specs[box.id]
    assert (spec.title, spec.principal) == ("box", f"workspace-{box.id}")
    assert spec.workspace_ca == plane.certificates.workspace_ca_line
    assert "PRIVATE KEY" in spec.host_key
    steps = [entry["step"] for entry in (await row_of(plane)).checkpoints]
    assert steps == ["storage", "process", "socket"]
    await plane.workspaces.request_stop("box")
    stopped = await until_state(plane, "stopped")
    assert (stopped.endpoint, stopped.running) == (None, False)
    assert runtime.leftovers == set()
    await plane.workspaces.delete_workspace("box")

    async def gone() -> bool:
        return not await plane.workspaces.list_all()

    await until(gone)
    assert runtime.created == set()
    async with plane.store.read() as session:
        assert list(await session.scalars(select(HostKeyRow))) == []
    again = await plane.workspaces.create_workspace("box", "ann@example.org", runtime="fake")
    assert again.id > box.id
    await reconciler.close()


async def test_no_transaction_is_open_while_a_runtime_works(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tasks may well write meanwhile: what counts is the task that calls the runtime.
    holders: list[object] = []
    open_now: list[bool] = []
    for kind in ("read", "write"):
        real = getattr(plane.store, kind)

        @contextlib.asynccontextmanager
        async def tracked(real: Any = real) -> AsyncIterator[Any]:
            holders.append(asyncio.current_task())
            try:
                async with real() as session:
                    yield session
            finally:
                holders.remove(asyncio.current_task())

        monkeypatch.setattr(plane.store, kind, tracked)
    runtime = FakeRuntime(on_call=lambda: open_now.append(asyncio.current_task() in holders))
    reconciler = make_reconciler(plane, runtime)
    await reconciler.start()
    await plane.workspaces.request_start("box")
    await until_state(plane, "running")
    await plane.workspaces.delete_workspace("box")
    await until(lambda: runtime.count("destroy"))
    await reconciler.close()
    assert len(open_now) >= 6
    assert not any(open_now)


async def test_a_failed_start_says_why_cleans_up_and_is_tried_again(plane: ControlPlane, clock: ManualClock) -> None:
    runtime = FakeRuntime(fail_start="the image is missing")
    reconciler = make_reconciler(plane, runtime)
    await reconciler.start()
    await plane.workspaces.request_start("box")
    failed = await until_state(plane, "failed")
    assert failed.reason == "the image is missing"
    assert runtime.leftovers == set()
    assert runtime.count("start") == 1
    # Held back until its time has come, whoever pokes.
    reconciler.poke(failed.id)
    await asyncio.sleep(0.1)
    assert runtime.count("start") == 1
    clock.advance(seconds=1)
    await until(lambda: runtime.count("start") == 2)
    runtime.fail_start = None
    clock.advance(seconds=60)
    assert (await until_state(plane, "running")).reason is None
    await reconciler.close()


async def test_a_person_who_asks_again_need_not_wait_for_the_back_off(plane: ControlPlane) -> None:
    runtime = FakeRuntime(fail_start="no luck")
    reconciler = make_reconciler(plane, runtime)
    await reconciler.start()
    await plane.workspaces.request_start("box")
    await until_state(plane, "failed")
    runtime.fail_start = None
    assert (await plane.workspaces.request_start("box")).state == "starting"
    await until_state(plane, "running")
    await reconciler.close()


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        (FakeRuntime(never_ready=True), "the box did not come up"),
        (FakeRuntime(obstacle="bubblewrap is missing: apt-get install bubblewrap"), "bubblewrap is missing"),
        (FakeRuntime(name="other"), "does not run `fake` workspaces"),
        (FakeRuntime(fail_inspect="secret/path traceback"), "the runtime failed in an unexpected way"),
        (FakeRuntime(hang_inspect=True), "the runtime did not answer in time"),
    ],
    ids=["never-ready", "obstacle", "no-such-runtime", "inspect-raises", "inspect-hangs"],
)
async def test_what_cannot_start_says_why(plane: ControlPlane, runtime: FakeRuntime, reason: str) -> None:
    reconciler = make_reconciler(plane, runtime, timing=Timing(survey_s=0.02, inspect_s=0.05, step_s=1))
    await reconciler.start()
    await plane.workspaces.request_start("box")

    async def told() -> bool:
        return reason in ((await look(plane)).reason or "")

    await until(told)
    found = await look(plane)
    assert not found.running
    assert "secret/path" not in (found.reason or "")
    await reconciler.close()


async def test_stop_during_start_wins_at_the_next_checkpoint(plane: ControlPlane) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    steps: list[str] = []

    async def on_step(_workspace_id: int, step: str) -> None:
        steps.append(step)
        if step == "process":
            reached.set()
            await go_on.wait()

    runtime = FakeRuntime(on_step=on_step)
    reconciler = make_reconciler(plane, runtime)
    await reconciler.start()
    await plane.workspaces.request_start("box")
    await reached.wait()
    assert (await look(plane)).state == "starting"
    await plane.workspaces.request_stop("box")
    assert (await look(plane)).state == "stopping"
    go_on.set()
    await until_state(plane, "stopped")
    assert (runtime.running, runtime.leftovers) == ({}, set())
    # The step that was under way ended; the next one was never taken.
    assert steps == ["storage", "process"]
    await reconciler.close()


async def test_a_box_that_dies_is_noticed_said_and_started_again(plane: ControlPlane, clock: ManualClock) -> None:
    runtime = FakeRuntime()
    reconciler = make_reconciler(plane, runtime)
    await reconciler.start()
    box = await plane.workspaces.request_start("box")
    await until_state(plane, "running")
    runtime.death_reason = "killed by the kernel (out of memory)"
    runtime.running.clear()
    dead = await until_state(plane, "failed")
    assert dead.reason == "the box ended by itself: killed by the kernel (out of memory)"
    assert dead.endpoint is None
    async with plane.store.read() as session:
        kinds = list(await session.scalars(select(ChangeRow.kind).where(ChangeRow.workspace_id == box.id)))
    assert "workspace_down" in kinds
    clock.advance(seconds=1)
    await until_state(plane, "running")
    # It left processes behind: those were cleaned before the second start.
    assert runtime.calls.index(("stop", box.id)) < len(runtime.calls) - 1 - runtime.calls[::-1].index(("start", box.id))
    await reconciler.close()


async def test_what_runs_is_adopted_and_what_died_meanwhile_comes_back(plane: ControlPlane) -> None:
    await plane.workspaces.create_workspace("second", "ann@example.org", runtime="fake")
    runtime = FakeRuntime()
    before = make_reconciler(plane, runtime)
    await before.start()
    first = await plane.workspaces.request_start("box")
    second = await plane.workspaces.request_start("second")
    await until(lambda: len(runtime.running) == 2)
    await until_state(plane, "running")
    await before.close()
    # The server is away; one box dies, the other moves.
    del runtime.running[second.id]
    runtime.running[first.id] = UnixEndpoint("/run/fake/moved.sock")
    starts = runtime.count("start")
    after = make_reconciler(plane, runtime)
    await after.start()
    assert (await look(plane)).endpoint == UnixEndpoint("/run/fake/moved.sock")
    await until(lambda: second.id in runtime.running)
    assert runtime.count("start") == starts + 1
    await after.close()


async def test_a_start_that_was_cut_by_a_crash_is_cleaned_and_done_again(plane: ControlPlane) -> None:
    stuck = asyncio.Event()

    async def on_step(_workspace_id: int, step: str) -> None:
        if step == "socket" and not stuck.is_set():
            stuck.set()
            await asyncio.Event().wait()

    runtime = FakeRuntime(on_step=on_step)
    crashed = make_reconciler(plane, runtime)
    await crashed.start()
    box = await plane.workspaces.request_start("box")
    await stuck.wait()
    # As kill -9 would: no clean-up of ours runs, the lease and the checkpoints stay.
    for task in [*crashed._loops, *crashed._workers.values()]:
        task.cancel()
    row = await row_of(plane)
    assert (row.activity, row.lease_owner is not None) == ("starting", True)
    assert [entry["step"] for entry in row.checkpoints] == ["storage", "process"]
    after = make_reconciler(plane, runtime)
    await after.start()
    await until_state(plane, "running")
    assert [call for call, _ in runtime.calls if call != "create"] == ["start", "stop", "start"]
    assert box.id in runtime.running
    await after.close()


async def test_stop_all_ends_every_box_and_keeps_the_wish(plane: ControlPlane) -> None:
    runtime = FakeRuntime()
    reconciler = make_reconciler(plane, runtime)
    await reconciler.start()
    await plane.workspaces.request_start("box")
    await until_state(plane, "running")
    await reconciler.stop_all()
    assert (runtime.running, runtime.leftovers) == ({}, set())
    row = await row_of(plane)
    assert (row.desired_state, row.observed_state, row.lease_owner) == ("running", "stopped", None)
    assert "server was stopped" in (row.reason or "")
    after = make_reconciler(plane, runtime)
    await after.start()
    await until_state(plane, "running")
    await after.close()
    # Closing alone leaves boxes running.
    assert len(runtime.running) == 1


async def test_a_stop_that_fails_goes_on_being_tried(plane: ControlPlane, clock: ManualClock) -> None:
    runtime = FakeRuntime()
    reconciler = make_reconciler(plane, runtime)
    await reconciler.start()
    await plane.workspaces.request_start("box")
    await until_state(plane, "running")
    runtime.fail_stop = "a process does not die"
    await plane.workspaces.request_stop("box")

    async def told() -> bool:
        return (await look(plane)).reason == "a process does not die"

    await until(told)
    assert ((await look(plane)).state, (await look(plane)).running) == ("stopping", False)
    runtime.fail_stop = None
    clock.advance(seconds=5)
    await until_state(plane, "stopped")
    await reconciler.close()


async def test_a_runtime_that_cannot_be_asked_does_not_make_a_running_box_dead(plane: ControlPlane) -> None:
    runtime = FakeRuntime()
    reconciler = make_reconciler(plane, runtime)
    await reconciler.start()
    await plane.workspaces.request_start("box")
    await until_state(plane, "running")
    runtime.fail_inspect = "boom"

    async def told() -> bool:
        return "cannot be seen" in ((await look(plane)).reason or "")

    await until(told)
    assert (await look(plane)).running
    runtime.fail_inspect = None

    async def recovered() -> bool:
        return (await look(plane)).reason is None

    await until(recovered)
    assert runtime.count("start") == 1
    await reconciler.close()


async def test_one_workspace_that_hangs_holds_up_no_other(plane: ControlPlane) -> None:
    await plane.workspaces.create_workspace("second", "ann@example.org", runtime="fake")
    box = await look(plane)

    async def on_step(workspace_id: int, _step: str) -> None:
        if workspace_id == box.id:
            await asyncio.Event().wait()

    runtime = FakeRuntime(on_step=on_step)
    reconciler = make_reconciler(plane, runtime)
    await reconciler.start()
    await plane.workspaces.request_start("box")
    second = await plane.workspaces.request_start("second")
    await until(lambda: second.id in runtime.running)
    await reconciler.close()


async def test_a_lease_keeps_others_out_until_it_ends(plane: ControlPlane, clock: ManualClock) -> None:
    lifecycle = Lifecycle(plane.store, clock, lease=datetime.timedelta(seconds=30))
    box = await look(plane)
    assert await lifecycle.claim(box.id, "first", "starting") is not None
    assert await lifecycle.claim(box.id, "second", "starting") is None
    clock.advance(seconds=20)
    await lifecycle.record_checkpoint(box.id, "first", Checkpoint("a"), first=True)
    clock.advance(seconds=20)
    assert await lifecycle.claim(box.id, "second", "starting") is None
    clock.advance(seconds=10)
    assert await lifecycle.claim(box.id, "second", "starting") is not None
    # The first one wakes up late: nothing that it says counts any more.
    with pytest.raises(LeaseLost):
        await lifecycle.record_outcome(box.id, "first", Outcome(observed="running"))
    with pytest.raises(LeaseLost):
        await lifecycle.record_checkpoint(box.id, "first", Checkpoint("b"), first=False)
    await lifecycle.record_outcome(box.id, "second", Outcome(observed="stopped"))
    assert (await row_of(plane)).lease_owner is None


async def test_a_lease_whose_answer_was_lost_is_given_back(plane: ControlPlane, clock: ManualClock) -> None:
    """The database went in the moment in which it granted it; meanwhile all has become as it is wanted."""
    reconciler = make_reconciler(plane, FakeRuntime())
    await reconciler.start()
    box = await look(plane)
    lifecycle = Lifecycle(plane.store, clock, lease=datetime.timedelta(hours=1))
    assert await lifecycle.claim(box.id, reconciler._owner, None) is not None

    async def free() -> bool:
        return (await row_of(plane)).lease_owner is None

    await until(free)
    # Somebody else's is left alone.
    assert await lifecycle.claim(box.id, "another", None) is not None
    await lifecycle.release(box.id, reconciler._owner)
    assert (await row_of(plane)).lease_owner == "another"
    await reconciler.close()


UP = Observation(ObservedState.RUNNING, UnixEndpoint("/s"))
DOWN = Observation(ObservedState.STOPPED)


def work(**changed: Any) -> Work:
    facts: dict[str, Any] = {
        "workspace_id": 1, "title": "box", "runtime": "fake", "desired": "stopped", "observed": "stopped",
        "observed_at": START, "activity": None, "endpoint": None, "reason": None, "failures": 0, "retry_at": None,
        "checkpoints": (),
    }  # fmt: skip
    return Work(**(facts | changed))


LATER = START + datetime.timedelta(seconds=1)
KNOWN_UP: dict[str, Any] = {"observed": "running", "endpoint": UP.endpoint}


@pytest.mark.parametrize(
    ("case", "observation", "action"),
    [
        (work(), DOWN, Action.NOTHING),
        (work(), UP, Action.STOP),
        (work(retry_at=LATER), UP, Action.NOTHING),
        (work(checkpoints=({"step": "a"},)), DOWN, Action.STOP),
        (work(activity="starting"), DOWN, Action.STOP),
        (work(observed="running"), DOWN, Action.RECORD),
        (work(observed="unknown"), DOWN, Action.RECORD),
        (work(reason="old"), DOWN, Action.RECORD),
        (work(desired="running"), DOWN, Action.START),
        (work(desired="running", retry_at=LATER), DOWN, Action.NOTHING),
        (work(desired="running", retry_at=START), DOWN, Action.START),
        (work(desired="running"), UP, Action.RECORD),
        (work(desired="running", **KNOWN_UP), UP, Action.NOTHING),
        (work(desired="running", **KNOWN_UP, activity="starting"), UP, Action.RECORD),
        (work(desired="running", observed="running", endpoint=UnixEndpoint("/old")), UP, Action.RECORD),
        (work(desired="running", **KNOWN_UP), DOWN, Action.MOURN),
        (work(desired="running", observed="unknown"), DOWN, Action.START),
        (work(desired="deleted"), DOWN, Action.DESTROY),
        (work(desired="deleted"), UP, Action.DESTROY),
        (work(desired="deleted", retry_at=LATER), UP, Action.NOTHING),
    ],
)
def test_decide(case: Work, observation: Observation, action: Action) -> None:
    assert decide(case, observation, START) is action


def test_back_off_doubles_to_a_minute_and_a_stable_box_starts_anew() -> None:
    assert [(back_off(n, START) - START).total_seconds() for n in (1, 2, 3, 6, 7, 8, 1000)] == [
        1, 2, 4, 32, 60, 60, 60,
    ]  # fmt: skip
    up = work(observed="running", failures=5)
    assert count_failures(up, START + datetime.timedelta(seconds=59)) == 6
    assert count_failures(up, START + datetime.timedelta(seconds=60)) == 1
    assert count_failures(work(failures=5), START + datetime.timedelta(days=1)) == 6
