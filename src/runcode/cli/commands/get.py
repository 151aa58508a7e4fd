"""`runcode get PATH [--out F]`: download a file, to stdout unless told otherwise; with `-r` a folder."""

from __future__ import annotations

from runcode.cli.arguments import new_parser
from runcode.cli.endings import ended_by_signals
from runcode.cli.progress import progress_bar
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.remote import Remote


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("get", "Download a file or a folder from the attached workspace.", workspace=True, json=True)
    parser.add_argument(
        "path", metavar="PATH", help="relative to the project folder; with -r `FOLDER/.`: what is in it"
    )
    parser.add_argument("--out", metavar="F", help="to this file or folder (else stdout; with -r the current folder)")
    parser.add_argument("-r", "--recursive", action="store_true", help="a folder with everything in it")
    parser.add_argument(
        "--resume", action="store_true", help="go on with a broken transfer; keep what arrived if it breaks"
    )
    parser.add_argument("--skip-special", action="store_true", help="with -r: leave out what cannot be copied safely")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    if options.out is None and not options.recursive and (options.json or options.resume):
        raise RunCodeError(
            "usage", "`--json` and `--resume` need a file to download to", resolution="name it with `--out F`"
        )
    if options.recursive and options.resume:
        raise RunCodeError("usage", "`--resume` is for single files", resolution="leave it away: `-r` starts anew")
    remote = context.remote(context.settings(options), None)
    with ended_by_signals():
        if options.recursive:
            return _get_folder(remote, options, context)
        from runcode.client.transfers import files

        if options.out is None:
            files.download(remote, options.path, 1)
            return 0
        with progress_bar(context.output, options.path) as progress:
            written, receipt = files.download_to_file(
                remote, options.path, options.out, resume=options.resume, progress=progress
            )
    if options.json:
        context.output.json(
            {
                "path": written,
                "bytes": receipt.size,
                receipt.algorithm: receipt.digest,
                "continued_at": receipt.continued_at,
            }
        )
    else:
        context.output.notice(f"wrote {written}")
    return 0


def _get_folder(remote: Remote, options: argparse.Namespace, context: Context) -> int:
    from runcode.client.transfers import tree_download

    with progress_bar(context.output, options.path) as progress:
        written, receipt = tree_download.download_tree(
            remote,
            options.path,
            options.out if options.out is not None else ".",
            skip_special=options.skip_special,
            progress=progress,
        )
    for left_out in receipt.left_out:
        context.output.notice(f"left out: {left_out}")
    if options.json:
        context.output.json(
            {
                "path": written,
                "files": receipt.files,
                "bytes": receipt.size,
                "left_out": len(receipt.left_out),
                receipt.algorithm: receipt.digest,
            }
        )
    else:
        context.output.notice(f"wrote {written}")
    return 0
