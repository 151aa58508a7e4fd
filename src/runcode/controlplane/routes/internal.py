"""The internal API: what a gateway in another process asks. HTTP in and out only.

Called by `server/remote_directory.py` on the gateway's machine. Its shapes may
change from release to release: gateway and control plane are of one version,
which each call names.

Threat: anybody who can reach this port without a gateway's credential; a browser
that is made to call it; a gateway that reports under another's name.
Guarantee: every route wants `Authorization: Gateway …`, which no page can send and
no person's token is; names of gateways come from the credential.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import re
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse

from runcode import __version__
from runcode.controlplane.changes import ChangeBatch
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import GatewayRecord
from runcode.controlplane.routes.request_io import Plane, plane_of, read_json_object
from runcode.controlplane.services.admission import AdmissionFacts, WorkspaceFacts
from runcode.controlplane.services.events import NewEvent
from runcode.core.channel_policy import render_policy
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import TcpEndpoint, UnixEndpoint

PREFIX = "/internal/gateway"
VERSION_HEADER = "x-runcode-version"
WORKER_HEADER = "x-runcode-worker"
_WORKERS_MAX = 64
# One for each worker, and as many again that a broken network has left half open.
_STREAMS_MAX = 2 * _WORKERS_MAX
_BEGINNING = re.compile(r"[0-9a-f]{0,4}", re.ASCII)
_YEAR_MIN, _YEAR_MAX = 1970, 9000
# The credential is looked at again so often while a stream of changes is open.
_RECHECK_S = 1.0

# Not a part of the documented API: its only caller is our own gateway.
router = APIRouter(prefix=PREFIX, include_in_schema=False)


async def authenticate_gateway(request: Request) -> GatewayRecord:
    """The gateway by its credential. Raises `unauthorized`, or `conflict` for another version of RunCode."""
    headers = request.headers.getlist("authorization")
    scheme, _, credential = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
    plane = plane_of(request)
    gateway = await plane.gateways.authenticate(credential.strip() if scheme.lower() == "gateway" else None)
    theirs = request.headers.get(VERSION_HEADER, "")
    if theirs != __version__:
        raise RunCodeError(
            "conflict",
            f"the gateway is of version {theirs[:20]!r}, the control plane of {__version__}",
            resolution="run the same version of RunCode on both",
        )
    return gateway


Gateway = Annotated[GatewayRecord, Depends(authenticate_gateway)]


@router.post("/facts")
async def load_facts(request: Request, plane: Plane, gateway: Gateway) -> dict[str, object]:
    body = await read_json_object(request)
    facts = await plane.admission.load_admission_facts(_text(body, "title"), _text(body, "key_fingerprint"))
    return _render_facts(facts, await plane.client_certificates.load_authorities())


@router.post("/certificate")
async def sign_certificate(request: Request, plane: Plane, gateway: Gateway) -> dict[str, object]:
    body = await read_json_object(request)
    certificate = await plane.certificates.sign_workspace_certificate(
        session_id=_number(body, "session_id"),
        workspace_id=_number(body, "workspace_id"),
        public_key=_text(body, "public_key"),
    )
    return {"certificate": certificate}


@router.get("/changes")
async def watch_changes(request: Request, plane: Plane, gateway: Gateway) -> StreamingResponse:
    """One JSON object a line, never ending; it ends when the credential is revoked."""
    credential = request.headers["authorization"].partition(" ")[2].strip()
    if plane.gateways.streams[gateway.id] >= _STREAMS_MAX:
        raise RunCodeError("busy", "this gateway follows the changes too often", resolution="end its other processes")
    return StreamingResponse(_stream_changes(plane, gateway, credential), media_type="application/x-ndjson")


@router.post("/events")
async def record_events(request: Request, plane: Plane, gateway: Gateway) -> dict[str, object]:
    body = await read_json_object(request)
    raw_events = body.get("events")
    if not isinstance(raw_events, list):
        raise RunCodeError("bad_request", "events is not a list")
    await plane.events.record(_name_of(request, gateway), [_parse_event(raw_event) for raw_event in raw_events])
    return {"recorded": len(raw_events)}


@router.post("/end-missing")
async def end_missing(request: Request, plane: Plane, gateway: Gateway) -> dict[str, object]:
    body = await read_json_object(request)
    live = body.get("live")
    if not isinstance(live, list) or not all(isinstance(subject, str) for subject in live):
        raise RunCodeError("bad_request", "live is not a list of subjects")
    # A gateway with thousands of subjects tells them in parts, each of those that begin alike.
    beginning = _text(body, "beginning")
    if _BEGINNING.fullmatch(beginning) is None:
        raise RunCodeError("bad_request", "that is not how a subject begins")
    name = _name_of(request, gateway)
    ended = await plane.events.end_missing(name, frozenset(live), _text(body, "reason")[:200], beginning=beginning)
    return {"ended": ended}


# ---------------------------------------------------------------- parts


async def _stream_changes(plane: ControlPlane, gateway: GatewayRecord, credential: str) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    checked_at = loop.time()
    plane.gateways.streams[gateway.id] += 1
    try:
        async with contextlib.aclosing(plane.changes.watch()) as batches:
            async for batch in batches:
                if plane.gateways.closing:
                    return
                if loop.time() - checked_at >= _RECHECK_S:
                    checked_at = loop.time()
                    try:
                        await plane.gateways.authenticate(credential)
                    except RunCodeError:
                        return
                yield _render_batch(batch)
    finally:
        plane.gateways.streams[gateway.id] -= 1


def _render_batch(batch: ChangeBatch) -> bytes:
    line = {
        "cursor": batch.cursor,
        "workspace_ids": sorted(batch.workspace_ids),
        "session_ids": sorted(batch.session_ids),
        "user_ids": sorted(batch.user_ids),
        "everything": batch.everything,
    }
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _render_facts(facts: AdmissionFacts, client_authorities: frozenset[str]) -> dict[str, object]:
    session = None
    if facts.session is not None:
        session = asdict(facts.session) | {"expires_at": facts.session.expires_at.isoformat()}
    return {
        "session": session,
        "workspace": None if facts.workspace is None else _render_workspace(facts.workspace),
        "policy": render_policy(facts.policy),
        "client_authorities": sorted(client_authorities),
    }


def _render_workspace(facts: WorkspaceFacts) -> dict[str, object]:
    endpoint = facts.endpoint
    return {
        "workspace_id": facts.workspace_id,
        "title": facts.title,
        "running": facts.running,
        "principal": facts.principal,
        "host_key": facts.host_key,
        "socket_path": endpoint.socket_path if isinstance(endpoint, UnixEndpoint) else None,
        "address": [endpoint.host, endpoint.port] if isinstance(endpoint, TcpEndpoint) else None,
    }


def _parse_event(raw_event: object) -> NewEvent:
    """Shape only: what an event may say is the service's rule."""
    if not isinstance(raw_event, dict) or not isinstance(raw_event.get("detail"), dict):
        raise RunCodeError("bad_request", "that is not an event")
    return NewEvent(
        kind=_text(raw_event, "kind"),
        phase=_text(raw_event, "phase"),
        subject_id=_text(raw_event, "subject_id"),
        at=_moment(raw_event.get("at")),
        detail=raw_event["detail"],
        connection_id=None if raw_event.get("connection_id") is None else _text(raw_event, "connection_id"),
        started_at=None if raw_event.get("started_at") is None else _moment(raw_event["started_at"]),
        workspace_id=_number_or_none(raw_event, "workspace_id"),
        session_id=_number_or_none(raw_event, "session_id"),
        user_id=_number_or_none(raw_event, "user_id"),
    )


def _name_of(request: Request, gateway: GatewayRecord) -> str:
    """`NAME.WORKER`: a gateway's workers report apart, since each knows its own connections only."""
    worker = request.headers.get(WORKER_HEADER, "0")
    if not (worker.isascii() and worker.isdigit() and len(worker) <= 3 and int(worker) < _WORKERS_MAX):
        raise RunCodeError("bad_request", "that is not a worker's number")
    return f"{gateway.name}.{int(worker)}"


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    try:
        # JSON can spell half a character, which no database takes.
        raw = value.encode() if isinstance(value, str) else None
    except UnicodeEncodeError:
        raw = None
    if raw is None:
        raise RunCodeError("bad_request", f"{name} is not a text")
    return str(value)


def _number(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if type(value) is not int or not 0 < value < 2**63:
        raise RunCodeError("bad_request", f"{name} is not a number")
    return value


def _number_or_none(body: dict[str, Any], name: str) -> int | None:
    return None if body.get(name) is None else _number(body, name)


def _moment(raw: object) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(raw) if isinstance(raw, str) else None
    except ValueError:
        moment = None
    # Near the ends of what a datetime holds, another zone or a minute more is an error of its own.
    if moment is None or moment.tzinfo is None or not _YEAR_MIN <= moment.year <= _YEAR_MAX:
        raise RunCodeError("bad_request", "that is not a time with its zone")
    return moment.astimezone(datetime.timezone.utc)
