"""What anybody sees without an account: the front page, the pages' static files, how the server is."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from runcode.controlplane.console.static_files import PREFIX, find_file
from runcode.controlplane.routes.browser_io import find_signed_in
from runcode.controlplane.routes.page_frame import WORKSPACES, PageRoute, show
from runcode.controlplane.routes.request_io import Plane
from runcode.controlplane.routes.shapes import Alive, Readiness, answers
from runcode.core.errors import RunCodeError

router = APIRouter(route_class=PageRoute, include_in_schema=False)
health_router = APIRouter()

# The address names the content, so what was kept never grows old.
_FOR_A_YEAR: Final = "public, max-age=31536000, immutable"


@router.get("/")
async def front_page(request: Request, plane: Plane) -> Response:
    if await find_signed_in(request) is not None:
        return RedirectResponse(WORKSPACES, 303)
    # The Host header is the caller's word: only a configured address is shown.
    return show(request, "front.html", here="/", address=plane.settings.public_url or "https://THIS-SERVER")


@router.get(PREFIX + "{digest}/{name}")
async def static_file(digest: str, name: str) -> Response:
    found = find_file(digest, name)
    if found is None:
        raise RunCodeError("not_found", "there is nothing at this address", resolution="go to the front page")
    return Response(found.content, media_type=found.media_type, headers={"Cache-Control": _FOR_A_YEAR})


@health_router.get("/healthz", **answers(Alive, public=True))
async def healthz() -> dict[str, object]:
    """Is the process alive? Asks nothing of it: what restarts a server must not do so for a database."""
    return {"ok": True}


@health_router.get("/readyz", **answers(Readiness, public=True, also={503: Readiness}))
async def readyz(plane: Plane) -> JSONResponse:
    """Should it be sent work? 503 names what is in the way."""
    reasons = await plane.readiness.find_reasons()
    return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)
