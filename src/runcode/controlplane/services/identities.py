"""Who a person is at an OpenID provider: by issuer and subject, never by e-mail address alone.

Owns: the identities table, and the rule for who may come in by it (`OidcPolicy`).
Called by `oidc`, inside the transaction that signs in, and by the operator's verbs.

Threat: an e-mail address that changed hands at the provider, or that nobody
verified, opens somebody else's account; a stranger with an account at the same
provider makes himself one here.
Guarantee: an address finds nobody who has an account. It may claim an invitation of
the operator's for exactly that address, once, or make a new account under a domain
that the operator named; the provider must have verified it for either. From then on
the subject counts.
"""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.clock import Clock
from runcode.controlplane.records import UserRecord
from runcode.controlplane.services import audit, inputs
from runcode.controlplane.services.oidc_records import Claims, OidcPolicy
from runcode.controlplane.services.users import Users, as_record, load_user
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import IdentityRow, UserRow
from runcode.core.errors import RunCodeError

ISSUER_MAX: Final = 240
SUBJECT_MAX: Final = 255
# An invitation stands beside the identities, under an issuer that no provider can have.
_INVITED: Final = "invited:"
_SUBJECT = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)+", re.ASCII)


class Identities:
    def __init__(self, store: Store, clock: Clock, users: Users) -> None:
        self._store = store
        self._clock = clock
        self._users = users

    async def link(self, email: str, issuer: str, subject: str) -> UserRecord:
        """The operator's word for who this is. Raises `conflict` when that identity is somebody else's."""
        if _SUBJECT.fullmatch(subject) is None or not _is_issuer(issuer):
            raise RunCodeError("bad_request", "that is not an issuer and a subject of an OpenID provider")
        async with self._store.write() as session:
            user = await load_user(session, email)
            await self._insert(session, user, issuer, subject)
            return as_record(user)

    async def invite(self, email: str, issuer: str) -> UserRecord:
        """Let whoever has this verified address at the provider come in as this user, once; made if there is none."""
        email = inputs.parse_email(email)
        if not _is_issuer(issuer):
            raise RunCodeError("bad_request", "that is not the issuer of an OpenID provider")
        async with self._store.write() as session:
            user = await session.scalar(select(UserRow).where(UserRow.email == email))
            if user is None:
                user = await self._users.insert_user(session, email, None, admin=False)
            await self._insert(session, user, _INVITED + issuer, email)
            return as_record(user)

    async def unlink(self, email: str) -> UserRecord:
        """Every identity and invitation of this user. Signed-in browsers stay: end those by disabling the user."""
        async with self._store.write() as session:
            user = await load_user(session, email)
            await session.execute(delete(IdentityRow).where(IdentityRow.user_id == user.id))
            detail: audit.Detail = {"email": user.email, "identities": "none"}
            await audit.note(session, audit.USER_CHANGED, self._clock.now(), user_id=user.id, detail=detail)
            return as_record(user)

    async def admit(self, session: AsyncSession, claims: Claims, policy: OidcPolicy) -> UserRow:
        """Whose account these claims open: part of the transaction that signs in. Raises `forbidden`."""
        user = await _find_user(session, claims.issuer, claims.subject)
        if user is None and claims.verified_email is not None:
            user = await self._claim_invitation(session, claims, claims.verified_email)
            if user is None:
                user = await self._make_user(session, claims, claims.verified_email, policy)
        if user is None or user.disabled_at is not None:
            raise RunCodeError(
                "forbidden",
                "there is no account here for you",
                resolution="ask your operator to invite you: `runcode-server user invite EMAIL`",
            )
        return user

    async def _claim_invitation(self, session: AsyncSession, claims: Claims, email: str) -> UserRow | None:
        user = await _find_user(session, _INVITED + claims.issuer, email)
        if user is None or user.disabled_at is not None:
            return None
        invitation = IdentityRow.issuer == _INVITED + claims.issuer, IdentityRow.subject == email
        await session.execute(delete(IdentityRow).where(*invitation))
        await self._insert(session, user, claims.issuer, claims.subject)
        return user

    async def _make_user(self, session: AsyncSession, claims: Claims, email: str, policy: OidcPolicy) -> UserRow | None:
        if email.rpartition("@")[2] not in policy.domains:
            return None
        if await session.scalar(select(UserRow.id).where(UserRow.email == email)) is not None:
            return None
        detail: audit.Detail = {"by": email, "issuer": claims.issuer}
        user = await self._users.insert_user(session, email, None, admin=False, detail=detail)
        await self._insert(session, user, claims.issuer, claims.subject)
        return user

    async def _insert(self, session: AsyncSession, user: UserRow, issuer: str, subject: str) -> None:
        row = await session.get(IdentityRow, (issuer, subject))
        if row is not None:
            if row.user_id != user.id:
                raise RunCodeError("conflict", "that identity is another user's", resolution="unlink it there first")
            return
        now = self._clock.now()
        session.add(IdentityRow(issuer=issuer, subject=subject, user_id=user.id, created_at=now))
        detail: audit.Detail = {"email": user.email, "issuer": issuer, "subject": subject[:100]}
        await audit.note(session, audit.USER_CHANGED, now, user_id=user.id, detail=detail)


def parse_subject(raw_subject: object) -> str:
    """OpenID Connect Core §2: at most 255 ASCII characters. Raises `forbidden`: a provider that differs is none."""
    if not isinstance(raw_subject, str) or _SUBJECT.fullmatch(raw_subject) is None:
        raise RunCodeError("forbidden", "the provider names nobody", resolution="ask your operator")
    return raw_subject


def parse_domain(raw_domain: str) -> str:
    """Of an e-mail address, whole: no subdomain counts for it. Raises `usage`."""
    domain = raw_domain.strip().lower()
    if len(domain) > 190 or _DOMAIN.fullmatch(domain) is None:
        raise RunCodeError("usage", f"{raw_domain[:80]!r} is not a domain of e-mail addresses")
    return domain


def _is_issuer(issuer: str) -> bool:
    return len(issuer) <= ISSUER_MAX and issuer.startswith(("https://", "http://")) and issuer.isprintable()


async def _find_user(session: AsyncSession, issuer: str, subject: str) -> UserRow | None:
    found: UserRow | None = await session.scalar(
        select(UserRow)
        .join(IdentityRow, IdentityRow.user_id == UserRow.id)
        .where(IdentityRow.issuer == issuer, IdentityRow.subject == subject)
    )
    return found
