"""What happened, as a person reads it: one line for each record of the timeline. Pure.

Called by the page routes. Texts of clients and boxes stay apart from our own words,
so that none of theirs reads as ours.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Final

from runcode.controlplane.console.wording import render_lasted, render_size
from runcode.controlplane.services import audit
from runcode.controlplane.services.timeline import TimelineRecord
from runcode.core.remote_calls import describe as describe_call

_ACTS: Final = {
    audit.SESSION_MINTED: "Registered a key",
    audit.SESSION_REVOKED: "Revoked a session",
    audit.SESSION_EXPIRED: "A session expired",
    audit.WORKSPACE_CREATED: "Created it",
    audit.WORKSPACE_CHANGED: "Changed its settings",
    audit.WORKSPACE_START: "Started it",
    audit.WORKSPACE_STOP: "Stopped it",
    audit.WORKSPACE_DELETE: "Deleted it",
    audit.SHARED: "Shared it",
    audit.UNSHARED: "Ended a share",
}
_FORMS: Final = {"exec": "Ran a command", "shell": "Opened a shell", "subsystem": "Used a subsystem"}
_TEXT_MAX: Final = 4000


@dataclass(frozen=True)
class Entry:
    """`says` is ours; `text` (what was run), `who` and `about` hold others' words."""

    at: datetime.datetime
    says: str
    text: str
    who: str
    about: str
    result: str
    bad: bool
    session_id: int | None


def describe(record: TimelineRecord) -> Entry:
    at = record.started_at or record.ended_at
    assert at is not None, "a record has a start or an end"
    says, text, about = _what(record)
    result, bad = _result(record)
    return Entry(
        at=at,
        says=says,
        text=text[:_TEXT_MAX],
        who=record.by or record.email or "",
        about=about,
        result=result,
        bad=bad,
        session_id=record.session_id,
    )


def _what(record: TimelineRecord) -> tuple[str, str, str]:
    if record.kind == "connection":
        return "Connected", "", " from ".join(part for part in (record.client, record.source) if part)
    if record.kind == "command":
        says = _FORMS.get(record.form or "", "Ran something")
        # What the person typed, without our wrapper; the API has the text that ran.
        return says, describe_call(record.text or "") or record.text or "", record.client or ""
    if record.kind == "forward":
        return "Forwarded", "", " ".join(part for part in (record.form, record.target) if part)
    if record.kind == "dropped":
        return f"{record.count or 0} events were not recorded", "", ""
    if record.kind == "refused":
        times = "" if (record.count or 1) == 1 else f" {record.count} times"
        about = f"{record.reason or 'refused'}, from {record.source or 'several addresses'}"
        return f"A connection was refused{times}", "", about
    detail = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in sorted(record.more.items()) if value)
    return _ACTS.get(record.kind, record.kind.replace("_", " ").capitalize()), "", detail


def _result(record: TimelineRecord) -> tuple[str, bool]:
    """How it ended, how long it took and what it carried; and whether that is bad news."""
    if record.kind not in ("connection", "command", "forward"):
        return "", False
    if record.ended_at is None:
        return "open", False
    ended, bad = _ending(record)
    parts = [ended]
    if record.duration is not None:
        parts.append(render_lasted(record.duration.total_seconds()))
    if record.kind != "command" and (record.bytes_up or record.bytes_down):
        parts.append(f"{render_size(record.bytes_up or 0)} up, {render_size(record.bytes_down or 0)} down")
    return " · ".join(part for part in parts if part), bad


def _ending(record: TimelineRecord) -> tuple[str, bool]:
    if record.exit_status is not None:
        return f"exit {record.exit_status}", record.exit_status != 0
    if record.exit_signal is not None:
        return f"signal {record.exit_signal}", True
    if record.reason is not None:
        return record.reason.replace("_", " "), False
    return (record.outcome or "").replace("_", " "), record.outcome in ("refused", "lost")
