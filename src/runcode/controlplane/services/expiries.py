"""Sessions whose time is over, written down once each.

Owns: the record `session_expired`. Called by `retention`, some at a time. Expiry takes the right to connect away by
itself, whether it was written down or not.

Guarantee: one record for each `expires_at` that passed, however many servers look: it is compared and set in the
transaction of the record. There are no more of them than of mints, which are records too.
"""

from __future__ import annotations

import datetime

from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.services import audit
from runcode.controlplane.store.models import SessionRow


async def note_expired(session: AsyncSession, now: datetime.datetime, limit: int) -> int:
    """Note up to `limit` of those that have expired and were not revoked; returns how many. Part of a transaction."""
    query = (
        select(SessionRow)
        .where(
            SessionRow.expires_at <= now,
            or_(SessionRow.expiry_noted.is_(None), SessionRow.expiry_noted != SessionRow.expires_at),
            or_(SessionRow.revoked_at.is_(None), SessionRow.revoked_at > SessionRow.expires_at),
        )
        .order_by(SessionRow.id)
        .limit(limit)
    )
    expired = list(await session.scalars(query))
    for row in expired:
        await audit.note(
            session,
            audit.SESSION_EXPIRED,
            now,
            user_id=row.user_id,
            workspace_id=row.workspace_id,
            session_id=row.id,
            detail={"by": audit.BY_TIME, "client": row.client, "expired_at": row.expires_at.isoformat()},
        )
    if expired:
        ids = [row.id for row in expired]
        await session.execute(
            update(SessionRow)
            .where(SessionRow.id.in_(ids))
            .values(expiry_noted=SessionRow.expires_at)
            .execution_options(synchronize_session=False)
        )
    return len(expired)
