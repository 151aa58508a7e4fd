"""`runcode local -- CMD`: run a command on this machine, and say so.

For an agent whose commands go to a workspace: the explicit, visible way to run
something here. What the person's permission rules say of it is the client's and the
hook's business (`agents.boundary`).
"""

from __future__ import annotations

import os

from runcode.cli.arguments import bare_parser, require_command
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context


def parse(words: list[str]) -> argparse.Namespace:
    parser = bare_parser("local", "Run a command on this machine, whatever is attached, and say so on stderr.")
    parser.usage = "runcode local -- CMD…   (one word is a shell command line, several are exact words)"
    at = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:at])
    options.command = require_command(words[at + 1 :], "runcode local")
    return options


def run(options: argparse.Namespace, context: Context) -> int:
    from runcode.client import platforms, processes

    words: list[str] = options.command
    if len(words) == 1:
        windows = platforms.current().is_windows
        words = [*(["cmd.exe", "/d", "/s", "/c"] if windows else ["/bin/sh", "-c"]), words[0]]
    program = words[0]
    if os.path.basename(program) == program:
        try:
            program = processes.find_program(program, context.environ)
        except RunCodeError as error:
            raise RunCodeError("not_found", f"{program!r} is not on PATH here", resolution="check its name") from error
    context.output.notice("running on this machine, not on a workspace")
    context.output.flush()
    try:
        platforms.replace_process([program, *words[1:]], context.environ)
    except OSError as error:
        raise RunCodeError("not_found", f"{program!r} cannot be run here", resolution="check its name") from error
