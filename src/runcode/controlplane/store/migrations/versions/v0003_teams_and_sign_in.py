"""Teams, signed-in browsers, one-time codes and devices; what a token may do; sizes, idle time and quotas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("users", sa.Column("workspaces_max", sa.Integer()))
    op.add_column("users", sa.Column("running_max", sa.Integer()))
    # A token of before could do all that its person could.
    with op.batch_alter_table("api_tokens") as tokens:
        everything = '["read", "connect", "manage"]'
        tokens.add_column(sa.Column("scopes", sa.JSON(), nullable=False, server_default=everything))
        tokens.add_column(sa.Column("workspace_ids", sa.JSON()))
        tokens.add_column(sa.Column("origin", sa.String(16), nullable=False, server_default="operator"))
    with op.batch_alter_table("workspaces") as workspaces:
        workspaces.add_column(sa.Column("size", sa.String(40), nullable=False, server_default="standard"))
        workspaces.add_column(sa.Column("idle_stop_after_s", sa.Integer()))
        workspaces.add_column(sa.Column("active_at", _TIME))
    # SQLite makes the table anew for this, and would forget that its ids are never given out twice.
    with op.batch_alter_table("events", table_kwargs={"sqlite_autoincrement": True}) as events:
        events.alter_column("kind", type_=sa.String(32), existing_type=sa.String(16), existing_nullable=False)
    _create_teams()
    _create_sign_in()


def _create_teams() -> None:
    op.create_table(
        "teams",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_teams"),
        sa.UniqueConstraint("name", name="uq_teams_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "team_members",
        sa.Column("team_id", _ID, autoincrement=False, nullable=False),
        sa.Column("user_id", _ID, autoincrement=False, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("team_id", "user_id", name="pk_team_members"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="fk_team_members_team_id_teams"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_team_members_user_id_users"),
        sa.CheckConstraint("role IN ('member', 'admin')", name=op.f("ck_team_members_role")),
    )
    op.create_index("ix_team_members_user_id", "team_members", ["user_id"])
    op.create_table(
        "team_shares",
        sa.Column("workspace_id", _ID, autoincrement=False, nullable=False),
        sa.Column("team_id", _ID, autoincrement=False, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "team_id", name="pk_team_shares"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name="fk_team_shares_workspace_id_workspaces"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name="fk_team_shares_team_id_teams"),
        sa.CheckConstraint("role IN ('use', 'manage')", name=op.f("ck_team_shares_role")),
    )
    op.create_index("ix_team_shares_team_id", "team_shares", ["team_id"])


def _create_sign_in() -> None:
    op.create_table(
        "web_sessions",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("browser", sa.String(200), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("last_seen_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_web_sessions"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_web_sessions_user_id_users"),
        sa.UniqueConstraint("secret_hash", name="uq_web_sessions_secret_hash"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_web_sessions_user_id", "web_sessions", ["user_id"])
    op.create_table(
        "sign_in_links",
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("used_at", _TIME),
        sa.PrimaryKeyConstraint("secret_hash", name="pk_sign_in_links"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sign_in_links_user_id_users"),
    )
    op.create_index("ix_sign_in_links_user_id", "sign_in_links", ["user_id"])
    op.create_table(
        "identities",
        sa.Column("issuer", sa.String(255), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("issuer", "subject", name="pk_identities"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_identities_user_id_users"),
    )
    op.create_index("ix_identities_user_id", "identities", ["user_id"])
    op.create_table(
        "login_codes",
        sa.Column("code_hash", sa.String(64), nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("used_at", _TIME),
        sa.Column("token_id", _ID),
        sa.PrimaryKeyConstraint("code_hash", name="pk_login_codes"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_login_codes_user_id_users"),
        sa.ForeignKeyConstraint(["token_id"], ["api_tokens.id"], name="fk_login_codes_token_id_api_tokens"),
    )
    op.create_index("ix_login_codes_user_id", "login_codes", ["user_id"])
    op.create_table(
        "device_grants",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("device_code_hash", sa.String(64), nullable=False),
        sa.Column("user_code_hash", sa.String(64), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("last_polled_at", _TIME),
        sa.Column("interval_s", sa.Integer(), nullable=False),
        sa.Column("user_id", _ID),
        sa.Column("decision", sa.String(16)),
        sa.Column("decided_at", _TIME),
        sa.Column("token_id", _ID),
        sa.PrimaryKeyConstraint("id", name="pk_device_grants"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_device_grants_user_id_users"),
        sa.ForeignKeyConstraint(["token_id"], ["api_tokens.id"], name="fk_device_grants_token_id_api_tokens"),
        sa.UniqueConstraint("device_code_hash", name="uq_device_grants_device_code_hash"),
        sa.UniqueConstraint("user_code_hash", name="uq_device_grants_user_code_hash"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_device_grants_user_id", "device_grants", ["user_id"])
