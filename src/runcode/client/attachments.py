"""Attachments: which workspace a bare `exec` means here.

Owns: the files below `attachments/` in the cache, and the order in which they
are asked. An agent session has its own attachment; outside of one, a folder has.

Guarantee: no agent session ever sees another session's attachment, and one that
was made at another server counts for nothing at this one (ids repeat there).

Format, one field a line: header, scope (`session` or `folder`), its key as JSON,
API base, workspace id, title, time of attaching. The file's name is made from
scope and key, so the hot path finds it without a search.
"""

from __future__ import annotations

import json
import os
import time

from runcode.client.private_files import (
    ensure_private_folder,
    is_private_folder,
    read_private_file,
    remove_file,
    write_private_file,
)
from runcode.core import names
from runcode.core.digests import sha256_hex
from runcode.core.errors import RunCodeError
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runcode.client.settings import Settings

_FILES_KEPT = 50
_SESSION_KEPT_S = 30 * 24 * 3600
_HEADER = "runcode-attachment 1"


class Attachment(Value):
    """`scope` is `session` (an agent's) or `folder`; `key` the session's name or the folder's real path."""

    scope: str
    key: str
    api_base: str
    workspace_id: int
    title: str
    attached_at: int

    @property
    def file_name(self) -> str:
        return file_name(self.scope, self.key)


def file_name(scope: str, key: str) -> str:
    return f"{scope}-{sha256_hex(os.fsencode(key))[:32]}"


def attach(settings: Settings, workspace_id: int, title: str) -> Attachment:
    """Make this the attached workspace of the agent session, or of the current folder where there is none."""
    scope, key = ("folder", settings.cwd) if settings.agent_session is None else ("session", settings.agent_session)
    attachment = Attachment(
        scope=scope,
        key=key,
        api_base=settings.api_base,
        workspace_id=workspace_id,
        title=title,
        attached_at=int(time.time()),
    )
    ensure_private_folder(settings.cache_folder)
    folder = ensure_private_folder(_folder(settings))
    write_private_file(os.path.join(folder, attachment.file_name), _render(attachment))
    _forget_ended_sessions(folder)
    return attachment


def copy_session_attachment(settings: Settings, before: str, after: str) -> bool:
    """What agent session `before` is attached to, `after` is too: the same agent under a new name. Says whether."""
    if not is_private_folder(_folder(settings)):
        return False
    found = _load(settings, "session", before)
    if found is None:
        return False
    copied = Attachment(
        scope="session",
        key=after,
        api_base=found.api_base,
        workspace_id=found.workspace_id,
        title=found.title,
        attached_at=found.attached_at,
    )
    write_private_file(os.path.join(_folder(settings), copied.file_name), _render(copied))
    return True


def find_attachment(settings: Settings, *, shared: bool = True) -> Attachment | None:
    """The attachment that counts here, or None. Raises `ambiguous` in a plain terminal when several are live.

    In order: this agent session's, the nearest enclosing folder's, and, without
    any agent's environment and if `shared`, the only one there is anywhere.
    """
    if not is_private_folder(_folder(settings)):
        return None
    if settings.agent_session is not None:
        own = _load(settings, "session", settings.agent_session)
        if own is not None:
            return own
    folder = settings.cwd
    while True:
        nearest = _load(settings, "folder", folder)
        if nearest is not None:
            return nearest
        parent = os.path.dirname(folder)
        if parent == folder:
            break
        folder = parent
    return None if settings.in_agent or not shared else _find_only_one(settings)


def list_records(settings: Settings) -> list[Attachment]:
    """What is written down for this agent session and the folders around, at whatever server; the session's first.

    Raises `unsafe_path` when the folder of attachments is not ours alone, and `io_error`
    for a record that is there and cannot be read: for whom "nothing is attached" must be certain.
    """
    folder = _folder(settings)
    if not os.path.lexists(folder):
        return []
    if not is_private_folder(folder):
        raise RunCodeError("unsafe_path", f"{folder} is not a folder of yours alone")
    names_here = [] if settings.agent_session is None else [file_name("session", settings.agent_session)]
    at = settings.cwd
    while True:
        names_here.append(file_name("folder", at))
        if os.path.dirname(at) == at:
            break
        at = os.path.dirname(at)
    found = []
    for path in (os.path.join(folder, name) for name in names_here):
        if not os.path.lexists(path):
            continue
        record = _parse(read_private_file(path))
        if record is None:
            raise RunCodeError(
                "io_error", f"what is attached is unknown: {path} cannot be read", resolution="`runcode connect WS`"
            )
        found.append(record)
    return found


def load_attachment(settings: Settings) -> Attachment:
    """As `find_attachment`; raises `not_attached` when there is none."""
    attachment = find_attachment(settings)
    if attachment is None:
        raise RunCodeError("not_attached", "no workspace is attached here")
    return attachment


def list_attachments(settings: Settings) -> list[Attachment]:
    """Every attachment at this server, whoever's it is, newest first."""
    folder = _folder(settings)
    if not is_private_folder(folder):
        return []
    found = [_parse(read_private_file(os.path.join(folder, name))) for name in sorted(os.listdir(folder))]
    mine = [one for one in found if one is not None and one.api_base == settings.api_base]
    return sorted(mine, key=lambda one: -one.attached_at)


def detach(settings: Settings, attachment: Attachment) -> bool:
    """Forget the attachment. Says whether it was still there."""
    return remove_file(os.path.join(_folder(settings), attachment.file_name))


def _find_only_one(settings: Settings) -> Attachment | None:
    from runcode.client.sessions import find_session

    # Live ones: what an agent left behind days ago is nobody's present work.
    everyone = []
    for one in list_attachments(settings):
        session = find_session(settings, one.workspace_id)
        if session is not None and session.remaining_s() > 0:
            everyone.append(one)
    titles = {one.workspace_id: one.title for one in everyone}
    if len(titles) > 1:
        listed = ", ".join(f"{number} ({title})" for number, title in sorted(titles.items()))
        raise RunCodeError("ambiguous", f"several workspaces are attached, none of them here: {listed}")
    return everyone[0] if everyone else None


def _forget_ended_sessions(folder: str) -> None:
    """Agent sessions end without telling us. Theirs go after a month, when there are many."""
    names_there = os.listdir(folder)
    if len(names_there) <= _FILES_KEPT:
        return
    for name in names_there:
        path = os.path.join(folder, name)
        found = _parse(read_private_file(path))
        if found is not None and found.scope == "session" and found.attached_at < time.time() - _SESSION_KEPT_S:
            remove_file(path)


def _folder(settings: Settings) -> str:
    return os.path.join(settings.cache_folder, "attachments")


def _load(settings: Settings, scope: str, key: str) -> Attachment | None:
    found = _parse(read_private_file(os.path.join(_folder(settings), file_name(scope, key))))
    if found is None or (found.scope, found.key, found.api_base) != (scope, key, settings.api_base):
        return None
    return found


def _render(attachment: Attachment) -> bytes:
    key = json.dumps(attachment.key)
    fields = [_HEADER, attachment.scope, key, attachment.api_base, str(attachment.workspace_id)]
    return ("\n".join([*fields, attachment.title, str(attachment.attached_at)]) + "\n").encode()


def _parse(raw: bytes | None) -> Attachment | None:
    """None for what we did not write whole: half a file, another version's, somebody's edit."""
    lines = raw.decode("ascii", "replace").split("\n") if raw is not None else []
    if len(lines) != 8 or lines[0] != _HEADER or lines[1] not in ("session", "folder"):
        return None
    try:
        key = json.loads(lines[2])
    except (ValueError, RecursionError):
        return None
    digits = lines[4].isdigit() and len(lines[4]) <= 19 and lines[6].isdigit() and len(lines[6]) <= 19
    if not isinstance(key, str) or not digits or not names.is_title(lines[5]):
        return None
    return Attachment(
        scope=lines[1],
        key=key,
        api_base=lines[3],
        workspace_id=int(lines[4]),
        title=lines[5],
        attached_at=int(lines[6]),
    )
