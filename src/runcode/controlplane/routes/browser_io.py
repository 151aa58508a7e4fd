"""What a browser's request says, read strictly: for which address, from which page, with which cookies and fields.

Threat: a page elsewhere whose form or frame makes a signed-in browser act (CSRF),
a name that an attacker resolves to this machine (DNS rebinding), fields that stand
twice, and a body that is not the form it claims to be.
Guarantee: pages are served under this server's own names only; a form counts only
when the browser says that it came from a page of this very origin, or says
nothing at all (no browser does that today, and the form's own proof still stands).
"""

from __future__ import annotations

import ipaddress
from urllib.parse import parse_qsl, urlsplit

from fastapi import Request
from fastapi.responses import HTMLResponse

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.routes.login_pages import content_policy
from runcode.core.errors import RunCodeError

_FIELDS_MAX = 16


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


def html_response(page: str, *, status: int = 200, form_action: str = "'none'") -> HTMLResponse:
    """A page with its policy; the edge adds what every answer has."""
    headers = {
        "Content-Security-Policy": content_policy(form_action=form_action),
        "Cross-Origin-Opener-Policy": "same-origin",
        # Not `no-referrer`: browsers then send `Origin: null` with our own forms (fetch.spec.whatwg.org).
        "Referrer-Policy": "same-origin",
    }
    return HTMLResponse(page, status, headers)


def source_of(request: Request) -> str:
    return request.client.host if request.client is not None else "unknown"


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
