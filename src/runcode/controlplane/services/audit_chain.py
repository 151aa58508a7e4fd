"""One chain through everything that is noted: each record gets the next number and the hash of the one before.

Owns: the only way a row comes into the table `events`, and the only way the oldest go. Called by `audit` and
`events` (add), `retention` (prune). Never: changes a row.

Threat: two processes add at once; a transaction that is rolled back leaves a hole; records go without a word.
Guarantee: what a transaction has added is numbered and chained in one piece right before it commits, under the
lock on the chain's head, so numbers have no holes and their order is the order of commits. What is rolled back
(also to a savepoint) was never there. Pruning writes down, in its own transaction and signed, up to where it went.

How: records wait in `Session.info` until SQLAlchemy's `before_commit`; then one look at the head, one
statement with all rows, one change of the head, however many records there are.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from sqlalchemy import Table, bindparam, delete, event, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from runcode.controlplane.audit_format import hash_record
from runcode.controlplane.store.models import ChainRow, EventRow
from runcode.controlplane.store.row_lists import insert_rows
from runcode.core.errors import RunCodeError

_WAITING: Final = "runcode_audit_waiting"
HEAD: Final = 1


@dataclass(frozen=True)
class ChainHead:
    """Where the chain stands. `count` records were ever added; those up to `pruned_to` are gone.

    Both hashes are 64 hex digits: of the newest record, and of the newest that is gone.
    """

    chain_id: str
    count: int
    hash: str
    pruned_to: int
    pruned_hash: str
    pruned_statement: str | None


Values = dict[str, Any]
# What says, signed, that records up to a number (with this hash) were pruned.
StatementMaker = Callable[[ChainHead, int, str], str]


def add(session: Session, values: Values) -> None:
    """Let this record be part of the transaction. `values` has every column but `id` and `hash`."""
    waiting: list[tuple[Values, SessionTransaction | None]] = session.info.setdefault(_WAITING, [])
    waiting.append((values, session.get_nested_transaction()))


async def load_head(session: AsyncSession) -> ChainHead:
    """Raises `io_error` when the head is gone: then nothing can be noted, and so nothing be done."""
    row = (await session.execute(select(*_HEAD_COLUMNS).where(ChainRow.id == HEAD))).first()
    if row is None:
        raise _headless()
    return ChainHead(*row)


async def prune(session: AsyncSession, up_to: int, make_statement: StatementMaker) -> int:
    """Remove records up to this number, in the caller's transaction; returns how many. Idempotent."""
    # The lock before the look: another process may be pruning, or adding.
    await session.execute(select(ChainRow.id).where(ChainRow.id == HEAD).with_for_update())
    head = await load_head(session)
    up_to = min(up_to, head.count)
    if up_to <= head.pruned_to:
        return 0
    last = await session.scalar(select(EventRow.hash).where(EventRow.id == up_to))
    if last is None:
        raise RunCodeError(
            "io_error", f"audit record {up_to} is missing", resolution="run `runcode-server audit verify`"
        )
    removed = await session.execute(delete(EventRow).where(EventRow.id <= up_to))
    changed = {
        "pruned_to": up_to,
        "pruned_hash": last,
        "pruned_statement": make_statement(head, up_to, last),
    }
    await session.execute(update(ChainRow).where(ChainRow.id == HEAD).values(**changed))
    return int(removed.rowcount)  # type: ignore[attr-defined]


_HEAD_COLUMNS = (
    ChainRow.chain_id,
    ChainRow.count,
    ChainRow.hash,
    ChainRow.pruned_to,
    ChainRow.pruned_hash,
    ChainRow.pruned_statement,
)

_chain = cast(Table, ChainRow.__table__)
# Made once, and past the ORM: every transaction that notes something runs them.
_SELECT_HEAD = select(_chain.c.count, _chain.c.hash).where(_chain.c.id == HEAD).with_for_update()
_MOVE_HEAD = update(_chain).where(_chain.c.id == HEAD).values(count=bindparam("to_count"), hash=bindparam("to_hash"))


def _headless() -> RunCodeError:
    return RunCodeError(
        "io_error",
        "the audit chain's head is missing from the database",
        resolution="put a backup in the database's place, and keep the damaged one for whoever investigates",
    )


@event.listens_for(Session, "before_commit")
def _append_waiting(session: Session) -> None:
    # A savepoint's release is a commit too, but what it holds may still be undone with what is around it.
    if session.in_nested_transaction():
        return
    waiting: list[tuple[Values, object]] = session.info.pop(_WAITING, [])
    if waiting:
        _append(session, [values for values, _ in waiting])


@event.listens_for(Session, "after_soft_rollback")
def _forget_undone(session: Session, ended: SessionTransaction) -> None:
    waiting: list[tuple[Values, SessionTransaction | None]] = session.info.get(_WAITING, [])
    waiting[:] = [(values, within) for values, within in waiting if not _is_part_of(within, ended)]


def _is_part_of(within: SessionTransaction | None, ended: SessionTransaction) -> bool:
    if not ended.nested:
        return True
    while within is not None:
        if within is ended:
            return True
        within = within.parent
    return False


def _append(session: Session, records: list[Values]) -> None:
    connection = session.connection()
    head = connection.execute(_SELECT_HEAD).first()
    if head is None:
        raise _headless()
    count, last = head
    rows: list[Values] = []
    for values in records:
        count += 1
        row = {**values, "id": count}
        last = row["hash"] = hash_record(last, row)
        rows.append(row)
    insert_rows(session, EventRow, rows)
    connection.execute(_MOVE_HEAD, {"to_count": count, "to_hash": last})


def make_values(
    *,
    gateway: str,
    subject_id: str,
    phase: str,
    kind: str,
    at: datetime.datetime,
    recorded_at: datetime.datetime,
    detail: dict[str, str | int | None],
    started_at: datetime.datetime | None = None,
    connection_id: str | None = None,
    workspace_id: int | None = None,
    session_id: int | None = None,
    user_id: int | None = None,
) -> Values:
    """A record's columns, for `add`."""
    return {
        "gateway": gateway,
        "subject_id": subject_id,
        "phase": phase,
        "kind": kind,
        "at": at,
        "recorded_at": recorded_at,
        "started_at": started_at,
        "connection_id": connection_id,
        "workspace_id": workspace_id,
        "session_id": session_id,
        "user_id": user_id,
        "detail": detail,
    }
