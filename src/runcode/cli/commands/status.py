"""`runcode status`: every cached session with its expiry."""

from __future__ import annotations

import time

from runcode.cli.arguments import new_parser
from runcode.client import attachments, openssh, sessions
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.sessions import Session
    from runcode.client.settings import Settings


def parse(words: list[str]) -> argparse.Namespace:
    return new_parser("status", "Every cached session with its expiry.", json=True).parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    settings = context.settings(options)
    attached_id = _find_attached_id(settings)
    listed = sessions.list_sessions(settings)
    rows = [_row(session, attached_id, settings) for session in listed]
    if options.json:
        context.output.json(rows)
        return 0
    if not rows:
        context.output.line("no session; next: runcode list")
    for session, row in zip(listed, rows, strict=True):
        left = f"{session.remaining_s() // 60} min left" if session.remaining_s() > 0 else "expired"
        live = ", connected" if row["connected"] else ""
        here = ", attached here" if row["attached"] else ""
        context.output.line(f"{session.workspace_id}  {session.user}  {left}{live}{here}")
    return 0


def render_expiry(session: Session) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(session.expires_at))


def _row(session: Session, attached_id: int | None, settings: Settings) -> dict[str, object]:
    return {
        "workspace_id": session.workspace_id,
        "title": session.user,
        "expires_at": render_expiry(session),
        "expires_in_s": max(0, session.remaining_s()),
        "connected": openssh.is_master_alive(session, settings.environ),
        "attached": session.workspace_id == attached_id,
    }


def _find_attached_id(settings: Settings) -> int | None:
    try:
        attachment = attachments.find_attachment(settings)
    except RunCodeError as error:
        if error.code != "ambiguous":
            raise
        return None
    return None if attachment is None else attachment.workspace_id
