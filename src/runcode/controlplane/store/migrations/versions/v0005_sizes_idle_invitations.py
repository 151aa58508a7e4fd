"""Why a workspace was stopped, the size its box has, and places kept for people who have no account yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("workspaces", sa.Column("stop_cause", sa.String(16)))
    op.add_column("workspaces", sa.Column("stop_note", sa.String(254)))
    op.add_column("workspaces", sa.Column("box_size", sa.String(40)))
    op.create_table(
        "invitations",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("workspace_id", _ID),
        sa.Column("team_id", _ID),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_invitations"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name="fk_invitations_workspace_id_workspaces"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="fk_invitations_team_id_teams"),
        sa.UniqueConstraint("workspace_id", "email", name="uq_invitations_workspace_id_email"),
        sa.UniqueConstraint("team_id", "email", name="uq_invitations_team_id_email"),
        sa.CheckConstraint("(workspace_id IS NULL) <> (team_id IS NULL)", name=op.f("ck_invitations_one_place")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_invitations_email", "invitations", ["email"])
