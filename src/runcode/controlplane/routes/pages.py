"""What a person or a monitor sees without an account: the front page, its style, and whether the server lives."""

from __future__ import annotations

from functools import cache
from html import escape
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

from runcode.controlplane.routes.browser_io import html_response
from runcode.controlplane.routes.login_pages import STYLE_PATH, render_page
from runcode.controlplane.routes.request_io import Plane
from runcode.controlplane.routes.shapes import Alive, answers

router = APIRouter()

_FRONT = """<h1>Workspaces for coding agents</h1>
<p>This server lets coding agents work on remote workspaces over SSH, without ever holding a long-lived key.</p>
<p>On the machine where your agent runs:</p>
<pre>runcode login --api-base {address} --web-base {address}
runcode list
runcode connect WORKSPACE --start</pre>
<p class="note">Your operator gives you an account with a password, or an API token for
<code>runcode login --paste</code>.</p>"""


@router.get("/", response_class=HTMLResponse)
async def front_page(plane: Plane) -> HTMLResponse:
    # The Host header is the caller's word: only a configured address is shown.
    address = plane.settings.public_url or "https://THIS-SERVER"
    return html_response(render_page("Welcome", _FRONT.format(address=escape(address))))


@router.get(STYLE_PATH)
async def style() -> Response:
    return Response(_load_style(), media_type="text/css")


@router.get("/healthz", **answers(Alive, public=True))
async def healthz(plane: Plane) -> dict[str, object]:
    """Answers while the database can be read; otherwise its error, with its status."""
    await plane.store.ping()
    return {"ok": True}


@cache
def _load_style() -> bytes:
    return Path(__file__).parent.with_name("console").joinpath("page.css").read_bytes()
