"""Each event holds the hash of the one before; the chain's head; the indexes that a timeline is read by."""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa
from alembic import op

from runcode.controlplane.audit_format import COLUMNS, hash_of_nothing, hash_record
from runcode.controlplane.masking import mask_detail
from runcode.controlplane.store.models import UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_AT_ONCE = 500


def upgrade() -> None:
    op.add_column("events", sa.Column("hash", sa.String(64)))
    chain_id = secrets.token_hex(16)
    count, last = _chain_what_is_there(op.get_bind(), hash_of_nothing(chain_id))
    # SQLite makes the table anew for this, and would forget that its ids are never given out twice.
    with op.batch_alter_table("events", table_kwargs={"sqlite_autoincrement": True}) as events:
        events.alter_column("hash", existing_type=sa.String(64), nullable=False)
    for name, columns in (
        ("ix_events_workspace_kind", ["workspace_id", "kind", "id"]),
        ("ix_events_workspace_user", ["workspace_id", "user_id", "id"]),
        ("ix_events_user_id", ["user_id", "id"]),
        ("ix_events_session_id", ["session_id", "id"]),
    ):
        op.create_index(name, "events", columns)
    chain = op.create_table(
        "audit_chain",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("chain_id", sa.String(32), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("pruned_to", sa.BigInteger(), nullable=False),
        sa.Column("pruned_hash", sa.String(64), nullable=False),
        sa.Column("pruned_statement", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_audit_chain"),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_chain_one")),
    )
    head = {"id": 1, "chain_id": chain_id, "count": count, "hash": last}
    op.bulk_insert(chain, [{**head, "pruned_to": 0, "pruned_hash": hash_of_nothing(chain_id)}])


def _chain_what_is_there(connection: sa.Connection, last: str) -> tuple[int, str]:
    """Number and chain all rows in the order of their ids, some at a time; returns (how many, the last hash).

    What was kept before secrets were masked is masked now. A new number is never above the old one, so no two meet.
    """
    events = sa.table(
        "events", *(sa.column(name, _TYPES.get(name)) for name in COLUMNS), sa.column("hash", sa.String(64))
    )
    change = (
        sa.update(events)
        .where(events.c.id == sa.bindparam("old_id"))
        .values(id=sa.bindparam("new_id"), hash=sa.bindparam("new_hash"), detail=sa.bindparam("new_detail"))
    )
    count, after = 0, 0
    while True:
        query = sa.select(*(events.c[name] for name in COLUMNS)).where(events.c.id > after)
        rows = connection.execute(query.order_by(events.c.id).limit(_AT_ONCE)).mappings().all()
        if not rows:
            return count, last
        changes = []
        for row in rows:
            count += 1
            values = {**row, "id": count, "detail": mask_detail(row["kind"], row["detail"])}
            last = hash_record(last, values)
            changes.append({"old_id": row["id"], "new_id": count, "new_hash": last, "new_detail": values["detail"]})
        after = rows[-1]["id"]
        connection.execute(change, changes)


_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "id": sa.BigInteger(),
    "at": UtcTime(),
    "recorded_at": UtcTime(),
    "started_at": UtcTime(),
    "detail": sa.JSON(),
}
