"""Workspaces as pages: the list, one workspace, and what can be done with it. HTTP in and out only.

    GET  /workspaces                      own and shared ones; `part=list` for htmx
    POST /workspaces                      a new one
    GET  /workspaces/ID                   one; `part=head|sessions|activity`; `session` and `before` for activity
    POST /workspaces/ID/start|stop|settings|share|unshare|delete
    POST /workspaces/ID/sessions/SID/revoke

Each form answers 303 to the page that shows what it did.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from runcode.controlplane.console import activity_words, wording
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller, WorkspaceRecord
from runcode.controlplane.routes.browser_io import SignedIn, find_field, read_page_form, require_own_origin
from runcode.controlplane.routes.page_frame import (
    WORKSPACES,
    PageRoute,
    back_to,
    render_part,
    show,
    show_part,
    status_of,
)
from runcode.controlplane.routes.policy_forms import read_policy
from runcode.controlplane.routes.request_io import Plane, parse_id
from runcode.controlplane.services.timeline import TimelineFilter
from runcode.controlplane.states import ROLE_OWNER, ROLE_USE
from runcode.core.channel_policy import render_policy
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import STANDARD_SIZE

router = APIRouter(prefix=WORKSPACES, route_class=PageRoute, include_in_schema=False)

_PAGE: Final = 25
# What a person may choose; "" is the server's own time, 0 is never.
_IDLE_CHOICES_S: Final = (0, 900, 1800, 3600, 4 * 3600, 24 * 3600)
_SHOWN_AT_FORM: Final = ("bad_request", "conflict", "quota_exceeded")


# ---------------------------------------------------------------- the list


@router.get("")
async def show_list(request: Request, plane: Plane, caller: SignedIn) -> Response:
    if request.query_params.get("part") == "list":
        return show_part(request, "workspace_list.html", await _load_list(plane, caller))
    return await _list_page(request, plane, caller)


@router.post("")
async def create(request: Request, plane: Plane, caller: SignedIn) -> Response:
    form = await read_page_form(request)
    given = {
        name: find_field(form, name) or default
        for name, default in (
            ("title", ""),
            ("custom_title", ""),
            ("runtime", ""),
            ("size", STANDARD_SIZE),
            ("idle", ""),
        )
    }
    try:
        made = await plane.workspaces.create_workspace(
            given["title"].strip() or None,
            runtime=given["runtime"] or None,
            custom_title=given["custom_title"],
            size=given["size"],
            idle_stop_after_s=_parse_idle(given["idle"]),
            caller=caller,
        )
    except RunCodeError as error:
        if error.code not in _SHOWN_AT_FORM:
            raise
        return await _list_page(request, plane, caller, given=given, error=error)
    return back_to(f"{WORKSPACES}/{made.id}", "created")


async def _list_page(
    request: Request,
    plane: ControlPlane,
    caller: Caller,
    *,
    given: dict[str, str] | None = None,
    error: RunCodeError | None = None,
) -> Response:
    loaded = await _load_list(plane, caller)
    part, _ = render_part(request, "workspace_list.html", loaded)
    quota = await plane.quotas.load_quota(caller.email, caller=caller)
    offers = plane.offers.list_offers()
    blank = {"title": "", "custom_title": "", "runtime": "", "size": STANDARD_SIZE, "idle": ""}
    return show(
        request,
        "workspaces.html",
        here=WORKSPACES,
        status=200 if error is None else status_of(error),
        list_part=part,
        opened=error is not None or not (loaded["own"] or loaded["shared"]),
        quota=wording.describe_quota(quota),
        runtimes=[(offer.name, offer.obstacle) for offer in offers] or [("local", None)],
        sizes=_list_sizes(plane),
        idle_choices=_list_idle_choices(plane, None),
        form=SimpleNamespace(**(given or blank)),
        error=error,
    )


async def _load_list(plane: ControlPlane, caller: Caller) -> dict[str, Any]:
    return {
        "own": await plane.workspaces.list_owned(caller),
        "shared": await plane.workspaces.list_shared(caller),
    }


# ---------------------------------------------------------------- one workspace


@router.get("/{raw_id}")
async def show_one(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    workspace = await plane.workspaces.load_workspace(parse_id(raw_id), caller=caller)
    part = request.query_params.get("part")
    if part == "head":
        return show_part(request, "workspace_head.html", {"workspace": workspace})
    if part == "sessions":
        return show_part(request, "workspace_sessions.html", await _load_sessions(plane, workspace, caller))
    if part == "activity":
        return show_part(request, "workspace_activity.html", await _load_activity(request, plane, workspace, caller))
    owns = workspace.role == ROLE_OWNER
    return show(
        request,
        "workspace.html",
        here=WORKSPACES,
        workspace=workspace,
        head=render_part(request, "workspace_head.html", {"workspace": workspace})[0],
        sessions=render_part(request, "workspace_sessions.html", await _load_sessions(plane, workspace, caller))[0],
        activity=render_part(
            request, "workspace_activity.html", await _load_activity(request, plane, workspace, caller)
        )[0],
        owns=owns,
        shares=await plane.shares.list_shares(workspace.id, caller=caller) if owns else [],
        teams=await plane.teams.list_teams(caller) if owns else [],
        commands=wording.render_commands(workspace.title, require_own_origin(request, plane)),
        sizes=_list_sizes(plane),
        idle_choices=_list_idle_choices(plane, workspace.idle_stop_after_s),
        idle_value="" if workspace.idle_stop_after_s is None else str(workspace.idle_stop_after_s),
        idle_text=wording.describe_idle(workspace.idle_stop_after_s, plane.workspaces.policy.idle_stop_after_s),
    )


@router.post("/{raw_id}/start")
async def start(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    await read_page_form(request)
    workspace = await plane.workspaces.request_start(parse_id(raw_id), caller=caller)
    return _back_to_sender(request, workspace.id)


@router.post("/{raw_id}/stop")
async def stop(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    await read_page_form(request)
    workspace = await plane.workspaces.request_stop(parse_id(raw_id), caller=caller)
    return _back_to_sender(request, workspace.id)


@router.post("/{raw_id}/settings")
async def change(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    form = await read_page_form(request)
    workspace = await plane.workspaces.update_workspace(
        parse_id(raw_id),
        custom_title=find_field(form, "custom_title"),
        size=find_field(form, "size"),
        idle_stop_after_s=_parse_idle(find_field(form, "idle")),
        caller=caller,
    )
    return back_to(f"{WORKSPACES}/{workspace.id}", "saved")


@router.post("/{raw_id}/connections")
async def change_policy(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    """What connections to it may do; those that were opened under a wider policy are cut."""
    form = await read_page_form(request)
    policy = render_policy(read_policy(form))
    workspace = await plane.workspaces.update_workspace(parse_id(raw_id), policy=policy, caller=caller)
    return back_to(f"{WORKSPACES}/{workspace.id}", "saved")


@router.post("/{raw_id}/share")
async def share(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    form = await read_page_form(request)
    workspace_id, role, team = parse_id(raw_id), find_field(form, "role") or ROLE_USE, find_field(form, "team")
    if team:
        await plane.shares.share_with_team(workspace_id, parse_id(team), role, caller=caller)
    else:
        await plane.shares.share(workspace_id, find_field(form, "email"), role, caller=caller)
    return back_to(f"{WORKSPACES}/{workspace_id}", "shared")


@router.post("/{raw_id}/unshare")
async def unshare(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    form = await read_page_form(request)
    workspace_id, team = parse_id(raw_id), find_field(form, "team")
    if team:
        await plane.shares.unshare_with_team(workspace_id, parse_id(team), caller=caller)
    else:
        await plane.shares.unshare(workspace_id, find_field(form, "email"), caller=caller)
    return back_to(f"{WORKSPACES}/{workspace_id}", "unshared")


@router.post("/{raw_id}/delete")
async def delete(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    form = await read_page_form(request)
    confirm = find_field(form, "confirm").strip()
    await plane.workspaces.delete_workspace(parse_id(raw_id), confirm=confirm, caller=caller)
    return back_to(WORKSPACES, "deleting")


@router.post("/{raw_id}/sessions/{raw_session}/revoke")
async def revoke(raw_id: str, raw_session: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    await read_page_form(request)
    await plane.live_sessions.revoke(parse_id(raw_session), caller)
    return back_to(f"{WORKSPACES}/{parse_id(raw_id)}", "revoked")


# ---------------------------------------------------------------- parts


async def _load_sessions(plane: ControlPlane, workspace: WorkspaceRecord, caller: Caller) -> dict[str, Any]:
    sessions = await plane.live_sessions.list_of_workspace(workspace.id, caller)
    return {
        "workspace": workspace,
        "sessions": sessions,
        "connected": await plane.events.find_connected_sessions([record.id for record in sessions]),
        "ends_all": workspace.role == ROLE_OWNER or caller.is_admin,
    }


async def _load_activity(
    request: Request, plane: ControlPlane, workspace: WorkspaceRecord, caller: Caller
) -> dict[str, Any]:
    raw_session, raw_before = (request.query_params.get(name) for name in ("session", "before"))
    only_session = None if raw_session is None else parse_id(raw_session)
    before = None if raw_before is None else parse_id(raw_before)
    page = await plane.timeline.list_workspace(
        caller, workspace.id, TimelineFilter(before=before, limit=_PAGE, session_id=only_session)
    )
    here = f"{WORKSPACES}/{workspace.id}?" + (f"session={only_session}&" if only_session else "")
    return {
        "workspace": workspace,
        "timeline": [activity_words.describe(record) for record in page.records],
        "only_session": only_session,
        "address": here,
        "follows": before is None,
        "newer": here if before is not None else "",
        "older": f"{here}before={page.older}" if page.older is not None else "",
    }


def _back_to_sender(request: Request, workspace_id: int) -> Response:
    """Start and stop stand on both pages: the browser says from which it came."""
    from_list = request.headers.get("referer", "").partition("?")[0].endswith(WORKSPACES)
    return back_to(WORKSPACES if from_list else f"{WORKSPACES}/{workspace_id}")


def _list_sizes(plane: ControlPlane) -> list[tuple[str, str]]:
    return [(name, wording.describe_size(name, limits)) for name, limits in plane.workspaces.policy.sizes.items()]


def _list_idle_choices(plane: ControlPlane, current_s: int | None) -> list[tuple[str, str]]:
    default = plane.workspaces.policy.idle_stop_after_s
    offered = sorted({*_IDLE_CHOICES_S, *([current_s] if current_s is not None else [])})
    own = [(str(seconds), wording.describe_idle(seconds, default)) for seconds in offered]
    return [("", wording.describe_idle(None, default)), *own]


def _parse_idle(raw_idle: str) -> int | None:
    """Seconds; "" is the server's own time. What is no number is refused where numbers are."""
    if raw_idle == "":
        return None
    if raw_idle.isascii() and raw_idle.isdigit() and len(raw_idle) <= 9:
        return int(raw_idle)
    raise RunCodeError("bad_request", "that is not a time after which to stop")
