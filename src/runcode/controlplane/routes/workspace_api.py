"""Workspaces over HTTP beyond what WIRE.md names: made, looked at, changed, deleted; who is connected.

HTTP in and out only; the rules are the services'.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from runcode.controlplane.routes.rendering import render_offer, render_session, render_size, render_workspace
from runcode.controlplane.routes.request_io import (
    Authenticated,
    Plane,
    find_query,
    parse_id,
    parse_text,
    read_known_keys,
)
from runcode.controlplane.routes.shapes import Done, answers, path_id, query_parameter
from runcode.controlplane.routes.workspace_shapes import (
    ChangeWorkspaceRequest,
    CreateWorkspaceRequest,
    Offers,
    SessionList,
    WorkspaceAnswer,
)
from runcode.controlplane.services.inputs import UNSET
from runcode.core import wire

router = APIRouter(prefix=wire.API_PREFIX)

_ID = path_id("raw_id")
_CONFIRM = query_parameter("confirm", {"type": "string"}, "The workspace's title, once more.", required=True)


@router.get("/runtimes", **answers(Offers))
async def list_offers(plane: Plane, caller: Authenticated) -> dict[str, object]:
    """What a workspace can be made of here: runtimes, sizes, and the idle time that counts by default."""
    policy = plane.workspaces.policy
    return {
        "error": False,
        "data": {
            "runtimes": [render_offer(offer) for offer in plane.offers.list_offers()],
            "sizes": [render_size(name, limits) for name, limits in policy.sizes.items()],
            "idle_stop_after_s": policy.idle_stop_after_s,
        },
    }


@router.post("/workspaces", **answers(WorkspaceAnswer, 403, 409, takes=CreateWorkspaceRequest))
async def create_workspace(request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Make a workspace of one's own, stopped. 403 with `quota_exceeded` when one owns as many as one may."""
    body = await read_known_keys(request, CreateWorkspaceRequest.model_fields)
    texts = {
        name: parse_text(body[name], name)
        for name in ("title", "custom_title", "runtime", "size")
        if body.get(name) is not None
    }
    made = await plane.workspaces.create_workspace(
        texts.get("title"),
        runtime=texts.get("runtime"),
        custom_title=texts.get("custom_title", ""),
        size=texts.get("size"),
        idle_stop_after_s=body.get("idle_stop_after_s"),
        caller=caller,
    )
    return {"error": False, "data": {"workspace": render_workspace(made), "notice": None}}


@router.get("/workspace/{raw_id}", **answers(WorkspaceAnswer, 403, 404, path=[_ID]))
async def show_workspace(raw_id: str, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """One workspace that the caller may use."""
    found = await plane.workspaces.load_workspace(parse_id(raw_id), caller=caller)
    return {"error": False, "data": {"workspace": render_workspace(found), "notice": None}}


@router.patch("/workspace/{raw_id}", **answers(WorkspaceAnswer, 403, 404, takes=ChangeWorkspaceRequest, path=[_ID]))
async def change_workspace(raw_id: str, request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Change its name for people, its size or its idle time; the owner only."""
    workspace_id = parse_id(raw_id)
    body = await read_known_keys(request, ChangeWorkspaceRequest.model_fields)
    texts = {name: parse_text(body[name], name) for name in ("custom_title", "size") if body.get(name) is not None}
    changed = await plane.workspaces.update_workspace(
        workspace_id,
        custom_title=texts.get("custom_title"),
        size=texts.get("size"),
        idle_stop_after_s=body.get("idle_stop_after_s", UNSET),
        caller=caller,
    )
    notice = f"the size {changed.size} takes effect at the next start" if changed.size_pending else None
    return {"error": False, "data": {"workspace": render_workspace(changed), "notice": notice}}


@router.delete("/workspace/{raw_id}", **answers(WorkspaceAnswer, 403, 404, path=[_ID], query=[_CONFIRM]))
async def delete_workspace(raw_id: str, request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Destroy it with all its files; the owner only, who repeats its title. Idempotent until it is gone."""
    confirm = find_query(request, "confirm") or ""
    found = await plane.workspaces.delete_workspace(parse_id(raw_id), confirm=confirm, caller=caller)
    return {"error": False, "data": {"workspace": render_workspace(found), "notice": None}}


@router.get("/workspace/{raw_id}/sessions", **answers(SessionList, 403, 404, path=[_ID]))
async def list_workspace_sessions(raw_id: str, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Who may connect to it now: all of them for its owner and whoever manages it, else the caller's own."""
    found = await plane.live_sessions.list_of_workspace(parse_id(raw_id), caller)
    return {"error": False, "data": {"sessions": [render_session(session) for session in found]}}


@router.get("/sessions", **answers(SessionList, 403))
async def list_own_sessions(plane: Plane, caller: Authenticated) -> dict[str, object]:
    """The caller's own sessions that may connect now."""
    found = await plane.live_sessions.list_own(caller)
    return {"error": False, "data": {"sessions": [render_session(session) for session in found]}}


@router.delete("/session/{raw_id}", **answers(Done, 403, 404, path=[_ID]))
async def revoke_session(raw_id: str, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """End a session of one's own, at one's own workspace, or (as an admin) any; live connections are cut."""
    await plane.live_sessions.revoke(parse_id(raw_id), caller)
    return {"error": False}
