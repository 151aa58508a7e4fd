"""`runcode install-statusline`: our line in Claude Code's settings.json, or out of it."""

from __future__ import annotations

from runcode.cli.arguments import bare_parser
from runcode.client import claude_settings, program

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context


def parse(words: list[str]) -> argparse.Namespace:
    parser = bare_parser("install-statusline", "Show the attached workspace in Claude Code's status line.")
    parser.add_argument("--remove", action="store_true", help="take our status line out again")
    parser.add_argument("--force", action="store_true", help="replace another program's status line")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    path = claude_settings.settings_path(context.environ)
    command = None
    if options.remove:
        changed = claude_settings.remove_status_line(context.environ)
        told = f"took the status line out of {path}" if changed else f"{path} holds no status line of ours"
    else:
        lasting = program.ensure_lasting_program(context.settings(options))
        command = claude_settings.render_command(lasting)
        changed = claude_settings.install_status_line(context.environ, lasting, force=options.force)
        told = f"{'wrote' if changed else 'nothing to change: it is in'} {path}: {command}"
    if options.json:
        context.output.json({"path": path, "changed": changed, "command": command})
    else:
        context.output.line(told)
    return 0
