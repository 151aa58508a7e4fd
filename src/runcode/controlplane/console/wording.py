"""What a person reads of a time, a state or a size. Pure.

Owns: the templates' filters. A relative time always stands beside the exact one.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Final

from runcode.controlplane import states
from runcode.controlplane.records import WorkspaceRecord
from runcode.core.bundle import render_timestamp

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400
_BYTES: Final = ("B", "kB", "MB", "GB", "TB")
# State → how it looks (console.css) and what it means for the reader.
_TONES: Final = {
    states.RUNNING: "ok",
    states.STARTING: "busy",
    states.STOPPING: "busy",
    states.DELETING: "busy",
    states.UNKNOWN: "busy",
    states.FAILED: "bad",
}
_SCOPES: Final = {
    states.SCOPE_READ: "see workspaces",
    states.SCOPE_CONNECT: "start workspaces and connect to them",
    states.SCOPE_MANAGE: "create, stop, share and delete workspaces",
}
_ROLES: Final = {
    states.ROLE_OWNER: "Owner",
    states.ROLE_MANAGE: "May manage",
    states.ROLE_USE: "May use",
    states.TEAM_ADMIN: "Admin",
    states.TEAM_MEMBER: "Member",
}


def render_exact(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def render_relative(moment: datetime.datetime, now: datetime.datetime) -> str:
    """`3 min ago`, `in 2 h`; a date once it is more than a month away."""
    seconds = (moment - now).total_seconds()
    size = abs(seconds)
    # Coarse on purpose: a live part is sent anew only when what it says has changed.
    if size < _MINUTE:
        return "just now" if seconds <= 0 else "in under a minute"
    if size >= 30 * _DAY:
        return f"{moment:%Y-%m-%d}"
    text = render_duration(size)
    return f"in {text}" if seconds > 0 else f"{text} ago"


def render_duration(seconds: float) -> str:
    """The largest unit that fits, whole."""
    if seconds < _MINUTE:
        return f"{int(seconds)} s"
    if seconds < _HOUR:
        return f"{int(seconds // _MINUTE)} min"
    if seconds < 2 * _DAY:
        return f"{int(seconds // _HOUR)} h"
    return f"{int(seconds // _DAY)} days"


def render_lasted(seconds: float) -> str:
    """How long something took: tenths of a second while they matter."""
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), _MINUTE)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def render_size(count: int) -> str:
    amount, unit = float(count), 0
    while amount >= 1000 and unit < len(_BYTES) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{amount:.1f} {_BYTES[unit]}"


def describe_state(workspace: WorkspaceRecord) -> str | None:
    """What the state means and what to do, in a sentence; None where the word says it all."""
    state = workspace.state
    if state == states.STARTING and workspace.failures:
        return "It is being tried again. You can wait, or stop it."
    if state == states.STARTING:
        return "The server is starting it. This page follows."
    if state == states.STOPPING and workspace.failures:
        return "It could not be stopped yet. The server goes on trying; tell your operator if it stays so."
    if state == states.STOPPING:
        return "The server is stopping it. Live connections end; files stay."
    if state == states.DELETING:
        return "It is being deleted with its files. Its title is free again afterwards."
    if state == states.FAILED:
        return "The server tries again by itself. Start tries at once; stop gives it a rest."
    if state == states.UNKNOWN:
        return "The server cannot see it just now, so nothing is claimed. It keeps looking."
    if state == states.STOPPED:
        return "Nothing runs and nobody can connect. Its files are kept."
    return None


def _tone(state: str) -> str:
    return _TONES.get(state, "idle")


def _role(role: str | None) -> str:
    return _ROLES.get(role or "", "Operator")


def render_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text and text[-1] not in ".!?…" else f"{text[:1].upper()}{text[1:]}"


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "exact": render_exact,
    "relative": render_relative,
    "iso": render_timestamp,
    "duration": render_duration,
    "lasted": render_lasted,
    "size": render_size,
    "sentence": render_sentence,
    "tone": _tone,
    "state_help": describe_state,
    "role": _role,
    "scope": lambda scope: _SCOPES.get(scope, scope),
}
