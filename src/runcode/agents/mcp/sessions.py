"""Whose attachment a call counts for: which agent session an MCP server serves.

What clients tell (found out with the real ones; docs/agents.md has the details):
Codex names the thread in every request's `_meta`; Claude Code gives its first session
in the environment and nothing in a request, so that after `/clear` or `/resume` only
a hook can tell (`client.agent_processes`); others tell nothing.

Guarantee: never another agent session's. Where nobody can tell, the server has a
session of its own, which ends with it. No tool takes a session as its argument: the
model, and whoever talks to it, could name somebody else's.
"""

from __future__ import annotations

import re

from runcode.client.agent_processes import find_remembered_session
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runcode.client.settings import Settings

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)

FROM_REQUEST = "client"
FROM_HOOK = "hook"
FROM_ENVIRONMENT = "environment"
OWN = "server"


class Caller(Value):
    """What the server knows of who calls. `thread_id` is from the request; `own_key` is made at its start."""

    client: str
    thread_id: str
    parent_pid: int
    own_key: str


class Owner(Value):
    """`key` as in `Settings.agent_session`; `told_by` is one of the words above."""

    key: str
    told_by: str


def parse_thread_id(client: str, meta: Mapping[str, object]) -> str:
    """Codex's session, empty when there is none. Only Codex's own fields are believed, and only from Codex.

    A subagent has a thread of its own within the session of its parent, whose attachment counts.
    """
    thread_id = meta.get("sessionId", meta.get("threadId")) if is_codex(client) else None
    return thread_id if isinstance(thread_id, str) and _ID.fullmatch(thread_id) else ""


def is_codex(client: str) -> bool:
    return client.startswith("codex")


def choose_owner(caller: Caller, settings: Settings) -> Owner:
    """`settings` are those of the server's own environment."""
    if caller.thread_id:
        return Owner(key=f"codex:{caller.thread_id}", told_by=FROM_REQUEST)
    if is_codex(caller.client):
        # A Codex that tells no thread: its environment may hold the session of whoever started it.
        return Owner(key=caller.own_key, told_by=OWN)
    remembered = find_remembered_session(settings, caller.parent_pid)
    if remembered is not None:
        return Owner(key=remembered, told_by=FROM_HOOK)
    if settings.agent_session is not None and caller.client in ("", "claude-code"):
        return Owner(key=settings.agent_session, told_by=FROM_ENVIRONMENT)
    return Owner(key=caller.own_key, told_by=OWN)
