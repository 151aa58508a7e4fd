"""Our framing against asyncssh's own, in memory: may packets be read and written by it?

Owns: the trial. What it names does not keep the gateway from starting: it then relays
by asyncssh's own framing, at thrice the cost, and says so. Called by `server` at
each start, by `runcode-server doctor`, and by contract tests.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import asyncssh
from asyncssh.encryption import GCMEncryption
from asyncssh.packet import SSHPacket

from runcode.gateway.asyncssh_cipher import GcmPackets
from runcode.gateway.asyncssh_framing import FramedConnection
from runcode.gateway.framing import reseal


def find_framing_obstacle() -> str | None:
    """Why packets cannot be read and written by `framing`, in a few words; None when they can. A millisecond."""
    try:
        for key_size in (16, 32):
            _try_resealing(f"aes{key_size * 8}-gcm", key_size)
        _try_handing_over()
    except Exception as error:  # whatever an upgrade did: this is a trial, and asyncssh's own framing is there
        return f"its trial against asyncssh {asyncssh.__version__} failed: {error or type(error).__name__}"
    return None


def _try_resealing(cipher: str, key_size: int) -> None:
    """Frames that asyncssh sealed for us → frames that it opens as its own, over a wrap of the nonce's counter."""
    nonces = [os.urandom(4) + b"\xff" * 8 for _ in range(2)]
    keys = [os.urandom(key_size) for _ in range(2)]
    sender, receiver = (GCMEncryption.new(cipher, key, nonce) for key, nonce in zip(keys, nonces, strict=True))
    opener, sealer = (
        GcmPackets(GCMEncryption.new(cipher, key, nonce)).key for key, nonce in zip(keys, nonces, strict=True)
    )
    whole = [_pad(bytes((number,)) + os.urandom(size)) for number, size in ((94, 32_777), (93, 8), (95, 40), (98, 12))]
    frames = []
    for packet in whole:
        header = len(packet).to_bytes(4, "big")
        frames.append(b"".join(sender.encrypt_packet(0, header, packet)))
    stops = [0]
    for frame in frames:
        stops.append(stops[-1] + len(frame))
    view = memoryview(bytearray(b"".join(frames)))
    counted: list[tuple[int, int]] = []
    stretch = reseal(
        view,
        0,
        len(view),
        opener=opener,
        sealer=sealer,
        longest=1 << 17,
        budget=1 << 20,
        count=lambda channel, size: counted.append((channel, size)),
    )
    _require((stretch.stop, stretch.packets) == (stops[3], 3), "it stopped elsewhere")
    _require(stretch.opened == whole[3], "it opened a packet differently")
    _require([size for _, size in counted] == [32_769, 28], "it counted other bytes")
    for packet, (at, stop) in zip(whole[:3], pairwise(stops[:4]), strict=True):
        frame = bytes(view[at:stop])
        first, length = receiver.decrypt_header(0, frame[:16], 4)
        _require(length == frame[:4], "a length changed")
        _require(receiver.decrypt_packet(0, first, frame[16:-16], 4, frame[-16:]) == packet, "a packet changed")


def _try_handing_over() -> None:
    """One packet that we opened, through asyncssh's own reading."""
    heard = []

    class Probe(FramedConnection):
        def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool:
            heard.append((pkttype, pktid, packet.get_full_payload()))
            return True

    probe: Any = Probe.__new__(Probe)
    cipher = GcmPackets(GCMEncryption.new("aes128-gcm", bytes(16), bytes(12)))
    state = {
        "_inpbuf": b"",
        "_packet": b"",
        "_pktlen": 0,
        "_recv_seq": 7,
        "_recv_blocksize": 16,
        "_recv_macsize": 16,
        "_recv_encryption": cipher,
        "_recv_handler": probe._recv_pkthdr,
        "_max_recv_pktlen": 40_000,
        "_decompressor": None,
        "_kex": None,
        "_strict_kex": True,
        "_auth_complete": False,
        "_transport": object(),
        "_is_framed": True,
    }
    for name, value in state.items():
        setattr(probe, name, value)
    payload = b"\x02" + b"\0\0\0\x04text"
    probe._hand_to_asyncssh(cipher, _pad(payload))
    _require(heard == [(2, 7, payload)], "asyncssh took a packet differently")
    _require(probe._recv_seq == 8 and not probe._inpbuf and not probe._is_busy, "asyncssh was left in another state")


def _pad(payload: bytes) -> bytes:
    padding = 4 + -(5 + len(payload)) % 16
    return bytes((padding,)) + payload + os.urandom(padding)


def _require(held: bool, otherwise: str) -> None:
    if not held:
        raise ValueError(otherwise)
