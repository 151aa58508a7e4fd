"""The facts on which a gateway decides, looked up alike for everybody.

Owns: what is true of (title, client key) right now. It decides nothing: the
gateway's `admission` does.

Threat: a peer without any right who measures which titles and keys exist.
Guarantee: the same two queries run whether the title, the key, both or neither
exist; each is answered by an index. A session that was made "in the future" counts
as expired: the clock has gone back since, and its end would come hours late. The
client mints anew.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, and_, or_, select

from runcode.controlplane.clock import UTC, Clock
from runcode.controlplane.services import access
from runcode.controlplane.services.access import find_endpoint
from runcode.controlplane.services.principals import principal_for
from runcode.controlplane.states import RUNNING
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import SessionRow, TokenRow, UserRow, WorkspaceRow
from runcode.core.channel_policy import EVERYTHING, NOTHING, ChannelPolicy, parse_policy
from runcode.core.errors import UnsafeInput
from runcode.runtimes.base import Endpoint

# How far two machines' clocks may be apart before a session looks as if made in the future.
_CLOCK_SLACK = datetime.timedelta(minutes=2)
_LONG_AGO = datetime.datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class SessionFacts:
    """A registered client key.

    `withdrawn` is true once the session, its token or its user was revoked or
    disabled, or the user may no longer use the workspace. An expired token does
    not withdraw: expiry bounds authentication, and no session outlives its token's.
    """

    session_id: int
    workspace_id: int
    user_id: int
    client: str
    expires_at: datetime.datetime
    withdrawn: bool


@dataclass(frozen=True)
class WorkspaceFacts:
    """`running` is true only when that is both asked for and observed; then `endpoint` is set."""

    workspace_id: int
    title: str
    running: bool
    principal: str
    host_key: str
    endpoint: Endpoint | None


@dataclass(frozen=True)
class AdmissionFacts:
    session: SessionFacts | None
    workspace: WorkspaceFacts | None
    policy: ChannelPolicy = EVERYTHING


class Admission:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def load_admission_facts(self, title: str, key_fingerprint: str) -> AdmissionFacts:
        """What is known of a title and of a client key (`SHA256:…`). Both are looked up always."""
        newest = SessionRow.released_at.is_(None).desc(), SessionRow.id.desc()
        holds, held = SessionRow.released_at.is_(None), SessionRow.released_at.is_not(None)
        has_key = SessionRow.fingerprint == key_fingerprint
        # Said twice: keys that are held have an index of their own, and so have the others. Both are looked at always.
        by_key = _select_sessions(or_(and_(has_key, holds), and_(has_key, held))).add_columns(TokenRow.policy)
        by_key = by_key.order_by(*newest).limit(1)
        by_title = select(WorkspaceRow).where(WorkspaceRow.title == title, WorkspaceRow.deleted_at.is_(None))
        async with self._store.read() as session:
            found = (await session.execute(by_key)).first()
            workspace = await session.scalar(by_title)
        policies = (None if workspace is None else workspace.policy, None if found is None else found[-1])
        return AdmissionFacts(
            policy=_find_policy(*policies),
            session=None if found is None else _as_session_facts(self._clock.now(), *found[:-1]),
            workspace=None if workspace is None else _as_workspace_facts(workspace),
        )

    async def find_principal(self, session_id: int, workspace_id: int) -> str | None:
        """The principal to sign for, or None when this session may not open that workspace now."""
        by_id = _select_sessions(SessionRow.id == session_id)
        async with self._store.read() as session:
            found = (await session.execute(by_id)).first()
            workspace = await session.get(WorkspaceRow, workspace_id)
        if found is None or workspace is None or workspace.deleted_at is not None:
            return None
        now = self._clock.now()
        facts, target = _as_session_facts(now, *found), _as_workspace_facts(workspace)
        if facts.withdrawn or facts.expires_at <= now:
            return None
        if facts.workspace_id != target.workspace_id or not target.running:
            return None
        return target.principal


def _select_sessions(
    which: ColumnElement[bool],
) -> Select[SessionRow, datetime.datetime | None, datetime.datetime | None, datetime.datetime | None, bool]:
    return (
        select(
            SessionRow,
            TokenRow.revoked_at,
            UserRow.disabled_at,
            WorkspaceRow.deleted_at,
            access.is_entitled(SessionRow.user_id, SessionRow.workspace_id),
        )
        .join(TokenRow, TokenRow.id == SessionRow.token_id)
        .join(UserRow, UserRow.id == SessionRow.user_id)
        .join(WorkspaceRow, WorkspaceRow.id == SessionRow.workspace_id)
        .where(which)
    )


def _as_session_facts(
    now: datetime.datetime,
    row: SessionRow,
    token_revoked_at: datetime.datetime | None,
    user_disabled_at: datetime.datetime | None,
    workspace_deleted_at: datetime.datetime | None,
    entitled: bool,
) -> SessionFacts:
    # Revoking ends the sessions too; looking at what stands behind them as well costs one row and no trust.
    ended = (row.revoked_at, token_revoked_at, user_disabled_at, workspace_deleted_at)
    return SessionFacts(
        session_id=row.id,
        workspace_id=row.workspace_id,
        user_id=row.user_id,
        client=row.client,
        expires_at=_LONG_AGO if row.created_at > now + _CLOCK_SLACK else row.expires_at,
        withdrawn=not entitled or any(moment is not None for moment in ended),
    )


def _find_policy(of_workspace: object, of_token: object) -> ChannelPolicy:
    """What both allow; nothing that forwards when what is stored cannot be read."""
    try:
        return parse_policy(of_workspace).narrowed_by(parse_policy(of_token))
    except UnsafeInput:
        return NOTHING


def _as_workspace_facts(row: WorkspaceRow) -> WorkspaceFacts:
    endpoint = find_endpoint(row)
    up = row.desired_state == RUNNING and row.observed_state == RUNNING and row.activity is None
    return WorkspaceFacts(
        workspace_id=row.id,
        title=row.title,
        running=up and endpoint is not None,
        principal=principal_for(row.id),
        host_key=row.host_public_key,
        endpoint=endpoint,
    )
