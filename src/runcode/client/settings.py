"""What the environment and the options say, read once at the edge.

Owns: Settings; which base a call goes to and whose token it carries; the token's
file. Called by the CLI and by agents; nothing below reads the environment.

Threat: a repository's environment file or an argument points the CLI at another
server; the saved token must not follow.

Guarantee: a saved token is given out for the base that it was saved for and for
no other, and only for https, or http on loopback.
"""

from __future__ import annotations

import os
import re

from runcode.client import paths
from runcode.client.private_files import ensure_private_folder, read_private_file, remove_file, write_private_file
from runcode.core import names, wire
from runcode.core.digests import sha256_hex
from runcode.core.errors import RunCodeError, UnsafeInput
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}", re.ASCII)
_BASE = re.compile(r"(https?)://([^/?#@\\\s]+?)(?::([0-9]{1,5}))?/?", re.ASCII)
_BASES_HEADER = "runcode-bases 1"


class Settings(Value):
    """One call's settings. `api_base` and `web_base` are checked origins without a trailing slash.

    `agent_session` names the agent session that this process belongs to, or is
    None; `in_agent` is true also for an agent that tells no session.
    """

    environ: Mapping[str, str]
    config_folder: str
    cache_folder: str
    api_base: str
    web_base: str
    saved_base: str | None
    workspace: str | None
    client: str
    agent_session: str | None
    in_agent: bool
    cwd: str
    token_file: str | None = None
    token_option: str | None = None


def load_settings(
    environ: Mapping[str, str],
    *,
    api_base: str | None = None,
    web_base: str | None = None,
    workspace: str | None = None,
    token_file: str | None = None,
    token_option: str | None = None,
    agent_session: str | None = None,
) -> Settings:
    """`agent_session` names a session in the environment's place; then RUNCODE_WORKSPACE counts for nothing.

    Options before environment before what `login` saved before the hosted service.
    """
    config = paths.config_folder(environ)
    saved = _find_saved_bases(config)
    chosen_api = api_base or environ.get("RUNCODE_API_BASE") or (saved[0] if saved else wire.DEFAULT_API_BASE)
    api = parse_base(chosen_api)
    chosen_web = web_base or environ.get("RUNCODE_WEB_BASE") or _console_of(api, saved)
    session, in_agent = _agent(environ) if agent_session is None else (agent_session, True)
    return Settings(
        environ=environ,
        config_folder=config,
        cache_folder=paths.cache_folder(environ),
        api_base=api,
        web_base=parse_base(chosen_web),
        saved_base=saved[0] if saved else None,
        workspace=workspace or (environ.get("RUNCODE_WORKSPACE") if agent_session is None else None) or None,
        client=_client_name(environ),
        agent_session=session,
        in_agent=in_agent,
        cwd=_current_folder(),
        token_file=token_file,
        token_option=token_option,
    )


def _console_of(api_base: str, saved: tuple[str, str] | None) -> str:
    """Where that server's consent page is.

    Never another server's: its token would come back and be sent to this one. A
    server of one's own has its console at the same address.
    """
    if saved is not None and saved[0] == api_base:
        return saved[1]
    return wire.DEFAULT_WEB_BASE if api_base == wire.DEFAULT_API_BASE else api_base


def load_stored_settings(
    environ: Mapping[str, str],
    *,
    api_base: str | None = None,
    config_home: str | None = None,
    cache_home: str | None = None,
    agent_session: str | None = None,
) -> Settings:
    """For what another program starts: the base is the given one, else the stored one, never the environment's.

    RUNCODE_TOKEN counts only where the environment means the same base.
    """
    changed = dict(environ)
    if config_home is not None:
        changed["XDG_CONFIG_HOME"] = config_home
    if cache_home is not None:
        changed["XDG_CACHE_HOME"] = cache_home
    saved = _find_saved_bases(paths.config_folder(changed))
    stored = saved[0] if saved else wire.DEFAULT_API_BASE
    meant = parse_base(changed.pop("RUNCODE_API_BASE", "") or stored)
    base = parse_base(api_base or stored)
    if meant != base:
        changed.pop("RUNCODE_TOKEN", None)
    return load_settings(changed, api_base=base, agent_session=agent_session)


def parse_base(raw_base: str) -> str:
    """An https origin, or an http one on loopback. Raises `insecure_base`, or `usage` for what is no origin."""
    match = _BASE.fullmatch(raw_base)
    if match is None:
        raise RunCodeError("usage", f"{raw_base!r} is not a server's address", resolution="give https://HOST[:PORT]")
    scheme, host, port = match[1], match[2], match[3]
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        bare = names.parse_host(bare)
        if port is not None:
            names.parse_port(int(port))
    except UnsafeInput as error:
        raise RunCodeError("usage", f"{raw_base!r}: {error.message}", resolution="give https://HOST[:PORT]") from error
    if scheme == "http" and not names.is_loopback_host(bare):
        raise RunCodeError("insecure_base", f"{raw_base!r} is not https")
    shown = f"[{bare}]" if ":" in bare else bare.lower()
    default = {"http": "80", "https": "443"}[scheme]
    return f"{scheme}://{shown}" + (f":{int(port)}" if port is not None and port != default else "")


def load_token(settings: Settings, stdin: BinaryIO | None = None) -> str:
    """The API token for `settings.api_base`. Raises `no_token`.

    By precedence: `--token-file` (`-` is stdin), `--token`, RUNCODE_TOKEN, the saved one.
    """
    if settings.token_file is not None:
        return parse_token(_read_token_file(settings.token_file, stdin))
    if settings.token_option is not None:
        return parse_token(settings.token_option)
    if settings.environ.get("RUNCODE_TOKEN"):
        return parse_token(settings.environ["RUNCODE_TOKEN"])
    raw_token = read_private_file(os.path.join(settings.config_folder, "token"))
    if raw_token is None:
        raise RunCodeError("no_token", "you are not signed in")
    own_base = settings.saved_base or wire.DEFAULT_API_BASE
    if own_base != settings.api_base:
        raise RunCodeError(
            "no_token",
            f"the saved token is for {own_base}, not for {settings.api_base}",
            resolution=f"run `runcode login --api-base {settings.api_base}`",
        )
    return parse_token(raw_token.decode("ascii", "replace"))


def parse_token(raw_token: str) -> str:
    """An opaque string without blanks; its end may carry a newline. The message never quotes it."""
    token = raw_token.strip()
    if _TOKEN.fullmatch(token) is None:
        raise RunCodeError("no_token", "that is not an API token: it is empty or holds blanks or unusual characters")
    return token


def save_token(settings: Settings, token: str) -> None:
    """Keep the token, 0600, and beside it the bases it belongs to.

    The bases go first and carry the token's digest: a crash between the two
    writes leaves a pair that does not match, which no call will use.
    """
    folder = ensure_private_folder(settings.config_folder)
    lines = [_BASES_HEADER, settings.api_base, settings.web_base, _digest(token)]
    write_private_file(os.path.join(folder, "bases"), "".join(f"{line}\n" for line in lines).encode())
    write_private_file(os.path.join(folder, "token"), f"{token}\n".encode())


def forget_token(settings: Settings) -> bool:
    """Remove the saved token and its bases. Says whether there was one."""
    had_token = remove_file(os.path.join(settings.config_folder, "token"))
    remove_file(os.path.join(settings.config_folder, "bases"))
    return had_token


def _find_saved_bases(config: str) -> tuple[str, str] | None:
    raw_bases = read_private_file(os.path.join(config, "bases"))
    if raw_bases is None:
        return None
    raw_token = read_private_file(os.path.join(config, "token"))
    lines = raw_bases.decode("ascii", "replace").split("\n")
    if raw_token is None or len(lines) < 4 or lines[0] != _BASES_HEADER:
        return None
    if lines[3] != _digest(raw_token.decode("ascii", "replace").strip()):
        # The token was replaced by something that knows no bases: it is not for these.
        return None
    return parse_base(lines[1]), parse_base(lines[2])


def _digest(token: str) -> str:
    return sha256_hex(token.encode())


def _read_token_file(path: str, stdin: BinaryIO | None) -> str:
    try:
        if path == "-":
            raw_token = stdin.readline(8192) if stdin is not None else b""
        else:
            with open(path, "rb") as file:
                raw_token = file.read(8192)
    except OSError as error:
        raise RunCodeError(
            "no_token", f"cannot read the token file: {error.strerror}", resolution="check `--token-file`"
        ) from error
    return raw_token.decode("ascii", "replace")


def _agent(environ: Mapping[str, str]) -> tuple[str | None, bool]:
    """Which agent session this is. One agent started by another has both names, and both make its key."""
    key = agent_key(environ.get("CLAUDE_CODE_SESSION_ID"), find_codex_session(environ))
    marked = any(environ.get(name) for name in ("CLAUDECODE", "CURSOR_TRACE_ID", "CURSOR_AGENT", "GEMINI_CLI"))
    return key, key is not None or marked


def find_codex_session(environ: Mapping[str, str]) -> str | None:
    """A subagent of Codex has a thread of its own, and its parent's session: that one counts."""
    return environ.get("CODEX_SESSION_ID") or environ.get("CODEX_THREAD_ID")


def agent_key(claude: str | None, codex: str | None) -> str | None:
    """The name of an agent session, of both where one agent runs inside the other."""
    parts = [f"claude:{claude}"] if claude else []
    parts += [f"codex:{codex}"] if codex else []
    return "+".join(parts) or None


def _client_name(environ: Mapping[str, str]) -> str:
    """What the server is told of who asks: RUNCODE_CLIENT, else guessed; printable ASCII, at most 64."""
    named = environ.get("RUNCODE_CLIENT")
    if named:
        return "".join(c for c in named if c.isascii() and c.isprintable())[: names.CLIENT_NAME_MAX] or "cli"
    if find_codex_session(environ):
        return "codex"
    if environ.get("CLAUDECODE") or environ.get("CLAUDE_CODE_SESSION_ID"):
        return "claude-code"
    if environ.get("CURSOR_TRACE_ID") or environ.get("CURSOR_AGENT"):
        return "cursor"
    return "gemini" if environ.get("GEMINI_CLI") else "cli"


def _current_folder() -> str:
    try:
        return os.path.realpath(os.getcwd())
    except OSError:  # the folder was removed under us
        return "/"
