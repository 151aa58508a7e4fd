"""`runcode connect WS` with a cached session that is good for a while, in its plain form.

Owns: the short way only: no network, no key, one attachment written as
`client.attachments` writes it (tests/unit/cli/test_hot_agreement.py compares the
bytes). Another option, a session to mint, a name that no session knows, a folder
to make: None, and `cli.commands.connect` does it.

Guarantee: the file appears whole, 0600 from its first byte, in a folder of ours.
"""

import posix
import time

from runcode.cli.hot_state import (
    RENEW_BEFORE_EXPIRY_S,
    Unusual,
    find_agent,
    find_base,
    find_folders,
    find_session,
    is_number,
    render_attachment,
)
from runcode.client.ownership import is_ours

# Above it `client.attachments` clears away what ended agent sessions left.
_FILES_KEPT = 50
_WRITE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC


def run(argv: list[str]) -> int | None:
    environ = posix.environ
    try:
        if len(argv) != 3 or environ.get(b"RUNCODE_WEB_BASE"):
            return None
        config, cache = find_folders(environ)
        api_base = find_base(environ, config)
        workspace_id, session = _find(environ, cache, argv[2].encode(), api_base)
        remaining_s = int(session[b"expires_at"]) - int(time.time())
        if remaining_s <= RENEW_BEFORE_EXPIRY_S:
            return None
        agent_session = find_agent(environ)[0]
        scope, key = (b"folder", posix.getcwdb()) if agent_session is None else (b"session", agent_session)
        if not key.startswith(b"/") and scope == b"folder":
            return None
        name, content = render_attachment(scope, key, api_base, workspace_id, session[b"user"], int(time.time()))
        if not is_ours(cache):
            return None
        _write(cache + b"/attachments", name, content)
    except (Unusual, OSError, KeyError, ValueError):
        return None
    user = session[b"user"].decode()
    text = f"attached {user} (id {workspace_id}) for {remaining_s // 60} min; next: runcode exec -- CMD\n"
    try:
        posix.write(1, text.encode())
    except OSError:  # whoever read our output has gone
        return 1
    return 0


def _find(environ: dict[bytes, bytes], cache: bytes, wanted: bytes, api_base: bytes) -> tuple[int, dict[bytes, bytes]]:
    """The workspace by its id, or by a title that a session at this server has; the first by id."""
    if wanted.isdigit():
        numbers = [int(wanted)] if is_number(wanted) and len(wanted) <= 18 else []
    else:
        folders = [name[3:] for name in posix.listdir(cache) if name.startswith(b"ws-")]
        numbers = sorted(int(number) for number in folders if is_number(number))
    for number in numbers:
        session = find_session(environ, number, api_base)
        if session is not None and (wanted.isdigit() or session[b"user"] == wanted):
            return number, session
    raise Unusual


def _write(folder: bytes, name: bytes, content: bytes) -> None:
    if not is_ours(folder) or len(posix.listdir(folder)) > _FILES_KEPT:
        raise Unusual
    path = folder + b"/" + name
    temporary = b"%s.%s.tmp" % (path, posix.urandom(6).hex().encode())
    descriptor = posix.open(temporary, _WRITE, 0o600)
    try:
        if posix.write(descriptor, content) != len(content):
            raise Unusual
        posix.rename(temporary, path)
    except BaseException:
        posix.unlink(temporary)
        raise
    finally:
        posix.close(descriptor)
