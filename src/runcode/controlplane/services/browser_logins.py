"""Signing a machine in through the browser: password, consent, then a token for the client that asked.

Owns: who is signed in on the login page, the one-time codes, and the tokens that
consent makes. Called by the login routes and by `/api/rc/auth/cli-token`.

Threat: a page elsewhere that makes a signed-in browser consent; a cookie of
`127.0.0.1` read by another port of that host (cookies know no ports, and a
forwarded port may be a hostile box); a code that is stolen, guessed or used
twice; and a person who is disabled between two steps.
Guarantee: being signed in holds for ten minutes, for exactly the one request it
was made for, and for one answer. Both forms carry a proof that only a page shown
to this cookie for this request can have. A code lives a minute, works once, and
only with the verifier behind its challenge; used again with it, the token it gave
is revoked. Every step asks the database anew whether the person may still.

Kept in memory on purpose: all of it ends in minutes, and after a restart a person
opens the page once more. Lifetimes are monotonic, so no wall clock lengthens one.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane import changes
from runcode.controlplane.records import ORIGIN_LOGIN, NewToken, UserRecord
from runcode.controlplane.services import inputs
from runcode.controlplane.services.login_requests import LoginRequest
from runcode.controlplane.services.sign_in_pace import SignInPace
from runcode.controlplane.services.tokens import Tokens
from runcode.controlplane.services.users import Users
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import ChangeRow, UserRow
from runcode.core.errors import RunCodeError

SIGNED_IN_S: Final = 600.0
CODE_S: Final = 60.0
_KEPT_PER_PERSON: Final = 10
# argon2 takes 64 MB and a core each: strangers must not have many at once.
_CHECKS_AT_ONCE: Final = 2
_CHECKS_WAITING_MAX: Final = 16
# RFC 7636 §4.1.
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}", re.ASCII)
_CODE = re.compile(r"rcc_[A-Za-z0-9_-]{43}", re.ASCII)
_DEVICE = re.compile(r"([A-Za-z0-9_-]{22})\.([0-9a-f]{64})", re.ASCII)
_TOO_OLD: Final = "go back to your terminal and run `runcode login` again"


@dataclass(frozen=True)
class SignedIn:
    """Cookies for a browser whose password was right: this visit's, and what makes it a known browser."""

    visit: str = field(repr=False)
    device: str = field(repr=False)


@dataclass(frozen=True)
class _Person:
    """Who signed in, and what must not have changed since."""

    user_id: int
    email: str
    password_hash: str | None = field(repr=False)
    newest_change: int


@dataclass(frozen=True)
class _Visit:
    person: _Person
    request: LoginRequest
    ends_at: float


@dataclass
class _Code:
    person: _Person
    request: LoginRequest
    ends_at: float
    used: bool = False
    replayed: bool = False
    token_id: int | None = None


class BrowserLogins:
    def __init__(
        self, store: Store, users: Users, tokens: Tokens, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._users = users
        self._tokens = tokens
        self._monotonic = monotonic
        self._key = secrets.token_bytes(32)
        self._pace = SignInPace(monotonic)
        self._visits: dict[str, _Visit] = {}
        self._codes: dict[str, _Code] = {}
        self._turn = asyncio.Semaphore(_CHECKS_AT_ONCE)
        self._waiting = 0

    # ---------------------------------------------------------------- the page

    def prove_form(self, visit: str, purpose: str, request: LoginRequest) -> str:
        """What a form of this page carries, for this cookie, this purpose and this request alone."""
        return self._mac(purpose, visit, *(text for pair in request.pairs for text in pair))

    def require_form(self, visit: str, purpose: str, request: LoginRequest, proof: str) -> None:
        """Raises `forbidden` for a form that this page did not show to this browser."""
        if not visit or not hmac.compare_digest(self.prove_form(visit, purpose, request).encode(), proof.encode()):
            raise RunCodeError(
                "forbidden", "this form is too old, or is not from this page", resolution="open the page again"
            )

    async def find_email(self, visit: str, request: LoginRequest) -> str | None:
        """Who is signed in with this cookie for this request; None asks for the password."""
        found = self._find_visit(visit, request)
        if found is None:
            return None
        async with self._store.read() as session:
            valid = await _find_user(session, found.person) is not None
        return found.person.email if valid else None

    async def sign_in(self, request: LoginRequest, *, email: str, password: str, source: str, device: str) -> SignedIn:
        """Check a password. Raises `rate_limited`, or `unauthorized` that never says why."""
        account = email.strip().lower()[: inputs.EMAIL_MAX]
        known_browser = self._find_device(device, account)
        wait_s = self._pace.take(account=account, source=source, known_browser=known_browser)
        if wait_s > 0:
            raise RunCodeError(
                "rate_limited",
                "there were too many tries from here or for this account",
                resolution=f"wait {wait_s:.0f} seconds, then try again",
            )
        # Before the look at the password, so that nothing which changes after it is missed.
        async with self._store.read() as session:
            newest = await session.scalar(select(func.max(ChangeRow.id))) or 0
            password_hash = await session.scalar(select(UserRow.password_hash).where(UserRow.email == account))
        user = await self._check_in_turn(account, password)
        self._pace.give_back(account=account, source=source, known_browser=known_browser)
        person = _Person(user_id=user.id, email=user.email, password_hash=password_hash, newest_change=newest)
        visit = secrets.token_urlsafe(32)
        self._make_room(self._visits, user.id)
        self._visits[_digest(visit)] = _Visit(person, request, self._monotonic() + SIGNED_IN_S)
        return SignedIn(visit=visit, device=self._make_device(account))

    async def authorize(self, visit: str, request: LoginRequest) -> str:
        """Consent was given: the address that hands the client its code (or, without a challenge, its token).

        Ends the visit. Raises `forbidden` when nobody is signed in for this request.
        """
        person = self.end_visit(visit, request)
        if request.challenge is None:
            made = await self._make_token(person, request)
            return request.answer_url([("token", made.plaintext), ("email", person.email)])
        async with self._store.read() as session:
            if await _find_user(session, person) is None:
                raise _signed_out()
        code = "rcc_" + secrets.token_urlsafe(32)
        self._make_room(self._codes, person.user_id)
        self._codes[_digest(code)] = _Code(person, request, self._monotonic() + CODE_S)
        return request.answer_url([("code", code), ("email", person.email)])

    def end_visit(self, visit: str, request: LoginRequest) -> _Person:
        """One visit, one answer. Raises `forbidden` when nobody is signed in for this request."""
        found = self._find_visit(visit, request)
        if found is None:
            raise _signed_out()
        del self._visits[_digest(visit)]
        return found.person

    # ---------------------------------------------------------------- the exchange

    async def redeem(self, raw_code: object, raw_verifier: object) -> NewToken:
        """The token for a code. Raises `bad_request`, which never says what was wrong with it."""
        code = raw_code if isinstance(raw_code, str) and _CODE.fullmatch(raw_code) else ""
        verifier = raw_verifier if isinstance(raw_verifier, str) and _VERIFIER.fullmatch(raw_verifier) else ""
        self._forget_old()
        name = _digest(code)
        found = self._codes.get(name)
        if found is None:
            raise _refuse_code()
        if not _answers(verifier, found.request.challenge):
            # Whoever has the code alone stole it; nobody is to try again with it. A token it gave already stays.
            if not found.used:
                del self._codes[name]
            raise _refuse_code()
        if found.used:
            # RFC 6749 §4.1.2: code and verifier are in two hands, so what they gave is nobody's.
            found.replayed = True
            if found.token_id is not None:
                await self._tokens.revoke_token(found.token_id)
            raise _refuse_code()
        found.used = True
        made = await self._make_token(found.person, found.request)
        found.token_id = made.record.id
        if found.replayed:
            await self._tokens.revoke_token(made.record.id)
            raise _refuse_code()
        return made

    async def _make_token(self, person: _Person, request: LoginRequest) -> NewToken:
        asked_by = " on ".join(part for part in (request.client, request.machine) if part)
        label = f"browser login: {asked_by}" if asked_by else "browser login"
        async with self._store.write() as session:
            # In the transaction that makes the token: a disabling cannot come in between.
            user = await _find_user(session, person)
            if user is None:
                raise _signed_out()
            return await self._tokens.insert_token(session, user, label[: inputs.NAME_MAX], origin=ORIGIN_LOGIN)

    # ---------------------------------------------------------------- parts

    async def _check_in_turn(self, account: str, password: str) -> UserRecord:
        if self._waiting >= _CHECKS_WAITING_MAX:
            raise RunCodeError("rate_limited", "many people sign in just now", resolution="try again in a moment")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._users.check_password(account, password)
        finally:
            self._waiting -= 1

    def _find_visit(self, visit: str, request: LoginRequest) -> _Visit | None:
        found = self._visits.get(_digest(visit))
        if found is None or found.request != request or found.ends_at <= self._monotonic():
            return None
        return found

    def _forget_old(self) -> None:
        now = self._monotonic()
        for kept in (self._visits, self._codes):
            for name in [name for name, entry in kept.items() if entry.ends_at <= now]:
                del kept[name]

    def _make_room(self, kept: dict[str, _Visit] | dict[str, _Code], user_id: int) -> None:
        """Only people who know a password add here; one of them must neither fill the memory nor push others out."""
        self._forget_old()
        own = [name for name, entry in kept.items() if entry.person.user_id == user_id]
        for name in own[: max(0, len(own) + 1 - _KEPT_PER_PERSON)]:
            del kept[name]

    def _make_device(self, account: str) -> str:
        nonce = secrets.token_urlsafe(16)
        return f"{nonce}.{self._mac('known browser', nonce, account)}"

    def _find_device(self, device: str, account: str) -> str | None:
        found = _DEVICE.fullmatch(device)
        if found is None or not hmac.compare_digest(found[2], self._mac("known browser", found[1], account)):
            return None
        return found[1]

    def _mac(self, *parts: str) -> str:
        # Length before each part, so that no two lists read alike.
        text = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()


async def _find_user(session: AsyncSession, person: _Person) -> UserRow | None:
    """The person's row, unless they were disabled (also if enabled again) or got another password since."""
    disabled = select(ChangeRow.id).where(
        ChangeRow.id > person.newest_change,
        ChangeRow.kind == changes.USER_DISABLED,
        ChangeRow.user_id == person.user_id,
    )
    row = await session.get(UserRow, person.user_id)
    if row is None or row.disabled_at is not None or row.password_hash != person.password_hash:
        return None
    return None if await session.scalar(disabled.limit(1)) is not None else row


def _answers(verifier: str, challenge: str | None) -> bool:
    made = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
    return hmac.compare_digest(made, (challenge or "").encode())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _signed_out() -> RunCodeError:
    return RunCodeError("forbidden", "nobody is signed in for this request any more", resolution=_TOO_OLD)


def _refuse_code() -> RunCodeError:
    return RunCodeError(
        "bad_request", "the sign-in code is unknown, used, or too old", resolution="run `runcode login`"
    )
