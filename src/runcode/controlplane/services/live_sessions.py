"""Sessions as their workspace's people see them: whose they are, and how to end one.

Owns: who may see and end which session. How one is minted is `sessions`'.

The owner of a workspace, and whoever manages it, sees all sessions there; others see
their own. One's own may be ended by oneself; any at a workspace by its owner; all by
an admin of the server.

Guarantee: a session that the caller may not see is `not_found`, like one that does
not exist; ending one cuts its live connections by the change feed.
"""

from __future__ import annotations

from sqlalchemy import Select, select

from runcode.controlplane.clock import Clock
from runcode.controlplane.records import Caller, SessionRecord
from runcode.controlplane.services import access
from runcode.controlplane.services.sessions import Sessions
from runcode.controlplane.states import ROLE_USE, SCOPE_CONNECT, SCOPE_MANAGE, SCOPE_READ
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import SessionRow, UserRow, WorkspaceRow
from runcode.core.errors import RunCodeError

LISTED_MAX = 1000


class LiveSessions:
    def __init__(self, store: Store, clock: Clock, sessions: Sessions) -> None:
        self._store = store
        self._clock = clock
        self._sessions = sessions

    async def list_of_workspace(self, workspace_id: int, caller: Caller) -> list[SessionRecord]:
        """Those that may connect now, newest first. Raises `not_found`."""
        async with self._store.read() as session:
            _, record = await access.load_visible(session, workspace_id, caller, SCOPE_READ)
            query = self._select_live().where(SessionRow.workspace_id == workspace_id)
            if record.role == ROLE_USE:
                query = query.where(SessionRow.user_id == caller.user_id)
            return [_as_record(*found) for found in (await session.execute(query)).all()]

    async def list_own(self, caller: Caller) -> list[SessionRecord]:
        """The caller's, wherever they may connect to; newest first."""
        access.require_scope(caller, SCOPE_READ)
        query = self._select_live().where(SessionRow.user_id == caller.user_id)
        within = access.within_token(caller)
        async with self._store.read() as session:
            found = await session.execute(query if within is None else query.where(within))
            return [_as_record(*row) for row in found.all()]

    async def list_all(self, caller: Caller) -> list[SessionRecord]:
        """Everybody's, for an admin; newest first."""
        access.require_admin(caller, SCOPE_READ)
        async with self._store.read() as session:
            return [_as_record(*found) for found in (await session.execute(self._select_live())).all()]

    async def revoke(self, session_id: int, caller: Caller) -> None:
        """Idempotent. Raises `not_found`."""
        async with self._store.read() as session:
            row = await session.get(SessionRow, session_id)
            workspace = None if row is None else await session.get(WorkspaceRow, row.workspace_id)
        if row is None or workspace is None or not _may_see(row, workspace, caller):
            raise RunCodeError("not_found", f"there is no session {session_id} that you may end")
        # Ending what this very token's person opened asks for no more than opening it does.
        access.require_scope(caller, SCOPE_CONNECT if row.user_id == caller.user_id else SCOPE_MANAGE)
        await self._sessions.revoke_all([session_id], caller=caller)

    def _select_live(self) -> Select[SessionRow, str, str]:
        return (
            select(SessionRow, WorkspaceRow.title, UserRow.email)
            .join(WorkspaceRow, WorkspaceRow.id == SessionRow.workspace_id)
            .join(UserRow, UserRow.id == SessionRow.user_id)
            .where(SessionRow.revoked_at.is_(None), SessionRow.expires_at > self._clock.now())
            .order_by(SessionRow.id.desc())
            .limit(LISTED_MAX)
        )


def _may_see(row: SessionRow, workspace: WorkspaceRow, caller: Caller) -> bool:
    if caller.workspace_ids is not None and row.workspace_id not in caller.workspace_ids:
        return False
    return caller.user_id in (row.user_id, workspace.owner_id) or caller.is_admin


def _as_record(row: SessionRow, title: str, user_email: str) -> SessionRecord:
    return SessionRecord(
        id=row.id,
        workspace_id=row.workspace_id,
        workspace_title=title,
        user_email=user_email,
        token_id=row.token_id,
        fingerprint=row.fingerprint,
        client=row.client,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
