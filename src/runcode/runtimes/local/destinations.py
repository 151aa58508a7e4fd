"""What a box may reach: the public internet over IPv4, and one resolver. Pure.

Threat: a hostile box looks for whatever trusts the host's place in the network: cloud
metadata, services on the host's loopback or on its own addresses, its neighbours,
private networks, other boxes. It picks any address, port, protocol, socket option and
IP option that a process without privileges may use.

Guarantee: `render_filter` gives a program that lets a frame out only if it is ARP, or
IPv4 without options and of TCP, UDP or ICMP towards an address that no entry of
FORBIDDEN and no prefix of the host holds, or towards RESOLVER at port 53. All else is
dropped: IPv6, fragments towards the resolver, the helper's own gateway. The kernel runs it on
every frame between the box and the helper, so no socket option goes around it.

Called by `box_network`. Standard library only.

Source: IANA IPv4 special-purpose registry (RFC 6890 and later); BPF: linux/filter.h.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable

Prefix = ipaddress.IPv4Network

# The helper's own network, slirp4netns's default.
ADDRESS, LENGTH, GATEWAY, RESOLVER = "10.0.2.100", 24, "10.0.2.2", "10.0.2.3"

FORBIDDEN: tuple[Prefix, ...] = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' NAT, and the metadata service of Alibaba
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's agent and DHCP service: public by number only
        "169.254.0.0/16",  # link-local: metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF, and the metadata service of Oracle
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays: a way to IPv6
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
DNS_PORT = 53
# linux/filter.h BPF_MAXINSNS
PROGRAM_MAX = 4096

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_EQUAL, _GREATER, _AT_LEAST, _BITS, _RETURN = 0x15, 0x25, 0x35, 0x45, 0x06
_ETHERTYPE, _IP_FIRST, _IP_FRAGMENT, _IP_PROTOCOL, _IP_TO, _PORT_TO = 12, 14, 20, 23, 30, 36
_ARP, _IPV4 = 0x0806, 0x0800
_ICMP, _TCP, _UDP = 1, 6, 17
_PASS, _DROP = 0xFFFF_FFFF, 0

Instruction = tuple[int, int, int, int]


class TooManyPrefixes(Exception):
    """The host has more prefixes of its own than one filter can hold."""


def forbid(own: Iterable[Prefix]) -> list[Prefix]:
    """FORBIDDEN and the host's own prefixes, each address once."""
    return list(ipaddress.collapse_addresses([*FORBIDDEN, *own]))


def allowed_spans(forbidden: Iterable[Prefix]) -> list[tuple[int, int]]:
    """(first, last) of each run of addresses that nothing forbids, as numbers."""
    spans, at = [], 0
    for prefix in ipaddress.collapse_addresses(forbidden):
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        if first > at:
            spans.append((at, first - 1))
        at = last + 1
    return [*spans, (at, 2**32 - 1)] if at < 2**32 else spans


def render_filter(forbidden: Iterable[Prefix]) -> list[Instruction]:
    """The classic BPF program for frames that leave the box. Raises TooManyPrefixes."""
    program: list[Instruction] = [
        (_LOAD_HALF, 0, 0, _ETHERTYPE),
        *_pass_if(_EQUAL, _ARP),
        *_drop_unless(_EQUAL, _IPV4),
        # Version 4 and a header of five words. Options such as source routes have no business here.
        (_LOAD_BYTE, 0, 0, _IP_FIRST),
        *_drop_unless(_EQUAL, 0x45),
        (_LOAD_BYTE, 0, 0, _IP_PROTOCOL),
        (_EQUAL, 3, 0, _TCP),
        (_EQUAL, 2, 0, _UDP),
        (_EQUAL, 1, 0, _ICMP),
        (_RETURN, 0, 0, _DROP),
        (_LOAD_WORD, 0, 0, _IP_TO),
    ]
    resolver: list[Instruction] = [
        (_LOAD_BYTE, 0, 0, _IP_PROTOCOL),
        (_EQUAL, 0, 1, _ICMP),
        (_RETURN, 0, 0, _DROP),
        # Only a whole packet shows its port.
        (_LOAD_HALF, 0, 0, _IP_FRAGMENT),
        (_BITS, 0, 1, 0x3FFF),
        (_RETURN, 0, 0, _DROP),
        (_LOAD_HALF, 0, 0, _PORT_TO),
        *_pass_if(_EQUAL, DNS_PORT),
        (_RETURN, 0, 0, _DROP),
    ]
    program += [(_EQUAL, 0, len(resolver), int(ipaddress.IPv4Address(RESOLVER))), *resolver]
    for first, last in allowed_spans(forbidden):
        program += [(_AT_LEAST, 0, 2, first), (_GREATER, 1, 0, last), (_RETURN, 0, 0, _PASS)]
    program.append((_RETURN, 0, 0, _DROP))
    if len(program) > PROGRAM_MAX:
        raise TooManyPrefixes(f"the host has too many addresses for the box's filter ({len(program)} instructions)")
    return program


def pack_filter(program: Iterable[Instruction]) -> bytes:
    """As the kernel's struct sock_filter array."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _pass_if(test: int, value: int) -> list[Instruction]:
    return [(test, 0, 1, value), (_RETURN, 0, 0, _PASS)]


def _drop_unless(test: int, value: int) -> list[Instruction]:
    return [(test, 1, 0, value), (_RETURN, 0, 0, _DROP)]
