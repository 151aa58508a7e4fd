"""Browser login over HTTP: the consent page and the code's exchange (WIRE.md).

    GET  /auth/cli-login/?port&state…   the question, behind a sign-in
    POST /auth/cli-login/answer         Authorize or Deny → the client's listener on 127.0.0.1
    POST /api/rc/auth/cli-token         code + verifier → token

HTTP in and out only; the rules are `BrowserLogins`'. A failure is a page here, not
JSON, and leads nowhere.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from runcode.controlplane.records import Caller
from runcode.controlplane.routes import login_pages
from runcode.controlplane.routes.browser_io import (
    find_field,
    find_fields,
    find_signed_in,
    form_proof,
    html_response,
    is_secure,
    own_path,
    read_foreign_form,
    require_own_origin,
    require_proof,
)
from runcode.controlplane.routes.page_frame import PageRoute
from runcode.controlplane.routes.request_io import Plane, plane_of, read_json_object, source_of
from runcode.controlplane.routes.shapes import CodeRequest, TokenAnswer, answers
from runcode.controlplane.routes.sign_in import sign_in_page
from runcode.controlplane.services.consents import Consent, make_ticket, parse_consent
from runcode.controlplane.services.login_requests import parse_login_request
from runcode.core import wire
from runcode.core.errors import RunCodeError

router = APIRouter(route_class=PageRoute)
api = APIRouter(prefix=wire.API_PREFIX)


@router.get(login_pages.LOGIN_PATH)
async def show(request: Request, plane: Plane) -> Response:
    require_own_origin(request, plane)
    asked = parse_login_request(request.query_params.multi_items())
    caller = await find_present_person(request)
    if caller is None:
        return await ask_to_sign_in(request)
    ticket = make_ticket(plane.clock.now())
    proof = form_proof(request, login_pages.CONSENT, ticket, *(text for pair in asked.pairs for text in pair))
    page = login_pages.render_consent(asked, ticket, proof, email=caller.email, source=source_of(request))
    # Browsers hold the policy also against where a form's answer redirects to.
    return html_response(page, form_action=f"'self' {asked.origin}")


@router.post(login_pages.ANSWER_PATH)
async def answer(request: Request, plane: Plane) -> Response:
    form = await read_foreign_form(request)
    asked, ticket = parse_login_request(form), find_field(form, "ticket")
    caller = await require_present_person(request)
    parts = (ticket, *(text for pair in asked.pairs for text in pair))
    require_proof(request, find_field(form, "proof"), login_pages.CONSENT, *parts)
    consent = read_consent(request, form)
    if consent is None:
        return RedirectResponse(await plane.browser_logins.deny(caller, asked, ticket), 303)
    return RedirectResponse(await plane.browser_logins.authorize(caller, asked, ticket, consent), 303)


@api.post("/auth/cli-token", **answers(TokenAnswer, 403, takes=CodeRequest, public=True))
async def redeem(request: Request, plane: Plane) -> dict[str, object]:
    """A browser login's one-time code, with its verifier → a token."""
    body = await read_json_object(request)
    with plane.metrics.sign_in("code"):
        made = await plane.browser_logins.redeem(body.get("code"), body.get("code_verifier"))
    return {"error": False, "token": made.plaintext, "email": made.record.user_email}


# ---------------------------------------------------------------- what every consent page needs


async def find_present_person(request: Request) -> Caller | None:
    """Whom this browser may consent for; None asks for a sign-in.

    On plain http, where other ports receive the cookie, it must be of the last minutes.
    """
    found = await find_signed_in(request)
    if found is None or not (found.fresh or is_secure(plane_of(request))):
        return None
    return found.caller


async def require_present_person(request: Request) -> Caller:
    """For the answer: raises `forbidden` where nobody is signed in any more, and leads nowhere."""
    caller = await find_present_person(request)
    if caller is None:
        raise RunCodeError(
            "forbidden", "nobody is signed in for this any more", resolution="open the page again, and sign in"
        )
    return caller


async def ask_to_sign_in(request: Request) -> Response:
    """The sign-in form in this page's place; it leads back here."""
    found = await find_signed_in(request)
    return sign_in_page(request, own_path(request), email=found.caller.email if found is not None else "")


def read_consent(request: Request, form: list[tuple[str, str]]) -> Consent | None:
    """What was ticked, or None when the answer is no. Raises `bad_request`."""
    given = find_field(form, "answer")
    if given == "deny":
        return None
    if given != "authorize":
        raise RunCodeError("bad_request", "that is not a form of this page")
    # `read` goes with everything, and its box cannot be unticked.
    scopes = ["read", *find_fields(form, "scope")]
    return parse_consent(scopes, find_field(form, "expires_days"), plane_of(request).clock.now())
