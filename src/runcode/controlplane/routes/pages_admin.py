"""What an admin of this server sees and does, as pages. HTTP in and out only.

    GET  /admin                     people, with their limits
    POST /admin/people              a new one, with a password that is shown this once
    POST /admin/people/ID/limits|disable|enable
    GET  /admin/sessions            who may connect now; POST /admin/sessions/ID/revoke
    GET  /admin/workspaces          everybody's
    GET  /admin/health              is the server ready, and the audit trail

To anybody else there is nothing here.
"""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from runcode.controlplane.console import wording
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller, UserRecord
from runcode.controlplane.routes.browser_io import SignedInAdmin, find_field, read_page_form
from runcode.controlplane.routes.page_frame import ADMIN, PageRoute, back_to, show, status_of
from runcode.controlplane.routes.request_io import Plane, parse_id
from runcode.core.errors import RunCodeError

router = APIRouter(prefix=ADMIN, route_class=PageRoute, include_in_schema=False)

_SHOWN_AT_FORM: Final = ("bad_request", "conflict")


@router.get("")
async def show_people(request: Request, plane: Plane, caller: SignedInAdmin) -> Response:
    return await _people_page(request, plane, caller)


@router.post("/people")
async def create_person(request: Request, plane: Plane, caller: SignedInAdmin) -> Response:
    form = await read_page_form(request)
    email, admin = find_field(form, "email"), find_field(form, "admin") == "yes"
    try:
        made = await plane.people.create_person(email, admin=admin, caller=caller)
    except RunCodeError as error:
        if error.code not in _SHOWN_AT_FORM:
            raise
        return await _people_page(request, plane, caller, email=email, error=error)
    return await _people_page(request, plane, caller, made=made)


@router.post("/people/{raw_id}/limits")
async def set_limits(raw_id: str, request: Request, plane: Plane, caller: SignedInAdmin) -> Response:
    form = await read_page_form(request)
    limits = {name: _parse_limit(find_field(form, name)) for name in ("workspaces_max", "running_max")}
    await plane.people.change_person(parse_id(raw_id), disabled=None, limits=limits, caller=caller)
    return back_to(ADMIN, "saved")


@router.post("/people/{raw_id}/disable")
async def disable(raw_id: str, request: Request, plane: Plane, caller: SignedInAdmin) -> Response:
    await read_page_form(request)
    await plane.people.change_person(parse_id(raw_id), disabled=True, limits={}, caller=caller)
    return back_to(ADMIN, "disabled")


@router.post("/people/{raw_id}/enable")
async def enable(raw_id: str, request: Request, plane: Plane, caller: SignedInAdmin) -> Response:
    await read_page_form(request)
    await plane.people.change_person(parse_id(raw_id), disabled=False, limits={}, caller=caller)
    return back_to(ADMIN, "enabled")


@router.get("/sessions")
async def show_sessions(request: Request, plane: Plane, caller: SignedInAdmin) -> Response:
    sessions = await plane.live_sessions.list_all(caller)
    return show(
        request,
        "admin_sessions.html",
        here=ADMIN,
        tab=f"{ADMIN}/sessions",
        sessions=sessions,
        connected=await plane.events.find_connected_sessions([record.id for record in sessions]),
    )


@router.post("/sessions/{raw_session}/revoke")
async def revoke_session(raw_session: str, request: Request, plane: Plane, caller: SignedInAdmin) -> Response:
    await read_page_form(request)
    await plane.live_sessions.revoke(parse_id(raw_session), caller)
    return back_to(f"{ADMIN}/sessions", "revoked")


@router.get("/workspaces")
async def show_workspaces(request: Request, plane: Plane, caller: SignedInAdmin) -> Response:
    workspaces = await plane.workspaces.list_all(caller=caller)
    tab = f"{ADMIN}/workspaces"
    return show(request, "admin_workspaces.html", here=ADMIN, tab=tab, workspaces=workspaces)


@router.get("/health")
async def show_health(request: Request, plane: Plane, caller: SignedInAdmin) -> Response:
    reasons = await plane.readiness.find_reasons()
    return show(
        request,
        "admin_health.html",
        here=ADMIN,
        tab=f"{ADMIN}/health",
        reasons=[(name, wording.describe_reason(name)) for name in reasons],
        endpoint=plane.ssh_endpoint.find(),
        offers=plane.offers.list_offers(),
        audit=await plane.checkpoints.load_standing(),
    )


async def _people_page(
    request: Request,
    plane: ControlPlane,
    caller: Caller,
    *,
    email: str = "",
    made: tuple[UserRecord, str] | None = None,
    error: RunCodeError | None = None,
) -> Response:
    return show(
        request,
        "admin_users.html",
        here=ADMIN,
        tab=ADMIN,
        status=200 if error is None else status_of(error),
        users=await plane.people.list_people(caller),
        email=email,
        made=made,
        error=error,
    )


def _parse_limit(raw_limit: str) -> object:
    """A number as the services take it; "" is "as the server says", and what is no number is refused there."""
    text = raw_limit.strip()
    if text == "":
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else text
