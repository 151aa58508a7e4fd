"""Workspaces: made, listed, changed, and asked to start, stop or go.

Owns: what is wanted of a workspace (`desired_state`, size, idle time, names).
Carrying it out is the reconciler's; it hears of it through the change feed. Who
else may use one is `shares`'.

`caller` is the API's; None means the operator on this machine, who may do all.
An owner may do everything; `manage` may start and stop; `use` may connect and
start, but not stop what others may be working on.

Guarantee: whatever takes access away (stop, delete) appends its change and ends
the sessions concerned in the same transaction; so does the look at a quota, and
the record of who did it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane import changes
from runcode.controlplane.clock import Clock
from runcode.controlplane.records import Caller, ShareRecord, WorkspaceRecord
from runcode.controlplane.services import access, audit, inputs, invitations, titles
from runcode.controlplane.services.certificates import make_host_key
from runcode.controlplane.services.offers import RuntimeOffers
from runcode.controlplane.services.quotas import QuotaPolicy, require_room_to_own, require_room_to_run
from runcode.controlplane.services.shares import Shares
from runcode.controlplane.services.users import load_user
from runcode.controlplane.services.withdrawals import revoke_sessions
from runcode.controlplane.states import (
    DELETED,
    ROLE_OWNER,
    ROLE_USE,
    RUNNING,
    SCOPE_CONNECT,
    SCOPE_MANAGE,
    SCOPE_READ,
    STOPPED,
    STOPPED_BY_OPERATOR,
    STOPPED_BY_PERSON,
)
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import HostKeyRow, SessionRow, UserRow, WorkspaceRow
from runcode.core.errors import RunCodeError
from runcode.core.names import require_new_title
from runcode.runtimes.base import DEFAULT_SIZES, STANDARD_SIZE, SizeLimits

DEFAULT_RUNTIME: Final = "local"
_TITLE_ATTEMPTS: Final = 20


@dataclass(frozen=True)
class WorkspacePolicy:
    """What this server offers and allows. `idle_stop_after_s` None: workspaces without a time of their own run on."""

    sizes: Mapping[str, SizeLimits] = field(default_factory=lambda: DEFAULT_SIZES)
    quotas: QuotaPolicy = field(default_factory=QuotaPolicy)
    idle_stop_after_s: int | None = None


class Workspaces:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        shares: Shares,
        offers: RuntimeOffers | None = None,
        policy: WorkspacePolicy | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._shares = shares
        self._offers = offers or RuntimeOffers()
        self.policy = policy or WorkspacePolicy()

    async def create_workspace(
        self,
        title: str | None,
        owner_email: str | None = None,
        *,
        runtime: str | None = None,
        custom_title: str = "",
        size: str | None = None,
        idle_stop_after_s: object = None,
        caller: Caller | None = None,
    ) -> WorkspaceRecord:
        """A stopped workspace with its pinned host key; without a title it gets one. A caller makes their own.

        Raises `bad_request`, `not_found`, `conflict` (title taken), `quota_exceeded` or `forbidden`.
        """
        access.require_scope(caller, SCOPE_MANAGE)
        access.require_whole_account(caller)
        title = None if title is None else require_new_title(title)
        runtime = self._offers.require(inputs.parse_runtime_name(runtime or DEFAULT_RUNTIME))
        custom_title = _parse_custom_title(custom_title)
        size = inputs.parse_size(size or STANDARD_SIZE, self.policy.sizes)
        idle_s = inputs.parse_idle_stop(idle_stop_after_s)
        host_key = make_host_key()
        async with self._store.write() as session:
            owner = await load_user(session, (owner_email or "") if caller is None else caller.email)
            if caller is not None:
                await require_room_to_own(session, self.policy.quotas, owner.id)
            now = self._clock.now()
            row = WorkspaceRow(
                title=await _choose_title(session, title),
                custom_title=custom_title,
                owner_id=owner.id,
                runtime=runtime,
                size=size,
                idle_stop_after_s=idle_s,
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
            detail = {"title": row.title, "runtime": runtime, "size": size, "owner": owner.email}
            await audit.note(session, audit.WORKSPACE_CREATED, now, caller=caller, workspace_id=row.id, detail=detail)
            return access.as_record(row, owner.email, None if caller is None else ROLE_OWNER)

    async def list_all(self, *, caller: Caller | None = None) -> list[WorkspaceRecord]:
        """Everybody's, for admins and the operator."""
        access.require_admin(caller, SCOPE_READ)
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
            return (await _load(session, reference, caller, SCOPE_READ))[1]

    async def update_workspace(
        self,
        reference: int | str,
        *,
        custom_title: str | None = None,
        size: str | None = None,
        idle_stop_after_s: object = inputs.UNSET,
        caller: Caller | None = None,
    ) -> WorkspaceRecord:
        """Change what is given; the owner only. A box that runs has a new size from its next start on."""
        title = None if custom_title is None else _parse_custom_title(custom_title)
        wanted_size = None if size is None else inputs.parse_size(size, self.policy.sizes)
        idle_s = None if idle_stop_after_s is inputs.UNSET else inputs.parse_idle_stop(idle_stop_after_s)
        async with self._store.write() as session:
            row, record = await _load_owned(session, reference, caller)
            detail: dict[str, Any] = {}
            if title is not None and title != row.custom_title:
                row.custom_title = detail["custom_title"] = title
            if wanted_size is not None and wanted_size != row.size:
                row.size = detail["size"] = wanted_size
            if idle_stop_after_s is not inputs.UNSET and idle_s != row.idle_stop_after_s:
                row.idle_stop_after_s = detail["idle_stop_after_s"] = idle_s
            if detail:
                now = self._clock.now()
                await audit.note(
                    session, audit.WORKSPACE_CHANGED, now, caller=caller, workspace_id=row.id, detail=detail
                )
            return access.as_record(row, record.owner_email, record.role)

    async def request_start(self, reference: int | str, *, caller: Caller | None = None) -> WorkspaceRecord:
        """Idempotent; a start that failed is tried again at once. Raises `start_failed` when refused."""
        async with self._store.write() as session:
            row, record = await _load(session, reference, caller, SCOPE_CONNECT)
            if row.desired_state == DELETED:
                raise RunCodeError("start_failed", f"{row.title} is being deleted")
            if caller is not None and row.desired_state != RUNNING:
                own = row.owner_id == caller.user_id
                await require_room_to_run(session, self.policy.quotas, row.owner_id, own=own)
            if row.desired_state != RUNNING or row.failures or row.retry_at is not None:
                row.desired_state = RUNNING
                row.stop_cause = row.stop_note = None
                forget_failures(row)
                now = self._clock.now()
                changes.append_change(session, changes.START_REQUESTED, now, workspace_id=row.id)
                await audit.note(session, audit.WORKSPACE_START, now, caller=caller, workspace_id=row.id)
            return access.as_record(row, record.owner_email, record.role)

    async def request_stop(self, reference: int | str, *, caller: Caller | None = None) -> WorkspaceRecord:
        """Idempotent; storage stays. Live connections are cut. Raises `stop_failed` when refused."""
        async with self._store.write() as session:
            row, record = await _load(session, reference, caller, SCOPE_MANAGE)
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
                row.stop_cause = STOPPED_BY_OPERATOR if caller is None else STOPPED_BY_PERSON
                row.stop_note = None if caller is None else caller.email
                forget_failures(row)
                now = self._clock.now()
                changes.append_change(session, changes.STOP_REQUESTED, now, workspace_id=row.id)
                await audit.note(session, audit.WORKSPACE_STOP, now, caller=caller, workspace_id=row.id)
            return access.as_record(row, record.owner_email, record.role)

    async def delete_workspace(
        self, reference: int | str, *, confirm: object = None, caller: Caller | None = None
    ) -> WorkspaceRecord:
        """The owner only, who repeats the title. Idempotent while it lasts; then the title is free again.

        Storage goes with it. Raises `bad_request` when `confirm` is not the title (the operator need not give it).
        """
        async with self._store.write() as session:
            row, record = await _load_owned(session, reference, caller)
            if confirm != row.title and (caller is not None or confirm is not None):
                raise RunCodeError(
                    "bad_request",
                    "the title was not repeated, so nothing was deleted",
                    resolution=f"to delete it with all its files, confirm with its title: {row.title}",
                )
            if row.desired_state != DELETED or row.failures or row.retry_at is not None:
                now = self._clock.now()
                row.desired_state = DELETED
                forget_failures(row)
                await invitations.withdraw(session, workspace_id=row.id)
                await revoke_sessions(session, now, SessionRow.workspace_id == row.id)
                changes.append_change(session, changes.DELETE_REQUESTED, now, workspace_id=row.id)
                detail = {"title": row.title}
                await audit.note(
                    session, audit.WORKSPACE_DELETE, now, caller=caller, workspace_id=row.id, detail=detail
                )
            return access.as_record(row, record.owner_email, record.role)

    async def share(
        self, reference: int | str, email: str, role: str = ROLE_USE, *, caller: Caller | None = None
    ) -> ShareRecord:
        """As `Shares.share`."""
        return await self._shares.share(reference, email, role, caller=caller)

    async def unshare(self, reference: int | str, email: str, *, caller: Caller | None = None) -> None:
        """As `Shares.unshare`."""
        await self._shares.unshare(reference, email, caller=caller)

    async def list_shares(self, reference: int | str, *, caller: Caller | None = None) -> list[ShareRecord]:
        """As `Shares.list_shares`."""
        return await self._shares.list_shares(reference, caller=caller)


def forget_failures(row: WorkspaceRow) -> None:
    row.failures = 0
    row.retry_at = None
    row.reason = None


def _parse_custom_title(raw_title: str) -> str:
    return inputs.parse_label(raw_title, what="custom title", limit=inputs.CUSTOM_TITLE_MAX, may_be_empty=True)


async def _choose_title(session: AsyncSession, wanted: str | None) -> str:
    """The title that was asked for, or a new one. Raises `conflict` when it is taken."""
    for _ in range(_TITLE_ATTEMPTS):
        title = wanted or titles.make_title()
        # Two titles that differ by case only would be one host alias, and one folder on some machines.
        taken = select(WorkspaceRow.id).where(
            func.lower(WorkspaceRow.title) == title.lower(), WorkspaceRow.deleted_at.is_(None)
        )
        if await session.scalar(taken) is None:
            return title
        if wanted is not None:
            break
    raise RunCodeError("conflict", f"there is a workspace {title!r} already", resolution="choose another title")


async def _load(
    session: AsyncSession, reference: int | str, caller: Caller | None, scope: str
) -> tuple[WorkspaceRow, WorkspaceRecord]:
    if caller is None:
        return await access.load_named(session, reference)
    return await access.load_visible(session, int(reference), caller, scope)


async def _load_owned(
    session: AsyncSession, reference: int | str, caller: Caller | None
) -> tuple[WorkspaceRow, WorkspaceRecord]:
    if caller is None:
        return await access.load_named(session, reference)
    return await access.load_owned(session, int(reference), caller)
