"""What a person or a monitor sees without an account: one plain page, and whether the server lives."""

from __future__ import annotations

import html

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from runcode.controlplane.routes.request_io import Plane

router = APIRouter()

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>RunCode</title></head>
<body>
<main>
<h1>RunCode</h1>
<p>This server lets coding agents work on remote workspaces over SSH, without ever holding a long-lived key.</p>
<p>Your operator gives you an API token. Then, on the machine where your agent runs:</p>
<pre>runcode login --paste --api-base {address}
runcode list
runcode connect WORKSPACE --start</pre>
</main>
</body>
</html>
"""


@router.get("/", response_class=HTMLResponse)
async def front_page(plane: Plane) -> HTMLResponse:
    # The Host header is the caller's word: only a configured address is shown.
    address = plane.settings.public_url or "https://THIS-SERVER"
    return HTMLResponse(_PAGE.format(address=html.escape(address)))


@router.get("/healthz")
async def healthz(plane: Plane) -> dict[str, object]:
    """Answers while the database can be read; otherwise its error, with its status."""
    await plane.store.ping()
    return {"ok": True}
