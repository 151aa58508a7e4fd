"""Browser login over HTTP: the sign-in form, the consent page, and the code's exchange (WIRE.md).

    GET  /auth/cli-login/?port&state…   the password, or the question, for one request
    POST /auth/cli-login/sign-in        the password → the same page again, signed in
    POST /auth/cli-login/answer         Authorize or Deny → the client's listener on 127.0.0.1
    POST /api/rc/auth/cli-token         code + verifier → token

HTTP in and out only; the rules are `BrowserLogins`'. A failure is a page here, not
JSON, and never a redirect.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Final
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.routes import login_pages
from runcode.controlplane.routes.browser_io import (
    find_field,
    html_response,
    read_form,
    require_own_origin,
    require_same_origin,
    source_of,
)
from runcode.controlplane.routes.request_io import Plane, plane_of, read_json_object
from runcode.controlplane.routes.shapes import CodeRequest, TokenAnswer, answers
from runcode.controlplane.services.browser_logins import SIGNED_IN_S
from runcode.controlplane.services.login_requests import LoginRequest, parse_login_request
from runcode.core import wire
from runcode.core.errors import RunCodeError

router = APIRouter()

_VISIT: Final = "runcode_visit"
_DEVICE: Final = "runcode_device"
_COOKIE_MAX: Final = 128
_DEVICE_KEPT_S: Final = 90 * 24 * 3600
_Route = Callable[[Request], Awaitable[Response]]


def _page(route: _Route) -> _Route:
    """Its failures as a page; those that are ours to hide go on to the edge."""

    @wraps(route)
    async def answer(request: Request) -> Response:
        try:
            return await route(request)
        except RunCodeError as error:
            status = error.kind.http_status
            if error.code == "busy":
                error, status = RunCodeError("busy", "the server is busy", resolution="try again in a moment"), 503
            elif status >= 500:
                raise
            return html_response(login_pages.render_problem(error.message, error.resolution), status=status)

    return answer


@router.get(login_pages.LOGIN_PATH)
@_page
async def show(request: Request) -> Response:
    plane = plane_of(request)
    require_own_origin(request, plane)
    asked = parse_login_request(request.query_params.multi_items())
    cookies = _Cookies(request, plane)
    email = await plane.browser_logins.find_email(cookies.visit, asked)
    if email is not None:
        proof = plane.browser_logins.prove_form(cookies.visit, login_pages.ANSWER, asked)
        page = login_pages.render_consent(asked, proof, email=email, source=source_of(request))
        # Browsers hold the policy also against where a form's answer redirects to.
        return html_response(page, form_action=f"'self' {asked.origin}")
    cookies.visit = cookies.visit or secrets.token_urlsafe(32)
    return cookies.keep(_sign_in(plane, asked, cookies.visit))


@router.post(login_pages.SIGN_IN_PATH)
@_page
async def sign_in(request: Request) -> Response:
    plane = plane_of(request)
    require_same_origin(request, require_own_origin(request, plane))
    form = await read_form(request)
    asked, cookies = parse_login_request(form), _Cookies(request, plane)
    plane.browser_logins.require_form(cookies.visit, login_pages.SIGN_IN, asked, find_field(form, "proof"))
    email = find_field(form, "email")
    try:
        found = await plane.browser_logins.sign_in(
            asked,
            email=email,
            password=find_field(form, "password"),
            source=source_of(request),
            device=cookies.device,
        )
    except RunCodeError as error:
        if error.code not in ("unauthorized", "rate_limited"):
            raise
        problem = f"{error.message}: {error.resolution}"
        return _sign_in(plane, asked, cookies.visit, email=email[:254], problem=problem, status=error.kind.http_status)
    # A new value: one that somebody planted before the password was given must not be signed in by it.
    cookies.visit, cookies.device = found.visit, found.device
    response = RedirectResponse(f"{login_pages.LOGIN_PATH}?{urlencode(asked.pairs)}", 303)
    return cookies.keep(response)


@router.post(login_pages.ANSWER_PATH)
@_page
async def answer(request: Request) -> Response:
    plane = plane_of(request)
    require_same_origin(request, require_own_origin(request, plane))
    form = await read_form(request)
    asked, cookies = parse_login_request(form), _Cookies(request, plane)
    logins = plane.browser_logins
    logins.require_form(cookies.visit, login_pages.ANSWER, asked, find_field(form, "proof"))
    given = find_field(form, "answer")
    if given == "authorize":
        url = await logins.authorize(cookies.visit, asked)
    elif given == "deny":
        logins.end_visit(cookies.visit, asked)
        url = asked.answer_url([("error", "access_denied")])
    else:
        raise RunCodeError("bad_request", "that is not a form of this page")
    cookies.visit = ""
    return cookies.keep(RedirectResponse(url, 303))


@router.post(f"{wire.API_PREFIX}/auth/cli-token", **answers(TokenAnswer, 403, takes=CodeRequest, public=True))
async def redeem(request: Request, plane: Plane) -> dict[str, object]:
    """A browser login's one-time code, with its verifier → a token."""
    body = await read_json_object(request)
    made = await plane.browser_logins.redeem(body.get("code"), body.get("code_verifier"))
    return {"error": False, "token": made.plaintext, "email": made.record.user_email}


# ---------------------------------------------------------------- parts


def _sign_in(
    plane: ControlPlane, asked: LoginRequest, visit: str, *, email: str = "", problem: str = "", status: int = 200
) -> Response:
    proof = plane.browser_logins.prove_form(visit, login_pages.SIGN_IN, asked)
    page = login_pages.render_sign_in(asked, proof, email=email, problem=problem)
    return html_response(page, status=status, form_action="'self'")


class _Cookies:
    """The two cookies of this page: HttpOnly, for this host and site only, and Secure where the server is."""

    def __init__(self, request: Request, plane: ControlPlane) -> None:
        self._secure = (plane.settings.public_url or "").startswith("https://")
        # `__Host-`: browsers then refuse one that another name of the same domain has set.
        self._prefix = "__Host-" if self._secure else ""
        self._path = "/" if self._secure else login_pages.LOGIN_PATH
        self._came = tuple(request.cookies.get(self._prefix + name, "")[:_COOKIE_MAX] for name in (_VISIT, _DEVICE))
        self.visit, self.device = self._came

    def keep(self, response: Response) -> Response:
        """Set what has changed; an emptied one is removed."""
        ages = (int(SIGNED_IN_S), _DEVICE_KEPT_S)
        for name, came, value, age_s in zip(
            (_VISIT, _DEVICE), self._came, (self.visit, self.device), ages, strict=True
        ):
            if value != came:
                response.set_cookie(
                    self._prefix + name,
                    value,
                    max_age=age_s if value else 0,
                    path=self._path,
                    secure=self._secure,
                    httponly=True,
                    samesite="strict",
                )
        return response
