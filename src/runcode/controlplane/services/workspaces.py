"""Workspaces: made, listed, shared, and asked to start, stop or go.

Owns: what is wanted of a workspace (`desired_state`) and who shares it. Carrying
it out is the reconciler's; it hears of it through the change feed.

`caller` is the API's; None means the operator on this machine, who may do all.
An owner may do everything; `manage` may start and stop; `use` may connect and
start, but not stop what others may be working on.

Guarantee: whatever takes access away (stop, delete, unshare) appends its change
and ends the sessions concerned in the same transaction.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane import changes
from runcode.controlplane.clock import Clock
from runcode.controlplane.records import STANDARD_SIZE, Caller, ShareRecord, WorkspaceRecord
from runcode.controlplane.services import access, audit, inputs
from runcode.controlplane.services.certificates import make_host_key
from runcode.controlplane.services.users import load_user
from runcode.controlplane.services.withdrawals import revoke_sessions
from runcode.controlplane.states import (
    DELETED,
    ROLE_USE,
    RUNNING,
    SCOPE_CONNECT,
    SCOPE_MANAGE,
    SCOPE_READ,
    SHARE_ROLES,
    STOPPED,
)
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import HostKeyRow, SessionRow, ShareRow, UserRow, WorkspaceRow
from runcode.core.errors import RunCodeError
from runcode.core.names import require_new_title


class Workspaces:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create_workspace(
        self, title: str, owner_email: str, *, runtime: str = "local", custom_title: str = ""
    ) -> WorkspaceRecord:
        """A stopped workspace with its pinned host key. Raises `bad_request`, `not_found`, or `conflict`."""
        title = require_new_title(title)
        runtime = inputs.parse_runtime_name(runtime)
        custom_title = inputs.parse_label(
            custom_title, what="custom title", limit=inputs.CUSTOM_TITLE_MAX, may_be_empty=True
        )
        host_key = make_host_key()
        async with self._store.write() as session:
            owner = await load_user(session, owner_email)
            # Two titles that differ by case only would be one host alias, and one folder on some machines.
            taken = select(WorkspaceRow.id).where(
                func.lower(WorkspaceRow.title) == title.lower(), WorkspaceRow.deleted_at.is_(None)
            )
            if await session.scalar(taken) is not None:
                raise RunCodeError(
                    "conflict", f"there is a workspace {title!r} already", resolution="choose another title"
                )
            now = self._clock.now()
            row = WorkspaceRow(
                title=title,
                custom_title=custom_title,
                owner_id=owner.id,
                runtime=runtime,
                size=STANDARD_SIZE,
                host_public_key=host_key.public,
                desired_state=STOPPED,
                observed_state=STOPPED,
                observed_at=now,
                failures=0,
                checkpoints=[],
                created_at=now,
            )
            session.add(row)
            await session.flush()
            session.add(HostKeyRow(workspace_id=row.id, private_key=host_key.private))
            changes.append_change(session, changes.CREATED, now, workspace_id=row.id)
            detail = {"title": title, "runtime": runtime, "owner": owner.email}
            await audit.note(session, audit.WORKSPACE_CREATED, now, workspace_id=row.id, detail=detail)
            return access.as_record(row, owner.email, None)

    async def list_all(self) -> list[WorkspaceRecord]:
        async with self._store.read() as session:
            query = (
                select(WorkspaceRow, UserRow.email)
                .join(UserRow, UserRow.id == WorkspaceRow.owner_id)
                .where(WorkspaceRow.deleted_at.is_(None))
                .order_by(WorkspaceRow.id)
            )
            return [access.as_record(row, email, None) for row, email in (await session.execute(query)).all()]

    async def list_owned(self, caller: Caller) -> list[WorkspaceRecord]:
        return await self._list_for(caller, WorkspaceRow.owner_id == caller.user_id)

    async def list_shared(self, caller: Caller) -> list[WorkspaceRecord]:
        """What others share with the caller, directly or through a team."""
        return await self._list_for(caller, access.shared_with(caller.user_id), WorkspaceRow.owner_id != caller.user_id)

    async def _list_for(self, caller: Caller, *which: ColumnElement[bool]) -> list[WorkspaceRecord]:
        access.require_scope(caller, SCOPE_READ)
        query = access.select_for_user(caller.user_id).where(*which).order_by(WorkspaceRow.id)
        within = access.within_token(caller)
        async with self._store.read() as session:
            found = await session.execute(query if within is None else query.where(within))
            return [
                access.as_record(row, email, access.role_of(row, caller.user_id, rank))
                for row, email, rank in found.all()
            ]

    async def load_workspace(self, reference: int | str, *, caller: Caller | None = None) -> WorkspaceRecord:
        async with self._store.read() as session:
            return (await self._load(session, reference, caller, SCOPE_READ))[1]

    async def request_start(self, reference: int | str, *, caller: Caller | None = None) -> WorkspaceRecord:
        """Idempotent; a start that failed is tried again at once. Raises `start_failed` when refused."""
        async with self._store.write() as session:
            row, record = await self._load(session, reference, caller, SCOPE_CONNECT)
            if row.desired_state == DELETED:
                raise RunCodeError("start_failed", f"{row.title} is being deleted")
            if row.desired_state != RUNNING or row.failures or row.retry_at is not None:
                row.desired_state = RUNNING
                _forget_failures(row)
                now = self._clock.now()
                changes.append_change(session, changes.START_REQUESTED, now, workspace_id=row.id)
                await audit.note(session, audit.WORKSPACE_START, now, caller=caller, workspace_id=row.id)
            return access.as_record(row, record.owner_email, record.role)

    async def request_stop(self, reference: int | str, *, caller: Caller | None = None) -> WorkspaceRecord:
        """Idempotent; storage stays. Live connections are cut. Raises `stop_failed` when refused."""
        async with self._store.write() as session:
            row, record = await self._load(session, reference, caller)
            if record.role == ROLE_USE:
                raise RunCodeError(
                    "stop_failed",
                    f"{row.title} is shared with you to use, not to stop",
                    resolution=f"ask its owner, {record.owner_email}",
                )
            if row.desired_state == DELETED:
                raise RunCodeError("stop_failed", f"{row.title} is being deleted")
            if row.desired_state != STOPPED or row.failures or row.retry_at is not None:
                row.desired_state = STOPPED
                _forget_failures(row)
                now = self._clock.now()
                changes.append_change(session, changes.STOP_REQUESTED, now, workspace_id=row.id)
                await audit.note(session, audit.WORKSPACE_STOP, now, caller=caller, workspace_id=row.id)
            return access.as_record(row, record.owner_email, record.role)

    async def delete_workspace(self, reference: int | str) -> WorkspaceRecord:
        """Idempotent while it lasts; the title is free again once the runtime has destroyed everything."""
        async with self._store.write() as session:
            row, record = await self._load(session, reference, None)
            if row.desired_state != DELETED or row.failures or row.retry_at is not None:
                now = self._clock.now()
                row.desired_state = DELETED
                _forget_failures(row)
                await revoke_sessions(session, now, SessionRow.workspace_id == row.id)
                changes.append_change(session, changes.DELETE_REQUESTED, now, workspace_id=row.id)
                await audit.note(session, audit.WORKSPACE_DELETE, now, workspace_id=row.id)
            return access.as_record(row, record.owner_email, None)

    async def share(self, reference: int | str, email: str, role: str = ROLE_USE) -> ShareRecord:
        """Let a person in, or change the role. Idempotent."""
        if role not in SHARE_ROLES:
            raise RunCodeError("bad_request", "that is not a share role", resolution="use `use` or `manage`")
        async with self._store.write() as session:
            row, _ = await self._load(session, reference, None)
            user = await load_user(session, email)
            if user.id == row.owner_id:
                raise RunCodeError(
                    "bad_request", f"{user.email} owns {row.title} already", resolution="share it with somebody else"
                )
            share = await session.get(ShareRow, (row.id, user.id))
            now = self._clock.now()
            if share is None:
                session.add(ShareRow(workspace_id=row.id, user_id=user.id, role=role, created_at=now))
                changes.append_change(session, changes.SHARED, now, workspace_id=row.id, user_id=user.id)
            else:
                share.role = role
            return ShareRecord(workspace_id=row.id, user_email=user.email, role=role)

    async def unshare(self, reference: int | str, email: str) -> None:
        """Idempotent. The person's sessions there end, and live connections are cut."""
        async with self._store.write() as session:
            row, _ = await self._load(session, reference, None)
            user = await load_user(session, email)
            if await session.get(ShareRow, (row.id, user.id)) is None:
                return
            now = self._clock.now()
            await session.execute(delete(ShareRow).where(ShareRow.workspace_id == row.id, ShareRow.user_id == user.id))
            await revoke_sessions(session, now, SessionRow.workspace_id == row.id, SessionRow.user_id == user.id)
            changes.append_change(session, changes.UNSHARED, now, workspace_id=row.id, user_id=user.id)

    async def list_shares(self, reference: int | str) -> list[ShareRecord]:
        async with self._store.read() as session:
            row, _ = await self._load(session, reference, None)
            query = (
                select(ShareRow, UserRow.email)
                .join(UserRow, UserRow.id == ShareRow.user_id)
                .where(ShareRow.workspace_id == row.id)
                .order_by(UserRow.email)
            )
            return [
                ShareRecord(workspace_id=row.id, user_email=email, role=share.role)
                for share, email in (await session.execute(query)).all()
            ]

    async def _load(
        self, session: AsyncSession, reference: int | str, caller: Caller | None, scope: str = SCOPE_MANAGE
    ) -> tuple[WorkspaceRow, WorkspaceRecord]:
        if caller is None:
            return await access.load_named(session, reference)
        return await access.load_visible(session, int(reference), caller, scope)


def _forget_failures(row: WorkspaceRow) -> None:
    row.failures = 0
    row.retry_at = None
    row.reason = None
