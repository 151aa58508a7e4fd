"""How long the database remembers, and the slow hand that forgets the rest.

Owns: `RetentionPolicy`, and the task that keeps to it. Started by the server
(never by an operator's verb), beside everything else: each step is one short
transaction, with a pause after it, so that no caller waits for more than one.

Before it forgets, it notes which sessions have expired (`expiries`).

What is removed: events beyond a count or an age, oldest first, and signed for (`audit
verify` goes on from there); sessions some time after their end, unless a connection of
theirs is known to be open (a live connection whose session is gone would be cut);
workspaces long deleted; rows of the change feed. Never: anything that still gives or
bounds a right.

SQLite uses the freed pages for what comes next: the file stays as large as the most
it ever had to hold.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from runcode.controlplane import changes
from runcode.controlplane.clock import Clock
from runcode.controlplane.services import audit_chain
from runcode.controlplane.services.audit_statements import NO_LINE, PRUNED, AuditSigner, Statement, render_now
from runcode.controlplane.services.events import Events
from runcode.controlplane.services.expiries import note_expired
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import (
    ChangeRow,
    EventRow,
    HostKeyRow,
    InvitationRow,
    SessionRow,
    ShareRow,
    TeamShareRow,
    WorkspaceRow,
)
from runcode.core.errors import RunCodeError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetentionPolicy:
    """`ended_sessions_for` must exceed the gateways' maximum age of a connection (12 h).

    Events: some 0.5 KB each as agents make them, 12 KB at most.
    """

    events_max: int = 100_000
    events_for: datetime.timedelta = datetime.timedelta(days=90)
    ended_sessions_for: datetime.timedelta = datetime.timedelta(days=1)
    deleted_workspaces_for: datetime.timedelta = datetime.timedelta(days=90)
    changes_for: datetime.timedelta = changes.KEPT_FOR
    every_s: float = 60.0
    rows_per_step: int = 500
    pause_s: float = 0.02


class Retention:
    def __init__(
        self, store: Store, clock: Clock, events: Events, policy: RetentionPolicy, signer: AuditSigner
    ) -> None:
        self._store = store
        self._clock = clock
        self._events = events
        self._policy = policy
        self._signer = signer
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="retention")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def prune(self) -> int:
        """Remove all that is too old or too many; returns how many rows. Raises RunCodeError."""
        now, policy, removed = self._clock.now(), self._policy, 0
        await self._note_expired(now)
        last_event = await self._find_last_event_to_go(now)
        if last_event is not None:
            removed += await self._prune_events(last_event)
        ended_before = now - policy.ended_sessions_for
        ended: list[ColumnElement[bool]] = [
            or_(SessionRow.revoked_at < ended_before, SessionRow.expires_at < ended_before),
        ]
        removed += await self._remove(SessionRow.id, ended, _delete_sessions, keep=self._events.find_connected_sessions)
        gone: list[ColumnElement[bool]] = [
            WorkspaceRow.deleted_at < now - policy.deleted_workspaces_for,
            ~select(SessionRow.id).where(SessionRow.workspace_id == WorkspaceRow.id).exists(),
        ]
        removed += await self._remove(WorkspaceRow.id, gone, _delete_workspaces)
        newest = select(func.max(ChangeRow.id)).scalar_subquery()
        # The newest row stays: a follower's cursor is compared with it.
        old: list[ColumnElement[bool]] = [ChangeRow.at < now - policy.changes_for, ChangeRow.id < newest]
        return removed + await self._remove(ChangeRow.id, old, _delete_changes)

    async def _note_expired(self, now: datetime.datetime) -> None:
        """Before they can go: their end is a record as their beginning was."""
        while True:
            async with self._store.write() as session:
                noted = await note_expired(session, now, self._policy.rows_per_step)
            if noted < self._policy.rows_per_step:
                return
            await asyncio.sleep(self._policy.pause_s)

    async def _find_last_event_to_go(self, now: datetime.datetime) -> int | None:
        """Oldest first, whatever it is: an id up to which all goes. What has no end yet is ended by its gateway."""
        too_many = select(EventRow.id).order_by(EventRow.id.desc()).offset(self._policy.events_max).limit(1)
        too_old = (
            select(EventRow.id)
            .where(EventRow.recorded_at < now - self._policy.events_for)
            .order_by(EventRow.id.desc())
            .limit(1)
        )
        async with self._store.read() as session:
            oldest = (await session.execute(select(EventRow.id, EventRow.recorded_at).order_by(EventRow.id))).first()
            if oldest is None:
                return None
            found = [await session.scalar(too_many)]
            # Only when the oldest is too old, or each round would read all of them to find none.
            if oldest[1] < now - self._policy.events_for:
                found.append(await session.scalar(too_old))
        return max((number for number in found if number is not None), default=None)

    async def _prune_events(self, up_to: int) -> int:
        """Records up to this number, some at a time; each step is signed for in its own transaction."""
        removed = 0
        while True:
            async with self._store.write() as session:
                pruned_to = (await audit_chain.load_head(session)).pruned_to
                step = min(up_to, pruned_to + self._policy.rows_per_step)
                removed += await audit_chain.prune(session, step, self._state_pruned)
            if step >= up_to:
                return removed
            await asyncio.sleep(self._policy.pause_s)

    def _state_pruned(self, head: audit_chain.ChainHead, up_to: int, last: str) -> str:
        statement = Statement(
            kind=PRUNED,
            chain_id=head.chain_id,
            count=up_to,
            hash=last,
            at=render_now(self._clock.now()),
            previous=NO_LINE,
        )
        return self._signer.sign(statement).render_line().decode("ascii").rstrip()

    async def _remove(
        self,
        column: InstrumentedAttribute[int],
        which: Sequence[ColumnElement[bool]],
        remove: Callable[[AsyncSession, Sequence[int]], Awaitable[None]],
        *,
        keep: Callable[[Collection[int]], Awaitable[set[int]]] | None = None,
    ) -> int:
        """Rows that meet `which`, oldest first, some at a time. `which` is looked at again under the write lock."""
        removed, after = 0, 0
        while True:
            query = select(column).where(*which, column > after).order_by(column).limit(self._policy.rows_per_step)
            async with self._store.read() as session:
                ids = list(await session.scalars(query))
            kept = await keep(ids) if keep is not None and ids else set[int]()
            going = [number for number in ids if number not in kept]
            if going:
                async with self._store.write() as session:
                    going = list(await session.scalars(select(column).where(*which, column.in_(going))))
                    await remove(session, going)
            removed += len(going)
            if len(ids) < self._policy.rows_per_step:
                return removed
            after = ids[-1]
            await asyncio.sleep(self._policy.pause_s)

    async def _run(self) -> None:
        while True:
            try:
                removed = await self.prune()
                if removed:
                    _log.info("forgot %d old rows", removed)
            except RunCodeError as error:
                _log.warning("old rows could not be removed: %s", error.message)
            except Exception:
                _log.exception("old rows could not be removed")
            await asyncio.sleep(self._policy.every_s)


async def _delete_sessions(session: AsyncSession, ids: Sequence[int]) -> None:
    await session.execute(delete(SessionRow).where(SessionRow.id.in_(ids)))


async def _delete_workspaces(session: AsyncSession, ids: Sequence[int]) -> None:
    await session.execute(delete(HostKeyRow).where(HostKeyRow.workspace_id.in_(ids)))
    await session.execute(delete(ShareRow).where(ShareRow.workspace_id.in_(ids)))
    await session.execute(delete(TeamShareRow).where(TeamShareRow.workspace_id.in_(ids)))
    await session.execute(delete(InvitationRow).where(InvitationRow.workspace_id.in_(ids)))
    await session.execute(delete(WorkspaceRow).where(WorkspaceRow.id.in_(ids)))


async def _delete_changes(session: AsyncSession, ids: Sequence[int]) -> None:
    await session.execute(delete(ChangeRow).where(ChangeRow.id.in_(ids)))
