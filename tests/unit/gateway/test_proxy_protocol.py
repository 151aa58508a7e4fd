"""The PROXY header: whole ones are read, pieces wait, everything else is refused."""

from __future__ import annotations

import ipaddress
import random
import struct

import pytest

from runcode.gateway.doorstep import is_within
from runcode.gateway.proxy_protocol import HEADER_MAX, SIGNATURE, ProxyHeader, parse_proxy_header


def make(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + bytes((command, family)) + struct.pack("!H", len(body)) + body


V4 = make(0x21, 0x11, bytes((203, 0, 113, 9)) + bytes((10, 0, 0, 1)) + struct.pack("!HH", 40000, 22))
V6 = make(0x21, 0x21, ipaddress.ip_address("2001:db8::7").packed + bytes(16) + struct.pack("!HH", 40000, 22))


@pytest.mark.parametrize(
    ("raw", "source"),
    [
        (V4, "203.0.113.9"),
        (V6, "2001:db8::7"),
        (make(0x21, 0x21, ipaddress.ip_address("::ffff:203.0.113.9").packed + bytes(20)), "203.0.113.9"),
        (make(0x20, 0x00, b""), None),
        (make(0x21, 0x11, V4[16:] + b"\x04\x00\x01x"), "203.0.113.9"),
    ],
)
def test_a_whole_header_is_read_and_its_pieces_wait(raw: bytes, source: str | None) -> None:
    assert parse_proxy_header(raw + b"SSH-2.0-x") == ProxyHeader(source=source, size=len(raw))
    for size in range(len(raw)):
        assert parse_proxy_header(raw[:size]) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 40000 22\r\n",
        b"\r\n\r\n\x00\r\nQUIX",
        make(0x11, 0x11, V4[16:]),
        make(0x22, 0x11, V4[16:]),
        make(0x21, 0x00, b""),
        make(0x21, 0x31, bytes(216)),
        make(0x21, 0x12, V4[16:]),
        make(0x21, 0x11, bytes(11)),
        make(0x21, 0x21, bytes(35)),
        make(0x21, 0x11, bytes(HEADER_MAX)),
    ],
)
def test_what_is_no_header_of_version_2_over_tcp_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="PROXY header"):
        parse_proxy_header(raw)


def test_no_bytes_at_all_break_the_parser() -> None:
    chance = random.Random(7)
    for _ in range(3000):
        raw = bytearray(chance.choice((V4, V6)))
        for _ in range(chance.randrange(4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        try:
            found = parse_proxy_header(bytes(raw[: chance.randrange(len(raw) + 1)]))
        except ValueError:
            continue
        if found is not None and found.source is not None:
            ipaddress.ip_address(found.source)


def test_who_is_a_balancer() -> None:
    networks = (ipaddress.ip_network("10.0.0.0/24"), ipaddress.ip_network("fd00::/8"))
    assert is_within("10.0.0.9", networks)
    assert is_within("::ffff:10.0.0.9", networks)
    assert is_within("fd00::1%eth0", networks)
    for stranger in ("10.0.1.9", "::1", "", "/run/x.sock", "10.0.0.9.example.org"):
        assert not is_within(stranger, networks)
