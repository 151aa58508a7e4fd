"""Sessions: a client's public key registered for one workspace, for a while.

Owns: minting, listing and revoking. Called by the `ssh-session` route and the
operator's CLI.

Threat: a key that opens more than was asked for, a right that outlives the token
behind it, and a revoked session brought back by minting again.
Guarantee: at most one session holds a key. Minting again with the same key, for
the same workspace and user, extends that session; for anything else the key is
refused until the session has ended. A revoked session never lives again: minting
makes a new one. No session outlives its token's expiry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from runcode.controlplane import changes
from runcode.controlplane.clock import Clock
from runcode.controlplane.records import Caller, SessionGrant, SessionRecord, SshEndpoint
from runcode.controlplane.services import access, audit, inputs
from runcode.controlplane.services.gathering import Gathering
from runcode.controlplane.services.mints import Mint, mint_all
from runcode.controlplane.services.users import load_user
from runcode.controlplane.services.withdrawals import revoke_sessions
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import SessionRow, UserRow, WorkspaceRow
from runcode.core import hostkeys, names, wire
from runcode.core.errors import RunCodeError

# A round's transaction keeps every other writer out; a hundred mints take some milliseconds.
_ROUND_MAX = 100
_WAITING_MAX = 2000
_PAUSE_S = 0.006


@dataclass(frozen=True)
class SessionPolicy:
    default_ttl_s: int = wire.DEFAULT_TTL_S
    max_ttl_s: int = wire.DEFAULT_TTL_S


class SshEndpointHolder:
    """Where this process's gateway answers; nothing while it has none. Not in the database: it is not lasting truth."""

    def __init__(self) -> None:
        self._endpoint: SshEndpoint | None = None

    def find(self) -> SshEndpoint | None:
        return self._endpoint

    def set(self, host: str, port: int, host_keys: tuple[str, ...]) -> None:
        """Raises UnsafeInput for an address or key that no client would accept."""
        keys = tuple(hostkeys.parse_public_key(line).line for line in host_keys)
        if not keys:
            raise RunCodeError("bad_request", "an SSH endpoint needs its host key")
        self._endpoint = SshEndpoint(host=names.parse_host(host), port=names.parse_port(port), host_keys=keys)

    def clear(self) -> None:
        self._endpoint = None


class Sessions:
    def __init__(
        self, store: Store, clock: Clock, endpoint: SshEndpointHolder, policy: SessionPolicy | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._endpoint = endpoint
        self._policy = policy or SessionPolicy()
        self._mints: Gathering[Mint, SessionGrant] = Gathering(
            self._mint_round, round_max=_ROUND_MAX, waiting_max=_WAITING_MAX, pause_s=_PAUSE_S
        )

    async def register_session(
        self,
        caller: Caller,
        workspace_id: int,
        *,
        raw_public_key: object,
        raw_ttl: object = None,
        raw_client: object = None,
    ) -> SessionGrant:
        """Mint. Raises `bad_request`, `not_found`, `unavailable` (no SSH endpoint), or `conflict` (not running)."""
        key = inputs.parse_client_key(raw_public_key)
        mint = Mint(
            caller=caller,
            workspace_id=workspace_id,
            fingerprint=key.fingerprint,
            public_key=key.line,
            ttl_s=inputs.parse_ttl(raw_ttl, default_s=self._policy.default_ttl_s, cap_s=self._policy.max_ttl_s),
            client=inputs.parse_client(raw_client),
        )
        return await self._mints.ask(mint)

    async def close(self) -> None:
        """Answer the mints that wait."""
        await self._mints.finish()

    async def _mint_round(self, mints: Sequence[Mint]) -> list[SessionGrant | RunCodeError]:
        endpoint = self._endpoint.find()

        def work(session: Session) -> list[SessionRecord | RunCodeError]:
            # Under the lock: whoever had it before may have taken what this is about.
            return mint_all(session, mints, endpoint, self._clock.now())

        minted = await self._store.write_whole(work)
        grants: list[SessionGrant | RunCodeError] = []
        for each in minted:
            if isinstance(each, SessionRecord):
                assert endpoint is not None
                grants.append(SessionGrant(session=each, endpoint=endpoint, workdir=names.DEFAULT_WORKDIR))
            else:
                grants.append(each)
        return grants

    async def list_sessions(
        self, *, include_ended: bool = False, workspace: int | str | None = None, email: str | None = None
    ) -> list[SessionRecord]:
        """Those that may open a connection now, or all that are known; of one workspace, of one person."""
        query = (
            select(SessionRow, WorkspaceRow.title, UserRow.email)
            .join(WorkspaceRow, WorkspaceRow.id == SessionRow.workspace_id)
            .join(UserRow, UserRow.id == SessionRow.user_id)
            .order_by(SessionRow.id)
        )
        if not include_ended:
            query = query.where(SessionRow.revoked_at.is_(None), SessionRow.expires_at > self._clock.now())
        async with self._store.read() as session:
            if workspace is not None:
                query = query.where(SessionRow.workspace_id == (await access.load_named(session, workspace))[0].id)
            if email is not None:
                query = query.where(SessionRow.user_id == (await load_user(session, email)).id)
            return [_as_record(row, title, owner) for row, title, owner in (await session.execute(query)).all()]

    async def revoke_session(self, session_id: int) -> None:
        """Idempotent. Its live connections are cut."""
        await self.revoke_all([session_id])

    async def revoke_all(self, session_ids: Sequence[int], *, caller: Caller | None = None) -> None:
        """All of them, or none: raises `not_found` when one is unknown. Idempotent; live connections are cut.

        Whether the caller may is the caller's to check; here it is written down.
        """
        async with self._store.write() as session:
            for session_id in session_ids:
                row = await session.get(SessionRow, session_id)
                if row is None:
                    raise RunCodeError(
                        "not_found",
                        f"there is no session {session_id}",
                        resolution="see `runcode-server session list --all`; no session was revoked",
                    )
                if row.revoked_at is None:
                    now = self._clock.now()
                    await revoke_sessions(session, now, SessionRow.id == session_id)
                    changes.append_change(session, changes.SESSION_REVOKED, now, session_id=session_id)
                    await audit.note(
                        session,
                        audit.SESSION_REVOKED,
                        now,
                        caller=caller,
                        user_id=row.user_id,
                        workspace_id=row.workspace_id,
                        session_id=session_id,
                    )


def _as_record(row: SessionRow, title: str, user_email: str) -> SessionRecord:
    return SessionRecord(
        id=row.id,
        workspace_id=row.workspace_id,
        workspace_title=title,
        user_email=user_email,
        token_id=row.token_id,
        fingerprint=row.fingerprint,
        client=row.client,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
