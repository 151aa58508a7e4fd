"""What must not be believed of a restored database, since the world went on after its copy was made.

Owns: the rules for that. Part of the restore's own transaction, before any server
opens the database.

Threat: what was revoked or used after the copy was made would be good again.
Guarantee: what lasts minutes or hours (sessions, browsers that are signed in, codes,
links, device codes) has ended. What lasts (users, tokens, shares) is as it was in the
copy, and the operator is told to look.
"""

from __future__ import annotations

import datetime

from sqlalchemy import Connection, func, update

from runcode.controlplane.states import UNKNOWN
from runcode.controlplane.store.models import (
    DeviceGrantRow,
    LoginCodeRow,
    SessionRow,
    SignInLinkRow,
    WebSessionRow,
    WorkspaceRow,
)


def settle_restored(connection: Connection, now: datetime.datetime) -> None:
    """End what may have ended meanwhile; forget what a reconciler believed, so that it asks the runtimes."""
    released = func.coalesce(SessionRow.released_at, now)
    connection.execute(
        update(SessionRow).where(SessionRow.revoked_at.is_(None)).values(revoked_at=now, released_at=released)
    )
    connection.execute(update(WebSessionRow).where(WebSessionRow.ended_at.is_(None)).values(ended_at=now))
    for table in (LoginCodeRow, SignInLinkRow, DeviceGrantRow):
        connection.execute(update(table).where(table.expires_at > now).values(expires_at=now))
    connection.execute(
        update(WorkspaceRow)
        .where(WorkspaceRow.deleted_at.is_(None))
        .values(
            observed_state=UNKNOWN,
            observed_at=now,
            activity=None,
            lease_owner=None,
            lease_expires_at=None,
            retry_at=None,
            endpoint_socket_path=None,
            endpoint_host=None,
            endpoint_port=None,
        )
    )
