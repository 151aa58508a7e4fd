"""Signing in through the operator's OpenID provider, over HTTP.

    GET /sign-in/oidc?next=PATH                  to the provider
    GET /sign-in/oidc/callback?code&state[&iss]  back from it

HTTP in and out only; the rules are `OidcSignIns`'. Without a provider both are not there.
"""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.routes import login_pages
from runcode.controlplane.routes.browser_io import (
    end_replaced,
    keep_cookie,
    keep_session,
    parse_next,
    read_cookie,
    require_own_origin,
    visitor_of,
)
from runcode.controlplane.routes.page_frame import PageRoute, show_problem
from runcode.controlplane.routes.request_io import Plane
from runcode.controlplane.services.oidc import ATTEMPT_S, OidcSignIns
from runcode.core.errors import RunCodeError

router = APIRouter(route_class=PageRoute)

_ATTEMPT_COOKIE: Final = "runcode_oidc"
_CALLBACK_PATH: Final = "/sign-in/oidc/callback"


@router.get(login_pages.OIDC_START_PATH)
async def start(request: Request, plane: Plane) -> Response:
    origin = require_own_origin(request, plane)
    next_path = parse_next(request.query_params.get("next", ""))
    begun = await _require_provider(plane).begin(origin + _CALLBACK_PATH, next_path)
    response = RedirectResponse(begun.url, 303)
    # Lax: the provider's answer comes by a link of another site.
    keep_cookie(request, response, _ATTEMPT_COOKIE, begun.cookie, ATTEMPT_S, strict=False)
    return response


@router.get(_CALLBACK_PATH)
async def callback(request: Request, plane: Plane) -> Response:
    require_own_origin(request, plane)
    sign_ins = _require_provider(plane)
    try:
        with plane.metrics.sign_in("oidc"):
            finished = await sign_ins.finish(
                read_cookie(request, _ATTEMPT_COOKIE),
                code=_find_once(request, "code") or "",
                state=_find_once(request, "state") or "",
                raw_issuer=_find_once(request, "iss"),
                visitor=await visitor_of(request),
            )
    except RunCodeError as error:
        if error.code not in ("forbidden", "unavailable", "rate_limited"):
            raise
        refused = show_problem(request, error)
        # One attempt, one answer.
        keep_cookie(request, refused, _ATTEMPT_COOKIE, "", 0, strict=False)
        return refused
    await end_replaced(request)
    response = RedirectResponse(parse_next(finished.next_path), 303)
    keep_cookie(request, response, _ATTEMPT_COOKIE, "", 0, strict=False)
    return keep_session(request, response, finished.session.secret)


def _require_provider(plane: ControlPlane) -> OidcSignIns:
    if plane.oidc_sign_ins is None:
        raise RunCodeError(
            "not_found", "this server has no sign-in provider", resolution="sign in with a password or a link"
        )
    return plane.oidc_sign_ins


def _find_once(request: Request, name: str) -> str | None:
    """A parameter that stands once; twice is another reader's trick, and counts as none."""
    found = request.query_params.getlist(name)
    return found[0] if len(found) == 1 else None
