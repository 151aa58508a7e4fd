"""What a person reads of a time, a state or a size. Pure.

Owns: the templates' filters. A relative time always stands beside the exact one.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from runcode.controlplane import states
from runcode.controlplane.records import QuotaRecord, WorkspaceRecord
from runcode.controlplane.records import render_duration as render_time_span
from runcode.core.bundle import render_timestamp
from runcode.core.channel_policy import FORWARDINGS, LOOPBACK, ChannelPolicy
from runcode.runtimes.base import SizeLimits

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
_FORWARDINGS: Final = {
    "direct": "forward ports to it (-L, -D)",
    "remote": "open ports in it (-R)",
    "streamlocal": "forward unix sockets",
    "agent": "bring an ssh agent (-A)",
    "x11": "bring a display (-X)",
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
_REASONS: Final = {
    "database": "The database cannot be read.",
    "migrations": "The database has another version's schema.",
    "draining": "The server is about to end.",
    "gateway_feed": "The gateway does not hear of changes, so it admits nobody new.",
    "reconciler": "The reconciler does not keep up: starts and stops wait.",
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


def describe_quota(quota: QuotaRecord) -> str:
    """`3 of 10 workspaces · 1 running`."""
    owned = f"{quota.workspaces}" if quota.workspaces_max is None else f"{quota.workspaces} of {quota.workspaces_max}"
    running = f"{quota.running}" if quota.running_max is None else f"{quota.running} of {quota.running_max}"
    one = quota.workspaces_max is None and quota.workspaces == 1
    return f"{owned} workspace{'' if one else 's'} · {running} running"


def describe_size(name: str, limits: SizeLimits) -> str:
    """`small: 1 GB, 1 CPU`; the name alone where it limits nothing."""
    parts = []
    if limits.memory_bytes is not None:
        parts.append(f"{limits.memory_bytes / 1024**3:g} GB")
    if limits.cpus is not None:
        parts.append(f"{limits.cpus:g} CPU{'' if limits.cpus == 1 else 's'}")
    return f"{name}: {', '.join(parts)}" if parts else name


def describe_idle(idle_stop_after_s: int | None, default_s: int | None) -> str:
    """When it stops by itself. None: the server's own time, which may be none; 0: never."""
    if idle_stop_after_s is None:
        return "as the server does: " + ("never" if not default_s else f"after {render_time_span(default_s)}")
    return "never" if idle_stop_after_s == 0 else f"after {render_time_span(idle_stop_after_s)}"


def describe_channels(policy: ChannelPolicy) -> str:
    """What connections may do, beside shells, commands and files."""
    allowed = [_FORWARDINGS[name] for name in FORWARDINGS if getattr(policy, name)]
    parts = ["everything" if len(allowed) == len(FORWARDINGS) else ", ".join(allowed) or "no forwarding"]
    parts += ["ports of the box itself only"] if policy.direct and policy.destinations == LOOPBACK else []
    parts += [f"{policy.sessions} sessions at once"] if policy.sessions is not None else []
    parts += [f"{policy.opens_per_minute} channels a minute"] if policy.opens_per_minute is not None else []
    return "; ".join(parts)


def describe_reason(name: str) -> str:
    return _REASONS.get(name, "This part of the server is not ready.")


@dataclass(frozen=True)
class Commands:
    """What a person types to get at a workspace, each as it is to be typed."""

    login: str
    connect: str
    in_shell: str
    config: str
    ssh: str


def render_commands(title: str, address: str) -> Commands:
    """`title` and `address` are safe names: nothing in them means anything to a shell."""
    return Commands(
        login=f"runcode login --api-base {address} \\\n    --web-base {address}",
        connect=f"runcode connect {title} --start",
        in_shell=f"runcode shell --workspace {title}",
        config="runcode config-ssh",
        ssh=f"ssh runcode.{title}",
    )


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
    "channels": describe_channels,
    "forwarding": lambda name: _FORWARDINGS[name],
}
