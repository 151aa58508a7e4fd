"""`runcode run WS -- CMD`: run a command on a named workspace, without attaching it."""

from __future__ import annotations

from runcode.cli.arguments import new_parser, require_command, split_command
from runcode.cli.commands.exec import open_standard_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("run", "Run a command on a named workspace, in its project folder, without attaching it.")
    parser.usage = "runcode run WS [--home] -- CMD…"
    parser.add_argument("workspace", metavar="WS", help="an id, a title or a custom title")
    parser.add_argument("--home", action="store_true", help="in $HOME instead of the project folder")
    before, command = split_command(words, names=1)
    options = parser.parse_args(before)
    options.command = require_command(command, "runcode run WS")
    return options


def run(options: argparse.Namespace, context: Context) -> int:
    open_standard_descriptors()
    remote = context.remote(context.settings(options), options.workspace)
    return remote.execute(options.command, home=options.home)
