"""SSH packets under AES-GCM, many at a time, in the very buffer that they were read into.

Owns: where a packet ends, opening it, sealing it anew for the other side in the
same place, and the nonces that both need. Never: a socket, asyncssh, a rule about
messages beyond the numbers of the three that carry data. Called by
`asyncssh_framing`.

Both sides' packets have the same form and size under AES-GCM (4 bytes of length,
the sealed rest, 16 bytes of tag), whichever key size each has. So a packet of data
is opened and sealed where it lies, padding and all, and a whole stretch of them
leaves in one write without having been copied.

Threat: the sender chooses every byte. A length that is no length, a tag that does
not fit, padding that leaves no message: its connection ends, and nothing of that
packet has passed.

Source: RFC 4253 §6 (packet), RFC 5647 §7 (AES-GCM), RFC 4254 §5 (messages 93–95).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack_from
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runcode.gateway.packets import CHANNEL_DATA, CHANNEL_EXTENDED_DATA, CHANNEL_WINDOW_ADJUST

LENGTH_SIZE = 4
TAG_SIZE = 16
FRAME_OVERHEAD = LENGTH_SIZE + TAG_SIZE
_BLOCK = 16
_PADDING_MIN = 4
_INVOCATIONS = (1 << 64) - 1


class BadFrame(Exception):
    """The sender's fault: `mac` tells a tag that does not fit from a form that cannot be."""

    def __init__(self, reason: str, *, mac: bool = False) -> None:
        super().__init__(reason)
        self.mac = mac


class GcmKey:
    """The key of one direction, and the nonce of its next packet (RFC 5647 §7.1: 4 fixed bytes, 8 that count)."""

    __slots__ = ("aead", "fixed", "invocation")

    def __init__(self, key: bytes, first_nonce: bytes) -> None:
        self.aead = AESGCM(key)
        self.fixed = int.from_bytes(first_nonce[:4], "big") << 64
        self.invocation = int.from_bytes(first_nonce[4:], "big")

    def _take_nonce(self) -> bytes:
        number = self.invocation
        self.invocation = (number + 1) & _INVOCATIONS
        return (self.fixed | number).to_bytes(12, "big")

    def seal(self, header: bytes, packet: bytes) -> bytes:
        """`packet` (padding length, message, padding) → as it is sent after `header`, tag included."""
        return self.aead.encrypt(self._take_nonce(), packet, header)

    def open(self, header: bytes, sealed: bytes) -> bytes:
        """The other way round. Raises BadFrame."""
        try:
            return self.aead.decrypt(self._take_nonce(), sealed, header)
        except InvalidTag:
            raise BadFrame("the tag does not fit", mac=True) from None


class Stretch(NamedTuple):
    """How far `reseal` came: every frame before `stop` is ready to be sent.

    `opened` is the packet of the frame at `stop` (padding length, message, padding)
    when that one is for others to handle; None when more bytes are needed first.
    `fault` is what is wrong with the frame at `stop`: those before it have been
    sealed, so they must be sent all the same.
    """

    stop: int
    packets: int
    octets: int
    opened: bytes | None
    fault: BadFrame | None = None


def wanted_size(frame: memoryview | bytearray, longest: int) -> int:
    """Bytes of a frame from its first ones; what is needed to tell, while those are too few. Raises BadFrame."""
    if len(frame) < LENGTH_SIZE:
        return LENGTH_SIZE
    length = int.from_bytes(frame[:LENGTH_SIZE], "big")
    fault = _find_length_fault(length, longest)
    if fault is not None:
        raise fault
    return FRAME_OVERHEAD + length


def read_message(opened: bytes) -> bytes:
    """The message in an opened packet. Raises BadFrame when the padding leaves none."""
    padding = opened[0]
    if not _PADDING_MIN <= padding < len(opened) - 1:
        raise BadFrame("the padding leaves no message")
    return opened[1 : len(opened) - padding]


def reseal(
    view: memoryview,
    at: int,
    end: int,
    *,
    opener: GcmKey,
    sealer: GcmKey | None,
    longest: int,
    budget: int,
    count: Callable[[int, int], None],
) -> Stretch:
    """Turn the sender's frames from `at` on into the receiver's, in place, up to the first that carries no data.

    `longest` is the most that a packet's length field may say. Frames are sealed
    while their octets (as that field counts them) are within `budget`; without a `sealer` none is.
    `count` hears of each data message: the receiver's channel number and the data's size.
    """
    decrypt_into, opener_fixed = opener.aead.decrypt_into, opener.fixed
    encrypt_into, sealer_fixed = (None, 0) if sealer is None else (sealer.aead.encrypt_into, sealer.fixed)
    packets = octets = 0
    while end - at >= LENGTH_SIZE:
        header = view[at : at + LENGTH_SIZE]
        length = int.from_bytes(header, "big")
        if length > longest or length < _BLOCK or length % _BLOCK:
            return Stretch(at, packets, octets, None, _find_length_fault(length, longest))
        stop = at + FRAME_OVERHEAD + length
        if stop > end:
            break
        sealed = view[at + LENGTH_SIZE : stop]
        packet = sealed[:length]
        number = opener.invocation
        opener.invocation = (number + 1) & _INVOCATIONS
        try:
            decrypt_into((opener_fixed | number).to_bytes(12, "big"), sealed, header, packet)
        except InvalidTag:
            return Stretch(at, packets, octets, None, BadFrame("the tag does not fit", mac=True))
        padding, kind = packet[0], packet[1]
        if (
            sealer is None
            or encrypt_into is None
            or octets >= budget
            or not CHANNEL_WINDOW_ADJUST <= kind <= CHANNEL_EXTENDED_DATA
            or not _PADDING_MIN <= padding < length - 1
        ):
            return Stretch(at, packets, octets, bytes(packet))
        if kind != CHANNEL_WINDOW_ADJUST:
            # What follows the message's number, the channel's and the data's size is data (RFC 4254 §5.2).
            size = length - padding - (10 if kind == CHANNEL_DATA else 14)
            if size > 0:
                count(unpack_from(">I", packet, 2)[0], size)
        number = sealer.invocation
        sealer.invocation = (number + 1) & _INVOCATIONS
        encrypt_into((sealer_fixed | number).to_bytes(12, "big"), packet, header, sealed)
        packets += 1
        octets += length
        at = stop
    return Stretch(at, packets, octets, None)


def _find_length_fault(length: int, longest: int) -> BadFrame | None:
    if length > longest:
        return BadFrame("Max packet size exceeded")
    if length < _BLOCK or length % _BLOCK:
        return BadFrame("a packet's length is not whole blocks")
    return None
