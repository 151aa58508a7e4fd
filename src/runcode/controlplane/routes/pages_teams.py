"""Teams as pages. HTTP in and out only.

GET  /teams                 the caller's own, and a form for a new one
POST /teams
GET  /teams/ID              its people
POST /teams/ID/members      take somebody in, or change the role
POST /teams/ID/remove       remove somebody, or leave
POST /teams/ID/rename|delete
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller
from runcode.controlplane.routes.browser_io import SignedIn, find_field, read_page_form
from runcode.controlplane.routes.page_frame import TEAMS, PageRoute, back_to, show, status_of
from runcode.controlplane.routes.request_io import Plane, parse_id
from runcode.controlplane.states import TEAM_ADMIN, TEAM_MEMBER
from runcode.core.errors import RunCodeError

router = APIRouter(prefix=TEAMS, route_class=PageRoute, include_in_schema=False)


@router.get("")
async def show_teams(request: Request, plane: Plane, caller: SignedIn) -> Response:
    return await _teams_page(request, plane, caller)


@router.post("")
async def create(request: Request, plane: Plane, caller: SignedIn) -> Response:
    name = find_field(await read_page_form(request), "name")
    try:
        team = await plane.teams.create_team(name, caller=caller)
    except RunCodeError as error:
        if error.code not in ("bad_request", "conflict", "forbidden"):
            raise
        return await _teams_page(request, plane, caller, name=name, error=error)
    return back_to(f"{TEAMS}/{team.id}", "team-made")


@router.get("/{raw_id}")
async def show_team(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    team, members = await plane.teams.load_team(parse_id(raw_id), caller=caller)
    return show(request, "team.html", here=TEAMS, team=team, members=members, manages=team.role == TEAM_ADMIN)


@router.post("/{raw_id}/members")
async def set_member(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    form = await read_page_form(request)
    role = find_field(form, "role") or TEAM_MEMBER
    await plane.teams.set_member(parse_id(raw_id), find_field(form, "email"), role, caller=caller)
    return back_to(f"{TEAMS}/{parse_id(raw_id)}", "saved")


@router.post("/{raw_id}/remove")
async def remove(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    email = find_field(await read_page_form(request), "email")
    await plane.teams.remove_member(parse_id(raw_id), email, caller=caller)
    if email.strip().lower() == caller.email:
        return back_to(TEAMS, "left")
    return back_to(f"{TEAMS}/{parse_id(raw_id)}", "unshared")


@router.post("/{raw_id}/rename")
async def rename(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    form = await read_page_form(request)
    await plane.teams.rename_team(parse_id(raw_id), find_field(form, "name"), caller=caller)
    return back_to(f"{TEAMS}/{parse_id(raw_id)}", "saved")


@router.post("/{raw_id}/delete")
async def delete(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    form = await read_page_form(request)
    await plane.teams.delete_team(parse_id(raw_id), confirm=find_field(form, "confirm").strip(), caller=caller)
    return back_to(TEAMS, "team-gone")


async def _teams_page(
    request: Request, plane: ControlPlane, caller: Caller, *, name: str = "", error: RunCodeError | None = None
) -> Response:
    teams = await plane.teams.list_teams(caller)
    status = 200 if error is None else status_of(error)
    return show(request, "teams.html", here=TEAMS, status=status, teams=teams, name=name, error=error)
