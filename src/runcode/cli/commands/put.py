"""`runcode put LOCAL PATH`: upload a file, or with `-r` a folder, whole or not at all."""

from __future__ import annotations

from runcode.cli.arguments import new_parser
from runcode.cli.endings import ended_by_signals
from runcode.cli.progress import progress_bar
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("put", "Upload a file or a folder to the attached workspace.", workspace=True, json=True)
    parser.add_argument(
        "local", metavar="LOCAL", help="a plain file here; with -r a folder (`FOLDER/.`: what is in it)"
    )
    parser.add_argument("path", metavar="PATH", help="its name there, relative to the project folder; or a folder")
    parser.add_argument("-r", "--recursive", action="store_true", help="a folder with everything in it")
    parser.add_argument(
        "--resume", action="store_true", help="go on with a broken transfer; keep what arrived if it breaks"
    )
    parser.add_argument("--skip-special", action="store_true", help="with -r: leave out what cannot be copied safely")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    if options.recursive and options.resume:
        raise RunCodeError("usage", "`--resume` is for single files", resolution="leave it away: `-r` starts anew")
    from runcode.client.transfers import local_files

    with ended_by_signals():
        if options.recursive:
            return _put_folder(options, context)
        with local_files.open_source(options.local) as source:
            from runcode.client.transfers import files

            remote = context.remote(context.settings(options), None)
            with progress_bar(context.output, source.name) as progress:
                receipt = files.upload(
                    remote, source, options.path, name=source.name, resume=options.resume, progress=progress
                )
    if options.json:
        context.output.json(
            {
                "path": options.path,
                "bytes": receipt.size,
                receipt.algorithm: receipt.digest,
                "continued_at": receipt.continued_at,
            }
        )
    return 0


def _put_folder(options: argparse.Namespace, context: Context) -> int:
    from runcode.client.transfers import tree_upload

    source = tree_upload.open_folder(options.local, skip_special=options.skip_special)
    remote = context.remote(context.settings(options), None)
    with progress_bar(context.output, source.name) as progress:
        receipt = tree_upload.upload_tree(remote, source, options.path, progress=progress)
    for left_out in receipt.left_out:
        context.output.notice(f"left out: {left_out}")
    if options.json:
        context.output.json(
            {
                "path": options.path,
                "files": receipt.files,
                "bytes": receipt.size,
                "left_out": len(receipt.left_out),
                receipt.algorithm: receipt.digest,
            }
        )
    return 0
