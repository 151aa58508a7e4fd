"""What a command that a box was given was for, in the words that a person typed.

Owns: the way back from what `remote_command`, `remote_files`, `remote_trees` and
`remote_context` render. Called by whoever shows recorded commands; the client
does not need it.

Threat: a client hides something else in a text that looks like ours.

Guarantee: a text is described only when rendering it again, from what was read out
of it, gives the same text to the letter; for scripts, when the script is ours.
"""

from __future__ import annotations

import functools
import shlex

from runcode.core import remote_context, remote_files, remote_trees
from runcode.core.remote_command import parse_exec, render_script, render_shell
from runcode.core.shellwords import join, quote

_PATH_AT = 3  # nonce, algorithm, folder, then the path


def describe(command: str) -> str | None:
    """`runcode …` for a call of ours; None for anything else."""
    asked = parse_exec(command)
    if asked is not None:
        return f"runcode exec -- {join(asked[0])}"
    if command == render_shell(workdir=None):
        return "runcode shell --home"
    parsed = _parse_script(command)
    if parsed is None:
        return None
    script, arguments = parsed
    verb = _verbs().get(script)
    if verb is None:
        return None
    has_path = verb not in ("shell", "context", "forward") and len(arguments) > _PATH_AT
    return f"runcode {verb} {quote(arguments[_PATH_AT])}" if has_path else f"runcode {verb}"


def _parse_script(command: str) -> tuple[str, list[str]] | None:
    """What `render_script` was given; None for a text that it did not make, to the letter."""
    try:
        argv = shlex.split(command)
    except ValueError:
        return None
    if len(argv) < 5:
        return None
    script, arguments = argv[3], argv[5:]
    return (script, arguments) if render_script(script, *arguments) == command else None


@functools.cache
def _verbs() -> dict[str, str]:
    """Each script of ours → the command that sends it."""
    target = remote_files.RemoteFile(workdir="/", path="p", name="n")
    rendered = {
        "get": remote_files.render_download("0", algorithm="sha256", workdir="/", path="p"),
        "put": remote_files.render_upload("0", target, algorithm="sha256", size=None, mode=None),
        "put --resume": remote_files.render_partial("0", target, algorithm="sha256"),
        "get -r": remote_trees.render_tree_download("0", algorithm="sha256", workdir="/", path="p"),
        "put -r": remote_trees.render_tree_upload("0", algorithm="sha256", workdir="/", path="p", name="n"),
        "context": remote_context.render_context("0", workdir="/"),
        "forward": render_script("exec cat >/dev/null", "0"),
        "shell": render_shell(workdir="/"),
    }
    return {shlex.split(command)[3]: verb for verb, command in rendered.items()}
