"""Who may see a workspace, in which role, and whether their token lets them: the one place that answers it.

Owns: the roles that ownership, shares and teams give, and the bounds that a token sets beneath them.

Threat: a caller walks through ids and titles to learn what others have; a token
for one workspace, or for looking only, is used for more.
Guarantee: a workspace that does not exist, one that was deleted, one that the
caller may not see, and one outside the caller's token raise the same `not_found`,
after the same one query. What a scope does not cover raises `forbidden`.
"""

from __future__ import annotations

import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, Subquery, and_, case, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute as _Column

from runcode.controlplane.records import Caller, WorkspaceRecord
from runcode.controlplane.services.withdrawals import revoke_sessions
from runcode.controlplane.states import ROLE_MANAGE, ROLE_OWNER, ROLE_USE, SCOPE_MANAGE
from runcode.controlplane.store.models import SessionRow, ShareRow, TeamMemberRow, TeamShareRow, UserRow, WorkspaceRow
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import Endpoint, TcpEndpoint, UnixEndpoint

# A share's role as a number, so that a database can find the strongest of several.
_RANKS: Final = {1: ROLE_USE, 2: ROLE_MANAGE}


def require_scope(caller: Caller | None, scope: str) -> None:
    """Raises `forbidden` unless the caller's token covers it. None is the operator on this machine, who may do all."""
    if caller is not None and scope not in caller.scopes:
        raise RunCodeError(
            "forbidden",
            f"this API token does not cover `{scope}`",
            resolution="sign in again with `runcode login`, or make a token that covers it",
        )


def require_whole_account(caller: Caller | None) -> None:
    """Raises `forbidden` for a token that is kept to some workspaces: what lies beside them is not its business."""
    if caller is not None and caller.workspace_ids is not None:
        raise RunCodeError(
            "forbidden",
            "this API token is for some workspaces only",
            resolution="sign in again with `runcode login`, or make a token that covers your whole account",
        )


def require_admin(caller: Caller | None, scope: str) -> None:
    """Raises `forbidden` unless the caller administers this server, with a token that covers `scope` and all."""
    if caller is not None and not caller.is_admin:
        raise RunCodeError("forbidden", "only an admin of this server may do that", resolution="ask one of them")
    require_scope(caller, scope)
    require_whole_account(caller)


def select_for_user(user_id: int) -> Select[WorkspaceRow, str, int | None]:
    """Live workspaces with their owner's e-mail address and this user's rank by shares; the caller adds who may see.

    Several teams may share one workspace with a person: the strongest role counts.
    """
    by_team = (
        select(func.max(_rank(TeamShareRow.role)))
        .join(TeamMemberRow, TeamMemberRow.team_id == TeamShareRow.team_id)
        .where(TeamShareRow.workspace_id == WorkspaceRow.id, TeamMemberRow.user_id == user_id)
        .correlate(WorkspaceRow)
        .scalar_subquery()
    )
    own = _rank(ShareRow.role)
    rank = case((func.coalesce(by_team, 0) > func.coalesce(own, 0), by_team), else_=own)
    return (
        select(WorkspaceRow, UserRow.email, rank)
        .join(UserRow, UserRow.id == WorkspaceRow.owner_id)
        .outerjoin(ShareRow, and_(ShareRow.workspace_id == WorkspaceRow.id, ShareRow.user_id == user_id))
        .where(WorkspaceRow.deleted_at.is_(None))
    )


def shared_with(user_id: int) -> ColumnElement[bool]:
    """Workspaces that somebody shares with this user, directly or through a team."""
    direct = select(ShareRow.workspace_id).where(ShareRow.user_id == user_id)
    by_team = (
        select(TeamShareRow.workspace_id)
        .join(TeamMemberRow, TeamMemberRow.team_id == TeamShareRow.team_id)
        .where(TeamMemberRow.user_id == user_id)
    )
    return WorkspaceRow.id.in_(direct.union(by_team))


def is_entitled(user_id: _Column[int], workspace_id: _Column[int]) -> ColumnElement[bool]:
    """Whether this user may use this workspace at all, for a query that has `WorkspaceRow` among its tables."""
    direct = select(ShareRow.user_id).where(ShareRow.workspace_id == workspace_id, ShareRow.user_id == user_id)
    by_team = (
        select(TeamMemberRow.user_id)
        .join(TeamShareRow, TeamShareRow.team_id == TeamMemberRow.team_id)
        .where(TeamShareRow.workspace_id == workspace_id, TeamMemberRow.user_id == user_id)
    )
    return or_(WorkspaceRow.owner_id == user_id, direct.exists(), by_team.exists())


def is_member(team_id: _Column[int], user_id: int) -> ColumnElement[bool]:
    """Whether this user is in the team, for a query that has the team's id among its columns."""
    return (
        select(TeamMemberRow.user_id).where(TeamMemberRow.team_id == team_id, TeamMemberRow.user_id == user_id).exists()
    )


def within_token(caller: Caller) -> ColumnElement[bool] | None:
    """The condition that keeps a list within the caller's token; None when the token names no workspaces."""
    return None if caller.workspace_ids is None else WorkspaceRow.id.in_(caller.workspace_ids)


def role_of(row: WorkspaceRow, user_id: int, rank: int | None) -> str | None:
    return find_role(row.owner_id, user_id, rank)


def find_role(owner_id: int, user_id: int, rank: int | None) -> str | None:
    return ROLE_OWNER if owner_id == user_id else _RANKS.get(rank or 0)


async def load_visible(
    session: AsyncSession, workspace_id: int, caller: Caller, scope: str
) -> tuple[WorkspaceRow, WorkspaceRecord]:
    """The row and its record with the caller's role; `not_found`, or `forbidden` when the token lacks `scope`."""
    found = (await session.execute(select_for_user(caller.user_id).where(WorkspaceRow.id == workspace_id))).first()
    if found is not None and (caller.workspace_ids is None or workspace_id in caller.workspace_ids):
        row, owner_email, rank = found
        role = role_of(row, caller.user_id, rank)
        if role is not None:
            require_scope(caller, scope)
            return row, as_record(row, owner_email, role)
    raise refuse_unseen(workspace_id)


def refuse_unseen(workspace_id: int) -> RunCodeError:
    return RunCodeError("not_found", f"there is no workspace {workspace_id} that you may use")


def select_wanted(wanted: Subquery) -> Select[Any]:
    """For each row of `wanted` (`n`, `user_id`, `workspace_id`) what `load_visible` asks for one.

    Columns: `n`; then owner's id, rank by shares, title, what `states.show_state` needs, and the reason, all None
    when no such workspace lives.
    """
    direct = (
        select(func.max(_rank(ShareRow.role)))
        .where(ShareRow.workspace_id == WorkspaceRow.id, ShareRow.user_id == wanted.c.user_id)
        .correlate(WorkspaceRow, wanted)
        .scalar_subquery()
    )
    by_team = (
        select(func.max(_rank(TeamShareRow.role)))
        .join(TeamMemberRow, TeamMemberRow.team_id == TeamShareRow.team_id)
        .where(TeamShareRow.workspace_id == WorkspaceRow.id, TeamMemberRow.user_id == wanted.c.user_id)
        .correlate(WorkspaceRow, wanted)
        .scalar_subquery()
    )
    strongest = case((func.coalesce(by_team, 0) > func.coalesce(direct, 0), by_team), else_=direct)
    return (
        select(
            wanted.c.n,
            WorkspaceRow.owner_id,
            # Whoever owns it needs no share, and most people own what they use.
            case((WorkspaceRow.owner_id == wanted.c.user_id, None), else_=strongest),
            WorkspaceRow.title,
            WorkspaceRow.desired_state,
            WorkspaceRow.observed_state,
            WorkspaceRow.activity,
            WorkspaceRow.failures,
            WorkspaceRow.reason,
        )
        .select_from(wanted)
        .outerjoin(WorkspaceRow, and_(WorkspaceRow.id == wanted.c.workspace_id, WorkspaceRow.deleted_at.is_(None)))
    )


async def load_owned(
    session: AsyncSession, workspace_id: int, caller: Caller, scope: str = SCOPE_MANAGE
) -> tuple[WorkspaceRow, WorkspaceRecord]:
    """As `load_visible`, for what only the owner may do: `forbidden` to those with whom it is shared."""
    row, record = await load_visible(session, workspace_id, caller, scope)
    if record.role != ROLE_OWNER:
        raise RunCodeError(
            "forbidden", f"only the owner of {row.title} may do that", resolution=f"ask {record.owner_email}"
        )
    return row, record


async def revoke_unentitled(session: AsyncSession, now: datetime.datetime, *which: ColumnElement[bool]) -> None:
    """End those of `which` sessions whose person may no longer use the workspace, by whatever other way there was.

    The shares and places in teams that went must have been flushed.
    """
    lost = (
        select(SessionRow.id)
        .join(WorkspaceRow, WorkspaceRow.id == SessionRow.workspace_id)
        .where(*which, ~is_entitled(SessionRow.user_id, SessionRow.workspace_id))
    )
    await revoke_sessions(session, now, SessionRow.id.in_(lost))


async def load_named(session: AsyncSession, reference: int | str) -> tuple[WorkspaceRow, WorkspaceRecord]:
    """For operators: by id (a number, also as text) or by title. Raises `not_found`."""
    text = str(reference).strip()
    which: ColumnElement[bool] = WorkspaceRow.title == text
    if text.isascii() and text.isdigit() and len(text) <= 18:
        which = WorkspaceRow.id == int(text)
    query = (
        select(WorkspaceRow, UserRow.email)
        .join(UserRow, UserRow.id == WorkspaceRow.owner_id)
        .where(WorkspaceRow.deleted_at.is_(None), which)
    )
    found = (await session.execute(query)).first()
    if found is None:
        raise RunCodeError(
            "not_found", f"there is no workspace {text[:80]!r}", resolution="see `runcode-server workspace list`"
        )
    return found[0], as_record(found[0], found[1], None)


def as_record(row: WorkspaceRow, owner_email: str, role: str | None) -> WorkspaceRecord:
    return WorkspaceRecord(
        id=row.id,
        title=row.title,
        custom_title=row.custom_title,
        owner_email=owner_email,
        runtime=row.runtime,
        desired_state=row.desired_state,
        observed_state=row.observed_state,
        activity=row.activity,
        failures=row.failures,
        reason=row.reason,
        endpoint=find_endpoint(row),
        host_public_key=row.host_public_key,
        created_at=row.created_at,
        role=role,
        size=row.size,
        idle_stop_after_s=row.idle_stop_after_s,
        active_at=row.active_at,
        box_size=row.box_size,
        stop_cause=row.stop_cause,
        stop_note=row.stop_note,
    )


def find_endpoint(row: WorkspaceRow) -> Endpoint | None:
    if row.endpoint_socket_path is not None:
        return UnixEndpoint(row.endpoint_socket_path)
    if row.endpoint_host is not None and row.endpoint_port is not None:
        return TcpEndpoint(row.endpoint_host, row.endpoint_port)
    return None


def _rank(role: _Column[str]) -> ColumnElement[int | None]:
    return case(*((role == name, rank) for rank, name in _RANKS.items()), else_=None)
