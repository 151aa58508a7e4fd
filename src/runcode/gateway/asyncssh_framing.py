"""Reads a leg's packets with `framing` instead of with asyncssh, once its peer has authenticated.

Owns: `FramedConnection`, which takes the socket's bytes over from asyncssh, and
`Framing`, what all legs of one gateway share: the buffer they read into, whether
our framing is in use, and how much it carried. Never: a rule about messages. Base
of the two legs in `asyncssh_legs`; `asyncssh_trial` says whether it may be used.

What happens with a packet:
- 93–95 (window, data) is sealed anew for the other leg where it lies; all that one
  read brought leaves in one write.
- 80–82, 90–92 and 96–100 go to the leg's owner.
- everything else (key exchange, disconnect, ignore, what no one knows) goes to
  asyncssh's own machinery, which is handed one opened packet as if it had just
  read it. While that works in a task, nothing further is read.

A leg whose cipher is not AES-GCM, or whose loop reads into buffers later than it
asks for them, stays with asyncssh's own framing; all works, at thrice the cost. A
client that has both ciphers and carries much is moved to AES-GCM.

Threat: a peer that sends one byte at a time, or half a packet and no more: what an
unfinished packet costs is its own size, and time in proportion to it. All legs
share one buffer: nothing of one leg may be left in it for another to send.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncssh
from asyncssh.connection import SSHConnection

from runcode.gateway import packets
from runcode.gateway.asyncssh_cipher import GcmPackets
from runcode.gateway.asyncssh_relay import PACKET_MAX, RelayedConnection
from runcode.gateway.framing import (
    FRAME_OVERHEAD,
    LENGTH_SIZE,
    TAG_SIZE,
    BadFrame,
    GcmKey,
    read_message,
    reseal,
    wanted_size,
)

# What one read may bring. More would leave the processor's cache between opening and sealing.
_READ_SIZE = 256 * 1024
# Room before it for the part of a packet that an earlier read brought.
_PARTIAL_ROOM = PACKET_MAX + FRAME_OVERHEAD
# Bytes that may wait for asyncssh before the socket is left alone.
_HELD_MAX = 64 * 1024
_CIPHER_CHANGE_AFTER = 1024 * 1024
_GCM_CIPHERS = (b"aes128-gcm@openssh.com", b"aes256-gcm@openssh.com")
_SEQUENCE_MASK = 0xFFFFFFFF


class Framing:
    """`obstacle` says why our framing is not used; None means that it is.

    `resealed` and `handled_singly` count bytes of packets 93–95: those that took the
    short way, and those that did not (another cipher, a key exchange, no workspace yet).
    """

    def __init__(self, obstacle: str | None = None) -> None:
        self.obstacle = obstacle
        self.resealed = 0
        self.handled_singly = 0
        self.buffer = memoryview(bytearray(_PARTIAL_ROOM + _READ_SIZE))
        self.read_area = self.buffer[_PARTIAL_ROOM:]


def find_loop_obstacle(loop: asyncio.AbstractEventLoop) -> str | None:
    """Why legs on this loop cannot share a buffer, or None."""
    # A proactor asks for the buffer, and fills it when something else has long been read into it.
    return None if isinstance(loop, asyncio.SelectorEventLoop) else f"the event loop is a {type(loop).__name__}"


class FramedConnection(RelayedConnection, asyncio.BufferedProtocol):
    """Mixed in before asyncssh's own class."""

    peer: FramedConnection | None

    def _prepare_framing(self, framing: Framing) -> None:
        self._prepare_leg()
        self._framing = framing
        # Are the socket's bytes ours? Then asyncssh's `_inpbuf` is empty between two packets.
        self._is_framed = False
        # An unfinished frame of which `_wanted` bytes are needed next; whatever came in while asyncssh was busy.
        self._partial = bytearray()
        self._wanted = 0
        self._handled_singly = 0
        self._has_changed_cipher = False
        self._faster_ciphers: tuple[bytes, ...] = ()

    # -- the socket ---------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._framing.read_area

    def buffer_updated(self, nbytes: int) -> None:
        if self._transport is None:
            self._throw_away(nbytes)
            return
        framing, partial = self._framing, self._partial
        if not self._is_framed:
            self.data_received(bytes(framing.read_area[:nbytes]))
            self._update_reading()
        elif self._is_busy or len(partial) + nbytes < self._wanted:
            partial += framing.read_area[:nbytes]
            self._update_reading()
        else:
            start = _PARTIAL_ROOM - len(partial)
            if partial:
                framing.buffer[start:_PARTIAL_ROOM] = partial
                self._partial = bytearray()
            self._read_frames(framing.buffer, start, _PARTIAL_ROOM + nbytes)
            if self._write_paused:
                self._update_reading()

    @property
    def _is_busy(self) -> bool:
        """Does asyncssh still work on the last packet that it was handed?"""
        return self._recv_handler not in (self._recv_pkthdr, self._recv_packet, self._recv_version)

    def _is_held(self) -> bool:
        return len(self._partial) + len(self._inpbuf) > _HELD_MAX and self._is_busy

    # -- to and from asyncssh -----------------------------------------------

    def _take_over(self) -> None:
        """From here on the socket's bytes are ours, if they can be."""
        if self.owner is None or self._framing.obstacle is not None or not self._auth_complete:
            return
        if type(self._recv_encryption) is not GcmPackets or self._is_busy:
            return
        # A header that asyncssh has read already lies in `_packet`, as it came.
        rest, self._packet, self._inpbuf = self._packet + self._inpbuf, b"", b""
        self._recv_handler = self._recv_pkthdr
        self._partial = bytearray(rest)
        self._is_framed = True

    def _give_back(self, rest: bytes) -> None:
        """The peer changed to another cipher than AES-GCM."""
        self._is_framed = False
        self.data_received(rest)

    def _recv_data(self) -> None:
        if not self._is_framed:
            self._take_over()
        elif self._inpbuf:
            # What came in one read with the packet that let us take over.
            self._partial += self._inpbuf
            self._inpbuf = b""
        if self._is_framed:
            self._read_on()
        else:
            super()._recv_data()

    def _forget_handshake(self) -> None:
        if type(self._recv_encryption) is not GcmPackets:
            offered = self._client_kexinit
            self._faster_ciphers = tuple(name for name in _GCM_CIPHERS if name in offered)
        super()._forget_handshake()

    def _finish_recv_packet(self, pkttype: int, seq: int, _task: Any = None, is_async: bool = False) -> None:
        super()._finish_recv_packet(pkttype, seq, _task, is_async)
        if is_async and self._transport is not None:
            self._read_on()
            self._update_reading()

    def _read_on(self) -> None:
        """Go on with what came in while asyncssh was busy."""
        if self._partial and self._is_framed and not self._is_busy:
            waiting, self._partial = self._partial, bytearray()
            self._read_frames(memoryview(waiting), 0, len(waiting))

    # -- frames -------------------------------------------------------------

    def _read_frames(self, view: memoryview, at: int, end: int) -> None:
        """Handle all whole frames in `view`, and keep the rest. The view's bytes are changed."""
        self._wanted = 0
        peer = self.peer
        gathered_by_us = peer is not None and peer._corked is None
        if peer is not None and gathered_by_us:
            peer._corked = []
        try:
            self._pass_frames(view, at, end)
        except BadFrame as fault:
            self._end_for(
                asyncssh.MACError("MAC verification failed") if fault.mac else asyncssh.ProtocolError(str(fault))
            )
        except asyncssh.DisconnectError as error:
            self._end_for(error)
        except Exception:
            self.internal_error()
        finally:
            if peer is not None and gathered_by_us:
                peer._flush()

    def _pass_frames(self, view: memoryview, at: int, end: int) -> None:
        longest = self._max_recv_pktlen
        while self._transport is not None:
            cipher, owner = self._recv_encryption, self.owner
            if type(cipher) is not GcmPackets or owner is None:
                self._give_back(bytes(view[at:end]))
                return
            if self._is_busy:
                self._partial += view[at:end]
                return
            sealer, budget = self._find_sealer()
            stretch = reseal(
                view,
                at,
                end,
                opener=cipher.key,
                sealer=sealer,
                longest=longest,
                budget=budget,
                count=owner.counter(self.side),
            )
            if stretch.packets:
                assert self.peer is not None
                self.peer._put_frames(view[at : stretch.stop], stretch.packets, stretch.octets)
                self._recv_seq = (self._recv_seq + stretch.packets) & _SEQUENCE_MASK
                self._auth_final = True
                self._framing.resealed += stretch.octets
            at = stretch.stop
            if stretch.fault is not None:
                raise stretch.fault
            if stretch.opened is None:
                self._partial += view[at:end]
                self._wanted = wanted_size(self._partial, longest)
                return
            at += FRAME_OVERHEAD + len(stretch.opened)
            self._handle_packet(cipher, stretch.opened)

    def _find_sealer(self) -> tuple[GcmKey | None, int]:
        """The other leg's key, and the octets that it may seal before it is renewed; None: not just now."""
        peer = self.peer
        if peer is None or peer._corked is None or peer._transport is None or self.owner is None or self.owner.over:
            return None, 0
        if self._kex is not None or self._next_recv_encryption is not None or not peer._kex_complete:
            return None, 0
        cipher = peer._send_encryption
        if type(cipher) is not GcmPackets or (peer._rekey_seconds and time.monotonic() >= peer._rekey_time):
            return None, 0
        return cipher.key, peer._rekey_bytes - peer._rekey_bytes_sent

    def _put_frames(self, frames: memoryview, count: int, octets: int) -> None:
        """Sealed with this leg's key, to leave with all else that is gathered."""
        assert self._corked is not None
        self._corked.append(frames)
        self._send_seq = (self._send_seq + count) & _SEQUENCE_MASK
        self._rekey_bytes_sent += octets

    def _handle_packet(self, cipher: GcmPackets, opened: bytes) -> None:
        payload = read_message(opened)
        if payload[0] in packets.RELAYED:
            self._recv_seq = (self._recv_seq + 1) & _SEQUENCE_MASK
            self._auth_final = True
            self._hand_to_owner(payload)
            return
        self._hand_to_asyncssh(cipher, opened)

    def _hand_to_owner(self, payload: bytes) -> None:
        if packets.CHANNEL_WINDOW_ADJUST <= payload[0] <= packets.CHANNEL_EXTENDED_DATA:
            self._framing.handled_singly += len(payload)
            self._count_singly(len(payload))
        super()._hand_to_owner(payload)

    def deliver(self, payload: bytes) -> None:
        super().deliver(payload)
        self._count_singly(len(payload))

    def _count_singly(self, size: int) -> None:
        """A connection that carries much under another cipher renews its keys, for one whose packets go the short way.

        OpenSSH before 10 prefers aes256-ctr to AES-GCM, which it can do as well; the client's order decides, so the
        choice is offered anew without the other.
        """
        self._handled_singly += size
        if (
            self._handled_singly < _CIPHER_CHANGE_AFTER
            or self._has_changed_cipher
            or self._framing.obstacle is not None
        ):
            return
        if self.is_client() or self._transport is None or not self._auth_complete or self._is_rekeying:
            return
        self._has_changed_cipher = True
        if not self._is_framed and self._faster_ciphers:
            self._enc_algs = list(self._faster_ciphers)
            self._send_kexinit()
            self._kexinit_sent = True

    def _hand_to_asyncssh(self, cipher: GcmPackets, opened: bytes) -> None:
        """As if it had just read this packet's frame; the tag is not looked at."""
        cipher.opened = opened
        self._inpbuf = len(opened).to_bytes(LENGTH_SIZE, "big") + opened + bytes(TAG_SIZE)
        SSHConnection._recv_data(self)
