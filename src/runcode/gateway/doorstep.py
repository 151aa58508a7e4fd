"""Between accept() and SSH: who calls, when a TCP balancer stands before the gateway.

Owns: from whom a PROXY header is believed, and handing the connection over to the
SSH leg. Called by `server`.

Threat: a stranger who sends such a header to choose the address that is logged and
limited; a balancer's port that is reached around it; silence.
Guarantee: a header is read from named networks only, and is required there, whole,
within `HEADER_S`; from everybody else those bytes are what any other junk is to SSH.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Sequence
from typing import Final, cast

from runcode.gateway.asyncssh_legs import ClientLeg
from runcode.gateway.proxy_protocol import HEADER_MAX, parse_proxy_header

_log = logging.getLogger(__name__)

HEADER_S: Final = 5.0
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Doorstep(asyncio.Protocol):
    """The protocol of a connection until its leg has it. `make_leg(None)`: by the socket's own peer."""

    def __init__(self, balancers: Sequence[Network], make_leg: Callable[[str | None], ClientLeg]) -> None:
        self._balancers = balancers
        self._make_leg = make_leg
        self._transport: asyncio.Transport | None = None
        self._raw = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peername = transport.get_extra_info("peername")
        if not is_within(str(peername[0]) if isinstance(peername, tuple) else "", self._balancers):
            self._hand_over(None, b"")
            return
        self._timer = asyncio.get_running_loop().call_later(HEADER_S, self._refuse, "no PROXY header in time")

    def data_received(self, data: bytes) -> None:
        self._raw += data
        try:
            header = parse_proxy_header(self._raw[:HEADER_MAX])
        except ValueError as error:
            self._refuse(str(error))
            return
        if header is not None:
            self._hand_over(header.source, self._raw[header.size :])

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()

    def _hand_over(self, source: str | None, rest: bytes) -> None:
        transport = self._transport
        assert transport is not None
        self._stop_timer()
        leg = self._make_leg(source)
        transport.set_protocol(leg)
        leg.connection_made(transport)
        while rest and not transport.is_closing():
            area = leg.get_buffer(len(rest))
            size = min(len(rest), len(area))
            area[:size] = rest[:size]
            rest = rest[size:]
            leg.buffer_updated(size)

    def _refuse(self, reason: str) -> None:
        self._stop_timer()
        _log.warning("a connection from a balancer was refused: %s", reason)
        if self._transport is not None:
            self._transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def is_within(host: str, networks: Sequence[Network]) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in networks)
