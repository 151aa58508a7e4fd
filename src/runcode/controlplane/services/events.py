"""What gateways saw, kept and shown: connections, commands, forwards.

Owns: the events table's rows and what they mean together. Written by gateways
(through the server's adapter), read by the operator's `activity`, thinned out by
`retention`. Never: changes a row.

Threat: a gateway that delivers twice, late or nonsense; texts that a client or a
box chose; a server that was killed while connections were open.
Guarantee: secrets in commands are masked before anything is kept (`masking`). A
subject (a connection, a command, a forward) has at most one start and one end,
whatever is delivered again, and both of one gateway; what a batch says is kept whole or not at all; ids,
kinds and sizes are accepted by allowlist; what a gateway that restarted had left
open is ended, with the reason said.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Select, exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from runcode.controlplane.clock import Clock
from runcode.controlplane.masking import Pattern, mask_detail
from runcode.controlplane.records import ActivityRecord
from runcode.controlplane.services import access, audit_chain
from runcode.controlplane.services.idle import write_use
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import EventRow, SessionRow, TokenRow, UserRow, WorkspaceRow
from runcode.core.errors import RunCodeError

CONNECTION: Final = "connection"
START: Final = "start"
END: Final = "end"
# A workspace is in use: not kept as an event, but as the workspace's own last time (see `idle`).
USED: Final = "used"
_KINDS: Final = frozenset((CONNECTION, "command", "forward", "dropped", "refused"))
_PHASES: Final = frozenset((START, END, "note"))
_SUBJECT = re.compile(r"[0-9a-f]{32}", re.ASCII)
_GATEWAY = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,32}", re.ASCII)
_DETAIL_BYTES_MAX = 32 * 1024
_BATCH_MAX = 1000
_CHUNK = 500
_LOOKED_TO_MAX = 1000
ACTIVITY_MAX = 10_000
# What an end repeats of its start; a command's text stands in its start only.
_LASTING = ("workspace", "client", "source", "token_id", "token", "form", "target", "opened_by")


@dataclass(frozen=True)
class NewEvent:
    """One fact as a gateway tells it; `subject_id` is 32 hex digits of the gateway's making. Times are aware UTC."""

    kind: str
    phase: str
    subject_id: str
    at: datetime.datetime
    detail: Mapping[str, str | int | None]
    connection_id: str | None = None
    started_at: datetime.datetime | None = None
    workspace_id: int | None = None
    session_id: int | None = None
    user_id: int | None = None


class Events:
    def __init__(self, store: Store, clock: Clock, patterns: Sequence[Pattern] = ()) -> None:
        """`patterns` are the operator's own of what is a secret, see `masking`."""
        self._store = store
        self._clock = clock
        self._patterns = tuple(patterns)
        # Up to which record all that (gateway, beginning) ever started has its end. Ends are never taken back.
        self._looked_to: dict[tuple[str, str], int] = {}

    async def record(self, gateway: str, events: Sequence[NewEvent]) -> None:
        """Keep a batch, in order; what is known already is left as it is. Raises `bad_request` for nonsense."""
        _check_batch(gateway, events)
        async with self._store.write() as session:
            used = {event.workspace_id: event.at for event in events if event.kind == USED and event.workspace_id}
            await write_use(session, used, self._clock.now())
            events = [event for event in events if event.kind != USED]
            known, owners = await _load_known(session, events)
            if not owners <= {_machine_of(gateway)}:
                raise RunCodeError("bad_request", "that event is about what another gateway began")
            tokens = await _load_tokens(session, events)
            now = self._clock.now()
            for event in events:
                if (event.subject_id, event.phase) in known:
                    continue
                known.add((event.subject_id, event.phase))
                detail = mask_detail(event.kind, event.detail, self._patterns)
                if event.kind == CONNECTION and event.session_id in tokens:
                    detail["token_id"], detail["token"] = tokens[event.session_id]
                audit_chain.add(session.sync_session, _as_values(gateway, event, now, detail))

    async def end_missing(self, gateway: str, live: Collection[str], reason: str, *, beginning: str = "") -> int:
        """End everything that `gateway` started, save the `live` subjects; returns how many that were. Idempotent.

        Only of subjects whose ids begin with `beginning`.

        Their end is now: when they really ended is not known.
        """
        ended, after = 0, self._looked_to.get((gateway, beginning), 0)
        oldest_live: int | None = None
        while True:
            async with self._store.read() as session:
                newest = await session.scalar(select(func.max(EventRow.id))) or 0
                query = _select_open().where(EventRow.gateway == gateway, EventRow.id > after)
                if beginning:
                    # `g` is what follows the last of the digits.
                    query = query.where(EventRow.subject_id > beginning, EventRow.subject_id < beginning + "g")
                rows = list(await session.scalars(query.order_by(EventRow.id).limit(_CHUNK)))
            if not rows:
                # All that began before was looked at, and has its end; but for what lives on.
                looked_to = max(after, newest) if oldest_live is None else oldest_live - 1
                if len(self._looked_to) >= _LOOKED_TO_MAX:
                    self._looked_to.clear()
                self._looked_to[gateway, beginning] = looked_to
                return ended
            after = rows[-1].id
            if oldest_live is None:
                oldest_live = next((row.id for row in rows if row.subject_id in live), None)
            missing = [row for row in rows if row.subject_id not in live]
            if missing:
                await self.record(gateway, [_end_of(row, self._clock.now(), reason) for row in missing])
            ended += len(missing)

    async def find_connected_sessions(self, among: Collection[int]) -> set[int]:
        """Of these sessions, those with a connection that has not ended, as far as is known."""
        wanted, found = list(among), set[int]()
        async with self._store.read() as session:
            for at in range(0, len(wanted), _CHUNK):
                chunk = wanted[at : at + _CHUNK]
                query = _select_open().where(EventRow.kind == CONNECTION, EventRow.session_id.in_(chunk))
                columns = query.with_only_columns(EventRow.session_id).distinct()
                found |= {number for number in await session.scalars(columns) if number is not None}
        return found

    async def list_activity(self, *, workspace: int | str | None = None, limit: int = 50) -> list[ActivityRecord]:
        """What happened last, newest start first; of one workspace, or of all."""
        limit = max(1, min(limit, ACTIVITY_MAX))
        async with self._store.read() as session:
            query = select(EventRow).where(EventRow.kind.in_(_KINDS))
            if workspace is not None:
                query = query.where(EventRow.workspace_id == (await access.load_named(session, workspace))[0].id)
            subjects = await _find_newest_subjects(session, query, limit)
            starts, ends = await _load_both(session, subjects)
            rows = [starts.get(subject) or ends[subject] for subject in subjects]
            titles = await _load_names(session, WorkspaceRow, WorkspaceRow.title, {r.workspace_id for r in rows})
            emails = await _load_names(session, UserRow, UserRow.email, {r.user_id for r in rows})
        found = [
            ActivityRecord(
                kind=row.kind,
                subject_id=row.subject_id,
                connection_id=row.connection_id,
                workspace_id=row.workspace_id,
                workspace_title=titles.get(row.workspace_id),
                user_email=emails.get(row.user_id),
                session_id=row.session_id,
                started_at=row.started_at if row.phase == END else row.at,
                ended_at=_ended_at(row, ends.get(row.subject_id)),
                detail={**row.detail, **(ends[row.subject_id].detail if row.subject_id in ends else {})},
            )
            for row in rows
        ]
        return sorted(found, key=_started, reverse=True)


def _started(record: ActivityRecord) -> datetime.datetime:
    return record.started_at or record.ended_at or datetime.datetime.min.replace(tzinfo=datetime.timezone.utc)


def _ended_at(row: EventRow, end: EventRow | None) -> datetime.datetime | None:
    if end is not None:
        return end.at
    return None if row.phase == START else row.at


def _select_open() -> Select[EventRow]:
    """Starts without an end."""
    end = aliased(EventRow)
    return select(EventRow).where(
        EventRow.phase == START, ~exists().where(end.subject_id == EventRow.subject_id, end.phase == END)
    )


async def _load_known(session: AsyncSession, events: Sequence[NewEvent]) -> tuple[set[tuple[str, str]], set[str]]:
    """(what is on record of these subjects and their connections, as subject and phase; whose gateways told it)."""
    known: set[tuple[str, str]] = set()
    owners: set[str] = set()
    wanted = list({subject for event in events for subject in (event.subject_id, event.connection_id) if subject})
    for at in range(0, len(wanted), _CHUNK):
        query = select(EventRow.subject_id, EventRow.phase, EventRow.gateway)
        for subject_id, phase, gateway in await session.execute(
            query.where(EventRow.subject_id.in_(wanted[at : at + _CHUNK]))
        ):
            known.add((subject_id, phase))
            owners.add(_machine_of(gateway))
    return known, owners


def _machine_of(gateway: str) -> str:
    """One gateway's workers deliver for one another: `NAME.WORKER` is `NAME`'s."""
    return gateway.partition(".")[0]


async def _find_newest_subjects(session: AsyncSession, query: Select[EventRow], limit: int) -> list[str]:
    """The subjects of the newest rows. A subject has two rows at most, so twice the limit is enough."""
    columns = query.with_only_columns(EventRow.subject_id).order_by(EventRow.id.desc()).limit(2 * limit)
    return list(dict.fromkeys(await session.scalars(columns)))[:limit]


async def _load_both(session: AsyncSession, subjects: Sequence[str]) -> tuple[dict[str, EventRow], dict[str, EventRow]]:
    """(starts and notes, ends), each by subject."""
    starts: dict[str, EventRow] = {}
    ends: dict[str, EventRow] = {}
    for at in range(0, len(subjects), _CHUNK):
        for row in await session.scalars(select(EventRow).where(EventRow.subject_id.in_(subjects[at : at + _CHUNK]))):
            (ends if row.phase == END else starts)[row.subject_id] = row
    return starts, ends


async def _load_names(
    session: AsyncSession, table: type[WorkspaceRow] | type[UserRow], name: object, ids: set[int | None]
) -> dict[int | None, str]:
    wanted = [number for number in ids if number is not None]
    found: dict[int | None, str] = {}
    for at in range(0, len(wanted), _CHUNK):
        query = select(table.id, name).where(table.id.in_(wanted[at : at + _CHUNK]))  # type: ignore[call-overload]
        for number, text in (await session.execute(query)).all():
            found[number] = text
    return found


def _end_of(row: EventRow, now: datetime.datetime, reason: str) -> NewEvent:
    detail = {key: row.detail[key] for key in _LASTING if key in row.detail}
    return NewEvent(
        kind=row.kind,
        phase=END,
        subject_id=row.subject_id,
        at=now,
        # A connection says why it ended, everything else how; what it carried is not known.
        detail={**detail, "reason": reason}
        if row.kind == CONNECTION
        else {**detail, "outcome": "lost", "reason": reason},
        connection_id=row.connection_id,
        started_at=row.at,
        workspace_id=row.workspace_id,
        session_id=row.session_id,
        user_id=row.user_id,
    )


async def _load_tokens(session: AsyncSession, events: Sequence[NewEvent]) -> dict[int | None, tuple[int, str]]:
    """(id, name) of the API token behind each connection's session: the session is forgotten sooner than the event."""
    ids = {event.session_id for event in events if event.kind == CONNECTION and event.session_id is not None}
    if not ids:
        return {}
    found: dict[int | None, tuple[int, str]] = {}
    wanted = list(ids)
    for at in range(0, len(wanted), _CHUNK):
        query = (
            select(SessionRow.id, TokenRow.id, TokenRow.name)
            .join(TokenRow, TokenRow.id == SessionRow.token_id)
            .where(SessionRow.id.in_(wanted[at : at + _CHUNK]))
        )
        found |= {number: (token_id, name) for number, token_id, name in (await session.execute(query)).all()}
    return found


def _as_values(
    gateway: str, event: NewEvent, now: datetime.datetime, detail: dict[str, str | int | None]
) -> audit_chain.Values:
    return audit_chain.make_values(
        gateway=gateway,
        subject_id=event.subject_id,
        phase=event.phase,
        kind=event.kind,
        at=event.at,
        recorded_at=now,
        started_at=event.started_at,
        connection_id=event.connection_id,
        workspace_id=event.workspace_id,
        session_id=event.session_id,
        user_id=event.user_id,
        detail=detail,
    )


def _check_batch(gateway: str, events: Sequence[NewEvent]) -> None:
    if _GATEWAY.fullmatch(gateway) is None or len(events) > _BATCH_MAX:
        raise RunCodeError("bad_request", "that is not a gateway's batch of events")
    for event in events:
        ids = [event.subject_id] if event.connection_id is None else [event.subject_id, event.connection_id]
        if (
            (event.kind not in _KINDS and event.kind != USED)
            or event.phase not in _PHASES
            or not all(_SUBJECT.fullmatch(text) for text in ids)
            or not all(_is_plain(key, value) for key, value in event.detail.items())
            or len(json.dumps(dict(event.detail))) > _DETAIL_BYTES_MAX
        ):
            raise RunCodeError("bad_request", "that is not an event")


def _is_plain(key: object, value: object) -> bool:
    # Not every database keeps a key with a NUL in it.
    if not isinstance(key, str) or _KEY.fullmatch(key) is None:
        return False
    if isinstance(value, str):
        # A lone surrogate cannot be written as UTF-8 by whoever reads it later.
        return all(c.isprintable() or c in "\t\n" for c in value)
    return value is None or (type(value) is int and -(2**63) <= value < 2**63)
