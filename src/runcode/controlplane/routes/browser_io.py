"""What a browser's request says, read strictly: for which address, from which page, signed in as whom.

Owns: the cookies, and the helpers that every page of ours is built with:

    router = APIRouter(route_class=PageRoute)     `page_frame`: failures become pages, a missing sign-in leads to one
    async def show(request, caller: SignedIn)     a Caller with `web_session_id`, all scopes, no token
    form_proof(request)                           the hidden field `proof` of each form on the page
    await read_page_form(request)                 the fields of a form that this very page showed this browser

Threat: a page elsewhere whose form or frame makes a signed-in browser act (CSRF),
a name that an attacker resolves to this machine (DNS rebinding), fields that stand
twice, a body that is not the form it claims to be, cookies that somebody planted,
and a `next` that leads to another site.
Guarantee: pages are served under this server's own names only; a form counts only
when the browser says that it came from a page of this very origin, or says
nothing at all (no browser does that today), and only with a proof made for this
browser's cookie. After a sign-in the way leads to a path of ours or to the front page.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
from typing import Annotated, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, Response

from runcode.controlplane.console.looks import page_headers
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller
from runcode.controlplane.routes.local_peer import find_owner
from runcode.controlplane.routes.login_pages import SIGN_IN_PATH
from runcode.controlplane.routes.request_io import note_caller, plane_of, source_of
from runcode.controlplane.services.web_sessions import SignedInBrowser, Visitor
from runcode.core.errors import RunCodeError

SESSION_COOKIE: Final = "runcode_session"
VISIT_COOKIE: Final = "runcode_visit"
DEVICE_COOKIE: Final = "runcode_device"
# htmx sends it with what is no form.
PROOF_HEADER: Final = "x-runcode-proof"
# Where a sign-in may lead: the first part of a path of ours. A page that is missing here is reached by hand.
NEXT_ROOMS: Final = frozenset(
    ("", "account", "activity", "admin", "auth", "sessions", "teams", "tokens", "usage", "workspaces")
)
_NEXT = re.compile(r"/(?:[A-Za-z0-9._~%+,:@-][A-Za-z0-9._~%+,:@/-]*)?(?:\?[A-Za-z0-9._~%+,:@/?&=*-]*)?", re.ASCII)
_NEXT_MAX: Final = 2000
_FIELDS_MAX: Final = 24
_COOKIE_MAX: Final = 4096
_VISIT_KEPT_S: Final = 3600
_DEVICE_KEPT_S: Final = 90 * 24 * 3600


class SignInNeeded(Exception):
    """Nobody is signed in with this browser: `PageRoute` leads to the sign-in page, and from there to `next_path`."""

    def __init__(self, next_path: str) -> None:
        super().__init__(next_path)
        self.next_path = next_path


# ---------------------------------------------------------------- who is there


async def find_signed_in(request: Request) -> SignedInBrowser | None:
    """The signed-in browser, or None. Raises `bad_request` under a name that is not ours. Asked once a request."""
    if not hasattr(request.state, "signed_in"):
        plane = plane_of(request)
        require_own_origin(request, plane)
        raw_secret = read_cookie(request, SESSION_COOKIE)
        found = None
        if raw_secret:
            # What an open page asks for by itself is no sign of a person: it must not keep an idle browser signed in.
            counts = "part" not in request.query_params
            found = await plane.web_sessions.find_signed_in(raw_secret, await visitor_of(request), counts=counts)
        request.state.signed_in = found
        if found is not None:
            note_caller(request, found.caller)
    answer: SignedInBrowser | None = request.state.signed_in
    return answer


async def require_sign_in(request: Request) -> Caller:
    found = await find_signed_in(request)
    if found is None:
        raise SignInNeeded(own_path(request))
    return found.caller


async def require_admin(caller: Annotated[Caller, Depends(require_sign_in)]) -> Caller:
    """An admin of this server; anybody else is told that there is nothing."""
    if not caller.is_admin:
        raise RunCodeError("not_found", "there is nothing at this address", resolution="go back to the front page")
    return caller


SignedIn = Annotated[Caller, Depends(require_sign_in)]
SignedInAdmin = Annotated[Caller, Depends(require_admin)]


async def visitor_of(request: Request) -> Visitor:
    """This request's browser, for a session that is made or looked for."""
    plane, scope = plane_of(request), request.scope
    binding = ""
    if not is_secure(plane):
        peer, own = scope.get("client"), scope.get("server")
        binding = await asyncio.to_thread(find_owner, peer and tuple(peer), own and tuple(own))
    return Visitor(source=source_of(request), browser=request.headers.get("user-agent", ""), binding=binding)


def own_path(request: Request) -> str:
    """The page that a browser wanted, to be led back to; "/" for a form."""
    if request.method not in ("GET", "HEAD"):
        return "/"
    query = urlencode(request.query_params.multi_items())
    return parse_next(request.url.path + (f"?{query}" if query else ""))


def parse_next(raw_next: str) -> str:
    """A path of ours, by allowlist; "/" for anything else: no scheme, no host, no `//`, no backslash, no dots."""
    path = raw_next.partition("?")[0]
    if len(raw_next) > _NEXT_MAX or _NEXT.fullmatch(raw_next) is None or "//" in path or ".." in path:
        return "/"
    return raw_next if path.split("/")[1] in NEXT_ROOMS else "/"


def sign_in_address(next_path: str) -> str:
    return SIGN_IN_PATH if next_path == "/" else f"{SIGN_IN_PATH}?{urlencode({'next': next_path})}"


# ---------------------------------------------------------------- from which page


def require_own_origin(request: Request, plane: ControlPlane) -> str:
    """Our origin as this browser sees it. Raises `bad_request` when it asked under a name that is not ours."""
    hosts = request.headers.getlist("host")
    host = hosts[0].lower() if len(hosts) == 1 else ""
    if plane.settings.public_url is not None:
        parts = urlsplit(plane.settings.public_url)
        if host == parts.netloc.lower():
            return f"{parts.scheme}://{host}"
        raise RunCodeError(
            "bad_request",
            "this page was opened under another address than this server's",
            resolution=f"open it under {parts.scheme}://{parts.netloc}, or tell `runcode login` so: --web-base",
        )
    # An address cannot be rebound to another machine, a name can.
    if _is_address(host):
        return f"http://{host}"
    raise RunCodeError(
        "bad_request",
        "this server does not know the name under which this page was opened",
        resolution="open it by its address, or have the operator name it: `runcode-server up --public-url URL`",
    )


def require_same_origin(request: Request, origin: str) -> None:
    """Raises `forbidden` for a form that another page sent."""
    origins, sites = request.headers.getlist("origin"), request.headers.getlist("sec-fetch-site")
    if (origins and origins != [origin]) or (sites and sites != ["same-origin"]):
        raise RunCodeError(
            "forbidden", "this form was sent by another page", resolution="open the sign-in page itself, and try again"
        )


def form_proof(request: Request, purpose: str = "page", *parts: str) -> str:
    """The value of the hidden field `proof`: for this browser's cookie, this purpose and these parts alone.

    Before a sign-in the cookie is the visit's; `keep_visit` sets it with the page.
    """
    return plane_of(request).proofs.make("form", purpose, _proven_cookie(request), *parts)


def require_proof(request: Request, proof: str, purpose: str = "page", *parts: str) -> None:
    """Raises `forbidden` for a form that this page did not show to this browser."""
    cookie = _proven_cookie(request)
    if not cookie or not plane_of(request).proofs.holds(proof, "form", purpose, cookie, *parts):
        raise RunCodeError(
            "forbidden", "this form is too old, or is not from this page", resolution="open the page again"
        )


async def read_page_form(request: Request, purpose: str = "page") -> list[tuple[str, str]]:
    """The fields of a form of ours; its proof was among them or in a header. Raises `forbidden`, `bad_request`."""
    form = await read_foreign_form(request)
    proof = find_field(form, "proof") or request.headers.get(PROOF_HEADER, "")
    require_proof(request, proof, purpose)
    return [pair for pair in form if pair[0] != "proof"]


async def read_foreign_form(request: Request) -> list[tuple[str, str]]:
    """A form that a page of this origin sent; the caller has still to hold its proof against what it asks for."""
    require_same_origin(request, require_own_origin(request, plane_of(request)))
    return await read_form(request)


async def read_form(request: Request) -> list[tuple[str, str]]:
    """The fields of a urlencoded form, in order. Raises `bad_request`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind != "application/x-www-form-urlencoded":
            raise ValueError
        text = (await request.body()).decode("ascii")
        return parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_FIELDS_MAX)
    except ValueError as error:
        raise RunCodeError("bad_request", "that is not a form of this page") from error


def find_field(pairs: list[tuple[str, str]], name: str) -> str:
    """A field that stands once; "" when it is missing. Raises `bad_request` when it stands twice."""
    found = [text for given, text in pairs if given == name]
    if len(found) > 1:
        raise RunCodeError("bad_request", "that is not a form of this page")
    return found[0] if found else ""


def find_fields(pairs: list[tuple[str, str]], name: str) -> list[str]:
    """A group of boxes of which any number was ticked."""
    return [text for given, text in pairs if given == name]


# ---------------------------------------------------------------- cookies and answers


def is_secure(plane: ControlPlane) -> bool:
    return (plane.settings.public_url or "").startswith("https://")


def read_cookie(request: Request, name: str) -> str:
    return request.cookies.get(_cookie_name(plane_of(request), name), "")[:_COOKIE_MAX]


def keep_cookie(
    request: Request, response: Response, name: str, value: str, max_age_s: int, *, strict: bool = True
) -> None:
    """HttpOnly, for this host only; an empty value removes it. Not `strict`: sent along when a link leads here."""
    plane = plane_of(request)
    response.set_cookie(
        _cookie_name(plane, name),
        value,
        max_age=max_age_s if value else 0,
        path="/",
        secure=is_secure(plane),
        httponly=True,
        samesite="strict" if strict else "lax",
    )


def keep_session(request: Request, response: Response, secret: str, device: str | None = None) -> Response:
    """Sign this browser in; what stood there before, planted or not, is replaced. "" signs it out."""
    policy = plane_of(request).web_sessions.policy
    # Lax: a link in a mail or a terminal must find its person signed in. No GET of ours changes anything.
    keep_cookie(request, response, SESSION_COOKIE, secret, int(policy.absolute.total_seconds()), strict=False)
    keep_cookie(request, response, VISIT_COOKIE, "", 0)
    if device is not None:
        keep_cookie(request, response, DEVICE_COOKIE, device, _DEVICE_KEPT_S)
    return response


async def end_replaced(request: Request) -> None:
    """The session that this browser had until now: its cookie is gone, so nobody else is to have it."""
    replaced = await find_signed_in(request)
    if replaced is not None and replaced.caller.web_session_id is not None:
        await plane_of(request).web_sessions.end_session(replaced.caller, replaced.caller.web_session_id)


def begin_visit(request: Request) -> None:
    """Before the forms of a page for nobody in particular are proven: such a page needs a cookie of its own."""
    if not read_cookie(request, VISIT_COOKIE):
        request.state.new_visit = secrets.token_urlsafe(32)


def keep_visit(request: Request, response: Response) -> Response:
    made = getattr(request.state, "new_visit", "")
    if made:
        keep_cookie(request, response, VISIT_COOKIE, made, _VISIT_KEPT_S)
    return response


def html_response(page: str, *, status: int = 200, form_action: str = "'none'", scripts: bool = False) -> HTMLResponse:
    """A page with its policy; the edge adds what every answer has. `scripts`: ours may run on it."""
    return HTMLResponse(page, status, page_headers(form_action=form_action, scripts=scripts))


def _cookie_name(plane: ControlPlane, name: str) -> str:
    # `__Host-`: browsers then refuse one that another name of the same domain has set.
    return f"__Host-{name}" if is_secure(plane) else name


def _proven_cookie(request: Request) -> str:
    """What a form's proof hangs on: the session's cookie where somebody is signed in, else the visit's."""
    if getattr(request.state, "signed_in", None) is not None:
        return "session " + read_cookie(request, SESSION_COOKIE)
    visit = getattr(request.state, "new_visit", "") or read_cookie(request, VISIT_COOKIE)
    return f"visit {visit}" if visit else ""


def _is_address(host: str) -> bool:
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname or "", parts.port
        if parts.netloc != host or "@" in host or not name:
            return False
        if name == "localhost":
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
