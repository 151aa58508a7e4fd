"""What the routes about workspaces, shares, teams and people say and take (see `shapes` for how they are used)."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from runcode.controlplane.routes.shapes import Shape, Workspace
from runcode.controlplane.services.inputs import CUSTOM_TITLE_MAX, EMAIL_MAX, IDLE_MAX_S, LIMIT_MAX, NAME_MAX
from runcode.core.names import TITLE_MAX

_TIME: Final[dict[str, Any]] = {"format": "date-time"}
_ID_MAX = 10**18 - 1
_IDLE = "Seconds without use after which it is stopped: 60 or more, 0 for never, null for the server's default."


class Request(BaseModel):
    """What we take: a key that we do not know is refused, since it is probably a misspelt one."""

    model_config = ConfigDict(extra="forbid")


class WorkspaceAnswer(Shape):
    """`notice` says what to know about the change that was made, for a person."""

    error: Literal[False]
    data: WorkspaceBody


class WorkspaceBody(Shape):
    workspace: Workspace
    notice: str | None = None


class CreateWorkspaceRequest(Request):
    """All may be absent: it then gets a title, and what the server gives by default."""

    title: str | None = Field(
        None, max_length=TITLE_MAX, description="Its stable name: A-Z a-z 0-9 . _ -", examples=["billing-api"]
    )
    custom_title: str | None = Field(None, max_length=CUSTOM_TITLE_MAX, examples=["Billing API"])
    runtime: str | None = Field(None, max_length=40, examples=["local"])
    size: str | None = Field(None, max_length=40, examples=["standard"])
    idle_stop_after_s: int | None = Field(None, description=_IDLE, ge=0, le=IDLE_MAX_S, examples=[3600])


class ChangeWorkspaceRequest(Request):
    """What is absent stays. A box that runs has another size from its next start on."""

    custom_title: str | None = Field(None, max_length=CUSTOM_TITLE_MAX, examples=["Billing API"])
    size: str | None = Field(None, max_length=40, examples=["small"])
    idle_stop_after_s: int | None = Field(None, description=_IDLE, ge=0, le=IDLE_MAX_S, examples=[3600])
    policy: dict[str, bool | int | str | None] | None = Field(
        None,
        description="Laid over what is there; null: everything again. Connections opened under a wider one are cut.",
        examples=[{"agent": False, "destinations": "loopback", "sessions": 4}],
    )


class Session(Shape):
    """The right of one key to connect to one workspace, for a while. `client` is the client's own word."""

    id: int = Field(ge=1)
    workspace_id: int = Field(ge=1)
    workspace: str = Field(examples=["royal-tree-08189931"])
    email: str = Field(examples=["ann@example.org"])
    client: str = Field(examples=["claude-code"])
    fingerprint: str = Field(examples=["SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"])
    created_at: str = Field(json_schema_extra=_TIME, examples=["2026-11-23T22:15:00Z"])
    expires_at: str = Field(json_schema_extra=_TIME, examples=["2026-11-23T22:45:00Z"])


class SessionListBody(Shape):
    sessions: list[Session]


class SessionList(Shape):
    """Newest first, at most 1,000."""

    error: Literal[False]
    data: SessionListBody


class Size(Shape):
    """The most that a box of this size may take; null: as much as the runtime lets one box have."""

    name: str = Field(examples=["standard"])
    memory_bytes: int | None
    processes: int | None
    cpus: float | None


class RuntimeOffer(Shape):
    """`limits` false: sizes cannot be enforced there. `obstacle`: why it runs nothing now."""

    name: str = Field(examples=["local"])
    sudo: bool
    outbound_network: bool
    limits: bool
    obstacle: str | None


class OffersBody(Shape):
    runtimes: list[RuntimeOffer]
    sizes: list[Size]
    idle_stop_after_s: int | None = Field(description="The server's default; null: workspaces run on.")


class Offers(Shape):
    error: Literal[False]
    data: OffersBody


class Share(Shape):
    """With a person (`email`) or with a team (`team_id`, `team`): the others are null."""

    email: str | None = Field(examples=["bob@example.org"])
    team_id: int | None
    team: str | None
    role: str = Field(description="`use`: connect and start; `manage`: stop as well.", examples=["use"])


class ShareListBody(Shape):
    shares: list[Share]


class ShareList(Shape):
    error: Literal[False]
    data: ShareListBody


class ShareBody(Shape):
    share: Share


class ShareAnswer(Shape):
    """The same whether or not there is an account under the address; the share then waits for one."""

    error: Literal[False]
    data: ShareBody


class ShareRequest(Request):
    """With one of `email` and `team_id`."""

    email: str | None = Field(None, max_length=EMAIL_MAX, examples=["bob@example.org"])
    team_id: int | None = Field(None, ge=1, le=_ID_MAX, examples=[7])
    role: str | None = Field(None, max_length=16, description="`use` (when absent) or `manage`.", examples=["use"])


class Team(Shape):
    id: int = Field(ge=1, examples=[7])
    name: str = Field(examples=["Payments"])
    role: str | None = Field(description="The caller's: member or admin.", examples=["admin"])
    members: int = Field(examples=[3])
    created_at: str = Field(json_schema_extra=_TIME, examples=["2026-11-23T22:15:00Z"])


class TeamListBody(Shape):
    teams: list[Team]


class TeamList(Shape):
    error: Literal[False]
    data: TeamListBody


class Member(Shape):
    email: str = Field(examples=["bob@example.org"])
    role: str = Field(examples=["member"])


class TeamBody(Shape):
    team: Team
    members: list[Member]


class TeamAnswer(Shape):
    error: Literal[False]
    data: TeamBody


class TeamRequest(Request):
    name: str = Field(max_length=NAME_MAX, examples=["Payments"])


class MemberRequest(Request):
    email: str = Field(max_length=EMAIL_MAX, examples=["bob@example.org"])
    role: str | None = Field(None, max_length=16, description="`member` (when absent) or `admin`.", examples=["member"])


class Person(Shape):
    """`workspaces_max` and `running_max` are this person's own limits; null: the server's."""

    id: int = Field(ge=1)
    email: str = Field(examples=["bob@example.org"])
    is_admin: bool
    created_at: str = Field(json_schema_extra=_TIME, examples=["2026-11-23T22:15:00Z"])
    disabled_at: str | None
    workspaces_max: int | None
    running_max: int | None


class PersonListBody(Shape):
    users: list[Person]


class PersonList(Shape):
    error: Literal[False]
    data: PersonListBody


class PersonBody(Shape):
    user: Person
    password: str | None = Field(None, description="Of a new account, shown this once.")


class PersonAnswer(Shape):
    error: Literal[False]
    data: PersonBody


class CreatePersonRequest(Request):
    email: str = Field(max_length=EMAIL_MAX, examples=["bob@example.org"])
    is_admin: bool | None = Field(
        None, description="Refused to tokens: admins are made in the console, or by the operator.", examples=[False]
    )


class ChangePersonRequest(Request):
    """What is absent stays; a limit of null is the server's again."""

    disabled: bool | None = Field(None, examples=[True])
    workspaces_max: int | None = Field(None, ge=0, le=LIMIT_MAX, examples=[5])
    running_max: int | None = Field(None, ge=0, le=LIMIT_MAX, examples=[2])


WorkspaceAnswer.model_rebuild()
