"""`runcode current`: the workspace that is attached here."""

from __future__ import annotations

from runcode.cli.arguments import new_parser
from runcode.cli.commands.status import render_expiry
from runcode.client import attachments, sessions, workspaces
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.settings import Settings


def parse(words: list[str]) -> argparse.Namespace:
    return new_parser("current", "The workspace that is attached here.", workspace=True, json=True).parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    settings = context.settings(options)
    workspace_id, title, scope = _find(settings)
    session = sessions.find_session(settings, workspace_id)
    if options.json:
        context.output.json(
            {
                "workspace_id": workspace_id,
                "title": title,
                "attached_by": scope,
                "api_base": settings.api_base,
                "workdir": None if session is None else session.workdir,
                "web_url": None if session is None else session.web_url,
                "expires_at": None if session is None else render_expiry(session),
                "expires_in_s": None if session is None else max(0, session.remaining_s()),
            }
        )
        return 0
    left = "no session" if session is None else f"session for {max(0, session.remaining_s()) // 60} min"
    context.output.line(f"{title} (id {workspace_id}), {left}, attached by {scope}")
    return 0


def _find(settings: Settings) -> tuple[int, str, str]:
    if settings.workspace is None:
        attachment = attachments.load_attachment(settings)
        return attachment.workspace_id, attachment.title, attachment.scope
    workspace_id = workspaces.find_cached_id(settings, settings.workspace)
    session = sessions.find_session(settings, workspace_id) if workspace_id is not None else None
    if session is None:
        raise RunCodeError(
            "not_attached",
            f"{settings.workspace!r} has no session here",
            resolution="attach it: `runcode connect WS`",
        )
    return session.workspace_id, session.user, "option"
