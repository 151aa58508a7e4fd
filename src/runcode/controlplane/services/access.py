"""Who may see a workspace, and in which role: the one place that answers it.

Threat: a caller walks through ids and titles to learn what others have.
Guarantee: a workspace that does not exist, one that was deleted, and one that
the caller may not see raise the same `not_found`, after the same one query.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, and_, select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.records import WorkspaceRecord
from runcode.controlplane.states import ROLE_OWNER
from runcode.controlplane.store.models import ShareRow, UserRow, WorkspaceRow
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import Endpoint, TcpEndpoint, UnixEndpoint


def select_for_user(user_id: int) -> Select[WorkspaceRow, str, str | None]:
    """Live workspaces with their owner's e-mail address and this user's share, if any; the caller adds who may see."""
    return (
        select(WorkspaceRow, UserRow.email, ShareRow.role)
        .join(UserRow, UserRow.id == WorkspaceRow.owner_id)
        .outerjoin(ShareRow, and_(ShareRow.workspace_id == WorkspaceRow.id, ShareRow.user_id == user_id))
        .where(WorkspaceRow.deleted_at.is_(None))
    )


async def load_visible(session: AsyncSession, workspace_id: int, user_id: int) -> tuple[WorkspaceRow, WorkspaceRecord]:
    """The row and its record with the user's role, or `not_found`."""
    found = (await session.execute(select_for_user(user_id).where(WorkspaceRow.id == workspace_id))).first()
    if found is not None:
        row, owner_email, share = found
        role = ROLE_OWNER if row.owner_id == user_id else share
        if role is not None:
            return row, as_record(row, owner_email, role)
    raise RunCodeError("not_found", f"there is no workspace {workspace_id} that you may use")


async def load_named(session: AsyncSession, reference: int | str) -> tuple[WorkspaceRow, WorkspaceRecord]:
    """For operators: by id (a number, also as text) or by title. Raises `not_found`."""
    text = str(reference).strip()
    which: ColumnElement[bool] = WorkspaceRow.title == text
    if text.isascii() and text.isdigit() and len(text) <= 18:
        which = WorkspaceRow.id == int(text)
    query = (
        select(WorkspaceRow, UserRow.email)
        .join(UserRow, UserRow.id == WorkspaceRow.owner_id)
        .where(WorkspaceRow.deleted_at.is_(None), which)
    )
    found = (await session.execute(query)).first()
    if found is None:
        raise RunCodeError(
            "not_found", f"there is no workspace {text[:80]!r}", resolution="see `runcode-server workspace list`"
        )
    return found[0], as_record(found[0], found[1], None)


def as_record(row: WorkspaceRow, owner_email: str, role: str | None) -> WorkspaceRecord:
    return WorkspaceRecord(
        id=row.id,
        title=row.title,
        custom_title=row.custom_title,
        owner_email=owner_email,
        runtime=row.runtime,
        desired_state=row.desired_state,
        observed_state=row.observed_state,
        activity=row.activity,
        failures=row.failures,
        reason=row.reason,
        endpoint=find_endpoint(row),
        host_public_key=row.host_public_key,
        created_at=row.created_at,
        role=role,
    )


def find_endpoint(row: WorkspaceRow) -> Endpoint | None:
    if row.endpoint_socket_path is not None:
        return UnixEndpoint(row.endpoint_socket_path)
    if row.endpoint_host is not None and row.endpoint_port is not None:
        return TcpEndpoint(row.endpoint_host, row.endpoint_port)
    return None
