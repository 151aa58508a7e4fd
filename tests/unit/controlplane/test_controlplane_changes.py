"""The change feed: what withdraws access is told, in order, once, and never silently missed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runcode.controlplane import changes
from runcode.controlplane.changes import ChangeBatch, ChangeFeed
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import ChangeRow
from support.controlplane_fakes import ManualClock, make_client_key, mark_running, open_plane, set_endpoint


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, ManualClock()) as opened:
        await opened.users.create_user("ann@example.org")
        await opened.users.create_user("bob@example.org")
        yield opened


async def next_change(feed: AsyncIterator[ChangeBatch]) -> ChangeBatch:
    # A net: heartbeats would go on for ever.
    async with asyncio.timeout(20):
        async for batch in feed:
            if not batch.empty:
                return batch
    raise AssertionError("the feed ended")


async def test_each_withdrawal_is_told_and_nothing_else_is(plane: ControlPlane) -> None:
    set_endpoint(plane)
    box = await plane.workspaces.create_workspace("box", "ann@example.org", runtime="fake")
    await mark_running(plane, "box")
    await plane.workspaces.share("box", "bob@example.org")
    token = await plane.tokens.create_token("bob@example.org", "laptop")
    bob = await plane.tokens.authenticate(token.plaintext)
    await plane.tokens.close()
    async with contextlib.aclosing(ChangeFeed(plane.store, poll_s=0.02).watch()) as feed:
        first = await anext(feed)
        assert first.everything
        grant = await plane.sessions.register_session(bob, box.id, raw_public_key=make_client_key())
        await plane.workspaces.request_start("box")
        await plane.workspaces.create_workspace("other", "ann@example.org")
        await plane.sessions.revoke_session(grant.session.id)
        batch = await next_change(feed)
        assert (batch.session_ids, batch.workspace_ids, batch.user_ids) == ({grant.session.id}, set(), set())
        await plane.workspaces.unshare("box", "bob@example.org")
        batch = await next_change(feed)
        assert (batch.workspace_ids, batch.user_ids) == ({box.id}, {bob.user_id})
        await plane.tokens.revoke_token(bob.token_id)
        assert (await next_change(feed)).user_ids == {bob.user_id}
        await plane.users.disable_user("bob@example.org")
        assert (await next_change(feed)).user_ids == {bob.user_id}
        await plane.workspaces.request_stop("box")
        assert (await next_change(feed)).workspace_ids == {box.id}
        await plane.workspaces.delete_workspace("box")
        last = await next_change(feed)
        assert last.workspace_ids == {box.id}
        assert last.cursor > first.cursor


async def test_an_empty_batch_is_a_heartbeat(plane: ControlPlane) -> None:
    async with contextlib.aclosing(ChangeFeed(plane.store, poll_s=0.02).watch()) as feed:
        first = await anext(feed)
        assert [(await anext(feed)).empty for _ in range(2)] == [True, True]
        # What concerns gateways not at all moves the cursor only.
        await plane.workspaces.create_workspace("box", "ann@example.org")
        while (batch := await anext(feed)).cursor == first.cursor:
            pass
        assert batch.empty


async def test_a_change_made_by_another_process_is_told(plane: ControlPlane) -> None:
    # Another Store on the same file shares nothing with ours but the file.
    other = await Store.open(plane.settings.database)
    async with contextlib.aclosing(ChangeFeed(plane.store, poll_s=0.02).watch()) as feed:
        await anext(feed)
        async with other.write() as session:
            changes.append_change(session, changes.SESSION_REVOKED, plane.clock.now(), session_id=7)
        assert (await next_change(feed)).session_ids == {7}
    await other.close()


async def test_our_own_commit_wakes_the_feed_without_waiting_for_the_poll(plane: ControlPlane) -> None:
    async with contextlib.aclosing(ChangeFeed(plane.store, poll_s=3600).watch()) as feed:
        await anext(feed)
        await plane.users.disable_user("bob@example.org")
        assert (await next_change(feed)).user_ids


async def test_nothing_is_told_of_a_change_that_was_rolled_back(plane: ControlPlane) -> None:
    async def crash() -> None:
        async with plane.store.write() as session:
            changes.append_change(session, changes.USER_DISABLED, plane.clock.now(), user_id=1)
            raise KeyError

    async with contextlib.aclosing(ChangeFeed(plane.store, poll_s=0.02).watch()) as feed:
        first = await anext(feed)
        with pytest.raises(KeyError):
            await crash()
        assert await anext(feed) == ChangeBatch(cursor=first.cursor)


async def test_a_follower_that_fell_behind_is_told_to_look_at_everything(plane: ControlPlane) -> None:
    async with contextlib.aclosing(ChangeFeed(plane.store, poll_s=0.02).watch()) as feed:
        await anext(feed)
        # Seven rows come, and the first are pruned before the follower looks again.
        async with plane.store.write() as session:
            for user_id in range(7):
                session.add(ChangeRow(kind=changes.USER_DISABLED, at=plane.clock.now(), user_id=user_id))
        clock = plane.clock
        assert isinstance(clock, ManualClock)
        clock.advance(days=2)
        await plane.retention.prune()
        batch = await next_change(feed)
        assert batch.everything


async def test_the_feed_is_silent_while_the_database_cannot_be_read_then_asks_for_everything(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runcode.controlplane.store.sqlite_database import CommitProbe
    from runcode.core.errors import RunCodeError

    real, failures = CommitProbe.version, [3]

    async def failing(probe: CommitProbe) -> int:
        if failures[0]:
            failures[0] -= 1
            raise RunCodeError("io_error", "gone")
        return await real(probe)

    async with contextlib.aclosing(ChangeFeed(plane.store, poll_s=0.01).watch()) as feed:
        monkeypatch.setattr(CommitProbe, "version", failing)
        assert (await anext(feed)).everything
        assert failures == [0]
        failures[0] = 2
        assert (await anext(feed)).everything
