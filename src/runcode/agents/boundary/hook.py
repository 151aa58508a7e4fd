"""`runcode hook EVENT --client NAME`: what Claude Code and Codex call before and after what they do.

Owns: reading the person's state for a decision, and the exit status. `cli.hot_hook`
comes first and ends the call when nothing is attached.

Guarantee: before a tool runs, whatever goes wrong here ends with exit status 2 and one
line that says why, and the client runs nothing. Hooks for other events never stop the
client: they say less.
"""

from __future__ import annotations

import os
import sys

from runcode.agents.boundary import answers, requests
from runcode.agents.boundary.decisions import DENY, PASS, Attached, Decision, decide_file_tool, decide_shell
from runcode.cli.arguments import bare_parser
from runcode.core.errors import RunCodeError
from runcode.core.shell_text import find_lone_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from runcode.agents.boundary.requests import Request
    from runcode.cli.context import Context
    from runcode.client.attachments import Attachment
    from runcode.client.settings import Settings

# Claude Code's Monitor runs a command in the background.
_SHELL_TOOLS = ("Bash", "Monitor")
_MENDING = ("connect", "disconnect", "login", "list", "current", "status", "doctor", "help")


def parse(words: list[str]) -> argparse.Namespace:
    parser = bare_parser("hook", "Called by the plugin's hooks in Claude Code and Codex, with their JSON on stdin.")
    parser.add_argument("event", metavar="EVENT", choices=requests.EVENTS, help=", ".join(requests.EVENTS))
    parser.add_argument("--client", choices=requests.CLIENTS, required=True, help="who calls")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    try:
        request = requests.parse_request(options.client, options.event, _read_input())
        answer = _answer(request, context.environ)
    except Exception:
        if options.event == "pre-tool-use":
            raise
        # Exit status 2 would throw the person's prompt away.
        context.output.notice("the hook could not tell what is attached here; see `runcode doctor`")
        return 1
    if answer:
        # Whole: JSON that is cut is none, and a client then runs what it asked about. It is plain ASCII.
        context.output.raw(answer + "\n")
    return 0


def _read_input() -> bytes:
    from runcode.cli.hot_hook import read_input

    raw_input = read_input()
    if len(raw_input) > requests.INPUT_MAX:
        raise RunCodeError("bad_request", "the hook's input is too large")
    return raw_input


def _answer(request: Request, environ: Mapping[str, str]) -> str:
    if request.event == "session-start":
        _follow_session(request, environ)
    try:
        found = find_attached(request, environ)
    except RunCodeError:
        if _is_way_out(request, environ):
            return ""
        raise
    if found is None:
        return ""
    key, attached, settings = found
    program = _program(request, environ)
    if request.event == "session-start":
        return answers.render_context(request, answers.describe_start(attached, program))
    if request.event == "user-prompt-submit":
        return answers.render_context(request, answers.describe_briefly(attached))
    return answers.render_decision(request, _decide(request, key, attached, settings, program))


def _is_way_out(request: Request, environ: Mapping[str, str]) -> bool:
    """May this call mend what is in doubt, or tell of it? One plain call of a command that runs and copies nothing."""
    command = request.tool_input.get("command")
    if request.event != "pre-tool-use" or request.tool not in _SHELL_TOOLS or not isinstance(command, str):
        return False
    words = find_lone_command(command)
    return words is not None and words[0] in _own_programs(environ) and " ".join(words[1:2]) in _MENDING


def find_attached(request: Request, environ: Mapping[str, str]) -> tuple[str, Attached, Settings] | None:
    """(the session's key, what it is attached to, the settings that found it), or None.

    The key that shells of this session see comes first (it names an agent around
    this one too), then the session's own, which an MCP server may have used.
    """
    from runcode.client import attachments, sessions
    from runcode.core.names import DEFAULT_WORKDIR

    os.chdir(request.cwd)
    elsewhere: Attachment | None = None
    for key, settings in _all_settings(request, environ):
        records = attachments.list_records(settings)
        attachment = attachments.find_attachment(settings, shared=False)
        if attachment is None:
            # Signed out, a folder's attachment is in doubt too; signed in elsewhere, it is of another time.
            doubtful = [one for one in records if one.scope == "session" or settings.saved_base is None]
            elsewhere = elsewhere or (doubtful[0] if doubtful else None)
            continue
        session = sessions.find_session(settings, attachment.workspace_id)
        attached = Attached(
            workspace_id=attachment.workspace_id,
            title=attachment.title,
            workdir=DEFAULT_WORKDIR if session is None else session.workdir,
            scope=attachment.scope,
        )
        return key, attached, settings
    if elsewhere is not None:
        raise RunCodeError(
            "conflict",
            f"{elsewhere.title} is attached here, at a server where you are not signed in",
            resolution=f"`runcode login --api-base {elsewhere.api_base}`, or `runcode disconnect` with that option",
        )
    return None


def _all_settings(request: Request, environ: Mapping[str, str]) -> Iterator[tuple[str, Settings]]:
    """Each name of the session, at the server that its shells speak to and at the one that `login` stored."""
    from runcode.client.settings import load_settings, load_stored_settings

    for key in _keys(request, environ):
        yield key, load_settings(environ, agent_session=key)
        yield key, load_stored_settings(environ, agent_session=key)


def _keys(request: Request, environ: Mapping[str, str]) -> list[str]:
    from runcode.client.settings import agent_key, find_codex_session

    claude = request.session_id if request.client == "claude" else environ.get("CLAUDE_CODE_SESSION_ID")
    whole = agent_key(claude, request.session_id if request.client == "codex" else find_codex_session(environ))
    return [whole, request.agent_session] if whole and whole != request.agent_session else [request.agent_session]


def _follow_session(request: Request, environ: Mapping[str, str]) -> None:
    """Remember which session the client's process is in; after `/clear`, take its attachment along."""
    from runcode.client import agent_processes, attachments
    from runcode.client.settings import load_stored_settings

    pid = _client_pid(request, environ)
    if pid is None:
        return
    settings = load_stored_settings(environ, agent_session=request.agent_session)
    before = agent_processes.find_remembered_session(settings, pid)
    if request.source in ("clear", "compact") and before is not None and before != request.agent_session:
        attachments.copy_session_attachment(settings, before, request.agent_session)
    agent_processes.remember_session(settings, pid, request.agent_session)


def _client_pid(request: Request, environ: Mapping[str, str]) -> int | None:
    """The client's process: it starts a shell for the hook, and that shell us."""
    named = environ.get("CLAUDE_PID", "")
    if request.client == "claude" and named.isascii() and named.isdigit() and len(named) < 10:
        return int(named)
    from runcode.client.agent_processes import find_parent

    return find_parent(os.getppid())


def _decide(request: Request, key: str, attached: Attached, settings: Settings, program: str) -> Decision:
    from runcode.agents.boundary.exemptions import exemptions_path, load_exemptions
    from runcode.agents.boundary.places import PATH_ARGUMENTS, find_places, list_paths
    from runcode.agents.boundary.rules import NO_RULES, Rules, load_rules

    environ = settings.environ
    exemptions = load_exemptions(settings)
    guarded = (settings.config_folder, settings.cache_folder, exemptions_path(settings))
    places = find_places(request, environ, attached.workdir, exemptions, guarded=guarded)
    if request.tool in _SHELL_TOOLS:

        def own_rules() -> Rules:
            if request.client != "claude":
                return NO_RULES
            return load_rules(environ, environ.get("CLAUDE_PROJECT_DIR") or request.cwd)

        def forbids(command: str) -> str | None:
            if request.client != "codex":
                return None
            from runcode.agents.boundary.codex_rules import find_forbidding

            return find_forbidding(command, environ, request.cwd)

        decision = decide_shell(
            request,
            attached,
            exemptions,
            agent_session=key,
            program=program,
            own_programs=_own_programs(environ),
            load_rules=own_rules,
            forbids=forbids,
            places=places,
        )
        # A plain `runcode exec` of the model's own goes where that variable says.
        elsewhere = decision.kind == PASS and environ.get("RUNCODE_WORKSPACE")
        return Decision(kind=PASS) if elsewhere else decision
    if request.tool in PATH_ARGUMENTS or request.tool == "apply_patch":
        return decide_file_tool(request, attached, places, list_paths(request))
    return Decision(
        kind=DENY,
        reason=f"this session works on the workspace {attached.title}, and {request.tool} acts on this laptop. "
        "`runcode exec` runs a command there; `runcode disconnect` ends the attachment",
    )


def _program(request: Request, environ: Mapping[str, str]) -> str:
    """How a command calls us: Claude Code has the plugin's `bin` on PATH (and rules name `runcode`), Codex has not."""
    if request.client == "claude":
        return "runcode"
    from runcode.client.program import find_own_program
    from runcode.core.shellwords import quote

    launcher = os.path.join(environ.get("PLUGIN_ROOT") or "", "bin", "runcode")
    return quote(launcher if os.path.isabs(launcher) and os.access(launcher, os.X_OK) else find_own_program(environ))


def _own_programs(environ: Mapping[str, str]) -> frozenset[str]:
    """The words that call us. A relative path is none: a repository may hold a file of that name."""
    named = sys._xoptions.get("self")
    roots = [environ.get(name) for name in ("CLAUDE_PLUGIN_ROOT", "PLUGIN_ROOT")]
    programs = {os.path.join(root, "bin", "runcode") for root in roots if root and os.path.isabs(root)}
    if isinstance(named, str) and os.path.isabs(named):
        programs.add(named)
    return frozenset({"runcode", *programs, *(os.path.realpath(one) for one in programs)})
