"""Links that sign their person in, once: at the first start, and when a password is lost at 3 am.

Owns: the sign_in_links table. Made by the operator only (`runcode-server user
sign-in-link`, and the first start); used by the sign-in pages.

Threat: a link that is read elsewhere (a log, a history), guessed, used twice, or
opened by a mail program that looks at links before people do.
Guarantee: 256 random bits, kept as a hash, good once and for minutes. Opening the
address uses nothing up: that takes the button of the page behind it, which carries a
proof for that browser. A newer link for the same person ends the older ones.
"""

from __future__ import annotations

import datetime
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.clock import Clock
from runcode.controlplane.records import UserRecord
from runcode.controlplane.services.tokens import hash_token
from runcode.controlplane.services.users import as_record, load_user
from runcode.controlplane.services.web_sessions import METHOD_LINK, NewWebSession, Visitor, WebSessions
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import SignInLinkRow, UserRow
from runcode.core.errors import RunCodeError

VALID_FOR: Final = datetime.timedelta(minutes=15)
LINK_PATH: Final = "/sign-in/link"
_SECRET = re.compile(r"rcl_[A-Za-z0-9_-]{43}", re.ASCII)
_SKEW: Final = datetime.timedelta(minutes=1)


@dataclass(frozen=True)
class NewSignInLink:
    """`path` is to be put behind the server's web address; it is the secret."""

    user: UserRecord
    expires_at: datetime.datetime
    path: str = field(repr=False)


class SignInLinks:
    def __init__(self, store: Store, clock: Clock, web_sessions: WebSessions) -> None:
        self._store = store
        self._clock = clock
        self._web_sessions = web_sessions

    async def create_link(self, email: str) -> NewSignInLink:
        """The operator's alone. Raises `bad_request` for a disabled user."""
        secret = "rcl_" + secrets.token_urlsafe(32)
        async with self._store.write() as session:
            user = await load_user(session, email)
            if user.disabled_at is not None:
                raise RunCodeError("bad_request", f"{user.email} is disabled", resolution="enable the user first")
            now = self._clock.now()
            await session.execute(delete(SignInLinkRow).where(SignInLinkRow.user_id == user.id))
            session.add(
                SignInLinkRow(
                    secret_hash=hash_token(secret), user_id=user.id, created_at=now, expires_at=now + VALID_FOR
                )
            )
            return NewSignInLink(as_record(user), now + VALID_FOR, f"{LINK_PATH}?link={secret}")

    async def find_email(self, raw_secret: str) -> str:
        """Whom the link would sign in; uses nothing up. Raises `forbidden` for one that does not work."""
        async with self._store.read() as session:
            return (await self._load(session, raw_secret)).email

    async def use(self, raw_secret: str, visitor: Visitor) -> NewWebSession:
        """Sign this browser in. Raises `forbidden`, which never says what was wrong with the link."""
        async with self._store.write() as session:
            user = await self._load(session, raw_secret)
            used = (
                update(SignInLinkRow)
                .where(SignInLinkRow.secret_hash == hash_token(raw_secret), SignInLinkRow.used_at.is_(None))
                .values(used_at=self._clock.now())
                .returning(SignInLinkRow.user_id)
            )
            if await session.scalar(used) is None:
                raise _refuse()
            return await self._web_sessions.insert_session(session, user, visitor, method=METHOD_LINK)

    async def _load(self, session: AsyncSession, raw_secret: str) -> UserRow:
        if _SECRET.fullmatch(raw_secret) is None:
            raise _refuse()
        now = self._clock.now()
        found = await session.scalar(
            select(UserRow)
            .join(SignInLinkRow, SignInLinkRow.user_id == UserRow.id)
            .where(
                SignInLinkRow.secret_hash == hash_token(raw_secret),
                SignInLinkRow.used_at.is_(None),
                SignInLinkRow.expires_at > now,
                SignInLinkRow.created_at <= now + _SKEW,
                UserRow.disabled_at.is_(None),
            )
        )
        if found is None:
            raise _refuse()
        return found


def _refuse() -> RunCodeError:
    return RunCodeError(
        "forbidden",
        "this sign-in link is unknown, used, or too old",
        resolution="ask your operator for another: `runcode-server user sign-in-link EMAIL`",
    )
