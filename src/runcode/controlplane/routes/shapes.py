"""What the JSON routes say and take, as pydantic models: the source of `/api/openapi.json`.

Owns: the models, and `answers(…)`, which tells FastAPI what a route may answer.

The models document; they render nothing. A route goes on returning plain
dictionaries (`rendering.py`), so that the bytes of the wire are what they were;
`tests/contract/test_openapi.py` drives every route and holds each answer against
the document. How to document a route:

    @router.post("/thing", **answers(ThingAnswer, 404, 409, takes=ThingRequest))
    async def make_thing(...) -> dict[str, object]:
        \"\"\"One sentence for the reader of the document.\"\"\"

The statuses are those that the route's own rules answer. `ALWAYS` stand in every
operation by themselves, and 401 and 403 in each that is not `public=True`. What a route
reads from the query by itself is told with `query=(…)`, see `query_parameter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from runcode.core.errors import ERRORS

# What any call may meet before its route is asked, or when the server has trouble.
ALWAYS: Final = (400, 408, 413, 421, 429, 500, 503)
_SECRET: Final[dict[str, Any]] = {"format": "password"}
_ID_MAX: Final = 10**18 - 1
_EXPLAINED: Final = {
    200: "Done.",
    400: "The request is not what this address takes.",
    401: "The API token is missing, unknown, expired or revoked.",
    403: "Not allowed to this caller.",
    404: "There is nothing of that name that this caller may see.",
    405: "This address does not take that method.",
    408: "The request did not arrive in time.",
    409: "The state of things does not allow it now.",
    413: "The request is too large.",
    421: "This server does not answer under the name that was asked for.",
    429: "Too many calls: wait for as many seconds as `Retry-After` says.",
    500: "The server failed; the message has a reference into its log.",
    503: "Not available now, or the server is busy.",
}


class Shape(BaseModel):
    """What we send. More keys may come later: pass over what you do not know."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})


class ErrorAnswer(Shape):
    """Every failure. `code` is stable (docs/json-and-exit-codes.md); `message` is for people."""

    error: Literal[True]
    message: str = Field(examples=["the API token is missing, unknown, expired or revoked"])
    code: str = Field(examples=["unauthorized"], json_schema_extra={"enum": [*sorted(ERRORS)]})
    resolution: str = Field(examples=["run `runcode login`"])


class Done(Shape):
    error: Literal[False]


class Quota(Shape):
    """What the caller has, and may have at most (null: no limit)."""

    workspaces: int = Field(examples=[2])
    workspaces_max: int | None = Field(examples=[10])
    running: int = Field(examples=[1])
    running_max: int | None = Field(examples=[3])


class Me(Shape):
    """Whose token this is, and what it may do. `workspace_ids` null: all that the person may use."""

    error: Literal[False]
    email: str = Field(examples=["ann@example.org"])
    is_admin: bool
    scopes: list[str] = Field(examples=[["read", "connect", "manage"]])
    workspace_ids: list[int] | None = Field(examples=[None])
    quota: Quota | None = Field(description="Null for a token that may not read.")


class Workspace(Shape):
    """`title` is the stable name and the SSH user name; `custom_title` is free text of a person, so hostile input."""

    id: int = Field(ge=1, le=_ID_MAX, examples=[42])
    title: str = Field(examples=["royal-tree-08189931"])
    custom_title: str = Field(examples=["Billing API"])
    provider: str = Field(description="`aws` for whatever has SSH; released clients ask for it.", examples=["aws"])
    ssh_capable: bool
    runtime: str = Field(description="What runs it.", examples=["local"])
    current_state: str = Field(examples=["running"])
    interim_state: str | None = Field(description="Set while it is on its way.", examples=[None])
    reason: str | None = Field(description="Why it is not as it should be.", examples=[None])
    owner: str = Field(examples=["ann@example.org"])
    role: str | None = Field(description="The caller's: owner, manage or use.", examples=["owner"])
    created_at: str = Field(json_schema_extra={"format": "date-time"}, examples=["2026-11-23T22:15:00Z"])
    size: str = Field(examples=["standard"])
    size_pending: bool = Field(
        description="Its box was started with another size, and gets this one at its next start."
    )
    idle_stop_after_s: int | None = Field(
        description="Stopped after so many seconds without use; 0: never; null: as the server's default says.",
        examples=[None],
    )
    active_at: str | None = Field(
        description="When it was last in use, to about a minute.",
        json_schema_extra={"format": "date-time"},
        examples=["2026-11-23T22:15:00Z"],
    )
    stop_cause: str | None = Field(description="`person`, `operator` or `idle`, while it is stopped.", examples=[None])
    explanation: str | None = Field(
        description="Why it is as it is, for a person: what failed, or who or what stopped it.",
        examples=["stopped: idle for 30 min"],
    )


class WorkspaceListBody(Shape):
    workspaces: list[Workspace]


class WorkspaceList(Shape):
    error: Literal[False]
    data: WorkspaceListBody


class PowerBody(Shape):
    workspace: Workspace


class PowerDone(Shape):
    error: Literal[False]
    data: PowerBody


class PowerRequest(BaseModel):
    workspace_id: int = Field(ge=1, le=_ID_MAX, examples=[42])


class MintRequest(BaseModel):
    """Only the public half of the key travels."""

    public_key: str = Field(
        max_length=16384,
        examples=["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPgtFZMiRPxQw3kRKk6wZUyHTKuRRGjDqDcWQPKfCkTZ ann@laptop"],
    )
    ttl: int | None = Field(
        None, description="Seconds that are asked for; the server has a cap.", ge=1, le=10**9, examples=[1800]
    )
    client: str | None = Field(
        None, description="What asks, in its own words.", max_length=64, examples=["claude-code"]
    )
    certificates: bool | None = Field(None, description="The caller can use an OpenSSH certificate.", examples=[True])


class Bundle(Shape):
    """All that a client needs to connect. `ssh_config` is for people: never feed it to ssh."""

    session_id: int = Field(ge=1)
    host: str = Field(examples=["ssh.example.net"])
    port: int = Field(ge=1, le=65535, examples=[2222])
    user: str = Field(examples=["royal-tree-08189931"])
    known_hosts: str = Field(examples=["[ssh.example.net]:2222 ssh-ed25519 AAAA…\n"])
    ssh_config: str = Field(examples=["Host …"])
    expires_at: str = Field(json_schema_extra={"format": "date-time"}, examples=["2026-11-23T22:15:00Z"])
    workdir: str = Field(examples=["/home/ubuntu/workspace"])


class Minted(Shape):
    error: Literal[False]
    bundle: Bundle


class CodeRequest(BaseModel):
    """RFC 7636: the verifier is what only the client that began the login knows."""

    code: str = Field(json_schema_extra=_SECRET)
    code_verifier: str = Field(json_schema_extra=_SECRET)


class TokenAnswer(Shape):
    """The only moment at which the token is shown."""

    error: Literal[False]
    token: str = Field(json_schema_extra=_SECRET)
    email: str = Field(examples=["ann@example.org"])


class DeviceRequest(BaseModel):
    """RFC 8628: a client without a browser asks to be let in by one elsewhere."""

    client: str | None = Field(None, max_length=64, examples=["runcode"])
    machine: str | None = Field(None, max_length=64, examples=["build-7"])
    scopes: list[str] | None = Field(None, examples=[["read", "connect"]])


class DeviceAnswer(Shape):
    error: Literal[False]
    device_code: str = Field(json_schema_extra=_SECRET)
    user_code: str = Field(examples=["BCDF-GHJK"])
    verification_uri: str = Field(examples=["https://runcode.example.net/auth/device/"])
    verification_uri_complete: str
    expires_in: int = Field(ge=0, examples=[600])
    interval: int = Field(ge=0, description="Seconds between two questions.", examples=[5])


class DeviceTokenRequest(BaseModel):
    device_code: str = Field(json_schema_extra=_SECRET)


class DeviceRefusal(Shape):
    """RFC 8628 §3.5: `error` is a word, such as `authorization_pending`, beside what every failure has."""

    error: str | Literal[True] = Field(examples=["authorization_pending"])
    message: str
    code: str
    resolution: str


class ActivityBody(Shape):
    activity: list[dict[str, Any]] = Field(description="Newest first; texts of commands are masked and bounded.")
    older: str | None = Field(description="`before` of the next page; null: that was all.", examples=[None])


class ActivityPage(Shape):
    error: Literal[False]
    data: ActivityBody


class Alive(Shape):
    ok: Literal[True]


class Readiness(Shape):
    """`reasons` names what is not ready: `database`, `migrations`, `gateway_feed`, `reconciler`, `draining`, …"""

    ready: bool
    reasons: list[str] = Field(examples=[[]])


WORKSPACE_ID: Final[dict[str, Any]] = {"type": "integer", "minimum": 1, "maximum": _ID_MAX, "examples": [42]}


def query_parameter(name: str, schema: dict[str, Any], about: str, *, required: bool = False) -> dict[str, Any]:
    """A parameter that the route reads from the query by itself, as the document tells of it."""
    return {"name": name, "in": "query", "required": required, "description": about, "schema": schema}


def path_id(name: str) -> dict[str, Any]:
    """A workspace's number in the path: digits, whatever FastAPI takes it for."""
    return {"name": name, "in": "path", "required": True, "schema": WORKSPACE_ID}


def answers(
    says: Any,
    *statuses: int,
    takes: type[BaseModel] | None = None,
    takes_optional: bool = False,
    query: Sequence[dict[str, Any]] = (),
    path: Sequence[dict[str, Any]] = (),
    public: bool = False,
    also: dict[int, Any] | None = None,
) -> dict[str, Any]:
    """Keywords for a route's decorator. `says` is the model of its 200, or a union of models.

    `statuses` are refusals with the wire's error body; `also` are other answers with models
    of their own; `takes` is its JSON body; `public` routes need no token.
    """
    refused = sorted({*statuses, *ALWAYS, *(() if public else (401, 403))} - set(also or ()))
    responses: dict[int, dict[str, Any]] = {200: {"model": says, "description": _EXPLAINED[200]}}
    responses |= {status: {"model": ErrorAnswer, "description": _EXPLAINED[status]} for status in refused}
    responses |= {status: {"model": model, "description": _EXPLAINED[status]} for status, model in (also or {}).items()}
    for status in (429, 503):
        responses[status]["headers"] = {
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 0}}
        }
    extra: dict[str, Any] = {"security": [] if public else [{"ApiToken": []}]}
    if takes is not None:
        content = {"application/json": {"schema": takes.model_json_schema()}}
        extra["requestBody"] = {"required": not takes_optional, "content": content}
    if query or path:
        extra["parameters"] = [*path, *query]
    return {"response_model": None, "responses": responses, "openapi_extra": extra}
