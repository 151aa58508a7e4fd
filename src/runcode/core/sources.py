"""Whom the address of a connection stands for, where tries and places are counted.

Owns: that one rule. Called by the control plane (rates, sign-in) and the gateway (who
waits at the door). Never: whether an address is believed.

Threat: an IPv6 customer has 2^64 addresses, and each would get a count of its own.

Source: RFC 6177 §2, RFC 4291 §2.5.5.2 (IPv4 inside IPv6).
"""

from __future__ import annotations

import ipaddress


def network_of(source: str) -> str:
    """Itself with IPv4, mapped into IPv6 or not; its /64 with IPv6. What is no address is itself."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return source
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if isinstance(address, ipaddress.IPv4Address) or mapped is not None:
        return str(mapped or address)
    return str(ipaddress.ip_network((address, 64), strict=False))
