"""Digests of what passes by, worded as the box's own programs word them.

SHA-256, or where the box has no program for it the CRC that every POSIX system
has (`cksum`): that one finds damage, not malice, and the box itself could lie
about either.
"""

from __future__ import annotations

import zlib

SHA256 = "sha256"
# In the order in which they are tried.
ALGORITHMS = (SHA256, "cksum")
# POSIX cksum has zlib's polynomial with the bits of every byte the other way round.
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Checksum:
    """The digest of everything that `update` was given."""

    def __init__(self, algorithm: str) -> None:
        import hashlib

        self.algorithm = algorithm
        self._sha256 = hashlib.sha256() if algorithm == SHA256 else None
        self._crc = 0
        self._size = 0

    def update(self, chunk: bytes | memoryview) -> None:
        if self._sha256 is not None:
            self._sha256.update(chunk)
        else:
            self._size += len(chunk)
            self._crc = _feed_cksum(self._crc, bytes(chunk))

    def word(self) -> str:
        """One word: hexadecimal SHA-256, or `CRC-SIZE`."""
        if self._sha256 is not None:
            return self._sha256.hexdigest()
        length = self._size.to_bytes((self._size.bit_length() + 7) // 8, "little")
        crc = _feed_cksum(self._crc, length)
        return f"{int(f'{crc:032b}'[::-1], 2) ^ 0xFFFFFFFF}-{self._size}"


def _feed_cksum(crc: int, chunk: bytes) -> int:
    return zlib.crc32(chunk.translate(_REVERSED_BITS), crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
