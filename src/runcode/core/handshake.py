"""How far an ssh client came, seen by whoever carries its bytes: was it ever let in?

Owns: reading the clear part of an SSH connection's client side, up to its
NEWKEYS, and counting what it sends sealed after that. Pure; `client.proxying`
feeds it.

A client that is refused sends a service request and two requests with its user
name, the second with a key, and ends. One that is let in sends a third with a
signature, opens a channel and asks for something on it. Measured with OpenSSH 9.2
and every cipher: the first sends 224 to 410 bytes and the user name twice; the
second 560 and more, and the user name three times, even when its last packets
are lost. It is a hint for what to tell a person, never a decision about access.

Source: RFC 4253 §4.2, §6, §7.3; RFC 4252 §7.
"""

from __future__ import annotations

SSH_MSG_NEWKEYS = 21
_REFUSED_MAX = 430
_BANNER_MAX = 8 * 1024
_PACKET_MAX = 64 * 1024


class ClientSide:
    """Feed it everything that the client sends; what cannot be read counts as "was let in"."""

    def __init__(self, user: str) -> None:
        self.sealed_bytes = 0
        self._refused_max = _REFUSED_MAX + 2 * len(user)
        self._clear: bytearray | None = bytearray()
        self._seen_banner = False
        self._lost = False

    def feed(self, sent: bytes) -> None:
        if self._clear is None:
            self.sealed_bytes += len(sent)
            return
        self._clear += sent
        while self._clear is not None and self._take_one():
            pass

    @property
    def was_refused(self) -> bool:
        """True when the client reached authentication and ended without ever having been let in."""
        return self._clear is None and not self._lost and 0 < self.sealed_bytes <= self._refused_max

    def _take_one(self) -> bool:
        """One banner or clear packet off the front; False when more bytes are needed."""
        clear = self._clear
        assert clear is not None
        if not self._seen_banner:
            end = clear.find(b"\n")
            if end < 0:
                self._give_up(len(clear) > _BANNER_MAX)
                return False
            del clear[: end + 1]
            self._seen_banner = True
        if len(clear) < 6:
            return False
        length = int.from_bytes(clear[:4], "big")
        if not 5 <= length <= _PACKET_MAX:
            self._give_up(True)
            return False
        if len(clear) < 4 + length:
            return False
        kind = clear[5]
        del clear[: 4 + length]
        if kind == SSH_MSG_NEWKEYS:
            self.sealed_bytes = len(clear)
            self._clear = None
        return True

    def _give_up(self, hopeless: bool) -> None:
        if hopeless:
            self._clear, self._lost = None, True
