"""What the hot commands need of the client's state, read without a standard-library module.

Owns: a second, quick reading of what `client.settings`, `client.attachments` and
`client.sessions` define. It decides the plain cases only and raises Unusual for
everything else; then the full command line decides. That both agree is tested
over a table of environments and states (tests/unit/cli/test_hot_agreement.py).

Threat: another user of the machine plants a folder, a link or a file where our
state is; a session's file was edited.

Guarantee: nothing is read through a link, from somebody else's file, or from a
folder that others may write to; a value that is not of the expected form is not
used.
"""

import posix

from runcode.client.ownership import is_ours
from runcode.core.digests import sha256_hex

DEFAULT_API_BASE = b"https://app.runcode.io"
_FILE_SIZE_MAX = 256 * 1024
_READ = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC | posix.O_NONBLOCK
RENEW_BEFORE_EXPIRY_S = 90
_DIGITS = b"0123456789"
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TITLE = _LETTERS + _DIGITS + b"._-"
_WORKDIR = _LETTERS + _DIGITS + b"._/@+-"
_ATTACHMENT_HEADER = b"runcode-attachment 1"
_BASES_HEADER = b"runcode-bases 1"
_AGENT_MARKS = (b"CLAUDECODE", b"CURSOR_TRACE_ID", b"CURSOR_AGENT", b"GEMINI_CLI")


class Unusual(Exception):
    """Not for the hot path: the full command line decides."""


def find_folders(environ: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    """The client's config and cache folder."""
    home = environ.get(b"HOME", b"")
    folders = []
    for name, dotted in ((b"XDG_CONFIG_HOME", b"/.config"), (b"XDG_CACHE_HOME", b"/.cache")):
        explicit = environ.get(name, b"")
        if not explicit.startswith(b"/"):
            if not home.startswith(b"/"):
                raise Unusual
            explicit = home.rstrip(b"/") + dotted
        folders.append(explicit.rstrip(b"/") + b"/runcode")
    return folders[0], folders[1]


def read_file(path: bytes) -> bytes | None:
    """A file of ours, None when there is none; Unusual for anything that we would not have written."""
    try:
        descriptor = posix.open(path, _READ)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unusual from error
    try:
        status = posix.fstat(descriptor)
        plain = status.st_mode & 0o170000 == 0o100000 and not status.st_mode & 0o022
        if not plain or status.st_uid != posix.geteuid() or status.st_size > _FILE_SIZE_MAX:
            raise Unusual
        content = posix.read(descriptor, status.st_size + 1)
    except OSError as error:
        raise Unusual from error
    finally:
        posix.close(descriptor)
    if len(content) != status.st_size:
        raise Unusual
    return content


def find_agent(
    environ: dict[bytes, bytes], claude: bytes | None = None, codex: bytes | None = None
) -> tuple[bytes | None, bool]:
    """(this agent session's key, is there any agent). `claude` and `codex` are what a client told of itself."""
    claude = claude or environ.get(b"CLAUDE_CODE_SESSION_ID")
    codex = codex or environ.get(b"CODEX_SESSION_ID") or environ.get(b"CODEX_THREAD_ID")
    parts = [b"claude:" + claude] if claude else []
    if codex:
        parts.append(b"codex:" + codex)
    marked = any(environ.get(name) for name in _AGENT_MARKS)
    return b"+".join(parts) or None, bool(parts) or marked


def find_attached(
    environ: dict[bytes, bytes], agent_session: bytes | None, in_agent: bool, cwd: bytes
) -> tuple[int, bytes, bytes] | None:
    """(workspace id, title, API base) of what is attached here; None when nothing is."""
    config, cache = find_folders(environ)
    folder = cache + b"/attachments"
    if not is_ours(folder):
        try:
            posix.lstat(folder)
        except FileNotFoundError:
            return None
        except OSError:
            pass
        raise Unusual
    lines = None if agent_session is None else _find_record(folder, b"session", agent_session)
    if not cwd.startswith(b"/"):
        raise Unusual
    at = cwd
    while lines is None:
        lines = _find_record(folder, b"folder", at)
        if at == b"/":
            break
        at = at[: at.rindex(b"/")] or b"/"
    if lines is None:
        if in_agent:
            return None
        raise Unusual  # a plain terminal, where the only one that is attached anywhere counts
    if lines[3] != find_base(environ, config):
        raise Unusual
    return int(lines[4]), lines[5], lines[3]


def _find_record(folder: bytes, scope: bytes, key: bytes) -> list[bytes] | None:
    name = sha256_hex(key)[:32].encode()
    content = read_file(b"%s/%s-%s" % (folder, scope, name))
    if content is None:
        return None
    lines = content.split(b"\n")
    if len(lines) != 8 or lines[0] != _ATTACHMENT_HEADER or lines[1] != scope or lines[2] != _as_json(key):
        raise Unusual
    if not is_number(lines[4]) or not is_number(lines[6]) or not is_title(lines[5]):
        raise Unusual
    return lines


def render_attachment(
    scope: bytes, key: bytes, api_base: bytes, workspace_id: int, title: bytes, attached_at: int
) -> tuple[bytes, bytes]:
    """(the file's name, its content), as `client.attachments` has them."""
    fields = [_ATTACHMENT_HEADER, scope, _as_json(key), api_base, b"%d" % workspace_id, title, b"%d" % attached_at]
    return b"%s-%s" % (scope, sha256_hex(key)[:32].encode()), b"\n".join(fields) + b"\n"


def _as_json(key: bytes) -> bytes:
    if key.isascii() and b'"' not in key and b"\\" not in key and key.decode().isprintable():
        return b'"' + key + b'"'
    import sys

    try:
        from _json import encode_basestring_ascii
    except ImportError as error:
        raise Unusual from error
    return encode_basestring_ascii(key.decode(sys.getfilesystemencoding(), "surrogateescape")).encode()


def find_base(environ: dict[bytes, bytes], config: bytes) -> bytes:
    """The control plane that this call speaks of. A spelling that `client.settings` would tidy matches nothing here."""
    explicit = environ.get(b"RUNCODE_API_BASE")
    raw_bases = read_file(config + b"/bases")
    if raw_bases is None:
        return explicit or DEFAULT_API_BASE
    lines = raw_bases.split(b"\n")
    token = read_file(config + b"/token")
    if token is None or len(lines) != 5 or lines[0] != _BASES_HEADER:
        raise Unusual
    if lines[3] != sha256_hex(token.strip()).encode():
        raise Unusual
    return explicit or lines[1]


def find_session(environ: dict[bytes, bytes], workspace_id: int, api_base: bytes) -> dict[bytes, bytes] | None:
    """The session's fields as text, strings without their quotes; None when there is no session."""
    folder = b"%s/ws-%d" % (find_folders(environ)[1], workspace_id)
    content = read_file(folder + b"/session.json")
    if content is None:
        return None
    if not is_ours(folder):
        raise Unusual
    fields = {}
    # One field a line, as `client.sessions` writes it: the file is its own sidecar.
    lines = content.split(b"\n")
    if lines[0] != b"{" or lines[-2:] != [b"}", b""]:
        raise Unusual
    for line in lines[1:-2]:
        name, separator, value = line.rstrip(b",").partition(b": ")
        if not separator or b"\\" in value or name in fields:
            raise Unusual
        if value.startswith(b'"'):
            if len(value) < 2 or value.count(b'"') != 2 or not value.endswith(b'"'):
                raise Unusual
            value = value[1:-1]
        fields[name.strip(b'"')] = value
    fields[b"folder"] = folder
    numbers = all(is_number(fields.get(name, b"")) for name in (b"workspace_id", b"expires_at", b"minted_at"))
    if not numbers or fields.get(b"version") != b"1" or not is_title(fields.get(b"user", b"")):
        raise Unusual
    if int(fields[b"workspace_id"]) != workspace_id or fields.get(b"api_base") != api_base:
        raise Unusual
    return fields


def is_number(text: bytes) -> bool:
    return 0 < len(text) <= 19 and not text.strip(_DIGITS) and text[0] != 48


def is_title(text: bytes) -> bool:
    return 0 < len(text) <= 64 and not text.strip(_TITLE) and text[:1] not in b".-"


def is_workdir(text: bytes) -> bool:
    parts = text.split(b"/")
    return (
        text.startswith(b"/")
        and len(text) <= 512
        and not text.strip(_WORKDIR)
        and b".." not in parts
        and not any(part.startswith(b"-") for part in parts)
    )
