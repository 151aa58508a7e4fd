"""The header that a TCP balancer puts before a connection's own bytes: who really called.

Owns: reading it, and nothing else: whose header is believed is `doorstep`'s matter.
Pure. Source: the PROXY protocol's specification, version 2 (HAProxy, 2020-03-05), §2.2.

Threat: bytes of a stranger in place of the header.
Guarantee: at most `HEADER_MAX` bytes are looked at; what is not a whole, plain
version 2 header is a ValueError; addresses come out as text that `ipaddress` made.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED: Final = 16
# The longest address (unix sockets) is 216; the rest is for extensions, which are passed over.
HEADER_MAX: Final = _FIXED + 2048
_LOCAL, _PROXY = 0x20, 0x21
_UNKNOWN, _TCP4, _TCP6 = 0x00, 0x11, 0x21


@dataclass(frozen=True)
class ProxyHeader:
    """`source` None: the balancer speaks for itself (its health checks). `size` bytes are the header."""

    source: str | None
    size: int


def parse_proxy_header(raw: bytes) -> ProxyHeader | None:
    """None while more bytes are needed. Raises ValueError for what can never become a header."""
    if not SIGNATURE.startswith(raw[: len(SIGNATURE)]):
        raise ValueError("not a PROXY header of version 2")
    if len(raw) < _FIXED:
        return None
    command, family = raw[12], raw[13]
    size = _FIXED + int.from_bytes(raw[14:16], "big")
    if command not in (_LOCAL, _PROXY) or size > HEADER_MAX:
        raise ValueError("not a PROXY header of version 2")
    if command == _PROXY and family not in (_TCP4, _TCP6):
        # Also "unknown": a balancer of ours knows who called, and nobody is let in under no address.
        raise ValueError("a PROXY header without a TCP address")
    if len(raw) < size:
        return None
    if command == _LOCAL:
        return ProxyHeader(source=None, size=size)
    length = 4 if family == _TCP4 else 16
    if size < _FIXED + 2 * length + 4:
        raise ValueError("a PROXY header that is too short")
    address = ipaddress.ip_address(raw[_FIXED : _FIXED + length])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return ProxyHeader(source=str(mapped or address), size=size)
