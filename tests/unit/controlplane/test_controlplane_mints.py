"""Mints that share a transaction: each is judged as if it were alone, and the one query as `load_visible` judges."""

from __future__ import annotations

import asyncio
import datetime
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import select

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller, SessionGrant
from runcode.controlplane.services import access
from runcode.controlplane.services.mints import Mint, _wanted
from runcode.controlplane.services.tokens import TokenBounds
from runcode.controlplane.states import SCOPE_CONNECT, SCOPE_READ
from runcode.controlplane.store.models import (
    EventRow,
    SessionRow,
    ShareRow,
    TeamMemberRow,
    TeamRow,
    TeamShareRow,
    TokenRow,
    WorkspaceRow,
)
from runcode.controlplane.store.row_lists import insert_rows, render_rows
from runcode.core.errors import RunCodeError
from support.controlplane_fakes import ManualClock, make_client_key, mark_running, open_plane, set_endpoint

ANN, BOB, EVE = "ann@example.org", "bob@example.org", "eve@example.org"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def plane(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, clock) as opened:
        for email in (ANN, BOB, EVE):
            await opened.users.create_user(email)
        set_endpoint(opened)
        yield opened


async def caller_for(plane: ControlPlane, email: str, bounds: TokenBounds | None = None) -> Caller:
    token = await plane.tokens.create_token(email, "test", bounds=bounds or TokenBounds())
    caller = await plane.tokens.authenticate(token.plaintext)
    await plane.tokens.close()
    return caller


async def box_of(plane: ControlPlane, title: str, owner: str = ANN, *, running: bool = True) -> int:
    box = await plane.workspaces.create_workspace(title, owner, runtime="fake")
    if running:
        await mark_running(plane, title)
    return box.id


async def mint_together(
    plane: ControlPlane, *wishes: tuple[Caller, int, str]
) -> Sequence[SessionGrant | BaseException]:
    """All of them in one round, which this makes sure of."""
    rounds: list[int] = []
    gathering = plane.sessions._mints
    answer_round = gathering._answer_round

    async def count(mints: Sequence[Mint]) -> Sequence[SessionGrant | RunCodeError]:
        rounds.append(len(mints))
        return await answer_round(mints)

    gathering._answer_round = count
    try:
        return await asyncio.gather(
            *(plane.sessions.register_session(caller, box, raw_public_key=key) for caller, box, key in wishes),
            return_exceptions=True,
        )
    finally:
        gathering._answer_round = answer_round
        assert rounds == [len(wishes)]


def codes(answers: Sequence[SessionGrant | BaseException]) -> list[str]:
    return [answer.code if isinstance(answer, RunCodeError) else "minted" for answer in answers]


async def sessions_of(plane: ControlPlane) -> list[SessionRow]:
    async with plane.store.read() as session:
        return list((await session.scalars(select(SessionRow).order_by(SessionRow.id))).all())


async def test_one_refusal_changes_nothing_for_the_others_and_each_reason_is_its_own(plane: ControlPlane) -> None:
    ann, bob = await caller_for(plane, ANN), await caller_for(plane, BOB)
    looker = await caller_for(plane, ANN, TokenBounds(scopes=(SCOPE_READ,)))
    box, stopped = await box_of(plane, "box"), await box_of(plane, "off", running=False)
    narrow = await caller_for(plane, ANN, TokenBounds(workspace_ids=(stopped,)))
    gone = await caller_for(plane, ANN)
    await plane.tokens.revoke_token(gone.token_id or 0)
    keys = [make_client_key() for _ in range(8)]
    wishes = ((ann, box), (bob, box), (ann, 999), (looker, box), (ann, stopped), (narrow, box), (gone, box), (ann, box))
    answers = await mint_together(plane, *((*wish, key) for wish, key in zip(wishes, keys, strict=True)))
    assert codes(answers) == [
        "minted", "not_found", "not_found", "forbidden", "conflict", "not_found", "unauthorized", "minted",
    ]  # fmt: skip
    stored = await sessions_of(plane)
    assert [row.public_key for row in stored] == [" ".join(keys[index].split()[:2]) for index in (0, 7)]
    async with plane.store.read() as session:
        noted = select(EventRow.session_id).where(EventRow.kind == "session_minted").order_by(EventRow.id)
        assert list((await session.scalars(noted)).all()) == [row.id for row in stored]


async def test_one_key_of_two_people_in_one_round_is_the_first_ones(plane: ControlPlane) -> None:
    ann, bob = await caller_for(plane, ANN), await caller_for(plane, BOB)
    mine, his = await box_of(plane, "mine"), await box_of(plane, "his", BOB)
    key = make_client_key()
    answers = await mint_together(plane, (bob, his, key), (ann, mine, key), (bob, his, key))
    assert codes(answers) == ["minted", "bad_request", "minted"]
    (row,) = await sessions_of(plane)
    assert (row.user_id, row.workspace_id) == (bob.user_id, his)
    # The second of one person extends the first, as it would have one by one.
    assert isinstance(answers[0], SessionGrant)
    assert isinstance(answers[2], SessionGrant)
    assert answers[0].session.id == answers[2].session.id == row.id


async def test_a_key_whose_session_has_ended_goes_to_the_first_who_asks(
    plane: ControlPlane, clock: ManualClock
) -> None:
    ann, bob = await caller_for(plane, ANN), await caller_for(plane, BOB)
    mine, his = await box_of(plane, "mine"), await box_of(plane, "his", BOB)
    key = make_client_key()
    await mint_together(plane, (ann, mine, key))
    clock.advance(seconds=1800)
    other = make_client_key()
    assert codes(await mint_together(plane, (bob, his, key), (ann, mine, key), (ann, mine, other))) == [
        "minted", "bad_request", "minted",
    ]  # fmt: skip
    old, new, beside = await sessions_of(plane)
    assert (old.user_id, old.released_at, old.token_id) == (ann.user_id, clock.now(), ann.token_id)
    assert (new.user_id, new.released_at, new.fingerprint) == (bob.user_id, None, old.fingerprint)
    assert beside.user_id == ann.user_id


async def test_in_the_tokens_last_second_one_key_may_change_hands_twice_in_a_round(
    plane: ControlPlane, clock: ManualClock
) -> None:
    """What a token's end leaves of a second is rounded down: such a session ends as it begins."""
    end = clock.now() + datetime.timedelta(milliseconds=500)
    bounds = TokenBounds(expires_at=end)
    ann, bob = await caller_for(plane, ANN, bounds), await caller_for(plane, BOB, bounds)
    mine, his = await box_of(plane, "mine"), await box_of(plane, "his", BOB)
    key = make_client_key()
    answers = await mint_together(plane, (ann, mine, key), (bob, his, key), (ann, mine, key))
    assert codes(answers) == ["minted"] * 3
    rows = await sessions_of(plane)
    assert [row.user_id for row in rows] == [ann.user_id, bob.user_id, ann.user_id]
    assert [row.released_at is None for row in rows] == [False, False, True]
    assert [answer.session.id for answer in answers if isinstance(answer, SessionGrant)] == [row.id for row in rows]


async def test_fifty_at_once_get_what_they_would_get_one_by_one(plane: ControlPlane) -> None:
    ann = await caller_for(plane, ANN)
    box = await box_of(plane, "box")
    keys = [make_client_key() for _ in range(50)]
    answers = await mint_together(plane, *((ann, box, key) for key in keys))
    by_id = {row.id: row for row in await sessions_of(plane)}
    assert len(by_id) == 50
    for answer, key in zip(answers, keys, strict=True):
        assert isinstance(answer, SessionGrant)
        row = by_id[answer.session.id]
        assert row.public_key == " ".join(key.split()[:2])
        assert (row.fingerprint, row.expires_at) == (answer.session.fingerprint, answer.session.expires_at)
    again = await mint_together(plane, *((ann, box, key) for key in keys))
    assert {answer.session.id for answer in again if isinstance(answer, SessionGrant)} == set(by_id)


async def test_every_way_to_a_workspace_is_judged_as_the_single_query_judges_it(plane: ControlPlane) -> None:
    """Owner, shares and teams in all combinations, live and deleted: the query for many says what that for one says."""
    callers = [await caller_for(plane, email) for email in (ANN, BOB, EVE)]
    now = plane.clock.now()
    ids = []
    async with plane.store.write() as session:
        teams = [TeamRow(name=name, created_at=now) for name in ("red", "blue")]
        session.add_all(teams)
        await session.flush()
        for team in teams:
            session.add(TeamMemberRow(team_id=team.id, user_id=callers[1].user_id, role="member", created_at=now))
        for number, (direct, red, blue, deleted) in enumerate(
            itertools.product((None, "use", "manage"), (None, "use", "manage"), (None, "manage"), (False, True))
        ):
            box = WorkspaceRow(
                title=f"box{number}", custom_title="", owner_id=callers[0].user_id, runtime="fake", size="standard",
                host_public_key="ssh-ed25519 AAAA", desired_state="running", observed_state="running",
                observed_at=now, failures=0, checkpoints=[], created_at=now, deleted_at=now if deleted else None,
            )  # fmt: skip
            session.add(box)
            await session.flush()
            ids.append(box.id)
            if direct is not None:
                user_id = callers[1].user_id
                session.add(ShareRow(workspace_id=box.id, user_id=user_id, role=direct, created_at=now))
            for team, role in zip(teams, (red, blue), strict=True):
                if role is not None:
                    session.add(TeamShareRow(workspace_id=box.id, team_id=team.id, role=role, created_at=now))
    pairs = list(itertools.product(callers, [*ids, 10**9]))
    rows = render_rows((n, caller.user_id, box, 0, "") for n, (caller, box) in enumerate(pairs))
    async with plane.store.read() as session:
        many = {row[0]: row for row in await session.execute(access.select_wanted(_wanted), {"wanted": rows})}
        seen = 0
        for n, (caller, box_id) in enumerate(pairs):
            owner_id, rank = many[n][1:3]
            role = None if owner_id is None else access.find_role(owner_id, caller.user_id, rank)
            try:
                single = (await access.load_visible(session, box_id, caller, SCOPE_CONNECT))[1]
            except RunCodeError:
                assert role is None, (caller.email, box_id)
            else:
                seen += 1
                assert (role, many[n][3]) == (single.role, single.title)
    assert 20 < seen < len(pairs) / 2


async def test_the_tokens_bounds_count_as_they_are_in_the_transaction(plane: ControlPlane) -> None:
    ann = await caller_for(plane, ANN)
    box = await box_of(plane, "box")
    async with plane.store.write() as session:
        row = await session.get(TokenRow, ann.token_id)
        assert row is not None
        row.scopes = [SCOPE_READ]
    assert codes(await mint_together(plane, (ann, box, make_client_key()))) == ["forbidden"]
    assert not await sessions_of(plane)


async def test_rows_that_go_in_as_one_parameter_come_out_as_single_ones_do(plane: ControlPlane) -> None:
    now = datetime.datetime(2026, 11, 25, 1, 2, 3, 45, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    row = {
        "gateway": "g", "phase": "note", "kind": "k", "at": now, "recorded_at": now, "started_at": None,
        "workspace_id": 2**40, "detail": {"by": "é'\"\\", "n": 7, "none": None}, "hash": "0" * 64,
    }  # fmt: skip
    async with plane.store.write() as session:
        session.add(EventRow(subject_id="one", **row))
        await session.flush()
        await session.run_sync(
            lambda sync: insert_rows(sync, EventRow, [{"subject_id": name, **row} for name in ("two", "three")])
        )
    async with plane.store.read() as session:
        found = (await session.scalars(select(EventRow).where(EventRow.kind == "k").order_by(EventRow.id))).all()
    assert [event.subject_id for event in found] == ["one", "two", "three"]
    assert all({name: getattr(event, name) for name in row} == row for event in found)
