"""Gateways that run as processes of their own: their credentials, and who of them is calling.

Owns: the gateways table. Called by the internal API and the operator's verbs.

Threat: a gateway's machine that is lost or taken over; a person's token tried on
the internal API, and a gateway's credential on the public one.
Guarantee: a credential is 256 random bits behind a prefix of its own, kept as a
hash, shown once. It is good for the internal API and nothing else; revoking it
counts from the next call on, and ends the change stream within a beat, so that
gateway admits nobody new two seconds later. A gateway's name in what it reports
is the one that its credential was made for, never one that it claims.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.clock import Clock
from runcode.controlplane.records import GatewayRecord, NewGateway
from runcode.controlplane.services import audit
from runcode.controlplane.services.tokens import hash_token
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import GatewayRow
from runcode.core.errors import RunCodeError

CREDENTIAL_PREFIX = "rcg_"
_CREDENTIAL = re.compile(r"rcg_[A-Za-z0-9_-]{43}", re.ASCII)
# Room for a worker's number after it, within the 64 characters of an event's gateway.
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,47}", re.ASCII)
# The server's own gateway, and who notes acts, are told apart by these in the same column.
_TAKEN_NAMES = frozenset(("embedded", audit.CONTROL_PLANE))


class Gateways:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        # Open change streams of this process, by gateway; they end once `closing` is set.
        self.streams: Counter[int] = Counter()
        self.closing = False

    async def create_gateway(self, name: str) -> NewGateway:
        """A credential for one gateway. Raises `bad_request` for a name, `conflict` when a live one has it."""
        if _NAME.fullmatch(name) is None or name in _TAKEN_NAMES:
            raise RunCodeError(
                "bad_request",
                "that cannot be a gateway's name",
                resolution="use up to 48 lower-case letters, digits and dashes, such as `edge-1`",
            )
        async with self._store.write() as session:
            if await _find_named(session, name) is not None:
                raise RunCodeError(
                    "conflict", f"there is a gateway {name} already", resolution="choose another name, or revoke it"
                )
            plaintext = CREDENTIAL_PREFIX + secrets.token_urlsafe(32)
            now = self._clock.now()
            row = GatewayRow(name=name, credential_hash=hash_token(plaintext), created_at=now)
            session.add(row)
            await session.flush()
            await audit.note(session, audit.GATEWAY_CREATED, now, detail={"gateway": name})
            return NewGateway(record=_as_record(row), credential=plaintext)

    async def list_gateways(self) -> list[GatewayRecord]:
        async with self._store.read() as session:
            return [_as_record(row) for row in await session.scalars(select(GatewayRow).order_by(GatewayRow.id))]

    async def revoke_gateway(self, name: str) -> GatewayRecord:
        """Idempotent for the newest of that name. Raises `not_found`."""
        async with self._store.write() as session:
            row = await _find_named(session, name) or await session.scalar(
                select(GatewayRow).where(GatewayRow.name == name).order_by(GatewayRow.id.desc()).limit(1)
            )
            if row is None:
                raise RunCodeError(
                    "not_found", f"there is no gateway {name[:80]!r}", resolution="see `runcode-server gateway list`"
                )
            if row.revoked_at is None:
                row.revoked_at = self._clock.now()
                await audit.note(session, audit.GATEWAY_REVOKED, row.revoked_at, detail={"gateway": name})
            return _as_record(row)

    async def authenticate(self, raw_credential: str | None) -> GatewayRecord:
        """Whose credential this is; `unauthorized` without a word on why not."""
        row = None
        if raw_credential is not None and _CREDENTIAL.fullmatch(raw_credential) is not None:
            async with self._store.read() as session:
                row = await session.scalar(
                    select(GatewayRow).where(
                        GatewayRow.credential_hash == hash_token(raw_credential), GatewayRow.revoked_at.is_(None)
                    )
                )
        if row is None:
            raise RunCodeError(
                "unauthorized",
                "the gateway's credential is missing, unknown or revoked",
                resolution="make another: `runcode-server gateway create NAME`",
            )
        return _as_record(row)


async def _find_named(session: AsyncSession, name: str) -> GatewayRow | None:
    query = select(GatewayRow).where(func.lower(GatewayRow.name) == name, GatewayRow.revoked_at.is_(None))
    found: GatewayRow | None = await session.scalar(query)
    return found


def _as_record(row: GatewayRow) -> GatewayRecord:
    return GatewayRecord(id=row.id, name=row.name, created_at=row.created_at, revoked_at=row.revoked_at)
