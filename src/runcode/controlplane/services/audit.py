"""What people and programs did here, written down in the transaction that did it.

Owns: the kinds of acts, and how a rule notes one. What gateways saw comes by
`events`; both stand in the same append-only table.

Never: a secret. A detail says what was done and to what, not with which
password, token or key.

Guarantee: an act and its record exist together or not at all, since both are in
the caller's transaction.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Mapping
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from runcode.controlplane.records import Caller
from runcode.controlplane.services import audit_chain

SIGNED_IN: Final = "signed_in"
SIGN_IN_REFUSED: Final = "sign_in_refused"
SIGNED_OUT: Final = "signed_out"
PASSWORD_CHANGED: Final = "password_changed"
USER_CREATED: Final = "user_created"
USER_CHANGED: Final = "user_changed"
USER_DISABLED: Final = "user_disabled"
USER_ENABLED: Final = "user_enabled"
LOGIN_AUTHORIZED: Final = "login_authorized"
LOGIN_DENIED: Final = "login_denied"
TOKEN_CREATED: Final = "token_created"
TOKEN_REVOKED: Final = "token_revoked"
SESSION_MINTED: Final = "session_minted"
SESSION_REVOKED: Final = "session_revoked"
SESSION_EXPIRED: Final = "session_expired"
WORKSPACE_CREATED: Final = "workspace_created"
WORKSPACE_CHANGED: Final = "workspace_changed"
WORKSPACE_START: Final = "workspace_start"
WORKSPACE_STOP: Final = "workspace_stop"
WORKSPACE_DELETE: Final = "workspace_delete"
SHARED: Final = "shared"
UNSHARED: Final = "unshared"
TEAM_CREATED: Final = "team_created"
TEAM_CHANGED: Final = "team_changed"
TEAM_DELETED: Final = "team_deleted"
GATEWAY_CREATED: Final = "gateway_created"
GATEWAY_REVOKED: Final = "gateway_revoked"
CLIENT_CA_ROTATED: Final = "client_ca_rotated"
CLIENT_CA_RETIRED: Final = "client_ca_retired"
ACTS: Final = frozenset(
    (
        SIGNED_IN,
        SIGN_IN_REFUSED,
        SIGNED_OUT,
        PASSWORD_CHANGED,
        USER_CREATED,
        USER_CHANGED,
        USER_DISABLED,
        USER_ENABLED,
        LOGIN_AUTHORIZED,
        LOGIN_DENIED,
        TOKEN_CREATED,
        TOKEN_REVOKED,
        SESSION_MINTED,
        SESSION_REVOKED,
        SESSION_EXPIRED,
        WORKSPACE_CREATED,
        WORKSPACE_CHANGED,
        WORKSPACE_START,
        WORKSPACE_STOP,
        WORKSPACE_DELETE,
        SHARED,
        UNSHARED,
        TEAM_CREATED,
        TEAM_CHANGED,
        TEAM_DELETED,
        GATEWAY_CREATED,
        GATEWAY_REVOKED,
        CLIENT_CA_ROTATED,
        CLIENT_CA_RETIRED,
    )
)
NOTE: Final = "note"
# Who tells, where a gateway's events name the gateway.
CONTROL_PLANE: Final = "control-plane"
# What the control plane does by itself, because the time has come.
BY_TIME: Final = "time"
# The operator's verbs act for nobody's account.
OPERATOR: Final = "operator"
Detail = Mapping[str, str | int | None]


async def note(
    session: AsyncSession,
    kind: str,
    at: datetime.datetime,
    *,
    caller: Caller | None = None,
    user_id: int | None = None,
    workspace_id: int | None = None,
    session_id: int | None = None,
    detail: Detail | None = None,
) -> None:
    """Add one act to the caller's transaction, as `add_note` does."""
    add_note(
        session.sync_session,
        kind,
        at,
        caller=caller,
        user_id=user_id,
        workspace_id=workspace_id,
        session_id=session_id,
        detail=detail,
    )


def _make_subject(at: datetime.datetime) -> str:
    """32 hex digits that are no other act's: its milliseconds since 1970, then 80 random bits.

    In the order of time, so that what is noted together stands together in the index: a page of its own for each costs
    more than the record.
    """
    return f"{int(at.timestamp() * 1000) & 0xFFFF_FFFF_FFFF:012x}{secrets.token_hex(10)}"


def add_note(
    session: Session,
    kind: str,
    at: datetime.datetime,
    *,
    caller: Caller | None = None,
    user_id: int | None = None,
    workspace_id: int | None = None,
    session_id: int | None = None,
    detail: Detail | None = None,
) -> None:
    """Add one act to the transaction that `session` is in.

    `user_id` is whom it concerns, by default who did it; `caller` None is the
    operator on this machine. `detail` is for people: bounded texts and numbers.
    """
    assert kind in ACTS, kind
    if caller is None:
        by: Detail = {"by": OPERATOR}
    else:
        by = {"by": caller.email, "token": caller.token_id, "source": caller.source}
    audit_chain.add(
        session,
        audit_chain.make_values(
            gateway=CONTROL_PLANE,
            subject_id=_make_subject(at),
            phase=NOTE,
            kind=kind,
            at=at,
            recorded_at=at,
            workspace_id=workspace_id,
            session_id=session_id,
            user_id=user_id if user_id is not None or caller is None else caller.user_id,
            detail={**{key: value for key, value in by.items() if value not in (None, "")}, **(detail or {})},
        ),
    )
