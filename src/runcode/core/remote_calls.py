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
import re
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
from runcode.core.values import Value

# Numbers and ids, the one word that names a unit, grep's flags, and a log's name.
_NUMBER = re.compile(r"[0-9a-f]{1,32}|bytes|-F?i?|[0-9a-f]{8,32}\.(?:out|err)", re.ASCII)
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


def measure_script(command: bytes) -> int:
    """How many bytes of our own a command begins with: one of our scripts, to the letter; else 0.

    Cheap, for whoever bounds what is kept of a command: arguments of anybody's may follow, so it is `describe` that
    says whether the command is a call of ours.
    """
    return next((len(start) for start in _starts() if command.startswith(start)), 0)


class _AgentsCall(Value):
    """One tool's script: `words` as rendered once, which of them are free text, and which one is told."""

    verb: str
    words: list[str]
    free: tuple[int, ...]
    told: int


def _describe_agents_call(words: list[str]) -> str | None:
    """`runcode mcp …` for a script that an agent's tool ran through `exec`.

    Every word that is not free text has to be a number of ours: a shell's arithmetic
    runs what a "number" holds.
    """
    known = _agents_calls().get(words[2]) if len(words) > 4 else None
    if known is None or [*words[:2], words[3]] != [*known.words[:2], known.words[3]]:
        return None
    rest = words[len(known.words) :]
    paths_at = known.told if known.verb == "edit" else len(words)
    step = len(known.words) - paths_at if known.verb == "edit" else 0
    if len(words) < len(known.words) or (rest and not step) or (step and len(rest) % step):
        return None
    for at, word in enumerate(words[4:], 4):
        is_path = at >= paths_at and (at - paths_at) % step == 0
        expected = known.words[at] if at < len(known.words) else ""
        if not (is_path or at in known.free or word == expected or _NUMBER.fullmatch(word)):
            return None
    return f"runcode mcp {known.verb} {quote(words[known.told])}"


@functools.cache
def _agents_calls() -> dict[str, _AgentsCall]:
    budget = remote_runs.Budget.of(3)
    run = remote_runs.run_words("0", workdir="/", cwd=".", command="c", log_id="0", budget=budget)
    left = remote_runs.left_words("0", workdir="/", log_id="0", budget=budget)
    read = remote_reads.read_words("0", workdir="/", path="p", log="", by_lines=True, start=1, count=1, most=1)
    glob = remote_search.glob_words("0", workdir="/", path="p", pattern="*")
    grep = remote_search.grep_words(
        "0", workdir="/", path="p", pattern="x", glob="*", fixed=False, ignore_case=False, context=0
    )
    listed = remote_search.list_words("0", workdir="/", path="p")
    fetch = remote_edits.fetch_words("0", workdir="/", paths=["p"])
    commit, _ = remote_edits.commit_words("0", workdir="/", changes=[("p", b"", b"")])
    calls = (
        _AgentsCall(verb="exec", words=run, free=(5, 6, 7), told=7),
        _AgentsCall(verb="log", words=left, free=(5,), told=6),
        _AgentsCall(verb="read", words=read, free=(5, 6), told=6),
        _AgentsCall(verb="glob", words=glob, free=(5, 6, 7), told=6),
        _AgentsCall(verb="grep", words=grep, free=(5, 6, 7, 8), told=6),
        _AgentsCall(verb="list", words=listed, free=(5, 6), told=6),
        _AgentsCall(verb="edit", words=fetch, free=(5,), told=7),
        _AgentsCall(verb="edit", words=commit, free=(5,), told=7),
    )
    return {call.words[2]: call for call in calls}


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
def _starts() -> tuple[bytes, ...]:
    return tuple(render_script(script).encode() for script in _verbs())


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
