"""Indexes that every mint paid for and rare questions can do without; when a session's expiry was noted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_RELEASED = sa.text("released_at IS NOT NULL")


def upgrade() -> None:
    # One index for the keys that are held (it is there) and one for the others, where each row stood in two.
    op.drop_index("ix_sessions_fingerprint", "sessions")
    op.create_index(
        "ix_sessions_released_key",
        "sessions",
        ["fingerprint"],
        sqlite_where=_RELEASED,
        postgresql_where=_RELEASED,
    )
    # Sessions of a token are found among those of its person, a person's records of a workspace among all of theirs.
    op.drop_index("ix_sessions_token_id", "sessions")
    op.drop_index("ix_events_workspace_user", "events")
    op.add_column("sessions", sa.Column("expiry_noted", sa.DateTime(timezone=True)))
