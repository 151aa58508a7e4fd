"""The only module that touches asyncssh's private parts.

Owns: `ClientLeg` and `BoxLeg`, asyncssh connections that hand decrypted packets
80–100 to a bridge instead of to channels. `asyncssh_check` names what an upgrade
broke. Never: a decision about who may pass or what may be
relayed. Called by `ssh_server` (client leg) and `workspace_leg` (box leg).

What it changes in asyncssh 2.24.1, and why:
- `_force_close` aborts the socket and throws queued packets away (7 of 80 exit
  statuses were lost so): here a leg shuts its writing half, then waits a little
  for the peer, since closing with unread bytes makes the kernel send RST.
- an empty ignore message goes out before every packet, against CBC attacks; no
  CBC cipher is offered here, so it is left out.
- the AES-GCM object is built anew for every packet; here once per key.
- every packet is formatted for a debug log, options are read anew for each
  authentication; both are left out.
- nothing bounds the packets that wait while keys are renewed; here the other
  leg stops reading, and there is a hard limit.

Threat: a peer that starts a key exchange and never ends it, or sends data inside
one (RFC 4253 §7.1), or never reads.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import socket
import sys
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, cast

import asyncssh
from asyncssh.connection import SSHClientConnection, SSHConnection, SSHServerConnection
from asyncssh.encryption import Encryption, GCMEncryption
from asyncssh.packet import SSHPacket, SSHPacketLogger, String
from asyncssh.public_key import decode_ssh_public_key
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runcode.core.terminal import printable
from runcode.gateway import packets
from runcode.gateway.relay import Leg

_log = logging.getLogger(__name__)

MSG_IGNORE = 2
MSG_USERAUTH_REQUEST = 50
_EMPTY = String(b"")
_PACKET_MAX_BEFORE_AUTH = 40_000
_PACKET_MAX = 256 * 1024
_READ_SLICE = 64 * 1024
_WRITE_HIGH_WATER = 256 * 1024
_DEFERRED_SOFT = 256 * 1024
_DEFERRED_HARD = 16 * 1024 * 1024
_REKEY_TIMEOUT_S = 60.0
LINGER_S = 5.0
_CUT_LINGER_S = 0.3
_STRANGER_LINGER_S = 1.0
# SHA-1 signatures (`ssh-rsa`) are not among them; asyncssh would verify those too.
SIGNATURE_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-256",
    "rsa-sha2-512",
)


class LegOwner(Protocol):
    """Who a leg reports to once its packets are relayed."""

    def received(self, source: Leg, payload: bytes) -> None: ...

    def leg_ended(self, side: Leg, reason: str) -> None: ...


class KeyJudge(Protocol):
    """Who decides about one client connection; an asyncssh.SSHServer at the same time.

    `judge_key` hears whether a key that was signed with verified (`proved`), or
    None when it was only offered.
    """

    def admit_socket(self, source: str) -> bool: ...

    def socket_closed(self) -> None: ...

    async def judge_key(self, username: str, key_blob: bytes, proved: bool | None) -> bool: ...


class CachedGcm(Encryption):
    """AES-GCM as asyncssh frames it, with the cipher object made once per key."""

    def __init__(self, stock: GCMEncryption) -> None:
        cipher = stock._cipher
        self._aead = AESGCM(cipher._key)
        self._fixed = cipher._iv[:4]
        self._invocation = int.from_bytes(cipher._iv[4:], "big")

    def _next_iv(self) -> bytes:
        number = self._invocation
        self._invocation = (number + 1) & 0xFFFFFFFFFFFFFFFF
        return self._fixed + number.to_bytes(8, "big")

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        return header, self._aead.encrypt(self._next_iv(), packet, header)

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:
        return first_block, first_block[:header_len]

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:
        sealed = b"".join((first[header_len:], rest, mac))
        try:
            return self._aead.decrypt(self._next_iv(), sealed, first[:header_len])
        except InvalidTag:
            return None


class _EveryChannel(dict[int, Any]):
    """Stands in for the channel table: every number leads to the leg itself, and nothing is listed."""

    def __init__(self, leg: SSHConnection) -> None:
        super().__init__()
        self._leg = leg

    def __missing__(self, number: int) -> SSHConnection:
        return self._leg


class _Leg(SSHConnection):
    """What both legs have in common. Mixed in before asyncssh's own class."""

    side: Leg
    owner: LegOwner | None
    peer: _Leg | None

    def _prepare_leg(self) -> None:
        self.owner = None
        self.peer = None
        self._channels = cast(Any, _EveryChannel(self))
        self._max_recv_pktlen = _PACKET_MAX_BEFORE_AUTH
        self._corked: list[bytes] | None = None
        self._write_paused = False
        self._reading_held = False
        self._deferred_bytes = 0
        self._farewell: tuple[int, str] | None = None
        self._linger_s = _STRANGER_LINGER_S
        self._lingering: asyncio.Transport | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._rekey_timer: asyncio.TimerHandle | None = None
        self._end_reason = ""

    # -- used by the bridge and by whoever made the leg ---------------------

    def relay_to(self, owner: LegOwner) -> None:
        """From here on messages 80–100 go to `owner`. Call it when the peer has authenticated."""
        self.owner = owner
        self._max_recv_pktlen = _PACKET_MAX
        self._linger_s = LINGER_S

    def pair_with(self, peer: _Leg) -> None:
        """Let each leg's slowness hold the other's reading."""
        self.peer, peer.peer = peer, self
        self._update_reading()
        peer._update_reading()

    @property
    def is_over(self) -> bool:
        return self._transport is None

    def deliver(self, payload: bytes) -> None:
        if self._transport is not None:
            self.send_packet(payload[0], payload[1:])

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
            self._linger_s = _CUT_LINGER_S
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

    # -- packets in ---------------------------------------------------------

    def data_received(self, data: bytes, datatype: Any = None) -> None:
        # In slices: asyncssh cuts each packet off a bytes buffer, which copies the rest of it every time.
        for start in range(0, len(data), _READ_SLICE):
            if self._transport is None:
                return
            self._inpbuf += data[start : start + _READ_SLICE]
            self._recv_data()

    def _recv_data(self) -> None:
        peer = self.peer
        if peer is None or peer._corked is not None:
            super()._recv_data()
            return
        # One write for all that this read brings: a system call costs more than a small packet.
        peer._corked = []
        try:
            super()._recv_data()
        finally:
            peer._uncork()

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool | Awaitable[None]:
        if pkttype < packets.GLOBAL_REQUEST:
            return super().process_packet(pkttype, pktid, packet)
        if pkttype not in packets.RELAYED or self.owner is None:
            return False  # answered as unimplemented
        if self._kex is not None or self._next_recv_encryption is not None:
            raise asyncssh.ProtocolError("Message inside a key exchange")
        self.owner.received(self.side, packet.get_full_payload())
        return True

    def log_received_packet(self, *_arguments: object, **_options: object) -> None:
        """Nothing: formatting a log line costs more than relaying the packet."""

    def log_sent_packet(self, *_arguments: object, **_options: object) -> None:
        """Nothing, as above."""

    # -- packets out --------------------------------------------------------

    def send_packet(self, pkttype: int, *args: bytes, handler: SSHPacketLogger | None = None) -> None:
        if pkttype == MSG_IGNORE and args == (_EMPTY,):
            return
        waiting = len(self._deferred_packets)
        super().send_packet(pkttype, *args, handler=handler)
        if len(self._deferred_packets) > waiting:
            self._deferred_bytes += sum(map(len, args)) + 128
            if self._deferred_bytes > _DEFERRED_HARD:
                self._give_up("too much data waits for a key exchange")
            elif self._deferred_bytes > _DEFERRED_SOFT and self.peer is not None:
                self.peer._update_reading()

    def _send(self, data: bytes) -> None:
        if self._corked is not None:
            self._corked.append(data)
        else:
            super()._send(data)

    def _uncork(self) -> None:
        corked, self._corked = self._corked, None
        if corked:
            super()._send(b"".join(corked))

    # -- key exchange -------------------------------------------------------

    @property
    def _is_rekeying(self) -> bool:
        return not self._kex_complete or self._next_recv_encryption is not None

    def _send_kexinit(self) -> None:
        super()._send_kexinit()
        if self._rekey_timer is None:
            self._rekey_timer = self._loop.call_later(_REKEY_TIMEOUT_S, self._give_up, "a key exchange took too long")
        self._update_reading()

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        super().send_newkeys(k, h)
        if isinstance(self._send_encryption, GCMEncryption):
            self._send_encryption = CachedGcm(self._send_encryption)
        if isinstance(self._next_recv_encryption, GCMEncryption):
            self._next_recv_encryption = CachedGcm(self._next_recv_encryption)

    def _send_deferred_packets(self) -> None:
        self._deferred_bytes = 0
        super()._send_deferred_packets()
        if self._kex_complete and self._rekey_timer is not None:
            self._rekey_timer.cancel()
            self._rekey_timer = None
        if self.peer is not None:
            self.peer._update_reading()
        if self._farewell is not None and not self._deferred_packets:
            self._say_farewell()

    # -- back-pressure ------------------------------------------------------

    def pause_writing(self) -> None:
        self._write_paused = True
        if self.peer is not None:
            self.peer._update_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self.peer is not None:
            self.peer._update_reading()

    def _update_reading(self) -> None:
        """Stop reading this leg while the other one cannot take more.

        A leg that renews its own keys is read on, or two renewals could wait for
        each other for ever; the hard limit bounds what gathers meanwhile.
        """
        peer, transport = self.peer, self._transport
        if peer is None or transport is None:
            return
        held = peer._write_paused or (peer._deferred_bytes > _DEFERRED_SOFT and not self._is_rekeying)
        if held != self._reading_held:
            self._reading_held = held
            if held:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def _lose_peer(self) -> None:
        """The other leg is gone: nothing holds this one's reading any more."""
        self.peer = None
        if self._reading_held and self._transport is not None:
            self._transport.resume_reading()
        self._reading_held = False

    # -- the end ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        super().connection_made(transport)

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

    def internal_error(self, exc_info: Any = None, error_logger: Any = None) -> None:
        # Not the exception's text: it may hold the peer's bytes.
        kind = (exc_info or sys.exc_info())[0]
        _log.error("the %s leg was dropped by an error: %s", self.side.value, getattr(kind, "__name__", "unknown"))
        super().internal_error(exc_info, error_logger)

    def _force_close(self, exc: Exception | None) -> None:
        transport = self._transport
        if transport is None:
            return
        self._uncork()
        self._transport = None
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
            self._linger_timer = self._loop.call_later(self._linger_s, transport.abort)
        self._loop.call_soon(self._cleanup, exc)

    def _cleanup(self, exc: Exception | None) -> None:
        if self._rekey_timer is not None:
            self._rekey_timer.cancel()
            self._rekey_timer = None
        super()._cleanup(exc)
        self._deferred_packets = []
        owner, self.owner = self.owner, None
        peer, self.peer = self.peer, None
        if peer is not None:
            peer._lose_peer()
        if owner is not None:
            owner.leg_ended(self.side, self._end_reason)


class ClientLeg(_Leg, SSHServerConnection):
    """The connection that a client opened to us."""

    side = Leg.CLIENT

    def __init__(
        self, loop: asyncio.AbstractEventLoop, options: Any, judge: KeyJudge, *, max_auth_requests: int
    ) -> None:
        SSHServerConnection.__init__(self, loop, options)
        self._prepare_leg()
        self._protocol_factory = lambda: cast(asyncssh.SSHServer, judge)
        self._judge = judge
        self._auth_requests_left = max_auth_requests
        self._let_in = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peername = transport.get_extra_info("peername")
        self.source = str(peername[0]) if isinstance(peername, tuple) else ""
        if not self._judge.admit_socket(self.source):
            self._cancel_login_timer()
            cast(asyncio.Transport, transport).abort()
            return
        self._let_in = True
        _watch_for_dead_peer(transport.get_extra_info("socket"))
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None = None) -> None:
        super().connection_lost(exc)
        if self._let_in:
            self._let_in = False
            self._judge.socket_closed()

    async def reload_config(self) -> None:
        """Nothing: there is no configuration file, and asyncssh would build all options anew."""

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool | Awaitable[None]:
        if pkttype == MSG_USERAUTH_REQUEST and not self._auth_complete:
            self._auth_requests_left -= 1
            if self._auth_requests_left < 0:
                raise asyncssh.DisconnectError(
                    asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many authentication failures"
                )
        return super().process_packet(pkttype, pktid, packet)

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        """The judge hears of the very key that verifies, in the very request that names the user."""
        proved = self._verify(key_data, msg, signature) if msg else None
        return await self._judge.judge_key(username, key_data, proved)

    def _verify(self, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        try:
            algorithm = SSHPacket(signature).get_string().decode("ascii", "replace")
            if algorithm not in SIGNATURE_ALGORITHMS:
                return False
            return decode_ssh_public_key(key_data).verify(String(self._session_id) + msg, signature)
        except (ValueError, asyncssh.KeyImportError):
            return False


class BoxLeg(_Leg, SSHClientConnection):
    """The connection that we open to a workspace's sshd."""

    side = Leg.BOX

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Any, owner: LegOwner) -> None:
        SSHClientConnection.__init__(self, loop, options, wait="auth")
        self._prepare_leg()
        # Before authentication asyncssh itself refuses every message that is relayed.
        self.relay_to(owner)

    async def wait_authenticated(self) -> None:
        """Raises asyncssh.Error or OSError when the peer is not the pinned one, or refuses us."""
        assert self._waiter is not None
        await self._waiter
        if self._transport is None:
            raise asyncssh.ConnectionLost("Connection lost")


def options_for_box(
    base: asyncssh.SSHClientConnectionOptions,
    *,
    username: str,
    key_pairs: Sequence[asyncssh.SSHKeyPair],
    host_key: asyncssh.SSHKey,
    waiter: asyncio.Future[None],
) -> asyncssh.SSHClientConnectionOptions:
    """A copy of `base` for one connection: building options from scratch costs more than the handshake's crypto."""
    options = copy.copy(base)
    options.username = username
    options.client_keys = list(key_pairs)
    options.known_hosts = ([host_key], [], [], [], [], [], [])
    options.waiter = waiter
    return options


def _watch_for_dead_peer(sock: Any) -> None:
    """A client that vanished without a word (a closed laptop) is noticed in two minutes, not in two hours."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
