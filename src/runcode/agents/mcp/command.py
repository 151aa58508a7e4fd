"""`runcode mcp`: the MCP server on stdin and stdout; `runcode mcp install`: into a client's settings.

The command line runs without site-packages; the server needs them (the SDK), so this
process becomes the same interpreter with them. Never: import the SDK here.
"""

from __future__ import annotations

import os
import sys

from runcode.cli.arguments import bare_parser
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context

CLIENTS = ("claude", "codex", "gemini", "cursor", "vscode", "zed")
SCOPES = ("user", "project")


def parse(words: list[str]) -> argparse.Namespace:
    parser = bare_parser("mcp", "Serve the workspace's tools to an MCP client, or put that into a client's settings.")
    parser.add_argument(
        "action", nargs="?", choices=("serve", "install"), default="serve", help="serve on stdin and stdout (default)"
    )
    parser.add_argument("--client", choices=CLIENTS, help="install: whose settings")
    parser.add_argument("--scope", choices=SCOPES, default="user", help="install: for you, or for the current project")
    parser.add_argument("--remove", action="store_true", help="install: take it out again")
    parser.add_argument("--force", action="store_true", help="install: replace another server of this name")
    parser.add_argument("--json", action="store_true", help="install: the result as JSON on stdout")
    options = parser.parse_args(words)
    if (options.action == "install") != (options.client is not None):
        raise RunCodeError(
            "usage", "`install` and `--client` go together", resolution="`runcode mcp install --client claude`"
        )
    return options


def run(options: argparse.Namespace, context: Context) -> int:
    if options.action == "install":
        return _install(options, context)
    return _serve()


def _serve() -> int:
    server = os.path.join(os.path.dirname(os.path.abspath(__file__)), "start.py")
    named = sys._xoptions.get("self")
    argv = [sys.executable, "-I", *(["-X", f"self={named}"] if isinstance(named, str) else []), server]
    if sys.platform == "win32":
        # There a process that becomes another one looks ended to whoever started it.
        import subprocess

        return subprocess.call(argv)
    return os.execv(sys.executable, argv)  # noqa: S606 (our own interpreter, by its absolute path)


def _install(options: argparse.Namespace, context: Context) -> int:
    from runcode.agents.mcp import registration
    from runcode.client import program

    settings = context.settings(options)
    wish = registration.Wish(
        client=options.client,
        scope=options.scope,
        program=program.ensure_lasting_program(settings),
        force=options.force,
        environ=settings.environ,
        cwd=settings.cwd,
    )
    done = registration.remove(wish) if options.remove else registration.install(wish)
    if options.json:
        context.output.json(
            {
                "client": options.client,
                "scope": options.scope,
                "path": done.path,
                "changed": done.changed,
                "installed": not options.remove,
                "command": None if options.remove else [wish.program, "mcp"],
            }
        )
        return 0
    verb = "took the server out of" if options.remove else "put the server into"
    context.output.line(f"{verb} {done.path}" if done.changed else f"nothing to change in {done.path}")
    return 0
