"""`runcode clean`: close connections and wipe cached keys (of expired sessions, unless told otherwise)."""

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
    parser = new_parser(
        "clean", "Close connections and wipe cached keys: the expired ones, unless told more.", json=True
    )
    parser.add_argument("workspace", metavar="WS", nargs="?", help="this one, expired or not")
    parser.add_argument("--all", action="store_true", help="every one, expired or not, and every attachment")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    settings = context.settings(options)
    cleaned = [number for number in _chosen(options, settings) if sessions.drop_session(settings, number)]
    if options.all:
        for attachment in attachments.list_attachments(settings):
            attachments.detach(settings, attachment)
    if options.json:
        context.output.json({"cleaned": cleaned})
    else:
        context.output.line(f"wiped {len(cleaned)} session(s)")
    return 0


def _chosen(options: argparse.Namespace, settings: Settings) -> list[int]:
    if options.workspace is not None:
        workspace_id = workspaces.find_cached_id(settings, options.workspace)
        if workspace_id is None:
            raise RunCodeError(
                "not_found", f"{options.workspace!r} has no session here", resolution="see `runcode status`"
            )
        return [workspace_id]
    if options.all:
        # By folder, so that a session that cannot be read, or is of another server, goes too.
        return sessions.list_session_ids(settings)
    return [session.workspace_id for session in sessions.list_sessions(settings) if session.remaining_s() <= 0]
