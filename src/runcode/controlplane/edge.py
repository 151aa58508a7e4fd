"""The outermost layer of the HTTP app: who calls, under which name, how fast, how much; headers; and the one
place where an exception becomes an answer.

Owns: the order of what is asked of a request before a route sees it (its id, the
caller's address behind proxies, the Host, the rate, the body's size and time), the
security headers on every answer, the error body of the wire (`{"error": true,
"message", "code", "resolution"}`), and one line and one count for each request.

Threat: a body that fills the memory or never ends, a name that was rebound to us,
one caller who takes all of the server, an answer that a browser sniffs or caches,
a traceback or database text that tells a stranger how we are built, and a log
from which secrets can be read.
Guarantee: every failure, also of routes that do not exist, has the wire's shape;
an unknown exception becomes `internal` with a reference, the request's id, which
the log knows too. What is logged of a request is an allowlist: its id, method,
route template, status, duration, user, token's number and address; never its
path, query, headers or body, nor an unknown exception's own words.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from runcode.controlplane.hosts import HostPolicy
from runcode.controlplane.metrics import OTHER, Metrics
from runcode.controlplane.proxies import TrustedProxies
from runcode.controlplane.rate_limits import RateLimited, RateLimits
from runcode.core import wire
from runcode.core.errors import RunCodeError

_log = logging.getLogger(__name__)
# One line for each request, with its facts in the record's `request`.
_requests = logging.getLogger("runcode.requests")

BODY_MAX = 64 * 1024
BODY_TIMEOUT_S = 15.0
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), payment=(), usb=(), browsing-topics=()"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
)
# A year, and this name alone: what else lives under the operator's domain is not ours to decide.
_HSTS: Final = (b"strict-transport-security", b"max-age=31536000")
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_-]{8,64}")
# Failures with a status of 500 or more whose words are meant for the caller.
_SPOKEN = frozenset(("unavailable", "not_ready"))
_BUSY = RunCodeError("busy", "the server is busy", resolution="retry in a moment")
_TOO_LARGE = RunCodeError("bad_request", f"the request is larger than {BODY_MAX} bytes", resolution="send less")
_TOO_SLOW = RunCodeError(
    "timed_out", "the request did not arrive in time", resolution="check the connection, then retry"
)
_NO_HOST = RunCodeError("bad_request", "the request must name its host once", resolution="send one Host header")
_OTHER_HOST = RunCodeError(
    "bad_request",
    "this server does not answer under that name",
    resolution="use its own address, or have its operator allow the name: `runcode-server up --allowed-host NAME`",
)
# For those of which we do not know when it will be better.
_RETRY_AFTER_S = 5


@dataclass(frozen=True)
class EdgeSettings:
    """What the composition root knows: without it no proxy is believed, any Host is served, and nothing is limited."""

    proxies: TrustedProxies = field(default_factory=TrustedProxies)
    hosts: HostPolicy | None = None
    limits: RateLimits | None = None
    metrics: Metrics | None = None
    hsts: bool = False
    body_timeout_s: float = BODY_TIMEOUT_S
    # A failure as a page, with its headers, for a person's browser: (status, error).
    render_page: Callable[[int, RunCodeError], tuple[str, dict[str, str]]] | None = None


class _Gone(Exception):
    """The caller hung up before its request was whole: nothing of it is acted on."""


class _CutOff(Exception):
    """A route failed after its answer had begun; what failed is in the log already."""


class _Refused(Exception):
    """Answered by the edge itself."""

    def __init__(self, status: int, error: RunCodeError, *headers: tuple[bytes, bytes], close: bool = True) -> None:
        super().__init__(error.code)
        self.status, self.error, self.headers = status, error, headers + ((b"connection", b"close"),) * close


class Edge:
    """ASGI middleware, outside everything else."""

    def __init__(self, app: _App, settings: EdgeSettings | None = None) -> None:
        self._app = app
        self._settings = settings or EdgeSettings()
        self._headers = _HEADERS + ((_HSTS,) if self._settings.hsts else ())

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        head = _Head(scope["headers"])
        request_id = self._identify(scope, head)
        status = 0

        async def send_with_headers(message: _Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name.lower() for name, _ in message.get("headers", ())}
                extra = [pair for pair in self._headers if pair[0] not in present]
                extra.append((b"x-request-id", request_id))
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            self._require_welcome(scope, head)
            body = await self._read_body(head, receive)
            await self._app(scope, _replay(body, receive), send_with_headers)
        except _Refused as refusal:
            self._count_refusal(refusal.error)
            await self._answer(scope, send_with_headers, refusal.status, refusal.error, *refusal.headers)
        except _Gone:
            status = 499
        except Exception as error:
            hidden = _hide(error, request_id.decode())
            if status:
                # The server above would log the exception's own words.
                raise _CutOff from None
            self._count_refusal(hidden)
            await self._answer(scope, send_with_headers, 500, hidden, (b"connection", b"close"))
        finally:
            self._note(scope, request_id, status, time.perf_counter() - began)

    async def _answer(
        self,
        scope: MutableMapping[str, Any],
        send: _Send,
        status: int,
        error: RunCodeError,
        *headers: tuple[bytes, bytes],
    ) -> None:
        """A failure, as a page for a person and as the wire's JSON for everybody else."""
        if self._settings.render_page is not None and wants_page(scope):
            page, told = self._settings.render_page(status, error)
            extra = [(name.lower().encode(), value.encode()) for name, value in told.items()]
            await _send_whole(send, status, b"text/html; charset=utf-8", page.encode(), *extra, *headers)
            return
        await _send_whole(send, status, b"application/json", json.dumps(wire.render_error(error)).encode(), *headers)

    def _identify(self, scope: MutableMapping[str, Any], head: _Head) -> bytes:
        """Sets the caller's own address and scheme, as far as a proxy of ours says them; returns the request's id."""
        request_id = b""
        proxies, client = self._settings.proxies, scope.get("client")
        if proxies and client is not None and proxies.trusts(client[0]):
            forwarded_for = [line.decode("latin-1") for line in head.forwarded_for]
            scope["client"] = (proxies.find_client(client[0], forwarded_for), 0)
            scheme = proxies.find_scheme(client[0], [line.decode("latin-1") for line in head.forwarded_proto])
            scope["scheme"] = scheme or scope["scheme"]
            if len(head.request_ids) == 1 and _REQUEST_ID.fullmatch(head.request_ids[0]):
                request_id = head.request_ids[0]
        request_id = request_id or secrets.token_hex(6).encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        return request_id

    def _require_welcome(self, scope: MutableMapping[str, Any], head: _Head) -> None:
        """Raises `_Refused` for a name that is not ours, and for a caller who calls too often."""
        settings = self._settings
        if settings.hosts is not None and not settings.hosts.accepts(head.hosts):
            if len(head.hosts) != 1:
                raise _Refused(400, _NO_HOST)
            raise _Refused(421, _OTHER_HOST)
        if settings.limits is not None:
            try:
                settings.limits.require_address(_address_of(scope), scope["path"])
            except RateLimited as error:
                retry_after = (b"retry-after", str(error.retry_after_s).encode())
                raise _Refused(429, error, retry_after, close=False) from None

    async def _read_body(self, head: _Head, receive: _Receive) -> bytes:
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                body = await _read_bounded(head, receive)
        except TimeoutError:
            raise _Refused(408, _TOO_SLOW) from None
        if body is None:
            raise _Refused(413, _TOO_LARGE)
        return body

    def _count_refusal(self, error: RunCodeError) -> None:
        if self._settings.metrics is not None:
            self._settings.metrics.count_refusal(error.code)

    def _note(self, scope: MutableMapping[str, Any], request_id: bytes, status: int, duration_s: float) -> None:
        route = getattr(scope.get("route"), "path", OTHER)
        if self._settings.metrics is not None:
            self._settings.metrics.observe_request(route, scope["method"], status, duration_s)
        if _requests.isEnabledFor(logging.INFO):
            caller = scope["state"].get("caller")
            facts = {
                "request_id": request_id.decode(),
                "method": scope["method"] if scope["method"].isalpha() and len(scope["method"]) < 10 else OTHER,
                "route": route,
                "status": status,
                "duration_ms": round(duration_s * 1000, 1),
                "user_id": getattr(caller, "user_id", None),
                "token_id": getattr(caller, "token_id", None),
                "address": _address_of(scope),
            }
            _requests.info("request", extra={"request": facts})


class _Head:
    """The headers that are read here, in one pass."""

    __slots__ = ("content_lengths", "forwarded_for", "forwarded_proto", "hosts", "request_ids")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.hosts: list[bytes] = []
        self.content_lengths: list[bytes] = []
        self.forwarded_for: list[bytes] = []
        self.forwarded_proto: list[bytes] = []
        self.request_ids: list[bytes] = []
        for name, value in headers:
            if name == b"host":
                self.hosts.append(value)
            elif name == b"content-length":
                self.content_lengths.append(value)
            elif name == b"x-forwarded-for":
                self.forwarded_for.append(value)
            elif name == b"x-forwarded-proto":
                self.forwarded_proto.append(value)
            elif name == b"x-request-id":
                self.request_ids.append(value)


def install_error_answers(app: FastAPI, settings: EdgeSettings) -> None:
    """Give every failure inside the app the wire's body, and count it."""

    def count(error: RunCodeError) -> None:
        if settings.metrics is not None:
            settings.metrics.count_refusal(error.code)

    def answer(
        request: Request, error: RunCodeError, status: int, headers: Mapping[str, str] | None = None
    ) -> Response:
        if settings.render_page is not None and wants_page(request.scope):
            page, told = settings.render_page(status, error)
            return HTMLResponse(page, status, {**(headers or {}), **told})
        return JSONResponse(wire.render_error(error), status, headers)

    async def answer_known(request: Request, error: Exception) -> Response:
        assert isinstance(error, RunCodeError)
        if error.code == "unauthorized" and settings.limits is not None:
            try:
                settings.limits.require_stranger(_address_of(request.scope))
            except RateLimited as limited:
                error = limited
        count(error)
        if error.code in ("busy", "database_down"):
            # 409 would read as "not running" to a client, and where our database is concerns nobody.
            return answer(request, _BUSY, 503, {"Retry-After": "1"})
        if error.kind.http_status >= 500 and error.code not in _SPOKEN:
            return answer(request, _hide(error, request.state.request_id), 500)
        headers = None
        if error.code == "unauthorized":
            headers = {"WWW-Authenticate": "Token"}
        elif error.code == "rate_limited":
            headers = {"Retry-After": str(getattr(error, "retry_after_s", _RETRY_AFTER_S))}
        return answer(request, error, error.kind.http_status, headers)

    async def answer_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        count(_explain_status(error))
        return answer(request, _explain_status(error), error.status_code, error.headers)

    async def answer_invalid(request: Request, _error: Exception) -> Response:
        # What was sent is not quoted back.
        return answer(request, RunCodeError("bad_request", "the request is malformed"), 400)

    app.add_exception_handler(RunCodeError, answer_known)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(RequestValidationError, answer_invalid)


def _explain_status(error: HTTPException) -> RunCodeError:
    if error.status_code == 404:
        return RunCodeError("not_found", "there is nothing at this address", resolution="check the server's address")
    if error.status_code == 405:
        return RunCodeError("bad_request", "this address does not take that method")
    return RunCodeError(wire.error_code_for_status(error.status_code), "the request was refused")


def _hide(error: Exception, reference: str) -> RunCodeError:
    """What a stranger may know of a failure of ours: that it happened, and how to find it in the log."""
    _log.error("a request failed, reference %s\n%s", reference, render_failure(error))
    return RunCodeError("internal", f"the server failed (reference {reference})")


def render_failure(error: BaseException) -> str:
    """Where it happened and of which kind it is, back to the first cause.

    Without the exceptions' own words, unless they are ours: those of others quote what
    they could not read (`int()`), or a statement with its values (SQLAlchemy).
    """
    told: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(told) < 8:
        kind = type(seen)
        words = f": {seen.code}: {seen.message}" if isinstance(seen, RunCodeError) else ""
        frames = "".join(
            f"\n  {frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(seen.__traceback__)
        )
        told.append(f"{kind.__module__}.{kind.__qualname__}{words}{frames}")
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "\ncaused by ".join(told)


def _address_of(scope: MutableMapping[str, Any]) -> str:
    client = scope.get("client")
    return client[0] if client else "unknown"


async def _read_bounded(head: _Head, receive: _Receive) -> bytes | None:
    """The whole body, or None when it is too large. Every body of this API is small."""
    for value in head.content_lengths:
        if not value.isdigit() or int(value[:20]) > BODY_MAX:
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


def wants_page(scope: MutableMapping[str, Any]) -> bool:
    """Is this a person's browser at a page? Programs at the API get the wire's JSON whatever they accept."""
    if scope["path"].startswith("/api/"):
        return False
    accepted = [value for name, value in scope["headers"] if name == b"accept"]
    return len(accepted) == 1 and b"text/html" in accepted[0]


async def _send_whole(send: _Send, status: int, media_type: bytes, raw: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", media_type), (b"content-length", str(len(raw)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})
