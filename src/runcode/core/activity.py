"""What happened, as the control plane tells it (`…/activity`): parsed from what a server sends.

Threat: the server may be hostile; a command, a target or a client's name was typed by some person or program.
Guarantee: each field is of its type or None; numbers are in range, times are times, and texts are bounded.
They are still strangers' words: whoever shows them sends them through `core.terminal`.
"""

from __future__ import annotations

from runcode.core.errors import RunCodeError
from runcode.core.values import Value

TEXT_MAX = 8192
RECORDS_MAX = 1000
_TIME_MAX = 40


class Activity(Value):
    """One thing that happened. Times are RFC 3339 in UTC; `command` is what is left after secrets were masked."""

    id: str
    kind: str
    email: str | None
    by: str | None
    client: str | None
    token_name: str | None
    session_id: int | None
    source: str | None
    workspace_id: int | None
    workspace: str | None
    started_at: str | None
    ended_at: str | None
    duration_ms: int | None
    command: str | None
    masked: int
    form: str | None
    target: str | None
    outcome: str | None
    reason: str | None
    exit_status: int | None
    exit_signal: str | None
    bytes_up: int | None
    bytes_down: int | None
    count: int | None


def parse_page(raw_body: object) -> tuple[list[Activity], int | None]:
    """(records, the older page's cursor or None). Raises `http_error` when it has not that shape at all."""
    raw_data = raw_body.get("data") if isinstance(raw_body, dict) else None
    raw_list = raw_data.get("activity") if isinstance(raw_data, dict) else None
    if not isinstance(raw_list, list) or not isinstance(raw_data, dict) or len(raw_list) > RECORDS_MAX:
        raise RunCodeError("http_error", "the server's list of activity has an unknown shape")
    raw_older = raw_data.get("older")
    older = int(raw_older) if isinstance(raw_older, str) and _is_digits(raw_older) else None
    parsed = (_parse_record(raw) for raw in raw_list)
    return [record for record in parsed if record is not None], older


def _parse_record(raw: object) -> Activity | None:
    if not isinstance(raw, dict):
        return None
    kind, subject = _text(raw, "kind", 32), _text(raw, "id", 64)
    if not kind or not subject or kind.strip("abcdefghijklmnopqrstuvwxyz_") or subject.strip("0123456789abcdef"):
        return None
    return Activity(
        id=subject,
        kind=kind,
        email=_text(raw, "email", 254),
        by=_text(raw, "by", 254),
        client=_text(raw, "client", 256),
        token_name=_text(raw, "token_name", 256),
        session_id=_number(raw, "session_id"),
        source=_text(raw, "source", 64),
        workspace_id=_number(raw, "workspace_id"),
        workspace=_text(raw, "workspace", 256),
        started_at=_time(raw, "started_at"),
        ended_at=_time(raw, "ended_at"),
        duration_ms=_number(raw, "duration_ms"),
        command=_text(raw, "command", TEXT_MAX),
        masked=_number(raw, "masked") or 0,
        form=_text(raw, "form", 64),
        target=_text(raw, "target", 512),
        outcome=_text(raw, "outcome", 64),
        reason=_text(raw, "reason", 512),
        exit_status=_number(raw, "exit_status"),
        exit_signal=_text(raw, "exit_signal", 64),
        bytes_up=_number(raw, "bytes_up"),
        bytes_down=_number(raw, "bytes_down"),
        count=_number(raw, "count"),
    )


def _text(raw: dict[str, object], name: str, most: int) -> str | None:
    value = raw.get(name)
    return value[:most] if isinstance(value, str) else None


def _number(raw: dict[str, object], name: str) -> int | None:
    value = raw.get(name)
    return value if type(value) is int and 0 <= value < 2**63 else None


def _time(raw: dict[str, object], name: str) -> str | None:
    value = _text(raw, name, _TIME_MAX)
    return value if value and not value.strip("0123456789-:.TZ+") else None


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19
