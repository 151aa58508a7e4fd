"""The frame that every page stands in: who is signed in, where one is, what was just done; and failures as pages.

Owns: the names that all templates may use, the page's headers, and `PageRoute`, under
which a failure of a page is a page. Called by the page routes.

Guarantee: what was "just done" is one of our own sentences, chosen by a word in the
address, so that no link puts words into our mouth. A failure that is ours to hide
goes on to the edge.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute

import runcode
from runcode.controlplane.console import looks
from runcode.controlplane.routes.browser_io import (
    SignInNeeded,
    form_proof,
    html_response,
    sign_in_address,
)
from runcode.controlplane.routes.request_io import plane_of
from runcode.core.errors import RunCodeError

WORKSPACES: Final = "/workspaces"
TEAMS: Final = "/teams"
TOKENS: Final = "/auth/cli-tokens"
ADMIN: Final = "/admin"
ACCOUNT: Final = "/account"
_NAV: Final = ((WORKSPACES, "Workspaces"), (TEAMS, "Teams"), (TOKENS, "API tokens"))
_DONE: Final = {
    "created": "The workspace is made. Start it when you like.",
    "saved": "Saved.",
    "shared": "Shared.",
    "unshared": "No longer shared; what it had opened is cut.",
    "revoked": "Revoked; what it had opened is cut.",
    "deleting": "The workspace is being deleted.",
    "team-made": "The team is made. Add people to it.",
    "team-gone": "The team is gone.",
    "left": "You have left the team.",
    "disabled": "Disabled; what they had opened is cut.",
    "enabled": "Enabled.",
    "signed-out": "Signed out.",
    "password": "Your password is changed, and your other browsers are signed out.",
}


class PageRoute(APIRoute):
    """A route whose failures are pages, and whose missing sign-in leads to one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except SignInNeeded as needed:
                return _lead_to_sign_in(request, needed.next_path)
            except RunCodeError as error:
                status = status_of(error)
                if status >= 500 and error.code not in ("busy", "unavailable"):
                    raise
                return show_problem(request, error)

        return answer


def show(
    request: Request, template: str, *, here: str = "", status: int = 200, form_action: str = "'self'", **values: Any
) -> HTMLResponse:
    """A whole page. `here` is the part of the navigation that it belongs to."""
    frame = frame_values(request, here)
    page = looks.render(template, **{**frame, **values})
    return html_response(page, status=status, form_action=form_action, scripts=frame["viewer"] is not None)


def show_problem(request: Request, error: RunCodeError) -> HTMLResponse:
    """The failure as a page, in the same frame; htmx takes the sentence out of it."""
    if error.code == "busy":
        error = RunCodeError("busy", "the server is busy", resolution="try again in a moment")
    status = status_of(error)
    heading = looks.heading_for(status)
    return show(request, "problem.html", status=status, number=status, failure=error, heading=heading)


def status_of(error: RunCodeError) -> int:
    """For a person's page: a refusal that the wire answers with 200 is a conflict here, and `busy` passes."""
    if error.code == "busy":
        return 503
    return 409 if error.kind.http_status < 400 else error.kind.http_status


def show_part(request: Request, template: str, values: dict[str, Any]) -> Response:
    """One live part, for htmx; 204 where it is as the browser has it (`seen`)."""
    part, digest = render_part(request, template, values)
    if request.query_params.get("seen") == digest:
        return Response(status_code=204)
    return html_response(part)


def render_part(request: Request, template: str, values: dict[str, Any]) -> tuple[Any, str]:
    """(markup for a page's template, digest of what it shows)."""
    return looks.render_part(template, **{**frame_values(request, ""), **values})


def back_to(address: str, done: str = "") -> RedirectResponse:
    """After a form that did what it says: 303, so that a reload does not do it twice."""
    path, _, fragment = address.partition("#")
    joined = f"{path}{'&' if '?' in path else '?'}done={done}" if done else path
    return RedirectResponse(joined + (f"#{fragment}" if fragment else ""), 303)


def frame_values(request: Request, here: str) -> dict[str, Any]:
    signed_in = getattr(request.state, "signed_in", None)
    viewer = None if signed_in is None else signed_in.caller
    admin = ((ADMIN, "Admin"),) if viewer is not None and viewer.is_admin else ()
    return {
        "viewer": viewer,
        "nav": _NAV + admin,
        "here": here,
        "now": plane_of(request).clock.now(),
        "proof_value": form_proof(request) if viewer is not None else "",
        "version": runcode.__version__,
        "done": _DONE.get(request.query_params.get("done", "")),
        "error": None,
    }


def _lead_to_sign_in(request: Request, next_path: str) -> Response:
    if request.headers.get("hx-request") == "true":
        # htmx would put the sign-in page into a part of this one.
        return Response(status_code=401, headers={"HX-Redirect": sign_in_address("/")})
    return RedirectResponse(sign_in_address(next_path), 303)
