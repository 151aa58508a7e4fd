"""The `runcode` command line: a lazy table of commands and the one error boundary.

Owns: which commands exist, and how a failure looks: one line on stderr that says
what to type next, or a JSON object on stdout under `--json`; the exit status.

Guarantee: no exception's raw text and no traceback reaches the terminal; an
unknown one is written to a private file that the message names.
"""

from __future__ import annotations

import os
import sys

from runcode.cli.output import Output
from runcode.core.errors import EXIT_FAILURE, RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# Command → (module, exit status of our own failures or None for the code's, one line for `help`).
# A module with a dot stands in `agents`, the room above this one: named here, imported by nobody below.
COMMANDS: dict[str, tuple[str, int | None, str]] = {
    "login": ("login", None, "sign in with your browser; `login --paste` reads an API token"),
    "logout": ("logout", None, "forget the saved token"),
    "list": ("list", None, "your workspaces, and the next command to type for each"),
    "connect": ("connect", None, "attach a workspace here: mint or reuse a session"),
    "exec": ("exec", 255, "run a command on the attached workspace"),
    "run": ("run", 255, "run a command on a named workspace, without attaching"),
    "shell": ("shell", 255, "an interactive shell on a named workspace"),
    "get": ("get", None, "download a file or a folder"),
    "put": ("put", None, "upload a file or a folder"),
    "write": ("write", None, "stdin to a file on the workspace"),
    "context": ("context", None, "what is on the workspace: system, git, tools, in one round trip"),
    "forward": ("forward", None, "a local port to a port on the workspace"),
    "history": ("history", None, "what happened on a workspace: who ran what, and how it ended"),
    "current": ("current", None, "the workspace that is attached here"),
    "status": ("status", None, "every cached session with its expiry"),
    "statusline": ("statusline", None, "one line for a client's status line"),
    "stop": ("stop", None, "power a workspace down"),
    "disconnect": ("disconnect", None, "detach here and drop the session; the workspace goes on running"),
    "clean": ("clean", None, "close connections and wipe cached keys"),
    "config-ssh": ("config_ssh", None, "hosts for ssh, git, scp and editors in ~/.ssh/config"),
    "install-statusline": ("install_statusline", None, "the attached workspace in Claude Code's status line"),
    "install-path": ("install_path", None, "a link to runcode in ~/.local/bin"),
    "mcp": ("runcode.agents.mcp.command", None, "the workspace's tools for MCP clients; `mcp install` sets it up"),
    "doctor": ("doctor", None, "what may be wrong here, and what to type"),
    "completion": ("completion", None, "a completion script for bash, zsh, fish or powershell"),
    "local": ("local", 255, "run a command here, although a workspace is attached"),
    # Without a line of help: agents' hooks and ssh call them, not people.
    "hook": ("runcode.agents.boundary.hook", 2, ""),
    "proxy": ("proxy", 255, ""),
}
EXIT_INTERRUPTED = 130
# An agent's client takes it for "do not run it" (`agents.boundary`); any other failure of a hook it passes over.
EXIT_REFUSED = 2


def main(argv: list[str], environ: Mapping[str, str] | None = None, output: Output | None = None) -> int:
    """Run one command line (`argv[0]` is the program) and return its exit status."""
    environ = os.environ if environ is None else environ
    output = output if output is not None else Output.standard()
    words = argv[1:]
    as_json = "--json" in words[: words.index("--")] if "--" in words else "--json" in words
    failure_exit: int | None = None
    try:
        command = words[0] if words else "help"
        if command in ("help", "--help", "-h"):
            return _help(words[1:], environ, output)
        if command == "--version":
            from runcode import __version__

            output.line(f"runcode {__version__}")
            return 0
        if command not in COMMANDS:
            raise RunCodeError("usage", f"there is no command {command!r}")
        failure_exit = COMMANDS[command][1]
        return _run(command, words[1:], environ, output)
    except RunCodeError as error:
        output.failure(error, as_json=as_json and failure_exit is None)
        return error.kind.exit_status if failure_exit is None else failure_exit
    except KeyboardInterrupt:
        return EXIT_REFUSED if words[:1] == ["hook"] else EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody to tell.
        output.abandon()
        return EXIT_REFUSED if words[:1] == ["hook"] else EXIT_FAILURE
    except Exception as error:
        # The boundary: an unknown exception's text may hold a secret or an escape sequence.
        from runcode.cli.crash import record_crash

        internal = RunCodeError("internal", f"something unexpected went wrong ({record_crash(error, environ)})")
        output.failure(internal, as_json=as_json and failure_exit is None)
        return EXIT_FAILURE if failure_exit is None else failure_exit


def _run(command: str, words: list[str], environ: Mapping[str, str], output: Output) -> int:
    from runcode.cli.context import Context

    module = load_command(command)
    context = Context(environ, output)
    status: int = module.run(module.parse(words), context)
    output.flush()
    return status


def load_command(command: str) -> Any:
    """The command's module: its `parse(words)` and `run(options, context)`."""
    name = COMMANDS[command][0]
    module_name = name if "." in name else f"runcode.cli.commands.{name}"
    __import__(module_name)
    return sys.modules[module_name]


def _help(words: list[str], environ: Mapping[str, str], output: Output) -> int:
    if words:
        if words[0] not in COMMANDS:
            raise RunCodeError("usage", f"there is no command {words[0]!r}")
        return _run(words[0], ["--help"], environ, output)
    output.line("usage: runcode COMMAND …\n")
    for name, (_, _, summary) in COMMANDS.items():
        if summary:
            output.line(f"  {name:<20}{summary}")
    output.line("\n`runcode help COMMAND` (or `runcode COMMAND --help`) tells its options.")
    output.flush()
    return 0
