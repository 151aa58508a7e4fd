"""Whose process is at the other end of a loopback connection, as the kernel tells.

Owns: reading /proc/net/tcp and tcp6. Called for signed-in browsers on plain http,
where cookies go to every port of the host: what another user of this machine has
read is worth nothing from a process of theirs (`services/web_sessions`).

Never: a judgement. Where no system tells, or the connection is not a loopback
one, the answer is "", the same for a sign-in and for what follows it.

Source: proc(5); Linux prints addresses as native 32-bit integers.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_TABLE_MAX = 16 * 1024 * 1024


def find_owner(peer: tuple[str, int] | None, own: tuple[str, int] | None) -> str:
    """`uid N`, or "" where it cannot be told."""
    if peer is None or own is None or not _is_loopback(peer[0]):
        return ""
    wanted = {(_hex_address(peer, six), _hex_address(own, six)) for six in (False, True)}
    for line in _read_tables():
        fields = line.split()
        # A socket without an inode has lost its process already, and its owner with it.
        if len(fields) > 9 and (fields[1], fields[2]) in wanted and fields[9] != "0":
            return f"uid {int(fields[7])}"
    return ""


def _read_tables() -> Iterator[str]:
    for table in _TABLES:
        try:
            with open(table, encoding="ascii") as file:
                yield from file.read(_TABLE_MAX).split("\n")[1:]
        except OSError:
            continue


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _hex_address(address: tuple[str, int], six: bool) -> str:
    host = ipaddress.ip_address(address[0])
    raw = host.packed
    if six and len(raw) == 4:
        raw = bytes(10) + b"\xff\xff" + raw
    words = (raw[at : at + 4] for at in range(0, len(raw), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{address[1]:04X}"
