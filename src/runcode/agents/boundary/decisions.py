"""What becomes of a tool call while a workspace is attached. Pure.

Guarantee: see the package. A shell command is passed only when `find_lone_command`
reads it as one plain call of `runcode` or as one that the person exempted; every
other one is sent to the box as one quoted word, or refused.
"""

from __future__ import annotations

import itertools
import os

from runcode.agents.boundary.requests import Request
from runcode.agents.boundary.rules import Rules, allows_whole, find_matching
from runcode.cli.arguments import split_command
from runcode.core.shell_text import Unclear, find_lone_command, list_commands
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runcode.agents.boundary.exemptions import Exemptions
    from runcode.agents.boundary.places import Places

PASS, REWRITE, ASK, DENY = "pass", "rewrite", "ask", "deny"
_INNER_COMMANDS = ("exec", "run", "local")
_INSTEAD = {
    "Read": "read it there with `runcode exec -- cat {path}` (or the RunCode tool `read`)",
    "Write": "write it there with the RunCode tool `write`, or `runcode exec -- 'cat > {path} <<\"END\"…'`",
    "Edit": "change it there with the RunCode tool `edit`, or an editor command through `runcode exec`",
    "MultiEdit": "change it there with the RunCode tool `edit`, or an editor command through `runcode exec`",
    "NotebookEdit": "change it there with the RunCode tool `edit`",
    "Glob": "list files there with `runcode exec -- find {path}` (or the RunCode tool `glob`)",
    "Grep": "search there with `runcode exec -- grep -rn WORD {path}` (or the RunCode tool `grep`)",
    "view_image": "bring it here first: `runcode get {path} --out FILE` outside of the project",
    "apply_patch": "change it there with the RunCode tool `edit`, or `runcode exec -- 'cat > FILE <<\"END\"…'`",
}


class Attached(Value):
    """What a session is attached to. `scope` as in an Attachment: the session's own, or the folder's."""

    workspace_id: int
    title: str
    workdir: str
    scope: str


class Decision(Value):
    """`command` replaces the shell text (REWRITE, or ASK where it would be sent); `reason` goes to the model."""

    kind: str
    reason: str = ""
    command: str = ""
    note: str = ""


def decide_shell(
    request: Request,
    attached: Attached,
    exemptions: Exemptions,
    *,
    agent_session: str,
    program: str,
    own_programs: frozenset[str],
    load_rules: Callable[[], Rules],
    forbids: Callable[[str], str | None] = lambda _command: None,
    places: Places | None = None,
) -> Decision:
    """What becomes of a shell command.

    `agent_session`: whose attachment the rewritten command is to use. `program`: how that calls us;
    `own_programs`: every word that means us.

    `forbids` says why a client's other rules refuse a command, or nothing. `places`: what
    `runcode get` must not write over.
    """
    command = request.tool_input.get("command")
    if not isinstance(command, str) or not command.strip() or "\0" in command:
        return Decision(kind=DENY, reason="the tool call holds no command that could be placed on a machine")
    words = find_lone_command(command)
    if words is not None and words[0] in own_programs:
        decided = _decide_own(request, words, load_rules(), forbids, places)
        plain = decided.kind == PASS and words[1:2] == ["exec"] and "--workspace" not in words
        return Decision(kind=PASS, note=_told(attached)) if plain else decided
    if words is not None and exemptions.cover_command(words):
        return Decision(kind=PASS, note="this ran on this laptop: the person exempted it")
    if words is None and _mentions_us(command, own_programs):
        return Decision(
            kind=DENY,
            reason="a call of `runcode` must stand alone, its words plain or in quotes: no `;`, `|`, `&`, `$`, "
            "redirection, comment or here-document around it. What belongs to the workspace goes into the quotes: "
            "runcode exec -- 'a | b > c'",
        )
    rules = load_rules()
    denied = find_matching(rules.deny, command)
    if denied is not None:
        return Decision(
            kind=DENY, reason=f"the person's own rule {denied} denies it, on the workspace as on this laptop"
        )
    forbidden = forbids(command)
    if forbidden is not None:
        return Decision(kind=DENY, reason=forbidden)
    rewritten = _render_exec(agent_session, attached, program, command)
    asking = find_matching(rules.ask, command)
    note = _told(attached)
    if asking is not None:
        return Decision(
            kind=ASK, reason=f"your rule {asking}; it would run on {attached.title}", command=rewritten, note=note
        )
    return Decision(kind=REWRITE, command=rewritten, note=note)


def _told(attached: Attached) -> str:
    return f"this runs on the workspace {attached.title} in {attached.workdir}, not on this laptop"


def _decide_own(
    request: Request, words: list[str], rules: Rules, forbids: Callable[[str], str | None], places: Places | None
) -> Decision:
    """One plain call of ours. What it would run is held against the person's rules; the rest is as they set it."""
    inner = _find_inner(words)
    if inner is not None:
        denied = find_matching(rules.deny, inner)
        reason = forbids(inner) if denied is None else f"the person's own rule {denied} denies it"
        if reason is not None:
            return Decision(kind=DENY, reason=reason)
        asking = find_matching(rules.ask, inner)
        if asking is not None:
            return Decision(kind=ASK, reason=f"your rule {asking}")
    if words[1:2] == ["local"]:
        # A rule as wide as `Bash` was written about other commands.
        named = tuple(rule for rule in rules.allow if rule.startswith("runcode local"))
        if not allows_whole(named, words):
            return Decision(kind=ASK, reason="this would run on your laptop, not on the workspace")
    elif inner is None and places is not None and _writes_over_us(request, words, places):
        return Decision(kind=DENY, reason="a file from the workspace cannot replace what RunCode itself goes by")
    return Decision(kind=PASS)


def _writes_over_us(request: Request, words: list[str], places: Places) -> bool:
    """Would `runcode get … --out X` land in one of our own folders, its exemptions among them?"""
    if words[1:2] != ["get"]:
        return False
    given = [after for before, after in itertools.pairwise(words) if before == "--out"]
    given += [word.partition("=")[2] for word in words if word.startswith("--out=")]
    return any(places.holds_guarded(os.path.join(request.cwd, one)) for one in given if "\0" not in one)


def _find_inner(words: list[str]) -> str | None:
    """The shell text that a call of `exec`, `run` or `local` would run; None for other calls."""
    from runcode.core.shellwords import join

    if len(words) < 2 or words[1] not in _INNER_COMMANDS:
        return None
    inner = split_command(words[2:], names=1 if words[1] == "run" else 0)[1]
    return inner[0] if len(inner) == 1 else join(inner)


def _mentions_us(command: str, own_programs: frozenset[str]) -> bool:
    """Does any simple command in it call us? What cannot be read does when our name stands in it."""
    try:
        found = list_commands(command)
    except Unclear:
        return "runcode" in command
    names = own_programs | {"runcode"}
    return any(word.literal in names for one in found for word in one.words[:1])


def _render_exec(agent_session: str, attached: Attached, program: str, command: str) -> str:
    from runcode.core.shellwords import quote

    pinned = f" --workspace {attached.workspace_id}" if attached.scope == "folder" else ""
    # For bash and zsh: inside single quotes everything is itself.
    quoted = "'" + command.replace("'", "'\\''") + "'"
    # Part of the key may come from the environment, which a project's settings can fill.
    return f"{program} exec --agent-session {quote(agent_session)}{pinned} -- {quoted}"


def decide_file_tool(request: Request, attached: Attached, places: Places, paths: list[str] | None) -> Decision:
    """A local file tool: refused for what belongs to the work, with what to use there instead."""
    shown = [path for path in paths or [] if places.belongs(path, tool=request.tool)]
    if paths is not None and not shown:
        return Decision(kind=PASS, note=f"that is a file of this laptop, not of the workspace {attached.title}")
    if shown and places.guards(shown[0]):
        return Decision(
            kind=DENY, reason="that is where RunCode keeps what it goes by: no tool touches it while attached"
        )
    path = _as_there(shown[0], places) if shown else "FILE"
    return Decision(
        kind=DENY,
        reason=f"this session works on the workspace {attached.title}: {request.tool} would touch this laptop's copy. "
        + _INSTEAD[request.tool].format(path=path)
        + ". The person can exempt a path of this laptop (local.toml); `runcode disconnect` ends the attachment",
    )


def _as_there(path: str, places: Places) -> str:
    """How the path is called on the box: relative to the project folder."""
    from runcode.core.shellwords import quote

    real = os.path.normpath(path)
    for folder in (*places.work, places.workdir):
        if real == folder or real.startswith(folder + "/"):
            return quote(os.path.relpath(real, folder))
    return quote(real)
