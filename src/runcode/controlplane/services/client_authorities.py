"""The client CAs of this installation: which one signs, which ones still count, and which count no more.

Owns: the client_authorities table, and the key files `client_ca-…` that a rotation makes
in the keys folder. Called by `client_certificates` (at each mint and each admission) and
by the operator's verbs.

Threat: a client CA's private key that was copied. Whoever has it can sign, until it is
retired everywhere at once.
Guarantee: a rotation takes nothing away: what the older CAs signed counts until it
expires. Retiring one counts from the next admission on, on every gateway, also for
those who are connected; it is never undone. The table holds public halves only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane import changes
from runcode.controlplane.changes import append_change
from runcode.controlplane.clock import Clock
from runcode.controlplane.records import ClientAuthorityRecord
from runcode.controlplane.services import audit
from runcode.controlplane.services.certificates import CertificateAuthority
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import ClientAuthorityRow
from runcode.core.errors import RunCodeError
from runcode.core.hostkeys import parse_public_key

CURRENT, ACCEPTED, RETIRED = "current", "accepted", "retired"


@dataclass(frozen=True)
class KnownAuthorities:
    """Public lines. `on_disk`: those that may sign, the newest first. `retired`: of these and of operators' own."""

    on_disk: tuple[str, ...]
    retired: frozenset[str]


class ClientAuthorities:
    def __init__(self, store: Store, clock: Clock, keys_folder: Path, *, first: CertificateAuthority) -> None:
        """`first` is the one that every installation has from its first start."""
        self._store = store
        self._clock = clock
        self._keys_folder = keys_folder
        self._first = first
        self._signers: dict[str, CertificateAuthority] = {first.public_line: first}

    async def list_authorities(self) -> list[ClientAuthorityRecord]:
        """The newest first; the first one is always among them."""
        async with self._store.read() as session:
            return self._as_records(await _load_rows(session))

    async def load(self) -> KnownAuthorities:
        records = await self.list_authorities()
        return KnownAuthorities(
            on_disk=tuple(one.public_key for one in records if one.on_disk and one.retired_at is None),
            retired=frozenset(one.public_key for one in records if one.retired_at is not None),
        )

    def find_signer(self, public_line: str) -> CertificateAuthority | None:
        """Its key, if this server's keys folder has it. Raises `unsafe_path` for a file that others may read."""
        signer = self._signers.get(public_line)
        path = self._keys_folder / name_key_file(public_line)
        if signer is None and path.exists():
            signer = self._signers[public_line] = CertificateAuthority.load_or_make(path)
        return signer if signer is not None and signer.public_line == public_line else None

    async def rotate(self) -> ClientAuthorityRecord:
        """Make another CA on this server's disk, and sign with it from now on; the others still count."""
        draft = self._keys_folder / ".client_ca.next"
        draft.unlink(missing_ok=True)
        made = CertificateAuthority.load_or_make(draft)
        # Before the row: whoever reads the row finds the key.
        draft.rename(self._keys_folder / name_key_file(made.public_line))
        self._signers[made.public_line] = made
        now = self._clock.now()
        async with self._store.write() as session:
            await self._keep_first(session)
            session.add(ClientAuthorityRow(public_key=made.public_line, on_disk=True, created_at=now))
            await session.flush()
            await audit.note(
                session, audit.CLIENT_CA_ROTATED, now, detail={"fingerprint": _fingerprint(made.public_line)}
            )
            return self._as_records(await _load_rows(session))[0]

    async def note_own(self, public_line: str) -> None:
        """An operator's own CA (a file, an agent) signs here: from now on it can be retired. Idempotent."""
        async with self._store.write() as session:
            await self._keep_first(session)
            if not any(row.public_key == public_line for row in await _load_rows(session)):
                session.add(ClientAuthorityRow(public_key=public_line, on_disk=False, created_at=self._clock.now()))

    async def retire(self, raw_fingerprint: str) -> ClientAuthorityRecord:
        """Let nobody in by it any more, and cut whoever came in by it. Idempotent.

        Raises `not_found`, or `conflict` for the newest one on disk.
        """
        async with self._store.write() as session:
            await self._keep_first(session)
            rows = await _load_rows(session)
            row = next((row for row in rows if _fingerprint(row.public_key) == raw_fingerprint), None)
            if row is None:
                raise RunCodeError(
                    "not_found",
                    f"there is no client CA {raw_fingerprint[:80]!r}",
                    resolution="name it as `runcode-server ca list` prints it: SHA256:…",
                )
            if row is next((row for row in rows if row.on_disk and row.retired_at is None), None):
                raise RunCodeError(
                    "conflict",
                    "this is the newest client CA on disk, and no other could sign in its place",
                    resolution="make another first: `runcode-server ca rotate`",
                )
            if row.retired_at is None:
                row.retired_at = self._clock.now()
                append_change(session, changes.AUTHORITY_RETIRED, row.retired_at)
                detail = {"fingerprint": raw_fingerprint}
                await audit.note(session, audit.CLIENT_CA_RETIRED, row.retired_at, detail=detail)
            return next(one for one in self._as_records(rows) if one.fingerprint == raw_fingerprint)

    async def _keep_first(self, session: AsyncSession) -> None:
        """The first one gets its row before any other does: rows are in the order of their making."""
        if not await _load_rows(session):
            first = ClientAuthorityRow(public_key=self._first.public_line, on_disk=True, created_at=self._clock.now())
            session.add(first)
            await session.flush()

    def _as_records(self, rows: list[ClientAuthorityRow]) -> list[ClientAuthorityRecord]:
        if not rows:
            line = self._first.public_line
            return [ClientAuthorityRecord(line, _fingerprint(line), True, CURRENT, None, None)]
        newest = next((row for row in rows if row.on_disk and row.retired_at is None), None)
        return [
            ClientAuthorityRecord(
                public_key=row.public_key,
                fingerprint=_fingerprint(row.public_key),
                on_disk=row.on_disk,
                state=CURRENT if row is newest else ACCEPTED if row.retired_at is None else RETIRED,
                created_at=row.created_at,
                retired_at=row.retired_at,
            )
            for row in rows
        ]


def name_key_file(public_line: str) -> str:
    """Where a rotation keeps the private half, below the keys folder."""
    return f"client_ca-{hashlib.sha256(parse_public_key(public_line).blob).hexdigest()[:16]}"


async def _load_rows(session: AsyncSession) -> list[ClientAuthorityRow]:
    """The newest first."""
    return list(await session.scalars(select(ClientAuthorityRow).order_by(ClientAuthorityRow.id.desc())))


def _fingerprint(public_line: str) -> str:
    return parse_public_key(public_line).fingerprint
