"""`runcode get PATH [--out F]`: download one file; to stdout unless told otherwise."""

from __future__ import annotations

import os

from runcode.cli.arguments import new_parser
from runcode.cli.endings import ended_by_signals
from runcode.client import transfers

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("get", "Download a file from the attached workspace.", workspace=True)
    parser.add_argument("path", metavar="PATH", help="relative to the project folder")
    parser.add_argument("--out", metavar="F", help="to this file or folder instead of stdout")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    remote = context.remote(context.settings(options), None)
    with ended_by_signals():
        if options.out is not None:
            written = transfers.download_to_file(remote, options.path, options.out)
            context.output.notice(f"wrote {written}")
        else:
            transfers.download(remote, options.path, _write_stdout)
    return 0


def _write_stdout(chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(1, view) :]
