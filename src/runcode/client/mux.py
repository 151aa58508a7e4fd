"""OpenSSH's multiplexing protocol, spoken to a live ControlMaster: one remote command without an ssh process.

Owns: the messages, what proves that a command did not start, and when one is
over. Called by the hot path and by `client.remote`; so it imports built-in
modules only, `__future__` not among them (tests/architecture/test_client_imports.py
pins the set).

Threat: whoever can plant a socket at the control path receives the person's
commands, stdin and stdout.

Guarantee: descriptors and a command go only to a socket that we own, in a folder
that nobody else can write to, served by a process of our own user. A command is
sent once; NO_MASTER and REFUSED are returned only when it provably did not start.

Source: PROTOCOL.mux version 4, mux.c and channels.c of OpenSSH 9.2. The master
queues the command when the third descriptor arrives, before it answers OPENED;
output may still be in its buffers after EXIT, and it closes the socket last.
"""

import _socket
import posix
import sys
import time

from runcode.client.ownership import is_ours

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import Any

    from runcode.client.interrupts import Interrupts
else:
    import _signal

# What became of a command.
STARTED = "started"  # it may have run
NO_MASTER = "no_master"  # it did not start: nobody who is alive and ours answers on the control socket
REFUSED = "refused"  # it did not start: the other side takes no more sessions on this connection

EXIT_TIMED_OUT = 124
# A live master says hello as soon as its event loop turns; a stopped one never does.
HELLO_TIMEOUT_S = 5.0
# After this much silence a waiting call looks whether the master still lives.
SILENCE_S = 30.0
# channels.c: CHANNEL_MUX_MAX_PACKET. A larger packet makes the master hang up without a word.
_PACKET_MAX = 256 * 1024
# A box's sshd hands the command to the login shell as one argument, and Linux takes no longer one (MAX_ARG_STRLEN).
COMMAND_MAX = 128 * 1024 - 1

_VERSION = 4
_HELLO = 0x00000001
_NEW_SESSION = 0x10000002
_ALIVE_CHECK = 0x10000004
_TERMINATE = 0x10000005
_OK = 0x80000001
_PERMISSION_DENIED = 0x80000002
_FAILURE = 0x80000003
_EXIT = 0x80000004
_ALIVE = 0x80000005
_NO_ESCAPE = 0xFFFFFFFF

_TYPE_MASK, _IS_SOCKET = 0o170000, 0o140000


# Sockets of masters that did not say hello: one call of the CLI waits for each of them once.
_stopped: set[tuple[int, int]] = set()


class Master:
    """A connection to a master that has said hello. Use `find_master`."""

    def __init__(self, path: str) -> None:
        self._buffer = b""
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            self.socket.settimeout(HELLO_TIMEOUT_S)
            self.socket.connect(path)
            self._check_peer()
            self.socket.sendall(_packet(_u32(_HELLO) + _u32(_VERSION)))
            hello = self.receive()
            if hello is None or _word(hello, 0) != _HELLO or _word(hello, 1) != _VERSION:
                raise ConnectionError("not a master of this protocol version")
        except BaseException:
            self.socket.close()
            raise

    def _check_peer(self) -> None:
        option = getattr(_socket, "SO_PEERCRED", None)  # Linux
        if option is not None:
            credentials = self.socket.getsockopt(_socket.SOL_SOCKET, option, 12)
            if int.from_bytes(credentials[4:8], sys.byteorder) != posix.geteuid():
                raise ConnectionError("another user's process listens there")

    def receive(self) -> bytes | None:
        """The next message, or None when the master closed. Raises TimeoutError, losing nothing."""
        while True:
            if len(self._buffer) >= 4:
                end = 4 + int.from_bytes(self._buffer[:4], "big")
                if end > _PACKET_MAX:
                    return None
                if len(self._buffer) >= end:
                    message, self._buffer = self._buffer[4:end], self._buffer[end:]
                    return message
            received = self.socket.recv(4096)
            if not received:
                return None
            self._buffer += received

    def ask(self, kind: int) -> bytes | None:
        """A request without arguments, and the master's answer; None when there is none in time."""
        try:
            self.socket.sendall(_packet(_u32(kind) + _u32(0)))
            return self.receive()
        except OSError:
            return None
        finally:
            self.socket.close()


def find_master(path: str) -> Master | None:
    """The live master behind a control socket of ours, or None."""
    folder, _, name = path.rpartition("/")
    if not name or not is_ours(folder):
        return None
    try:
        status = posix.lstat(path)
        identity = (status.st_dev, status.st_ino)
        if status.st_mode & _TYPE_MASK != _IS_SOCKET or status.st_uid != posix.geteuid() or identity in _stopped:
            return None
        return Master(path)
    except TimeoutError:
        _stopped.add(identity)
        return None
    except OSError:
        return None


def find_master_pid(path: str) -> int | None:
    """The process id of the live master at `path`, None when nobody answers there in time."""
    master = find_master(path)
    answer = None if master is None else master.ask(_ALIVE_CHECK)
    return _word(answer, 2) if answer is not None and _word(answer, 0) == _ALIVE else None


def end_master(path: str) -> bool:
    """Have the master at `path` end, with whatever runs over it. Says whether one agreed."""
    master = find_master(path)
    answer = None if master is None else master.ask(_TERMINATE)
    return answer is not None and _word(answer, 0) == _OK


class Call:
    """One command over one master, once.

    `is_alive` is asked after `silence_s` of silence and when the end came without a status.
    """

    def __init__(self, master: Master, is_alive: "Callable[[], bool]", silence_s: float = SILENCE_S) -> None:
        self._master = master
        self._is_alive = is_alive
        self._silence_s = silence_s
        self.sent = False
        # The master hung up without a status although it lives: the other side lost the session alone.
        self.lost_alone = False

    def run(self, command: bytes, descriptors: tuple[int, int, int] = (0, 1, 2)) -> tuple[str, int | None]:
        """`send`, then `attend`."""
        if not self.send(command, descriptors):
            return NO_MASTER, None
        return self.attend(terminal=posix.isatty(descriptors[1]) or posix.isatty(descriptors[2]))

    def send(self, command: bytes, descriptors: tuple[int, int, int]) -> bool:
        """Hand the command over, with its stdin, stdout and stderr. False: it did not start, nobody took it."""
        master = self._master
        fields = b"".join(
            (
                *(_u32(_NEW_SESSION), _u32(0), _text(b"")),
                *(_u32(0), _u32(0), _u32(0), _u32(0)),  # no terminal, X11, agent; not a subsystem
                *(_u32(_NO_ESCAPE), _text(b""), _text(command)),
            )
        )
        try:
            master.socket.sendall(_packet(fields))
            for number, descriptor in enumerate(descriptors):
                # From the last one on, the command may run whatever becomes of us.
                self.sent = number == 2
                passed = descriptor.to_bytes(4, sys.byteorder)
                master.socket.sendmsg([b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, passed)])
        except OSError:
            # sendmsg is one byte: it was taken whole or not at all.
            self.sent = False
            master.socket.close()
            return False
        master.socket.settimeout(self._silence_s)
        return True

    def attend(self, *, terminal: bool = False) -> tuple[str, int | None]:
        """(STARTED, status), (STARTED, None) when its end is unknown, or (REFUSED, None).

        Returns when the master has passed on everything that the command wrote.
        """
        status: int | None = None
        silences = 0
        try:
            while True:
                try:
                    message = self._master.receive()
                except TimeoutError:
                    # A person's Ctrl-S in a terminal stops a master that writes to it.
                    silences = 0 if terminal or self._is_alive() else silences + 1
                    if silences < 2:
                        continue
                    return STARTED, None
                except OSError:
                    message = None
                if message is None:
                    break
                kind = _word(message, 0)
                if kind in (_FAILURE, _PERMISSION_DENIED) and status is None:
                    self.sent = False
                    return REFUSED, None
                if kind == _EXIT:
                    status = _word(message, 2)
        finally:
            self._master.socket.close()
        if status is None and self._is_alive():
            time.sleep(0.05)  # a dying master closes its clients' sockets before its own
            self.lost_alone = self._is_alive()
        return STARTED, status

    def abandon(self) -> None:
        """Hang up, so that `attend` returns; the master ends the session."""
        try:
            self._master.socket.shutdown(_socket.SHUT_RDWR)
        except OSError:  # it is closed already
            pass


class Route:
    """How a box is reached: the master's socket, and what a connection of its own needs."""

    def __init__(self, control_path: str, config_path: str, alias: str) -> None:
        self.control_path = control_path
        self.config_path = config_path
        self.alias = alias


class Guard:
    """What keeps INT, TERM, HUP and the clock from leaving a remote command behind: `with` it, run the call.

    The handlers live in the main thread and only between two steps of it, so a
    waiting call loses nothing. What they do is in `client.interrupts`, which is
    loaded when the first one comes.
    """

    def __init__(self, call: Call, route: Route, nonce: str, timeout_s: float | None) -> None:
        self._call = call
        self._route = route
        self._nonce = nonce
        self._timeout_s = timeout_s
        self._over = False
        self._before: list[tuple[int, Any]] = []
        self._interrupts: Interrupts | None = None

    def __enter__(self) -> "Guard":
        for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
            # nohup has HUP ignored, and so it stays.
            if _signal.getsignal(number) != _signal.SIG_IGN:
                self._before.append((number, _signal.signal(number, self._heed)))
        if self._timeout_s is not None:
            self._before.append((_signal.SIGALRM, _signal.signal(_signal.SIGALRM, self._heed)))
            _signal.setitimer(_signal.ITIMER_REAL, max(self._timeout_s, 0.001))
        return self

    def __exit__(self, *_details: object) -> None:
        self._over = True
        if self._interrupts is not None or self._timeout_s is not None:
            _signal.setitimer(_signal.ITIMER_REAL, 0)
        for number, handler in self._before:
            _signal.signal(number, handler)

    def _heed(self, number: int, _frame: object) -> None:
        if self._over:
            return
        if not self._call.sent:
            # Nothing has started, so there is nothing to end but ourselves.
            raise SystemExit(EXIT_TIMED_OUT if number == _signal.SIGALRM else 128 + number)
        if self._interrupts is None:
            from runcode.client.interrupts import Interrupts

            self._interrupts = Interrupts(self._call, self._route, self._nonce, self._timeout_s is not None)
        self._interrupts.heed(number)

    @property
    def ended_by(self) -> int | None:
        """The signal that ended the command, SIGALRM for the clock; None when nothing came."""
        return None if self._interrupts is None else self._interrupts.ended_by

    @property
    def timed_out(self) -> bool:
        return self.ended_by == _signal.SIGALRM

    def result(self, status: int | None) -> int | None:
        """The status to exit with, given the command's own; None when that is unknown and nothing explains it."""
        ended_by = self.ended_by
        if ended_by is None:
            return status
        if self.timed_out:
            return EXIT_TIMED_OUT
        # The command's own answer to the signal, if there was one.
        return status if status not in (None, 255, 128 + _signal.SIGKILL) else 128 + ended_by


def _packet(content: bytes) -> bytes:
    return _u32(len(content)) + content


def _text(content: bytes) -> bytes:
    return _u32(len(content)) + content


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _word(message: bytes, index: int) -> int:
    """The number at this place; one that no message has when it is too short."""
    word = message[4 * index : 4 * index + 4]
    return int.from_bytes(word, "big") if len(word) == 4 else 0
