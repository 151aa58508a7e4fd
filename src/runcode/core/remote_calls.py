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

from runcode.core import (
    remote_context,
    remote_edits,
    remote_files,
    remote_reads,
    remote_runs,
    remote_search,
    remote_trees,
)
from runcode.core.remote_command import parse_exec, render_script, render_shell
from runcode.core.shellwords import join, quote

_PATH_AT = 3  # nonce, algorithm, folder, then the path


def describe(command: str) -> str | None:
    """`runcode …` for a call of ours; None for anything else."""
    asked = parse_exec(command)
    if asked is not None:
        for_agents = _describe_agents_call(asked[0])
        if for_agents is not None:
            return for_agents
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


def _describe_agents_call(words: list[str]) -> str | None:
    """`runcode mcp …` for a script that an agent's tool ran through `exec`."""
    if len(words) < 7 or words[:2] != ["/bin/sh", "-c"] or words[3] != "runcode":
        return None
    verb, at = _agents_verbs().get(words[2], ("", 0))
    return f"runcode mcp {verb} {quote(words[at])}" if verb and at < len(words) else None


@functools.cache
def _agents_verbs() -> dict[str, tuple[str, int]]:
    """Each script of a tool → (the tool, which of its words says what it was about)."""
    budget = remote_runs.Budget.of(3)
    rendered = {
        ("exec", 7): remote_runs.run_words("0", workdir="/", cwd=".", command="c", log_id="0", budget=budget),
        ("log", 6): remote_runs.left_words("0", workdir="/", log_id="0", budget=budget),
        ("read", 6): remote_reads.read_words(
            "0", workdir="/", path="p", log="", by_lines=True, start=1, count=1, most=1
        ),
        ("glob", 6): remote_search.glob_words("0", workdir="/", path="p", pattern="*"),
        ("grep", 6): remote_search.grep_words(
            "0", workdir="/", path="p", pattern="x", glob="*", fixed=False, ignore_case=False, context=0
        ),
        ("list", 6): remote_search.list_words("0", workdir="/", path="p"),
        ("edit", 7): remote_edits.fetch_words("0", workdir="/", paths=["p"]),
    }
    commit, _ = remote_edits.commit_words("0", workdir="/", changes=[("p", b"", b"")])
    return {words[2]: name for name, words in rendered.items()} | {commit[2]: ("edit", 7)}


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
        "put -r": remote_trees.render_tree_upload(
            "0", algorithm="sha256", workdir="/", path="p", name="n", is_big=False
        ),
        "context": remote_context.render_context("0", workdir="/"),
        "forward": render_script("exec cat >/dev/null", "0"),
        "shell": render_shell(workdir="/"),
    }
    return {shlex.split(command)[3]: verb for verb, command in rendered.items()}
