"""Shares, teams and places for addresses: what gives access, and that each way of taking it ends what it had opened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from runcode.controlplane import changes
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller
from runcode.controlplane.store.models import ChangeRow
from runcode.core.errors import RunCodeError
from support.controlplane_fakes import (
    ManualClock,
    make_client_key,
    mark_running,
    open_plane,
    set_endpoint,
)

ANN, BOB, EVE = "ann@example.org", "bob@example.org", "eve@example.org"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, ManualClock()) as opened:
        for email in (ANN, BOB, EVE):
            await opened.users.create_user(email)
        await opened.workspaces.create_workspace("box", ANN, runtime="fake")
        await mark_running(opened, "box")
        set_endpoint(opened)
        yield opened


async def caller_of(plane: ControlPlane, email: str) -> Caller:
    made = await plane.tokens.create_token(email, "laptop")
    return await plane.tokens.authenticate(made.plaintext)


async def open_session(plane: ControlPlane, email: str, box: int = 1) -> tuple[Caller, str]:
    """A session of this person's at the box; its key's fingerprint is what a gateway asks with."""
    caller = await caller_of(plane, email)
    grant = await plane.sessions.register_session(caller, box, raw_public_key=make_client_key())
    return caller, grant.session.fingerprint


async def is_withdrawn(plane: ControlPlane, fingerprint: str) -> bool:
    found = (await plane.admission.load_admission_facts("box", fingerprint)).session
    assert found is not None
    return found.withdrawn


async def newest_kinds(plane: ControlPlane, count: int = 1) -> set[str]:
    async with plane.store.read() as session:
        rows = (await session.scalars(ChangeRow.__table__.select().with_only_columns(ChangeRow.kind))).all()
    return set(rows[-count:])


Taking = Callable[[ControlPlane, Caller], Awaitable[object]]
TAKINGS: dict[str, Taking] = {
    "unshared with the person": lambda p, ann: p.shares.unshare(1, BOB, caller=ann),
    "unshared with the team": lambda p, ann: p.shares.unshare_with_team(1, 1, caller=ann),
    "removed from the team": lambda p, ann: p.teams.remove_member(1, BOB, caller=ann),
    "the team deleted": lambda p, ann: p.teams.delete_team(1, confirm="Payments", caller=ann),
}
BY_PERSON = "unshared with the person"


async def give(plane: ControlPlane, ann: Caller, way: str) -> None:
    if way == BY_PERSON:
        await plane.shares.share(1, BOB, caller=ann)
        return
    await plane.teams.create_team("Payments", caller=ann)
    await plane.teams.set_member(1, BOB, caller=ann)
    await plane.shares.share_with_team(1, 1, caller=ann)


@pytest.mark.parametrize("way", TAKINGS)
async def test_what_a_way_in_had_opened_ends_with_it(plane: ControlPlane, way: str) -> None:
    ann = await caller_of(plane, ANN)
    await give(plane, ann, way)
    bob, key = await open_session(plane, BOB)
    _, bystander = await open_session(plane, ANN)
    assert not await is_withdrawn(plane, key)
    await TAKINGS[way](plane, ann)
    assert await is_withdrawn(plane, key)
    # The feed says so, of a kind that gateways follow.
    assert await newest_kinds(plane) <= changes.WITHDRAWALS
    assert not await is_withdrawn(plane, bystander)
    with pytest.raises(RunCodeError) as caught:
        await plane.workspaces.load_workspace(1, caller=bob)
    assert caught.value.code == "not_found"
    # Giving it back brings no ended session back.
    await plane.shares.share(1, BOB, caller=ann)
    assert await is_withdrawn(plane, key)


async def test_a_member_who_leaves_is_cut_as_well(plane: ControlPlane) -> None:
    ann = await caller_of(plane, ANN)
    await give(plane, ann, "removed from the team")
    bob, key = await open_session(plane, BOB)
    await plane.teams.remove_member(1, BOB, caller=bob)
    assert await is_withdrawn(plane, key)
    assert await plane.teams.list_teams(bob) == []


@pytest.mark.parametrize("way", TAKINGS)
async def test_whoever_has_another_way_in_stays(plane: ControlPlane, way: str) -> None:
    ann = await caller_of(plane, ANN)
    for each in (BY_PERSON, "removed from the team"):
        await give(plane, ann, each)
    bob, key = await open_session(plane, BOB)
    await TAKINGS[way](plane, ann)
    assert not await is_withdrawn(plane, key)
    assert (await plane.workspaces.load_workspace(1, caller=bob)).role == "use"


async def test_the_strongest_role_counts_and_a_weaker_one_is_told(plane: ControlPlane) -> None:
    ann, bob = await caller_of(plane, ANN), await caller_of(plane, BOB)
    await give(plane, ann, "removed from the team")
    await plane.shares.share(1, BOB, "manage", caller=ann)
    assert (await plane.workspaces.load_workspace(1, caller=bob)).role == "manage"
    _, key = await open_session(plane, BOB)
    await plane.shares.share(1, BOB, "use", caller=ann)
    assert await newest_kinds(plane) == {changes.UNSHARED}
    assert (await plane.workspaces.load_workspace(1, caller=bob)).role == "use"
    assert not await is_withdrawn(plane, key)
    await plane.shares.share_with_team(1, 1, "manage", caller=ann)
    assert (await plane.workspaces.load_workspace(1, caller=bob)).role == "manage"


class TestWhoMay:
    async def test_only_the_owner_shares_deletes_and_changes(self, plane: ControlPlane) -> None:
        ann, bob = await caller_of(plane, ANN), await caller_of(plane, BOB)
        await plane.shares.share(1, BOB, "manage", caller=ann)
        for attempt in (
            plane.shares.share(1, EVE, caller=bob),
            plane.shares.unshare(1, BOB, caller=bob),
            plane.workspaces.update_workspace(1, custom_title="Mine", caller=bob),
            plane.workspaces.delete_workspace(1, confirm="box", caller=bob),
        ):
            with pytest.raises(RunCodeError) as caught:
                await attempt
            assert caught.value.code == "forbidden"
        assert (await plane.workspaces.request_stop(1, caller=bob)).desired_state == "stopped"

    async def test_a_guest_sees_no_other_guest(self, plane: ControlPlane) -> None:
        ann, bob = await caller_of(plane, ANN), await caller_of(plane, BOB)
        for email in (BOB, EVE, "later@example.org"):
            await plane.shares.share(1, email, caller=ann)
        assert [share.user_email for share in await plane.shares.list_shares(1, caller=bob)] == [BOB]
        listed = [share.user_email for share in await plane.shares.list_shares(1, caller=ann)]
        assert listed == [BOB, EVE, "later@example.org"]

    async def test_a_team_that_one_is_not_in_does_not_exist(self, plane: ControlPlane) -> None:
        ann, bob = await caller_of(plane, ANN), await caller_of(plane, BOB)
        team = await plane.teams.create_team("Secret", caller=bob)
        with pytest.raises(RunCodeError) as hidden:
            await plane.shares.share_with_team(1, team.id, caller=ann)
        with pytest.raises(RunCodeError) as absent:
            await plane.shares.share_with_team(1, 4711, caller=ann)
        assert hidden.value.message.replace(str(team.id), "N") == absent.value.message.replace("4711", "N")

    async def test_members_change_nothing_and_the_last_admin_stays(self, plane: ControlPlane) -> None:
        ann, bob = await caller_of(plane, ANN), await caller_of(plane, BOB)
        team = (await plane.teams.create_team("Payments", caller=ann)).id
        await plane.teams.set_member(team, BOB, caller=ann)
        for attempt in (
            plane.teams.set_member(team, EVE, caller=bob),
            plane.teams.remove_member(team, ANN, caller=bob),
            plane.teams.rename_team(team, "Mine", caller=bob),
            plane.teams.delete_team(team, confirm="Payments", caller=bob),
        ):
            with pytest.raises(RunCodeError) as caught:
                await attempt
            assert caught.value.code == "forbidden"
        for attempt in (
            plane.teams.remove_member(team, ANN, caller=ann),
            plane.teams.set_member(team, ANN, "member", caller=ann),
        ):
            with pytest.raises(RunCodeError) as caught:
                await attempt
            assert caught.value.code == "conflict"
        await plane.teams.set_member(team, BOB, "admin", caller=ann)
        await plane.teams.remove_member(team, ANN, caller=ann)
        _, members = await plane.teams.load_team(team, caller=bob)
        assert [(member.email, member.role) for member in members] == [(BOB, "admin")]

    async def test_the_operator_may_keep_teams_to_admins(self, tmp_path: Path) -> None:
        async with open_plane(tmp_path, ManualClock(), teams_by_anyone=False) as plane:
            await plane.users.create_user(ANN, admin=True)
            await plane.users.create_user(BOB)
            with pytest.raises(RunCodeError) as caught:
                await plane.teams.create_team("Payments", caller=await caller_of(plane, BOB))
            assert caught.value.code == "forbidden"
            await plane.teams.create_team("Payments", caller=await caller_of(plane, ANN))

    @pytest.mark.parametrize("name", ["", " ", "7", "a\nb", "x" * 65, "\x1b[2J", "a\u202eb"])
    async def test_a_name_that_cannot_be_shown_is_refused(self, plane: ControlPlane, name: str) -> None:
        with pytest.raises(RunCodeError) as caught:
            await plane.teams.create_team(name, caller=await caller_of(plane, ANN))
        assert caught.value.code == "bad_request"


class TestAddresses:
    """Nobody learns from sharing which addresses have accounts here."""

    async def test_an_address_answers_alike_with_and_without_an_account(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        team = (await plane.teams.create_team("Payments", caller=ann)).id
        for email in (BOB, "later@example.org"):
            for _ in range(2):
                share = await plane.shares.share(1, email, "manage", caller=ann)
                assert (share.user_email, share.role, share.team_id) == (email, "manage", None)
            assert (await plane.teams.set_member(team, email, caller=ann)).email == email
        shares = [(share.user_email, share.role) for share in await plane.shares.list_shares(1, caller=ann)]
        assert shares == [(BOB, "manage"), ("later@example.org", "manage")]
        record, members = await plane.teams.load_team(team, caller=ann)
        assert record.members == 3
        assert [member.role for member in members] == ["admin", "member", "member"]
        for email in (BOB, "later@example.org", "never@example.org"):
            await plane.shares.unshare(1, email, caller=ann)
            await plane.teams.remove_member(team, email, caller=ann)
        assert await plane.shares.list_shares(1, caller=ann) == []

    async def test_whether_the_last_admin_may_go_tells_nothing_either(self, plane: ControlPlane) -> None:
        """With another admin in the list, account or not, the answer is the same."""
        for number, email in enumerate((BOB, "later@example.org"), 1):
            ann = await caller_of(plane, ANN)
            team = (await plane.teams.create_team(f"Team {number}", caller=ann)).id
            await plane.teams.set_member(team, email, "admin", caller=ann)
            await plane.teams.remove_member(team, ANN, caller=ann)

    async def test_it_takes_effect_with_the_account(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        team = (await plane.teams.create_team("Payments", caller=ann)).id
        await plane.teams.set_member(team, "Later@example.org", "admin", caller=ann)
        await plane.shares.share(1, "later@example.org", "use", caller=ann)
        await plane.shares.share(1, "later@example.org", "manage", caller=ann)
        await plane.users.create_user("later@example.org")
        later = await caller_of(plane, "later@example.org")
        assert (await plane.workspaces.load_workspace(1, caller=later)).role == "manage"
        assert [(found.name, found.role) for found in await plane.teams.list_teams(later)] == [("Payments", "admin")]

    async def test_what_was_taken_back_before_gives_nothing(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        await plane.shares.share(1, "later@example.org", caller=ann)
        await plane.shares.unshare(1, "later@example.org", caller=ann)
        await plane.users.create_user("later@example.org")
        assert await plane.workspaces.list_shared(await caller_of(plane, "later@example.org")) == []

    async def test_only_the_operator_hears_that_there_is_no_account(self, plane: ControlPlane) -> None:
        with pytest.raises(RunCodeError) as caught:
            await plane.shares.share("box", "later@example.org")
        assert caught.value.code == "not_found"

    async def test_addresses_are_bounded_with_and_without_accounts(
        self, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runcode.controlplane.services.invitations.ADDRESSES_MAX", 3)
        ann = await caller_of(plane, ANN)
        for number in range(3):
            await plane.shares.share(1, f"later{number}@example.org", caller=ann)
        for email in ("another@example.org", BOB):
            with pytest.raises(RunCodeError) as caught:
                await plane.shares.share(1, email, caller=ann)
            assert caught.value.message == "there are 3 people here already"


class TestSessions:
    async def test_each_sees_and_ends_what_is_theirs(self, plane: ControlPlane) -> None:
        ann = await caller_of(plane, ANN)
        await plane.shares.share(1, BOB, caller=ann)
        await plane.shares.share(1, EVE, caller=ann)
        bob, bobs = await open_session(plane, BOB)
        eve, eves = await open_session(plane, EVE)
        seen = {
            email: [session.user_email for session in await plane.live_sessions.list_of_workspace(1, caller)]
            for email, caller in ((ANN, ann), (BOB, bob), (EVE, eve))
        }
        assert seen == {ANN: [EVE, BOB], BOB: [BOB], EVE: [EVE]}
        (number,) = [s.id for s in await plane.live_sessions.list_own(eve)]
        with pytest.raises(RunCodeError) as caught:
            await plane.live_sessions.revoke(number, bob)
        assert caught.value.code == "not_found"
        assert not await is_withdrawn(plane, eves)
        await plane.live_sessions.revoke(number, ann)
        assert await is_withdrawn(plane, eves)
        assert not await is_withdrawn(plane, bobs)
