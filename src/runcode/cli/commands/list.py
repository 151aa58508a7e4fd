"""`runcode list`: own and shared workspaces, each with the next command to type."""

from __future__ import annotations

from runcode.cli.arguments import new_parser
from runcode.core.terminal import printable
from runcode.core.wire import STOPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.core.wire import Workspace


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("list", "Your workspaces and those shared with you.", json=True)
    parser.add_argument("--all", action="store_true", help="also those without SSH")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    listed = context.api(context.settings(options)).list_workspaces()
    shown = [one for one in listed if one.ssh_capable or options.all]
    if options.json:
        context.output.json([_as_json(one) for one in shown])
        return 0
    if not shown:
        hidden = " with SSH (see `runcode list --all`)" if listed else ""
        context.output.line(f"you have no workspace{hidden}")
    for one in shown:
        shared = "  (shared)" if one.shared else ""
        name = f"  {printable(one.custom_title, limit=60)}" if one.custom_title.strip() else ""
        context.output.line(f"{one.id}  {one.title}  {one.state}{name}{shared}\n    {_next_step(one)}")
    return 0


def _as_json(one: Workspace) -> dict[str, object]:
    return {
        "id": one.id,
        "title": one.title,
        "custom_title": printable(one.custom_title),
        "state": one.state,
        "shared": one.shared,
        "connectable": one.connectable,
    }


def _next_step(one: Workspace) -> str:
    if not one.ssh_capable:
        return "(no SSH)"
    # The id, not the title: it means one workspace whatever others are called.
    return f"runcode connect {one.id}" + (" --start" if one.state == STOPPED else "" if one.connectable else " --wait")
