"""The filter's program, run by an evaluator of classic BPF on frames made by hand."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest

from runcode.runtimes.local import destinations

TCP, UDP, ICMP = 6, 17, 1


def run_filter(program: list[destinations.Instruction], frame: bytes) -> bool:
    """What the kernel does with it: True when the frame passes. A load past the end drops."""
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x06:
            return value != 0
        if code in (0x20, 0x28, 0x30):
            size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
            if value + size > len(frame):
                return False
            accumulator = int.from_bytes(frame[value : value + size], "big")
            continue
        holds = {
            0x15: accumulator == value,
            0x25: accumulator > value,
            0x35: accumulator >= value,
            0x45: bool(accumulator & value),
        }[code]
        at += if_true if holds else if_false


def frame(
    to: str, protocol: int = TCP, port: int = 443, *, fragment: int = 0, first: int = 0x45, ethertype: int = 0x0800
) -> bytes:
    header = struct.pack("!BBHHHBBH4s4s", first, 0, 40, 1, fragment, 64, protocol, 0, b"\n\0\2d", socket.inet_aton(to))
    return b"\x52\x55\x0a\0\2\2" + b"\2" * 6 + struct.pack("!H", ethertype) + header + struct.pack("!HH", 5000, port)


def passes(raw: bytes, own: tuple[str, ...] = ()) -> bool:
    prefixes = [ipaddress.IPv4Network(text) for text in own]
    return run_filter(destinations.render_filter(destinations.forbid(prefixes)), raw)


@pytest.mark.parametrize("to", ["1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "93.184.216.34", "223.255.255.255"])
@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP])
def test_public_addresses_pass(to: str, protocol: int) -> None:
    assert passes(frame(to, protocol))


@pytest.mark.parametrize("prefix", destinations.FORBIDDEN, ids=str)
def test_both_ends_of_each_forbidden_prefix_are_dropped_and_what_is_beside_passes(
    prefix: ipaddress.IPv4Network,
) -> None:
    first, last = int(prefix.network_address), int(prefix.broadcast_address)
    for number in (first, last, (first + last) // 2):
        for protocol in (TCP, UDP, ICMP):
            assert not passes(frame(str(ipaddress.IPv4Address(number)), protocol))
    for beside in (first - 1, last + 1):
        if 0 <= beside < 2**32:
            address = ipaddress.IPv4Address(beside)
            expected = not any(address in other for other in destinations.FORBIDDEN)
            assert passes(frame(str(address))) is expected


def test_nothing_that_python_calls_private_passes() -> None:
    """Python's own table as a second opinion."""
    program = destinations.render_filter(destinations.forbid([]))
    for number in range(0, 2**32, 2**32 // 40_000):
        address = ipaddress.IPv4Address(number)
        if not address.is_global or address.is_multicast:
            assert not run_filter(program, frame(str(address))), address


def test_the_hosts_own_prefixes_are_dropped() -> None:
    own = ("45.60.71.0/24", "45.60.70.99/32")
    for to in ("45.60.71.2", "45.60.71.255", "45.60.70.99"):
        assert passes(frame(to))
        assert not passes(frame(to), own)
    assert passes(frame("45.60.70.98"), own)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_the_resolver_answers_at_its_port_only(protocol: int) -> None:
    assert passes(frame(destinations.RESOLVER, protocol, 53))
    for port in (22, 52, 54, 80, 853, 53 << 8):
        assert not passes(frame(destinations.RESOLVER, protocol, port))
    # A later fragment shows no port: what stands there is the box's to choose.
    for fragment in (1, 0x2000, 0x1FFF):
        assert not passes(frame(destinations.RESOLVER, protocol, 53, fragment=fragment))
    assert passes(frame(destinations.RESOLVER, protocol, 53, fragment=0x4000))


@pytest.mark.parametrize("to", [destinations.GATEWAY, destinations.ADDRESS, "10.0.2.255", "255.255.255.255"])
def test_the_helpers_own_services_are_out_of_reach(to: str) -> None:
    for protocol, port in ((UDP, 67), (UDP, 69), (TCP, 80), (UDP, 53), (ICMP, 0)):
        assert not passes(frame(to, protocol, port))


def test_what_is_not_plain_ipv4_is_dropped() -> None:
    assert passes(frame("1.1.1.1", ethertype=0x0806))  # ARP
    for ethertype in (0x86DD, 0x8100, 0x88A8, 0x8847, 0x0801, 0):
        assert not passes(frame("1.1.1.1", ethertype=ethertype))
    # IP options: source routes.
    for first in (0x46, 0x4F, 0x44, 0x65, 0x05):
        assert not passes(frame("1.1.1.1", first=first))
    for protocol in (0, 2, 4, 41, 47, 50, 132, 255):
        assert not passes(frame("1.1.1.1", protocol))
    assert not passes(frame("1.1.1.1")[:33])
    assert not passes(b"")


def test_a_host_with_very_many_addresses_is_refused_in_words() -> None:
    own = [ipaddress.IPv4Network((0x20000000 + 2 * number, 32)) for number in range(2000)]
    with pytest.raises(destinations.TooManyPrefixes, match="too many"):
        destinations.render_filter(destinations.forbid(own))


def test_a_few_hundred_addresses_fit_and_each_counts() -> None:
    own = [ipaddress.IPv4Network((0x20000000 + 2 * number, 32)) for number in range(900)]
    program = destinations.render_filter(destinations.forbid(own))
    for prefix in own:
        assert not run_filter(program, frame(str(prefix.network_address)))
        assert run_filter(program, frame(str(prefix.network_address + 1)))
