"""AES-GCM as asyncssh calls for it, on the same key and nonces that `framing` uses.

Owns: taking a key over from asyncssh's own cipher, which builds its AES object anew
for every packet; here it is made once. Called by asyncssh through `asyncssh_relay`
(which puts it in place) and by `asyncssh_framing`.
"""

from __future__ import annotations

from asyncssh.encryption import Encryption, GCMEncryption

from runcode.gateway.framing import BadFrame, GcmKey


class GcmPackets(Encryption):
    """`opened` is set while asyncssh is handed one packet that `framing` has opened already."""

    __slots__ = ("key", "opened")

    def __init__(self, stock: GCMEncryption) -> None:
        cipher = stock._cipher
        self.key = GcmKey(cipher._key, cipher._iv)
        self.opened: bytes | None = None

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        return header, self.key.seal(header, packet)

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:
        return first_block, first_block[:header_len]

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:
        opened, self.opened = self.opened, None
        if opened is not None:
            return opened
        try:
            return self.key.open(first[:header_len], b"".join((first[header_len:], rest, mac)))
        except BadFrame:
            return None
