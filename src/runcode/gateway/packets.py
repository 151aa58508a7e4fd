"""The few SSH wire forms that the relay must read and write.

Owns: message numbers of the connection protocol and a bounds-checked reader.
Never: sockets, asyncssh, policy. Called by `relay` only.

Threat: both peers choose every byte. A length that points past the end must end
in MalformedPacket, never in a short read that is then believed.

Source: RFC 4251 §5 (types), RFC 4254 (messages 80–100).
"""

from __future__ import annotations

GLOBAL_REQUEST = 80
REQUEST_SUCCESS = 81
REQUEST_FAILURE = 82
CHANNEL_OPEN = 90
CHANNEL_OPEN_CONFIRMATION = 91
CHANNEL_OPEN_FAILURE = 92
CHANNEL_WINDOW_ADJUST = 93
CHANNEL_DATA = 94
CHANNEL_EXTENDED_DATA = 95
CHANNEL_EOF = 96
CHANNEL_CLOSE = 97
CHANNEL_REQUEST = 98
CHANNEL_SUCCESS = 99
CHANNEL_FAILURE = 100

# 83–89 and 101–127 mean nothing in RFC 4254.
RELAYED = frozenset((*range(GLOBAL_REQUEST, REQUEST_FAILURE + 1), *range(CHANNEL_OPEN, CHANNEL_FAILURE + 1)))

OPEN_ADMINISTRATIVELY_PROHIBITED = 1
OPEN_UNKNOWN_CHANNEL_TYPE = 3
OPEN_RESOURCE_SHORTAGE = 4


class MalformedPacket(ValueError):
    """A packet whose fields do not fit into it. Its sender is dropped."""


class Reader:
    """Reads the fields of one payload, from `at` on."""

    __slots__ = ("at", "payload")

    def __init__(self, payload: bytes, at: int = 1) -> None:
        self.payload = payload
        self.at = at

    def _take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.payload):
            raise MalformedPacket("a field runs past the packet's end")
        taken = self.payload[self.at : end]
        self.at = end
        return taken

    def boolean(self) -> bool:
        return self._take(1) != b"\x00"

    def uint32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def string(self) -> bytes:
        return self._take(self.uint32())


def render_uint32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def render_string(text: bytes) -> bytes:
    return len(text).to_bytes(4, "big") + text


def render_channel_request(recipient: int, name: bytes, *, want_reply: bool) -> bytes:
    """Without anything of the type's own."""
    return bytes((CHANNEL_REQUEST,)) + render_uint32(recipient) + render_string(name) + bytes((want_reply,))


def render_request_failure() -> bytes:
    return bytes((REQUEST_FAILURE,))


def render_open_failure(recipient: int, code: int, reason: str) -> bytes:
    return (
        bytes((CHANNEL_OPEN_FAILURE,))
        + render_uint32(recipient)
        + render_uint32(code)
        + render_string(reason.encode())
        + render_string(b"")
    )
