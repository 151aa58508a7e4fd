"""Signing a browser in and out, and a person's own account page.

    GET  /sign-in?next=PATH        the form; a browser that is signed in goes on
    POST /sign-in                  e-mail address and password
    GET  /sign-in/link?link=…      a button, so that whatever looks at links uses nothing up
    POST /sign-in/link             the one-time link itself
    POST /sign-out                 this browser, or all of the person's
    GET  /account                  signed-in browsers, and the password
    POST /account/password, /account/sessions/end

HTTP in and out only; the rules are `SignIns`', `SignInLinks`' and `WebSessions`'.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from runcode.controlplane.records import Caller
from runcode.controlplane.routes import login_pages
from runcode.controlplane.routes.browser_io import (
    DEVICE_COOKIE,
    SignedIn,
    begin_visit,
    end_replaced,
    find_field,
    find_signed_in,
    form_proof,
    html_response,
    keep_session,
    keep_visit,
    parse_next,
    read_cookie,
    read_page_form,
    require_own_origin,
    visitor_of,
)
from runcode.controlplane.routes.page_frame import ACCOUNT, PageRoute, back_to, show
from runcode.controlplane.routes.request_io import Plane, parse_id, plane_of
from runcode.controlplane.services.web_sessions import SignedInBrowser
from runcode.core.errors import RunCodeError

router = APIRouter(route_class=PageRoute)

# Shown beside the form again, which keeps what was typed.
_SHOWN_AT_FORM = ("unauthorized", "rate_limited", "bad_request")


@router.get(login_pages.SIGN_IN_PATH)
async def show_sign_in(request: Request) -> Response:
    signed_in = await find_signed_in(request)
    next_path = parse_next(request.query_params.get("next", ""))
    if signed_in is not None and not _must_prove_again(request, signed_in):
        return RedirectResponse(next_path, 303)
    return sign_in_page(request, next_path, email=signed_in.caller.email if signed_in is not None else "")


@router.post(login_pages.SIGN_IN_PATH)
async def sign_in(request: Request, plane: Plane) -> Response:
    await find_signed_in(request)
    form = await read_page_form(request, login_pages.SIGN_IN)
    next_path, email = parse_next(find_field(form, "next")), find_field(form, "email")
    try:
        with plane.metrics.sign_in("password"):
            done = await plane.sign_ins.sign_in(
                email,
                find_field(form, "password"),
                await visitor_of(request),
                device=read_cookie(request, DEVICE_COOKIE),
            )
    except RunCodeError as error:
        if error.code not in _SHOWN_AT_FORM:
            raise
        problem = f"{error.message}: {error.resolution}"
        status = error.kind.http_status
        return sign_in_page(request, next_path, email=email[:254], problem=problem, status=status)
    await end_replaced(request)
    return keep_session(request, RedirectResponse(next_path, 303), done.session.secret, done.device)


def sign_in_page(
    request: Request, next_path: str, *, email: str = "", problem: str = "", status: int = 200
) -> Response:
    """The form, also for a browser that is signed in and has to prove it anew."""
    begin_visit(request)
    page = login_pages.render_sign_in(
        next_path,
        form_proof(request, login_pages.SIGN_IN),
        email=email,
        problem=problem,
        provider=plane_of(request).provider_name,
    )
    return keep_visit(request, html_response(page, status=status, form_action="'self'"))


@router.get(login_pages.LINK_PATH)
async def show_link(request: Request, plane: Plane) -> Response:
    """Looks, and uses nothing up: mail programs and chats open links before their people do."""
    require_own_origin(request, plane)
    links = request.query_params.getlist("link")
    raw_link = links[0] if len(links) == 1 else ""
    email = await plane.sign_in_links.find_email(raw_link)
    begin_visit(request)
    page = login_pages.render_link(email, raw_link, form_proof(request, login_pages.LINK))
    return keep_visit(request, html_response(page, form_action="'self'"))


@router.post(login_pages.LINK_PATH)
async def use_link(request: Request, plane: Plane) -> Response:
    form = await read_page_form(request, login_pages.LINK)
    with plane.metrics.sign_in("link"):
        made = await plane.sign_in_links.use(find_field(form, "link"), await visitor_of(request))
    await end_replaced(request)
    return keep_session(request, RedirectResponse("/account", 303), made.secret)


@router.post(login_pages.SIGN_OUT_PATH)
async def sign_out(request: Request, plane: Plane, caller: SignedIn) -> Response:
    """`everywhere`: each browser of this person. `tokens`: their API tokens as well."""
    form = await read_page_form(request)
    if find_field(form, "everywhere") == "yes":
        await plane.web_sessions.end_all(caller)
    else:
        assert caller.web_session_id is not None
        await plane.web_sessions.end_session(caller, caller.web_session_id)
    # After the browsers, which could make others meanwhile.
    if find_field(form, "tokens") == "yes":
        await plane.tokens.revoke_own_tokens(caller)
    return keep_session(request, RedirectResponse(login_pages.SIGN_IN_PATH, 303), "")


# ---------------------------------------------------------------- the account


@router.get(login_pages.ACCOUNT_PATH)
async def show_account(request: Request, caller: SignedIn) -> Response:
    return await _account_page(request, caller)


@router.post(login_pages.PASSWORD_PATH)
async def change_password(request: Request, plane: Plane, caller: SignedIn) -> Response:
    form = await read_page_form(request)
    current, new = find_field(form, "current"), find_field(form, "new")
    try:
        if new != find_field(form, "again"):
            raise RunCodeError("bad_request", "the two new passwords differ", resolution="type the new one twice")
        await plane.sign_ins.change_password(caller, current, new)
    except RunCodeError as error:
        if error.code not in _SHOWN_AT_FORM:
            raise
        problem = f"{error.message}: {error.resolution}"
        return await _account_page(request, caller, problem=problem, status=error.kind.http_status)
    return back_to(login_pages.ACCOUNT_PATH, "password")


@router.post(login_pages.END_SESSION_PATH)
async def end_session(request: Request, plane: Plane, caller: SignedIn) -> Response:
    form = await read_page_form(request)
    await plane.web_sessions.end_session(caller, parse_id(find_field(form, "id")))
    return back_to(login_pages.ACCOUNT_PATH, "signed-out")


# ---------------------------------------------------------------- parts


async def _account_page(request: Request, caller: Caller, *, problem: str = "", status: int = 200) -> Response:
    sessions = await plane_of(request).web_sessions.list_sessions(caller)
    return show(request, "account.html", here=ACCOUNT, status=status, browsers=sessions, problem=problem)


def _must_prove_again(request: Request, signed_in: SignedInBrowser) -> bool:
    """`again`: a page that makes credentials sent this browser here, for a sign-in that is not minutes old."""
    return request.query_params.get("again") == "yes" and not signed_in.fresh
