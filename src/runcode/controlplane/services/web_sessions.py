"""Signed-in browsers: a cookie's secret, whose it is, and when that ends.

Owns: the web_sessions table. Called by the sign-in services, by the pages (through
`routes/browser_io`), and by whatever shuts a person out.

Threat: a copy of the database; a secret that somebody planted before the sign-in;
a browser that is left open; a cookie that was stolen. Cookies know no ports: on
plain http, whatever listens on another port of 127.0.0.1 and is visited receives
ours - a server of another user of that machine, or a forwarded box.
Guarantee: 256 random bits, made at the sign-in, kept as a hash. A session ends when
it was idle, or old, or its person signed out, got another password, or was
disabled: in the transaction that does it. On plain http it counts only for processes
of the operating system's user whose browser signed in (`Visitor.binding`), and what
makes credentials asks for a sign-in of the last ten minutes.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import logging
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.clock import Clock
from runcode.controlplane.records import Caller
from runcode.controlplane.services import audit
from runcode.controlplane.services.users import load_user
from runcode.controlplane.services.withdrawals import end_consents, end_web_sessions
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import UserRow, WebSessionRow
from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable

_log = logging.getLogger(__name__)

METHOD_PASSWORD: Final = "password"
METHOD_OIDC: Final = "oidc"
METHOD_LINK: Final = "link"
BROWSER_MAX: Final = 200
KEPT_PER_PERSON: Final = 20
_SECRET = re.compile(r"rcw_[A-Za-z0-9_-]{43}", re.ASCII)
_TOUCH_EVERY: Final = datetime.timedelta(minutes=1)
# A clock that was set back by more makes sessions of "the future" count for nothing.
_SKEW: Final = datetime.timedelta(minutes=5)
_ENDED_KEPT: Final = datetime.timedelta(days=30)


@dataclass(frozen=True)
class WebSessionPolicy:
    """How long a signed-in browser stays so: without use, at all, and as proof that the person is there now."""

    idle: datetime.timedelta = datetime.timedelta(hours=24)
    absolute: datetime.timedelta = datetime.timedelta(days=14)
    fresh: datetime.timedelta = datetime.timedelta(minutes=10)


# Where cookies know no ports and no encryption.
PLAIN_HTTP: Final = WebSessionPolicy(idle=datetime.timedelta(hours=2), absolute=datetime.timedelta(hours=12))


@dataclass(frozen=True)
class Visitor:
    """The browser as a request shows it: its address, its own words, and what its sessions hold for besides.

    `binding` names the operating system's user behind a loopback connection, "" where there is none to name.
    """

    source: str
    browser: str = ""
    binding: str = ""


@dataclass(frozen=True)
class SignedInBrowser:
    """`fresh`: the person gave proof of themselves within the last minutes."""

    caller: Caller
    signed_in_at: datetime.datetime
    fresh: bool


@dataclass(frozen=True)
class NewWebSession:
    """The only moment at which the cookie's secret exists here."""

    id: int
    secret: str = field(repr=False)


@dataclass(frozen=True)
class WebSessionRecord:
    """`browser` is what it says of itself; `current`: it is the one that asks."""

    id: int
    method: str
    source: str
    browser: str
    created_at: datetime.datetime
    last_seen_at: datetime.datetime
    expires_at: datetime.datetime
    current: bool


class WebSessions:
    def __init__(self, store: Store, clock: Clock, policy: WebSessionPolicy) -> None:
        self.policy = policy
        self._store = store
        self._clock = clock
        self._touches: dict[int, asyncio.Task[None]] = {}

    async def insert_session(
        self, session: AsyncSession, user: UserRow, visitor: Visitor, *, method: str
    ) -> NewWebSession:
        """Part of the transaction that lets somebody in; always a secret that nobody knew before."""
        now = self._clock.now()
        secret = "rcw_" + secrets.token_urlsafe(32)
        await self._make_room(session, user.id, now)
        browser = printable(visitor.browser, limit=BROWSER_MAX)[:BROWSER_MAX]
        row = WebSessionRow(
            user_id=user.id,
            secret_hash=_digest(secret, visitor.binding),
            method=method,
            source=visitor.source[:64],
            browser=browser,
            created_at=now,
            last_seen_at=now,
            expires_at=now + self.policy.absolute,
        )
        session.add(row)
        await session.flush()
        caller = _as_caller(row, user, visitor.source)
        detail: audit.Detail = {"method": method, "web_session": row.id, "browser": browser}
        await audit.note(session, audit.SIGNED_IN, now, caller=caller, detail=detail)
        return NewWebSession(id=row.id, secret=secret)

    async def find_signed_in(self, raw_secret: str, visitor: Visitor, *, counts: bool = True) -> SignedInBrowser | None:
        """Who is signed in with this cookie; None without a word on why not. `counts`: the person is using it."""
        if _SECRET.fullmatch(raw_secret) is None:
            return None
        now = self._clock.now()
        async with self._store.read() as session:
            found = (
                await session.execute(
                    select(WebSessionRow, UserRow)
                    .join(UserRow, UserRow.id == WebSessionRow.user_id)
                    .where(
                        WebSessionRow.secret_hash == _digest(raw_secret, visitor.binding),
                        WebSessionRow.ended_at.is_(None),
                        WebSessionRow.expires_at > now,
                        WebSessionRow.created_at <= now + _SKEW,
                        WebSessionRow.last_seen_at > now - self.policy.idle,
                        UserRow.disabled_at.is_(None),
                    )
                )
            ).first()
        if found is None:
            return None
        row, user = found
        if counts:
            self._note_use(row, now)
        fresh = now - row.created_at < self.policy.fresh
        return SignedInBrowser(_as_caller(row, user, visitor.source), row.created_at, fresh)

    async def list_sessions(self, caller: Caller) -> list[WebSessionRecord]:
        """The caller's own live ones, newest first."""
        require_browser(caller)
        async with self._store.read() as session:
            rows = await self._load_live(session, caller.user_id)
        return [_as_record(row, caller) for row in rows]

    async def end_session(self, caller: Caller, web_session_id: int) -> None:
        """One of the caller's own; idempotent. `not_found` for anybody else's, and for none."""
        require_browser(caller)
        async with self._store.write() as session:
            row = await session.get(WebSessionRow, web_session_id)
            if row is None or row.user_id != caller.user_id:
                raise RunCodeError(
                    "not_found", "there is no such signed-in browser of yours", resolution="open the list again"
                )
            if row.ended_at is None:
                now = self._clock.now()
                await end_web_sessions(session, now, WebSessionRow.id == row.id)
                if row.id != caller.web_session_id:
                    # Somebody else may have sat there: what they let a client do is not to outlive it.
                    await end_consents(session, now, caller.user_id)
                detail: audit.Detail = {"web_session": row.id}
                await audit.note(session, audit.SIGNED_OUT, now, caller=caller, detail=detail)

    async def end_all(self, caller: Caller, *, keep_this: bool = False) -> int:
        """Sign-out everywhere: each browser that is signed in as the caller, and consents that wait for their clients.

        Returns how many browsers that were.
        """
        require_browser(caller)
        async with self._store.write() as session:
            now = self._clock.now()
            rows = await self._load_live(session, caller.user_id)
            going = [row.id for row in rows if not (keep_this and row.id == caller.web_session_id)]
            await end_web_sessions(session, now, WebSessionRow.id.in_(going))
            await end_consents(session, now, caller.user_id)
            detail: audit.Detail = {"web_sessions": len(going)}
            await audit.note(session, audit.SIGNED_OUT, now, caller=caller, detail=detail)
        return len(going)

    async def end_all_of(self, email: str, *, caller: Caller | None = None) -> int:
        """For the operator and admins: sign somebody out everywhere. Returns how many browsers that were."""
        if caller is not None and not (caller.is_admin and caller.web_session_id is not None):
            raise RunCodeError("forbidden", "only an admin may sign others out")
        async with self._store.write() as session:
            user = await load_user(session, email)
            going = [row.id for row in await self._load_live(session, user.id)]
            now = self._clock.now()
            await end_web_sessions(session, now, WebSessionRow.id.in_(going))
            await end_consents(session, now, user.id)
            detail: audit.Detail = {"web_sessions": len(going)}
            await audit.note(session, audit.SIGNED_OUT, now, caller=caller, user_id=user.id, detail=detail)
        return len(going)

    async def close(self) -> None:
        """Wait for the last notes of use."""
        await asyncio.gather(*self._touches.values(), return_exceptions=True)

    async def _load_live(self, session: AsyncSession, user_id: int) -> Sequence[WebSessionRow]:
        now = self._clock.now()
        query = select(WebSessionRow).where(
            WebSessionRow.user_id == user_id,
            WebSessionRow.ended_at.is_(None),
            WebSessionRow.expires_at > now,
            WebSessionRow.last_seen_at > now - self.policy.idle,
        )
        return (await session.scalars(query.order_by(WebSessionRow.id.desc()))).all()

    async def _make_room(self, session: AsyncSession, user_id: int, now: datetime.datetime) -> None:
        """A person's sign-ins end the oldest of their own and nobody else's; what ended long ago is forgotten."""
        live = await self._load_live(session, user_id)
        going = [row.id for row in live[KEPT_PER_PERSON - 1 :]]
        await end_web_sessions(session, now, WebSessionRow.id.in_(going))
        await session.execute(delete(WebSessionRow).where(WebSessionRow.expires_at < now - _ENDED_KEPT))

    def _note_use(self, row: WebSessionRow, now: datetime.datetime) -> None:
        """At most once a minute, and beside the call: a page must not wait for a writer."""
        if abs(now - row.last_seen_at) < _TOUCH_EVERY or row.id in self._touches:
            return
        task = asyncio.get_running_loop().create_task(self._touch(row.id, now))
        self._touches[row.id] = task
        task.add_done_callback(lambda _task: self._touches.pop(row.id, None))

    async def _touch(self, web_session_id: int, now: datetime.datetime) -> None:
        try:
            async with self._store.write() as session:
                await session.execute(
                    update(WebSessionRow).where(WebSessionRow.id == web_session_id).values(last_seen_at=now)
                )
        except RunCodeError as error:
            _log.warning("the last use of web session %d was not noted: %s", web_session_id, error.message)


def require_browser(caller: Caller | None) -> None:
    """For what only a signed-in person may do: no API token, whatever its scopes. None is the operator."""
    if caller is not None and caller.web_session_id is None:
        raise RunCodeError(
            "forbidden",
            "an API token may not do that, only a person who is signed in",
            resolution="sign in at the server's web address",
        )


async def require_live(session: AsyncSession, caller: Caller, now: datetime.datetime) -> None:
    """Part of a transaction that makes credentials: raises `forbidden` when that browser was signed out since it asked.

    The write lock is held, so whoever signs it out does so before this, or finds what it made.
    """
    require_browser(caller)
    found = await session.scalar(
        select(WebSessionRow.id)
        .join(UserRow, UserRow.id == WebSessionRow.user_id)
        .where(
            WebSessionRow.id == caller.web_session_id,
            WebSessionRow.user_id == caller.user_id,
            WebSessionRow.ended_at.is_(None),
            WebSessionRow.expires_at > now,
            UserRow.disabled_at.is_(None),
        )
    )
    if found is None:
        raise RunCodeError(
            "forbidden", "nobody is signed in for this any more", resolution="open the page again, and sign in"
        )


def _as_caller(row: WebSessionRow, user: UserRow, source: str) -> Caller:
    return Caller(
        user_id=user.id,
        email=user.email,
        is_admin=user.is_admin,
        token_id=None,
        token_expires_at=None,
        web_session_id=row.id,
        source=source,
    )


def _as_record(row: WebSessionRow, caller: Caller) -> WebSessionRecord:
    return WebSessionRecord(
        id=row.id,
        method=row.method,
        source=row.source,
        browser=row.browser,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        expires_at=row.expires_at,
        current=row.id == caller.web_session_id,
    )


def _digest(secret: str, binding: str) -> str:
    return hashlib.sha256(f"{secret}\0{binding}".encode()).hexdigest()
