"""Device login over HTTP (RFC 8628): a machine without a browser, and the page where its code is typed.

    POST /api/rc/auth/device            client, machine, scopes → the two codes
    POST /api/rc/auth/device-token      device_code → the token, or why not yet
    GET  /auth/device[?user_code=]      where the code is typed, behind a sign-in
    POST /auth/device                   the code → who waits, and what it asks for
    POST /auth/device/answer            Authorize or Deny

HTTP in and out only; the rules are `DeviceLogins`'. Opening the address that has the
code in it grants and reveals nothing: a person continues from there.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from runcode.controlplane.routes import login_pages
from runcode.controlplane.routes.browser_io import (
    find_field,
    form_proof,
    html_response,
    read_foreign_form,
    read_page_form,
    require_own_origin,
    require_proof,
)
from runcode.controlplane.routes.cli_login import (
    ask_to_sign_in,
    find_present_person,
    read_consent,
    require_present_person,
)
from runcode.controlplane.routes.page_frame import PageRoute
from runcode.controlplane.routes.request_io import Plane, read_json_object, source_of
from runcode.controlplane.routes.shapes import (
    DeviceAnswer,
    DeviceRefusal,
    DeviceRequest,
    DeviceTokenRequest,
    ErrorAnswer,
    TokenAnswer,
    answers,
)
from runcode.controlplane.services import device_logins
from runcode.controlplane.services.consents import make_ticket, require_current
from runcode.core import wire
from runcode.core.errors import RunCodeError

router = APIRouter(route_class=PageRoute)
api = APIRouter(prefix=wire.API_PREFIX)

_WORDS: Final = {
    device_logins.PENDING: "nobody has authorized this device yet",
    device_logins.SLOW_DOWN: "this device asks too often",
    device_logins.DENIED: "the sign-in was denied",
    device_logins.EXPIRED: "the device's code is unknown, used, or too old",
}


@api.post("/auth/device", **answers(DeviceAnswer, takes=DeviceRequest, public=True))
async def start(request: Request, plane: Plane) -> dict[str, object]:
    """Begin a login that a person finishes in a browser elsewhere."""
    base = require_own_origin(request, plane)
    body = await read_json_object(request)
    made = await plane.device_logins.start(
        raw_client=body.get("client"),
        raw_machine=body.get("machine"),
        raw_scopes=body.get("scopes"),
        source=source_of(request),
    )
    address = f"{base}{login_pages.DEVICE_PATH}"
    return {
        "error": False,
        "device_code": made.device_code,
        "user_code": made.user_code,
        "verification_uri": address,
        "verification_uri_complete": f"{address}?{urlencode({'user_code': made.user_code})}",
        "expires_in": made.expires_in_s,
        "interval": made.interval_s,
    }


@api.post(
    "/auth/device-token",
    **answers(TokenAnswer, 403, takes=DeviceTokenRequest, public=True, also={400: DeviceRefusal | ErrorAnswer}),
)
async def redeem(request: Request, plane: Plane) -> Response:
    """Ask whether it is finished; 400 with `authorization_pending` until then."""
    body = await read_json_object(request)
    found = await plane.device_logins.poll(body.get("device_code"))
    if found.token is not None:
        plane.metrics.count_sign_in("device", "ok")
        return JSONResponse({"error": False, "token": found.token.plaintext, "email": found.token.record.user_email})
    assert found.refusal is not None
    words = _WORDS[found.refusal]
    refused = wire.render_error(RunCodeError("bad_request", words, resolution="run `runcode login --device`"))
    # RFC 6749 §5.2 has its word where the wire has `true`; clients of either read both.
    told = {"error": found.refusal, "error_description": words, "interval": found.interval_s}
    return JSONResponse({**refused, **told}, 400)


@router.get(login_pages.DEVICE_PATH)
async def show(request: Request) -> Response:
    if await find_present_person(request) is None:
        return await ask_to_sign_in(request)
    given = request.query_params.getlist("user_code")
    return _code_page(request, given[0][:20] if len(given) == 1 else "")


@router.post(login_pages.DEVICE_PATH)
async def look(request: Request, plane: Plane) -> Response:
    caller = await require_present_person(request)
    user_code = find_field(await read_page_form(request), "user_code")
    try:
        asked = await plane.device_logins.find_request(caller, user_code)
    except RunCodeError as error:
        if error.code not in ("not_found", "rate_limited"):
            raise
        problem = f"{error.message}: {error.resolution}"
        return _code_page(request, "", problem=problem, status=error.kind.http_status)
    now = plane.clock.now()
    ticket = make_ticket(now)
    proof = form_proof(request, login_pages.DEVICE_CONSENT, ticket, asked.user_code)
    waited_s = max(0, int((now - asked.created_at).total_seconds()))
    page = login_pages.render_device_consent(asked, ticket, proof, email=caller.email, waited_s=waited_s)
    return html_response(page, form_action="'self'")


@router.post(login_pages.DEVICE_ANSWER_PATH)
async def answer(request: Request, plane: Plane) -> Response:
    form = await read_foreign_form(request)
    caller = await require_present_person(request)
    user_code, ticket = find_field(form, "user_code"), find_field(form, "ticket")
    require_proof(request, find_field(form, "proof"), login_pages.DEVICE_CONSENT, ticket, user_code)
    require_current(ticket, plane.clock.now())
    consent = read_consent(request, form)
    await plane.device_logins.decide(caller, user_code, consent)
    return html_response(login_pages.render_device_done(consent is not None))


def _code_page(request: Request, user_code: str, *, problem: str = "", status: int = 200) -> Response:
    page = login_pages.render_device_code(user_code, form_proof(request), problem=problem)
    return html_response(page, status=status, form_action="'self'")
