"""A shorter way to the one route that agents call all the time: `POST …/workspace/ID/ssh-session`.

Owns: nothing but the way. What is called, and what it answers, are the route's own
(`api.answer_mint`), and the limits and headers of `Edge` lie outside this. The
walk through the router and its wrappers costs as much as all that the route does.

Never: another rule than the router's. What does not look exactly like such a call
(another method, a path with anything unusual in it) takes the long way.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import Request

from runcode.controlplane.routes import api
from runcode.core import wire
from runcode.core.errors import RunCodeError

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

_ROUTE = next(route for route in api.router.routes if getattr(route, "endpoint", None) is api.mint_session)
_JSON = (b"content-type", b"application/json")
_PATH = re.compile(re.escape(wire.API_PREFIX) + r"/workspace/([0-9]{1,18})/ssh-session", re.ASCII)


class MintShortcut:
    """ASGI middleware between `Edge` and the router."""

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        found = None
        if scope["type"] == "http" and scope["method"] == "POST":
            found = _PATH.fullmatch(scope["path"])
        if found is None:
            await self._app(scope, receive, send)
            return
        # As the router leaves them for whoever looks at the scope afterwards.
        scope["route"] = _ROUTE
        scope["path_params"] = {"raw_id": found[1]}
        # `Edge` has read it, and gives it whole.
        raw_body: bytes = (await receive())["body"]
        try:
            raw = await api.answer_mint(scope, found[1], raw_body)
        except RunCodeError as error:
            response = await scope["app"].exception_handlers[RunCodeError](Request(scope, receive), error)
            await response(scope, receive, send)
            return
        headers = [(b"content-length", b"%d" % len(raw)), _JSON]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": raw})
