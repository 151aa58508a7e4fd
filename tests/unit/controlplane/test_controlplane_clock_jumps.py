"""The wall clock jumps, by hours, ahead or back: what waits by it, what ends by it, and what does not mind.

Nothing here sleeps by the wall clock, and no moment that it left behind holds
anything up for longer than a rule of ours would ever have set.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runcode.controlplane.decisions import Action, count_failures, decide
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller, WorkspaceRecord
from runcode.controlplane.services.lifecycle import LeaseLost, Lifecycle, Outcome, Work
from runcode.core import hostkeys
from runcode.runtimes.base import Checkpoint, Observation, ObservedState, UnixEndpoint
from support.controlplane_fakes import (
    START,
    FakeRuntime,
    ManualClock,
    make_client_key,
    make_reconciler,
    mark_running,
    open_plane,
    set_endpoint,
    until,
)

UP = Observation(ObservedState.RUNNING, UnixEndpoint("/s"))
DOWN = Observation(ObservedState.STOPPED)


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


def work(**changed: Any) -> Work:
    facts: dict[str, Any] = {
        "workspace_id": 1, "title": "box", "runtime": "fake", "desired": "stopped", "observed": "stopped",
        "observed_at": START, "activity": None, "endpoint": None, "reason": None, "failures": 0, "retry_at": None,
        "checkpoints": (),
    }  # fmt: skip
    return Work(**(facts | changed))


@pytest.mark.parametrize(
    ("case", "observation", "action"),
    [
        # Ahead: the wait is over early.
        (work(desired="running", retry_at=START - datetime.timedelta(hours=5)), DOWN, Action.START),
        # Back: no retry is ever set further ahead than a minute, so this one was written before.
        (work(desired="running", retry_at=START + datetime.timedelta(seconds=60)), DOWN, Action.NOTHING),
        (work(desired="running", retry_at=START + datetime.timedelta(seconds=61)), DOWN, Action.START),
        (work(desired="running", retry_at=START + datetime.timedelta(hours=5)), DOWN, Action.START),
        (work(desired="stopped", retry_at=START + datetime.timedelta(days=400)), UP, Action.STOP),
        (work(desired="deleted", retry_at=START + datetime.timedelta(days=400)), UP, Action.DESTROY),
    ],
)
def test_decide_after_the_clock_has_jumped(case: Work, observation: Observation, action: Action) -> None:
    assert decide(case, observation, START) is action


def test_a_box_seen_running_in_the_future_starts_the_count_of_failures_anew() -> None:
    up = work(observed="running", failures=5)
    assert count_failures(up, START - datetime.timedelta(hours=3)) == 1
    assert count_failures(up, START) == 6


async def test_a_lease_of_before_the_clock_went_back_is_void(plane: ControlPlane, clock: ManualClock) -> None:
    lifecycle = Lifecycle(plane.store, clock, lease=datetime.timedelta(seconds=30))
    box = await look(plane)
    assert await lifecycle.claim(box.id, "first", "starting") is not None
    # Two machines' clocks need not agree to the second: a lease that is merely a bit long still holds.
    clock.advance(seconds=-20)
    assert await lifecycle.claim(box.id, "second", "starting") is None
    clock.advance(hours=-5)
    assert await lifecycle.claim(box.id, "second", "starting") is not None
    with pytest.raises(LeaseLost):
        await lifecycle.record_outcome(box.id, "first", Outcome(observed="running"))
    # And ahead: it ends early, and whoever held it learns so at its next write.
    clock.advance(hours=9)
    assert await lifecycle.claim(box.id, "third", "starting") is not None
    with pytest.raises(LeaseLost):
        await lifecycle.record_checkpoint(box.id, "second", Checkpoint("a"), first=True)


@pytest.mark.parametrize("hours", [-7, 7])
async def test_a_failing_start_neither_hangs_nor_spins_when_the_clock_jumps(
    plane: ControlPlane, clock: ManualClock, hours: int
) -> None:
    runtime = FakeRuntime(fail_start="the image is missing")
    reconciler = make_reconciler(plane, runtime)
    await reconciler.start()
    await plane.workspaces.request_start("box")
    await until(lambda: runtime.count("start") == 1)
    await until_state(plane, "failed")
    clock.advance(hours=hours)
    await until(lambda: runtime.count("start") == 2)
    # Held back again by the new clock, for as long as it stands still.
    await until_state(plane, "failed")
    await asyncio.sleep(0.3)
    assert runtime.count("start") == 2
    runtime.fail_start = None
    clock.advance(seconds=60)
    assert (await until_state(plane, "running")).running
    await reconciler.close()


@pytest.mark.parametrize("hours", [-30, 30])
async def test_a_running_box_and_the_change_feed_do_not_mind_the_clock(
    plane: ControlPlane, clock: ManualClock, hours: int
) -> None:
    runtime = FakeRuntime()
    reconciler = make_reconciler(plane, runtime)
    await reconciler.start()
    await plane.workspaces.request_start("box")
    await until_state(plane, "running")
    clock.advance(hours=hours)
    await asyncio.sleep(0.1)
    assert runtime.count("start") == 1
    await plane.workspaces.request_stop("box")
    await until_state(plane, "stopped")
    await plane.workspaces.request_start("box")
    await until_state(plane, "running")
    await reconciler.close()


async def mint(plane: ControlPlane, key: str, ttl_s: int = 600) -> str:
    """Registers the key for the box; its fingerprint."""
    made = await plane.tokens.create_token("ann@example.org", "laptop")
    caller: Caller = await plane.tokens.authenticate(made.plaintext)
    box = await look(plane)
    await plane.sessions.register_session(caller, box.id, raw_public_key=key, raw_ttl=ttl_s)
    return hostkeys.parse_public_key(key).fingerprint


async def may_open(plane: ControlPlane, clock: ManualClock, fingerprint: str) -> bool:
    facts = await plane.admission.load_admission_facts("box", fingerprint)
    assert facts.session is not None
    # Expiry bounds authentication only: a live connection is not cut for it, however the clock went.
    assert not facts.session.withdrawn
    principal = await plane.admission.find_principal(facts.session.session_id, facts.session.workspace_id)
    alive = facts.session.expires_at > clock.now()
    assert alive == (principal is not None)
    return alive


async def test_a_session_ends_early_when_the_clock_jumps_ahead(plane: ControlPlane, clock: ManualClock) -> None:
    await mark_running(plane, "box")
    set_endpoint(plane)
    fingerprint = await mint(plane, make_client_key())
    assert await may_open(plane, clock, fingerprint)
    clock.advance(hours=3)
    assert not await may_open(plane, clock, fingerprint)


async def test_a_session_made_in_the_future_counts_as_expired(plane: ControlPlane, clock: ManualClock) -> None:
    """Minted while the clock was hours ahead: without the guard, ten minutes would last for hours."""
    await mark_running(plane, "box")
    set_endpoint(plane)
    clock.advance(hours=6)
    key = make_client_key()
    fingerprint = await mint(plane, key)
    # The clocks of two machines differ a little; that alone shuts nobody out.
    clock.advance(minutes=-1)
    assert await may_open(plane, clock, fingerprint)
    clock.advance(hours=-6)
    assert not await may_open(plane, clock, fingerprint)
    # Minting again, also with the same key, makes it a session of today.
    assert await mint(plane, key) == fingerprint
    assert await may_open(plane, clock, fingerprint)
    clock.advance(minutes=11)
    assert not await may_open(plane, clock, fingerprint)


async def test_the_last_use_of_a_token_is_noted_again_after_the_clock_went_back(
    plane: ControlPlane, clock: ManualClock
) -> None:
    made = await plane.tokens.create_token("ann@example.org", "laptop")
    await plane.tokens.authenticate(made.plaintext)

    async def noted() -> datetime.datetime | None:
        return (await plane.tokens.list_tokens())[-1].last_used_at

    await until(noted)
    clock.advance(hours=-6)
    await plane.tokens.authenticate(made.plaintext)

    async def noted_anew() -> bool:
        return await noted() == clock.now()

    await until(noted_anew)
