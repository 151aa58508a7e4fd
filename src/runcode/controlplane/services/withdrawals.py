"""Ending what was let in, as part of the transaction that takes the right behind it away.

Owns: how sessions, signed-in browsers and sign-ins that are under way end before
their time. The caller appends the change that tells the gateways.
"""

from __future__ import annotations

import datetime
from typing import Final

from sqlalchemy import ColumnElement, func, update
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.store.models import (
    DeviceGrantRow,
    LoginCodeRow,
    SessionRow,
    SignInLinkRow,
    WebSessionRow,
)

# A device grant's `decision`.
DEVICE_AUTHORIZED: Final = "authorized"
DEVICE_DENIED: Final = "denied"


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


async def end_web_sessions(session: AsyncSession, now: datetime.datetime, *which: ColumnElement[bool]) -> None:
    await session.execute(
        update(WebSessionRow)
        .where(*which, WebSessionRow.ended_at.is_(None))
        .values(ended_at=now)
        .execution_options(synchronize_session=False)
    )


async def end_sign_ins(
    session: AsyncSession, now: datetime.datetime, user_id: int, *, keep_web_session_id: int | None = None
) -> None:
    """Whatever this person's earlier sign-ins could still bring about: browsers, links, codes, consents to devices.

    Used up rather than removed, so that letting the person in again revives none of it.
    """
    kept = [] if keep_web_session_id is None else [WebSessionRow.id != keep_web_session_id]
    await end_web_sessions(session, now, WebSessionRow.user_id == user_id, *kept)
    await _use_up(session, now, SignInLinkRow, user_id)
    await end_consents(session, now, user_id)


async def end_consents(session: AsyncSession, now: datetime.datetime, user_id: int) -> None:
    """What this person (or a thief in their browser) let a client do that has not fetched its token yet."""
    await _use_up(session, now, LoginCodeRow, user_id)
    await session.execute(
        update(DeviceGrantRow)
        .where(DeviceGrantRow.user_id == user_id, DeviceGrantRow.token_id.is_(None))
        .values(decision=DEVICE_DENIED)
        .execution_options(synchronize_session=False)
    )


async def _use_up(
    session: AsyncSession, now: datetime.datetime, table: type[SignInLinkRow] | type[LoginCodeRow], user_id: int
) -> None:
    await session.execute(
        update(table)
        .where(table.user_id == user_id, table.used_at.is_(None))
        .values(used_at=now)
        .execution_options(synchronize_session=False)
    )
