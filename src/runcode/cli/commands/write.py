"""`runcode write PATH`: stdin to a file on the box, replaced in one step; its mode is kept."""

from __future__ import annotations

from runcode.cli.arguments import new_parser
from runcode.cli.endings import ended_by_signals
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("write", "Write stdin to a file on the attached workspace.", workspace=True, json=True)
    parser.add_argument("path", metavar="PATH", help="relative to the project folder; missing folders are made")
    parser.add_argument("--file", metavar="F", help="this file's content instead of stdin")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    from runcode.client.transfers import files, local_files

    if options.file is None and options.token_file == "-":
        raise RunCodeError("usage", "stdin cannot be both the token and the content", resolution="name one as a file")
    with ended_by_signals():
        source = local_files.open_stdin() if options.file is None else local_files.open_source(options.file)
        with source:
            # The target's own mode stays, whoever brings the content.
            source.mode = None
            remote = context.remote(context.settings(options), None)
            receipt = files.upload(remote, source, options.path, make_parents=True)
    if options.json:
        context.output.json({"path": options.path, "bytes": receipt.size, receipt.algorithm: receipt.digest})
    return 0
