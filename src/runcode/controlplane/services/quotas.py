"""How many workspaces a person may own, and have running at once.

Owns: the server's limits, each person's own, and the look at both inside the
transaction that would add one. What a guest starts counts on the owner.

Never: stops anything. A limit that is lowered below what somebody has keeps them
from adding more. The operator on this machine is held by none.

Guarantee: two calls at the same moment cannot both take the last place: the
owner's row is locked (Postgres; SQLite has one writer anyway) before the count.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.clock import Clock
from runcode.controlplane.records import Caller, QuotaRecord, UserRecord
from runcode.controlplane.services import access, audit, inputs
from runcode.controlplane.services.users import as_record, load_user
from runcode.controlplane.states import RUNNING, SCOPE_MANAGE, SCOPE_READ
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import UserRow, WorkspaceRow
from runcode.core.errors import RunCodeError


@dataclass(frozen=True)
class QuotaPolicy:
    """For everybody without limits of their own; None: no limit."""

    workspaces_max: int | None = None
    running_max: int | None = None


class Quotas:
    def __init__(self, store: Store, clock: Clock, policy: QuotaPolicy) -> None:
        self._store = store
        self._clock = clock
        self._policy = policy

    async def load_quota(self, email: str, *, caller: Caller | None = None) -> QuotaRecord:
        """One's own, or anybody's to an admin. Raises `not_found`."""
        if caller is not None and email != caller.email:
            access.require_admin(caller, SCOPE_READ)
        access.require_scope(caller, SCOPE_READ)
        async with self._store.read() as session:
            user = await load_user(session, email)
            owned, running = await _count(session, user.id)
        return QuotaRecord(
            workspaces=owned,
            workspaces_max=_bound(user.workspaces_max, self._policy.workspaces_max),
            running=running,
            running_max=_bound(user.running_max, self._policy.running_max),
        )

    async def set_quota(
        self,
        email: str,
        *,
        workspaces_max: object = inputs.UNSET,
        running_max: object = inputs.UNSET,
        caller: Caller | None = None,
    ) -> UserRecord:
        """Limits of their own for one person; None: the server's again. Nothing that runs is stopped."""
        access.require_admin(caller, SCOPE_MANAGE)
        given = {"workspaces_max": workspaces_max, "running_max": running_max}
        limits = {
            name: inputs.parse_limit(value, what=name) for name, value in given.items() if value is not inputs.UNSET
        }
        async with self._store.write() as session:
            user = await load_user(session, email)
            if any(getattr(user, name) != limit for name, limit in limits.items()):
                for name, limit in limits.items():
                    setattr(user, name, limit)
                now, detail = self._clock.now(), {"user": user.email, **limits}
                await audit.note(session, audit.USER_CHANGED, now, caller=caller, user_id=user.id, detail=detail)
            return as_record(user)


async def require_room_to_own(session: AsyncSession, policy: QuotaPolicy, owner_id: int) -> None:
    """Raises `quota_exceeded` when this person owns as many as they may."""
    owner = await _lock(session, owner_id)
    limit = _bound(owner.workspaces_max, policy.workspaces_max)
    if limit is None:
        return
    owned, _ = await _count(session, owner_id)
    if owned >= limit:
        raise RunCodeError(
            "quota_exceeded",
            f"you own {owned} workspaces, and your limit is {limit}",
            resolution="delete one that you no longer need, or ask your operator to raise the limit",
        )


async def require_room_to_run(session: AsyncSession, policy: QuotaPolicy, owner_id: int, *, own: bool) -> None:
    """Raises `start_failed` when the owner has as many running as they may. `own`: the owner is who asks."""
    owner = await _lock(session, owner_id)
    limit = _bound(owner.running_max, policy.running_max)
    if limit is None:
        return
    _, running = await _count(session, owner_id)
    if running >= limit:
        whose = "you have" if own else f"its owner, {owner.email}, has"
        resolution = "stop one of them first, or ask your operator to raise the limit"
        if not own:
            resolution = f"ask {owner.email} to stop another one first"
        raise RunCodeError(
            "start_failed", f"{whose} {running} workspaces running, and the limit is {limit}", resolution=resolution
        )


async def _lock(session: AsyncSession, user_id: int) -> UserRow:
    owner = await session.scalar(select(UserRow).where(UserRow.id == user_id).with_for_update())
    assert owner is not None
    return owner


async def _count(session: AsyncSession, owner_id: int) -> tuple[int, int]:
    """(owned, wanted to run)."""
    running = func.count(WorkspaceRow.id).filter(WorkspaceRow.desired_state == RUNNING)
    query = select(func.count(WorkspaceRow.id), running).where(
        WorkspaceRow.owner_id == owner_id, WorkspaceRow.deleted_at.is_(None)
    )
    found = (await session.execute(query)).one()
    return int(found[0]), int(found[1])


def _bound(own: int | None, default: int | None) -> int | None:
    return default if own is None else own
