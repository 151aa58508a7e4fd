"""The change feed: what may have taken access away, in order, for whoever holds connections.

Owns: the kinds of change, how a rule appends one, and how a consumer follows
them. Appended by `services` in the transaction that makes the change, so that
neither can exist without the other. Followed by gateways (withdrawals only) and
by the reconciler (everything).

Guarantee: a consumer sees each committed change at most about `poll_s` after the
commit, whichever process made it, and at once when it was this one. A batch
comes at least every 500 ms, and only after the database has really been read: a
consumer that hears nothing for longer may conclude that it can no longer know.
The first batch, and one after trouble, says `everything`: look at all you hold.

Ids grow in the order of commits: there is one writer at a time, also among processes
(`Store.write`). So no row appears below a cursor that has passed it.
Source: sqlite.org/pragma.html#pragma_data_version; on Postgres, NOTIFY in the
transaction itself, and a look at every poll besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.store.database import Probe
from runcode.controlplane.store.engine import Store, mark_changed
from runcode.controlplane.store.models import ChangeRow
from runcode.core.errors import RunCodeError

_log = logging.getLogger(__name__)

SESSION_REVOKED: Final = "session_revoked"
TOKEN_REVOKED: Final = "token_revoked"
USER_DISABLED: Final = "user_disabled"
UNSHARED: Final = "unshared"
STOP_REQUESTED: Final = "stop_requested"
DELETE_REQUESTED: Final = "delete_requested"
WORKSPACE_DOWN: Final = "workspace_down"
# Somebody is no longer in a team, and a team no longer shares a workspace.
TEAM_LEFT: Final = "team_left"
TEAM_UNSHARED: Final = "team_unshared"
CREATED: Final = "created"
START_REQUESTED: Final = "start_requested"
POLICY_CHANGED: Final = "policy_changed"
# Its certificates may be anybody's: all connections are looked at.
AUTHORITY_RETIRED: Final = "authority_retired"
SHARED: Final = "shared"

# What takes access away; the others only give it, or wake the reconciler.
WITHDRAWALS: Final = frozenset(
    (
        SESSION_REVOKED,
        TOKEN_REVOKED,
        USER_DISABLED,
        UNSHARED,
        TEAM_LEFT,
        TEAM_UNSHARED,
        STOP_REQUESTED,
        DELETE_REQUESTED,
        WORKSPACE_DOWN,
        POLICY_CHANGED,
        AUTHORITY_RETIRED,
    )
)
# `retention` forgets what is older; a follower that far behind is told `everything`.
KEPT_FOR: Final = datetime.timedelta(days=1)

_POLL_S = 0.2
# A batch at the latest this long after the last one, plus one poll: under 500 ms.
_BEAT_S = 0.25
_BATCH_MAX = 5000


@dataclass(frozen=True)
class ChangeBatch:
    """Whom to look at again. An empty one is a heartbeat; `everything` asks for a look at all connections."""

    cursor: int
    workspace_ids: frozenset[int] = frozenset()
    session_ids: frozenset[int] = frozenset()
    user_ids: frozenset[int] = frozenset()
    everything: bool = False

    @property
    def empty(self) -> bool:
        return not (self.everything or self.workspace_ids or self.session_ids or self.user_ids)


def append_change(
    session: AsyncSession,
    kind: str,
    at: datetime.datetime,
    *,
    workspace_id: int | None = None,
    session_id: int | None = None,
    user_id: int | None = None,
) -> None:
    """Add one row to the caller's transaction; followers hear of it when that commits."""
    session.add(ChangeRow(kind=kind, at=at, workspace_id=workspace_id, session_id=session_id, user_id=user_id))
    mark_changed(session)


class ChangeFeed:
    """Any number of followers, each with its own cursor and its own connection."""

    def __init__(self, store: Store, *, poll_s: float = _POLL_S) -> None:
        self._store = store
        self._poll_s = poll_s

    async def watch(self, kinds: Collection[str] = WITHDRAWALS) -> AsyncGenerator[ChangeBatch, None]:
        """Changes from now on, never ending, with a heartbeat at least every 500 ms."""
        loop = asyncio.get_running_loop()
        probe: Probe | None = None
        cursor, seen, beat_at = 0, -1, loop.time()
        trouble: str | None = None
        try:
            while True:
                try:
                    with self._store.translated():
                        if probe is None:
                            probe = await self._store.open_probe()
                            # Version before cursor: a commit between the two is then seen again, never missed.
                            seen = await probe.version()
                            cursor = await self._load_newest()
                            batch = ChangeBatch(cursor=cursor, everything=True)
                        else:
                            version = await probe.version()
                            if version == seen:
                                batch = ChangeBatch(cursor=cursor)
                            else:
                                batch = await self._load_batch(cursor, kinds)
                                seen, cursor = version, batch.cursor
                except RunCodeError as error:
                    # Silence is the signal: no heartbeat while the database cannot be read.
                    if error.message != trouble:
                        trouble = error.message
                        _log.warning("the change feed cannot read the database: %s", trouble)
                    await _close(probe)
                    probe = None
                    await asyncio.sleep(self._poll_s)
                    continue
                if trouble is not None:
                    trouble = None
                    _log.warning("the change feed reads the database again")
                if not batch.empty or loop.time() - beat_at >= _BEAT_S:
                    beat_at = loop.time()
                    yield batch
                # What goes wrong here, the next look says.
                with contextlib.suppress(RunCodeError), self._store.translated():
                    await probe.wait(self._poll_s)
        finally:
            await _close(probe)

    async def _load_newest(self) -> int:
        async with self._store.read() as session:
            return await session.scalar(select(func.max(ChangeRow.id))) or 0

    async def _load_batch(self, cursor: int, kinds: Collection[str]) -> ChangeBatch:
        async with self._store.read() as session:
            oldest = await session.scalar(select(func.min(ChangeRow.id)))
            rows = (
                await session.scalars(
                    select(ChangeRow).where(ChangeRow.id > cursor).order_by(ChangeRow.id).limit(_BATCH_MAX)
                )
            ).all()
        if len(rows) == _BATCH_MAX or (oldest is not None and oldest > cursor + 1):
            return ChangeBatch(cursor=await self._load_newest(), everything=True)
        meant = [row for row in rows if row.kind in kinds]
        return ChangeBatch(
            cursor=rows[-1].id if rows else cursor,
            workspace_ids=frozenset(r.workspace_id for r in meant if r.workspace_id is not None),
            session_ids=frozenset(r.session_id for r in meant if r.session_id is not None),
            user_ids=frozenset(r.user_id for r in meant if r.user_id is not None),
            everything=any(r.kind == AUTHORITY_RETIRED for r in meant),
        )


ALL_KINDS: Final = WITHDRAWALS | {CREATED, START_REQUESTED, SHARED}


async def _close(probe: Probe | None) -> None:
    if probe is not None:
        with contextlib.suppress(Exception):
            await probe.close()
