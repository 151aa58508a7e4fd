"""`/metrics` for Prometheus: who may read it, and nothing else.

Threat: numbers tell a stranger how many people and workspaces there are, and when.
Guarantee: on the public listener it is there only when the operator has named a
token, and for that token alone; `--metrics` gives it a listener of its own, which
needs the token too as soon as it is beyond loopback (`server/main.py` sees to it).
"""

from __future__ import annotations

import hmac

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from runcode.controlplane.metrics import CONTENT_TYPE
from runcode.controlplane.plane import ControlPlane
from runcode.core import wire
from runcode.core.errors import RunCodeError

_REFUSED = RunCodeError("unauthorized", "this needs the operator's token", resolution="see `--metrics-token-file`")


def make_router(plane: ControlPlane, token: str | None) -> APIRouter:
    """`token` None: whoever reaches the listener may read."""
    router = APIRouter(include_in_schema=False)

    @router.get("/metrics")
    async def read_metrics(request: Request) -> Response:
        if token is not None and not _carries(request, token):
            return JSONResponse(wire.render_error(_REFUSED), 401, {"WWW-Authenticate": "Bearer"})
        return Response(await plane.metrics.render(), media_type=CONTENT_TYPE)

    return router


def _carries(request: Request, token: str) -> bool:
    headers = request.headers.getlist("authorization")
    scheme, _, given = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
