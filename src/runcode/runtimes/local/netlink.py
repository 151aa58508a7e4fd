"""Addresses, links and routes of the network namespace that this process is in, by rtnetlink.

Owns: the few messages that a box's network needs, and reading which prefixes are the
host's own. Called by the keeper and its child, and by `doctor`. Never: a decision about
what a box may reach (that is `destinations`). Standard library only; `ip` is not needed.

Source: rtnetlink(7), linux/rtnetlink.h. All numbers are in the host's byte order.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

Prefix = ipaddress.IPv4Network

_NEWLINK, _NEWADDR, _NEWROUTE, _GETROUTE = 16, 20, 24, 26
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _ROOT_MATCH = 1, 4, 0x300
_CREATE, _EXCLUSIVE = 0x400, 0x200
_TABLE_MAIN, _TABLE_LOCAL = 254, 255
_TYPE_UNICAST, _TYPE_LOCAL, _TYPE_BROADCAST, _TYPE_ANYCAST, _TYPE_UNREACHABLE = 1, 2, 3, 4, 7
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_TABLE = 1, 4, 5, 15
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFLA_MTU = 4
_IFF_UP = 1
# linux/rtnetlink.h: RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE
_GROUPS_IPV4 = 0x10 | 0x40
# Shorter prefixes that lead out of a link without a router are tunnels that carry everything, no neighbourhood.
_NEIGHBOURHOOD_SHORTEST = 16
ANSWER_S = 5.0


def open_socket(groups: int = 0) -> socket.socket:
    """A socket that stays with the namespace it was opened in, whoever uses it later."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.bind((0, groups))
    opened.settimeout(ANSWER_S)
    return opened


def watch_routes() -> socket.socket:
    """Becomes readable when an IPv4 address or route of this namespace changes. Non-blocking."""
    watching = open_socket(_GROUPS_IPV4)
    watching.setblocking(False)
    return watching


def drain(watching: socket.socket) -> None:
    try:
        while watching.recv(65536):
            pass
    except OSError:
        # Nothing more, or too much to be told in detail (ENOBUFS): the caller reads all of it anew anyway.
        pass


def read_own_prefixes() -> list[Prefix]:
    """What is the host itself, or its neighbourhood: local and broadcast addresses, and networks without a router."""
    with open_socket() as asking:
        _send(asking, _GETROUTE, _REQUEST | _ROOT_MATCH, struct.pack("=BBBBBBBBI", socket.AF_INET, *[0] * 8))
        return sorted({prefix for body in _read_dump(asking) if (prefix := find_own_prefix(body)) is not None})


def find_own_prefix(body: bytes) -> Prefix | None:
    """The destination of one dumped route, when it is the host's own or on its link."""
    length, table, scope, kind = body[1], body[4], body[6], body[7]
    attributes = dict(_parse_attributes(body[12:]))
    if _RTA_TABLE in attributes:
        table = int.from_bytes(attributes[_RTA_TABLE], "little" if struct.pack("=H", 1) == b"\1\0" else "big")
    if _RTA_DST not in attributes:
        return None
    prefix = ipaddress.IPv4Network((attributes[_RTA_DST], length), strict=False)
    if table == _TABLE_LOCAL or kind in (_TYPE_LOCAL, _TYPE_BROADCAST, _TYPE_ANYCAST):
        return prefix
    on_link = kind == _TYPE_UNICAST and scope >= _SCOPE_LINK and _RTA_GATEWAY not in attributes
    return prefix if on_link and length >= _NEIGHBOURHOOD_SHORTEST else None


def bring_up(asking: socket.socket, index: int, mtu: int | None = None) -> None:
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP)
    _ask(asking, _NEWLINK, 0, body + (_attribute(_IFLA_MTU, struct.pack("=I", mtu)) if mtu is not None else b""))


def add_address(asking: socket.socket, index: int, address: str, length: int) -> None:
    raw = socket.inet_aton(address)
    body = struct.pack("=BBBBi", socket.AF_INET, length, 0, _SCOPE_UNIVERSE, index)
    _ask(asking, _NEWADDR, _CREATE | _EXCLUSIVE, body + _attribute(_IFA_LOCAL, raw) + _attribute(_IFA_ADDRESS, raw))


def add_default_route(asking: socket.socket, index: int, gateway: str) -> None:
    body = _render_route(0, _TYPE_UNICAST)
    body += _attribute(_RTA_GATEWAY, socket.inet_aton(gateway)) + _attribute(_RTA_OIF, struct.pack("=i", index))
    _ask(asking, _NEWROUTE, _CREATE | _EXCLUSIVE, body)


def add_unreachable(asking: socket.socket, prefix: Prefix) -> None:
    """Connecting there fails at once. One that exists is as good."""
    body = _render_route(prefix.prefixlen, _TYPE_UNREACHABLE) + _attribute(_RTA_DST, prefix.network_address.packed)
    try:
        _ask(asking, _NEWROUTE, _CREATE | _EXCLUSIVE, body)
    except FileExistsError:
        pass


def _render_route(length: int, kind: int) -> bytes:
    # Protocol 4: static.
    return struct.pack("=BBBBBBBBI", socket.AF_INET, length, 0, 0, _TABLE_MAIN, 4, _SCOPE_UNIVERSE, kind, 0)


def _attribute(number: int, raw: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(raw), number) + raw + b"\0" * (-len(raw) % 4)


def _parse_attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    while len(raw) >= 4:
        length, number = struct.unpack_from("=HH", raw)
        if length < 4:
            return
        yield number & 0x3FFF, raw[4:length]
        raw = raw[(length + 3) & ~3 :]


def _send(asking: socket.socket, kind: int, flags: int, body: bytes) -> None:
    asking.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)


def _ask(asking: socket.socket, kind: int, flags: int, body: bytes) -> None:
    _send(asking, kind, _REQUEST | _ACK | flags, body)
    for answer, raw in _read_messages(asking.recv(65536)):
        if answer == _ERROR:
            _raise_error(raw)


def _read_dump(asking: socket.socket) -> Iterator[bytes]:
    while True:
        for kind, body in _read_messages(asking.recv(65536)):
            if kind == _DONE:
                return
            if kind == _ERROR:
                _raise_error(body)
            if kind == _NEWROUTE:
                yield body


def _read_messages(raw: bytes) -> Iterator[tuple[int, bytes]]:
    while len(raw) >= 16:
        length, kind = struct.unpack_from("=IH", raw)
        if length < 16:
            return
        yield kind, raw[16:length]
        raw = raw[(length + 3) & ~3 :]


def _raise_error(body: bytes) -> None:
    number = -struct.unpack_from("=i", body)[0]
    if number:
        raise OSError(number, f"rtnetlink: {os.strerror(number)}")
