"""What a request says, read strictly: who calls, which workspace, which JSON.

Threat: a browser with a cookie made to call us by another site, two headers or
parameters where one part of the stack reads the first and another the last, and
JSON that is not what its reader thinks.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import Depends, Request

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller
from runcode.core.errors import RunCodeError

_ID_DIGITS_MAX = 18


def plane_of(request: Request) -> ControlPlane:
    plane = request.app.state.plane
    assert isinstance(plane, ControlPlane)
    return plane


async def authenticate(request: Request) -> Caller:
    """The caller by `Authorization: Token …`, and by nothing else: never a cookie, never the URL."""
    headers = request.headers.getlist("authorization")
    scheme, _, token = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    raw_token = token.strip() if scheme.lower() == "token" else None
    return await plane_of(request).tokens.authenticate(raw_token, source=source_of(request))


def source_of(request: Request) -> str:
    """The peer's address, as the server that we trust before us says; empty where there is none."""
    return request.client.host[:64] if request.client is not None else ""


Plane = Annotated[ControlPlane, Depends(plane_of)]
Authenticated = Annotated[Caller, Depends(authenticate)]


def parse_id(raw_id: object) -> int:
    """A workspace id as decimal digits, or a JSON integer."""
    if type(raw_id) is int and 0 < raw_id < 10**_ID_DIGITS_MAX:
        return raw_id
    if isinstance(raw_id, str) and raw_id.isascii() and raw_id.isdigit() and len(raw_id) <= _ID_DIGITS_MAX:
        return int(raw_id)
    raise RunCodeError("bad_request", "workspace_id is not a workspace's number", resolution="see `runcode list`")


async def read_json_object(request: Request) -> dict[str, Any]:
    """The body as one JSON object, whatever its content type says; no key may stand twice."""
    try:
        value = json.loads(await request.body(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RunCodeError("bad_request", "the body is not valid JSON") from error
    if not isinstance(value, dict):
        raise RunCodeError("bad_request", "the body is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
