"""Users, API tokens, workspaces, shares, sessions, and the change feed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("password_hash", sa.Text()),
        sa.Column("is_admin", sa.Boolean(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("disabled_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("email", name="uq_users_email"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "api_tokens",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("last_used_at", _TIME),
        sa.Column("expires_at", _TIME),
        sa.Column("revoked_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_api_tokens"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_api_tokens_user_id_users"),
        sa.UniqueConstraint("token_hash", name="uq_api_tokens_token_hash"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_api_tokens_user_id", "api_tokens", ["user_id"])
    op.create_table(
        "workspaces",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("title", sa.String(64), nullable=False),
        sa.Column("custom_title", sa.String(120), nullable=False),
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("runtime", sa.String(40), nullable=False),
        sa.Column("host_public_key", sa.Text(), nullable=False),
        sa.Column("desired_state", sa.String(16), nullable=False),
        sa.Column("observed_state", sa.String(16), nullable=False),
        sa.Column("observed_at", _TIME, nullable=False),
        sa.Column("activity", sa.String(16)),
        sa.Column("reason", sa.Text()),
        sa.Column("endpoint_socket_path", sa.Text()),
        sa.Column("endpoint_host", sa.String(253)),
        sa.Column("endpoint_port", sa.Integer()),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("retry_at", _TIME),
        sa.Column("lease_owner", sa.String(80)),
        sa.Column("lease_expires_at", _TIME),
        sa.Column("checkpoints", sa.JSON(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("deleted_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_workspaces"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_workspaces_owner_id_users"),
        sa.CheckConstraint(
            "desired_state IN ('running', 'stopped', 'deleted')", name=op.f("ck_workspaces_desired_state")
        ),
        sa.CheckConstraint(
            "observed_state IN ('running', 'stopped', 'unknown')", name=op.f("ck_workspaces_observed_state")
        ),
        sa.CheckConstraint(
            "activity IS NULL OR activity IN ('starting', 'stopping', 'deleting')", name=op.f("ck_workspaces_activity")
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_workspaces_owner_id", "workspaces", ["owner_id"])
    op.create_index(
        "uq_workspaces_live_title",
        "workspaces",
        ["title"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "workspace_host_keys",
        sa.Column("workspace_id", _ID, autoincrement=False, nullable=False),
        sa.Column("private_key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", name="pk_workspace_host_keys"),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspaces.id"], name="fk_workspace_host_keys_workspace_id_workspaces"
        ),
    )
    op.create_table(
        "shares",
        sa.Column("workspace_id", _ID, autoincrement=False, nullable=False),
        sa.Column("user_id", _ID, autoincrement=False, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "user_id", name="pk_shares"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name="fk_shares_workspace_id_workspaces"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_shares_user_id_users"),
        sa.CheckConstraint("role IN ('use', 'manage')", name=op.f("ck_shares_role")),
    )
    op.create_index("ix_shares_user_id", "shares", ["user_id"])
    op.create_table(
        "sessions",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("workspace_id", _ID, nullable=False),
        sa.Column("token_id", _ID, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("revoked_at", _TIME),
        sa.Column("released_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sessions_user_id_users"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name="fk_sessions_workspace_id_workspaces"),
        sa.ForeignKeyConstraint(["token_id"], ["api_tokens.id"], name="fk_sessions_token_id_api_tokens"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])
    op.create_index("ix_sessions_token_id", "sessions", ["token_id"])
    op.create_index("ix_sessions_fingerprint", "sessions", ["fingerprint"])
    op.create_index("ix_sessions_workspace_user", "sessions", ["workspace_id", "user_id"])
    op.create_index(
        "uq_sessions_held_key",
        "sessions",
        ["fingerprint"],
        unique=True,
        sqlite_where=sa.text("released_at IS NULL"),
        postgresql_where=sa.text("released_at IS NULL"),
    )
    op.create_table(
        "changes",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("workspace_id", sa.BigInteger()),
        sa.Column("session_id", sa.BigInteger()),
        sa.Column("user_id", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_changes"),
        sqlite_autoincrement=True,
    )
