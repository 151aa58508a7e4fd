"""`runcode shell WS`: an interactive login shell, in the project folder."""

from __future__ import annotations

from runcode.cli.arguments import new_parser
from runcode.cli.commands.exec import open_standard_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("shell", "An interactive shell on a named workspace, or on the attached one.")
    parser.add_argument("workspace", metavar="WS", nargs="?", help="an id, a title or a custom title")
    parser.add_argument("--home", action="store_true", help="in $HOME instead of the project folder")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    open_standard_descriptors()
    return context.remote(context.settings(options), options.workspace).shell(home=options.home)
