"""`runcode disconnect`: detach here, close the connection, drop the session. Local only."""

from __future__ import annotations

from runcode.cli.arguments import new_parser
from runcode.client import attachments, sessions, workspaces
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.settings import Settings


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("disconnect", "Detach here; the workspace goes on running.", workspace=True, json=True)
    parser.add_argument("--keep", action="store_true", help="keep the cached session")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    settings = context.settings(options)
    workspace_id, title, detached = _detach(settings)
    others = [one for one in attachments.list_attachments(settings) if one.workspace_id == workspace_id]
    # Another agent session works over the same connection: it is not ours to cut.
    dropped = not others and sessions.drop_session(settings, workspace_id, keep=options.keep)
    if options.json:
        context.output.json({"workspace_id": workspace_id, "detached": detached, "closed": dropped})
    else:
        context.output.line(f"disconnected from {title} (id {workspace_id}); it goes on running")
    here = attachments.find_attachment(settings, shared=False)
    if here is not None:
        # An agent session's own attachment hid its folder's.
        context.output.notice(f"{here.title} (id {here.workspace_id}) is attached here now, by this {here.scope}")
    if others:
        context.output.notice(f"its connection stays: it is attached in {len(others)} other place(s)")
    return 0


def _detach(settings: Settings) -> tuple[int, str, bool]:
    if settings.workspace is None:
        attachment = attachments.load_attachment(settings)
        return attachment.workspace_id, attachment.title, attachments.detach(settings, attachment)
    workspace_id = workspaces.find_cached_id(settings, settings.workspace)
    if workspace_id is None:
        raise RunCodeError("not_attached", f"{settings.workspace!r} has no session here")
    found = attachments.find_attachment(settings, shared=False)
    if found is not None and found.workspace_id == workspace_id:
        return workspace_id, found.title, attachments.detach(settings, found)
    return workspace_id, settings.workspace, False
