"""`runcode hook EVENT` where nothing is attached: the client goes on as without us.

Owns: the short way only. It ends the call when no attachment of this agent session or of
an enclosing folder is there, at whatever server; everything else is for
`agents.boundary.hook`, which reads the same input.

Threat: an agent's command runs here although its session is attached.

Guarantee: 0 is returned only when the folder of attachments is ours, or not there at
all, and holds no file for any name of this session or folder. In doubt: None.
"""

import posix

from runcode.cli.hot_state import Unusual, find_agent, find_folders
from runcode.cli.statusline_text import parse_input
from runcode.client.ownership import is_ours
from runcode.core.digests import sha256_hex

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

# Clients let a command run whose hook takes too long (ten minutes here). SIGALRM ends this one before that, and a
# hook that died is one that refused. It holds for the full command too.
_PATIENCE_S = 120
# Asked before a tool runs, or for every prompt. A session's start is written down even when nothing is attached.
_EVENTS = ("pre-tool-use", "user-prompt-submit")
# More than a client ever sends. The whole of it is read: one that is cut is refused later on.
_INPUT_MAX = 64 * 1024 * 1024 + 1
_input: bytes | None = None


def run(argv: list[str]) -> int | None:
    try:
        if len(argv) != 5 or argv[2] not in _EVENTS or argv[3] != "--client" or argv[4] not in ("claude", "codex"):
            return None
        _signal.setitimer(_signal.ITIMER_REAL, _PATIENCE_S)
        return None if _may_be_attached(argv[4]) else 0
    except Exception:
        return None


def _may_be_attached(client: str) -> bool:
    environ = posix.environ
    folder = find_folders(environ)[1] + b"/attachments"
    try:
        posix.lstat(folder)
    except FileNotFoundError:
        return False
    if not is_ours(folder):
        raise Unusual
    session, cwd = parse_input(read_input())
    if session is None or cwd is None:
        raise Unusual
    raw_session = session.encode("utf-8", "surrogateescape")
    if client == "claude":
        whole = find_agent(environ, claude=raw_session)[0]
    else:
        whole = find_agent(environ, codex=raw_session)[0]
    own = client.encode() + b":" + raw_session
    if any(_is_there(folder, b"session", key) for key in (own, whole) if key is not None):
        return True
    posix.chdir(cwd)
    at = posix.getcwdb()
    if not at.startswith(b"/"):
        raise Unusual
    while not _is_there(folder, b"folder", at):
        if at == b"/":
            return False
        at = at[: at.rindex(b"/")] or b"/"
    return True


def _is_there(folder: bytes, scope: bytes, key: bytes) -> bool:
    try:
        posix.lstat(b"%s/%s-%s" % (folder, scope, sha256_hex(key)[:32].encode()))
    except FileNotFoundError:
        return False
    return True


def read_input() -> bytes:
    """What the client pipes in, read once."""
    global _input
    if _input is None:
        parts, size = [], 0
        while size < _INPUT_MAX and (part := posix.read(0, 1024 * 1024)):
            parts.append(part)
            size += len(part)
        _input = b"".join(parts)
    return _input
