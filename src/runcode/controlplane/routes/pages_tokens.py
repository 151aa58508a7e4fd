"""API tokens as pages. HTTP in and out only.

GET  /auth/cli-tokens              the caller's own, and a form for a new one
POST /auth/cli-tokens              the new token, shown on this one answer and never again; a reload makes no other
POST /auth/cli-tokens/ID/revoke
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller, NewToken
from runcode.controlplane.routes.browser_io import SignedIn, find_field, find_fields, read_page_form
from runcode.controlplane.routes.page_frame import TOKENS, PageRoute, back_to, show, status_of
from runcode.controlplane.routes.policy_forms import read_policy
from runcode.controlplane.routes.request_io import Plane, parse_id
from runcode.controlplane.services.tokens import TokenBounds, draw_form_number, parse_expiry_days, parse_scopes
from runcode.controlplane.states import SCOPE_CONNECT, SCOPE_READ, SCOPES
from runcode.core.channel_policy import EVERYTHING
from runcode.core.errors import RunCodeError

router = APIRouter(prefix=TOKENS, route_class=PageRoute, include_in_schema=False)

_EXPIRIES: Final = (
    ("7", "in 7 days"),
    ("30", "in 30 days"),
    ("90", "in 90 days"),
    ("365", "in a year"),
    ("", "when it is revoked"),
)
_SHOWN_AT_FORM: Final = ("bad_request", "not_found", "conflict")


@router.get("")
async def show_tokens(request: Request, plane: Plane, caller: SignedIn) -> Response:
    return await _tokens_page(request, plane, caller)


@router.post("")
async def create(request: Request, plane: Plane, caller: SignedIn) -> Response:
    form = await read_page_form(request)
    name, days = find_field(form, "name"), find_field(form, "expires")
    scopes, workspaces = find_fields(form, "scope"), find_fields(form, "workspace")
    policy = EVERYTHING
    try:
        policy = read_policy(form)
        bounds = TokenBounds(
            scopes=parse_scopes(scopes),
            workspace_ids=tuple(parse_id(raw_id) for raw_id in workspaces) or None,
            expires_at=parse_expiry_days(days, plane.clock.now()),
            policy=policy,
        )
        made = await plane.tokens.create_own(caller, name, bounds, form_number=find_field(form, "number"))
    except RunCodeError as error:
        if error.code not in _SHOWN_AT_FORM:
            raise
        given = {"name": name, "expires": days, "scopes": scopes, "workspaces": workspaces, "policy": policy}
        return await _tokens_page(request, plane, caller, given=given, error=error)
    # Not a redirect: what stands here this once must be kept nowhere in between.
    return await _tokens_page(request, plane, caller, made=made)


@router.post("/{raw_id}/revoke")
async def revoke(raw_id: str, request: Request, plane: Plane, caller: SignedIn) -> Response:
    await read_page_form(request)
    await plane.tokens.revoke_token(parse_id(raw_id), caller=caller)
    return back_to(TOKENS, "revoked")


async def _tokens_page(
    request: Request,
    plane: ControlPlane,
    caller: Caller,
    *,
    made: NewToken | None = None,
    given: dict[str, Any] | None = None,
    error: RunCodeError | None = None,
) -> Response:
    workspaces = [*await plane.workspaces.list_owned(caller), *await plane.workspaces.list_shared(caller)]
    titles = {workspace.id: workspace.title for workspace in workspaces}
    blank = {"name": "", "expires": "30", "scopes": [SCOPE_READ, SCOPE_CONNECT], "workspaces": [], "policy": EVERYTHING}
    return show(
        request,
        "tokens.html",
        here=TOKENS,
        status=200 if error is None else status_of(error),
        tokens=await plane.tokens.list_own(caller),
        made=made,
        titles=titles,
        workspaces=workspaces,
        scopes=SCOPES,
        expiries=_EXPIRIES,
        number=draw_form_number(),
        form=SimpleNamespace(**(given or blank)),
        error=error,
    )
