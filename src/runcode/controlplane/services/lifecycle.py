"""What the reconciler keeps in the database: leases, checkpoints, and what it observed.

Owns: every write to a workspace that is not somebody's wish. Each method is one
short transaction; nothing here calls a runtime.

Guarantee: only the holder of a workspace's lease records what happened to it: a
reconciler that lost its lease (it hung, another took over) writes nothing more.
A checkpoint is in the database before the runtime takes its next step, so that
after a crash it is known what may have been left behind.

A lease is a moment of the wall clock, since another machine may have to read it.
One that ends later than any lease could was written before the clock went back,
and is void; a clock that jumps ahead ends one early. In both cases the holder, if
it lives, finds out at its next write (LeaseLost) and lets go.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, delete, or_, select, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane import changes
from runcode.controlplane.clock import Clock
from runcode.controlplane.services.access import find_endpoint
from runcode.controlplane.states import RUNNING, STARTING, STOPPED
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import HostKeyRow, WorkspaceRow
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import STANDARD_SIZE, Checkpoint, Endpoint, TcpEndpoint, UnixEndpoint

REASON_MAX = 500


@dataclass(frozen=True)
class Work:
    """A workspace as the reconciler sees it."""

    workspace_id: int
    title: str
    runtime: str
    desired: str
    observed: str
    observed_at: datetime.datetime
    activity: str | None
    endpoint: Endpoint | None
    reason: str | None
    failures: int
    retry_at: datetime.datetime | None
    checkpoints: tuple[dict[str, Any], ...]
    size: str = STANDARD_SIZE
    place: str | None = None
    lease_owner: str | None = None


@dataclass(frozen=True)
class Station:
    """Which workspaces one reconciler may touch. `alone`: no other one can be on this database, so all of them.

    Else: those that live at its `place` (its machine's data folder), those of `roaming`
    runtimes, whose boxes every server reaches, and those that live nowhere yet and
    that one of its `runtimes` could start.
    """

    place: str
    runtimes: frozenset[str] = frozenset()
    roaming: frozenset[str] = frozenset()
    alone: bool = False

    def holds(self, work: Work) -> bool:
        """Does its box end with this server? Others' and roaming ones do not."""
        return self.alone or (work.place == self.place and work.runtime not in self.roaming)

    @property
    def condition(self) -> ColumnElement[bool]:
        if self.alone:
            return true()
        return or_(
            WorkspaceRow.place == self.place,
            WorkspaceRow.runtime.in_(self.roaming),
            and_(WorkspaceRow.place.is_(None), WorkspaceRow.runtime.in_(self.runtimes)),
        )


ALONE = Station("here", alone=True)


@dataclass(frozen=True)
class Outcome:
    """What is true of a workspace now. `reason` is for a person; `retry_at` holds the next attempt back."""

    observed: str
    endpoint: Endpoint | None = None
    reason: str | None = None
    failures: int = 0
    retry_at: datetime.datetime | None = None
    # What a start left behind stays on record until a stop has cleaned it.
    keep_checkpoints: bool = False
    deleted: bool = False


@dataclass(frozen=True)
class Claim:
    """A lease that was won, with what a start needs."""

    work: Work
    host_private_key: str = field(repr=False)


class LeaseLost(Exception):
    """Somebody else works on this workspace now: stop touching it."""


class Lifecycle:
    def __init__(self, store: Store, clock: Clock, *, lease: datetime.timedelta, station: Station = ALONE) -> None:
        self._store = store
        self._clock = clock
        self._lease = lease
        self._station = station

    async def list_live(self) -> list[Work]:
        async with self._store.read() as session:
            rows = await session.scalars(self._mine().order_by(WorkspaceRow.id))
            return [_as_work(row) for row in rows]

    async def list_active(self) -> list[Work]:
        """Those whose truth may move: wanted up, found up, half-way, or on their way out."""
        moving = or_(
            WorkspaceRow.desired_state != STOPPED,
            WorkspaceRow.observed_state != STOPPED,
            WorkspaceRow.activity.is_not(None),
            WorkspaceRow.failures > 0,
            # Perhaps one that its owner does not know of.
            WorkspaceRow.lease_owner.is_not(None),
        )
        async with self._store.read() as session:
            rows = await session.scalars(self._mine().where(moving).order_by(WorkspaceRow.id))
            return [_as_work(row) for row in rows]

    async def find_work(self, workspace_id: int) -> Work | None:
        async with self._store.read() as session:
            row = await session.scalar(self._mine().where(WorkspaceRow.id == workspace_id))
        return None if row is None else _as_work(row)

    async def release_all(self, owner: str | None = None) -> None:
        """Void the leases of earlier reconcilers here (or of `owner`): they are known to be gone, half-way or not."""
        which: ColumnElement[bool] = WorkspaceRow.lease_owner.is_not(None)
        if owner is not None:
            which = WorkspaceRow.lease_owner == owner
        elif not self._station.alone:
            which = WorkspaceRow.lease_owner.startswith(f"{self._station.place}/", autoescape=True)
        async with self._store.write() as session:
            await session.execute(update(WorkspaceRow).where(which).values(lease_owner=None, lease_expires_at=None))

    async def release(self, workspace_id: int, owner: str) -> None:
        """Give back a lease under which nothing is done: its owner's answer from the database was lost."""
        which = WorkspaceRow.id == workspace_id, WorkspaceRow.lease_owner == owner
        free = {"lease_owner": None, "lease_expires_at": None, "activity": None}
        async with self._store.write() as session:
            await session.execute(update(WorkspaceRow).where(*which).values(**free))

    async def claim(self, workspace_id: int, owner: str, activity: str | None, *, settle: bool = False) -> Claim | None:
        """Take the lease and say what is being done, or None while another holds it, or the workspace is another's.

        `settle`: its storage is (or is about to be) on this machine, so from now on it lives here.
        """
        now = self._clock.now()
        free = or_(
            WorkspaceRow.lease_owner.is_(None),
            WorkspaceRow.lease_owner == owner,
            WorkspaceRow.lease_expires_at <= now,
            # Twice: the clocks of two machines need not agree to the second.
            WorkspaceRow.lease_expires_at > now + 2 * self._lease,
        )
        values = {"lease_owner": owner, "lease_expires_at": now + self._lease, "activity": activity}
        if settle:
            roams = WorkspaceRow.runtime.in_(self._station.roaming)
            values["place"] = case((roams, WorkspaceRow.place), else_=self._station.place)
        async with self._store.write() as session:
            won = await session.scalar(
                update(WorkspaceRow)
                .where(
                    WorkspaceRow.id == workspace_id, WorkspaceRow.deleted_at.is_(None), free, self._station.condition
                )
                .values(**values)
                .returning(WorkspaceRow.id)
            )
            row = await session.get(WorkspaceRow, workspace_id)
            if won is not None and row is not None and activity == STARTING:
                row.box_size = row.size
            key = await session.get(HostKeyRow, workspace_id)
            if won is None or row is None or key is None:
                return None
            return Claim(work=_as_work(row), host_private_key=key.private_key)

    async def record_checkpoint(self, workspace_id: int, owner: str, checkpoint: Checkpoint, *, first: bool) -> str:
        """Keep it (the `first` forgets an earlier start's), renew the lease, return what is wanted now.

        Raises LeaseLost.
        """
        async with self._store.write() as session:
            row = await self._load_leased(session, workspace_id, owner)
            before = [] if first else row.checkpoints
            row.checkpoints = [*before, {"step": checkpoint.step, "record": dict(checkpoint.record)}]
            row.lease_expires_at = self._clock.now() + self._lease
            return row.desired_state

    async def record_outcome(self, workspace_id: int, owner: str, outcome: Outcome) -> None:
        """Say what is true now, and give the lease back. Raises LeaseLost."""
        now = self._clock.now()
        async with self._store.write() as session:
            row = await self._load_leased(session, workspace_id, owner)
            if outcome.observed != row.observed_state:
                row.observed_at = now
            if row.observed_state == RUNNING and outcome.observed != RUNNING:
                changes.append_change(session, changes.WORKSPACE_DOWN, now, workspace_id=workspace_id)
            row.observed_state = outcome.observed
            row.endpoint_socket_path, row.endpoint_host, row.endpoint_port = _split_endpoint(outcome.endpoint)
            row.reason = None if outcome.reason is None else outcome.reason[:REASON_MAX]
            row.failures = outcome.failures
            row.retry_at = outcome.retry_at
            if not outcome.keep_checkpoints:
                row.checkpoints = []
            row.activity = None
            row.lease_owner = None
            row.lease_expires_at = None
            if outcome.deleted:
                row.deleted_at = now
                await session.execute(delete(HostKeyRow).where(HostKeyRow.workspace_id == workspace_id))

    def _mine(self) -> Select[WorkspaceRow]:
        return select(WorkspaceRow).where(WorkspaceRow.deleted_at.is_(None), self._station.condition)

    async def _load_leased(self, session: AsyncSession, workspace_id: int, owner: str) -> WorkspaceRow:
        row = await session.scalar(
            select(WorkspaceRow).where(and_(WorkspaceRow.id == workspace_id, WorkspaceRow.lease_owner == owner))
        )
        if row is None:
            raise LeaseLost
        return row


def explain_failure(error: BaseException) -> str:
    """One line for a person; an error that is not ours shows no raw text."""
    if isinstance(error, RunCodeError):
        # The table's general resolutions speak to a client's user, not of a runtime.
        own = error.resolution != error.kind.resolution
        return f"{error.message} ({error.resolution})" if own else error.message
    if isinstance(error, TimeoutError):
        return "the runtime did not answer in time"
    return "the runtime failed in an unexpected way: see the server's log"


def _split_endpoint(endpoint: Endpoint | None) -> tuple[str | None, str | None, int | None]:
    if isinstance(endpoint, UnixEndpoint):
        return endpoint.socket_path, None, None
    if isinstance(endpoint, TcpEndpoint):
        return None, endpoint.host, endpoint.port
    return None, None, None


def _as_work(row: WorkspaceRow) -> Work:
    return Work(
        workspace_id=row.id,
        title=row.title,
        runtime=row.runtime,
        size=row.size,
        desired=row.desired_state,
        observed=row.observed_state,
        observed_at=row.observed_at,
        activity=row.activity,
        endpoint=find_endpoint(row),
        reason=row.reason,
        failures=row.failures,
        retry_at=row.retry_at,
        checkpoints=tuple(row.checkpoints),
        place=row.place,
        lease_owner=row.lease_owner,
    )
