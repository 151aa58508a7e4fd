"""Sessions: the short-lived right to connect to one workspace, kept in `ws-<id>/`.

Owns: minting or reusing; the folder with key, certificate, known_hosts and
config; one live master per session. A lock per workspace makes a hundred
parallel first calls mint once and open one master.

Threat: the bundle is the server's word, and the cache may hold another
version's, half a session, or one of another server.

Guarantee: the private key never leaves the folder; what is read back is parsed
as strictly as what came over the wire; ssh sees text only that `core` rendered.

`session.json` is written one field a line in a fixed order. It is its own
plain-line sidecar: the hot path reads it without a JSON parser, and one rename
replaces both at once.
"""

from __future__ import annotations

import json
import os
import re
import time

from runcode.client import openssh, platforms, processes
from runcode.client.paths import ensure_control_folder
from runcode.client.private_files import (
    FileLock,
    ensure_private_folder,
    is_private_folder,
    read_private_file,
    remove_file,
    remove_folder,
    write_private_file,
)
from runcode.core import names
from runcode.core.errors import RunCodeError, UnsafeInput
from runcode.core.sshconfig import SshTarget, render_ssh_config
from runcode.core.values import Value
from runcode.core.wire import DEFAULT_TTL_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runcode.client.api import Api
    from runcode.client.settings import Settings
    from runcode.core.bundle import ConnectionBundle

RENEW_BEFORE_EXPIRY_S = 90
# A Date header has whole seconds and is as old as the call.
CLOCK_SKEW_MIN_S = 10
# Later than any time that is shown; what a calendar cannot express is not ours.
_TIME_MAX = 2**40
_FOLDER_NAME = re.compile(r"ws-([1-9][0-9]{0,18})")
_GENERATION = re.compile(r"[0-9a-f]{16}")
_IDENTITY = "id_ed25519-"


class Session(Value):
    """One minted session. Times are epoch seconds by this machine's clock; `folder` is `…/ws-<id>`.

    `control_path` is of this generation only: after a re-mint new calls open a
    master of their own and the old one drains.
    """

    version: int
    workspace_id: int
    user: str
    host: str
    port: int
    workdir: str
    web_url: str | None
    api_base: str
    expires_at: int
    minted_at: int
    generation: str
    control_path: str
    folder: str
    # How far this machine's clock was ahead of the server's when it minted; 0 when they agreed or it did not say.
    clock_skew_s: int = 0

    @property
    def alias(self) -> str:
        return names.alias_for(self.user)

    @property
    def config_path(self) -> str:
        return os.path.join(self.folder, "config")

    @property
    def identity_path(self) -> str:
        """The private key, under a name of this generation.

        ssh reads a public half when it starts and the private one when it signs: a
        file that is replaced in between would make two halves of different keys.
        """
        return os.path.join(self.folder, f"{_IDENTITY}{self.generation}")

    @property
    def certificate_path(self) -> str:
        return f"{self.identity_path}-cert.pub"

    def remaining_s(self) -> int:
        return self.expires_at - int(time.time())


def session_folder(settings: Settings, workspace_id: int) -> str:
    return os.path.join(settings.cache_folder, f"ws-{workspace_id:d}")


def find_session(settings: Settings, workspace_id: int) -> Session | None:
    """The cached session of this server, valid or not; None when there is none that can be read."""
    folder = session_folder(settings, workspace_id)
    if not is_private_folder(folder):
        return None
    session = _parse(read_private_file(os.path.join(folder, "session.json")), folder)
    if session is None or session.workspace_id != workspace_id or session.api_base != settings.api_base:
        return None
    return session


def find_valid_session(settings: Settings, workspace_id: int) -> Session | None:
    """A cached session that may still open a connection for a while."""
    session = find_session(settings, workspace_id)
    return session if session is not None and session.remaining_s() > RENEW_BEFORE_EXPIRY_S else None


def list_session_ids(settings: Settings) -> list[int]:
    """The workspaces that have a session folder, whatever is in it."""
    if not is_private_folder(settings.cache_folder):
        return []
    return sorted(int(m[1]) for name in os.listdir(settings.cache_folder) if (m := _FOLDER_NAME.fullmatch(name)))


def list_sessions(settings: Settings) -> list[Session]:
    """Every readable cached session at this server, expired ones too, by workspace id."""
    found = [find_session(settings, workspace_id) for workspace_id in list_session_ids(settings)]
    return [session for session in found if session is not None]


def load_session(
    settings: Settings,
    workspace_id: int,
    make_api: Callable[[], Api],
    *,
    ttl_s: int = DEFAULT_TTL_S,
    force: bool = False,
    unless: str | None = None,
) -> tuple[Session, bool]:
    """A session that is good for a while, and whether it was there before (else it was minted now).

    `force` mints in any case; `unless` mints when the cached one still is of that
    generation (the one that a gateway just refused). Whoever waited while another
    process minted takes that one.
    """
    if not force and unless is None:
        cached = find_valid_session(settings, workspace_id)
        if cached is not None:
            return cached, True
    asked_at = int(time.time())
    ensure_private_folder(settings.cache_folder)
    with _lock(settings, workspace_id):
        cached = find_valid_session(settings, workspace_id)
        if cached is not None and cached.generation != unless and (not force or cached.minted_at > asked_at):
            return cached, not force
        return _mint(settings, workspace_id, make_api(), ttl_s), False


def ensure_master(
    settings: Settings, session: Session, make_api: Callable[[], Api], *, timeout_s: float = openssh.CONNECT_TIMEOUT_S
) -> Session:
    """A session whose master answers: this one, or a re-minted one if the gateway refused it (once).

    Nothing here is a command, so all of it may be repeated.
    """
    try:
        return _open_once(settings, session, timeout_s)
    except openssh.AuthenticationRefused:
        renewed, _ = load_session(settings, session.workspace_id, make_api, unless=session.generation)
        return _open_once(settings, renewed, timeout_s)


def _open_once(settings: Settings, session: Session, timeout_s: float) -> Session:
    with _lock(settings, session.workspace_id):
        if not openssh.is_master_alive(session, settings.environ):
            ensure_control_folder(settings.environ)
            openssh.open_master(session, settings.environ, timeout_s=timeout_s)
    return session


def drop_session(settings: Settings, workspace_id: int, *, keep: bool = False) -> bool:
    """Close the master and wipe the key material (`keep`: only close). Says whether there was a session."""
    folder = session_folder(settings, workspace_id)
    if not is_private_folder(folder):
        return False
    with _lock(settings, workspace_id) as lock:
        session = _parse(read_private_file(os.path.join(folder, "session.json")), folder)
        if session is not None and is_private_folder(os.path.dirname(session.control_path)):
            _close_every_generation(session, settings)
        if not keep:
            remove_folder(folder)
            lock.remove()
    return True


def _close_every_generation(session: Session, settings: Settings) -> None:
    """Masters of sessions before a re-mint may still be draining beside the current one."""
    control_folder, own_name = os.path.split(session.control_path)
    prefix = own_name.rpartition("-")[0] + "-"
    openssh.sweep(control_folder, prefix)
    for name in os.listdir(control_folder):
        if name.startswith(prefix) and _GENERATION.fullmatch(name[len(prefix) :]):
            control_path = os.path.join(control_folder, name)
            openssh.close_master_at(session, control_path, settings.environ)
            remove_file(control_path)


def lock_workspace(settings: Settings, workspace_id: int) -> FileLock:
    """Held while the files of a workspace's session are read together or changed."""
    return _lock(settings, workspace_id)


def _lock(settings: Settings, workspace_id: int) -> FileLock:
    return FileLock(os.path.join(settings.cache_folder, f"ws-{workspace_id:d}.lock"))


def _mint(settings: Settings, workspace_id: int, api: Api, ttl_s: int) -> Session:
    folder = ensure_private_folder(session_folder(settings, workspace_id))
    control_folder = ensure_control_folder(settings.environ)
    before = find_session(settings, workspace_id)
    for name in os.listdir(folder):
        # We hold the workspace's lock, so these are of calls that were killed: a private key among them.
        if name.startswith("new-") or name.endswith(".tmp"):
            remove_file(os.path.join(folder, name))
    generation = os.urandom(8).hex()
    new_key = os.path.join(folder, f"new-{generation}")
    try:
        public_key = _make_key(new_key, settings)
        bundle = api.mint(workspace_id, public_key=public_key, ttl_s=ttl_s, client=settings.client)
        now = int(time.time())
        skew_s = find_clock_skew(api.server_date, now)
        session = Session(
            version=1,
            workspace_id=workspace_id,
            user=bundle.user,
            host=bundle.host,
            port=bundle.port,
            workdir=bundle.workdir,
            web_url=bundle.web_url,
            api_base=settings.api_base,
            expires_at=int(bundle.expires_at.timestamp()) + skew_s,
            minted_at=now,
            generation=generation,
            control_path=os.path.join(control_folder, _socket_name(settings, workspace_id, generation)),
            folder=folder,
            clock_skew_s=skew_s,
        )
        _write_material(session, bundle, new_key, public_key)
        _remove_old_keys(folder, {generation} | ({before.generation} if before is not None else set()))
        return session
    finally:
        remove_file(new_key)
        remove_file(new_key + ".pub")


def _make_key(path: str, settings: Settings) -> str:
    """A fresh key pair at `path`; returns the public line. The call to come is prepared while ssh-keygen works."""
    pid = openssh.begin_key(path, settings.environ)
    try:
        import http.client  # noqa: F401 (20 ms, and `client.api` needs it next)
    except BaseException:
        processes.kill(pid)
        raise
    return openssh.finish_key(pid, path)


def find_clock_skew(server_date: str | None, now: int) -> int:
    """Seconds that this machine's clock (`now`) is ahead of the server's `Date`; 0 within its coarseness.

    An expiry is told by the server's clock. Read by one that is half an hour
    ahead it would be over at once, and every call would mint again.
    """
    if server_date is None:
        return 0
    from email.utils import parsedate_to_datetime  # http.client has loaded it

    try:
        skew_s = now - int(parsedate_to_datetime(server_date).timestamp())
    except (ValueError, TypeError, OverflowError):
        return 0
    return skew_s if abs(skew_s) >= CLOCK_SKEW_MIN_S else 0


def _write_material(session: Session, bundle: ConnectionBundle, new_key: str, public_key: str) -> None:
    """Everything ssh needs, and `session.json` last: what a crash leaves before that is refused and re-minted."""
    from runcode.core.hostkeys import render_known_hosts

    identity, certificate = session.identity_path, session.certificate_path
    known_hosts = os.path.join(session.folder, "known_hosts")
    platform = platforms.current()
    target = SshTarget(
        alias=session.alias,
        host=session.host,
        port=session.port,
        user=session.user,
        identity_file=platform.path_for_ssh(identity),
        known_hosts_file=platform.path_for_ssh(known_hosts),
        certificate_file=platform.path_for_ssh(certificate) if bundle.certificate is not None else None,
        control_path=session.control_path if platform.can_multiplex else None,
        null_device=platform.null_device,
    )
    config = render_ssh_config(target)
    try:
        os.replace(new_key, identity)
    except OSError as error:
        raise RunCodeError("io_error", f"cannot write {identity}: {error.strerror}") from error
    write_private_file(identity + ".pub", f"{public_key}\n".encode())
    if bundle.certificate is not None:
        write_private_file(certificate, f"{bundle.certificate}\n".encode())
    write_private_file(known_hosts, render_known_hosts(bundle.host, bundle.port, bundle.host_keys).encode())
    write_private_file(session.config_path, config.encode())
    write_private_file(os.path.join(session.folder, "session.json"), _render(session))


def _remove_old_keys(folder: str, kept: set[str]) -> None:
    """The generation before stays one mint longer, for an ssh that has just read its name in the old config."""
    for name in os.listdir(folder):
        if name.startswith(_IDENTITY) and name[len(_IDENTITY) :][:16] not in kept:
            remove_file(os.path.join(folder, name))


def _socket_name(settings: Settings, workspace_id: int, generation: str) -> str:
    """Two caches of one user share the folder, so the cache's path is in the name."""
    import binascii

    return f"{binascii.crc32(os.fsencode(settings.cache_folder)):08x}-{workspace_id:d}-{generation}"


def _render(session: Session) -> bytes:
    kept = [name for name in Session._fields if name != "folder"]
    lines = [f"{json.dumps(name)}: {json.dumps(getattr(session, name))}" for name in kept]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _parse(raw: bytes | None, folder: str) -> Session | None:
    try:
        stored = json.loads(raw) if raw is not None else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(stored, dict) or stored.get("version") != 1:
        return None
    skew_s = stored.get("clock_skew_s", 0)
    control_path, generation, web_url = (stored.get(name) for name in ("control_path", "generation", "web_url"))
    times = (stored.get("workspace_id"), stored.get("expires_at"), stored.get("minted_at"))
    if not all(type(value) is int and 0 < value < 2**63 for value in times):
        return None
    if stored["expires_at"] >= _TIME_MAX or stored["minted_at"] >= _TIME_MAX:
        return None
    if type(skew_s) is not int or abs(skew_s) >= _TIME_MAX:
        return None
    if not isinstance(control_path, str) or not os.path.isabs(control_path):
        return None
    if not isinstance(generation, str) or not _GENERATION.fullmatch(generation):
        return None
    if not isinstance(stored.get("api_base"), str) or not (web_url is None or isinstance(web_url, str)):
        return None
    try:
        return Session(
            version=1,
            workspace_id=stored["workspace_id"],
            user=names.parse_title(stored.get("user")),
            host=names.parse_host(stored.get("host")),
            port=names.parse_port(stored.get("port")),
            workdir=names.parse_workdir(stored.get("workdir")),
            web_url=web_url,
            api_base=stored["api_base"],
            expires_at=stored["expires_at"],
            minted_at=stored["minted_at"],
            generation=generation,
            control_path=control_path,
            folder=folder,
            clock_skew_s=skew_s,
        )
    except UnsafeInput:
        return None


def require_ttl(ttl_s: int) -> int:
    """A life time that a person asked for. Raises `usage`."""
    if not 1 <= ttl_s <= 7 * 24 * 3600:
        raise RunCodeError("usage", f"--ttl {ttl_s} is not between 1 and 604800 seconds")
    return ttl_s
