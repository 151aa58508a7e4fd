"""Shares and teams over HTTP. HTTP in and out only; the rules are the services'."""

from __future__ import annotations

from fastapi import APIRouter, Request

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller
from runcode.controlplane.routes.rendering import render_member, render_share, render_team
from runcode.controlplane.routes.request_io import (
    Authenticated,
    Plane,
    find_query,
    parse_id,
    parse_text,
    read_known_keys,
)
from runcode.controlplane.routes.shapes import WORKSPACE_ID, Done, answers, path_id, query_parameter
from runcode.controlplane.routes.workspace_shapes import (
    MemberRequest,
    ShareAnswer,
    ShareList,
    ShareRequest,
    TeamAnswer,
    TeamList,
    TeamRequest,
)
from runcode.controlplane.states import ROLE_USE, TEAM_MEMBER
from runcode.core import wire
from runcode.core.errors import RunCodeError

router = APIRouter(prefix=wire.API_PREFIX)

_ID = path_id("raw_id")
_EMAIL = query_parameter("email", {"type": "string"}, "Whose; or `team_id`.")
_MEMBER = query_parameter("email", {"type": "string"}, "Whose.", required=True)
_TEAM = query_parameter("team_id", WORKSPACE_ID, "Which team's; or `email`.")
_CONFIRM = query_parameter("confirm", {"type": "string"}, "The team's name, once more.", required=True)


@router.get("/workspace/{raw_id}/shares", **answers(ShareList, 403, 404, path=[_ID]))
async def list_shares(raw_id: str, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """With whom it is shared. Others than its owner see only what lets themselves in."""
    found = await plane.shares.list_shares(parse_id(raw_id), caller=caller)
    return {"error": False, "data": {"shares": [render_share(share) for share in found]}}


@router.put("/workspace/{raw_id}/shares", **answers(ShareAnswer, 403, 404, takes=ShareRequest, path=[_ID]))
async def share(raw_id: str, request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Let a person or a team in, or change their role; the owner only. Idempotent."""
    workspace_id = parse_id(raw_id)
    body = await read_known_keys(request, ShareRequest.model_fields)
    role = parse_text(body.get("role") or ROLE_USE, "role")
    email, team_id = body.get("email"), body.get("team_id")
    if (email is None) == (team_id is None):
        raise _with_whom()
    if email is not None:
        made = await plane.shares.share(workspace_id, parse_text(email, "email"), role, caller=caller)
    else:
        made = await plane.shares.share_with_team(workspace_id, parse_id(team_id), role, caller=caller)
    return {"error": False, "data": {"share": render_share(made)}}


@router.delete("/workspace/{raw_id}/shares", **answers(Done, 403, 404, path=[_ID], query=[_EMAIL, _TEAM]))
async def unshare(raw_id: str, request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Shut a person or a team out again, at once; the owner only. Idempotent."""
    workspace_id = parse_id(raw_id)
    email, team_id = find_query(request, "email"), find_query(request, "team_id")
    if (email is None) == (team_id is None):
        raise _with_whom()
    if email is not None:
        await plane.shares.unshare(workspace_id, email, caller=caller)
    else:
        await plane.shares.unshare_with_team(workspace_id, parse_id(team_id), caller=caller)
    return {"error": False}


@router.get("/teams", **answers(TeamList, 403))
async def list_teams(plane: Plane, caller: Authenticated) -> dict[str, object]:
    """The teams that the caller is in."""
    found = await plane.teams.list_teams(caller)
    return {"error": False, "data": {"teams": [render_team(team) for team in found]}}


@router.post("/teams", **answers(TeamAnswer, 403, 409, takes=TeamRequest))
async def create_team(request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Make a team, with the caller as its admin."""
    body = await read_known_keys(request, TeamRequest.model_fields, required=("name",))
    made = await plane.teams.create_team(parse_text(body["name"], "name"), caller=caller)
    return await _tell_team(plane, made.id, caller)


@router.get("/team/{raw_id}", **answers(TeamAnswer, 403, 404, path=[_ID]))
async def show_team(raw_id: str, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """A team that the caller is in, with its members."""
    return await _tell_team(plane, parse_id(raw_id), caller)


@router.patch("/team/{raw_id}", **answers(TeamAnswer, 403, 404, 409, takes=TeamRequest, path=[_ID]))
async def rename_team(raw_id: str, request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Give it another name; its admins only."""
    team_id = parse_id(raw_id)
    body = await read_known_keys(request, TeamRequest.model_fields, required=("name",))
    await plane.teams.rename_team(team_id, parse_text(body["name"], "name"), caller=caller)
    return await _tell_team(plane, team_id, caller)


@router.delete("/team/{raw_id}", **answers(Done, 403, 404, path=[_ID], query=[_CONFIRM]))
async def delete_team(raw_id: str, request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Delete it with all its shares; its admins only, who repeat its name. Whoever came in by it is cut."""
    confirm = find_query(request, "confirm") or ""
    await plane.teams.delete_team(parse_id(raw_id), confirm=confirm, caller=caller)
    return {"error": False}


@router.put("/team/{raw_id}/members", **answers(TeamAnswer, 403, 404, 409, takes=MemberRequest, path=[_ID]))
async def set_member(raw_id: str, request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Take somebody in, or change their role; its admins only. Answers alike for an address without an account."""
    team_id = parse_id(raw_id)
    body = await read_known_keys(request, MemberRequest.model_fields, required=("email",))
    role = parse_text(body.get("role") or TEAM_MEMBER, "role")
    await plane.teams.set_member(team_id, parse_text(body["email"], "email"), role, caller=caller)
    return await _tell_team(plane, team_id, caller)


@router.delete("/team/{raw_id}/members", **answers(Done, 403, 404, 409, path=[_ID], query=[_MEMBER]))
async def remove_member(raw_id: str, request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Take somebody out (its admins), or leave. Idempotent; whoever came in by it alone is cut. Not the last admin."""
    await plane.teams.remove_member(parse_id(raw_id), find_query(request, "email") or "", caller=caller)
    return {"error": False}


async def _tell_team(plane: ControlPlane, team_id: int, caller: Caller) -> dict[str, object]:
    team, members = await plane.teams.load_team(team_id, caller=caller)
    return {
        "error": False,
        "data": {"team": render_team(team), "members": [render_member(member) for member in members]},
    }


def _with_whom() -> RunCodeError:
    return RunCodeError("bad_request", "with whom is not said", resolution="name one of `email` and `team_id`")
