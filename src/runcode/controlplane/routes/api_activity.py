"""The timeline by HTTP: what happened in a workspace, in a session, or by whoever asks. HTTP in and out only."""

from __future__ import annotations

import datetime

from fastapi import APIRouter, Request

from runcode.controlplane.routes.request_io import Authenticated, Plane, parse_id
from runcode.controlplane.routes.shapes import ActivityPage, answers, path_id, query_parameter
from runcode.controlplane.services.timeline import PAGE_DEFAULT, PAGE_MAX, TimelineFilter, TimelinePage, TimelineRecord
from runcode.core import wire
from runcode.core.bundle import render_timestamp
from runcode.core.errors import RunCodeError

router = APIRouter(prefix=wire.API_PREFIX)

_NUMBER_MAX = 2**63 - 1
_NUMBER = {"type": "integer", "minimum": 1, "maximum": _NUMBER_MAX}
_FILTERS = (
    query_parameter("before", _NUMBER, "Older than that record: `older` of the page before."),
    query_parameter("limit", {"type": "integer", "minimum": 1, "maximum": PAGE_MAX}, "So many at most."),
    query_parameter("session", _NUMBER, "One session's only."),
    query_parameter("kind", {"type": "string"}, "One kind only."),
    query_parameter("since_s", {"type": "integer", "minimum": 1, "maximum": 10 * 366 * 86400}, "Of the last seconds."),
)
_EVERYBODY = query_parameter("everybody", {"type": "string", "enum": ["0", "1"]}, "1, for admins: all of it.")


@router.get("/workspace/{raw_id}/activity", **answers(ActivityPage, 404, query=_FILTERS, path=[path_id("raw_id")]))
async def list_workspace_activity(
    raw_id: str, request: Request, plane: Plane, caller: Authenticated
) -> dict[str, object]:
    """What happened in one workspace, newest first; who may only use it sees what they did there themselves."""
    page = await plane.timeline.list_workspace(caller, parse_id(raw_id), _read_filter(request, plane.clock.now()))
    return _render_page(page)


@router.get("/activity", **answers(ActivityPage, query=[*_FILTERS, _EVERYBODY]))
async def list_own_activity(request: Request, plane: Plane, caller: Authenticated) -> dict[str, object]:
    """What the caller did and what was done about them, newest first; `everybody=1`, for admins: all of it."""
    wanted = _read_filter(request, plane.clock.now(), "everybody")
    everybody = request.query_params.get("everybody", "0")
    if everybody not in ("0", "1"):
        raise RunCodeError("bad_request", "everybody is 0 or 1")
    found = plane.timeline.list_all if everybody == "1" else plane.timeline.list_own
    return _render_page(await found(caller, wanted))


def _read_filter(request: Request, now: datetime.datetime, *also: str) -> TimelineFilter:
    """Each parameter once at most, and none that we do not know: a filter that is passed over would show too much."""
    given = request.query_params
    for name in given:
        if name not in ("before", "limit", "session", "kind", "since_s", *also):
            raise RunCodeError("bad_request", "there is no such filter")
        if len(given.getlist(name)) > 1:
            raise RunCodeError("bad_request", f"{name} must be given once")
    since_s = _parse_number(given.get("since_s"), "since_s", most=10 * 366 * 86400)
    return TimelineFilter(
        before=_parse_number(given.get("before"), "before"),
        limit=_parse_number(given.get("limit"), "limit", most=PAGE_MAX) or PAGE_DEFAULT,
        session_id=_parse_number(given.get("session"), "session"),
        kind=given.get("kind"),
        since=None if since_s is None else now - datetime.timedelta(seconds=since_s),
    )


def _parse_number(raw_text: str | None, name: str, *, most: int = _NUMBER_MAX) -> int | None:
    if raw_text is None:
        return None
    if raw_text.isascii() and raw_text.isdigit() and len(raw_text) <= 19 and 0 < int(raw_text) <= most:
        return int(raw_text)
    raise RunCodeError("bad_request", f"{name} is not a number from 1 to {most}")


def _render_page(page: TimelinePage) -> dict[str, object]:
    return {
        "error": False,
        "data": {
            "activity": [render_record(record) for record in page.records],
            "older": None if page.older is None else str(page.older),
        },
    }


def render_record(record: TimelineRecord) -> dict[str, object]:
    """One record as the wire has it. Texts are masked, bounded and not trusted."""
    duration = record.duration
    return {
        "id": record.id,
        "kind": record.kind,
        "email": record.email,
        "by": record.by,
        "client": record.client,
        "token_id": record.token_id,
        "token_name": record.token_name,
        "session_id": record.session_id,
        "connection_id": record.connection_id,
        "source": record.source,
        "workspace_id": record.workspace_id,
        "workspace": record.workspace_title,
        "started_at": _render_time(record.started_at),
        "ended_at": _render_time(record.ended_at),
        "duration_ms": None if duration is None else duration // datetime.timedelta(milliseconds=1),
        "form": record.form,
        "command": record.text,
        "command_bytes": record.text_bytes,
        "masked": record.masked,
        "target": record.target,
        "opened_by": record.opened_by,
        "outcome": record.outcome,
        "reason": record.reason,
        "exit_status": record.exit_status,
        "exit_signal": record.exit_signal,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "count": record.count,
        "detail": record.more,
    }


def _render_time(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else render_timestamp(moment)
