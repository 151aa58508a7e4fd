"""`runcode forward PORT`: a port on the workspace, reached through one on this machine's loopback."""

from __future__ import annotations

from runcode.cli.arguments import new_parser
from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.forwards import Forward
    from runcode.client.settings import Settings


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser(
        "forward", "Reach a port of the attached workspace through a local one.", workspace=True, json=True
    )
    parser.add_argument("port", metavar="PORT", nargs="?", type=_port, help="the port on the workspace")
    parser.add_argument("--local", metavar="P", type=_port, help="the port here (the same one unless told otherwise)")
    parser.add_argument("--to", metavar="HOST", default="localhost", help="a host as the workspace sees it")
    parser.add_argument("--cancel", action="store_true", help="end it (all to PORT, or the one from `--local`)")
    parser.add_argument("--list", action="store_true", help="the live ones")
    options = parser.parse_args(words)
    if options.list == (options.port is not None) or (options.list and options.cancel):
        raise RunCodeError(
            "usage",
            "name a port, or ask for `--list`",
            resolution="`runcode forward PORT`, or `runcode forward --list`",
        )
    return options


def run(options: argparse.Namespace, context: Context) -> int:
    from runcode.client import forwards, platforms

    settings = context.settings(options)
    host = forwards.parse_target_host(options.to)
    if not platforms.current().can_multiplex:
        raise _unavailable(options, context, settings, host)
    if options.list:
        return _list(options, context, settings)
    if options.cancel:
        return _cancel(options, context, settings)
    remote = context.remote(settings, None)
    made = forwards.add_forward(remote, options.port, host=host, local_port=options.local)
    if options.json:
        context.output.json(_as_json(made, remote.session.workspace_id))
    else:
        context.output.line(_as_line(made))
    return 0


def _list(options: argparse.Namespace, context: Context, settings: Settings) -> int:
    from runcode.client import forwards, sessions, workspaces

    known = sessions.list_sessions(settings)
    if options.workspace is not None:
        chosen = workspaces.resolve_id(settings, None, lambda: context.api(settings))
        known = [session for session in known if session.workspace_id == chosen]
    found = [(session.workspace_id, f) for session in known for f in forwards.list_forwards(settings, session)]
    if options.json:
        context.output.json([_as_json(forward, workspace_id) for workspace_id, forward in found])
        return 0
    for workspace_id, forward in found:
        context.output.line(f"{_as_line(forward)}  (workspace {workspace_id})")
    if not found:
        context.output.notice("no forward is live: `runcode forward PORT` adds one")
    return 0


def _cancel(options: argparse.Namespace, context: Context, settings: Settings) -> int:
    from runcode.client import forwards, sessions, workspaces

    workspace_id = workspaces.resolve_id(settings, None, lambda: context.api(settings))
    session = sessions.find_session(settings, workspace_id)
    ended = [] if session is None else forwards.cancel_forwards(settings, session, options.port, options.local)
    if not ended:
        raise RunCodeError(
            "not_found", f"no live forward to port {options.port}", resolution="see `runcode forward --list`"
        )
    if options.json:
        context.output.json({"cancelled": [_as_json(forward, workspace_id) for forward in ended]})
    else:
        for forward in ended:
            context.output.line(f"ended: {_as_line(forward)}")
    return 0


def _unavailable(options: argparse.Namespace, context: Context, settings: Settings, host: str) -> RunCodeError:
    """Without a master there is nothing to add a forward to: say what to run instead."""
    from runcode.client import openssh

    port = options.port or 8080
    remote = context.remote(settings, None)
    words = openssh.render_command(remote.session)
    target = f"[{host}]" if ":" in host else host
    line = f"{words} -N -L 127.0.0.1:{options.local or port}:{target}:{port}"
    return RunCodeError(
        "unavailable", "this system's OpenSSH cannot share a connection", resolution=f"leave this running: {line}"
    )


def _as_json(forward: Forward, workspace_id: int) -> dict[str, object]:
    return {
        "workspace_id": workspace_id,
        "local_host": "127.0.0.1",
        "local_port": forward.local_port,
        "host": forward.host,
        "port": forward.port,
    }


def _as_line(forward: Forward) -> str:
    return f"127.0.0.1:{forward.local_port} → {forward.host}:{forward.port}"


def _port(text: str) -> int:
    import argparse

    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port between 1 and 65535")
    return int(text)
