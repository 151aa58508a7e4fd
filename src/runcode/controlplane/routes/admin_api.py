"""What admins of this server see and do over HTTP. HTTP in and out only; the rules are the services'."""

from __future__ import annotations

from fastapi import APIRouter, Request

from runcode.controlplane.routes.rendering import render_session, render_user, render_workspace
from runcode.controlplane.routes.request_io import (
    Authenticated,
    Plane,
    parse_flag,
    parse_id,
    parse_text,
    read_known_keys,
)
from runcode.controlplane.routes.shapes import WorkspaceList, answers, path_id
from runcode.controlplane.routes.workspace_shapes import (
    ChangePersonRequest,
    CreatePersonRequest,
    PersonAnswer,
    PersonList,
    SessionList,
)
from runcode.core import wire

router = APIRouter(prefix=f"{wire.API_PREFIX}/admin")


@router.get("/users", **answers(PersonList, 403))
async def list_users(plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Everybody who has an account."""
    found = await plane.people.list_people(caller)
    return {"error": False, "data": {"users": [render_user(user) for user in found]}}


@router.post("/users", **answers(PersonAnswer, 403, 409, takes=CreatePersonRequest))
async def create_user(request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Make an account; its password is in the answer, and never again anywhere."""
    body = await read_known_keys(request, CreatePersonRequest.model_fields, required=("email",))
    admin = body.get("is_admin") is not None and parse_flag(body["is_admin"], "is_admin")
    user, password = await plane.people.create_person(parse_text(body["email"], "email"), admin=admin, caller=caller)
    return {"error": False, "data": {"user": render_user(user), "password": password}}


@router.patch("/user/{raw_id}", **answers(PersonAnswer, 403, 404, takes=ChangePersonRequest, path=[path_id("raw_id")]))
async def change_user(raw_id: str, request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Shut somebody out at once, let them in again, or set their limits."""
    user_id = parse_id(raw_id)
    body = await read_known_keys(request, ChangePersonRequest.model_fields)
    disabled = None if body.get("disabled") is None else parse_flag(body["disabled"], "disabled")
    limits: dict[str, object] = {name: body[name] for name in ("workspaces_max", "running_max") if name in body}
    user = await plane.people.change_person(user_id, disabled=disabled, limits=limits, caller=caller)
    return {"error": False, "data": {"user": render_user(user), "password": None}}


@router.get("/workspaces", **answers(WorkspaceList, 403))
async def list_all_workspaces(plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Everybody's workspaces. Seeing one here gives no right to use it."""
    found = await plane.workspaces.list_all(caller=caller)
    return {"error": False, "data": {"workspaces": [render_workspace(workspace) for workspace in found]}}


@router.get("/sessions", **answers(SessionList, 403))
async def list_all_sessions(plane: Plane, caller: Authenticated) -> dict[str, object]:
    """Everybody's sessions that may connect now. Any may be ended: DELETE /session/ID."""
    found = await plane.live_sessions.list_all(caller)
    return {"error": False, "data": {"sessions": [render_session(session) for session in found]}}
