"""The HTTP API of WIRE.md: HTTP in and out only."""

from __future__ import annotations

from fastapi import APIRouter, Request

from runcode.controlplane.routes.rendering import render_bundle, render_workspace
from runcode.controlplane.routes.request_io import Authenticated, Plane, parse_id, read_json_object
from runcode.core import wire
from runcode.core.errors import RunCodeError

router = APIRouter(prefix=wire.API_PREFIX)


@router.get("/me")
async def me(caller: Authenticated) -> dict[str, object]:
    return {"error": False, "email": caller.email, "is_admin": caller.is_admin}


@router.post("/auth/revoke")
async def revoke_own_token(plane: Plane, caller: Authenticated) -> dict[str, object]:
    """`logout --revoke`: the very token that carries the call, so that nothing has to name it."""
    assert caller.token_id is not None
    await plane.tokens.revoke_token(caller.token_id, caller=caller)
    return {"error": False}


@router.get("/workspaces")
async def list_workspaces(request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
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
@router.api_route("/workspace/start", methods=["GET", "POST"])
async def start_workspace(request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    workspace_id = await _read_workspace_id(request)
    try:
        workspace = await plane.workspaces.request_start(workspace_id, caller=caller)
    except RunCodeError as error:
        return _refuse(error, "start_failed")
    return {"error": False, "data": {"workspace": render_workspace(workspace)}}


@router.api_route("/workspace/stop", methods=["GET", "POST"])
async def stop_workspace(request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    workspace_id = await _read_workspace_id(request)
    try:
        workspace = await plane.workspaces.request_stop(workspace_id, caller=caller)
    except RunCodeError as error:
        return _refuse(error, "stop_failed")
    return {"error": False, "data": {"workspace": render_workspace(workspace)}}


@router.post("/workspace/{raw_id}/ssh-session")
async def mint_session(raw_id: str, request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    workspace_id = parse_id(raw_id)
    body = await read_json_object(request)
    grant = await plane.sessions.register_session(
        caller,
        workspace_id,
        raw_public_key=body.get("public_key"),
        raw_ttl=body.get("ttl"),
        raw_client=body.get("client"),
    )
    return {"error": False, "bundle": render_bundle(grant)}


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
