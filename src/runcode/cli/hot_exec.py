"""`runcode exec` over a live master, in its plain form.

Owns: the short way only. Anything unusual (another option, no attachment, a
session to mint, no live master, a refused channel) is left to
`cli.commands.exec` by returning None, and then nothing has been started.

Guarantee: as in `client.mux`: a command is sent once, and None is returned only
when it provably did not start.
"""

import posix
import sys
import time

from runcode.cli.hot_state import (
    RENEW_BEFORE_EXPIRY_S,
    Unusual,
    find_agent,
    find_attached,
    find_base,
    find_folders,
    find_session,
    is_number,
    is_workdir,
)
from runcode.client import mux
from runcode.core.remote_command import render_exec


def run(argv: list[str]) -> int | None:
    try:
        home, timeout_s, workspace, agent_session, words = _parse(argv)
        for number in (0, 1, 2):
            posix.fstat(number)
        session = _find_session(workspace, agent_session)
        encoding = sys.getfilesystemencoding()
        control_path = session[b"control_path"].decode(encoding, "surrogateescape")
        config_path = (session[b"folder"] + b"/config").decode(encoding, "surrogateescape")
        route = mux.Route(control_path, config_path, "runcode-" + session[b"user"].decode())
        nonce = posix.urandom(16).hex()
        workdir = None if home else session[b"workdir"].decode()
        text = render_exec(words, workdir=workdir, nonce=nonce)
        command = text.encode(encoding, "surrogateescape")
    except (Unusual, OSError, KeyError, ValueError):
        return None
    if len(command) > mux.COMMAND_MAX:
        return None
    master = mux.find_master(control_path)
    if master is None:
        return None
    call = mux.Call(master, lambda: mux.find_master_pid(control_path) is not None)
    with mux.Guard(call, route, nonce, timeout_s) as guard:
        outcome, status = call.run(command)
    if outcome != mux.STARTED:
        return None
    result = guard.result(status)
    if result is None or guard.timed_out:
        from runcode.cli.commands.exec import report

        return report(result, call, timeout_s)
    return result


def _parse(argv: list[str]) -> tuple[bool, float | None, bytes, bytes, list[str]]:
    """`exec [--home] [--timeout N] [--workspace ID] [--agent-session KEY] -- CMD…` → each of them, or nothing."""
    home, timeout_s, workspace, agent_session, at = False, None, b"", b"", 2
    while argv[at : at + 1] != ["--"]:
        option = argv[at] if at < len(argv) else ""
        if option == "--home":
            home = True
        elif option == "--agent-session" and at + 1 < len(argv) and argv[at + 1]:
            at += 1
            agent_session = argv[at].encode()
        elif option in ("--timeout", "--workspace") and at + 1 < len(argv) and len(argv[at + 1]) <= 9:
            at += 1
            number = argv[at].encode("ascii", "replace")
            if not is_number(number):
                raise Unusual
            if option == "--timeout":
                timeout_s = float(number)
            else:
                workspace = number
        else:
            raise Unusual
        at += 1
    words = argv[at + 1 :]
    if not words:
        raise Unusual
    return home, timeout_s, workspace, agent_session, words


def _find_session(workspace: bytes, agent_session: bytes = b"") -> dict[bytes, bytes]:
    """The session of the workspace with this id, else of what is attached to this (or that) agent session."""
    environ = posix.environ
    if not agent_session:
        workspace = workspace or environ.get(b"RUNCODE_WORKSPACE", b"")
    if workspace:
        if not is_number(workspace):
            raise Unusual
        session = find_session(environ, int(workspace), find_base(environ, find_folders(environ)[0]))
    else:
        key, in_agent = (agent_session, True) if agent_session else find_agent(environ)
        attached = find_attached(environ, key, in_agent, posix.getcwdb())
        session = None if attached is None else find_session(environ, attached[0], attached[2])
    if session is None or int(session[b"expires_at"]) - int(time.time()) <= RENEW_BEFORE_EXPIRY_S:
        raise Unusual
    if not is_workdir(session[b"workdir"]) or not session[b"control_path"].startswith(b"/"):
        raise Unusual
    return session
