"""What happened in a workspace, in a session, or by one person: newest first, a page at a time.

Owns: who may see which records, and what one of them is to a reader: a connection, command or forward from
its start to its end, or an act. Reads only. Called by `routes.api_activity` and the console.

Who sees what: whoever owns or manages a workspace, and every admin, sees all of it; whoever may only use it sees
what they did there themselves, and what was done to them. Everybody sees their own, wherever it was; a token
that names workspaces shows those alone.

Threat: somebody reads others' commands by ids, cursors or filters; a page that costs more the longer the past is.
Guarantee: visibility is part of the query, so no filter widens it; a workspace that the caller may not see is the
same `not_found` as ever. A page looks at a bounded number of rows by an index, however many there are, and asks
a fixed number of questions; where a filter leaves too little of them, `older` says where to go on.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from runcode.controlplane.records import Caller
from runcode.controlplane.services import access, audit
from runcode.controlplane.services.events import CONNECTION, END, START
from runcode.controlplane.states import ROLE_USE, SCOPE_READ
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import EventRow, SessionRow, TokenRow, UserRow, WorkspaceRow
from runcode.core.errors import RunCodeError

PAGE_MAX: Final = 200
PAGE_DEFAULT: Final = 50
GATEWAY_KINDS: Final = ("connection", "command", "forward", "dropped", "refused")
KINDS: Final = frozenset((*GATEWAY_KINDS, *audit.ACTS))
# Rows that one page looks at where no index knows the filter.
_LOOKED_AT_MAX: Final = 2000
_KIND = re.compile(r"[a-z_]{1,32}", re.ASCII)
# What stands in fields of their own; the rest of an act's detail is told as it is.
_FIELDS_TEXT = (
    "workspace client source by token token_id form text text_bytes text_sha256 masked ours target opened_by reason"
    " outcome exit_status exit_signal bytes_up bytes_down count"
)
_FIELDS: Final = frozenset(_FIELDS_TEXT.split())


@dataclass(frozen=True)
class TimelineFilter:
    """`before` is a cursor: records older than that one. `since`: none that began before it (aware UTC)."""

    before: int | None = None
    limit: int = PAGE_DEFAULT
    session_id: int | None = None
    kind: str | None = None
    since: datetime.datetime | None = None


@dataclass(frozen=True)
class TimelineRecord:
    """One thing that happened.

    `email` is whom it concerns, `by` who did it where that is somebody else. `started_at` None: its start is not
    known; `ended_at` None: it still goes on. Texts were chosen by people and programs: whoever shows them sanitizes.
    """

    id: str
    kind: str
    number: int
    workspace_id: int | None
    workspace_title: str | None
    email: str | None
    by: str | None
    client: str | None
    token_id: int | None
    token_name: str | None
    session_id: int | None
    connection_id: str | None
    source: str | None
    started_at: datetime.datetime | None
    ended_at: datetime.datetime | None
    form: str | None
    text: str | None
    text_bytes: int | None
    masked: int
    target: str | None
    opened_by: str | None
    outcome: str | None
    reason: str | None
    exit_status: int | None
    exit_signal: str | None
    bytes_up: int | None
    bytes_down: int | None
    count: int | None
    more: dict[str, str | int | None] = field(default_factory=dict)

    @property
    def duration(self) -> datetime.timedelta | None:
        """None while it goes on, or when its start is not known; never negative, whatever clocks did."""
        if self.started_at is None or self.ended_at is None:
            return None
        return max(datetime.timedelta(0), self.ended_at - self.started_at)


@dataclass(frozen=True)
class TimelinePage:
    """`older` is the cursor of the next page, or None at the end. A page may hold less than was asked for."""

    records: tuple[TimelineRecord, ...]
    older: int | None


class Timeline:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def list_workspace(self, caller: Caller, workspace_id: int, wanted: TimelineFilter) -> TimelinePage:
        """One workspace's, as far as this caller may see. Raises `not_found`, `forbidden`, `bad_request`."""
        _check(wanted)
        async with self._store.read() as session:
            sees_all = await self._sees_all(session, caller, workspace_id)
            visible = _Visible(workspace_id=workspace_id, user_id=None if sees_all else caller.user_id)
            return await _load_page(session, visible, wanted)

    async def list_own(self, caller: Caller, wanted: TimelineFilter) -> TimelinePage:
        """What this person did, and what was done about them, everywhere."""
        _check(wanted)
        access.require_scope(caller, SCOPE_READ)
        async with self._store.read() as session:
            visible = _Visible(user_id=caller.user_id, workspace_ids=caller.workspace_ids)
            return await _load_page(session, visible, wanted)

    async def list_all(self, caller: Caller, wanted: TimelineFilter) -> TimelinePage:
        """Everybody's, for admins. Raises `forbidden`."""
        _check(wanted)
        access.require_scope(caller, SCOPE_READ)
        if not caller.is_admin or caller.workspace_ids is not None:
            raise RunCodeError("forbidden", "only an admin sees what everybody did", resolution="ask your operator")
        async with self._store.read() as session:
            return await _load_page(session, _Visible(), wanted)

    async def _sees_all(self, session: AsyncSession, caller: Caller, workspace_id: int) -> bool:
        """Raises `not_found` for who sees nothing of it. An admin also sees one that was deleted, while it is known."""
        try:
            _, record = await access.load_visible(session, workspace_id, caller, SCOPE_READ)
        except RunCodeError as error:
            if error.code != "not_found" or not caller.is_admin or caller.workspace_ids is not None:
                raise
            if await session.get(WorkspaceRow, workspace_id) is None:
                raise
            access.require_scope(caller, SCOPE_READ)
            return True
        return caller.is_admin or record.role != ROLE_USE


def _check(wanted: TimelineFilter) -> None:
    if not 1 <= wanted.limit <= PAGE_MAX:
        raise RunCodeError("bad_request", f"limit is not between 1 and {PAGE_MAX}")
    if wanted.kind is not None and wanted.kind not in KINDS:
        shown = wanted.kind if _KIND.fullmatch(wanted.kind) else "that"
        raise RunCodeError(
            "bad_request", f"there is no kind of activity {shown!r}", resolution="use connection, command or forward"
        )


@dataclass(frozen=True)
class _Visible:
    """What this caller may see: everything, where nothing is named."""

    workspace_id: int | None = None
    user_id: int | None = None
    workspace_ids: frozenset[int] | None = None

    def render(self, *, by_index: bool = True) -> list[ColumnElement[bool]]:
        """Without `by_index` in a form that no index answers, so that the database takes the one we mean.

        A person's records in a workspace are read by the person's index; the workspace is then the caller's to compare.
        """
        found: list[ColumnElement[bool]] = []
        if self.workspace_id is not None and (self.user_id is None or not by_index):
            found.append((EventRow.workspace_id if by_index else EventRow.workspace_id + 0) == self.workspace_id)
        if self.user_id is not None:
            found.append((EventRow.user_id if by_index else EventRow.user_id + 0) == self.user_id)
        if self.workspace_ids is not None:
            found.append((EventRow.workspace_id + 0).in_(self.workspace_ids))
        return found


async def _load_page(session: AsyncSession, visible: _Visible, wanted: TimelineFilter) -> TimelinePage:
    ids, older = await _find_ids(session, visible, wanted)
    rows = list(await session.scalars(select(EventRow).where(EventRow.id.in_(ids)))) if ids else []
    rows.sort(key=lambda row: row.id, reverse=True)
    records = await _make_records(session, rows)
    since = wanted.since
    if since is not None and any(row.recorded_at < since for row in rows):
        # What was written down before it has begun before it, and so has all that is older.
        older = None
    if since is not None:
        records = [record for record in records if (record.started_at or record.ended_at or since) >= since]
    return TimelinePage(records=tuple(records), older=older)


async def _find_ids(session: AsyncSession, visible: _Visible, wanted: TimelineFilter) -> tuple[list[int], int | None]:
    """Numbers of the first row of each thing, newest first, and where the page after this one begins."""
    # A session's index is the narrowest; a kind is in the index of workspaces.
    conditions = visible.render(by_index=wanted.session_id is None)
    if wanted.session_id is not None:
        conditions.append(EventRow.session_id == wanted.session_id)
    if wanted.before is not None:
        conditions.append(EventRow.id < wanted.before)
    kind_by_index = visible.user_id is None and visible.workspace_id is not None and wanted.session_id is None
    if wanted.kind is not None and kind_by_index:
        conditions.append(EventRow.kind == wanted.kind)
    workspace_compared = visible.user_id is not None and visible.workspace_id is not None and wanted.session_id is None
    filtered = workspace_compared or (wanted.kind is not None and not kind_by_index)
    most = _LOOKED_AT_MAX if filtered else 4 * wanted.limit + 100
    looked_at = (
        select(EventRow.id, EventRow.subject_id, EventRow.phase, EventRow.kind, EventRow.workspace_id)
        .where(*conditions)
        .order_by(EventRow.id.desc())
        .limit(most)
        .subquery("looked_at")
    )
    start = aliased(EventRow)
    has_start = exists().where(start.subject_id == looked_at.c.subject_id, start.phase == START)
    leading: list[ColumnElement[bool]] = [or_(looked_at.c.phase != END, ~has_start)]
    if wanted.kind is not None:
        leading.append(looked_at.c.kind == wanted.kind)
    if workspace_compared:
        leading.append(looked_at.c.workspace_id == visible.workspace_id)
    query = select(looked_at.c.id).where(*leading).order_by(looked_at.c.id.desc()).limit(wanted.limit + 1)
    ids = list(await session.scalars(query))
    if len(ids) > wanted.limit:
        return ids[: wanted.limit], ids[wanted.limit - 1]
    seen, oldest = (await session.execute(select(func.count(), func.min(looked_at.c.id)))).one()
    return ids, oldest if seen == most else None


async def _make_records(session: AsyncSession, rows: Sequence[EventRow]) -> list[TimelineRecord]:
    ends = await _load_of_phase(session, {row.subject_id for row in rows if row.phase == START}, END)
    wanted = {row.connection_id for row in rows if row.connection_id and row.kind != CONNECTION}
    connections = await _load_of_phase(session, wanted, START)
    titles = await _load_texts(session, WorkspaceRow.id, WorkspaceRow.title, {row.workspace_id for row in rows})
    emails = await _load_texts(session, UserRow.id, UserRow.email, {row.user_id for row in rows})
    minted = await _load_sessions(session, {row.session_id for row in rows})
    return [
        _make_record(row, ends.get(row.subject_id), connections.get(row.connection_id or ""), titles, emails, minted)
        for row in rows
    ]


def _make_record(
    row: EventRow,
    end: EventRow | None,
    connection: EventRow | None,
    titles: dict[int, str],
    emails: dict[int, str],
    minted: dict[int, tuple[str, int, str]],
) -> TimelineRecord:
    detail: dict[str, Any] = {**row.detail, **(end.detail if end is not None else {})}
    around: dict[str, Any] = connection.detail if connection is not None else {}
    client, token_id, token_name = minted.get(row.session_id or 0, (None, None, None))
    is_act = row.kind in audit.ACTS
    started_at: datetime.datetime | None = row.at
    ended_at: datetime.datetime | None = row.at
    if is_act:
        # `token` is the one that the caller used, by its id, but for acts about a token.
        token_id = detail.get("token") if isinstance(detail.get("token"), int) else token_id
    else:
        token_id = detail.get("token_id") or around.get("token_id") or token_id
        token_name = detail.get("token") or around.get("token") or token_name
        started_at = row.started_at if row.phase == END else row.at
        ended_at = end.at if end is not None else (None if row.phase == START else row.at)
    return TimelineRecord(
        id=row.subject_id,
        kind=row.kind,
        number=row.id,
        workspace_id=row.workspace_id,
        workspace_title=titles.get(row.workspace_id or 0) or _text(detail.get("workspace")),
        email=emails.get(row.user_id or 0),
        by=_text(detail.get("by")),
        client=_text(detail.get("client")) or _text(around.get("client")) or client,
        token_id=_number(token_id),
        token_name=_text(token_name),
        session_id=row.session_id,
        connection_id=row.connection_id,
        source=_text(detail.get("source")) or _text(around.get("source")),
        started_at=started_at,
        ended_at=ended_at,
        form=_text(detail.get("form")),
        text=_text(detail.get("text")),
        text_bytes=_number(detail.get("text_bytes")),
        masked=_number(detail.get("masked")) or 0,
        target=_text(detail.get("target")),
        opened_by=_text(detail.get("opened_by")),
        outcome=_text(detail.get("outcome")),
        reason=_text(detail.get("reason")),
        exit_status=_number(detail.get("exit_status")),
        exit_signal=_text(detail.get("exit_signal")),
        bytes_up=_number(detail.get("bytes_up")),
        bytes_down=_number(detail.get("bytes_down")),
        count=_number(detail.get("count")),
        more={key: value for key, value in detail.items() if key not in _FIELDS} if is_act else {},
    )


async def _load_of_phase(session: AsyncSession, subjects: set[str], phase: str) -> dict[str, EventRow]:
    if not subjects:
        return {}
    query = select(EventRow).where(and_(EventRow.subject_id.in_(subjects), EventRow.phase == phase))
    return {row.subject_id: row for row in await session.scalars(query)}


async def _load_texts(session: AsyncSession, key: Any, name: Any, ids: set[int | None]) -> dict[int, str]:
    wanted = [number for number in ids if number is not None]
    if not wanted:
        return {}
    return {row[0]: row[1] for row in await session.execute(select(key, name).where(key.in_(wanted)))}


async def _load_sessions(session: AsyncSession, ids: set[int | None]) -> dict[int, tuple[str, int, str]]:
    """(client, token's id, token's name) of sessions that are not forgotten yet."""
    wanted = [number for number in ids if number is not None]
    if not wanted:
        return {}
    query = (
        select(SessionRow.id, SessionRow.client, TokenRow.id, TokenRow.name)
        .join(TokenRow, TokenRow.id == SessionRow.token_id)
        .where(SessionRow.id.in_(wanted))
    )
    return {number: (client, token_id, name) for number, client, token_id, name in (await session.execute(query)).all()}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> int | None:
    return value if type(value) is int else None
