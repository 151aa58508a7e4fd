"""The HTTP app: routes, error answers and the edge around them, over one control plane.

Called by the composition root, which runs it under uvicorn.
"""

from __future__ import annotations

from fastapi import FastAPI

from runcode.controlplane.edge import Edge, install_error_answers
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.routes import api, api_activity, cli_login, pages
from runcode.controlplane.routes.shortcut import MintShortcut


def make_app(plane: ControlPlane) -> FastAPI:
    """An ASGI app. The plane is the caller's to close."""
    # Its own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="RunCode", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.plane = plane
    app.include_router(api.router)
    app.include_router(api_activity.router)
    app.include_router(cli_login.router)
    app.include_router(pages.router)
    install_error_answers(app)
    # The last one added is the outermost.
    app.add_middleware(MintShortcut)
    app.add_middleware(Edge)
    return app
