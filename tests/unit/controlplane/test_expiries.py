"""A session's expiry is a record: once for each end, by whoever looks first; and what is connected is found."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller
from runcode.controlplane.services import audit
from runcode.controlplane.services.events import NewEvent
from runcode.controlplane.services.timeline import TimelineFilter
from runcode.controlplane.states import RUNNING
from runcode.controlplane.store.models import EventRow, WorkspaceRow
from support.controlplane_fakes import ManualClock, make_client_key, open_plane, set_endpoint

ANN, BOB = "ann@example.org", "bob@example.org"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def plane(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, clock) as opened:
        for email in (ANN, BOB):
            await opened.users.create_user(email)
        await opened.workspaces.create_workspace("royal-1", ANN, runtime="fake")
        async with opened.store.write() as session:
            row = await session.get_one(WorkspaceRow, 1)
            row.desired_state, row.observed_state, row.activity = RUNNING, RUNNING, None
        set_endpoint(opened)
        yield opened


@pytest.fixture
async def ann(plane: ControlPlane) -> Caller:
    return await plane.tokens.authenticate((await plane.tokens.create_token(ANN, "laptop")).plaintext)


async def mint(plane: ControlPlane, caller: Caller, key: str) -> int:
    grant = await plane.sessions.register_session(caller, 1, raw_public_key=key, raw_ttl=900, raw_client="codex")
    return grant.session.id


async def expiries(plane: ControlPlane) -> list[EventRow]:
    async with plane.store.read() as session:
        query = select(EventRow).where(EventRow.kind == audit.SESSION_EXPIRED).order_by(EventRow.id)
        return list(await session.scalars(query))


async def test_each_end_is_noted_once(plane: ControlPlane, clock: ManualClock, ann: Caller) -> None:
    key = make_client_key()
    session_id = await mint(plane, ann, key)
    await plane.retention.prune()
    assert await expiries(plane) == [], "it still lives"
    clock.advance(minutes=16)
    for _ in range(3):
        await plane.retention.prune()
    (found,) = await expiries(plane)
    assert (found.session_id, found.workspace_id, found.user_id) == (session_id, 1, ann.user_id)
    assert found.detail["by"] == audit.BY_TIME
    assert found.detail["client"] == "codex"

    assert await mint(plane, ann, key) == session_id, "extended: it will end once more"
    clock.advance(minutes=16)
    for _ in range(2):
        await plane.retention.prune()
    assert [row.session_id for row in await expiries(plane)] == [session_id, session_id]


async def test_what_was_revoked_before_has_no_expiry(plane: ControlPlane, clock: ManualClock, ann: Caller) -> None:
    await plane.sessions.revoke_session(await mint(plane, ann, make_client_key()))
    clock.advance(minutes=16)
    await plane.retention.prune()
    assert await expiries(plane) == []


async def test_it_stands_in_the_timeline(plane: ControlPlane, clock: ManualClock, ann: Caller) -> None:
    session_id = await mint(plane, ann, make_client_key())
    clock.advance(minutes=16)
    await plane.retention.prune()
    page = await plane.timeline.list_workspace(ann, 1, TimelineFilter(session_id=session_id))
    assert next((record.kind, record.by) for record in page.records) == (audit.SESSION_EXPIRED, audit.BY_TIME)


async def test_refusals_are_seen_by_the_owner_and_only_ones_own_by_who_uses(plane: ControlPlane, ann: Caller) -> None:
    bob = await plane.tokens.authenticate((await plane.tokens.create_token(BOB, "laptop")).plaintext)
    await plane.shares.share(1, BOB, "use", caller=ann)
    detail = {"count": 3, "reason": "no such key", "source": "192.0.2.7"}
    refused = [
        NewEvent("refused", "note", f"{n:032x}", plane.clock.now(), detail, workspace_id=1, user_id=whose)
        for n, whose in enumerate((None, bob.user_id, ann.user_id))
    ]
    await plane.events.record("embedded", refused)

    async def counts(caller: Caller) -> list[tuple[str, int | None]]:
        page = await plane.timeline.list_workspace(caller, 1, TimelineFilter(kind="refused"))
        return [(record.id, record.count) for record in page.records]

    assert await counts(ann) == [(f"{n:032x}", 3) for n in (2, 1, 0)]
    assert await counts(bob) == [(f"{1:032x}", 3)]


async def test_connected_sessions_are_found_among_those_asked_about(plane: ControlPlane) -> None:
    def event(phase: str, subject: int, session_id: int) -> NewEvent:
        return NewEvent("connection", phase, f"{subject:032x}", plane.clock.now(), {}, session_id=session_id)

    await plane.events.record("gw", [event("start", n, n) for n in (1, 2, 3)] + [event("end", 2, 2)])
    assert await plane.events.find_connected_sessions([1, 2, 9]) == {1}
    assert await plane.events.find_connected_sessions([]) == set()


async def test_what_a_gateway_lost_later_is_ended_too(plane: ControlPlane) -> None:
    def start(subject: int) -> NewEvent:
        return NewEvent("command", "start", f"{subject:032x}", plane.clock.now(), {}, session_id=1)

    async def end(*live: int) -> int:
        return await plane.events.end_missing("gw", {f"{n:032x}" for n in live}, "gone")

    await plane.events.record("gw", [start(1), start(2), start(3)])
    assert await end(2) == 2
    await plane.events.record("gw", [start(4)])
    assert await end(2) == 1, "what came after the last look"
    assert await end(2) == 0
    assert await end() == 1, "what lived at the last look"
