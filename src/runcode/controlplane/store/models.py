"""The tables, as SQLAlchemy sees them. `migrations/` is what makes them; a test keeps the two equal.

Never: a rule (that is `services`), or SQL that only one database understands.

Threat: whoever reads a copy of the database must not be able to act as anybody.
Guarantee: tokens and passwords stand here as hashes only. The one private thing
is each box's host key, alone in its own table, so that no query which lists or
admits ever loads it: in the database rather than in files because it must come
and go in the transaction of its workspace, and be there for a second replica and
in a restored backup, where a pinned public half without it would lock the box out.
"""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import DateTime, TypeDecorator

from runcode.controlplane.states import ACTIVITIES, DESIRED_STATES, OBSERVED_STATES, SHARE_ROLES, TEAM_ROLES

# SQLite counts only an INTEGER column as its rowid.
_Id = BigInteger().with_variant(Integer, "sqlite")
# AUTOINCREMENT: an id is never given out twice, even after its row is gone.
_NEVER_REUSED = {"sqlite_autoincrement": True}


class UtcTime(TypeDecorator[datetime.datetime]):
    """Aware UTC in and out; SQLite keeps it as text that sorts by time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime.datetime | None, dialect: Dialect) -> datetime.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(datetime.timezone.utc)

    def process_result_value(self, value: datetime.datetime | None, dialect: Dialect) -> datetime.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            return value.replace(tzinfo=datetime.timezone.utc)
        return value.astimezone(datetime.timezone.utc)


def _one_of(column: str, words: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(word) for word in words)})"


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UserRow(Base):
    __tablename__ = "users"
    __table_args__ = _NEVER_REUSED

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    password_hash: Mapped[str | None] = mapped_column(Text)
    is_admin: Mapped[bool] = mapped_column(default=False)
    # How many workspaces this person may own, and have running at once; None: the server's own limit.
    workspaces_max: Mapped[int | None]
    running_max: Mapped[int | None]
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    disabled_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)


class TokenRow(Base):
    """`workspace_ids` None: all that the person may use. `origin` says how it was made (`records.ORIGINS`)."""

    __tablename__ = "api_tokens"
    __table_args__ = _NEVER_REUSED

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    name: Mapped[str] = mapped_column(String(64))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    workspace_ids: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    # What its sessions' connections may do at most (`core.channel_policy`); None: everything.
    policy: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    origin: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    last_used_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)
    expires_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)
    revoked_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)


class WorkspaceRow(Base):
    """`lease_*`, `checkpoints`, `failures` and `retry_at` belong to the reconciler alone."""

    __tablename__ = "workspaces"
    __table_args__ = (
        CheckConstraint(_one_of("desired_state", DESIRED_STATES), name="desired_state"),
        CheckConstraint(_one_of("observed_state", OBSERVED_STATES), name="observed_state"),
        CheckConstraint(f"activity IS NULL OR {_one_of('activity', ACTIVITIES)}", name="activity"),
        # A title is free again once its workspace is gone.
        Index(
            "uq_workspaces_live_title",
            "title",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        _NEVER_REUSED,
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=True)
    title: Mapped[str] = mapped_column(String(64))
    custom_title: Mapped[str] = mapped_column(String(120), default="")
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    runtime: Mapped[str] = mapped_column(String(40))
    size: Mapped[str] = mapped_column(String(40))
    # What the box that runs, or ran last, was started with.
    box_size: Mapped[str | None] = mapped_column(String(40))
    # Stopped by itself after so long without use; 0: never; None: as the server's default says.
    idle_stop_after_s: Mapped[int | None]
    active_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)
    # What connections may do (`core.channel_policy`); None: everything.
    policy: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    host_public_key: Mapped[str] = mapped_column(Text)
    desired_state: Mapped[str] = mapped_column(String(16))
    observed_state: Mapped[str] = mapped_column(String(16))
    observed_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    activity: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    # Why it is to be stopped (`states.STOP_CAUSES`), and who or how long; None while it is to run.
    stop_cause: Mapped[str | None] = mapped_column(String(16))
    stop_note: Mapped[str | None] = mapped_column(String(254))
    endpoint_socket_path: Mapped[str | None] = mapped_column(Text)
    endpoint_host: Mapped[str | None] = mapped_column(String(253))
    endpoint_port: Mapped[int | None]
    failures: Mapped[int] = mapped_column(default=0)
    retry_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)
    # The data folder whose machine holds the box's storage (`lifecycle.Station`); None until a first start.
    place: Mapped[str | None] = mapped_column(String(40))
    lease_owner: Mapped[str | None] = mapped_column(String(80))
    lease_expires_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)
    checkpoints: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    deleted_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)


class InstallationRow(Base):
    """Whose public keys this database goes with: one row."""

    __tablename__ = "installation"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    client_ca: Mapped[str] = mapped_column(Text)
    workspace_ca: Mapped[str] = mapped_column(Text)
    gateway_host_key: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)


class GatewayRow(Base):
    """A gateway's credential, as a hash only. A name may come again once the row that had it is revoked."""

    __tablename__ = "gateways"
    __table_args__ = _NEVER_REUSED

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(48))
    credential_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    revoked_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)


class ClientAuthorityRow(Base):
    """A client CA, by its public key (`algorithm base64`). `on_disk`: made by `ca rotate`; else an operator's own."""

    __tablename__ = "client_authorities"
    __table_args__ = _NEVER_REUSED

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=True)
    public_key: Mapped[str] = mapped_column(Text, unique=True)
    on_disk: Mapped[bool]
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    retired_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)


class HostKeyRow(Base):
    __tablename__ = "workspace_host_keys"

    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspaces.id"), primary_key=True, autoincrement=False)
    private_key: Mapped[str] = mapped_column(Text)


class ShareRow(Base):
    __tablename__ = "shares"
    __table_args__ = (CheckConstraint(_one_of("role", SHARE_ROLES), name="role"),)

    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspaces.id"), primary_key=True, autoincrement=False)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True, autoincrement=False, index=True)
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)


class TeamRow(Base):
    __tablename__ = "teams"
    __table_args__ = _NEVER_REUSED

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)


class TeamMemberRow(Base):
    __tablename__ = "team_members"
    __table_args__ = (CheckConstraint(_one_of("role", TEAM_ROLES), name="role"),)

    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"), primary_key=True, autoincrement=False)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True, autoincrement=False, index=True)
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)


class TeamShareRow(Base):
    __tablename__ = "team_shares"
    __table_args__ = (CheckConstraint(_one_of("role", SHARE_ROLES), name="role"),)

    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspaces.id"), primary_key=True, autoincrement=False)
    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"), primary_key=True, autoincrement=False, index=True)
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)


class InvitationRow(Base):
    """A share or a team's place for an e-mail address under which there is no account yet. One of the ids is set."""

    __tablename__ = "invitations"
    __table_args__ = (
        CheckConstraint("(workspace_id IS NULL) <> (team_id IS NULL)", name="one_place"),
        UniqueConstraint("workspace_id", "email"),
        UniqueConstraint("team_id", "email"),
        _NEVER_REUSED,
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=True)
    email: Mapped[str] = mapped_column(String(254), index=True)
    workspace_id: Mapped[int | None] = mapped_column(ForeignKey("workspaces.id"))
    team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id"))
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)


class WebSessionRow(Base):
    """A browser that signed in; its cookie's secret stands here as a hash only. `method`: password, oidc, link."""

    __tablename__ = "web_sessions"
    __table_args__ = _NEVER_REUSED

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    method: Mapped[str] = mapped_column(String(16))
    source: Mapped[str] = mapped_column(String(64))
    browser: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    last_seen_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    ended_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)


class SignInLinkRow(Base):
    """A link that signs its person in, once."""

    __tablename__ = "sign_in_links"

    secret_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    used_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)


class IdentityRow(Base):
    """Who a person is at an OpenID provider: never found by e-mail address, which may change hands there."""

    __tablename__ = "identities"

    issuer: Mapped[str] = mapped_column(String(255), primary_key=True)
    subject: Mapped[str] = mapped_column(String(255), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)


class LoginCodeRow(Base):
    """A one-time code of `runcode login`, given after consent. `request` is what was consented to."""

    __tablename__ = "login_codes"

    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    used_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)
    token_id: Mapped[int | None] = mapped_column(ForeignKey("api_tokens.id"))


class DeviceGrantRow(Base):
    """A machine without a browser that waits for consent (RFC 8628). Both codes stand here as hashes only."""

    __tablename__ = "device_grants"
    __table_args__ = _NEVER_REUSED

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=True)
    device_code_hash: Mapped[str] = mapped_column(String(64), unique=True)
    user_code_hash: Mapped[str] = mapped_column(String(64), unique=True)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    last_polled_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)
    interval_s: Mapped[int]
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"), index=True)
    decision: Mapped[str | None] = mapped_column(String(16))
    decided_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)
    token_id: Mapped[int | None] = mapped_column(ForeignKey("api_tokens.id"))


class SessionRow(Base):
    """A registered client key. `released_at` ends its hold on the key, so that another session may register it."""

    __tablename__ = "sessions"
    __table_args__ = (
        Index("ix_sessions_workspace_user", "workspace_id", "user_id"),
        # One key, one session: what admission finds for a key is never a choice.
        Index(
            "uq_sessions_held_key",
            "fingerprint",
            unique=True,
            sqlite_where=text("released_at IS NULL"),
            postgresql_where=text("released_at IS NULL"),
        ),
        # Each row stands in one of the two: a mint pays for each index, and finds most of it on another page.
        Index(
            "ix_sessions_released_key",
            "fingerprint",
            sqlite_where=text("released_at IS NOT NULL"),
            postgresql_where=text("released_at IS NOT NULL"),
        ),
        _NEVER_REUSED,
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspaces.id"))
    token_id: Mapped[int] = mapped_column(ForeignKey("api_tokens.id"))
    fingerprint: Mapped[str] = mapped_column(String(64))
    public_key: Mapped[str] = mapped_column(Text)
    client: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    revoked_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)
    released_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)
    # The `expires_at` whose passing stands in the audit; minting again makes another one.
    expiry_noted: Mapped[datetime.datetime | None] = mapped_column(UtcTime)


class ChangeRow(Base):
    """The monotonic feed. No foreign keys: a row outlives what it speaks of."""

    __tablename__ = "changes"
    __table_args__ = _NEVER_REUSED

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=True)
    at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    kind: Mapped[str] = mapped_column(String(32))
    workspace_id: Mapped[int | None] = mapped_column(BigInteger)
    session_id: Mapped[int | None] = mapped_column(BigInteger)
    user_id: Mapped[int | None] = mapped_column(BigInteger)


class EventRow(Base):
    """What a gateway saw, and what people did here. Rows are added and, when too old, removed; none is ever changed.

    `id` is the record's number in the audit chain: no holes, in the order of commits, given by
    `services.audit_chain` alone. `hash` covers all columns and the hash before it (`audit_format`). No foreign keys: a
    row outlives what it speaks of.
    """

    __tablename__ = "events"
    __table_args__ = (
        # One start and one end of anything, however often a gateway delivers them.
        UniqueConstraint("subject_id", "phase"),
        # What a page of the timeline is read by, newest first: of a workspace, of one kind there, of a person, …
        Index("ix_events_workspace_id", "workspace_id", "id"),
        Index("ix_events_workspace_kind", "workspace_id", "kind", "id"),
        Index("ix_events_user_id", "user_id", "id"),
        Index("ix_events_session_id", "session_id", "id"),
        _NEVER_REUSED,
    )

    id: Mapped[int] = mapped_column(_Id, primary_key=True, autoincrement=True)
    gateway: Mapped[str] = mapped_column(String(64))
    subject_id: Mapped[str] = mapped_column(String(32))
    phase: Mapped[str] = mapped_column(String(8))
    kind: Mapped[str] = mapped_column(String(32))
    at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    recorded_at: Mapped[datetime.datetime] = mapped_column(UtcTime)
    started_at: Mapped[datetime.datetime | None] = mapped_column(UtcTime)
    connection_id: Mapped[str | None] = mapped_column(String(32))
    workspace_id: Mapped[int | None] = mapped_column(BigInteger)
    session_id: Mapped[int | None] = mapped_column(BigInteger)
    user_id: Mapped[int | None] = mapped_column(BigInteger)
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
    hash: Mapped[str] = mapped_column(String(64))


class ChainRow(Base):
    """The audit chain's head: one row, which every transaction that notes something locks and moves on."""

    __tablename__ = "audit_chain"
    __table_args__ = (CheckConstraint("id = 1", name="one"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    chain_id: Mapped[str] = mapped_column(String(32))
    count: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(64))
    pruned_to: Mapped[int] = mapped_column(BigInteger)
    pruned_hash: Mapped[str] = mapped_column(String(64))
    pruned_statement: Mapped[str | None] = mapped_column(Text)
