"""Signing a machine in through the browser: consent, then a token for the client that asked.

Owns: the one-time codes (login_codes), and the tokens that consent makes. Called by
the login routes and by `/api/rc/auth/cli-token`. Who is signed in is `web_sessions`'.

Threat: a page elsewhere that makes a signed-in browser consent; a code that is
stolen, guessed or used twice, at whichever replica; and a person who is disabled
between two steps.
Guarantee: the form carries a proof that only a page shown to this cookie for this
request can have, and one page shown is one answer. A code lives a minute, works
once, and only with the verifier behind its challenge; used again with it, the token
it gave is revoked. Disabling a person, or another password, uses their codes up.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import re
from typing import Final

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.clock import Clock
from runcode.controlplane.records import ORIGIN_LOGIN, Caller, NewToken
from runcode.controlplane.services import audit, consents
from runcode.controlplane.services.consents import Consent
from runcode.controlplane.services.login_requests import LoginRequest
from runcode.controlplane.services.proofs import Proofs
from runcode.controlplane.services.tokens import Tokens, hash_token
from runcode.controlplane.services.web_sessions import require_live
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import LoginCodeRow, TokenRow, UserRow
from runcode.core.errors import RunCodeError

CODE_LIVES: Final = datetime.timedelta(minutes=1)
_SKEW: Final = datetime.timedelta(seconds=5)
# Long enough to notice a code that is used again.
_CODES_KEPT: Final = datetime.timedelta(days=1)
# RFC 7636 §4.1.
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}", re.ASCII)
_CODE = re.compile(r"rcc_[A-Za-z0-9_-]{43}", re.ASCII)


class BrowserLogins:
    def __init__(self, store: Store, clock: Clock, tokens: Tokens, proofs: Proofs) -> None:
        self._store = store
        self._clock = clock
        self._tokens = tokens
        self._proofs = proofs

    async def authorize(self, caller: Caller, request: LoginRequest, ticket: str, consent: Consent) -> str:
        """Consent was given: the address that hands the client its code (or, without a challenge, its token).

        Raises `forbidden` when the page was answered already.
        """
        label = consents.name_token("browser login", request.client, request.machine)
        async with self._store.write() as session:
            row, code = await self._answer(session, caller, request, ticket)
            row.request = {"challenge": request.challenge, "name": label, **consent.as_json()}
            detail: audit.Detail = {"name": label, "scopes": " ".join(consent.scopes)}
            now = self._clock.now()
            await audit.note(session, audit.LOGIN_AUTHORIZED, now, caller=caller, detail=detail)
            if request.challenge is not None:
                return request.answer_url([("code", code), ("email", caller.email)])
            user = await session.get_one(UserRow, caller.user_id)
            made = await self._tokens.insert_token(
                session, user, label, consent.bounds, origin=ORIGIN_LOGIN, caller=caller
            )
            row.used_at, row.token_id = now, made.record.id
            return request.answer_url([("token", made.plaintext), ("email", caller.email)])

    async def deny(self, caller: Caller, request: LoginRequest, ticket: str) -> str:
        """The address that tells the client so. The page cannot be answered again."""
        async with self._store.write() as session:
            row, _ = await self._answer(session, caller, request, ticket)
            row.used_at = self._clock.now()
            label = consents.name_token("browser login", request.client, request.machine)
            await audit.note(session, audit.LOGIN_DENIED, row.used_at, caller=caller, detail={"name": label})
        return request.answer_url([("error", "access_denied")])

    async def redeem(self, raw_code: object, raw_verifier: object) -> NewToken:
        """The token for a code. Raises `bad_request`, which never says what was wrong with it."""
        code = raw_code if isinstance(raw_code, str) and _CODE.fullmatch(raw_code) else ""
        verifier = raw_verifier if isinstance(raw_verifier, str) and _VERIFIER.fullmatch(raw_verifier) else ""
        made = None
        if code:
            async with self._store.write() as session:
                # Refusing is no failure of the transaction: what it burnt or revoked must stay so.
                made = await self._redeem(session, code, verifier)
        if made is None:
            raise RunCodeError(
                "bad_request", "the sign-in code is unknown, used, or too old", resolution="run `runcode login`"
            )
        return made

    async def _answer(
        self, session: AsyncSession, caller: Caller, request: LoginRequest, ticket: str
    ) -> tuple[LoginCodeRow, str]:
        """The row of this page's one answer, and its code, which follows from the page."""
        now = self._clock.now()
        await require_live(session, caller, now)
        consents.require_current(ticket, now)
        pairs = (text for pair in request.pairs for text in pair)
        made = self._proofs.make("login code", str(caller.web_session_id), ticket, *pairs)
        code = "rcc_" + base64.urlsafe_b64encode(bytes.fromhex(made)).rstrip(b"=").decode()
        await session.execute(delete(LoginCodeRow).where(LoginCodeRow.expires_at < now - _CODES_KEPT))
        if await session.get(LoginCodeRow, hash_token(code)) is not None:
            raise RunCodeError(
                "forbidden",
                "this question was answered already",
                resolution="go back to your terminal and run `runcode login` again",
            )
        row = LoginCodeRow(
            code_hash=hash_token(code), user_id=caller.user_id, request={}, created_at=now, expires_at=now + CODE_LIVES
        )
        session.add(row)
        return row, code

    async def _redeem(self, session: AsyncSession, code: str, verifier: str) -> NewToken | None:
        now = self._clock.now()
        row = await session.get(LoginCodeRow, hash_token(code))
        if row is None:
            return None
        user = await session.get_one(UserRow, row.user_id)
        client = consents.as_client_of(user)
        if not _answers(verifier, row.request.get("challenge")):
            # Whoever has the code alone stole it; nobody is to try again with it. A token it gave already stays.
            row.used_at = row.used_at or now
            return None
        if row.used_at is not None:
            # RFC 6749 §4.1.2: code and verifier are in two hands, so what they gave is nobody's.
            token = None if row.token_id is None else await session.get(TokenRow, row.token_id)
            if token is not None and token.revoked_at is None:
                await self._tokens.revoke_row(session, token, caller=client)
            return None
        if user.disabled_at is not None or not now - CODE_LIVES < row.created_at <= now + _SKEW:
            return None
        consent = consents.consent_from_json(row.request)
        made = await self._tokens.insert_token(
            session, user, str(row.request["name"]), consent.bounds, origin=ORIGIN_LOGIN, caller=client
        )
        row.used_at, row.token_id = now, made.record.id
        return made


def _answers(verifier: str, challenge: str | None) -> bool:
    made = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
    return hmac.compare_digest(made, (challenge or "").encode())
