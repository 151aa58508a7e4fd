"""API tokens: made once, shown once, stored as hashes, checked at every call.

Threat: a copy of the database, a guess, and a token that outlives its person.
Guarantee: a token is 256 random bits (of a form that was shown once: a MAC of its
number, by a key that the database does not hold) behind a prefix that secret
scanners can know; only its SHA-256 stands in the database (no salt or stretching: there is
nothing to guess), and the look-up is by that hash, so that timing says nothing
about the token. Unknown, revoked, expired, and "its user is disabled" are one
answer. Tokens make and end no other tokens: a signed-in person does that, for their
own (an admin ends anybody's), and a token may end itself.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import logging
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane import changes
from runcode.controlplane.clock import Clock
from runcode.controlplane.records import ORIGIN_CONSOLE, ORIGIN_OPERATOR, Caller, NewToken, TokenRecord
from runcode.controlplane.services import access, audit, inputs
from runcode.controlplane.services.gathering import Gathering
from runcode.controlplane.services.proofs import Proofs
from runcode.controlplane.services.users import load_user
from runcode.controlplane.services.web_sessions import require_browser, require_live
from runcode.controlplane.services.withdrawals import end_consents, revoke_sessions
from runcode.controlplane.states import SCOPE_READ, SCOPES
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import SessionRow, TokenRow, UserRow, UtcTime, WebSessionRow
from runcode.core.channel_policy import EVERYTHING, ChannelPolicy, describe_policy, parse_policy, render_policy
from runcode.core.errors import RunCodeError

_log = logging.getLogger(__name__)

TOKEN_PREFIX = "rct_"
_TOKEN = re.compile(r"rct_[A-Za-z0-9_-]{43}", re.ASCII)
_FORM_NUMBER = re.compile(r"[A-Za-z0-9_-]{24}", re.ASCII)
_TOUCH_EVERY = datetime.timedelta(minutes=1)
WORKSPACES_MAX = 100
EXPIRY_DAYS_MAX = 3650
_SEEN_MAX = 10_000
_ROUND_MAX = 200
_WAITING_MAX = 5000


@dataclass(frozen=True)
class TokenBounds:
    """What a token may do at most: scopes, workspaces (None: all of its person's), until when (None: until revoked).

    `policy` bounds the connections of its sessions, beside each workspace's own.
    """

    scopes: tuple[str, ...] = SCOPES
    workspace_ids: tuple[int, ...] | None = None
    expires_at: datetime.datetime | None = None
    policy: ChannelPolicy = EVERYTHING


UNBOUNDED = TokenBounds()


def draw_form_number() -> str:
    """For a page that offers to make a token, each time that it is shown."""
    return secrets.token_urlsafe(18)


async def _is_known(session: AsyncSession, plaintext: str) -> bool:
    """Whether it was ever made, revoked ones included."""
    return await session.scalar(select(TokenRow.id).where(TokenRow.token_hash == hash_token(plaintext))) is not None


_SELECT_LIVE = (
    select(
        TokenRow.token_hash,
        TokenRow.id,
        TokenRow.expires_at,
        TokenRow.last_used_at,
        TokenRow.scopes,
        TokenRow.workspace_ids,
        UserRow.id,
        UserRow.email,
        UserRow.is_admin,
    )
    .join(UserRow, UserRow.id == TokenRow.user_id)
    .where(
        TokenRow.token_hash.in_(bindparam("hashes", expanding=True)),
        TokenRow.revoked_at.is_(None),
        or_(TokenRow.expires_at.is_(None), TokenRow.expires_at > bindparam("now", type_=UtcTime())),
        UserRow.disabled_at.is_(None),
    )
)


@dataclass(frozen=True)
class _LiveToken:
    """A token that is valid, with its user."""

    token_hash: str
    token_id: int
    expires_at: datetime.datetime | None
    last_used_at: datetime.datetime | None
    scopes: frozenset[str]
    workspace_ids: frozenset[int] | None
    user_id: int
    email: str
    is_admin: bool


class Tokens:
    def __init__(
        self, store: Store, clock: Clock, proofs: Proofs, *, fresh_for: datetime.timedelta | None = None
    ) -> None:
        """`fresh_for`: how old a sign-in may be from which a person makes tokens; None: as old as it lasts."""
        self._store = store
        self._clock = clock
        self._proofs = proofs
        self._fresh_for = fresh_for
        self._touches: dict[int, asyncio.Task[None]] = {}
        self._seen: dict[str, tuple[Caller, datetime.datetime]] = {}
        self._live: Gathering[str, _LiveToken | None] = Gathering(
            self._find_live, round_max=_ROUND_MAX, waiting_max=_WAITING_MAX
        )

    async def create_token(self, email: str, name: str, *, bounds: TokenBounds = UNBOUNDED) -> NewToken:
        """The operator's, for any user. Its plain text is in the answer, and never again anywhere."""
        name = inputs.parse_label(name, what="token name")
        async with self._store.write() as session:
            user = await load_user(session, email)
            if user.disabled_at is not None:
                raise RunCodeError("bad_request", f"{user.email} is disabled", resolution="enable the user first")
            return await self.insert_token(session, user, name, bounds, origin=ORIGIN_OPERATOR)

    async def insert_token(
        self,
        session: AsyncSession,
        user: UserRow,
        name: str,
        bounds: TokenBounds = UNBOUNDED,
        *,
        origin: str,
        caller: Caller | None = None,
        plaintext: str | None = None,
    ) -> NewToken:
        """Part of a caller's transaction; `name` and `bounds` have been parsed. `plaintext` None: it is drawn here."""
        now = self._clock.now()
        if bounds.expires_at is not None and bounds.expires_at <= now:
            raise RunCodeError("bad_request", "that expiry is in the past", resolution="name a later time")
        plaintext = plaintext or TOKEN_PREFIX + secrets.token_urlsafe(32)
        row = TokenRow(
            user_id=user.id,
            name=name,
            token_hash=hash_token(plaintext),
            scopes=list(bounds.scopes),
            workspace_ids=None if bounds.workspace_ids is None else list(bounds.workspace_ids),
            policy=None if bounds.policy == EVERYTHING else dict(render_policy(bounds.policy)),
            origin=origin,
            created_at=now,
            expires_at=bounds.expires_at,
        )
        session.add(row)
        await session.flush()
        detail: audit.Detail = {"token": row.id, "name": name, "scopes": " ".join(bounds.scopes), "origin": origin}
        if bounds.policy != EVERYTHING:
            detail = {**detail, "policy": describe_policy(bounds.policy)}
        await audit.note(session, audit.TOKEN_CREATED, now, caller=caller, user_id=user.id, detail=detail)
        return NewToken(record=_as_record(row, user.email), plaintext=plaintext)

    async def list_tokens(self, email: str | None = None) -> list[TokenRecord]:
        """Newest last; of one user, or of all."""
        async with self._store.read() as session:
            query = select(TokenRow, UserRow.email).join(UserRow, UserRow.id == TokenRow.user_id).order_by(TokenRow.id)
            if email is not None:
                query = query.where(TokenRow.user_id == (await load_user(session, email)).id)
            return [_as_record(row, owner) for row, owner in (await session.execute(query)).all()]

    async def list_own(self, caller: Caller) -> list[TokenRecord]:
        """The signed-in person's that are not revoked, newest first."""
        require_browser(caller)
        async with self._store.read() as session:
            rows = await session.scalars(
                select(TokenRow)
                .where(TokenRow.user_id == caller.user_id, TokenRow.revoked_at.is_(None))
                .order_by(TokenRow.id.desc())
            )
            return [_as_record(row, caller.email) for row in rows]

    async def create_own(
        self, caller: Caller, name: str, bounds: TokenBounds = UNBOUNDED, *, form_number: str = ""
    ) -> NewToken:
        """For `runcode login --paste`. Raises `forbidden` for a token, `not_found` for a workspace not theirs.

        `form_number`, from `draw_form_number`: a form that comes twice (a reload of the answer) makes one token,
        and the second time raises `conflict`. Empty: each call makes one.
        """
        require_browser(caller)
        name = inputs.parse_label(name, what="token name")
        plaintext = self._derive(caller, form_number) if form_number else None
        async with self._store.write() as session:
            await require_live(session, caller, self._clock.now())
            await self._require_fresh(session, caller)
            user = await session.get_one(UserRow, caller.user_id)
            await require_usable(session, caller, bounds)
            if plaintext is not None and await _is_known(session, plaintext):
                raise RunCodeError(
                    "conflict",
                    "this form was sent before: its token was made then, and shown that once",
                    resolution="is it lost? revoke it and make another",
                )
            return await self.insert_token(
                session, user, name, bounds, origin=ORIGIN_CONSOLE, caller=caller, plaintext=plaintext
            )

    def _derive(self, caller: Caller, form_number: str) -> str:
        """The one token that this browser's form may make: nothing has to be kept to know it again."""
        if _FORM_NUMBER.fullmatch(form_number) is None:
            raise RunCodeError("bad_request", "that is not our form", resolution="open the page again")
        made = self._proofs.make("token of a form", str(caller.user_id), str(caller.web_session_id), form_number)
        return TOKEN_PREFIX + base64.urlsafe_b64encode(bytes.fromhex(made)).rstrip(b"=").decode()

    async def revoke_own_tokens(self, caller: Caller) -> int:
        """Every live token of the signed-in person. Returns how many that were."""
        require_browser(caller)
        async with self._store.write() as session:
            return await self._revoke_all(session, caller.user_id, caller)

    async def revoke_all_of(self, email: str) -> int:
        """For the operator: every live token of a user. Returns how many that were."""
        async with self._store.write() as session:
            return await self._revoke_all(session, (await load_user(session, email)).id, None)

    async def _revoke_all(self, session: AsyncSession, user_id: int, caller: Caller | None) -> int:
        which = TokenRow.user_id == user_id, TokenRow.revoked_at.is_(None)
        rows = (await session.scalars(select(TokenRow).where(*which))).all()
        for row in rows:
            await self.revoke_row(session, row, caller=caller)
        # Else a client that was consented to a moment ago fetches another one.
        await end_consents(session, self._clock.now(), user_id)
        return len(rows)

    async def revoke_token(self, token_id: int, *, caller: Caller | None = None) -> TokenRecord:
        """Idempotent. Its sessions end with it, and their live connections are cut.

        `caller` None is the operator. A token may name itself only, a person their own, an admin any.
        """
        async with self._store.write() as session:
            found = (
                await session.execute(
                    select(TokenRow, UserRow.email)
                    .join(UserRow, UserRow.id == TokenRow.user_id)
                    .where(TokenRow.id == token_id)
                )
            ).first()
            if found is None or not _may_revoke(found[0], caller):
                raise RunCodeError(
                    "not_found", f"there is no token {token_id}", resolution="see `runcode-server token list`"
                )
            row, owner = found
            if row.revoked_at is None:
                await self.revoke_row(session, row, caller=caller)
            return _as_record(row, owner)

    async def revoke_row(self, session: AsyncSession, row: TokenRow, *, caller: Caller | None = None) -> None:
        """Part of a caller's transaction."""
        now = self._clock.now()
        row.revoked_at = now
        # By the person's index: a token's sessions are its person's.
        await revoke_sessions(session, now, SessionRow.user_id == row.user_id, SessionRow.token_id == row.id)
        changes.append_change(session, changes.TOKEN_REVOKED, now, user_id=row.user_id)
        detail: audit.Detail = {"token": row.id, "name": row.name}
        await audit.note(session, audit.TOKEN_REVOKED, now, caller=caller, user_id=row.user_id, detail=detail)

    async def authenticate(self, raw_token: str | None, *, source: str = "") -> Caller:
        """Who holds this token; `unauthorized` without a word on why not. `source` is the peer's address."""
        found = None
        if raw_token is not None and _TOKEN.fullmatch(raw_token) is not None:
            found = await self._live.ask(hash_token(raw_token))
        if found is None:
            raise RunCodeError("unauthorized", "the API token is missing, unknown, expired or revoked")
        self._note_use(found.token_id, found.last_used_at)
        caller = Caller(
            user_id=found.user_id,
            email=found.email,
            is_admin=found.is_admin,
            token_id=found.token_id,
            token_expires_at=found.expires_at,
            scopes=found.scopes,
            workspace_ids=found.workspace_ids,
            source=source,
        )
        if len(self._seen) >= _SEEN_MAX:
            self._seen.clear()
        self._seen[found.token_hash] = (caller, self._clock.now())
        return caller

    def recall(self, raw_token: str, *, source: str = "") -> Caller | None:
        """Whose token this was when it was looked at, less than a minute ago; None: look, by `authenticate`.

        It may have been revoked since. Only for those who ask the database in the transaction that acts, as minting
        does; that a token is its person's for ever, and its number never another's, is all that is relied on here.
        """
        caller, at = self._seen.get(hash_token(raw_token), (None, None))
        if caller is None or at is None or abs(self._clock.now() - at) >= _TOUCH_EVERY:
            return None
        return caller if caller.source == source else replace(caller, source=source)

    async def close(self) -> None:
        """Answer whoever asks, and wait for the last notes of use."""
        await self._live.finish()
        await asyncio.gather(*self._touches.values(), return_exceptions=True)

    async def _require_fresh(self, session: AsyncSession, caller: Caller) -> None:
        """On plain http whatever listens on another port may have the cookie: it must not become a token later."""
        if self._fresh_for is None:
            return
        row = await session.get(WebSessionRow, caller.web_session_id)
        if row is None or self._clock.now() - row.created_at >= self._fresh_for:
            raise RunCodeError(
                "forbidden",
                "you signed in too long ago to make a token",
                resolution="sign out and in again, then make it within ten minutes",
            )

    async def _find_live(self, hashes: Sequence[str]) -> list[_LiveToken | None]:
        """One look for all who ask meanwhile. Each look begins after its askers did: no revocation is overlooked."""
        asked = {"hashes": list(set(hashes)), "now": self._clock.now()}
        async with self._store.read() as session:
            live = {row[0]: _as_live(*row) for row in (await session.execute(_SELECT_LIVE, asked)).all()}
        return [live.get(each) for each in hashes]

    def _note_use(self, token_id: int, last_used_at: datetime.datetime | None) -> None:
        """At most once a minute, and beside the call: a read must not wait for a writer."""
        now = self._clock.now()
        # A use noted "in the future" is of before the clock went back.
        fresh = last_used_at is not None and abs(now - last_used_at) < _TOUCH_EVERY
        if fresh or token_id in self._touches:
            return
        task = asyncio.get_running_loop().create_task(self._touch(token_id, now))
        self._touches[token_id] = task
        task.add_done_callback(lambda _task: self._touches.pop(token_id, None))

    async def _touch(self, token_id: int, now: datetime.datetime) -> None:
        try:
            async with self._store.write() as session:
                await session.execute(update(TokenRow).where(TokenRow.id == token_id).values(last_used_at=now))
        except RunCodeError as error:
            _log.warning("the last use of token %d was not noted: %s", token_id, error.message)


def parse_scopes(raw_scopes: Iterable[object]) -> tuple[str, ...]:
    """Scopes as people tick them or clients ask for them. Looking belongs to each of them. Raises `bad_request`."""
    asked = list(raw_scopes)
    if not asked or not all(isinstance(scope, str) and scope in SCOPES for scope in asked):
        raise RunCodeError(
            "bad_request", "those are not scopes of a token", resolution=f"choose some of: {', '.join(SCOPES)}"
        )
    return tuple(scope for scope in SCOPES if scope == SCOPE_READ or scope in asked)


def parse_expiry_days(raw_days: str, now: datetime.datetime) -> datetime.datetime | None:
    """ "" is never. Raises `bad_request`."""
    if raw_days == "":
        return None
    if not (raw_days.isascii() and raw_days.isdigit() and 0 < int(raw_days[:9]) <= EXPIRY_DAYS_MAX):
        raise RunCodeError(
            "bad_request",
            "that is not a number of days",
            resolution=f"give 1 to {EXPIRY_DAYS_MAX} days, or nothing for a token that does not expire",
        )
    return now + datetime.timedelta(days=int(raw_days))


async def require_usable(session: AsyncSession, caller: Caller, bounds: TokenBounds) -> None:
    """Raises `not_found` when the bounds name a workspace that the caller may not use."""
    if bounds.workspace_ids is None:
        return
    if not 0 < len(bounds.workspace_ids) <= WORKSPACES_MAX:
        raise RunCodeError(
            "bad_request", "that many workspaces cannot be named", resolution=f"name 1 to {WORKSPACES_MAX}, or none"
        )
    for workspace_id in bounds.workspace_ids:
        await access.load_visible(session, workspace_id, caller, SCOPE_READ)


def _may_revoke(row: TokenRow, caller: Caller | None) -> bool:
    if caller is None:
        return True
    if caller.web_session_id is None:
        return row.id == caller.token_id
    return row.user_id == caller.user_id or caller.is_admin


def hash_token(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode()).hexdigest()


def _as_live(
    token_hash: str,
    token_id: int,
    expires_at: datetime.datetime | None,
    last_used_at: datetime.datetime | None,
    scopes: list[str],
    workspace_ids: list[int] | None,
    *user: Any,
) -> _LiveToken:
    within = None if workspace_ids is None else frozenset(workspace_ids)
    return _LiveToken(token_hash, token_id, expires_at, last_used_at, frozenset(scopes), within, *user)


def _as_record(row: TokenRow, user_email: str) -> TokenRecord:
    return TokenRecord(
        id=row.id,
        user_email=user_email,
        name=row.name,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        scopes=tuple(row.scopes),
        workspace_ids=None if row.workspace_ids is None else tuple(row.workspace_ids),
        origin=row.origin,
        policy=parse_policy(row.policy),
    )
