"""Which workspace a person means, and bringing it up.

Owns: resolution of WS (id, title, custom title), `start` and the wait until the
server mints, power-off. Called by the commands.

Threat: `custom_title` of a shared workspace is chosen by somebody else, who may
name it like one of yours; a title therefore counts before any custom title.
"""

from __future__ import annotations

import time

from runcode.client import attachments, sessions
from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable
from runcode.core.values import Value
from runcode.core.wire import DEFAULT_TTL_S, RUNNING, STOPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runcode.client.api import Api
    from runcode.client.sessions import Session
    from runcode.client.settings import Settings
    from runcode.core.wire import Workspace

POLL_FIRST_S = 0.2
POLL_MAX_S = 2.0
# How long a server may take to say that a workspace which it was told to start is no longer stopped.
STOPPED_PATIENCE_S = 30.0
_NOTICE_EVERY_S = 10.0


class Target(Value):
    """A workspace by its id. `listed` is what the server's list says of it, None for a team's or an unlisted one."""

    workspace_id: int
    listed: Workspace | None = None


def find_cached_id(settings: Settings, wanted: str) -> int | None:
    """The id behind an id or a title that a cached session knows; no network is used."""
    if _is_id(wanted):
        return int(wanted)
    for session in sessions.list_sessions(settings):
        if session.user == wanted:
            return session.workspace_id
    return None


def resolve(wanted: str, api: Api) -> Target:
    """WS → workspace. Raises `not_found`, or `ambiguous` with the ids.

    A numeric id need not be in any list (a team's workspace).
    """
    listed = api.list_workspaces()
    if _is_id(wanted):
        by_id = [one for one in listed if one.id == int(wanted)]
        return Target(workspace_id=int(wanted), listed=by_id[0] if by_id else None)
    matches = (
        [one for one in listed if one.title == wanted]
        or [one for one in listed if one.custom_title == wanted]
        or [one for one in listed if one.custom_title.casefold() == wanted.casefold()]
    )
    if not matches:
        raise RunCodeError("not_found", f"no workspace is called {wanted!r}")
    if len(matches) > 1:
        named = ", ".join(f"{one.id} ({one.title})" for one in matches)
        raise RunCodeError("ambiguous", f"{wanted!r} is the name of several workspaces: {named}")
    return Target(workspace_id=matches[0].id, listed=matches[0])


def resolve_id(settings: Settings, wanted: str | None, make_api: Callable[[], Api]) -> int:
    """The id of WS, else of `--workspace`, else of what is attached here. Raises `not_attached`."""
    wanted = wanted or settings.workspace
    if wanted is None:
        return attachments.load_attachment(settings).workspace_id
    cached = find_cached_id(settings, wanted)
    return cached if cached is not None else resolve(wanted, make_api()).workspace_id


def start_and_mint(
    settings: Settings,
    target: Target,
    api: Api,
    *,
    deadline: float,
    notice: Callable[[str], None],
    ttl_s: int = DEFAULT_TTL_S,
    force: bool = False,
) -> tuple[Session, bool, bool]:
    """See that the workspace runs; returns (session, reused, started).

    Raises `start_failed`, or `not_ready` when `deadline` (monotonic) came first.
    The mint is the witness: it answers 409 until SSH may be used, also for a
    workspace that stands in no list.
    """
    listed = target.listed
    if listed is not None and not listed.ssh_capable:
        raise RunCodeError("conflict", f"{listed.title} has no SSH", resolution="choose another one: `runcode list`")
    started = listed is None or listed.state != RUNNING
    if listed is None:
        try:
            return (*sessions.load_session(settings, target.workspace_id, lambda: api, ttl_s=ttl_s, force=True), False)
        except RunCodeError as error:
            if error.code != "conflict":
                raise
    if started:
        # A session of before the stop would look valid.
        sessions.drop_session(settings, target.workspace_id)
        api.start(target.workspace_id)
    name = listed.title if listed is not None else str(target.workspace_id)
    progress = Progress(f"starting {name}", notice)
    pause_s = POLL_FIRST_S
    seen_working = False
    began = time.monotonic()
    while True:
        try:
            session, reused = sessions.load_session(
                settings, target.workspace_id, lambda: api, ttl_s=ttl_s, force=force
            )
            return session, reused, started
        except RunCodeError as error:
            if error.code != "conflict":
                raise
        if listed is not None:
            state = next((one.state for one in api.list_workspaces() if one.id == listed.id), None)
            if state == STOPPED and seen_working:
                raise RunCodeError("start_failed", f"{name} was starting and stopped again")
            if state == STOPPED and time.monotonic() - began > STOPPED_PATIENCE_S:
                # Somebody stopped it before our first look, say. Starting it again would override that person.
                raise RunCodeError("start_failed", f"{name} was told to start, and is still stopped")
            seen_working = seen_working or (state is not None and state != STOPPED)
        if time.monotonic() + pause_s > deadline:
            raise RunCodeError("not_ready", f"{name} is not running yet")
        progress.tick()
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, POLL_MAX_S)


class Progress:
    """Says on stderr what is waited for: at once, and then every ten seconds."""

    def __init__(self, what: str, notice: Callable[[str], None]) -> None:
        self._what = printable(what)
        self._notice = notice
        self._began = time.monotonic()
        self._next_s = 0.0

    def tick(self) -> None:
        waited_s = time.monotonic() - self._began
        if waited_s >= self._next_s:
            self._notice(f"{self._what} … {waited_s:.0f} s" if self._next_s else f"{self._what} …")
            self._next_s += _NOTICE_EVERY_S


def _is_id(wanted: str) -> bool:
    return wanted.isascii() and wanted.isdigit() and len(wanted) <= 18 and int(wanted) > 0
