"""What a request says, read strictly: who calls, which workspace, which JSON.

Threat: a browser with a cookie made to call us by another site, two headers or
parameters where one part of the stack reads the first and another the last, and
JSON that is not what its reader thinks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, MutableMapping
from typing import Annotated, Any, cast

from fastapi import Depends, Request

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.rate_limits import RateLimits
from runcode.controlplane.records import Caller
from runcode.core.errors import RunCodeError

_ID_DIGITS_MAX = 18
Scope = MutableMapping[str, Any]


def plane_of(request: Request) -> ControlPlane:
    plane = request.app.state.plane
    assert isinstance(plane, ControlPlane)
    return plane


async def authenticate(request: Request) -> Caller:
    """The caller by `Authorization: Token …`, and by nothing else: never a cookie, never the URL."""
    return await _authenticate(request.scope)


async def recall(scope: Scope) -> Caller:
    """As `authenticate`, but the token may have been revoked within the last minute: see `Tokens.recall`."""
    token = _read_token(scope)
    found = None if token is None else scope["app"].state.plane.tokens.recall(token, source=_source_of(scope))
    if found is None:
        return await _authenticate(scope)
    _note_caller(scope, found)
    return cast(Caller, found)


async def _authenticate(scope: Scope) -> Caller:
    plane: ControlPlane = scope["app"].state.plane
    caller = await plane.tokens.authenticate(_read_token(scope), source=_source_of(scope))
    _note_caller(scope, caller)
    return caller


def _read_token(scope: Scope) -> str | None:
    headers = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = headers[0].decode("latin-1").partition(" ") if len(headers) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "token" else None


def note_caller(request: Request, caller: Caller) -> None:
    """Whoever has proved who they are: for the line in the log, and the rate of this token or browser.

    Raises `rate_limited`.
    """
    _note_caller(request.scope, caller)


def _note_caller(scope: Scope, caller: Caller) -> None:
    scope.setdefault("state", {})["caller"] = caller
    limits: RateLimits | None = scope["app"].state.limits
    if limits is not None:
        limits.require_caller(("web", caller.web_session_id) if caller.token_id is None else caller.token_id)


def source_of(request: Request) -> str:
    """The peer's address, as the server that we trust before us says; empty where there is none."""
    return _source_of(request.scope)


def _source_of(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0])[:64] if client else ""


async def _depend_on_plane(request: Request) -> ControlPlane:
    """A dependency that is no coroutine costs a thread's turn, 0.1 ms."""
    return plane_of(request)


Plane = Annotated[ControlPlane, Depends(_depend_on_plane)]
Authenticated = Annotated[Caller, Depends(authenticate)]


def parse_id(raw_id: object) -> int:
    """An id as decimal digits, or a JSON integer."""
    if type(raw_id) is int and 0 < raw_id < 10**_ID_DIGITS_MAX:
        return raw_id
    if isinstance(raw_id, str) and raw_id.isascii() and raw_id.isdigit() and len(raw_id) <= _ID_DIGITS_MAX:
        return int(raw_id)
    raise RunCodeError("bad_request", "workspace_id is not a workspace's number", resolution="see `runcode list`")


async def read_json_object(request: Request) -> dict[str, Any]:
    """The body as one JSON object, whatever its content type says; no key may stand twice."""
    return parse_json_object(await request.body())


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """As `read_json_object` reads it. Raises `bad_request`."""
    try:
        value = _decoder.decode(raw.decode(json.detect_encoding(raw), "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise RunCodeError("bad_request", "the body is not valid JSON") from error
    if not isinstance(value, dict):
        raise RunCodeError("bad_request", "the body is not a JSON object")
    return value


async def read_known_keys(
    request: Request, known: Collection[str], *, required: Collection[str] = ()
) -> dict[str, Any]:
    """As `read_json_object`, and every key is one of `known`: a misspelt one must not be passed over."""
    body = await read_json_object(request)
    if not set(body) <= set(known) or not set(body) >= set(required):
        keys = ", ".join(f"`{key}`" + ("" if key in required else " (optional)") for key in known)
        raise RunCodeError("bad_request", "the body has not the keys of this call", resolution=f"send: {keys}")
    return body


def parse_text(raw_value: object, name: str, *, limit: int = 1024) -> str:
    if isinstance(raw_value, str) and len(raw_value) <= limit:
        return raw_value
    raise RunCodeError("bad_request", f"{name} is not a text that can be used")


def parse_flag(raw_value: object, name: str) -> bool:
    if isinstance(raw_value, bool):
        return raw_value
    raise RunCodeError("bad_request", f"{name} is neither true nor false")


def find_query(request: Request, name: str) -> str | None:
    """A parameter of the query that stands once; None when it is absent."""
    given = request.query_params.getlist(name)
    if len(given) > 1:
        raise RunCodeError("bad_request", f"{name} must be given once")
    return given[0] if given else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# Made once: `json.loads` makes a decoder for each body.
_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
