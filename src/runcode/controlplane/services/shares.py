"""Who else may use a workspace: people and teams, to use it or to manage it.

Owns: shares. Only a workspace's owner (and the operator on this machine, `caller`
None) gives and takes them.

Guarantee: whatever takes access away ends, in the same transaction, the sessions
of those who may no longer come in by any other way, and tells the gateways to look
again. A share that gives less from now on is told to them as well. An address is
answered alike whether or not there is an account (see `invitations`); a team that
the owner is not in looks like one that does not exist.
"""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane import changes
from runcode.controlplane.clock import Clock
from runcode.controlplane.records import Caller, ShareRecord, WorkspaceRecord
from runcode.controlplane.services import access, audit, inputs, invitations
from runcode.controlplane.services.teams import load_team
from runcode.controlplane.services.users import find_user, load_user
from runcode.controlplane.states import ROLE_OWNER, ROLE_USE, SCOPE_MANAGE, SCOPE_READ, SHARE_ROLES
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import SessionRow, ShareRow, TeamRow, TeamShareRow, UserRow, WorkspaceRow
from runcode.core.errors import RunCodeError


class Shares:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def share(
        self, reference: int | str, email: str, role: str = ROLE_USE, *, caller: Caller | None = None
    ) -> ShareRecord:
        """Let a person in, or change the role. Idempotent; only the operator hears of an unknown address."""
        role = inputs.parse_role(role, SHARE_ROLES, what="share role")
        email = inputs.parse_email(email)
        async with self._store.write() as session:
            row, record = await _load_owned(session, reference, caller)
            if email == record.owner_email:
                raise RunCodeError(
                    "bad_request", f"{email} owns {row.title} already", resolution="share it with somebody else"
                )
            user = await load_user(session, email) if caller is None else await find_user(session, email)
            now = self._clock.now()
            if user is None:
                await invitations.invite(session, now, email, role, workspace_id=row.id)
            else:
                await self._share_with_user(session, row.id, user.id, role)
            detail = {"with": email, "role": role}
            await audit.note(session, audit.SHARED, now, caller=caller, workspace_id=row.id, detail=detail)
            return ShareRecord(workspace_id=row.id, user_email=email, role=role)

    async def _share_with_user(self, session: AsyncSession, workspace_id: int, user_id: int, role: str) -> None:
        now = self._clock.now()
        share = await session.get(ShareRow, (workspace_id, user_id))
        if share is None:
            await invitations.require_place(session, workspace_id=workspace_id)
            session.add(ShareRow(workspace_id=workspace_id, user_id=user_id, role=role, created_at=now))
            changes.append_change(session, changes.SHARED, now, workspace_id=workspace_id, user_id=user_id)
        elif share.role != role:
            share.role = role
            # Both rights let them connect: nobody is cut, but whoever holds what they may is to look again.
            changes.append_change(session, changes.UNSHARED, now, workspace_id=workspace_id, user_id=user_id)

    async def unshare(self, reference: int | str, email: str, *, caller: Caller | None = None) -> None:
        """Idempotent. Sessions end and live connections are cut, unless a team shares it with them as well."""
        email = inputs.parse_email(email)
        async with self._store.write() as session:
            row, _ = await _load_owned(session, reference, caller)
            user = await load_user(session, email) if caller is None else await find_user(session, email)
            now = self._clock.now()
            if user is None:
                gone = await invitations.withdraw(session, email, workspace_id=row.id)
            else:
                of_user = (ShareRow.workspace_id == row.id, ShareRow.user_id == user.id)
                found = await session.execute(delete(ShareRow).where(*of_user).returning(ShareRow.user_id))
                gone = bool(found.all())
                if gone:
                    await access.revoke_unentitled(
                        session, now, SessionRow.workspace_id == row.id, SessionRow.user_id == user.id
                    )
                    changes.append_change(session, changes.UNSHARED, now, workspace_id=row.id, user_id=user.id)
            if gone:
                detail = {"with": email}
                await audit.note(session, audit.UNSHARED, now, caller=caller, workspace_id=row.id, detail=detail)

    async def share_with_team(
        self, reference: int | str, team: int | str, role: str = ROLE_USE, *, caller: Caller | None = None
    ) -> ShareRecord:
        """Let all members in, or change their role. Idempotent. A caller must be in the team: else `not_found`."""
        role = inputs.parse_role(role, SHARE_ROLES, what="share role")
        async with self._store.write() as session:
            row, _ = await _load_owned(session, reference, caller)
            found = await load_team(session, team, caller)
            now = self._clock.now()
            share = await session.get(TeamShareRow, (row.id, found.id))
            if share is None:
                session.add(TeamShareRow(workspace_id=row.id, team_id=found.id, role=role, created_at=now))
                changes.append_change(session, changes.SHARED, now, workspace_id=row.id)
            elif share.role != role:
                share.role = role
                changes.append_change(session, changes.TEAM_UNSHARED, now, workspace_id=row.id)
            detail: audit.Detail = {"with_team": found.name, "team": found.id, "role": role}
            await audit.note(session, audit.SHARED, now, caller=caller, workspace_id=row.id, detail=detail)
            return ShareRecord(workspace_id=row.id, user_email=None, role=role, team_id=found.id, team_name=found.name)

    async def unshare_with_team(self, reference: int | str, team: int | str, *, caller: Caller | None = None) -> None:
        """Idempotent. Whoever came in by this team alone is cut. The owner need not be in the team (any more)."""
        async with self._store.write() as session:
            row, _ = await _load_owned(session, reference, caller)
            team_id = (await load_team(session, team, None)).id if caller is None else int(team)
            share = await session.get(TeamShareRow, (row.id, team_id))
            if share is None:
                return
            now = self._clock.now()
            await session.delete(share)
            await session.flush()
            await access.revoke_unentitled(session, now, SessionRow.workspace_id == row.id)
            changes.append_change(session, changes.TEAM_UNSHARED, now, workspace_id=row.id)
            detail = {"team": team_id}
            await audit.note(session, audit.UNSHARED, now, caller=caller, workspace_id=row.id, detail=detail)

    async def list_shares(self, reference: int | str, *, caller: Caller | None = None) -> list[ShareRecord]:
        """People by address, then teams by name. Its owner sees all; others see by which shares they came."""
        async with self._store.read() as session:
            row, record = await _load_seen(session, reference, caller)
            people = (
                select(UserRow.email, ShareRow.role)
                .join(UserRow, UserRow.id == ShareRow.user_id)
                .where(ShareRow.workspace_id == row.id)
            )
            teams = (
                select(TeamRow.id, TeamRow.name, TeamShareRow.role)
                .join(TeamRow, TeamRow.id == TeamShareRow.team_id)
                .where(TeamShareRow.workspace_id == row.id)
                .order_by(TeamRow.name)
            )
            waiting: list[tuple[str, str]] = []
            if caller is not None and record.role != ROLE_OWNER:
                people = people.where(ShareRow.user_id == caller.user_id)
                teams = teams.where(access.is_member(TeamRow.id, caller.user_id))
            else:
                waiting = await invitations.list_waiting(session, workspace_id=row.id)
            named = sorted([(email, role) for email, role in (await session.execute(people)).all()] + waiting)
            found = [ShareRecord(workspace_id=row.id, user_email=email, role=role) for email, role in named]
            for team_id, name, role in (await session.execute(teams)).all():
                found.append(
                    ShareRecord(workspace_id=row.id, user_email=None, role=role, team_id=team_id, team_name=name)
                )
            return found


async def _load_owned(
    session: AsyncSession, reference: int | str, caller: Caller | None
) -> tuple[WorkspaceRow, WorkspaceRecord]:
    if caller is None:
        return await access.load_named(session, reference)
    return await access.load_owned(session, int(reference), caller, SCOPE_MANAGE)


async def _load_seen(
    session: AsyncSession, reference: int | str, caller: Caller | None
) -> tuple[WorkspaceRow, WorkspaceRecord]:
    if caller is None:
        return await access.load_named(session, reference)
    return await access.load_visible(session, int(reference), caller, SCOPE_READ)
