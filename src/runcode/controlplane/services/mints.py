"""The transaction that mints for many callers at once.

Owns: what is read and written for a round of mints, and each one's judgement by
its own rules, in the order in which they came. Called by `sessions`, whose
guarantee this keeps; nothing here waits for anything but the database.

One statement reads for all of them, another writes for all. A mint sees what the
ones before it in the round have done, as if each had its own transaction: the
write lock is held from before the first look until the commit.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

from sqlalchemy import Integer, Table, and_, bindparam, func, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from runcode.controlplane.records import Caller, SessionRecord, SshEndpoint
from runcode.controlplane.services import access, audit
from runcode.controlplane.states import RUNNING, SCOPE_CONNECT, show_state
from runcode.controlplane.store.models import SessionRow, TokenRow, UserRow, UtcTime
from runcode.controlplane.store.row_lists import insert_rows, render_rows, row_list
from runcode.core.errors import RunCodeError


@dataclass(frozen=True, slots=True)
class Mint:
    """A wish that has been parsed. `public_key` is `algorithm base64`; `ttl_s` is within the policy's cap."""

    caller: Caller
    workspace_id: int
    fingerprint: str
    public_key: str
    ttl_s: int
    client: str


@dataclass(slots=True)
class _Session:
    """A session that holds a key, or held it until this round; `id` is 0 until it is stored."""

    id: int
    user_id: int
    workspace_id: int
    token_id: int
    fingerprint: str
    public_key: str
    client: str
    created_at: datetime.datetime
    expires_at: datetime.datetime
    released_at: datetime.datetime | None = None


class _Bounds(NamedTuple):
    """What a token allows now."""

    expires_at: datetime.datetime | None
    scopes: frozenset[str]
    workspace_ids: frozenset[int] | None


_sessions = cast(Table, SessionRow.__table__)
_columns = _sessions.c


def _types(*names: str) -> dict[str, TypeEngine[Any]]:
    return {name: _columns[name].type for name in names}


_wanted = row_list("wanted", n=Integer(), **_types("user_id", "workspace_id", "token_id", "fingerprint"))
_HELD = tuple(field.name for field in fields(_Session) if field.name != "released_at")
# One look for all of them, each by its own keys: workspace and role, token and person, and who holds the key.
_SELECT_FACTS = (
    access.select_wanted(_wanted)
    .add_columns(
        UserRow.id,
        TokenRow.expires_at,
        TokenRow.scopes,
        TokenRow.workspace_ids,
        *(_columns[name] for name in _HELD),
    )
    .outerjoin(
        TokenRow,
        and_(
            TokenRow.id == _wanted.c.token_id,
            TokenRow.user_id == _wanted.c.user_id,
            TokenRow.revoked_at.is_(None),
            or_(TokenRow.expires_at.is_(None), TokenRow.expires_at > bindparam("now", type_=UtcTime())),
        ),
    )
    .outerjoin(UserRow, and_(UserRow.id == TokenRow.user_id, UserRow.disabled_at.is_(None)))
    .outerjoin(SessionRow, and_(SessionRow.fingerprint == _wanted.c.fingerprint, SessionRow.released_at.is_(None)))
)
_WORKSPACE = slice(1, 9)
_TOKEN = slice(9, 13)
_HOLDER = slice(13, None)
_CHANGING = ("token_id", "client", "created_at", "expires_at", "released_at")
_STORED = ("user_id", "workspace_id", "fingerprint", "public_key", *_CHANGING)
# Under the write lock ids grow in the order of the rows. They are asked for afterwards: with `returning`, sqlite3
# gives Python's lock away and waits for it again at each row.
_SELECT_NEWEST = select(func.coalesce(func.max(_columns.id), 0))
_SELECT_FRESH = select(_columns.id).where(_columns.id > bindparam("newest", type_=Integer())).order_by(_columns.id)
_changed = row_list("changed", **_types("id", *_CHANGING))
_UPDATE_CHANGED = (
    update(_sessions).where(_columns.id == _changed.c.id).values({name: _changed.c[name] for name in _CHANGING})
)


def mint_all(
    session: Session, mints: Sequence[Mint], endpoint: SshEndpoint | None, moment: datetime.datetime
) -> list[SessionRecord | RunCodeError]:
    """A record for each that may, a refusal for each that may not. Part of a transaction that has the write lock."""
    now = moment.replace(microsecond=0)
    connection = session.connection()
    wanted = render_rows(
        (n, mint.caller.user_id, mint.workspace_id, mint.caller.token_id, mint.fingerprint)
        for n, mint in enumerate(mints)
    )
    facts = {row[0]: row for row in connection.execute(_SELECT_FACTS, {"wanted": wanted, "now": now}).all()}
    held_now = (_Session(*row[_HOLDER]) for row in facts.values() if row[_HOLDER.start] is not None)
    holders = {row.fingerprint: row for row in held_now}

    outcomes: list[tuple[str, _Session] | RunCodeError] = []
    fresh: list[_Session] = []
    changed: dict[int, _Session] = {}
    for n, mint in enumerate(mints):
        before = holders.get(mint.fingerprint)
        try:
            caller = _find_bounds(mint.caller, facts[n][_TOKEN])
            if caller is None:
                # Before the workspace is looked at: whose token ended learns nothing of how that is now.
                raise RunCodeError("unauthorized", "the API token is missing, unknown, expired or revoked")
            title = _judge_workspace(mint, caller, facts[n][_WORKSPACE], endpoint)
            held = _let_go(before, mint, now)
        except RunCodeError as refusal:
            outcomes.append(refusal)
            continue
        if before is not None and before.id:
            changed[before.id] = before
        if held is None:
            held = holders[mint.fingerprint] = _start(mint, now)
            fresh.append(held)
        _extend(held, mint, caller, now)
        outcomes.append((title, held))

    if changed:
        # Keys are let go of before others take them: no two rows may hold one.
        rows = render_rows((row.id, *(getattr(row, name) for name in _CHANGING)) for row in changed.values())
        connection.execute(_UPDATE_CHANGED, {"changed": rows})
    if fresh:
        before = connection.execute(_SELECT_NEWEST).scalar_one()
        insert_rows(session, SessionRow, [{name: getattr(row, name) for name in _STORED} for row in fresh])
        newest = connection.execute(_SELECT_NEWEST).scalar_one()
        ids: Sequence[int] = range(before + 1, newest + 1)
        if len(ids) != len(fresh):
            ids = connection.execute(_SELECT_FRESH, {"newest": before}).scalars().all()
        for row, row_id in zip(fresh, ids, strict=True):
            row.id = row_id
    return [
        outcome if isinstance(outcome, RunCodeError) else _note(session, mint, *outcome, moment)
        for mint, outcome in zip(mints, outcomes, strict=True)
    ]


def _find_bounds(caller: Caller, token: Any) -> Caller | None:
    """The caller, bound by their token as it is now; None when it is valid no more.

    The call was authenticated before this transaction: a revocation may have come in between.
    """
    user_id, expires_at, scopes, workspace_ids = token
    if user_id is None or caller.token_id is None:
        return None
    bounds = _Bounds(
        expires_at=expires_at,
        scopes=frozenset(scopes),
        workspace_ids=None if workspace_ids is None else frozenset(workspace_ids),
    )
    if bounds == (caller.token_expires_at, caller.scopes, caller.workspace_ids):
        return caller
    return replace(caller, token_expires_at=bounds.expires_at, scopes=bounds.scopes, workspace_ids=bounds.workspace_ids)


def _judge_workspace(mint: Mint, caller: Caller, facts: Any, endpoint: SshEndpoint | None) -> str:
    """The workspace's title, if the caller may have a session there now."""
    owner_id, rank, title, desired, observed, activity, failures, reason = facts
    if owner_id is None or (caller.workspace_ids is not None and mint.workspace_id not in caller.workspace_ids):
        raise access.refuse_unseen(mint.workspace_id)
    if access.find_role(owner_id, caller.user_id, rank) is None:
        raise access.refuse_unseen(mint.workspace_id)
    access.require_scope(caller, SCOPE_CONNECT)
    if endpoint is None:
        raise RunCodeError("unavailable", "SSH access is not configured")
    current, interim = show_state(desired=desired, observed=observed, activity=activity, failures=failures)
    if desired != RUNNING or (interim or current) != RUNNING:
        shown = f"{interim or current}: {reason}" if reason else (interim or current)
        raise RunCodeError("conflict", f"{title} is not running (it is {shown})")
    return str(title)


def _let_go(held: _Session | None, mint: Mint, now: datetime.datetime) -> _Session | None:
    """The session to extend. None: the key is free, now if not before."""
    if held is None or (held.user_id, held.workspace_id) == (mint.caller.user_id, mint.workspace_id):
        return held
    if held.expires_at > now:
        # Not `conflict`: clients take that for "not running yet", and would wait for it to pass.
        raise RunCodeError(
            "bad_request",
            "this public key belongs to another session",
            resolution="make a new key: `runcode connect WS --force`",
        )
    held.released_at = now
    return None


def _start(mint: Mint, now: datetime.datetime) -> _Session:
    return _Session(
        id=0,
        user_id=mint.caller.user_id,
        workspace_id=mint.workspace_id,
        token_id=0,
        fingerprint=mint.fingerprint,
        public_key=mint.public_key,
        client=mint.client,
        created_at=now,
        expires_at=now,
    )


def _extend(held: _Session, mint: Mint, caller: Caller, now: datetime.datetime) -> None:
    token_end = caller.token_expires_at
    expires_at = now + datetime.timedelta(seconds=mint.ttl_s)
    held.expires_at = expires_at if token_end is None else min(expires_at, token_end.replace(microsecond=0))
    assert caller.token_id is not None
    held.token_id, held.client = caller.token_id, mint.client
    # Of before the clock went back: from now on it is a session of today (see `admission`).
    held.created_at = min(held.created_at, now)


def _note(session: Session, mint: Mint, title: str, held: _Session, moment: datetime.datetime) -> SessionRecord:
    audit.add_note(
        session,
        audit.SESSION_MINTED,
        moment,
        caller=mint.caller,
        workspace_id=mint.workspace_id,
        session_id=held.id,
        detail={"client": mint.client, "key": mint.fingerprint},
    )
    return SessionRecord(
        id=held.id,
        workspace_id=held.workspace_id,
        workspace_title=title,
        user_email=mint.caller.email,
        token_id=held.token_id,
        fingerprint=held.fingerprint,
        client=held.client,
        created_at=held.created_at,
        expires_at=held.expires_at,
        revoked_at=None,
    )
