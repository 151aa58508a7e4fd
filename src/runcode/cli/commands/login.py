"""`runcode login --paste`: take an API token, see that the server knows it, keep it."""

from __future__ import annotations

import os

from runcode.cli.arguments import new_parser
from runcode.client.api import Api
from runcode.client.settings import load_token, parse_token, save_token
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.settings import Settings

_PASTED_MAX = 8192


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("login", "Sign in with an API token; it is verified, then kept in a 0600 file.")
    parser.add_argument("--paste", action="store_true", help="read the token from a hidden prompt, or from stdin")
    parser.add_argument("--web-base", metavar="URL", help="the console's address")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    settings = context.settings(options)
    token = _read_token(options, settings, context)
    Api(settings.api_base, token, context.environ).verify_token()
    save_token(settings, token)
    context.output.line(f"signed in at {settings.api_base}; next: runcode list")
    return 0


def _read_token(options: argparse.Namespace, settings: Settings, context: Context) -> str:
    if options.token_file is not None or options.token is not None:
        return load_token(settings, context.stdin)
    if not options.paste:
        raise RunCodeError(
            "usage",
            "this version signs in with `--paste`",
            resolution=f"copy an API token from {settings.web_base}, or from your operator "
            "(`runcode-server token create`), and run `runcode login --paste`",
        )
    return parse_token(_prompt(context) if _on_terminal(context) else _read_line(context))


def _on_terminal(context: Context) -> bool:
    stdin = context.stdin
    return stdin is not None and stdin.isatty()


def _read_line(context: Context) -> str:
    stdin = context.stdin
    return stdin.readline(_PASTED_MAX).decode("ascii", "replace") if stdin is not None else ""


def _prompt(context: Context) -> str:
    """A prompt on stderr, and no echo."""
    import termios

    assert context.stdin is not None
    descriptor = context.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    hidden = before[:3] + [before[3] & ~termios.ECHO] + before[4:]
    os.write(2, b"API token: ")
    termios.tcsetattr(descriptor, termios.TCSAFLUSH, hidden)
    try:
        return _read_line(context)
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
        os.write(2, b"\n")
