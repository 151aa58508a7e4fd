"""Whom a request comes from, when proxies of the operator's stand between.

Owns: which peers are believed, and how `X-Forwarded-For` and `X-Forwarded-Proto`
are read. Called by `edge`, for every request.

Threat: a caller who names an address of their choice, to blame somebody, to have
as many tries as there are addresses, or to pass for a local one.
Guarantee: without a trusted proxy both headers mean nothing. Of a trusted one's,
the address nearest to us that is no proxy of ours counts, which is the one that
our own proxy saw; what is left of it is the caller's word, and is not read.

Source: RFC 7239 §7.1, and nginx's `$proxy_add_x_forwarded_for`, which appends.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from runcode.core.errors import RunCodeError

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# A chain of proxies is short; a header is not searched for ever.
_HOPS_MAX = 16
_KNOWN_MAX = 4096


class TrustedProxies:
    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Each is an address or a network (`10.0.0.0/8`). Raises `usage`."""
        self._networks = tuple(_parse_network(text) for text in networks)
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, host: str) -> bool:
        """Is this peer a proxy of ours?"""
        if not self._networks:
            return False
        known = self._known.get(host)
        if known is None:
            address = _find_address(host)
            known = address is not None and any(address in network for network in self._networks)
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[host] = known
        return known

    def find_client(self, peer: str, forwarded_for: Iterable[str]) -> str:
        """The caller's address; `forwarded_for` are the header's lines in order, read only from a proxy of ours."""
        if not self.trusts(peer):
            return peer
        hops = [hop.strip() for line in forwarded_for for hop in line.split(",")]
        for hop in reversed(hops[-_HOPS_MAX:]):
            address = _find_address(hop)
            if address is None:
                # Not what a proxy of ours writes, so nothing further left is either.
                return peer
            peer = str(address)
            if not self.trusts(peer):
                return peer
        return peer

    def find_scheme(self, peer: str, forwarded_proto: Iterable[str]) -> str | None:
        """`http` or `https` as a proxy of ours says, once; else None."""
        if not self.trusts(peer):
            return None
        said = [word.strip().lower() for line in forwarded_proto for word in line.split(",")]
        return said[0] if len(said) == 1 and said[0] in ("http", "https") else None


def _find_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        return address.ipv4_mapped or address
    return address


def _parse_network(text: str) -> _Network:
    try:
        return ipaddress.ip_network(text, strict=True)
    except ValueError as error:
        raise RunCodeError(
            "usage",
            f"--trusted-proxy {text!r} is not an address or a network",
            resolution="write --trusted-proxy 10.0.0.5, or a network such as 10.0.0.0/24",
        ) from error
