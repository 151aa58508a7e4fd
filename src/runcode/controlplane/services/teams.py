"""Teams: people with whom a workspace can be shared by one word.

Owns: teams and who is in them. A member sees the team and its members; an admin of
the team changes both. Who may make one is the server's setting. `caller` None is
the operator on this machine, who may do all.

Threat: a stranger learns which teams there are, or which addresses have accounts;
somebody who was removed stays connected.
Guarantee: to whoever is not in it, a team looks like one that does not exist (but
that names are unique: a name that is taken cannot be given). Leaving, removal and
deletion end the sessions of those who may no longer come in by any other way, and
tell the gateways, in the same transaction. There is always an admin, as the list of
members shows it: an address without an account counts as the list shows it, so
that the refusal to go tells nothing.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from runcode.controlplane import changes
from runcode.controlplane.clock import Clock
from runcode.controlplane.records import Caller, TeamMemberRecord, TeamRecord
from runcode.controlplane.services import access, audit, inputs, invitations
from runcode.controlplane.services.users import find_user, load_user
from runcode.controlplane.states import SCOPE_MANAGE, SCOPE_READ, TEAM_ADMIN, TEAM_MEMBER, TEAM_ROLES
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import (
    InvitationRow,
    SessionRow,
    TeamMemberRow,
    TeamRow,
    TeamShareRow,
    UserRow,
)
from runcode.core.errors import RunCodeError


class Teams:
    def __init__(self, store: Store, clock: Clock, *, made_by_anyone: bool = True) -> None:
        """`made_by_anyone`: or by admins of the server only."""
        self._store = store
        self._clock = clock
        self._made_by_anyone = made_by_anyone

    async def create_team(
        self, name: str, *, admin_email: str | None = None, caller: Caller | None = None
    ) -> TeamRecord:
        """With the caller (or whom the operator names) as its first admin. Raises `conflict` for a name in use."""
        access.require_scope(caller, SCOPE_READ)
        if self._made_by_anyone:
            access.require_scope(caller, SCOPE_MANAGE)
            access.require_whole_account(caller)
        else:
            access.require_admin(caller, SCOPE_MANAGE)
        name = _parse_name(name)
        async with self._store.write() as session:
            admin = await load_user(session, admin_email or "" if caller is None else caller.email)
            await _require_free(session, name)
            now = self._clock.now()
            row = TeamRow(name=name, created_at=now)
            session.add(row)
            await session.flush()
            session.add(TeamMemberRow(team_id=row.id, user_id=admin.id, role=TEAM_ADMIN, created_at=now))
            await self._note(session, audit.TEAM_CREATED, caller, row, {"admin": admin.email})
            role = None if caller is None else TEAM_ADMIN
            return TeamRecord(id=row.id, name=row.name, created_at=now, members=1, role=role)

    async def list_teams(self, caller: Caller | None = None) -> list[TeamRecord]:
        """The caller's own, or all for the operator; by name."""
        async with self._store.read() as session:
            if caller is None:
                found = await session.execute(select(TeamRow, _count_members()).order_by(TeamRow.name))
                return [_as_record(row, count, None) for row, count in found.all()]
            access.require_scope(caller, SCOPE_READ)
            access.require_whole_account(caller)
            query = _select_own(caller).order_by(TeamRow.name)
            return [_as_record(row, count, role) for row, role, count in (await session.execute(query)).all()]

    async def load_team(
        self, team: int | str, *, caller: Caller | None = None
    ) -> tuple[TeamRecord, list[TeamMemberRecord]]:
        """A team that the caller is in, with its members by address. Raises `not_found`."""
        async with self._store.read() as session:
            record = await load_team(session, team, caller)
            return record, await _list_members(session, record.id)

    async def rename_team(self, team: int | str, name: str, *, caller: Caller | None = None) -> TeamRecord:
        name = _parse_name(name)
        async with self._store.write() as session:
            record = await _load_governed(session, team, caller)
            row = await session.get_one(TeamRow, record.id)
            if name != row.name:
                await _require_free(session, name, but=row.id)
                detail: audit.Detail = {"before": row.name}
                row.name = name
                await self._note(session, audit.TEAM_CHANGED, caller, row, detail)
            return TeamRecord(row.id, row.name, row.created_at, record.members, record.role)

    async def set_member(
        self, team: int | str, email: str, role: str = TEAM_MEMBER, *, caller: Caller | None = None
    ) -> TeamMemberRecord:
        """Take somebody in, or change the role. Idempotent; only the operator hears of an unknown address."""
        role = inputs.parse_role(role, TEAM_ROLES, what="role in a team")
        email = inputs.parse_email(email)
        async with self._store.write() as session:
            record = await _load_governed(session, team, caller)
            if role != TEAM_ADMIN:
                await _require_another_admin(session, record.id, email, "made a member")
            user = await load_user(session, email) if caller is None else await find_user(session, email)
            now = self._clock.now()
            if user is None:
                await invitations.invite(session, now, email, role, team_id=record.id)
            else:
                member = await session.get(TeamMemberRow, (record.id, user.id))
                if member is None:
                    await invitations.require_place(session, team_id=record.id)
                    session.add(TeamMemberRow(team_id=record.id, user_id=user.id, role=role, created_at=now))
                else:
                    member.role = role
            row = await session.get_one(TeamRow, record.id)
            await self._note(session, audit.TEAM_CHANGED, caller, row, {"member": email, "role": role})
            return TeamMemberRecord(email=email, role=role)

    async def remove_member(self, team: int | str, email: str, *, caller: Caller | None = None) -> None:
        """An admin removes anybody, everybody may leave. Idempotent. Raises `conflict` for the last admin."""
        email = inputs.parse_email(email)
        async with self._store.write() as session:
            leaving = caller is not None and email == caller.email
            record = await (_load_own if leaving else _load_governed)(session, team, caller)
            await _require_another_admin(session, record.id, email, "removed")
            user = await load_user(session, email) if caller is None else await find_user(session, email)
            now = self._clock.now()
            if user is None:
                gone = await invitations.withdraw(session, email, team_id=record.id)
            else:
                member = await session.get(TeamMemberRow, (record.id, user.id))
                gone = member is not None
                if member is not None:
                    await session.delete(member)
                    await session.flush()
                    shared = select(TeamShareRow.workspace_id).where(TeamShareRow.team_id == record.id)
                    await access.revoke_unentitled(
                        session, now, SessionRow.user_id == user.id, SessionRow.workspace_id.in_(shared)
                    )
                    changes.append_change(session, changes.TEAM_LEFT, now, user_id=user.id)
            if gone:
                row = await session.get_one(TeamRow, record.id)
                await self._note(session, audit.TEAM_CHANGED, caller, row, {"member": email, "role": None})

    async def delete_team(self, team: int | str, *, confirm: object = None, caller: Caller | None = None) -> None:
        """Its shares go with it. Raises `bad_request` unless `confirm` is its name (the operator need not give it)."""
        async with self._store.write() as session:
            record = await _load_governed(session, team, caller)
            if confirm != record.name and (caller is not None or confirm is not None):
                raise RunCodeError(
                    "bad_request",
                    "the team's name was not repeated, so nothing was deleted",
                    resolution="to delete it with all its shares, confirm with its name",
                )
            now = self._clock.now()
            query = delete(TeamShareRow).where(TeamShareRow.team_id == record.id).returning(TeamShareRow.workspace_id)
            shared = list((await session.scalars(query)).all())
            await session.execute(delete(TeamMemberRow).where(TeamMemberRow.team_id == record.id))
            await invitations.withdraw(session, team_id=record.id)
            row = await session.get_one(TeamRow, record.id)
            await self._note(session, audit.TEAM_DELETED, caller, row, {})
            await session.delete(row)
            await session.flush()
            await access.revoke_unentitled(session, now, SessionRow.workspace_id.in_(shared))
            for workspace_id in shared:
                changes.append_change(session, changes.TEAM_UNSHARED, now, workspace_id=workspace_id)

    async def _note(
        self, session: AsyncSession, kind: str, caller: Caller | None, row: TeamRow, detail: audit.Detail
    ) -> None:
        told: audit.Detail = {"team": row.id, "name": row.name, **detail}
        await audit.note(session, kind, self._clock.now(), caller=caller, detail=told)


async def load_team(session: AsyncSession, team: int | str, caller: Caller | None) -> TeamRecord:
    """By id; by name as well for the operator. Raises `not_found`, also for a team that the caller is not in."""
    if caller is None:
        text = str(team).strip()
        which: ColumnElement[bool] = TeamRow.name == text
        if text.isascii() and text.isdigit() and len(text) <= 18:
            which = TeamRow.id == int(text)
        found = (await session.execute(select(TeamRow, _count_members()).where(which))).first()
        if found is None:
            raise RunCodeError(
                "not_found", f"there is no team {text[:80]!r}", resolution="see `runcode-server team list`"
            )
        return _as_record(found[0], found[1], None)
    row = (await session.execute(_select_own(caller).where(TeamRow.id == int(team)))).first()
    if row is None:
        raise RunCodeError("not_found", f"there is no team {int(team)} that you are in", resolution="see your teams")
    access.require_scope(caller, SCOPE_READ)
    access.require_whole_account(caller)
    return _as_record(row[0], row[2], row[1])


async def _load_own(session: AsyncSession, team: int | str, caller: Caller | None) -> TeamRecord:
    record = await load_team(session, team, caller)
    access.require_scope(caller, SCOPE_MANAGE)
    return record


async def _load_governed(session: AsyncSession, team: int | str, caller: Caller | None) -> TeamRecord:
    record = await _load_own(session, team, caller)
    if caller is not None and record.role != TEAM_ADMIN:
        raise RunCodeError("forbidden", "only an admin of this team may do that", resolution="ask one of them")
    return record


async def _require_another_admin(session: AsyncSession, team_id: int, email: str, what: str) -> None:
    """Raises `conflict` when this address is the team's only admin."""
    admins = [member.email for member in await _list_members(session, team_id) if member.role == TEAM_ADMIN]
    if admins == [email]:
        raise RunCodeError(
            "conflict",
            f"{email} is the only admin of this team, and cannot be {what}",
            resolution="make somebody else an admin first, or delete the team",
        )


async def _require_free(session: AsyncSession, name: str, *, but: int | None = None) -> None:
    taken = await session.scalar(
        select(TeamRow.id).where(func.lower(TeamRow.name) == name.lower(), TeamRow.id != (but or 0))
    )
    if taken is not None:
        raise RunCodeError("conflict", "that name is taken", resolution="choose another name for the team")


async def _list_members(session: AsyncSession, team_id: int) -> list[TeamMemberRecord]:
    query = (
        select(UserRow.email, TeamMemberRow.role)
        .join(UserRow, UserRow.id == TeamMemberRow.user_id)
        .where(TeamMemberRow.team_id == team_id)
    )
    found = [(email, role) for email, role in (await session.execute(query)).all()]
    found += await invitations.list_waiting(session, team_id=team_id)
    return [TeamMemberRecord(email=email, role=role) for email, role in sorted(found)]


def _select_own(caller: Caller) -> Select[TeamRow, str, int]:
    return (
        select(TeamRow, TeamMemberRow.role, _count_members())
        .join(TeamMemberRow, TeamMemberRow.team_id == TeamRow.id)
        .where(TeamMemberRow.user_id == caller.user_id)
    )


def _count_members() -> ColumnElement[int]:
    members = aliased(TeamMemberRow)
    accounts = select(func.count()).select_from(members).where(members.team_id == TeamRow.id)
    waiting = select(func.count(InvitationRow.id)).where(InvitationRow.team_id == TeamRow.id)
    return accounts.correlate(TeamRow).scalar_subquery() + waiting.correlate(TeamRow).scalar_subquery()


def _as_record(row: TeamRow, members: int, role: str | None) -> TeamRecord:
    return TeamRecord(id=row.id, name=row.name, created_at=row.created_at, members=members, role=role)


def _parse_name(raw_name: str) -> str:
    """Not a number alone, which would mean an id to the operator."""
    name = inputs.parse_label(raw_name, what="team name")
    if name.isdigit():
        raise RunCodeError("bad_request", "a team's name cannot be a number", resolution="add a letter to it")
    return name
