"""The operator's verbs for who may connect and what was done: `session list`, `session revoke`, `activity`.

Owns: what they answer; every text that a client or a box chose goes through the
sanitizer in `rendering`. The rules are the control plane's services'.
"""

from __future__ import annotations

import datetime
from argparse import Namespace

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import ActivityRecord, SessionRecord
from runcode.server.data_folder import DataFolder
from runcode.server.rendering import Answer, render_table, render_time

_BYTES = ("B", "KB", "MB", "GB", "TB")


async def list_sessions(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    sessions = await plane.sessions.list_sessions(
        include_ended=options.all, workspace=options.workspace, email=options.user
    )
    now = plane.clock.now()
    rows = [
        (str(s.id), s.user_email, s.workspace_title, s.client, _session_state(s, now), render_time(s.expires_at))
        for s in sessions
    ]
    header = ("ID", "USER", "WORKSPACE", "CLIENT", "STATE", "EXPIRES")
    return Answer(value=[_session(session, now) for session in sessions], text=render_table(header, rows))


async def revoke_sessions(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    ids = list(dict.fromkeys(options.ids))
    await plane.sessions.revoke_all(ids)
    named = ", ".join(str(number) for number in ids)
    return Answer(value={"revoked": ids}, text=f"revoked {named}; what they had opened is cut")


async def list_activity(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    records = await plane.events.list_activity(workspace=options.workspace, limit=options.limit)
    header = ("STARTED", "LASTED", "USER", "WORKSPACE", "KIND", "WHAT", "RESULT", "UP", "DOWN")
    return Answer(
        value=[_activity(record) for record in records],
        text=render_table(header, [_activity_row(record) for record in records]),
    )


def _session(session: SessionRecord, now: datetime.datetime) -> dict[str, object]:
    return {
        "id": session.id,
        "email": session.user_email,
        "workspace_id": session.workspace_id,
        "workspace": session.workspace_title,
        "client": session.client,
        "token_id": session.token_id,
        "fingerprint": session.fingerprint,
        "state": _session_state(session, now),
        "created_at": render_time(session.created_at),
        "expires_at": render_time(session.expires_at),
        "revoked_at": render_time(session.revoked_at) or None,
    }


def _session_state(session: SessionRecord, now: datetime.datetime) -> str:
    if session.revoked_at is not None:
        return "revoked"
    return "active" if session.expires_at > now else "expired"


def _activity(record: ActivityRecord) -> dict[str, object]:
    return {
        **record.detail,
        "id": record.subject_id,
        "connection_id": record.connection_id,
        "kind": record.kind,
        "email": record.user_email,
        "workspace_id": record.workspace_id,
        "workspace": record.workspace_title or record.detail.get("workspace"),
        "session_id": record.session_id,
        "started_at": render_time(record.started_at) or None,
        "ended_at": render_time(record.ended_at) or None,
    }


def _activity_row(record: ActivityRecord) -> tuple[str, ...]:
    detail = record.detail
    return (
        render_time(record.started_at or record.ended_at),
        _lasted(record),
        record.user_email or "",
        record.workspace_title or str(detail.get("workspace") or ""),
        record.kind,
        _what(record),
        _result(record),
        _size(detail.get("bytes_up")),
        _size(detail.get("bytes_down")),
    )


def _what(record: ActivityRecord) -> str:
    detail = record.detail
    if record.kind == "connection":
        return f"{detail.get('client')} from {detail.get('source')}"
    if record.kind == "forward":
        return f"{detail.get('form')} {detail.get('target') or ''}"
    if record.kind == "dropped":
        return f"{detail.get('count')} events were not recorded"
    if record.kind == "refused":
        return f"{detail.get('count')} × {detail.get('reason')}, from {detail.get('source') or 'several addresses'}"
    # One line, whatever the command is: a newline is a space here, and itself in the JSON.
    text = str(detail.get("text") or "")
    # What our own client was asked for is kept without its wrapper, and stands for itself.
    return " ".join((text if detail.get("ours") else f"{detail.get('form')} {text}").split())


def _result(record: ActivityRecord) -> str:
    detail = record.detail
    if record.ended_at is None:
        return "open"
    if detail.get("exit_status") is not None:
        return f"exit {detail['exit_status']}"
    if detail.get("exit_signal") is not None:
        return f"signal {detail['exit_signal']}"
    if detail.get("reason") is not None:
        return str(detail["reason"])
    return str(detail.get("outcome") or "")


def _lasted(record: ActivityRecord) -> str:
    if record.started_at is None or record.ended_at is None or record.kind == "dropped":
        return ""
    # A clock that was set back in between must not make a negative time.
    seconds = max(0.0, (record.ended_at - record.started_at).total_seconds())
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def _size(count: str | int | None) -> str:
    if not isinstance(count, int):
        return ""
    amount, unit = float(count), 0
    while amount >= 1000 and unit < len(_BYTES) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{amount:.1f} {_BYTES[unit]}"
