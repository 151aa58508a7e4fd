"""People: made, listed, disabled; passwords checked.

Owns: the users table. Called by the operator's CLI and `bootstrap`.

Threat: a password file that leaks, and a caller who measures which e-mail
addresses exist.
Guarantee: argon2id only, computed outside any transaction; an unknown e-mail
address, a user without a password and a wrong password cost and answer the same.
Disabling a user revokes every session and cuts live connections by the change
feed, in one transaction.
"""

from __future__ import annotations

import asyncio

import argon2
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane import changes
from runcode.controlplane.clock import Clock
from runcode.controlplane.records import UserRecord
from runcode.controlplane.services import inputs
from runcode.controlplane.services.withdrawals import revoke_sessions
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import SessionRow, UserRow
from runcode.core.errors import RunCodeError


class Users:
    def __init__(self, store: Store, clock: Clock, hasher: argon2.PasswordHasher) -> None:
        self._store = store
        self._clock = clock
        self._hasher = hasher
        self._decoy: str | None = None

    async def create_user(self, email: str, password: str | None = None, *, admin: bool = False) -> UserRecord:
        """Raises `bad_request` for an address or password that cannot be used, `conflict` when the user exists."""
        email = inputs.parse_email(email)
        password_hash = None if password is None else await self.hash_password(password)
        async with self._store.write() as session:
            return as_record(await self.insert_user(session, email, password_hash, admin=admin))

    async def insert_user(
        self, session: AsyncSession, email: str, password_hash: str | None, *, admin: bool
    ) -> UserRow:
        """Part of a caller's transaction; `email` has been parsed."""
        if await session.scalar(select(UserRow.id).where(UserRow.email == email)) is not None:
            raise RunCodeError("conflict", f"there is a user {email} already", resolution="use another e-mail address")
        row = UserRow(email=email, password_hash=password_hash, is_admin=admin, created_at=self._clock.now())
        session.add(row)
        await session.flush()
        return row

    async def list_users(self) -> list[UserRecord]:
        async with self._store.read() as session:
            return [as_record(row) for row in await session.scalars(select(UserRow).order_by(UserRow.id))]

    async def disable_user(self, email: str) -> UserRecord:
        """Idempotent. Tokens stop working, sessions end, live connections are cut."""
        async with self._store.write() as session:
            row = await load_user(session, email)
            if row.disabled_at is None:
                now = self._clock.now()
                row.disabled_at = now
                await revoke_sessions(session, now, SessionRow.user_id == row.id)
                changes.append_change(session, changes.USER_DISABLED, now, user_id=row.id)
            return as_record(row)

    async def enable_user(self, email: str) -> UserRecord:
        """Idempotent. Tokens that were not revoked work again; ended sessions stay ended."""
        async with self._store.write() as session:
            row = await load_user(session, email)
            row.disabled_at = None
            return as_record(row)

    async def set_password(self, email: str, password: str) -> UserRecord:
        password_hash = await self.hash_password(password)
        async with self._store.write() as session:
            row = await load_user(session, email)
            row.password_hash = password_hash
            return as_record(row)

    async def check_password(self, email: str, password: str) -> UserRecord:
        """The user, or `unauthorized`, which never says why."""
        async with self._store.read() as session:
            row = await session.scalar(select(UserRow).where(UserRow.email == email.strip().lower()))
        stored = row.password_hash if row is not None else None
        matches = await asyncio.to_thread(self._verify, stored, password[: inputs.PASSWORD_MAX])
        if row is None or stored is None or row.disabled_at is not None or not matches:
            raise RunCodeError("unauthorized", "the e-mail address or the password is wrong", resolution="try again")
        return as_record(row)

    async def hash_password(self, password: str) -> str:
        return await asyncio.to_thread(self._hasher.hash, inputs.parse_password(password))

    def _verify(self, stored: str | None, password: str) -> bool:
        if self._decoy is None:
            self._decoy = self._hasher.hash("nobody's password")
        try:
            return self._hasher.verify(stored or self._decoy, password) and stored is not None
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False


async def load_user(session: AsyncSession, email: str) -> UserRow:
    row = await session.scalar(select(UserRow).where(UserRow.email == email.strip().lower()))
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
