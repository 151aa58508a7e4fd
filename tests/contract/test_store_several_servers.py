"""What several servers on one database may do: by place, by lease, and with the right keys only. On both products."""

from __future__ import annotations

import asyncio
import datetime
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from runcode.controlplane.changes import ChangeFeed
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.reconciler import Reconciler
from runcode.controlplane.services.lifecycle import Lifecycle, Station
from runcode.controlplane.services.repairs import Repairs
from runcode.controlplane.services.restoration import settle_restored
from runcode.controlplane.states import STARTING
from runcode.controlplane.store.location import Location, PostgresUrl
from runcode.controlplane.store.models import SessionRow, SignInLinkRow, WebSessionRow, WorkspaceRow
from runcode.core.errors import RunCodeError
from support.controlplane_fakes import (
    QUICK,
    START,
    FakeRuntime,
    ManualClock,
    make_client_key,
    mark_running,
    open_plane,
    set_endpoint,
    until,
)

OWNER = "ann@example.org"
HERE, THERE = "a" * 16, "b" * 16


@pytest.fixture
async def plane(tmp_path: Path, location: Location) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, database=location) as plane:
        await plane.users.create_user(OWNER)
        yield plane


@pytest.fixture
async def shared(tmp_path: Path, postgres_url: PostgresUrl) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, database=postgres_url) as plane:
        await plane.users.create_user(OWNER)
        yield plane


def station(plane: ControlPlane, place: str, runtime: FakeRuntime) -> Reconciler:
    return Reconciler(
        plane.store,
        ChangeFeed(plane.store, poll_s=0.02),
        {runtime.name: runtime},
        workspace_ca=plane.certificates.workspace_ca_line,
        clock=plane.clock,
        timing=QUICK,
        place=place,
    )


async def place_of(plane: ControlPlane, title: str) -> str | None:
    async with plane.store.read() as session:
        return await session.scalar(select(WorkspaceRow.place).where(WorkspaceRow.title == title))


# ------------------------------------------------------------------ places


async def test_whoever_starts_it_first_keeps_it_and_the_other_never_touches_it(shared: ControlPlane) -> None:
    runtimes = {HERE: FakeRuntime(), THERE: FakeRuntime()}
    reconcilers = {place: station(shared, place, runtime) for place, runtime in runtimes.items()}
    for title in ("one", "two", "three"):
        await shared.workspaces.create_workspace(title, OWNER, runtime="fake")
    for reconciler in reconcilers.values():
        await reconciler.start()
    for title in ("one", "two", "three"):
        await shared.workspaces.request_start(title)

    async def all_run() -> bool:
        return all(workspace.running for workspace in await shared.workspaces.list_all())

    await until(all_run)
    await asyncio.sleep(0.2)
    assert await all_run(), "no reconciler mourned what lives at the other"
    started = {place: {call[1] for call in runtime.calls if call[0] == "start"} for place, runtime in runtimes.items()}
    assert not started[HERE] & started[THERE]
    assert sum(runtime.count("start") for runtime in runtimes.values()) == 3
    for workspace in await shared.workspaces.list_all():
        (home,) = [place for place, ids in started.items() if workspace.id in ids]
        assert await place_of(shared, workspace.title) == home
    for title in ("one", "two", "three"):
        await shared.workspaces.request_stop(title)
    await until(lambda: not runtimes[HERE].running and not runtimes[THERE].running)
    for reconciler in reconcilers.values():
        await reconciler.close()


async def test_what_a_runtime_knows_already_is_adopted_by_its_server_alone(shared: ControlPlane) -> None:
    """Rows of before there were places: storage is where a runtime sees it."""
    made = await shared.workspaces.create_workspace("old", OWNER, runtime="fake")
    knows, other = FakeRuntime(created={made.id}), FakeRuntime()
    for place, runtime in ((THERE, other), (HERE, knows)):
        reconciler = station(shared, place, runtime)
        await reconciler.start()
        await reconciler.close()
    assert await place_of(shared, "old") == HERE


async def test_the_end_of_a_server_stops_what_lives_there_and_nothing_else(shared: ControlPlane) -> None:
    runtimes = {HERE: FakeRuntime(), THERE: FakeRuntime()}
    for place, title in ((HERE, "here"), (THERE, "there")):
        await shared.workspaces.create_workspace(title, OWNER, runtime="fake")
        reconciler = station(shared, place, runtimes[place])
        await reconciler.start()
        await shared.workspaces.request_start(title)
        await until(lambda place=place: runtimes[place].running)
        # Boxes go on, as after a crash; so the next title can only be the other's.
        await reconciler.close()
    ending = station(shared, HERE, runtimes[HERE])
    await ending.start()
    await ending.stop_all()
    assert (bool(runtimes[HERE].running), bool(runtimes[THERE].running)) == (False, True)


async def test_a_box_that_every_server_reaches_outlives_one_of_them(shared: ControlPlane) -> None:
    far = FakeRuntime(capabilities=replace(FakeRuntime().capabilities, bound_to_machine=False))
    first, second = station(shared, HERE, far), station(shared, THERE, far)
    await shared.workspaces.create_workspace("far", OWNER, runtime="fake")
    await first.start()
    await second.start()
    await shared.workspaces.request_start("far")

    async def up() -> bool:
        return (await shared.workspaces.load_workspace("far")).running

    await until(up)
    assert far.count("start") == 1
    assert await place_of(shared, "far") is None
    await first.stop_all()
    assert far.running
    await shared.workspaces.request_stop("far")
    await until(lambda: not far.running)
    await second.close()


async def test_a_start_voids_the_leases_of_its_own_place_only(shared: ControlPlane) -> None:
    lease = datetime.timedelta(seconds=30)
    for title, place in (("mine", HERE), ("theirs", THERE)):
        made = await shared.workspaces.create_workspace(title, OWNER, runtime="fake")
        of = Lifecycle(shared.store, shared.clock, lease=lease, station=Station(place, frozenset({"fake"})))
        assert await of.claim(made.id, f"{place}/1-x", STARTING, settle=True) is not None
    mine = Lifecycle(shared.store, shared.clock, lease=lease, station=Station(HERE, frozenset({"fake"})))
    await mine.release_all()
    left = await Repairs(shared.store, shared.clock).list_leased()
    assert [inside.record.title for inside in left] == ["theirs"]
    assert await mine.claim(left[0].record.id, f"{HERE}/2-y", STARTING) is None


async def test_one_server_on_sqlite_serves_whatever_place_stands_there(tmp_path: Path) -> None:
    """A folder that was restored, or whose marker was made anew, is the only one there is."""
    async with open_plane(tmp_path) as plane:
        await plane.users.create_user(OWNER)
        await plane.workspaces.create_workspace("box", OWNER, runtime="fake")
        for place in (HERE, THERE):
            runtime = FakeRuntime()
            reconciler = station(plane, place, runtime)
            await reconciler.start()
            await plane.workspaces.request_start("box")
            await until(lambda runtime=runtime: runtime.running)
            await reconciler.stop_all()
        assert await place_of(plane, "box") == THERE


# ------------------------------------------------------------------ keys


async def test_other_keys_do_not_serve(plane: ControlPlane, tmp_path: Path, location: Location) -> None:
    await plane.installation.confirm("ssh-ed25519 AAAA")
    await plane.installation.confirm("ssh-ed25519 AAAA")
    with pytest.raises(RunCodeError) as caught:
        await plane.installation.confirm("ssh-ed25519 BBBB")
    assert "other keys" in caught.value.message
    shutil.copytree(tmp_path / "keys", tmp_path / "joined" / "keys")
    async with open_plane(tmp_path / "joined", database=location) as same:
        await same.installation.confirm("ssh-ed25519 AAAA")
    async with open_plane(tmp_path / "stranger", database=location) as stranger:
        with pytest.raises(RunCodeError):
            await stranger.installation.confirm("ssh-ed25519 AAAA")


# ------------------------------------------------------------------ repairs


async def test_a_retry_forgets_the_back_off_and_wakes_whoever_serves_it(plane: ControlPlane) -> None:
    runtime = FakeRuntime(fail_start="no room")
    await plane.workspaces.create_workspace("box", OWNER, runtime="fake")
    reconciler = station(plane, HERE, runtime)
    await reconciler.start()
    await plane.workspaces.request_start("box")
    repairs = Repairs(plane.store, plane.clock)

    async def failed_twice() -> bool:
        return (await repairs.load_inside("box")).record.failures >= 2

    await until(failed_twice)
    inside = await repairs.load_inside("box")
    assert inside.place == HERE
    assert inside.retry_at is not None
    assert "no room" in str(inside.record.reason)
    runtime.fail_start = None
    await repairs.retry("box")
    await until(lambda: runtime.running)
    await reconciler.close()


async def test_a_machine_that_is_gone_gives_its_workspace_up_only_when_told(shared: ControlPlane) -> None:
    gone, other = FakeRuntime(), FakeRuntime()
    lost = station(shared, HERE, gone)
    await shared.workspaces.create_workspace("box", OWNER, runtime="fake")
    await lost.start()
    await shared.workspaces.request_start("box")
    await until(lambda: gone.running)
    await lost.close()
    left = station(shared, THERE, other)
    await left.start()
    await asyncio.sleep(0.2)
    assert not other.calls
    repairs = Repairs(shared.store, shared.clock)
    await repairs.retry("box")
    await asyncio.sleep(0.2)
    assert not other.calls
    await repairs.retry("box", elsewhere=True)
    await until(lambda: other.running)
    assert await place_of(shared, "box") == THERE
    await left.close()


async def test_a_workspace_under_a_living_lease_is_not_moved(plane: ControlPlane) -> None:
    made = await plane.workspaces.create_workspace("box", OWNER, runtime="fake")
    lifecycle = Lifecycle(plane.store, plane.clock, lease=datetime.timedelta(seconds=30))
    await lifecycle.claim(made.id, f"{HERE}/1-x", STARTING)
    repairs = Repairs(plane.store, plane.clock)
    with pytest.raises(RunCodeError) as caught:
        await repairs.retry("box", elsewhere=True)
    assert caught.value.code == "busy"
    assert (await repairs.retry("box")).lease_owner == f"{HERE}/1-x"


# ------------------------------------------------------------------ after a restore


async def test_what_may_have_ended_since_has_ended(tmp_path: Path, location: Location) -> None:
    clock = ManualClock()
    async with open_plane(tmp_path, clock, database=location) as plane:
        set_endpoint(plane)
        user = await plane.users.create_user(OWNER)
        token = await plane.tokens.create_token(OWNER, "laptop")
        caller = await plane.tokens.authenticate(token.plaintext)
        box = await plane.workspaces.create_workspace("box", OWNER)
        await mark_running(plane, "box")
        key = make_client_key()
        await plane.sessions.register_session(caller, box.id, raw_public_key=key)
        later = START + datetime.timedelta(hours=1)
        async with plane.store.write() as session:
            session.add(
                SignInLinkRow(secret_hash="a" * 64, user_id=user.id, created_at=START, expires_at=later, used_at=None)
            )
            session.add(
                WebSessionRow(
                    user_id=user.id,
                    secret_hash="b" * 64,
                    method="password",
                    source="::1",
                    browser="x",
                    created_at=START,
                    last_seen_at=START,
                    expires_at=later,
                )
            )
        engine = plane.store.make_engine()
        with engine.begin() as connection:
            settle_restored(connection, START + datetime.timedelta(minutes=1))
        engine.dispose()
        assert await plane.sessions.list_sessions() == []
        async with plane.store.read() as session:
            assert await session.scalar(select(SessionRow.released_at)) is not None
            assert await session.scalar(select(SignInLinkRow.expires_at)) == START + datetime.timedelta(minutes=1)
            assert await session.scalar(select(WebSessionRow.ended_at)) is not None
        shown = await plane.workspaces.load_workspace("box")
        assert (shown.running, shown.endpoint) == (False, None)
        # The token is as it was, and mints again, with the same key.
        assert (await plane.tokens.authenticate(token.plaintext)).email == OWNER
        await mark_running(plane, "box")
        await plane.sessions.register_session(caller, box.id, raw_public_key=key)
