"""Shares and places in teams for e-mail addresses under which nobody has an account here (yet).

Threat: somebody with an account types addresses, to learn who else has one.
Guarantee: adding an address answers, and is listed, alike whether or not there is
an account under it; it takes effect as soon as there is one. Only the operator on
this machine is told that an account does not exist. How many addresses one
workspace or team may have is bounded, whether or not there are accounts.
"""

from __future__ import annotations

import datetime

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane import changes
from runcode.controlplane.store.models import InvitationRow, ShareRow, TeamMemberRow, UserRow
from runcode.core.errors import RunCodeError

ADDRESSES_MAX = 500


async def invite(
    session: AsyncSession,
    now: datetime.datetime,
    email: str,
    role: str,
    *,
    workspace_id: int | None = None,
    team_id: int | None = None,
) -> None:
    """Keep a place, or change its role. Idempotent. `email` has been parsed."""
    place = _at(workspace_id, team_id)
    row = await session.scalar(select(InvitationRow).where(place, InvitationRow.email == email))
    if row is not None:
        row.role = role
        return
    await require_place(session, workspace_id=workspace_id, team_id=team_id)
    session.add(InvitationRow(email=email, workspace_id=workspace_id, team_id=team_id, role=role, created_at=now))


async def require_place(session: AsyncSession, *, workspace_id: int | None = None, team_id: int | None = None) -> None:
    """Raises `bad_request` when this workspace or team has as many addresses as it may."""
    accounts = select(func.count()).select_from(ShareRow).where(ShareRow.workspace_id == workspace_id)
    if team_id is not None:
        accounts = select(func.count()).select_from(TeamMemberRow).where(TeamMemberRow.team_id == team_id)
    waiting = select(func.count(InvitationRow.id)).where(_at(workspace_id, team_id))
    if (await session.scalar(accounts) or 0) + (await session.scalar(waiting) or 0) >= ADDRESSES_MAX:
        raise RunCodeError(
            "bad_request", f"there are {ADDRESSES_MAX} people here already", resolution="remove some, then try again"
        )


async def withdraw(
    session: AsyncSession, email: str | None = None, *, workspace_id: int | None = None, team_id: int | None = None
) -> bool:
    """Take one back, or all of a place; True when there was any."""
    which = _at(workspace_id, team_id)
    found = await session.execute(
        delete(InvitationRow)
        .where(which if email is None else which & (InvitationRow.email == email))
        .returning(InvitationRow.id)
    )
    return bool(found.all())


async def list_waiting(
    session: AsyncSession, *, workspace_id: int | None = None, team_id: int | None = None
) -> list[tuple[str, str]]:
    """(e-mail address, role), in no order."""
    found = await session.execute(select(InvitationRow.email, InvitationRow.role).where(_at(workspace_id, team_id)))
    return [(email, role) for email, role in found.all()]


async def redeem(session: AsyncSession, user: UserRow, now: datetime.datetime) -> None:
    """An account exists now: what was kept for its address takes effect. Part of the transaction that makes it."""
    for row in (await session.scalars(select(InvitationRow).where(InvitationRow.email == user.email))).all():
        if row.workspace_id is not None:
            session.add(ShareRow(workspace_id=row.workspace_id, user_id=user.id, role=row.role, created_at=now))
            changes.append_change(session, changes.SHARED, now, workspace_id=row.workspace_id, user_id=user.id)
        elif row.team_id is not None:
            session.add(TeamMemberRow(team_id=row.team_id, user_id=user.id, role=row.role, created_at=now))
        await session.delete(row)


def _at(workspace_id: int | None, team_id: int | None) -> ColumnElement[bool]:
    assert (workspace_id is None) != (team_id is None)
    if workspace_id is not None:
        return InvitationRow.workspace_id == workspace_id
    return InvitationRow.team_id == team_id
