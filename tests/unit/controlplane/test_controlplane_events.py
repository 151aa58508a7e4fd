"""Events as the control plane keeps and shows them, and what it forgets."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select

from runcode.controlplane import changes
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller
from runcode.controlplane.retention import RetentionPolicy
from runcode.controlplane.services.events import NewEvent
from runcode.controlplane.store.models import ChangeRow, EventRow, SessionRow, WorkspaceRow
from runcode.core.errors import RunCodeError
from runcode.gateway.admission import AdmissionPolicy
from support.controlplane_fakes import START, ManualClock, make_client_key, mark_running, open_plane, set_endpoint

OWNER = "ann@example.org"
SMALL = RetentionPolicy(events_max=100, rows_per_step=20, pause_s=0)


def new_event(phase: str = "start", subject_id: str | None = None, **named: object) -> NewEvent:
    given: dict[str, object] = {"kind": "command", "at": START, "detail": {"form": "exec", "text": "true"}, **named}
    return NewEvent(phase=phase, subject_id=subject_id or secrets.token_hex(16), **given)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def plane(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, clock, retention=SMALL) as opened:
        set_endpoint(opened)
        await opened.users.create_user(OWNER)
        async with opened.store.write() as session:
            # Making a user is noted too; what gateways tell is counted here.
            await session.execute(delete(EventRow))
        yield opened


async def count(plane: ControlPlane, table: type) -> int:
    async with plane.store.read() as session:
        return await session.scalar(select(func.count(table.id))) or 0  # type: ignore[attr-defined]


async def make_caller(plane: ControlPlane) -> Caller:
    return await plane.tokens.authenticate((await plane.tokens.create_token(OWNER, "laptop")).plaintext)


class TestKeeping:
    @pytest.mark.parametrize(
        "nonsense",
        [
            {"kind": "rumour"},
            {"phase": "middle"},
            {"subject_id": "x" * 32},
            {"subject_id": "a" * 31},
            {"subject_id": "a" * 32 + "\n"},
            {"connection_id": "' OR 1=1"},
            {"detail": {"text": "\x1b[2J"}},
            {"detail": {"text": "\ud800"}},
            {"detail": {"text": "x" * 40_000}},
            {"detail": {"text": ["a"]}},
            {"detail": {"n": 2**64}},
            {"detail": {"n": 1.5}},
            {"detail": {"x" * 33: 1}},
        ],
    )
    async def test_nonsense_is_refused_whole(self, plane: ControlPlane, nonsense: dict[str, object]) -> None:
        with pytest.raises(RunCodeError) as raised:
            await plane.events.record("gw", [new_event(), replace(new_event(), **nonsense)])  # type: ignore[arg-type]
        assert raised.value.code == "bad_request"
        assert not raised.value.kind.retryable
        assert await count(plane, EventRow) == 0

    @pytest.mark.parametrize("gateway", ["", "UPPER", "a" * 65, "a b", "a\n"])
    async def test_a_gateways_name_is_plain(self, plane: ControlPlane, gateway: str) -> None:
        with pytest.raises(RunCodeError):
            await plane.events.record(gateway, [new_event()])

    async def test_each_gateway_ends_its_own_only(self, plane: ControlPlane) -> None:
        mine, other = new_event(), new_event()
        await plane.events.record("gw-1", [mine])
        await plane.events.record("gw-2", [other])
        assert await plane.events.end_missing("gw-1", (), "gone") == 1
        found = {record.subject_id: record for record in await plane.events.list_activity()}
        assert found[mine.subject_id].ended_at is not None
        assert found[mine.subject_id].detail == {"form": "exec", "text": "true", "outcome": "lost", "reason": "gone"}
        assert found[other.subject_id].ended_at is None

    async def test_thousands_that_were_left_open_are_ended(self, plane: ControlPlane) -> None:
        for _ in range(3):
            await plane.events.record("gw", [new_event() for _ in range(1000)])
        assert await plane.events.end_missing("gw", (), "gone") == 3000
        assert await plane.events.end_missing("gw", (), "gone") == 0


class TestShowing:
    async def test_starts_and_ends_are_one_line_with_names(self, plane: ControlPlane, clock: ManualClock) -> None:
        workspace = await plane.workspaces.create_workspace("royal-1", OWNER, runtime="fake")
        await plane.workspaces.create_workspace("other-1", OWNER, runtime="fake")
        ids = {"workspace_id": workspace.id, "user_id": 1, "session_id": 4}
        first, second = new_event(**ids), new_event(**ids, at=START + datetime.timedelta(seconds=5))
        await plane.events.record("gw", [first, second])
        end = new_event("end", first.subject_id, **ids, at=START + datetime.timedelta(seconds=9), started_at=START)
        await plane.events.record("gw", [replace(end, detail={"exit_status": 7})])
        newest, oldest = await plane.events.list_activity(workspace="royal-1")
        assert (newest.subject_id, newest.ended_at) == (second.subject_id, None)
        assert (oldest.started_at, oldest.ended_at) == (START, START + datetime.timedelta(seconds=9))
        assert oldest.detail == {"form": "exec", "text": "true", "exit_status": 7}
        assert (oldest.workspace_title, oldest.user_email, oldest.session_id) == ("royal-1", OWNER, 4)
        assert await plane.events.list_activity(workspace="other-1") == []

    async def test_an_end_whose_start_was_lost_stands_for_itself(self, plane: ControlPlane) -> None:
        await plane.events.record("gw", [new_event("end", started_at=START, at=START + datetime.timedelta(1))])
        (record,) = await plane.events.list_activity()
        assert record.started_at == START
        assert record.ended_at == START + datetime.timedelta(1)

    async def test_the_limit_holds(self, plane: ControlPlane) -> None:
        events = [new_event(at=START + datetime.timedelta(seconds=n)) for n in range(20)]
        await plane.events.record("gw", events)
        await plane.events.end_missing("gw", (), "gone")
        newest = await plane.events.list_activity(limit=3)
        assert [record.subject_id for record in newest] == [event.subject_id for event in events[:16:-1]]

    async def test_an_unknown_workspace_is_said(self, plane: ControlPlane) -> None:
        with pytest.raises(RunCodeError, match="no workspace"):
            await plane.events.list_activity(workspace="nowhere")


class TestForgetting:
    async def test_the_oldest_events_beyond_the_count_go(self, plane: ControlPlane) -> None:
        events = [new_event() for _ in range(250)]
        await plane.events.record("gw", events)
        assert await plane.retention.prune() == 150
        async with plane.store.read() as session:
            kept = list(await session.scalars(select(EventRow.subject_id).order_by(EventRow.id)))
        assert kept == [event.subject_id for event in events[150:]]
        assert await plane.retention.prune() == 0

    async def test_events_go_with_age(self, plane: ControlPlane, clock: ManualClock) -> None:
        await plane.events.record("gw", [new_event()])
        clock.advance(days=80)
        await plane.events.record("gw", [new_event()])
        assert await plane.retention.prune() == 0
        clock.advance(days=11)
        assert await plane.retention.prune() == 1
        assert await count(plane, EventRow) == 1

    def test_no_session_is_forgotten_while_a_connection_of_it_may_live(self) -> None:
        assert RetentionPolicy().ended_sessions_for.total_seconds() > AdmissionPolicy().max_connection_age_s

    async def test_ended_sessions_go_and_live_or_connected_ones_stay(
        self, plane: ControlPlane, clock: ManualClock
    ) -> None:
        workspace = await plane.workspaces.create_workspace("royal-1", OWNER, runtime="fake")
        await mark_running(plane, "royal-1")
        caller = await make_caller(plane)

        async def mint() -> int:
            grant = await plane.sessions.register_session(caller, workspace.id, raw_public_key=make_client_key())
            return grant.session.id

        expired, revoked, connected = [await mint() for _ in range(3)]
        await plane.sessions.revoke_session(revoked)
        await plane.events.record("gw", [new_event(kind="connection", session_id=connected)])
        clock.advance(hours=24)
        fresh = await mint()
        await plane.retention.prune()
        known = {record.id for record in await plane.sessions.list_sessions(include_ended=True)}
        # Revoked a day ago or more; the other two expired half an hour after that.
        assert known == {expired, revoked, connected, fresh}
        clock.advance(hours=1)
        await plane.retention.prune()
        known = {record.id for record in await plane.sessions.list_sessions(include_ended=True)}
        assert known == {connected, fresh}
        await plane.events.end_missing("gw", (), "over")
        await plane.retention.prune()
        known = {record.id for record in await plane.sessions.list_sessions(include_ended=True)}
        assert known == {fresh}

    async def test_long_deleted_workspaces_go_once_nothing_refers_to_them(
        self, plane: ControlPlane, clock: ManualClock
    ) -> None:
        workspace = await plane.workspaces.create_workspace("royal-1", OWNER, runtime="fake")
        await plane.workspaces.create_workspace("royal-2", OWNER, runtime="fake")
        await mark_running(plane, "royal-1")
        caller = await make_caller(plane)
        await plane.sessions.register_session(caller, workspace.id, raw_public_key=make_client_key())
        await plane.users.create_user("bob@example.org")
        await plane.workspaces.share("royal-1", "bob@example.org")
        async with plane.store.write() as session:
            row = await session.get(WorkspaceRow, workspace.id)
            assert row is not None
            row.desired_state, row.deleted_at = "deleted", clock.now()
        clock.advance(days=89)
        await plane.retention.prune()
        assert await count(plane, SessionRow) == 0
        assert await count(plane, WorkspaceRow) == 2
        clock.advance(days=2)
        await plane.retention.prune()
        assert await count(plane, WorkspaceRow) == 1
        again = await plane.workspaces.create_workspace("royal-1", OWNER, runtime="fake")
        assert again.id > workspace.id + 1

    async def test_old_changes_go_and_the_newest_stays(self, plane: ControlPlane, clock: ManualClock) -> None:
        for _ in range(50):
            async with plane.store.write() as session:
                changes.append_change(session, changes.CREATED, clock.now(), workspace_id=1)
        clock.advance(days=3)
        await plane.retention.prune()
        assert await count(plane, ChangeRow) == 1

    async def test_pruning_goes_on_by_itself_and_lets_others_write(self, tmp_path: Path) -> None:
        import asyncio

        policy = RetentionPolicy(events_max=50, rows_per_step=10, pause_s=0.001, every_s=0.02)
        async with open_plane(tmp_path / "b", retention=policy) as plane:
            plane.retention.start()
            for _ in range(20):
                await plane.events.record("gw", [new_event() for _ in range(50)])
            async with asyncio.timeout(30):
                while await count(plane, EventRow) > 50:
                    await asyncio.sleep(0.02)


async def test_the_database_stays_flat_under_many_mints_and_connections(tmp_path: Path, clock: ManualClock) -> None:
    policy = RetentionPolicy(events_max=200, rows_per_step=100, pause_s=0)
    async with open_plane(tmp_path, clock, retention=policy) as plane:
        set_endpoint(plane)
        await plane.users.create_user(OWNER)
        workspace = await plane.workspaces.create_workspace("royal-1", OWNER, runtime="fake")
        await mark_running(plane, "royal-1")
        caller = await make_caller(plane)

        async def work(rounds: int) -> None:
            for turn in range(rounds):
                grant = await plane.sessions.register_session(caller, workspace.id, raw_public_key=make_client_key())
                ids = {"session_id": grant.session.id, "workspace_id": workspace.id, "user_id": 1}
                events = [new_event(**ids), new_event(kind="connection", **ids)]
                ends = [replace(event, phase="end", started_at=START) for event in events]
                await plane.events.record("gw", [*events, *ends])
                if turn % 7 == 0:
                    await plane.sessions.revoke_session(grant.session.id)
                clock.advance(minutes=10)
                if turn % 50 == 0:
                    await plane.retention.prune()

        def size() -> int:
            return sum(file.stat().st_size for file in tmp_path.iterdir() if file.name.startswith("runcode.db"))

        await work(150)
        warm = size()
        await work(450)
        # Freed pages are used again, and the log is cut short: room for noise, none for growth (it would be 1 MB).
        assert size() <= warm + 200_000
        wal = tmp_path / "runcode.db-wal"
        assert not wal.exists() or wal.stat().st_size <= 4_300_000
