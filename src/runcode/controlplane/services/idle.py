"""When a workspace is idle, and the two writes that follow: it was used, it is to be stopped.

Owns: the rule (`IdleCount`, pure), `active_at`, and stopping for idleness. The rounds
that ask are `idle_watch`'s.

Idle is a workspace that runs while, for as long as its idle time, no connection to it
carried data, opened or closed a channel, and the runtime saw no job in its box.
Connections that are merely held (masters, editors) keep nothing alive.

Threat: work that is lost because it was taken for idleness.
Guarantee: the idle time is counted by this process's own monotonic clock, from when
it saw the last sign of use: a clock that jumps, a server that was down, or a report
that came late only make the count begin anew. The stop is written only if nothing
has changed since it was decided; it says why, in the same transaction.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import and_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane import changes
from runcode.controlplane.clock import Clock
from runcode.controlplane.services import audit
from runcode.controlplane.states import RUNNING, STOPPED, STOPPED_IDLE
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import WorkspaceRow

# What a count is about: when the box came up, and when it was last known to be in use.
Mark = tuple[datetime.datetime, datetime.datetime | None]
# A sign of use sooner after the last one than this is not written down.
COARSE = datetime.timedelta(seconds=60)


@dataclass(frozen=True)
class IdleCandidate:
    """A workspace that runs and has an idle time."""

    workspace_id: int
    runtime: str
    idle_stop_after_s: int
    mark: Mark


class IdleCount:
    """How long each workspace has been without a sign of use, by a monotonic clock. Pure but for its memory."""

    def __init__(self) -> None:
        self._since: dict[int, tuple[Mark, float]] = {}

    def look(self, candidate: IdleCandidate, *, busy: bool, now_s: float) -> bool:
        """Is it idle for as long as it may? `busy`: something was seen just now."""
        mark, since_s = self._since.get(candidate.workspace_id, (None, now_s))
        if busy or mark != candidate.mark:
            self._since[candidate.workspace_id] = (candidate.mark, now_s)
            return False
        return now_s - since_s >= candidate.idle_stop_after_s

    def forget_all_but(self, workspace_ids: Collection[int]) -> None:
        for workspace_id in self._since.keys() - set(workspace_ids):
            del self._since[workspace_id]


class IdleStops:
    def __init__(self, store: Store, clock: Clock, *, default_s: int | None) -> None:
        """`default_s`: the idle time of workspaces that have none of their own; None: they run on."""
        self._store = store
        self._clock = clock
        self._default_s = default_s

    async def list_candidates(self) -> list[IdleCandidate]:
        own = WorkspaceRow.idle_stop_after_s > 0
        which = own if self._default_s is None else or_(own, WorkspaceRow.idle_stop_after_s.is_(None))
        query = select(WorkspaceRow).where(
            WorkspaceRow.deleted_at.is_(None),
            WorkspaceRow.desired_state == RUNNING,
            WorkspaceRow.observed_state == RUNNING,
            WorkspaceRow.activity.is_(None),
            which,
        )
        async with self._store.read() as session:
            return [
                IdleCandidate(
                    workspace_id=row.id,
                    runtime=row.runtime,
                    idle_stop_after_s=row.idle_stop_after_s or self._default_s or 0,
                    mark=(row.observed_at, row.active_at),
                )
                for row in await session.scalars(query.order_by(WorkspaceRow.id))
            ]

    async def note_use(self, workspace_ids: Collection[int]) -> None:
        """They are in use now. Written for those only of which that was not known for the last minute."""
        if workspace_ids:
            async with self._store.write() as session:
                now = self._clock.now()
                await write_use(session, dict.fromkeys(workspace_ids, now), now)

    async def stop(self, candidate: IdleCandidate) -> bool:
        """Ask for it to be stopped, unless it has been used, stopped or started since; True when it was asked for."""
        async with self._store.write() as session:
            row = await session.get(WorkspaceRow, candidate.workspace_id)
            if (
                row is None
                or row.deleted_at is not None
                or (row.desired_state, row.observed_state, row.activity) != (RUNNING, RUNNING, None)
                or (row.observed_at, row.active_at) != candidate.mark
            ):
                return False
            row.desired_state = STOPPED
            row.stop_cause, row.stop_note = STOPPED_IDLE, str(candidate.idle_stop_after_s)
            now = self._clock.now()
            changes.append_change(session, changes.STOP_REQUESTED, now, workspace_id=row.id)
            detail: audit.Detail = {"by": STOPPED_IDLE, "idle_s": candidate.idle_stop_after_s}
            await audit.note(session, audit.WORKSPACE_STOP, now, workspace_id=row.id, detail=detail)
            return True


async def write_use(session: AsyncSession, used_at: Mapping[int, datetime.datetime], now: datetime.datetime) -> None:
    """Part of a caller's transaction: workspaces and when each was in use, as a gateway or the runtime saw it.

    A moment "in the future" is of a clock that is ahead, and counts as now; one on record that is in the
    future is of before the clock went back.
    """
    for workspace_id, moment in used_at.items():
        at = min(moment, now)
        older = or_(
            WorkspaceRow.active_at.is_(None),
            WorkspaceRow.active_at < at - COARSE,
            WorkspaceRow.active_at > now + COARSE,
        )
        await session.execute(
            update(WorkspaceRow)
            .where(and_(WorkspaceRow.id == workspace_id, older))
            .values(active_at=at)
            .execution_options(synchronize_session=False)
        )
