"""An asyncssh connection whose messages 80–100 go to a bridge instead of to channels.

Owns: `RelayedConnection`: packets from and to asyncssh's own machinery, what waits
while keys are renewed, and each leg's slowness holding the other's reading. Never:
a decision about who may pass or what may be relayed. Base of
`asyncssh_framing`'s connection; `asyncssh_check` names what an upgrade broke.

What it changes in asyncssh 2.24.1, and why:
- an empty ignore message goes out before every packet, against CBC attacks; no
  CBC cipher is offered here, so it is left out.
- the AES-GCM object is built anew for every packet; here once per key.
- every packet is formatted for a debug log; that is left out.
- nothing bounds the packets that wait while keys are renewed; here the other
  leg stops reading, and there is a hard limit.
- a packet's length may say that it is shorter than its own header.

Threat: a peer that starts a key exchange and never ends it, or sends data inside
one (RFC 4253 §7.1), or never reads: neither the data for it nor the answers to what
it goes on asking.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

import asyncssh
from asyncssh.connection import SSHConnection
from asyncssh.encryption import GCMEncryption
from asyncssh.packet import SSHPacket, SSHPacketLogger, String

from runcode.gateway import packets
from runcode.gateway.asyncssh_cipher import GcmPackets
from runcode.gateway.asyncssh_ending import LINGER_MAX_S, LINGER_S, EndingConnection
from runcode.gateway.asyncssh_slimming import NOBODY_WAITS, forget_handshake
from runcode.gateway.relay import Leg

MSG_IGNORE = 2
MSG_NEWKEYS = 21
_EMPTY = String(b"")
PACKET_MAX_BEFORE_AUTH = 40_000
# RFC 4253 §6: 16 bytes, the length field itself included.
_PACKET_MIN = 12
PACKET_MAX = 256 * 1024
_READ_SLICE = 64 * 1024
_WRITE_HIGH_WATER = 256 * 1024
_DEFERRED_SOFT = 256 * 1024
_DEFERRED_HARD = 16 * 1024 * 1024
_REKEY_TIMEOUT_S = 60.0
# What may wait for a peer that goes on sending and reads nothing, beside what the other leg's own hold-up lets through.
_UNREAD_MAX = 1024 * 1024


class LegOwner(Protocol):
    """Who a leg reports to once its packets are relayed. `over`: it wants to hear of no more."""

    over: bool

    def received(self, source: Leg, payload: bytes) -> None: ...

    def counter(self, source: Leg) -> Callable[[int, int], None]:
        """What hears of data that passes without being handed over: the receiver's channel number, the bytes."""
        ...

    def leg_ended(self, side: Leg, reason: str) -> None: ...


class _EveryChannel(dict[int, Any]):
    """Stands in for the channel table: every number leads to the leg itself, and nothing is listed."""

    __slots__ = ("_leg",)

    def __init__(self, leg: SSHConnection) -> None:
        super().__init__()
        self._leg = leg

    def __missing__(self, number: int) -> SSHConnection:
        return self._leg


class RelayedConnection(EndingConnection):
    """What both legs have in common. Mixed in before asyncssh's own class."""

    owner: LegOwner | None
    peer: RelayedConnection | None

    def _prepare_leg(self) -> None:
        self._prepare_ending()
        self.owner = None
        self.peer = None
        self._channels = cast(Any, _EveryChannel(self))
        self._close_event = cast(Any, NOBODY_WAITS)
        self._max_recv_pktlen = PACKET_MAX_BEFORE_AUTH
        # Parts of the one write that follows a read of the other leg; None while nobody gathers.
        self._corked: list[bytes | memoryview] | None = None
        self._write_paused = False
        self._reading_held = False
        self._deferred_bytes = 0
        self._rekey_timer: asyncio.TimerHandle | None = None

    # -- used by the bridge and by whoever made the leg ---------------------

    def relay_to(self, owner: LegOwner) -> None:
        """From here on messages 80–100 go to `owner`. Call it when the peer has authenticated."""
        self.owner = owner
        self._max_recv_pktlen = PACKET_MAX
        self._linger_s, self._linger_max_s = LINGER_S, LINGER_MAX_S

    def pair_with(self, peer: RelayedConnection) -> None:
        """Let each leg's slowness hold the other's reading."""
        self.peer, peer.peer = peer, self
        for leg in (self, peer):
            leg._update_reading()
            leg._forget_handshake()

    def deliver(self, payload: bytes) -> None:
        if self._transport is not None:
            self.send_packet(payload[0], payload[1:])

    # -- packets in ---------------------------------------------------------

    def data_received(self, data: bytes, datatype: Any = None) -> None:
        # In slices: asyncssh cuts each packet off a bytes buffer, which copies the rest of it every time.
        for start in range(0, len(data), _READ_SLICE):
            if self._transport is None:
                return
            self._inpbuf += data[start : start + _READ_SLICE]
            self._recv_data()

    def _recv_data(self) -> None:
        if self._transport is None:
            return  # asyncssh goes on after a message that it took a task for, even if that one ended the connection
        peer = self.peer
        if peer is None or peer._corked is not None:
            super()._recv_data()
            return
        # One write for all that this read brings: a system call costs more than a small packet.
        peer._corked = []
        try:
            super()._recv_data()
        finally:
            peer._flush()

    def _recv_pkthdr(self) -> bool:
        was_read = super()._recv_pkthdr()
        if was_read and self._pktlen < _PACKET_MIN:
            raise asyncssh.ProtocolError("Packet too short")
        return was_read

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool | Awaitable[None]:
        if pkttype < packets.GLOBAL_REQUEST:
            return super().process_packet(pkttype, pktid, packet)
        if pkttype not in packets.RELAYED or self.owner is None:
            return False  # answered as unimplemented
        self._hand_to_owner(packet.get_full_payload())
        return True

    def _hand_to_owner(self, payload: bytes) -> None:
        if self._kex is not None or self._next_recv_encryption is not None:
            raise asyncssh.ProtocolError("Message inside a key exchange")
        if self.owner is not None:
            self.owner.received(self.side, payload)

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

    def _flush(self) -> None:
        parts, self._corked = self._corked, None
        transport = self._transport
        if not parts or transport is None:
            return
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        sent = 0
        if transport.get_write_buffer_size() == 0 and not transport.is_closing():
            # Past the transport, which from Python 3.12 on keeps what it cannot send without a copy: these parts lie
            # in a buffer that the next read fills anew. An error is left for the transport to meet.
            try:
                sent = os.write(transport.get_extra_info("socket").fileno(), whole)
            except OSError:
                sent = 0
        if sent < len(whole):
            super()._send(bytes(memoryview(whole)[sent:]))

    # -- key exchange -------------------------------------------------------

    @property
    def _is_rekeying(self) -> bool:
        return not self._kex_complete or self._next_recv_encryption is not None

    def _send_kexinit(self) -> None:
        super()._send_kexinit()
        if self._rekey_timer is None:
            self._rekey_timer = self._loop.call_later(_REKEY_TIMEOUT_S, self._give_up, "a key exchange took too long")
        self._update_reading()

    def _finish_recv_packet(self, pkttype: int, seq: int, _task: Any = None, is_async: bool = False) -> None:
        super()._finish_recv_packet(pkttype, seq, _task, is_async)
        if pkttype == MSG_NEWKEYS and self.peer is not None:
            self._forget_handshake()

    def _forget_handshake(self) -> None:
        if self._kex is None and not self._is_rekeying and not self._kexinit_sent:
            forget_handshake(self)

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        super().send_newkeys(k, h)
        if isinstance(self._send_encryption, GCMEncryption):
            self._send_encryption = GcmPackets(self._send_encryption)
        if isinstance(self._next_recv_encryption, GCMEncryption):
            self._next_recv_encryption = GcmPackets(self._next_recv_encryption)

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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        self._write_paused = True
        if self.peer is not None:
            self.peer._update_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._update_reading()
        if self.peer is not None:
            self.peer._update_reading()

    def _leaves_answers_unread(self) -> bool:
        """Has the peer been sent more than it takes? Before authentication all of that are answers of ours."""
        transport = self._transport
        if not self._write_paused or transport is None:
            return False
        return self.owner is None or transport.get_write_buffer_size() > _UNREAD_MAX

    def _update_reading(self) -> None:
        """Stop reading this leg while the other one cannot take more, or its own peer does not read our answers.

        A leg that renews its own keys is read on, or two renewals could wait for
        each other for ever; the hard limit bounds what gathers meanwhile.
        """
        peer, transport = self.peer, self._transport
        if transport is None:
            return
        held = (
            self._is_held()
            or self._leaves_answers_unread()
            or (
                peer is not None
                and (peer._write_paused or (peer._deferred_bytes > _DEFERRED_SOFT and not self._is_rekeying))
            )
        )
        if held != self._reading_held:
            self._reading_held = held
            if held:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def _is_held(self) -> bool:
        """Does this leg itself not want to be read just now?"""
        return False

    def _lose_peer(self) -> None:
        """The other leg is gone: nothing holds this one's reading any more."""
        self.peer = None
        self._update_reading()

    # -- the end ------------------------------------------------------------

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
