"""`runcode connect WS`: a session for a workspace, attached to this agent session or folder."""

from __future__ import annotations

import time

from runcode.cli.arguments import new_parser, seconds, whole_seconds
from runcode.client import attachments, openssh, sessions, workspaces
from runcode.client.remote import Remote
from runcode.core.errors import RunCodeError
from runcode.core.wire import DEFAULT_TTL_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.sessions import Session
    from runcode.client.settings import Settings

DEFAULT_TIMEOUT_S = 180.0
_WAIT_PAUSE_S = 0.5


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("connect", "Mint or reuse a session and attach the workspace here.", json=True)
    parser.add_argument("workspace", metavar="WS", help="an id, a title or a custom title")
    parser.add_argument("--start", action="store_true", help="boot it if it is stopped, and wait until it runs")
    parser.add_argument("--wait", action="store_true", help="return when SSH really answers")
    parser.add_argument("--timeout", type=seconds, default=DEFAULT_TIMEOUT_S, help="for --start and --wait together")
    parser.add_argument("--ttl", type=whole_seconds, default=DEFAULT_TTL_S, help="seconds; the server caps it")
    parser.add_argument("--force", action="store_true", help="mint a new session in any case")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    settings = context.settings(options)
    deadline = time.monotonic() + options.timeout
    session, reused, started, title = _obtain(options, settings, context, deadline)
    if options.wait:
        session, reused = _wait(settings, session, reused, context, deadline)
    if not reused and session.clock_skew_s:
        ahead = "ahead of" if session.clock_skew_s > 0 else "behind"
        context.output.notice(
            f"warning: this machine's clock is {abs(session.clock_skew_s)} s {ahead} the server's; set it right, "
            "since certificates and logs depend on it"
        )
    attachments.attach(settings, session.workspace_id, session.user)
    if options.json:
        context.output.json(_as_json(session, title, settings, reused=reused, started=started))
        return 0
    minutes = max(0, session.remaining_s()) // 60
    context.output.line(
        f"attached {session.user} (id {session.workspace_id}) for {minutes} min; next: runcode exec -- CMD"
    )
    return 0


def _obtain(
    options: argparse.Namespace, settings: Settings, context: Context, deadline: float
) -> tuple[Session, bool, bool, str]:
    """(session, reused, started, title). No network when a cached session will do."""
    ttl_s = sessions.require_ttl(options.ttl)
    if not options.start and not options.force:
        cached_id = workspaces.find_cached_id(settings, options.workspace)
        cached = sessions.find_valid_session(settings, cached_id) if cached_id is not None else None
        if cached is not None:
            return cached, True, False, cached.user
    api = context.api(settings)
    target = workspaces.resolve(options.workspace, api)
    if options.start:
        session, reused, started = workspaces.start_and_mint(
            settings,
            target,
            api,
            deadline=deadline,
            notice=context.output.notice,
            ttl_s=ttl_s,
            force=options.force,
        )
    else:
        started = False
        session, reused = sessions.load_session(
            settings, target.workspace_id, lambda: api, ttl_s=ttl_s, force=options.force
        )
    return session, reused, started, session.user if target.listed is None else target.listed.title


def _wait(
    settings: Settings, session: Session, reused: bool, context: Context, deadline: float
) -> tuple[Session, bool]:
    """Until SSH answers. A box that has just started may not, and a cached session may be of before a stop."""
    remote = Remote(settings, session, lambda: context.api(settings))
    progress = workspaces.Progress(f"waiting for SSH on {session.user}", context.output.notice)
    while True:
        remaining_s = deadline - time.monotonic()
        try:
            remote.open(timeout_s=max(1.0, min(openssh.CONNECT_TIMEOUT_S, remaining_s)))
            return remote.session, reused and remote.session.generation == session.generation
        except RunCodeError as error:
            # A freshly minted key that is refused: the gateway may be ahead of its own facts.
            if error.code != "network" and not isinstance(error, openssh.AuthenticationRefused):
                raise
            if deadline - time.monotonic() < _WAIT_PAUSE_S:
                raise RunCodeError("not_ready", f"SSH on {session.user} does not answer: {error.message}") from error
        progress.tick()
        time.sleep(_WAIT_PAUSE_S)


def _as_json(session: Session, title: str, settings: Settings, *, reused: bool, started: bool) -> dict[str, object]:
    return {
        "workspace_id": session.workspace_id,
        "title": title,
        "alias": session.alias,
        "config": session.config_path,
        "command": openssh.render_command(session),
        "host": session.host,
        "port": session.port,
        "user": session.user,
        "web_url": session.web_url,
        "workdir": session.workdir,
        "expires_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(session.expires_at)),
        "started": started,
        "reused": reused,
        "statusline_installed": _is_statusline_installed(settings),
    }


def _is_statusline_installed(settings: Settings) -> bool:
    """Does Claude Code's settings.json run our status line? Anything unreadable counts as no."""
    import json
    import os

    folder = settings.environ.get("CLAUDE_CONFIG_DIR") or os.path.join(settings.environ.get("HOME", "/"), ".claude")
    try:
        with open(os.path.join(folder, "settings.json"), "rb") as file:
            line = json.loads(file.read(1024 * 1024))["statusLine"]["command"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return isinstance(line, str) and "runcode" in line and "statusline" in line
