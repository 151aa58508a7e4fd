"""`runcode stop [WS]`: power a workspace down on the control plane; its storage stays.

Only ever on a person's explicit request.
"""

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
    parser = new_parser("stop", "Power a workspace down; its storage stays.", json=True)
    parser.add_argument("workspace", metavar="WS", nargs="?", help="the attached one by default")
    parser.add_argument("--workspace", metavar="WS", dest="workspace_option", help="the same, as an option")
    parser.add_argument("--keep", action="store_true", help="detach, but keep the cached session")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    options.workspace = options.workspace or options.workspace_option
    settings = context.settings(options)
    api = context.api(settings)
    workspace_id = workspaces.resolve_id(settings, options.workspace, lambda: api)
    api.stop(workspace_id)
    detached = _detach(settings, workspace_id)
    sessions.drop_session(settings, workspace_id, keep=options.keep)
    if options.json:
        context.output.json({"stopped": True, "workspace_id": workspace_id, "detached": detached})
    else:
        context.output.line(
            f"stopped workspace {workspace_id}{' and detached it' if detached else ''}; "
            f"again: runcode connect {workspace_id} --start"
        )
    return 0


def _detach(settings: Settings, workspace_id: int) -> bool:
    """Detach what is attached here, if it is this workspace."""
    try:
        attachment = attachments.find_attachment(settings)
    except RunCodeError as error:
        if error.code != "ambiguous":
            raise
        return False
    if attachment is None or attachment.workspace_id != workspace_id:
        return False
    return attachments.detach(settings, attachment)
