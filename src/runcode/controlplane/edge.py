"""The outermost layer of the HTTP app: limits, headers, and the one place where an exception becomes an answer.

Owns: the size cap on requests, the security headers on every answer, and the
error body of the wire (`{"error": true, "message", "code", "resolution"}`).

Threat: a body that fills the memory, an answer that a browser sniffs or caches,
and a traceback or database text that tells a stranger how we are built.
Guarantee: every failure, also of routes that do not exist, has the wire's shape;
an unknown exception becomes `internal` with a reference that the log knows too.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from runcode.core import wire
from runcode.core.errors import RunCodeError

_log = logging.getLogger(__name__)

BODY_MAX = 64 * 1024
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
)
# Failures with a status of 500 or more whose words are meant for the caller.
_SPOKEN = frozenset(("unavailable", "not_ready"))
_BUSY = RunCodeError("busy", "the server is busy", resolution="retry in a moment")
_TOO_LARGE = RunCodeError("bad_request", f"the request is larger than {BODY_MAX} bytes", resolution="send less")


class _Gone(Exception):
    """The caller hung up before its request was whole: nothing of it is acted on."""


class Edge:
    """ASGI middleware, outside everything else."""

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: _Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name.lower() for name, _ in message.get("headers", ())}
                extra = [pair for pair in _HEADERS if pair[0] not in present]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            body = await _read_bounded(scope, receive)
            if body is None:
                await _answer(send_with_headers, 413, wire.render_error(_TOO_LARGE))
                return
            await self._app(scope, _replay(body, receive), send_with_headers)
        except _Gone:
            return
        except Exception as error:
            if started:
                raise
            await _answer(send_with_headers, 500, wire.render_error(_hide(error)))


def install_error_answers(app: FastAPI) -> None:
    """Give every failure inside the app the wire's body."""

    async def answer_known(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RunCodeError)
        if error.code in ("busy", "database_down"):
            # 409 would read as "not running" to a client, and where our database is concerns nobody.
            return JSONResponse(wire.render_error(_BUSY), 503, {"Retry-After": "1"})
        if error.kind.http_status >= 500 and error.code not in _SPOKEN:
            return JSONResponse(wire.render_error(_hide(error)), 500)
        headers = {"WWW-Authenticate": "Token"} if error.code == "unauthorized" else None
        return JSONResponse(wire.render_error(error), error.kind.http_status, headers)

    async def answer_http(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse(wire.render_error(_explain_status(error)), error.status_code, error.headers)

    async def answer_invalid(_request: Request, _error: Exception) -> JSONResponse:
        # What was sent is not quoted back.
        return JSONResponse(wire.render_error(RunCodeError("bad_request", "the request is malformed")), 400)

    app.add_exception_handler(RunCodeError, answer_known)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(RequestValidationError, answer_invalid)


def _explain_status(error: HTTPException) -> RunCodeError:
    if error.status_code == 404:
        return RunCodeError("not_found", "there is nothing at this address", resolution="check the server's address")
    if error.status_code == 405:
        return RunCodeError("bad_request", "this address does not take that method")
    return RunCodeError(wire.error_code_for_status(error.status_code), "the request was refused")


def _hide(error: Exception) -> RunCodeError:
    """What a stranger may know of a failure of ours: that it happened, and how to find it in the log."""
    reference = secrets.token_hex(6)
    _log.error("a request failed, reference %s", reference, exc_info=error)
    return RunCodeError("internal", f"the server failed (reference {reference})")


async def _read_bounded(scope: MutableMapping[str, Any], receive: _Receive) -> bytes | None:
    """The whole body, or None when it is too large. Every body of this API is small."""
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value[:20]) > BODY_MAX):
            return None
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _Gone
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > BODY_MAX:
            return None
        if not message.get("more_body", False):
            return b"".join(chunks)


def _replay(body: bytes, receive: _Receive) -> _Receive:
    pending = True

    async def replay() -> _Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


async def _answer(send: _Send, status: int, body: dict[str, object]) -> None:
    raw = json.dumps(body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(raw)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})
