"""`runcode completion SHELL`: a completion script on stdout."""

from __future__ import annotations

from runcode.cli.arguments import bare_parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context


def parse(words: list[str]) -> argparse.Namespace:
    parser = bare_parser("completion", "Print a completion script; its first line says how to load it.")
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "powershell"), help="your shell")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    from runcode.cli.completion import render

    for line in render(options.shell).splitlines():
        context.output.line(line)
    return 0
