"""The HTTP API of WIRE.md: HTTP in and out only."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.routes.rendering import render_minted, render_quota, render_workspace
from runcode.controlplane.routes.request_io import (
    Authenticated,
    Plane,
    Scope,
    parse_id,
    parse_json_object,
    read_json_object,
    recall,
)
from runcode.controlplane.routes.shapes import (
    WORKSPACE_ID,
    Done,
    ErrorAnswer,
    Me,
    Minted,
    MintRequest,
    PowerDone,
    PowerRequest,
    WorkspaceList,
    answers,
    path_id,
    query_parameter,
)
from runcode.controlplane.states import SCOPE_READ, SCOPES
from runcode.core import wire
from runcode.core.errors import RunCodeError

router = APIRouter(prefix=wire.API_PREFIX)

_CATEGORY = query_parameter(
    "category", {"type": "string", "enum": ["active", "shared"]}, "`active` are the caller's own. Default: `active`."
)
_POWER_ID = query_parameter("workspace_id", WORKSPACE_ID, "Which one; a POST may say it in its body instead.")
_POWER = answers(PowerDone | ErrorAnswer, 404, takes=PowerRequest, takes_optional=True, query=[_POWER_ID])


@router.get("/me", **answers(Me))
async def me(plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Whose token this is, what it may do, and how much its person has and may have."""
    quota = None
    if SCOPE_READ in caller.scopes:
        quota = render_quota(await plane.quotas.load_quota(caller.email, caller=caller))
    return {
        "error": False,
        "email": caller.email,
        "is_admin": caller.is_admin,
        "scopes": [scope for scope in SCOPES if scope in caller.scopes],
        "workspace_ids": None if caller.workspace_ids is None else sorted(caller.workspace_ids),
        "quota": quota,
    }


@router.post("/auth/revoke", **answers(Done))
async def revoke_own_token(plane: Plane, caller: Authenticated) -> dict[str, object]:
    """`logout --revoke`: the very token that carries the call, so that nothing has to name it."""
    assert caller.token_id is not None
    await plane.tokens.revoke_token(caller.token_id, caller=caller)
    return {"error": False}


@router.get("/workspaces", **answers(WorkspaceList, query=[_CATEGORY]))
async def list_workspaces(request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """The workspaces of one category: the caller's own, or those that others share with the caller."""
    categories = request.query_params.getlist("category") or ["active"]
    if categories == ["active"]:
        found = await plane.workspaces.list_owned(caller)
    elif categories == ["shared"]:
        found = await plane.workspaces.list_shared(caller)
    else:
        raise RunCodeError("bad_request", "category is not known", resolution="use `active` or `shared`")
    return {"error": False, "data": {"workspaces": [render_workspace(workspace) for workspace in found]}}


# The clients in the field send GET. That is safe here because a token header is
# the only way in: no page can make a browser send one.
@router.get("/workspace/start", **_POWER)
@router.post("/workspace/start", **_POWER)
async def start_workspace(request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Boot a workspace. Idempotent; a refusal answers 200 with `error: true`."""
    workspace_id = await _read_workspace_id(request)
    try:
        workspace = await plane.workspaces.request_start(workspace_id, caller=caller)
    except RunCodeError as error:
        return _refuse(error, "start_failed")
    return {"error": False, "data": {"workspace": render_workspace(workspace)}}


@router.get("/workspace/stop", **_POWER)
@router.post("/workspace/stop", **_POWER)
async def stop_workspace(request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Power a workspace down; its storage stays. Idempotent; a refusal answers 200 with `error: true`."""
    workspace_id = await _read_workspace_id(request)
    try:
        workspace = await plane.workspaces.request_stop(workspace_id, caller=caller)
    except RunCodeError as error:
        return _refuse(error, "stop_failed")
    return {"error": False, "data": {"workspace": render_workspace(workspace)}}


@router.post(
    "/workspace/{raw_id}/ssh-session", **answers(Minted, 404, 409, takes=MintRequest, path=[path_id("raw_id")])
)
async def mint_session(request: Request) -> Response:
    """Mint a session: register a public key for one running workspace, for a while."""
    raw = await answer_mint(request.scope, request.path_params["raw_id"], await request.body())
    return Response(raw, media_type="application/json")


async def answer_mint(scope: Scope, raw_id: str, raw_body: bytes) -> bytes:
    """The answer's JSON.

    Neither arguments nor answer pass through FastAPI: that would cost more than all the rest.
    """
    # Minting looks at the token again, in its transaction.
    caller = await recall(scope)
    workspace_id = parse_id(raw_id)
    body = parse_json_object(raw_body)
    plane: ControlPlane = scope["app"].state.plane
    grant = await plane.sessions.register_session(
        caller,
        workspace_id,
        raw_public_key=body.get("public_key"),
        raw_ttl=body.get("ttl"),
        raw_client=body.get("client"),
    )
    plane.metrics.count_mint()
    return render_minted(grant)


async def _read_workspace_id(request: Request) -> int:
    given: list[object] = list(request.query_params.getlist("workspace_id"))
    if request.method == "POST" and not given:
        given = [(await read_json_object(request)).get("workspace_id")]
    if len(given) != 1:
        raise RunCodeError("bad_request", "workspace_id must be given once")
    return parse_id(given[0])


def _refuse(error: RunCodeError, refusal: str) -> dict[str, object]:
    """A refusal answers 200 with `error: true`, as the service always has; any other failure keeps its status."""
    if error.code != refusal:
        raise error
    return wire.render_error(error)
