"""What may be wrong on this machine, one check after the other: `runcode doctor`.

Owns: the checks and their order. Each looks, says what it found and, where
something is wrong, what to type. Nothing is repaired, and only the reachability
check goes to the network, to the API base alone.

Guarantee: a check that breaks is a failed check, never the end of the others; no
detail holds a token.
"""

from __future__ import annotations

import os
import time

from runcode.client import claude_settings, openssh_probe, paths, platforms, ssh_user_config
from runcode.client.api import Api, find_proxy
from runcode.client.person_files import read_person_file
from runcode.client.processes import find_program
from runcode.client.settings import load_settings, load_token
from runcode.core import sshblock
from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import BinaryIO

    from runcode.client.settings import Settings

    # What another room has to say of these settings: (a check's name, the check).
    Further = Callable[[Settings], Iterator[tuple[str, Callable[[], tuple[str, str]]]]]

OK, WARN, FAIL = "ok", "warn", "fail"
# CertificateFile, IdentityAgent and RemoteCommand, which our configs use, are of 7.6 and before.
OPENSSH_MIN = (7, 6)
OPENSSH_TESTED = (9, 2)
# A session is renewed 90 s before its end, by this machine's clock.
SKEW_WARN_S, SKEW_FAIL_S = 30, 300


class Check(Value):
    """`status` is ok, warn or fail; `detail` one printable line."""

    name: str
    status: str
    detail: str


class Subject(Value):
    """What is examined: the environment, and the options that a person gave."""

    environ: Mapping[str, str]
    api_base: str | None = None
    web_base: str | None = None
    token_file: str | None = None
    token_option: str | None = None
    stdin: BinaryIO | None = None


def examine(subject: Subject, further: Further | None = None) -> Iterator[Check]:
    """Every check, as soon as it is done; those of `further`, another room's, come last."""
    yield _guard("openssh", lambda: _openssh(subject.environ))
    bases, settings = _bases(subject)
    yield bases
    if settings is None:
        return
    found = settings
    token_check, token = _token(found, subject)
    yield token_check
    yield from _server(found, token)
    yield _guard("proxy_and_ca", lambda: _proxy_and_ca(found))
    yield _guard("private_folders", lambda: _private_folders(found))
    yield _guard("control_socket", lambda: _control_socket(found))
    yield _guard("ssh_config", lambda: _ssh_config(found))
    yield _guard("status_line", lambda: _status_line(found))
    yield _guard("hooks", lambda: _hooks(found))
    for name, check in further(found) if further is not None else ():
        yield _guard(name, check)


def _guard(name: str, check: Callable[[], tuple[str, str]]) -> Check:
    try:
        status, detail = check()
    except RunCodeError as error:
        status, detail = FAIL, f"{error.message} ({error.resolution})"
    except OSError as error:
        status, detail = FAIL, f"cannot look: {error.strerror}"
    return Check(name=name, status=status, detail=printable(detail, limit=500))


def _openssh(environ: Mapping[str, str]) -> tuple[str, str]:
    find_program("ssh-keygen", environ)
    version, words = openssh_probe.find_version(environ)
    if version is None:
        return WARN, f"{words}: not OpenSSH, which is the one that RunCode is tested with"
    if version < OPENSSH_MIN:
        return FAIL, f"{words}: too old; 7.6 or newer is needed"
    return OK, f"{words}, ssh and ssh-keygen"


def _bases(subject: Subject) -> tuple[Check, Settings | None]:
    try:
        settings = load_settings(
            subject.environ,
            api_base=subject.api_base,
            web_base=subject.web_base,
            token_file=subject.token_file,
            token_option=subject.token_option,
        )
    except RunCodeError as error:
        return Check(name="bases", status=FAIL, detail=printable(f"{error.message} ({error.resolution})")), None
    detail = f"API {settings.api_base}, console {settings.web_base}"
    if settings.api_base.startswith("http://"):
        detail += " (plain http, which is allowed on this machine only)"
    return Check(name="bases", status=OK, detail=detail), settings


def _token(settings: Settings, subject: Subject) -> tuple[Check, str | None]:
    token: str | None = None

    def look() -> tuple[str, str]:
        nonlocal token
        token = load_token(settings, subject.stdin)
        if settings.token_file is not None or settings.token_option is not None:
            return OK, "given on the command line"
        if settings.environ.get("RUNCODE_TOKEN"):
            return (
                WARN,
                "from RUNCODE_TOKEN; a program that a desktop starts does not see it: `runcode login` saves one",
            )
        return OK, f"saved in {os.path.join(settings.config_folder, 'token')}, for {settings.api_base} only"

    return _guard("token", look), token


def _server(settings: Settings, token: str | None) -> Iterator[Check]:
    """Reachability, authorization and the clocks, in one call."""
    api = Api(settings.api_base, token, settings.environ)
    began = time.monotonic()
    failure: RunCodeError | None = None
    try:
        api.verify_token()
    except RunCodeError as error:
        failure = error
    took_ms = (time.monotonic() - began) * 1000
    # The server's own answer, whichever it is, shows that it is there.
    reached = failure is None or failure.code not in ("network", "insecure_base")
    if reached:
        answered = failure is None or failure.code in ("unauthorized", "forbidden", "rate_limited")
        detail = f"{settings.api_base} answers in {took_ms:.0f} ms"
        yield Check(
            name="reachability",
            status=OK if answered else WARN,
            detail=detail if answered or failure is None else printable(f"{detail}: {failure.message}"),
        )
    else:
        assert failure is not None
        yield Check(name="reachability", status=FAIL, detail=printable(f"{failure.message} ({failure.resolution})"))
    if token is None:
        yield Check(name="authorization", status=FAIL, detail="no token to try (run `runcode login`)")
    elif failure is None:
        yield Check(name="authorization", status=OK, detail="the server accepts the token")
    else:
        status = FAIL if failure.code in ("unauthorized", "forbidden") else WARN
        said = failure.message if status == FAIL else "the server could not be asked"
        yield Check(name="authorization", status=status, detail=printable(f"{said} ({failure.resolution})"))
    yield _clock(api.server_date)


def _clock(server_date: str | None) -> Check:
    from email.utils import parsedate_to_datetime

    try:
        skew_s = time.time() - parsedate_to_datetime(server_date or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return Check(name="clock", status=WARN, detail="the server told no time to compare with")
    if abs(skew_s) < SKEW_WARN_S:
        return Check(name="clock", status=OK, detail="agrees with the server's")
    ahead = "ahead of" if skew_s > 0 else "behind"
    detail = f"this machine's clock is {abs(skew_s):.0f} s {ahead} the server's: sessions will seem to end at the wrong"
    return Check(
        name="clock",
        status=FAIL if abs(skew_s) >= SKEW_FAIL_S else WARN,
        detail=f"{detail} time (set it by NTP)",
    )


def _proxy_and_ca(settings: Settings) -> tuple[str, str]:
    said = []
    status = OK
    authority = settings.api_base.partition("://")[2]
    proxy = find_proxy(settings.environ, authority) if settings.api_base.startswith("https://") else None
    if proxy is not None:
        # Credentials stand before the `@`, and were split off.
        said.append(f"https goes through the proxy {proxy[0]}; ssh connects to the gateway directly")
        status = WARN
    for name, exists in (("SSL_CERT_FILE", os.path.isfile), ("SSL_CERT_DIR", os.path.isdir)):
        named = settings.environ.get(name)
        if named and not exists(named):
            return FAIL, f"{name} names {named}, which is not there (correct or unset it)"
        if named:
            said.append(f"{name} is {named}")
    if not said:
        said.append("no proxy, and the system's own certificates")
    return status, "; ".join(said)


def _private_folders(settings: Settings) -> tuple[str, str]:
    from runcode.client.private_files import is_private_folder

    for folder in (settings.config_folder, settings.cache_folder):
        if os.path.lexists(folder) and not is_private_folder(folder):
            return FAIL, f"{folder} is not a folder of yours alone (move it away; it is made anew)"
    return OK, f"{settings.config_folder} and {settings.cache_folder} are yours alone"


def _control_socket(settings: Settings) -> tuple[str, str]:
    if not platforms.current().can_multiplex:
        return OK, "not used: this system's OpenSSH does not share connections"
    return OK, f"sockets stand in {paths.ensure_control_folder(settings.environ)}"


def _ssh_config(settings: Settings) -> tuple[str, str]:
    path = ssh_user_config.config_path(settings)
    content = read_person_file(path) or b""
    if sshblock.remove_blocks(content) == content:
        return OK, f"{path} holds no host of ours (`runcode config-ssh` writes them)"
    for line in content.decode("utf-8", "replace").splitlines():
        name, _, command = line.strip().partition(" ")
        if name.lower() == "proxycommand" and " proxy --api-base " in command:
            program, _, rest = command.partition(" proxy --api-base ")
            # As the shell reads it: our own quoting, undone.
            plain = program.replace("'\\''", "'").strip("'\"").replace("%%", "%")
            if not os.access(plain, os.X_OK):
                return FAIL, f"{path} names {plain}, which is gone (run `runcode config-ssh` again)"
            if rest.split(" ")[0].strip("'\"") != settings.api_base:
                return WARN, f"the hosts in {path} are of another server (run `runcode config-ssh` again)"
    return OK, f"{path} holds hosts of ours"


def _status_line(settings: Settings) -> tuple[str, str]:
    path = claude_settings.settings_path(settings.environ)
    command = claude_settings.find_status_line(settings.environ)
    if command is None:
        return OK, f"none in {path} (`runcode install-statusline` puts ours there)"
    if not claude_settings.is_our_status_line(command):
        return OK, f"{path} has one of another program"
    program = command.rpartition(" statusline")[0].replace("'\\''", "'").strip("'\"")
    if not os.access(program, os.X_OK):
        return FAIL, f"{path} names {program}, which is gone (run `runcode install-statusline` again)"
    return OK, f"installed in {path}"


def _hooks(settings: Settings) -> tuple[str, str]:
    """Codex leaves a hook out without a word until the person trusts it."""
    home = platforms.current().home(settings.environ)
    config = os.path.join(settings.environ.get("CODEX_HOME") or os.path.join(home, ".codex"), "config.toml")
    content = read_person_file(config)
    if content is None:
        return OK, "no Codex here; Claude Code needs no trust for a plugin's hooks"
    try:
        import tomllib

        stored = tomllib.loads(content.decode("utf-8"))
    except ValueError:
        return WARN, f"{config} cannot be read, so whether Codex trusts our hooks is unknown"
    plugins = stored.get("plugins")
    named = [name for name in plugins if "runcode" in name.lower()] if isinstance(plugins, dict) else []
    if not named:
        return OK, "our plugin is not installed in Codex"
    hooks = stored.get("hooks")
    state = hooks.get("state") if isinstance(hooks, dict) else None
    trusted = [name for name in state if "runcode" in name.lower()] if isinstance(state, dict) else []
    if not trusted:
        return WARN, "Codex runs none of our hooks until you trust them: type `/hooks` in Codex"
    return OK, f"Codex has a trust record for {len(trusted)} of our hooks (`/hooks` in Codex shows them)"
