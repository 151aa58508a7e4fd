"""Ending sessions, as part of the transaction that takes the right behind them away.

Owns: how sessions end before their time. The caller appends the change that
tells the gateways.
"""

from __future__ import annotations

import datetime

from sqlalchemy import ColumnElement, func, update
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.store.models import SessionRow


async def revoke_sessions(session: AsyncSession, now: datetime.datetime, *which: ColumnElement[bool]) -> None:
    """Revoke those that are not yet, and let go of their keys.

    Also those that have expired: a connection that one of them opened may live on.
    """
    await session.execute(
        update(SessionRow)
        .where(*which, SessionRow.revoked_at.is_(None))
        .values(revoked_at=now, released_at=func.coalesce(SessionRow.released_at, now))
        .execution_options(synchronize_session=False)
    )
