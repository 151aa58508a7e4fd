"""The HTTP app: routes, error answers and the edge around them, over one control plane.

Called by the composition root, which runs it under uvicorn.
"""

from __future__ import annotations

from fastapi import FastAPI

from runcode.controlplane.edge import Edge, install_error_answers
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.routes import admin_api, api, cli_login, docs, pages, sharing_api, workspace_api


def make_app(plane: ControlPlane) -> FastAPI:
    """An ASGI app. The plane is the caller's to close."""
    # Its own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="RunCode", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.plane = plane
    app.include_router(api.router)
    # After `api`, whose `/workspace/start` and `/stop` are no ids.
    app.include_router(workspace_api.router)
    app.include_router(sharing_api.router)
    app.include_router(admin_api.router)
    app.include_router(cli_login.router)
    app.include_router(docs.router)
    app.include_router(pages.router)
    install_error_answers(app)
    app.add_middleware(Edge)
    return app
