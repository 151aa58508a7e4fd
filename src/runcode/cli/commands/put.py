"""`runcode put LOCAL PATH`: upload one file; it appears whole under its final name, or not at all."""

from __future__ import annotations

from runcode.cli.arguments import new_parser
from runcode.cli.endings import ended_by_signals
from runcode.client import transfers

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("put", "Upload a file to the attached workspace.", workspace=True)
    parser.add_argument("local", metavar="LOCAL", help="a plain file here")
    parser.add_argument("path", metavar="PATH", help="its name there, relative to the project folder; or a folder")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    remote = context.remote(context.settings(options), None)
    with ended_by_signals():
        transfers.upload(remote, options.local, options.path)
    return 0
