"""The client CAs that this installation has had, and which of them count no more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "client_authorities",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("on_disk", sa.Boolean(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("retired_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_client_authorities"),
        sa.UniqueConstraint("public_key", name="uq_client_authorities_public_key"),
        sqlite_autoincrement=True,
    )
