"""A gateway's events as JSON objects, and back: for the internal API, and for what a gateway keeps until delivery.

Owns: the shape, read strictly. What an event may say is the control plane's rule.
"""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

from runcode.controlplane.masking import mask_detail
from runcode.gateway.events import GatewayEvent


def render_masked(event: GatewayEvent) -> dict[str, object]:
    """As it may stand on a disk: secrets in commands are replaced, by the rules that every server has."""
    return render_event(replace(event, detail=mask_detail(event.kind, event.detail)))


def render_event(event: GatewayEvent) -> dict[str, object]:
    return {
        "kind": event.kind,
        "phase": event.phase,
        "subject_id": event.subject_id,
        "at": event.at.isoformat(),
        "detail": dict(event.detail),
        "connection_id": event.connection_id,
        "started_at": None if event.started_at is None else event.started_at.isoformat(),
        "workspace_id": event.workspace_id,
        "session_id": event.session_id,
        "user_id": event.user_id,
    }


def parse_event(value: object) -> GatewayEvent:
    """Raises ValueError for whatever `render_event` does not make."""
    if not isinstance(value, dict):
        raise ValueError("not an object")
    detail = value.get("detail")
    if not isinstance(detail, dict) or not all(_is_plain(one) for one in detail.values()):
        raise ValueError("detail")
    started_at = value.get("started_at")
    return GatewayEvent(
        kind=_text(value, "kind"),
        phase=_text(value, "phase"),
        subject_id=_text(value, "subject_id"),
        at=_moment(value.get("at")),
        detail=detail,
        connection_id=None if value.get("connection_id") is None else _text(value, "connection_id"),
        started_at=None if started_at is None else _moment(started_at),
        workspace_id=_number(value, "workspace_id"),
        session_id=_number(value, "session_id"),
        user_id=_number(value, "user_id"),
    )


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str) or type(value) is int


def _text(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise ValueError(name)
    return found


def _number(value: dict[str, Any], name: str) -> int | None:
    found = value.get(name)
    if found is not None and type(found) is not int:
        raise ValueError(name)
    return found


def _moment(raw: object) -> datetime.datetime:
    moment = datetime.datetime.fromisoformat(raw) if isinstance(raw, str) else None
    if moment is None or moment.tzinfo is None:
        raise ValueError("a time")
    return moment.astimezone(datetime.timezone.utc)
