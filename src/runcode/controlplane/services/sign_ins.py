"""Signing a browser in with a password, and changing that password.

Owns: the order of pace, look at the password, and session; what makes a browser a
known one. Called by the sign-in page, and by the operator's password verb never.

Threat: guessing, from one address or many, or to shut an owner out; many argon2
computations at once; a person who is disabled, or gets another password, while
theirs is looked at.
Guarantee: `SignInPace` is asked first. Two passwords are looked at at once, and a
bounded number waits. The transaction that signs in compares the row with what was
checked. A refusal says and costs the same for everybody, in the audit too.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.clock import Clock
from runcode.controlplane.records import Caller, UserRecord
from runcode.controlplane.services import inputs
from runcode.controlplane.services.proofs import Proofs
from runcode.controlplane.services.refusals import Refusals
from runcode.controlplane.services.sign_in_pace import SignInPace
from runcode.controlplane.services.users import CheckedPassword, Users
from runcode.controlplane.services.web_sessions import (
    METHOD_PASSWORD,
    NewWebSession,
    Visitor,
    WebSessions,
    require_browser,
)
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import UserRow
from runcode.core.errors import RunCodeError

# argon2 takes 64 MB and a core each: strangers must not have many at once.
CHECKS_AT_ONCE: Final = 2
CHECKS_WAITING_MAX: Final = 16
_DEVICE = re.compile(r"([A-Za-z0-9_-]{22})\.([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True)
class SignedIn:
    """What a browser keeps: its session's secret, and what makes it a known browser of this account."""

    user: UserRecord
    session: NewWebSession
    device: str = field(repr=False)


class SignIns:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        users: Users,
        web_sessions: WebSessions,
        proofs: Proofs,
        refusals: Refusals,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clock = clock
        self._users = users
        self._web_sessions = web_sessions
        self._proofs = proofs
        self._refusals = refusals
        self._pace = SignInPace(monotonic)
        self._turn = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._waiting = 0

    async def sign_in(self, email: str, password: str, visitor: Visitor, *, device: str = "") -> SignedIn:
        """Raises `rate_limited`, or `unauthorized` that never says why."""
        account = _parse_account(email)
        try:
            checked = await self._check(account, password, visitor.source, self.find_device(device, account))
        except RunCodeError as error:
            if error.code == "unauthorized":
                await self._note_refusal(account, visitor)
            raise
        async with self._store.write() as session:
            row = await _load_unchanged(session, checked)
            if checked.renewed_hash is not None:
                row.password_hash = checked.renewed_hash
            made = await self._web_sessions.insert_session(session, row, visitor, method=METHOD_PASSWORD)
        return SignedIn(checked.user, made, self.make_device(account))

    async def change_password(self, caller: Caller, current: str, new: str) -> None:
        """The caller's own. Their other browsers are signed out. Raises `unauthorized` for a wrong current one."""
        require_browser(caller)
        inputs.parse_password(new)
        # Counted for this signed-in browser: whoever sits at it must not guess the password either.
        checked = await self._check(caller.email, current, caller.source, f"session {caller.web_session_id}")
        password_hash = await self._users.hash_password(new)
        async with self._store.write() as session:
            row = await _load_unchanged(session, checked)
            await self._users.replace_password(session, row, password_hash, caller=caller)

    def make_device(self, account: str) -> str:
        nonce = secrets.token_urlsafe(16)
        return f"{nonce}.{self._proofs.make('known browser', nonce, account)}"

    def find_device(self, device: str, account: str) -> str | None:
        """What this browser's tries are counted under, if it once signed in to this account."""
        found = _DEVICE.fullmatch(device)
        if found is None or not self._proofs.holds(found[2], "known browser", found[1], account):
            return None
        return found[1]

    async def _check(self, account: str, password: str, source: str, known_browser: str | None) -> CheckedPassword:
        wait_s = self._pace.take(account=account, source=source, known_browser=known_browser)
        if wait_s > 0:
            raise RunCodeError(
                "rate_limited",
                "there were too many tries from here or for this account",
                resolution=f"wait {wait_s:.0f} seconds, then try again",
            )
        checked = await self._check_in_turn(account, password)
        self._pace.give_back(account=account, source=source, known_browser=known_browser)
        return checked

    async def _check_in_turn(self, account: str, password: str) -> CheckedPassword:
        if self._waiting >= CHECKS_WAITING_MAX:
            raise RunCodeError("rate_limited", "many people sign in just now", resolution="try again in a moment")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._users.check_password(account, password)
        finally:
            self._waiting -= 1

    async def _note_refusal(self, account: str, visitor: Visitor) -> None:
        """Written for accounts that do not exist too: else a clock would tell them apart."""
        shown = account if account.isprintable() else "?"
        await self._refusals.note({"by": shown, "source": visitor.source[:64]}, account=account)


def _parse_account(raw_email: str) -> str:
    """The one spelling under which tries are counted and the person is looked for.

    Stripped after it is cut too: else blanks before the cut make many names of one account, each with its own tries.
    """
    return raw_email.strip().lower()[: inputs.EMAIL_MAX].strip()


async def _load_unchanged(session: AsyncSession, checked: CheckedPassword) -> UserRow:
    row = await session.get(UserRow, checked.user.id)
    if row is None or row.disabled_at is not None or row.password_hash != checked.password_hash:
        raise RunCodeError("unauthorized", "the e-mail address or the password is wrong", resolution="try again")
    return row
