"""`runcode exec -- CMD`: run a command on the attached workspace, at most once."""

from __future__ import annotations

import os
from argparse import SUPPRESS

from runcode.cli.arguments import new_parser, require_command, seconds, split_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.cli.output import Output
    from runcode.client import mux


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("exec", "Run a command on the attached workspace, in its project folder.", workspace=True)
    parser.usage = "runcode exec [OPTIONS] -- CMD…   (one word is a shell command line, several are exact words)"
    parser.add_argument("--home", action="store_true", help="in $HOME instead of the project folder")
    parser.add_argument("--tty", action="store_true", help="with a terminal, for interactive programs")
    parser.add_argument("--timeout", type=seconds, metavar="N", help="end it after N seconds and exit 124")
    # Written by the hooks of agents: whose attachment counts, whatever this shell's environment says.
    parser.add_argument("--agent-session", metavar="KEY", help=SUPPRESS)
    before, command = split_command(words)
    options = parser.parse_args(before)
    options.command = require_command(command, "runcode exec")
    return options


def run(options: argparse.Namespace, context: Context) -> int:
    open_standard_descriptors()
    remote = context.remote(context.settings(options), None)
    status = remote.execute(options.command, home=options.home, tty=options.tty, timeout_s=options.timeout)
    if remote.timed_out:
        _tell_timeout(context.output, options.timeout)
    return status


def report(status: int | None, call: mux.Call, timeout_s: float | None) -> int:
    """Say on stderr how a call of the hot path ended that was cut short; returns the status to exit with."""
    from runcode.cli.output import Output
    from runcode.client.remote import explain_lost_status

    output = Output.standard()
    if status is None:
        error = explain_lost_status(call)
        output.failure(error, as_json=False)
        return error.kind.exit_status
    _tell_timeout(output, timeout_s)
    return status


def _tell_timeout(output: Output, timeout_s: float | None) -> None:
    output.notice(f"timed_out: the command ran longer than {timeout_s:g} s and was ended")


def open_standard_descriptors() -> None:
    """A descriptor that we were started without becomes /dev/null, or ssh would be given some other file there."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
