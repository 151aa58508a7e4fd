"""Signing in through the operator's OpenID provider: what the browser keeps meanwhile, and what comes of the answer.

Owns: one attempt from its start to a session. Called by `routes/oidc_login`. The
protocol is `oidc_provider`'s, who may come in is `identities`'.

Threat: an answer that another browser began (login CSRF), that is shown twice, that
another provider gave, or that is meant for another replica than the one that asked.
Guarantee: state, nonce and verifier are 256 random bits each, sealed into a cookie of
the browser that began, for ten minutes and one answer; any replica can open it. The
provider takes a code once.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Final

from runcode.controlplane.clock import Clock
from runcode.controlplane.services.identities import Identities
from runcode.controlplane.services.oidc_records import Attempt, Claims, OidcPolicy, Provider
from runcode.controlplane.services.proofs import Proofs
from runcode.controlplane.services.refusals import Refusals
from runcode.controlplane.services.web_sessions import METHOD_OIDC, NewWebSession, Visitor, WebSessions
from runcode.controlplane.store.engine import Store
from runcode.core.errors import RunCodeError

ATTEMPT_S: Final = 600
CALLS_AT_ONCE: Final = 8
CALLS_WAITING_MAX: Final = 64
_PURPOSE: Final = "oidc attempt"
_CODE_MAX: Final = 4096


@dataclass(frozen=True)
class Begun:
    """Where the browser goes, and what it keeps."""

    url: str
    cookie: str = field(repr=False)


@dataclass(frozen=True)
class Finished:
    session: NewWebSession
    next_path: str


class OidcSignIns:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        web_sessions: WebSessions,
        identities: Identities,
        proofs: Proofs,
        provider: Provider,
        policy: OidcPolicy,
        refusals: Refusals,
    ) -> None:
        self._store = store
        self._clock = clock
        self._web_sessions = web_sessions
        self._identities = identities
        self._proofs = proofs
        self._policy = policy
        self._refusals = refusals
        self._waiting = 0
        self._turn = asyncio.Semaphore(CALLS_AT_ONCE)
        self.provider = provider

    async def begin(self, redirect_uri: str, next_path: str) -> Begun:
        """Raises `unavailable` when the provider cannot be used."""
        attempt = Attempt(
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            verifier=secrets.token_urlsafe(32),
            redirect_uri=redirect_uri,
        )
        url = await self.provider.authorization_url(attempt)
        kept: dict[str, str | int] = {
            "state": attempt.state,
            "nonce": attempt.nonce,
            "verifier": attempt.verifier,
            "redirect_uri": redirect_uri,
            "issuer": self.provider.settings.issuer,
            "next": next_path,
            "at": int(self._clock.now().timestamp()),
        }
        return Begun(url, self._proofs.seal(_PURPOSE, kept))

    async def finish(self, cookie: str, *, code: str, state: str, raw_issuer: str | None, visitor: Visitor) -> Finished:
        """Raises `forbidden` for an answer that is not this browser's, or not of somebody who may come in."""
        kept = self._proofs.find_sealed(_PURPOSE, cookie)
        age_s = int(self._clock.now().timestamp()) - int(kept["at"]) if kept is not None else -1
        if (
            kept is None
            or not hmac.compare_digest(str(kept["state"]).encode(), state.encode())
            or not -60 <= age_s <= ATTEMPT_S
            or kept["issuer"] != self.provider.settings.issuer
            or not 0 < len(code) <= _CODE_MAX
        ):
            raise RunCodeError(
                "forbidden",
                "this answer belongs to another sign-in, or is too old",
                resolution="start again at the sign-in page",
            )
        attempt = Attempt(
            state=state, nonce=kept["nonce"], verifier=kept["verifier"], redirect_uri=kept["redirect_uri"]
        )
        claims = await self._redeem_in_turn(code, attempt, raw_issuer)
        return Finished(await self._sign_in(claims, visitor), str(kept["next"]))

    async def _redeem_in_turn(self, code: str, attempt: Attempt, raw_issuer: str | None) -> Claims:
        if self._waiting >= CALLS_WAITING_MAX:
            raise RunCodeError("rate_limited", "many people sign in just now", resolution="try again in a moment")
        self._waiting += 1
        try:
            async with self._turn:
                await self.provider.require_issuer(raw_issuer)
                return await self.provider.redeem(code, attempt)
        finally:
            self._waiting -= 1

    async def _sign_in(self, claims: Claims, visitor: Visitor) -> NewWebSession:
        try:
            async with self._store.write() as session:
                user = await self._identities.admit(session, claims, self._policy)
                return await self._web_sessions.insert_session(session, user, visitor, method=METHOD_OIDC)
        except RunCodeError as error:
            if error.code == "forbidden":
                await self._note_refusal(claims, visitor)
            raise

    async def _note_refusal(self, claims: Claims, visitor: Visitor) -> None:
        by = claims.verified_email or claims.subject[:100]
        await self._refusals.note({"by": by, "issuer": claims.issuer, "source": visitor.source[:64]})
