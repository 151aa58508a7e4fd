"""People: made, listed, disabled; passwords checked.

Owns: the users table. Called by the operator's CLI and `bootstrap`.

Threat: a password file that leaks, and a caller who measures which e-mail
addresses exist.
Guarantee: argon2id only, computed outside any transaction; an unknown e-mail
address, a user without a password and a wrong password cost and answer the same.
A right password is hashed anew when the parameters have changed. Disabling a user
revokes every session, signs every browser out and cuts live connections by the
change feed, in one transaction; another password signs the browsers out.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import argon2
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane import changes
from runcode.controlplane.clock import Clock
from runcode.controlplane.records import Caller, UserRecord
from runcode.controlplane.services import audit, inputs, invitations
from runcode.controlplane.services.withdrawals import end_sign_ins, revoke_sessions
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import SessionRow, UserRow
from runcode.core.errors import RunCodeError


@dataclass(frozen=True)
class CheckedPassword:
    """A password that was right a moment ago: for the transaction that acts on it to compare with.

    `renewed_hash` is of the same password with today's parameters, None when it has them already.
    """

    user: UserRecord
    password_hash: str = field(repr=False)
    renewed_hash: str | None = field(repr=False, default=None)


class Users:
    def __init__(self, store: Store, clock: Clock, hasher: argon2.PasswordHasher) -> None:
        self._store = store
        self._clock = clock
        self._hasher = hasher
        self._decoy: str | None = None

    async def create_user(
        self, email: str, password: str | None = None, *, admin: bool = False, caller: Caller | None = None
    ) -> UserRecord:
        """Raises `bad_request` for an address or password that cannot be used, `conflict` when the user exists.

        Without a password they sign in by a link, or by the OpenID provider.
        """
        email = inputs.parse_email(email)
        password_hash = None if password is None else await self.hash_password(password)
        async with self._store.write() as session:
            return as_record(await self.insert_user(session, email, password_hash, admin=admin, caller=caller))

    async def insert_user(
        self,
        session: AsyncSession,
        email: str,
        password_hash: str | None,
        *,
        admin: bool,
        caller: Caller | None = None,
        detail: audit.Detail | None = None,
    ) -> UserRow:
        """Part of a caller's transaction; `email` has been parsed."""
        if await session.scalar(select(UserRow.id).where(UserRow.email == email)) is not None:
            raise RunCodeError("conflict", f"there is a user {email} already", resolution="use another e-mail address")
        row = UserRow(email=email, password_hash=password_hash, is_admin=admin, created_at=self._clock.now())
        session.add(row)
        await session.flush()
        await invitations.redeem(session, row, row.created_at)
        told: audit.Detail = {"email": email, "admin": int(admin), **(detail or {})}
        await audit.note(session, audit.USER_CREATED, row.created_at, caller=caller, user_id=row.id, detail=told)
        return row

    async def list_users(self) -> list[UserRecord]:
        async with self._store.read() as session:
            return [as_record(row) for row in await session.scalars(select(UserRow).order_by(UserRow.id))]

    async def disable_user(self, email: str, *, caller: Caller | None = None) -> UserRecord:
        """Idempotent. Tokens stop working, sessions end, browsers are signed out, live connections are cut."""
        async with self._store.write() as session:
            row = await load_user(session, email)
            if row.disabled_at is None:
                now = self._clock.now()
                row.disabled_at = now
                await revoke_sessions(session, now, SessionRow.user_id == row.id)
                await end_sign_ins(session, now, row.id)
                changes.append_change(session, changes.USER_DISABLED, now, user_id=row.id)
                detail = {"email": row.email}
                await audit.note(session, audit.USER_DISABLED, now, caller=caller, user_id=row.id, detail=detail)
            return as_record(row)

    async def enable_user(self, email: str, *, caller: Caller | None = None) -> UserRecord:
        """Idempotent. Tokens that were not revoked work again; ended sessions stay ended."""
        async with self._store.write() as session:
            row = await load_user(session, email)
            if row.disabled_at is not None:
                row.disabled_at = None
                detail = {"email": row.email}
                now = self._clock.now()
                await audit.note(session, audit.USER_ENABLED, now, caller=caller, user_id=row.id, detail=detail)
            return as_record(row)

    async def set_password(self, email: str, password: str, *, caller: Caller | None = None) -> UserRecord:
        """Whatever the old one was. Every browser of theirs is signed out."""
        password_hash = await self.hash_password(password)
        async with self._store.write() as session:
            row = await load_user(session, email)
            await self.replace_password(session, row, password_hash, caller=caller)
            return as_record(row)

    async def replace_password(
        self, session: AsyncSession, row: UserRow, password_hash: str, *, caller: Caller | None
    ) -> None:
        """Part of a caller's transaction. The caller's own browser stays signed in, all others of that person end."""
        now = self._clock.now()
        row.password_hash = password_hash
        keep = caller.web_session_id if caller is not None and caller.user_id == row.id else None
        await end_sign_ins(session, now, row.id, keep_web_session_id=keep)
        await audit.note(session, audit.PASSWORD_CHANGED, now, caller=caller, user_id=row.id)

    async def check_password(self, email: str, password: str) -> CheckedPassword:
        """Whose it is, or `unauthorized`, which never says why."""
        async with self._store.read() as session:
            row = await session.scalar(select(UserRow).where(UserRow.email == email.strip().lower()))
        stored = row.password_hash if row is not None else None
        given = password[: inputs.PASSWORD_MAX]
        matches = await asyncio.to_thread(self._verify, stored, given)
        if row is None or stored is None or row.disabled_at is not None or not matches:
            raise RunCodeError("unauthorized", "the e-mail address or the password is wrong", resolution="try again")
        renewed = await asyncio.to_thread(self._hasher.hash, given) if self._hasher.check_needs_rehash(stored) else None
        return CheckedPassword(as_record(row), stored, renewed)

    async def hash_password(self, password: str) -> str:
        return await asyncio.to_thread(self._hasher.hash, inputs.parse_password(password))

    def _verify(self, stored: str | None, password: str) -> bool:
        if self._decoy is None:
            self._decoy = self._hasher.hash("nobody's password")
        try:
            return self._hasher.verify(stored or self._decoy, password) and stored is not None
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False


async def find_user(session: AsyncSession, email: str) -> UserRow | None:
    return await session.scalar(select(UserRow).where(UserRow.email == email.strip().lower()))


async def load_user(session: AsyncSession, email: str) -> UserRow:
    row = await find_user(session, email)
    if row is None:
        raise RunCodeError(
            "not_found", f"there is no user {email.strip()!r}", resolution="make one: `runcode-server user create`"
        )
    return row


def as_record(row: UserRow) -> UserRecord:
    return UserRecord(
        id=row.id,
        email=row.email,
        is_admin=row.is_admin,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        workspaces_max=row.workspaces_max,
        running_max=row.running_max,
    )
