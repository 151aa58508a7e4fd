"""`runcode statusline`: what this agent session works on, for the client's status line.

Owns: reading what the client pipes in, and who is asking. The state is read by
`hot_state`; what that finds unusual goes to `cli.commands.statusline`, which
uses the same input and the same look (`statusline_text`).

Guarantee: no network, no wait, no failure: whatever goes wrong, nothing is
printed and the exit status is 0. Only what is attached to this session or to
this project is shown, and only while its session is valid.
"""

import posix
import time

from runcode.cli.hot_state import find_agent, find_attached, find_session
from runcode.cli.statusline_text import INPUT_MAX, parse_input, render

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

_PATIENCE_S = 2.0
_input: bytes | None = None


def run(argv: list[str]) -> int | None:
    try:
        if argv[2:] not in ([], ["--plain"]) or posix.environ.get(b"RUNCODE_WORKSPACE"):
            return None
        text = _find_line(plain=len(argv) == 3)
    except Exception:
        # Mostly Unusual; a status line has nobody to tell of the rest.
        return None
    if text:
        try:
            posix.write(1, text.encode())
        except OSError:  # nobody looks at it
            pass
    return 0


def _find_line(*, plain: bool) -> str:
    claude, folder = parse_input(read_input())
    if folder is not None:
        try:
            posix.chdir(folder)
        except OSError:
            pass
    environ = posix.environ
    agent_session = find_agent(environ, None if claude is None else claude.encode("utf-8", "surrogateescape"))[0]
    # Never the only one that is attached anywhere: that is for a person's terminal.
    attached = find_attached(environ, agent_session, True, posix.getcwdb())
    session = None if attached is None else find_session(environ, attached[0], attached[2])
    if session is None:
        return ""
    web_url = None if session[b"web_url"] == b"null" else session[b"web_url"].decode("ascii")
    remaining_s = int(session[b"expires_at"]) - int(time.time())
    return render(session[b"user"].decode("ascii"), web_url, remaining_s, plain=plain)


def read_input() -> bytes:
    """What the client pipes in, read once; empty for a terminal, a closed stdin, or one that keeps us waiting."""
    global _input
    if _input is None:
        _input = b""
        # A pipe that nobody closes must not hold the status line: then there is none.
        before = _signal.signal(_signal.SIGALRM, lambda *_args: posix._exit(0))
        _signal.setitimer(_signal.ITIMER_REAL, _PATIENCE_S)
        parts, size = [], 0
        try:
            while not posix.isatty(0) and size < INPUT_MAX and (part := posix.read(0, 64 * 1024)):
                parts.append(part)
                size += len(part)
        except OSError:
            pass
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGALRM, before)
        _input = b"".join(parts)
    return _input
