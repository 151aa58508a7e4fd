"""For an operator whose workspace is stuck: what the reconciler has written down, and a new beginning.

Owns: reading leases and checkpoints, and forgetting what holds the next attempt back.
Called by the operator's verbs. Carrying out is the reconciler's, as ever.

Guarantee: a lease that a living reconciler holds is not taken from it: it ends by
itself, and its holder's work is whole. Forgetting where a workspace lives is asked
for by name only, since its storage is then out of reach.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane import changes
from runcode.controlplane.clock import Clock
from runcode.controlplane.records import WorkspaceRecord
from runcode.controlplane.services import access
from runcode.controlplane.states import STOPPED
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import SessionRow, UserRow, WorkspaceRow
from runcode.core.errors import RunCodeError


@dataclass(frozen=True)
class WorkspaceInside:
    """`place` is the data folder whose machine holds its storage; `lease_owner` begins with its holder's."""

    record: WorkspaceRecord
    observed_at: datetime.datetime
    retry_at: datetime.datetime | None
    place: str | None
    lease_owner: str | None
    lease_expires_at: datetime.datetime | None
    checkpoints: Sequence[dict[str, Any]]
    live_sessions: int


class Repairs:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def load_inside(self, reference: int | str) -> WorkspaceInside:
        """By id or title. Raises `not_found`."""
        async with self._store.read() as session:
            return await self._look(session, *await access.load_named(session, reference))

    async def list_leased(self) -> list[WorkspaceInside]:
        query = (
            select(WorkspaceRow, UserRow.email)
            .join(UserRow, UserRow.id == WorkspaceRow.owner_id)
            .where(WorkspaceRow.lease_owner.is_not(None))
            .order_by(WorkspaceRow.id)
        )
        async with self._store.read() as session:
            found = (await session.execute(query)).all()
            return [await self._look(session, row, access.as_record(row, email, None)) for row, email in found]

    async def retry(self, reference: int | str, *, elsewhere: bool = False) -> WorkspaceInside:
        """Forget failures and back-off, so that it is looked at now; `elsewhere`: also where it lives.

        Raises `busy` for `elsewhere` while a reconciler holds the lease.
        """
        now = self._clock.now()
        async with self._store.write() as session:
            row, _ = await access.load_named(session, reference)
            held = row.lease_owner is not None and row.lease_expires_at is not None and row.lease_expires_at > now
            if elsewhere and held:
                raise RunCodeError(
                    "busy",
                    f"{row.title} is being worked on by {row.lease_owner} until {row.lease_expires_at:%H:%M:%S} UTC",
                    resolution="wait until then; a server that lives renews its lease",
                )
            row.failures, row.retry_at, row.reason = 0, None, None
            if row.lease_owner is not None and not held:
                row.lease_owner = row.lease_expires_at = None
            if elsewhere:
                if row.observed_state != STOPPED:
                    changes.append_change(session, changes.WORKSPACE_DOWN, now, workspace_id=row.id)
                row.place = None
                row.observed_state, row.observed_at, row.activity, row.checkpoints = STOPPED, now, None, []
                row.endpoint_socket_path = row.endpoint_host = row.endpoint_port = None
            changes.append_change(session, changes.START_REQUESTED, now, workspace_id=row.id)
            await session.flush()
            return await self._look(session, *await access.load_named(session, row.id))

    async def _look(self, session: AsyncSession, row: WorkspaceRow, record: WorkspaceRecord) -> WorkspaceInside:
        live = select(func.count(SessionRow.id)).where(
            SessionRow.workspace_id == row.id,
            SessionRow.revoked_at.is_(None),
            SessionRow.expires_at > self._clock.now(),
        )
        return WorkspaceInside(
            record=record,
            observed_at=row.observed_at,
            retry_at=row.retry_at,
            place=row.place,
            lease_owner=row.lease_owner,
            lease_expires_at=row.lease_expires_at,
            checkpoints=tuple(row.checkpoints),
            live_sessions=await session.scalar(live) or 0,
        )
