"""How a leg ends: after what is queued for its peer, with a reason that the peer gets to read.

Owns: the farewell, the lingering socket, and what an error of asyncssh's becomes.
Never: packets of channels. Base of `asyncssh_relay`'s connection.

What it changes in asyncssh: `_force_close` aborts the socket and throws queued
packets away (7 of 80 exit statuses were lost so). Here a leg shuts its writing half
and goes on reading, and throws away what it reads, until the peer closes too or the
time is up: a socket that is closed with unread bytes in it makes the kernel send
RST, and the peer may lose the last words that it has not read yet. What it cannot
read is an internal error to asyncssh in some places (a message without a number, a
text that is not ASCII); here it is always the peer's.

Threat: a peer that never closes, to keep sockets open, or sends on without end: time
and bytes are bounded, and the time is short for strangers and for those who are cut.

Guarantee: what was queued for a peer that goes on taking it arrives, however slowly it
reads, the reason of the end included: only then, or once nothing more is taken for
`LINGER_S`, or after `LINGER_MAX_S`, is the socket closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import sys
import termios
from typing import Any

import asyncssh
from asyncssh.connection import SSHConnection
from asyncssh.packet import PacketDecodeError

from runcode.core.terminal import printable
from runcode.gateway.relay import Leg

_log = logging.getLogger(__name__)

LINGER_S = 5.0
STRANGER_LINGER_S = 1.0
_CUT_LINGER_S = 0.3
LINGER_MAX_S = 60.0
_UNREADABLE = (PacketDecodeError, UnicodeDecodeError)
# What a peer may still send behind our last word: more than any client's windows let it have under way.
_THROWN_AWAY_MAX = 64 * 1024 * 1024


class EndingConnection(SSHConnection):
    """Mixed in before asyncssh's own class."""

    side: Leg

    def _prepare_ending(self) -> None:
        self._farewell: tuple[int, str] | None = None
        self._linger_s = STRANGER_LINGER_S
        # May a peer that goes on reading make it longer? Not a stranger, nor one whose access has ended.
        self._linger_max_s = 0.0
        self._lingering: asyncio.Transport | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._thrown_away = 0
        self._end_reason = ""

    @property
    def is_over(self) -> bool:
        return self._transport is None

    def finish(self, reason: str, code: int = asyncssh.DISC_BY_APPLICATION) -> None:
        if self._transport is None or self._farewell is not None:
            return
        self._farewell = (code, reason)
        if self._deferred_packets and self._auth_complete:
            # Keys are being renewed and packets wait for it; among them may be an exit status.
            self._loop.call_later(self._linger_s, self._say_farewell)
        else:
            self._say_farewell()

    def cut(self, reason: str) -> None:
        if self._transport is not None:
            self._linger_s, self._linger_max_s = _CUT_LINGER_S, 0.0
            self._farewell = (asyncssh.DISC_BY_APPLICATION, reason)
            self._say_farewell()
        elif self._lingering is not None:
            self._lingering.abort()

    def _say_farewell(self) -> None:
        if self._transport is None or self._farewell is None:
            return
        code, reason = self._farewell
        try:
            self._send_disconnect(code, printable(reason), "")
        finally:
            self._force_close(None)

    def _flush(self) -> None:
        """Write what was gathered for one write."""

    # -- asyncssh's own ways to an end --------------------------------------

    def eof_received(self) -> None:
        self._force_close(asyncssh.ConnectionLost("Connection lost"))

    def _login_timer_callback(self) -> None:
        self._login_timer = None
        self._force_close(asyncssh.ConnectionLost("Login timeout expired"))

    def connection_lost(self, exc: Exception | None = None) -> None:
        """The socket is closed (asyncssh itself no longer calls this: see the two above)."""
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        self._lingering = None
        super().connection_lost(exc)

    def _give_up(self, reason: str) -> None:
        self._force_close(asyncssh.ConnectionLost(reason))

    def _end_for(self, error: asyncssh.DisconnectError) -> None:
        """The peer broke the protocol: it is told how."""
        self._send_disconnect(error.code, error.reason, error.lang)
        self._force_close(error)

    def internal_error(self, exc_info: Any = None, error_logger: Any = None) -> None:
        kind = (exc_info or sys.exc_info())[0]
        if kind is not None and issubclass(kind, _UNREADABLE):
            _log.info("the %s leg sent what cannot be read", self.side.value)
            self._end_for(asyncssh.ProtocolError("Malformed message"))
            return
        # Not the exception's text: it may hold the peer's bytes.
        _log.error("the %s leg was dropped by an error: %s", self.side.value, getattr(kind, "__name__", "unknown"))
        super().internal_error(exc_info, error_logger)

    def _force_close(self, exc: Exception | None) -> None:
        transport = self._transport
        if transport is None:
            return
        self._flush()
        self._transport = None
        # Nothing that came behind the end is looked at any more.
        self._inpbuf = b""
        self._lingering = transport
        if exc is not None:
            self._end_reason = printable(str(exc), limit=120)
        if not transport.is_closing():
            # Read on and throw away: a paused or closed reader would not see the peer's own end.
            transport.resume_reading()
            if transport.can_write_eof():
                try:
                    transport.write_eof()
                except OSError:
                    transport.abort()
            self._linger(transport, self._loop.time() + self._linger_max_s, None)
        self._loop.call_soon(self._cleanup, exc)

    def _linger(self, transport: asyncio.Transport, until: float, untaken_before: int | None) -> None:
        """Wait once more, unless the peer has taken nothing since the last time."""
        untaken = _count_untaken(transport)
        if untaken_before is not None and (untaken >= untaken_before or self._loop.time() >= until):
            transport.abort()
            return
        self._linger_timer = self._loop.call_later(self._linger_s, self._linger, transport, until, untaken)

    def _throw_away(self, size: int) -> None:
        """The peer sent this behind our last word."""
        self._thrown_away += size
        if self._thrown_away > _THROWN_AWAY_MAX and self._lingering is not None:
            self._lingering.abort()


def _count_untaken(transport: asyncio.Transport) -> int:
    """Bytes that we have written and the peer's system has not taken yet."""
    waiting = bytearray(4)
    with contextlib.suppress(OSError):
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, waiting)
    return transport.get_write_buffer_size() + int.from_bytes(waiting, sys.byteorder)
