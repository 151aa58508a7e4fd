"""The only caller of ssh and ssh-keygen: masters, sessions over them, keys.

Threat: with `ControlMaster auto` and a master that fails, ssh silently opens a
connection of its own and runs the command there, also when the first one had
already started it (mux.c of OpenSSH 9.2: EOF before the master's answer makes
`muxclient` return, and main goes on to connect).

Guarantee: a command goes over the master or nowhere (`ControlMaster no`, and a
ProxyCommand that fails stands where the connection would be), and `run` tells
"provably not started" from everything else by an allowlist of what ssh logged.

Source: mux.c, clientloop.c and PROTOCOL.mux of OpenSSH 9.2.
"""

from __future__ import annotations

import os
import re

from runcode.client import processes
from runcode.client.private_files import is_private_folder
from runcode.core.errors import RunCodeError, UnsafeInput
from runcode.core.sshconfig import quote_path
from runcode.core.terminal import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    from runcode.client.sessions import Session

# What became of a command that was handed to ssh.
STARTED = "started"  # it may have run; its exit status is what ssh reported
NO_MASTER = "no_master"  # it did not start: nobody answers on the control socket
REFUSED = "refused"  # it did not start: the other side takes no more sessions on this connection

CONNECT_TIMEOUT_S = 60.0
CONTROL_TIMEOUT_S = 5.0
_LOG_MAX = 64 * 1024
_NO_FOLLOW, _NON_BLOCKING = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK"))
# ssh writes these itself before it has sent the request, or on an explicit refusal.
_NOT_STARTED = (
    (re.compile(r"^Control socket connect\(.*\): ", re.MULTILINE), NO_MASTER),
    (re.compile(r'^debug1: Control socket ".*" does not exist', re.MULTILINE), NO_MASTER),
    (re.compile(r"^mux_client_request_session: session request failed: ", re.MULTILINE), REFUSED),
    (re.compile(r"^Master refused session request: ", re.MULTILINE), REFUSED),
)
_DENIED = re.compile(r"^[^\n]*: Permission denied \([a-z,-]+\)\.\r?$", re.MULTILINE)


class AuthenticationRefused(RunCodeError):
    """The gateway did not accept the session's key: the one failure that a re-mint may heal."""

    def __init__(self) -> None:
        super().__init__(
            "unauthorized",
            "the gateway refused this session's key",
            resolution="retry with `runcode connect WS --force`; is the workspace running? (`runcode list`)",
        )


def begin_key(path: str, environ: Mapping[str, str]) -> int:
    """Start making a fresh Ed25519 key pair at `path` and `path.pub`, where nothing may be yet; returns a process id.

    `finish_key` must follow, or `processes.kill`.
    """
    argv: list[str | bytes] = [processes.find_program("ssh-keygen", environ), "-q", "-t", "ed25519"]
    argv += ["-N", "", "-C", "runcode", "-f", path]
    return processes.spawn(argv, environ)


def finish_key(pid: int, path: str) -> str:
    """Wait for `begin_key`; returns the public line."""
    if processes.wait_or_kill(pid, 30.0) != 0:
        raise RunCodeError("io_error", f"ssh-keygen could not make a key in {os.path.dirname(path)}")
    with open(path + ".pub", encoding="ascii") as file:
        return file.read().strip()


def is_master_alive(session: Session, environ: Mapping[str, str]) -> bool:
    """Does a master answer on the session's control socket?"""
    if not _has_socket(session):
        return False
    from runcode.client import mux

    return mux.find_master_pid(session.control_path) is not None


def _has_socket(session: Session) -> bool:
    """Raises `unsafe_path` when somebody else made the folder of the socket: what listens there is not ours."""
    folder = os.path.dirname(session.control_path)
    if not os.path.lexists(folder):
        return False
    if not is_private_folder(folder):
        raise RunCodeError("unsafe_path", f"the folder of the control socket, {folder}, is not ours alone")
    return os.path.exists(session.control_path)


def close_master_at(session: Session, control_path: str, environ: Mapping[str, str]) -> None:
    """End the master at this socket and whatever runs over it; nothing happens when there is none."""
    if os.path.exists(control_path):
        _control(session, "exit", environ, control_path)


def _control(session: Session, verb: str, environ: Mapping[str, str], control_path: str | None = None) -> int | None:
    argv: list[str | bytes] = [processes.find_program("ssh", environ), "-F", session.config_path]
    if control_path is not None:
        argv += ["-o", f"ControlPath={quote_path(control_path)}"]
    argv += ["-O", verb, session.alias]
    return processes.wait_or_kill(processes.spawn(argv, environ), CONTROL_TIMEOUT_S)


def open_master(session: Session, environ: Mapping[str, str], *, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """Connect and leave a master in the background. May be repeated: no command is part of it.

    Raises AuthenticationRefused, `unsafe_bundle` when the host key is not the
    pinned one, or `network`.
    """
    folder, final_name = os.path.split(session.control_path)
    prefix = final_name.rpartition("-")[0] + "-"
    sweep(folder, prefix)
    try:
        # Whoever calls has found nobody alive there; a wedged master keeps its descriptor and drains.
        os.unlink(session.control_path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RunCodeError("unsafe_path", f"{session.control_path} is not a socket of ours") from error
    # A name of its own until it is up: a master whose caller was killed meanwhile must not take the
    # next one's place, nor stay for ever without a socket because its place was taken ("disabling
    # multiplexing"); nor may a wedged one remove the next one's socket when it ends.
    attempt_path = os.path.join(folder, prefix + os.urandom(8).hex())
    with _Log(session) as log:
        argv: list[str | bytes] = [processes.find_program("ssh", environ), "-F", session.config_path, "-E", log.path]
        argv += ["-o", f"ControlPath={quote_path(attempt_path)}"]
        argv += ["-o", "ControlMaster=yes", "-N", "-f", "-T", session.alias]
        status = processes.wait_or_kill(processes.spawn(argv, environ), timeout_s)
        text = log.read()
    if status == 0 and os.path.exists(attempt_path):
        _take_place(session, attempt_path, environ)
        return
    if status is None:
        raise RunCodeError("network", f"no connection to {session.host}:{session.port} within {timeout_s:.0f} s")
    raise_connect_failure(session, text)


def raise_connect_failure(session: Session, log: str) -> NoReturn:
    """What ssh's log of a failed connection means: AuthenticationRefused, `unsafe_bundle`, or `network`."""
    if _DENIED.search(log):
        raise AuthenticationRefused
    if "Host key verification failed" in log:
        raise UnsafeInput("the gateway's host key is not the one that the server named")
    raise RunCodeError("network", f"no connection to {session.host}:{session.port}: {_last_line(log)}")


def _take_place(session: Session, attempt_path: str, environ: Mapping[str, str]) -> None:
    """Give a new master the session's socket name, unless a plain ssh with our config was quicker.

    It keeps its own name too: a plain ssh that was a master before removes the
    session's name when it ends, and a master without any name could not be closed.
    """
    try:
        os.link(attempt_path, session.control_path)
    except FileExistsError:
        close_master_at(session, attempt_path, environ)
    except FileNotFoundError:
        # It has ended since, and taken its socket along: the gateway, or the box behind it, went away.
        raise RunCodeError("network", f"the connection to {session.host}:{session.port} ended at once") from None


def sweep(folder: str, prefix: str) -> None:
    """Remove what killed calls left: logs that nobody holds, and this workspace's sockets that nobody serves."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        try:
            if name.startswith("log-"):
                descriptor = os.open(path, os.O_RDONLY | _NO_FOLLOW | _NON_BLOCKING | os.O_CLOEXEC)
                try:
                    if _try_lock(descriptor, exclusively=True):
                        os.unlink(path)
                finally:
                    os.close(descriptor)
            elif name.startswith(prefix) and not _is_served(path):
                os.unlink(path)
        except OSError:
            continue  # in use, gone by now, or a folder, which is not ours to remove


def _is_served(path: str) -> bool:
    """Does anybody listen on this socket? Raises OSError when that cannot be told."""
    import _socket

    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
    except ConnectionRefusedError:
        return False
    finally:
        probe.close()
    return True


def _try_lock(descriptor: int, *, exclusively: bool) -> bool:
    """A lock that ends with its holder; False while somebody else's stands in the way."""
    try:
        import fcntl
    except ImportError:  # Windows, which has no masters either
        return not exclusively
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def run(
    session: Session,
    remote_command: str,
    environ: Mapping[str, str],
    attend: Callable[[int], int],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    tty: bool = False,
) -> tuple[str, int]:
    """Run a command over the live master, once. Returns (what became of it, exit status).

    `attend` is called with ssh's process id, reaps it and returns its status.
    """
    if not _has_socket(session):
        return NO_MASTER, 255
    with _Log(session) as log:
        argv: list[str | bytes] = [processes.find_program("ssh", environ), "-F", session.config_path, "-E", log.path]
        argv += ["-o", "LogLevel=DEBUG1", "-o", "ControlMaster=no", "-o", "ProxyCommand=false"]
        argv += ["-tt" if tty else "-T", session.alias, os.fsencode(remote_command)]
        status = attend(processes.spawn(argv, environ, stdin=stdin, stdout=stdout, stderr=stderr))
        return (STARTED if status != 255 else classify(log.read())), status


def run_unshared(
    session: Session,
    remote_command: str,
    environ: Mapping[str, str],
    attend: Callable[[int], int],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    tty: bool = False,
) -> tuple[int, str]:
    """Run a command over a connection of its own, once; (its status, ssh's log of a 255). See `client.direct`."""
    with _Log(session) as log:
        argv: list[str | bytes] = [processes.find_program("ssh", environ), "-F", session.config_path, "-E", log.path]
        argv += ["-o", "LogLevel=DEBUG1", "-tt" if tty else "-T", session.alias, os.fsencode(remote_command)]
        status = attend(processes.spawn(argv, environ, stdin=stdin, stdout=stdout, stderr=stderr))
        return status, log.read() if status == 255 else ""


def run_apart(
    config_path: str, alias: str, remote_command: bytes, environ: Mapping[str, str], timeout_s: float
) -> int | None:
    """Run something short over a connection of its own; its exit status, None when it took too long.

    For what a full master has no room for. Only for what may be done twice.
    """
    argv: list[str | bytes] = [processes.find_program("ssh", environ), "-F", config_path, "-T"]
    argv += ["-o", "ControlPath=none", alias, remote_command]
    return processes.wait_or_kill(processes.spawn(argv, environ), timeout_s)


def change_forward(session: Session, control_path: str, verb: str, spec: str, environ: Mapping[str, str]) -> bool:
    """`forward` or `cancel` a local forward (`-L` text) at the master on this socket. Says whether it did."""
    argv: list[str | bytes] = [processes.find_program("ssh", environ), "-F", session.config_path]
    argv += ["-o", f"ControlPath={quote_path(control_path)}", "-O", verb, "-L", spec, session.alias]
    return processes.wait_or_kill(processes.spawn(argv, environ), CONTROL_TIMEOUT_S) == 0


def hold_master(session: Session, remote_command: str, stdin: int, environ: Mapping[str, str]) -> int:
    """Start a call over the live master that outlives us, and return its process id."""
    argv: list[str | bytes] = [processes.find_program("ssh", environ), "-F", session.config_path]
    argv += ["-o", "ControlMaster=no", "-o", "ProxyCommand=false", "-T", session.alias, remote_command]
    return processes.spawn(argv, environ, stdin=stdin, in_own_session=True)


def classify(log: str) -> str:
    """What ssh's own log of a failed call proves: NO_MASTER or REFUSED, else STARTED."""
    for pattern, meaning in _NOT_STARTED:
        if pattern.search(log):
            return meaning
    return STARTED


def render_command(session: Session) -> str:
    """What a person types to reach the workspace with plain ssh."""
    from runcode.core.shellwords import join

    return join(["ssh", "-F", session.config_path, session.alias])


class _Log:
    """A file of ssh's own messages for one call, beside the control socket; gone afterwards."""

    def __init__(self, session: Session) -> None:
        self._folder = os.path.dirname(session.control_path)

    def __enter__(self) -> _Log:
        # ssh opens it itself, with the mode that we give it here. While we live we hold a lock on
        # it: so whoever sweeps knows the logs of calls that were killed. One that was swept before
        # the lock was there is made anew.
        while True:
            self.path = os.path.join(self._folder, f"log-{os.getpid()}-{os.urandom(8).hex()}")
            self._descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            if _try_lock(self._descriptor, exclusively=False) and os.path.exists(self.path):
                return self
            self.__exit__()

    def __exit__(self, *_details: object) -> None:
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        os.close(self._descriptor)

    def read(self) -> str:
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return os.read(self._descriptor, _LOG_MAX).decode("utf-8", "replace").replace("\r\n", "\n")


def _last_line(text: str) -> str:
    lines = [line for line in text.split("\n") if line.strip()]
    return printable(lines[-1].strip()) if lines else "ssh gave no reason"
