"""The API's document for programs, and the same as a page for people. Neither needs an account.

The page is rendered here from the document: no script, nothing from elsewhere.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from runcode.controlplane.openapi import render_document
from runcode.controlplane.routes.api_page import render_api_page
from runcode.controlplane.routes.page_frame import show

router = APIRouter(include_in_schema=False)

DOCUMENT_PATH: Final = "/api/openapi.json"
PAGE_PATH: Final = "/api/docs"


@router.get(DOCUMENT_PATH)
async def document(request: Request) -> Response:
    return JSONResponse(_document_of(request))


@router.get(PAGE_PATH)
async def page(request: Request) -> Response:
    from markupsafe import Markup

    title, body = render_api_page(_document_of(request), document_path=DOCUMENT_PATH)
    return show(request, "document.html", title=title, body=Markup(body))  # noqa: S704


def _document_of(request: Request) -> dict[str, Any]:
    """Made once: the routes of a running app do not change."""
    state = request.app.state
    if not hasattr(state, "openapi_document"):
        state.openapi_document = render_document(request.app)
    made: dict[str, Any] = state.openapi_document
    return made
