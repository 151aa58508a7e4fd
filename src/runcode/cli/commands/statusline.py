"""`runcode statusline`: what the hot path (`cli.hot_statusline`) leaves to the full command line.

Reads the same input and prints the same line; it never fails either.
"""

from __future__ import annotations

import os
import sys

from runcode.cli.arguments import bare_parser
from runcode.cli.statusline_text import INPUT_MAX, parse_input, render
from runcode.client import attachments, sessions, workspaces
from runcode.client.settings import load_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.settings import Settings


def parse(words: list[str]) -> argparse.Namespace:
    parser = bare_parser("statusline", "One line for a client's status line; reads the client's JSON from stdin.")
    parser.add_argument("--plain", action="store_true", help="without colour and symbol")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    try:
        text = _find_line(context, plain=options.plain)
    except Exception:
        # Whatever it is, a client must not show it instead of the line; other commands will tell the person.
        return 0
    if text:
        context.output.raw(text)
    return 0


def _find_line(context: Context, *, plain: bool) -> str:
    claude, folder = parse_input(_read_input(context))
    environ = dict(context.environ)
    if claude is not None:
        environ["CLAUDE_CODE_SESSION_ID"] = claude
    if folder is not None:
        try:
            os.chdir(folder)
        except OSError:
            pass
    settings = load_settings(environ)
    workspace_id = _find_workspace(settings)
    session = None if workspace_id is None else sessions.find_session(settings, workspace_id)
    return "" if session is None else render(session.user, session.web_url, session.remaining_s(), plain=plain)


def _read_input(context: Context) -> bytes:
    if sys.platform == "win32":
        stdin = context.stdin
        return b"" if stdin is None or stdin.isatty() else stdin.read(INPUT_MAX)
    from runcode.cli.hot_statusline import read_input

    return read_input()


def _find_workspace(settings: Settings) -> int | None:
    if settings.workspace is not None:
        return workspaces.find_cached_id(settings, settings.workspace)
    attachment = attachments.find_attachment(settings, shared=False)
    return None if attachment is None else attachment.workspace_id
