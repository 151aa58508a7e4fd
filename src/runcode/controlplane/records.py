"""What the services hand out: frozen values, never live database rows.

Owns: the shapes that routes, the operator's CLI and the gateway's adapter may
rely on. Times are aware UTC. Free text (`custom_title`, `reason`, `name`,
`client`) was typed by some person or program: whoever shows it sanitizes it.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Final

from runcode.controlplane.states import RUNNING, SCOPES, STOPPED, STOPPED_BY_OPERATOR, STOPPED_IDLE, show_state
from runcode.core.channel_policy import EVERYTHING, ChannelPolicy
from runcode.runtimes.base import STANDARD_SIZE, Endpoint

# How an API token came about.
ORIGIN_OPERATOR: Final = "operator"
ORIGIN_LOGIN: Final = "login"
ORIGIN_DEVICE: Final = "device"
ORIGIN_CONSOLE: Final = "console"
ORIGINS: Final = (ORIGIN_OPERATOR, ORIGIN_LOGIN, ORIGIN_DEVICE, ORIGIN_CONSOLE)


@dataclass(frozen=True)
class UserRecord:
    id: int
    email: str
    is_admin: bool
    created_at: datetime.datetime
    disabled_at: datetime.datetime | None
    workspaces_max: int | None = None
    running_max: int | None = None


@dataclass(frozen=True)
class TokenRecord:
    """An API token without the token itself, which nobody can read again.

    `workspace_ids` None: every workspace that the person may use. `origin`: how it was made.
    """

    id: int
    user_email: str
    name: str
    created_at: datetime.datetime
    last_used_at: datetime.datetime | None
    expires_at: datetime.datetime | None
    revoked_at: datetime.datetime | None
    scopes: tuple[str, ...] = SCOPES
    workspace_ids: tuple[int, ...] | None = None
    origin: str = ORIGIN_OPERATOR
    policy: ChannelPolicy = EVERYTHING


@dataclass(frozen=True)
class NewToken:
    """The only moment at which a token's plain text exists here."""

    record: TokenRecord
    plaintext: str = field(repr=False)


@dataclass(frozen=True)
class GatewayRecord:
    """A gateway that runs as a process of its own, without its credential, which nobody can read again."""

    id: int
    name: str
    created_at: datetime.datetime
    revoked_at: datetime.datetime | None


@dataclass(frozen=True)
class ClientAuthorityRecord:
    """A client CA. `created_at` is None for the one that is there since the first start, until another one is made.

    `state`: current (the newest one on disk, which `--client-ca disk` signs with), accepted, or retired.
    """

    public_key: str
    fingerprint: str
    on_disk: bool
    state: str
    created_at: datetime.datetime | None
    retired_at: datetime.datetime | None


@dataclass(frozen=True)
class NewGateway:
    """The only moment at which a gateway's credential exists here in plain text."""

    record: GatewayRecord
    credential: str = field(repr=False)


@dataclass(frozen=True)
class Caller:
    """Who asks, as an API token or a signed-in browser proved; `token_id` is None for a browser.

    `scopes` and `workspace_ids` (None: all) bound what this caller may do beneath what the person may:
    `services/access.py` is where they are held against a wish. `source` is the peer's address, for the audit.
    """

    user_id: int
    email: str
    is_admin: bool
    token_id: int | None
    token_expires_at: datetime.datetime | None
    scopes: frozenset[str] = frozenset(SCOPES)
    workspace_ids: frozenset[int] | None = None
    web_session_id: int | None = None
    source: str = ""


@dataclass(frozen=True)
class WorkspaceRecord:
    """`role` is the caller's (`owner`, `manage`, `use`), or None when an operator asked.

    `idle_stop_after_s`: 0 is never, None the server's default. `box_size` is what the box
    that runs was started with. `stop_cause` (`states.STOP_CAUSES`) and `stop_note` (who,
    or after how many seconds) are set while it is to be stopped and somebody asked for it.
    """

    id: int
    title: str
    custom_title: str
    owner_email: str
    runtime: str
    desired_state: str
    observed_state: str
    activity: str | None
    failures: int
    reason: str | None
    endpoint: Endpoint | None = field(repr=False)
    host_public_key: str
    created_at: datetime.datetime
    role: str | None = None
    size: str = STANDARD_SIZE
    policy: ChannelPolicy = EVERYTHING
    idle_stop_after_s: int | None = None
    active_at: datetime.datetime | None = None
    box_size: str | None = None
    stop_cause: str | None = None
    stop_note: str | None = None

    @property
    def size_pending(self) -> bool:
        """Its box was started with another size, and has this one from its next start on."""
        return self.state != STOPPED and self.box_size not in (None, self.size)

    @property
    def explanation(self) -> str | None:
        """Why it is as it is, in one line for a person: what failed, or who stopped it; None when it runs."""
        if self.reason is not None or self.stop_cause is None or self.desired_state != STOPPED:
            return self.reason
        if self.stop_cause == STOPPED_IDLE:
            return f"stopped: idle for {render_duration(int(self.stop_note or 0))}"
        who = "the operator" if self.stop_cause == STOPPED_BY_OPERATOR else self.stop_note
        return f"stopped by {who}"

    @property
    def current_state(self) -> str:
        return self._shown[0]

    @property
    def interim_state(self) -> str | None:
        return self._shown[1]

    @property
    def state(self) -> str:
        """The one word for a person: the interim state if there is one."""
        return self.interim_state or self.current_state

    @property
    def running(self) -> bool:
        """May it be connected to? Asked for and observed, both."""
        return self.desired_state == RUNNING and self.state == RUNNING

    @property
    def _shown(self) -> tuple[str, str | None]:
        return show_state(
            desired=self.desired_state, observed=self.observed_state, activity=self.activity, failures=self.failures
        )


@dataclass(frozen=True)
class ShareRecord:
    """With a person (`user_email`, whether or not there is an account under it) or with a team: one of the two."""

    workspace_id: int
    user_email: str | None
    role: str
    team_id: int | None = None
    team_name: str | None = None


@dataclass(frozen=True)
class TeamRecord:
    """`role` is the caller's (`member`, `admin`), or None when an operator asked."""

    id: int
    name: str
    created_at: datetime.datetime
    members: int
    role: str | None = None


@dataclass(frozen=True)
class TeamMemberRecord:
    """By e-mail address, whether or not there is an account under it."""

    email: str
    role: str


@dataclass(frozen=True)
class QuotaRecord:
    """What a person has, and may have at most (None: no limit). Workspaces that are being deleted count as had."""

    workspaces: int
    workspaces_max: int | None
    running: int
    running_max: int | None


@dataclass(frozen=True)
class SessionRecord:
    id: int
    workspace_id: int
    workspace_title: str
    user_email: str
    token_id: int
    fingerprint: str
    client: str
    created_at: datetime.datetime
    expires_at: datetime.datetime
    revoked_at: datetime.datetime | None


@dataclass(frozen=True)
class ActivityRecord:
    """A connection, a command or a forward, from its start to its end; or a count of lost events (`dropped`).

    `ended_at` None: it still goes on. `started_at` None: its start was lost. `detail` is
    both events' own, with texts that a client and a box chose: bounded, not trusted.
    """

    kind: str
    subject_id: str
    connection_id: str | None
    workspace_id: int | None
    workspace_title: str | None
    user_email: str | None
    session_id: int | None
    started_at: datetime.datetime | None
    ended_at: datetime.datetime | None
    detail: dict[str, str | int | None]


@dataclass(frozen=True)
class SshEndpoint:
    """Where this server's gateway answers, and the host keys (`algorithm base64`) to pin there."""

    host: str
    port: int
    host_keys: tuple[str, ...]


@dataclass(frozen=True)
class SessionGrant:
    """A minted session with all that its bundle says."""

    session: SessionRecord
    endpoint: SshEndpoint
    workdir: str


def render_duration(seconds: int) -> str:
    """`45 s`, `30 min`, `12 h`: the largest unit that is exact."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
