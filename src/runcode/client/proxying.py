"""What stands between somebody's ssh and the gateway: the ProxyCommand of `config-ssh`'s hosts.

Owns: the two key files and the shared known_hosts that those hosts name, the
connection to the gateway, and the relay between it and stdin and stdout.

ssh reads the names of its key files when it starts, beside us, and a public half
that it has seen is the only one it will offer for that file. So a new session's
key is put where there was no file when this ssh started: two files take turns,
and never are both there for long.

Threat: another server's session or key under the same workspace number; a
gateway that keeps us waiting; bytes of the relay that are not ours to change.

Guarantee: only keys that the session's own server pinned stand in the shared
known_hosts; the relay changes no byte, and passes on the end of either direction
alone; nothing but relayed bytes ever reaches stdout.

Source: load_public_identity_files in ssh.c and load_identity_file in
sshconnect2.c of OpenSSH 9.2.
"""

from __future__ import annotations

import os
import signal
import sys

from runcode.client import sessions
from runcode.client.private_files import FileLock, read_private_file, remove_file, write_private_file
from runcode.core import hostkeys
from runcode.core.errors import RunCodeError, UnsafeInput
from runcode.core.handshake import ClientSide
from runcode.core.sshblock import GATEWAY_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _thread
    import socket
    from collections.abc import Callable

    from runcode.client.api import Api
    from runcode.client.sessions import Session
    from runcode.client.settings import Settings
    from runcode.core.hostkeys import PublicKey

KEY_NAMES = ("proxy-a", "proxy-b")
KNOWN_HOSTS_NAME = "gateway_known_hosts"
CONNECT_TIMEOUT_S = 20.0
_CHUNK = 256 * 1024


def known_hosts_path(settings: Settings) -> str:
    return os.path.join(settings.cache_folder, KNOWN_HOSTS_NAME)


def identity_paths(settings: Settings, workspace_id: int) -> tuple[str, ...]:
    folder = sessions.session_folder(settings, workspace_id)
    return tuple(os.path.join(folder, name) for name in KEY_NAMES)


def prepare(settings: Settings, workspace_id: int, make_api: Callable[[], Api]) -> tuple[Session, bool]:
    """A session whose key and host keys are where ssh will look for them; and whether it was there before."""
    session, reused = sessions.load_session(settings, workspace_id, make_api)
    if os.path.exists(session.certificate_path):
        # ssh has looked for certificates already, before there was this one; a plain key serves it.
        session, reused = sessions.load_session(settings, workspace_id, make_api, unless=session.generation)
    with sessions.lock_workspace(settings, workspace_id):
        # Another process may have minted since; its files are the ones that are there now.
        session = sessions.find_session(settings, workspace_id) or session
        _place_key(session)
    _pin(settings, session)
    return session, reused


def _place_key(session: Session) -> None:
    """The session's private key under that of the two names which was free."""
    key = read_private_file(session.identity_path)
    if key is None:
        raise RunCodeError("io_error", f"the session's key is missing in {session.folder}")
    paths = [os.path.join(session.folder, name) for name in KEY_NAMES]
    held = [read_private_file(path) for path in paths]
    if key not in held:
        free = held.index(None) if None in held else _older(paths)
        write_private_file(paths[free], key)
        held[free] = key
    for path, content in zip(paths, held, strict=True):
        if content is not None and content != key:
            remove_file(path)


def _older(paths: list[str]) -> int:
    return 0 if os.stat(paths[0]).st_mtime_ns <= os.stat(paths[1]).st_mtime_ns else 1


def _pin(settings: Settings, session: Session) -> None:
    """Write down the host keys of this server's live sessions, and of no other server."""
    path = known_hosts_path(settings)
    with FileLock(path + ".lock"):
        keys: list[PublicKey] = []
        for one in [session, *sessions.list_sessions(settings)]:
            if one.remaining_s() > 0 or one.workspace_id == session.workspace_id:
                keys += [key for key in _pinned_keys(one) if key not in keys]
        text = hostkeys.render_known_hosts(GATEWAY_NAME, 22, tuple(keys)).encode()
        if read_private_file(path) != text:
            write_private_file(path, text)


def _pinned_keys(session: Session) -> tuple[PublicKey, ...]:
    raw = read_private_file(os.path.join(session.folder, "known_hosts"))
    try:
        return hostkeys.parse_known_hosts((raw or b"").decode("ascii", "replace"))
    except UnsafeInput:
        return ()


def dial(session: Session) -> socket.socket:
    """A TCP connection to the gateway. Raises `network`."""
    import socket

    try:
        connection = socket.create_connection((session.host, session.port), timeout=CONNECT_TIMEOUT_S)
    except OSError as error:
        reason = "timed out" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__
        raise RunCodeError("network", f"no connection to {session.host}:{session.port}: {reason}") from error
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A laptop that slept must not keep us for ever.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def run(settings: Settings, workspace_id: int, make_api: Callable[[], Api]) -> int:
    """Be the ProxyCommand for this workspace; returns the exit status."""
    try:
        session, reused = prepare(settings, workspace_id, make_api)
    except RunCodeError as error:
        raise _with_next_step(error, workspace_id) from error
    relay = Relay(dial(session), ClientSide(session.user))
    status = relay.run()
    if reused and relay.client_side.was_refused:
        _explain_refusal(settings, session, make_api)
    return status


def _explain_refusal(settings: Settings, session: Session, make_api: Callable[[], Api]) -> None:
    """The gateway took no key of a session that looked valid: get another, or say why there is none.

    ssh has told "Permission denied" by now, and may be gone.
    """
    try:
        sessions.load_session(settings, session.workspace_id, make_api, unless=session.generation)
    except RunCodeError as error:
        raise _with_next_step(error, session.workspace_id) from error
    raise RunCodeError(
        "unauthorized",
        f"the gateway refused the key of {session.user}'s session, so there is a new one now",
        resolution="run the same command again",
    )


def _with_next_step(error: RunCodeError, workspace_id: int) -> RunCodeError:
    """The same failure; one that a start would heal names the very command."""
    if error.code != "conflict":
        return error
    return RunCodeError("conflict", error.message, resolution=f"type `runcode connect {workspace_id} --start`")


class Relay:
    """Bytes between stdin, stdout and the gateway, each direction on its own."""

    def __init__(self, connection: socket.socket, client_side: ClientSide, *, stdin: int = 0, stdout: int = 1) -> None:
        self.client_side = client_side
        self._connection = connection
        self._stdin = stdin
        self._stdout = stdout
        # A byte in it wakes the main thread: ssh hung up, or stdin has ended.
        self._wake_read, self._wake_write = os.pipe()
        self._hung_up = False

    def run(self) -> int:
        """Returns when both directions have ended, ssh hung up, or the connection broke (255).

        TERM and HUP are ignored afterwards: what is left to say is short.
        """
        import _thread

        handled = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
        for number in handled:
            signal.signal(number, self._note_hang_up)
        ended = _thread.allocate_lock()
        ended.acquire()
        try:
            _thread.start_new_thread(self._carry_up, (ended,))
            if self._carry_down():
                self._wait_for_the_other(ended)
            return 0
        except OSError:
            return 255
        finally:
            for number in handled:
                signal.signal(number, signal.SIG_IGN)
            self._connection.close()

    def _note_hang_up(self, _number: int, _frame: object) -> None:
        self._hung_up = True
        os.write(self._wake_write, b"h")

    def _carry_up(self, ended: _thread.LockType) -> None:
        """stdin to the gateway, on a thread of its own."""
        import socket

        try:
            while chunk := os.read(self._stdin, _CHUNK):
                self.client_side.feed(chunk)
                self._connection.sendall(chunk)
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            # The gateway takes nothing more; what it still has to say is carried on.
            pass
        finally:
            ended.release()
            os.write(self._wake_write, b"e")

    def _carry_down(self) -> bool:
        """The gateway to stdout, to its end; false when nobody reads there any more."""
        wait = self._make_wait()
        while wait():
            chunk = self._connection.recv(_CHUNK)
            if not chunk:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stdout)
                os.close(null)
                return True
            try:
                _write_all(self._stdout, chunk)
            except OSError:
                return False
        return False

    def _make_wait(self) -> Callable[[], bool]:
        """Waits for bytes of the gateway; false when ssh hung up, or the reader of stdout went away."""
        if sys.platform == "win32":
            return lambda: True
        import select

        poller = select.poll()
        poller.register(self._connection.fileno(), select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        # No event is asked for: POLLERR comes unasked when the pipe's other end is closed.
        poller.register(self._stdout, 0)

        def wait() -> bool:
            while True:
                ready = dict(poller.poll())
                if self._hung_up or self._stdout in ready:
                    return False
                if self._connection.fileno() in ready:
                    return True
                # stdin has ended; the gateway may still have something to say.
                os.read(self._wake_read, 16)

        return wait

    def _wait_for_the_other(self, ended: _thread.LockType) -> None:
        """Until stdin has ended as well, or ssh hung up."""
        if sys.platform == "win32":
            ended.acquire()
            return
        while ended.locked() and not self._hung_up:
            os.read(self._wake_read, 16)


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]
