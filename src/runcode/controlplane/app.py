"""The HTTP app: routes, error answers and the edge around them, over one control plane.

Called by the composition root, which runs it under uvicorn.
"""

from __future__ import annotations

from dataclasses import replace

from fastapi import FastAPI

from runcode.controlplane.edge import Edge, EdgeSettings, install_error_answers
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.routes import (
    admin_api,
    api,
    api_activity,
    cli_login,
    device_login,
    docs,
    internal,
    login_pages,
    metrics,
    oidc_login,
    pages,
    pages_admin,
    pages_teams,
    pages_tokens,
    pages_workspaces,
    sharing_api,
    sign_in,
    workspace_api,
)
from runcode.controlplane.routes.shortcut import MintShortcut


def make_app(plane: ControlPlane, settings: EdgeSettings | None = None, *, metrics_token: str | None = None) -> FastAPI:
    """An ASGI app. The plane is the caller's to close. `metrics_token` opens `/metrics`; without it there is none."""
    settings = replace(settings or EdgeSettings(metrics=plane.metrics), render_page=login_pages.render_failure)
    # Its own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="RunCode", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.plane = plane
    app.state.limits = settings.limits
    app.include_router(api.router)
    # After `api`, whose `/workspace/start` and `/stop` are no ids.
    app.include_router(workspace_api.router)
    app.include_router(sharing_api.router)
    app.include_router(admin_api.router)
    app.include_router(api_activity.router)
    app.include_router(internal.router)
    app.include_router(sign_in.router)
    app.include_router(oidc_login.router)
    app.include_router(cli_login.router)
    app.include_router(docs.router)
    app.include_router(cli_login.api)
    app.include_router(device_login.router)
    app.include_router(device_login.api)
    for page in (pages_workspaces, pages_teams, pages_tokens, pages_admin, pages):
        app.include_router(page.router)
    app.include_router(pages.health_router)
    if metrics_token is not None:
        app.include_router(metrics.make_router(plane, metrics_token))
    install_error_answers(app, settings)
    # The last one added is the outermost.
    app.add_middleware(MintShortcut)
    app.add_middleware(Edge, settings=settings)
    return app


def make_metrics_app(plane: ControlPlane, settings: EdgeSettings, *, metrics_token: str | None) -> FastAPI:
    """What `--metrics HOST:PORT` serves: `/metrics` and whether the server lives and is ready; nothing else."""
    app = FastAPI(title="RunCode", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.plane = plane
    app.include_router(metrics.make_router(plane, metrics_token))
    app.include_router(pages.health_router)
    install_error_answers(app, settings)
    app.add_middleware(Edge, settings=settings)
    return app
