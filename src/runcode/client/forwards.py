"""Local forwards on a live master: add, cancel, list.

Owns: `ws-<id>.forwards` in the cache folder, one line for each forward, and the
idle call that keeps a master with forwards alive (ControlPersist counts sessions
only, so ssh would end it ten minutes after the last command).

Threat: a record of a forward that is gone, of another cache, or of a port that
some other program has taken since. A listener that others on the network reach.

Guarantee: a forward listens on 127.0.0.1 only; it is listed while the master that
made it answers and the port is taken, and no longer; what is in the file is
parsed as strictly as a stranger's. A re-mint leaves forwards alone: they live on
the master that made them, and end with it.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket

from runcode.client import mux, openssh, sessions
from runcode.client.private_files import (
    FileLock,
    ensure_private_folder,
    is_private_folder,
    read_private_file,
    remove_file,
    write_private_file,
)
from runcode.core import names
from runcode.core.errors import RunCodeError, UnsafeInput
from runcode.core.remote_command import render_script
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runcode.client.remote import Remote
    from runcode.client.sessions import Session
    from runcode.client.settings import Settings

LOOPBACK = "127.0.0.1"
_LINE = re.compile(
    r"([0-9]{1,5}) ([0-9]{1,5}) ([A-Za-z0-9.:_-]{1,253}) "
    r"([0-9a-f]{8}-[0-9]{1,19}-[0-9a-f]{16}) ([0-9]{1,10}) ([0-9a-f]{32})",
    re.ASCII,
)


class Forward(Value):
    """127.0.0.1:`local_port` here leads to `host`:`port` as the box sees it.

    `control_path` is the master that made it; `holder_pid` and `nonce` are of the
    idle call that keeps that master.
    """

    local_port: int
    port: int
    host: str
    control_path: str
    holder_pid: int
    nonce: str

    @property
    def spec(self) -> str:
        """The `-L` text."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{LOOPBACK}:{self.local_port}:{host}:{self.port}"


def parse_target_host(text: str) -> str:
    """A host that a person named, as the box will look it up. Raises `usage`."""
    try:
        return names.parse_host(text)
    except UnsafeInput as error:
        raise RunCodeError(
            "usage", f"--to {text!r}: {error.message}", resolution="name a host or an address"
        ) from error


def add_forward(remote: Remote, port: int, *, host: str = "localhost", local_port: int | None = None) -> Forward:
    """Add a forward to the workspace's live master; one that is there already is returned.

    Raises `busy`, offering a free port, when the local one is taken.
    """
    remote.open()
    session = remote.session
    wanted = port if local_port is None else local_port
    with _lock(remote.settings, session.workspace_id):
        live = _load_live(remote.settings, session)
        for forward in live:
            if (forward.local_port, forward.port, forward.host) == (wanted, port, host):
                return forward
        _require_free(wanted, port, host)
        holder_pid, nonce = _find_holder(live, session) or _start_holder(remote)
        made = Forward(
            local_port=wanted,
            port=port,
            host=host,
            control_path=session.control_path,
            holder_pid=holder_pid,
            nonce=nonce,
        )
        # Before the listener exists: whatever happens to us, `--cancel` finds it.
        _save(remote.settings, session.workspace_id, [*live, made])
        if not openssh.change_forward(session, session.control_path, "forward", made.spec, remote.settings.environ):
            _save(remote.settings, session.workspace_id, live)
            _release(made, live)
            _require_free(wanted, port, host)
            raise RunCodeError(
                "forbidden", "the connection refused the forward", resolution="is forwarding allowed on this server?"
            )
        return made


def cancel_forwards(settings: Settings, session: Session, port: int, local_port: int | None) -> list[Forward]:
    """Cancel the forwards to this remote port (and from this local one, if it is given); returns them."""
    with _lock(settings, session.workspace_id):
        live = _load_live(settings, session)
        chosen = [f for f in live if f.port == port and local_port in (None, f.local_port)]
        kept = [forward for forward in live if forward not in chosen]
        for forward in chosen:
            openssh.change_forward(session, forward.control_path, "cancel", forward.spec, settings.environ)
        _save(settings, session.workspace_id, kept)
        for forward in chosen:
            _release(forward, kept)
        return chosen


def list_forwards(settings: Settings, session: Session) -> list[Forward]:
    """The live ones of a workspace, by local port."""
    if not is_private_folder(settings.cache_folder):
        return []
    with _lock(settings, session.workspace_id):
        return sorted(_load_live(settings, session), key=lambda forward: forward.local_port)


def find_free_port() -> int:
    """A local port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _require_free(local_port: int, port: int, host: str) -> None:
    reason = _find_obstacle(local_port)
    if reason is not None:
        to = "" if host == "localhost" else f" --to {host}"
        raise RunCodeError(
            "busy",
            f"the local port {local_port} {reason}",
            resolution=f"`runcode forward {port}{to} --local {find_free_port()}`: that one is free",
        )


def _find_obstacle(local_port: int) -> str | None:
    with socket.socket() as probe:
        try:
            # As ssh does, so that a port in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, local_port))
        except OSError as error:
            return "may not be used by you" if error.errno == errno.EACCES else "is taken by another program"
    return None


def _lock(settings: Settings, workspace_id: int) -> FileLock:
    ensure_private_folder(settings.cache_folder)
    return FileLock(_path(settings, workspace_id) + ".lock")


def _path(settings: Settings, workspace_id: int) -> str:
    return sessions.session_folder(settings, workspace_id) + ".forwards"


def _load_live(settings: Settings, session: Session) -> list[Forward]:
    raw = read_private_file(_path(settings, session.workspace_id)) or b""
    control_folder, own_name = os.path.split(session.control_path)
    prefix = own_name.rpartition("-")[0] + "-"
    found = []
    masters: dict[str, bool] = {}
    for line in raw.decode("ascii", "replace").split("\n"):
        match = _LINE.fullmatch(line)
        # A socket of another workspace or another cache is none of ours to talk to.
        if match is None or not match[4].startswith(prefix) or not is_private_folder(control_folder):
            continue
        forward = Forward(
            local_port=int(match[1]),
            port=int(match[2]),
            host=match[3],
            control_path=os.path.join(control_folder, match[4]),
            holder_pid=int(match[5]),
            nonce=match[6],
        )
        if not (0 < forward.local_port < 65536 and 0 < forward.port < 65536):
            continue
        if forward.control_path not in masters:
            masters[forward.control_path] = mux.find_master_pid(forward.control_path) is not None
        if masters[forward.control_path] and _find_obstacle(forward.local_port) is not None:
            found.append(forward)
    return found


def _save(settings: Settings, workspace_id: int, forwards: list[Forward]) -> None:
    path = _path(settings, workspace_id)
    lines = [
        f"{f.local_port} {f.port} {f.host} {os.path.basename(f.control_path)} {f.holder_pid} {f.nonce}\n"
        for f in forwards
    ]
    if lines:
        write_private_file(path, "".join(lines).encode("ascii"))
    else:
        remove_file(path)


def _find_holder(live: list[Forward], session: Session) -> tuple[int, str] | None:
    """The idle call that keeps the session's own master, if it still runs."""
    for forward in live:
        if forward.control_path == session.control_path and _is_holder(forward.holder_pid, forward.nonce):
            return forward.holder_pid, forward.nonce
    return None


def _start_holder(remote: Remote) -> tuple[int, str]:
    """An idle call: `cat` there waits for the end of an input that ends with our ssh."""
    nonce = os.urandom(16).hex()
    path = os.path.join(remote.settings.cache_folder, f"hold-{nonce}.tmp")
    os.mkfifo(path, 0o600)
    try:
        # Open for both, so that it never reports an end while ssh holds it.
        stdin = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.unlink(path)
    try:
        command = render_script("exec cat >/dev/null", nonce)
        return openssh.hold_master(remote.session, command, stdin, remote.settings.environ), nonce
    finally:
        os.close(stdin)


def _release(forward: Forward, others: list[Forward]) -> None:
    """End the idle call when no other forward needs it: then its master may end in its own time."""
    if any(other.holder_pid == forward.holder_pid for other in others):
        return
    if _is_holder(forward.holder_pid, forward.nonce):
        try:
            os.kill(forward.holder_pid, signal.SIGTERM)
        except OSError:
            pass


def _is_holder(pid: int, nonce: str) -> bool:
    """Is this process still the one that we started? Its number may be another's by now."""
    if pid <= 1:
        return False
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return nonce.encode() in file.read()
    except OSError:
        if os.path.isdir("/proc/self"):
            return False
    return nonce in _ask_ps(pid)


def _ask_ps(pid: int) -> str:
    """A system without /proc (macOS)."""
    import subprocess

    try:
        return subprocess.run(
            ["/bin/ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
