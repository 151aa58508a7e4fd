"""Signing in a machine that has no browser: it shows a code, a person types that code where they are signed in.

Owns: the device_grants table (RFC 8628). Called by `/api/rc/auth/device…` and the
page `/auth/device`.

Threat: guessing a code that somebody else's machine waits with; a code that was
sent to a person with a story (phishing); many grants that nobody asked for; a
device code that was stolen, or used twice; polling without pause.
Guarantee: a user code is eight letters out of twenty (34 bits) for ten minutes, tries
are slowed per person and per address, and the page says what to look at. The device
code is 256 random bits and gives one token, once; used again, that token is revoked.
Both stand here as hashes, the short one keyed. What waits is bounded, in all and per
address. A grant is decided once.

Source: RFC 8628.
"""

from __future__ import annotations

import datetime
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.clock import Clock
from runcode.controlplane.records import ORIGIN_DEVICE, Caller, NewToken
from runcode.controlplane.services import audit, consents
from runcode.controlplane.services.consents import Consent
from runcode.controlplane.services.login_requests import find_label
from runcode.controlplane.services.proofs import Proofs
from runcode.controlplane.services.sign_in_pace import Allowance, Pace
from runcode.controlplane.services.tokens import Tokens, hash_token, parse_scopes
from runcode.controlplane.services.web_sessions import require_browser, require_live
from runcode.controlplane.services.withdrawals import DEVICE_AUTHORIZED, DEVICE_DENIED
from runcode.controlplane.states import SCOPES
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import DeviceGrantRow, TokenRow, UserRow
from runcode.core.errors import RunCodeError
from runcode.core.sources import network_of

GRANT_LIVES: Final = datetime.timedelta(minutes=10)
INTERVAL_S: Final = 5
# RFC 8628 §3.5.
_SLOWER_S: Final = 5
_INTERVAL_MAX_S: Final = 60
# Timers and networks are not exact.
_EARLY: Final = datetime.timedelta(seconds=1)
_SKEW: Final = datetime.timedelta(minutes=1)
_KEPT: Final = datetime.timedelta(days=1)
WAITING_MAX: Final = 1000
STARTS_FROM_ONE_ADDRESS: Final = Allowance(burst=10, every_s=30)
GUESSES_OF_ONE_PERSON: Final = Allowance(burst=8, every_s=30)
GUESSES_FROM_ONE_ADDRESS: Final = Allowance(burst=20, every_s=15)
# RFC 8628 §6.1: no vowels, so that no word comes out, and nothing that looks like something else.
_LETTERS: Final = "BCDFGHJKLMNPQRSTVWXZ"
_USER_CODE = re.compile(rf"[{_LETTERS}]{{8}}", re.ASCII)
_DEVICE_CODE = re.compile(r"rcd_[A-Za-z0-9_-]{43}", re.ASCII)

# What a poll is told (RFC 8628 §3.5).
PENDING: Final = "authorization_pending"
SLOW_DOWN: Final = "slow_down"
DENIED: Final = "access_denied"
EXPIRED: Final = "expired_token"


@dataclass(frozen=True)
class DeviceStart:
    """For the device. `user_code` is shown as `XXXX-XXXX`."""

    user_code: str
    expires_in_s: int
    interval_s: int
    device_code: str = field(repr=False)


@dataclass(frozen=True)
class DeviceRequest:
    """For the person who typed the code: who waits. `client` and `machine` are its own words, or ""."""

    user_code: str
    client: str
    machine: str
    source: str
    scopes: tuple[str, ...]
    created_at: datetime.datetime


@dataclass(frozen=True)
class DevicePoll:
    """Either the token, or why there is none."""

    refusal: str | None
    token: NewToken | None = None
    interval_s: int = INTERVAL_S


class DeviceLogins:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        tokens: Tokens,
        proofs: Proofs,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clock = clock
        self._tokens = tokens
        self._proofs = proofs
        self._pace = Pace(monotonic)

    async def start(self, *, raw_client: object, raw_machine: object, raw_scopes: object, source: str) -> DeviceStart:
        """Anybody may ask. Raises `rate_limited`, and `bad_request` for scopes that there are not."""
        self._take([(("start", network_of(source)), STARTS_FROM_ONE_ADDRESS)])
        scopes = parse_scopes(_as_list(raw_scopes))
        now = self._clock.now()
        user_code = "".join(secrets.choice(_LETTERS) for _ in range(8))
        device_code = "rcd_" + secrets.token_urlsafe(32)
        async with self._store.write() as session:
            await session.execute(delete(DeviceGrantRow).where(DeviceGrantRow.expires_at < now - _KEPT))
            live = DeviceGrantRow.expires_at > now, DeviceGrantRow.decision.is_(None)
            if (await session.scalar(select(func.count(DeviceGrantRow.id)).where(*live)) or 0) >= WAITING_MAX:
                raise RunCodeError("rate_limited", "too many devices wait to be signed in just now")
            session.add(
                DeviceGrantRow(
                    device_code_hash=hash_token(device_code),
                    user_code_hash=self._user_hash(user_code),
                    request={
                        "client": find_label(raw_client),
                        "machine": find_label(raw_machine),
                        "scopes": list(scopes),
                        "source": source[:64],
                    },
                    created_at=now,
                    expires_at=now + GRANT_LIVES,
                    interval_s=INTERVAL_S,
                )
            )
        shown = f"{user_code[:4]}-{user_code[4:]}"
        return DeviceStart(shown, int(GRANT_LIVES.total_seconds()), INTERVAL_S, device_code)

    async def find_request(self, caller: Caller, raw_user_code: str) -> DeviceRequest:
        """What the person is asked about. Each look is a try: raises `rate_limited`, or `not_found`."""
        require_browser(caller)
        self._take_guess(caller)
        user_code = _parse_user_code(raw_user_code)
        async with self._store.read() as session:
            row = await self._load_waiting(session, user_code)
        kept = row.request
        return DeviceRequest(
            user_code=f"{user_code[:4]}-{user_code[4:]}",
            client=str(kept["client"]),
            machine=str(kept["machine"]),
            source=str(kept["source"]),
            scopes=tuple(kept["scopes"]),
            created_at=row.created_at,
        )

    async def decide(self, caller: Caller, raw_user_code: str, consent: Consent | None) -> None:
        """The person's answer, once; `consent` None denies. Raises `not_found` when nothing waits any more."""
        require_browser(caller)
        self._take_guess(caller)
        user_code = _parse_user_code(raw_user_code)
        async with self._store.write() as session:
            now = self._clock.now()
            await require_live(session, caller, now)
            row = await self._load_waiting(session, user_code)
            row.user_id, row.decided_at = caller.user_id, now
            row.decision = DEVICE_DENIED if consent is None else DEVICE_AUTHORIZED
            label = consents.name_token("device login", row.request["client"], row.request["machine"])
            detail: dict[str, str | int | None] = {"name": label, "device_source": row.request["source"]}
            if consent is not None:
                # Never more than what the device asked for.
                asked = [scope for scope in consent.scopes if scope in row.request["scopes"]]
                row.request = {**row.request, "name": label, **consent.as_json(), "scopes": asked}
                detail["scopes"] = " ".join(asked)
            kind = audit.LOGIN_DENIED if consent is None else audit.LOGIN_AUTHORIZED
            await audit.note(session, kind, now, caller=caller, detail=detail)

    async def poll(self, raw_device_code: object) -> DevicePoll:
        """Where it stands, or the token, once. An unknown code is told like an old one."""
        if not isinstance(raw_device_code, str) or _DEVICE_CODE.fullmatch(raw_device_code) is None:
            return DevicePoll(EXPIRED)
        which = DeviceGrantRow.device_code_hash == hash_token(raw_device_code)
        async with self._store.read() as session:
            # A look first: whoever makes codes up must not keep the writers busy.
            if await session.scalar(select(DeviceGrantRow.id).where(which)) is None:
                return DevicePoll(EXPIRED)
        async with self._store.write() as session:
            row = await session.scalar(select(DeviceGrantRow).where(which))
            return DevicePoll(EXPIRED) if row is None else await self._answer_poll(session, row)

    async def _answer_poll(self, session: AsyncSession, row: DeviceGrantRow) -> DevicePoll:
        now = self._clock.now()
        if row.token_id is not None:
            # The device code is in two hands, so what it gave is nobody's.
            token = await session.get_one(TokenRow, row.token_id)
            if token.revoked_at is None:
                owner = await session.get_one(UserRow, token.user_id)
                await self._tokens.revoke_row(session, token, caller=consents.as_client_of(owner))
            return DevicePoll(EXPIRED)
        if row.decision == DEVICE_DENIED:
            return DevicePoll(DENIED)
        if not _is_live(row, now):
            return DevicePoll(EXPIRED)
        before, row.last_polled_at = row.last_polled_at, now
        if before is not None and now - before < datetime.timedelta(seconds=row.interval_s) - _EARLY:
            row.interval_s = min(_INTERVAL_MAX_S, row.interval_s + _SLOWER_S)
            return DevicePoll(SLOW_DOWN, interval_s=row.interval_s)
        if row.decision is None:
            return DevicePoll(PENDING, interval_s=row.interval_s)
        user = await session.get_one(UserRow, row.user_id)
        if user.disabled_at is not None:
            return DevicePoll(DENIED)
        consent = consents.consent_from_json(row.request)
        made = await self._tokens.insert_token(
            session,
            user,
            str(row.request["name"]),
            consent.bounds,
            origin=ORIGIN_DEVICE,
            caller=consents.as_client_of(user),
        )
        row.token_id = made.record.id
        return DevicePoll(None, made)

    async def _load_waiting(self, session: AsyncSession, user_code: str) -> DeviceGrantRow:
        row = await session.scalar(
            select(DeviceGrantRow).where(DeviceGrantRow.user_code_hash == self._user_hash(user_code))
        )
        if row is None or row.decision is not None or not _is_live(row, self._clock.now()):
            raise _no_such_code()
        return row

    def _take_guess(self, caller: Caller) -> None:
        self._take(
            [
                (("guess", str(caller.user_id)), GUESSES_OF_ONE_PERSON),
                (("guess from", network_of(caller.source)), GUESSES_FROM_ONE_ADDRESS),
            ]
        )

    def _take(self, wanted: list[tuple[tuple[str, str], Allowance]]) -> None:
        wait_s = self._pace.take_from(wanted)
        if wait_s > 0:
            raise RunCodeError(
                "rate_limited", "there were too many tries", resolution=f"wait {wait_s:.0f} seconds, then try again"
            )

    def _user_hash(self, user_code: str) -> str:
        # Keyed: 34 bits would be found by trying all.
        return self._proofs.make("device user code", user_code)


def _is_live(row: DeviceGrantRow, now: datetime.datetime) -> bool:
    return row.created_at <= now + _SKEW and now < row.expires_at


def _as_list(raw_scopes: object) -> list[object]:
    if raw_scopes is None:
        return list(SCOPES)
    return list(raw_scopes) if isinstance(raw_scopes, list) else [raw_scopes]


def _parse_user_code(raw_user_code: str) -> str:
    """As people type: in small letters, with or without the dash."""
    code = re.sub(r"[ -]", "", raw_user_code[:40]).upper()
    if _USER_CODE.fullmatch(code) is None:
        raise _no_such_code()
    return code


def _no_such_code() -> RunCodeError:
    return RunCodeError(
        "not_found",
        "no machine waits with this code",
        resolution="compare it with the one in your terminal; a code lives ten minutes and works once",
    )
