"""What a client may do on its connection to a workspace: forwarding, destinations, sessions, pace.

Owns: the policy as a record, its reading and writing as JSON, how two of them
count together, and which destination a forward may have. Never: a name's
resolution; what a name leads to is the box's network's business. Called by the
control plane (kept on workspaces and tokens) and by the gateway's relay.

Threat: a forward to a cloud's metadata service through the box, spelled so that
a comparison of texts does not see it: mapped into IPv6, as one number, in hex or
octal, with a dot at its end.
Guarantee: an address is judged as the number that a resolver would make of it,
in any spelling; what is neither an address nor a plain host name has no
destination.

Source: RFC 4254 §7; inet_aton(3); RFC 4291 §2.5.5, RFC 3056, RFC 4380, RFC 5214, RFC 6052, RFC 7915, RFC 8215.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, fields
from typing import Final

from runcode.core.errors import UnsafeInput

NETWORK: Final = "network"
LOOPBACK: Final = "loopback"
SESSIONS_MAX: Final = 10_000
OPENS_PER_MINUTE_MAX: Final = 1_000_000
# `direct`: local and dynamic forwards, one channel type. `remote`: listeners in the box. `streamlocal`: both, by path.
FORWARDINGS: Final = ("direct", "remote", "streamlocal", "agent", "x11")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",  # AWS, Azure, Google, Oracle, OpenStack; also task roles (169.254.170.2)
        "168.63.129.16/32",  # Azure's host
        "100.100.100.200/32",  # Alibaba
        "192.0.0.192/32",  # Oracle, classic
        "fe80::/10",
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google
    )
)
_NEVER_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*", re.ASCII)
_PART = re.compile(r"0[xX][0-9A-Fa-f]*|[0-9]+", re.ASCII)
_HOST_MAX = 253
# An IPv4 address is the last 32 bits: NAT64, and translation without state.
_TRANSLATED = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96"))
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")
_ISATAP = (0x00005EFE, 0x02005EFE)


@dataclass(frozen=True)
class ChannelPolicy:
    """`sessions` (at once, on one connection) and `opens_per_minute` None: only the gateway's own limits."""

    direct: bool = True
    remote: bool = True
    streamlocal: bool = True
    agent: bool = True
    x11: bool = True
    destinations: str = NETWORK
    sessions: int | None = None
    opens_per_minute: int | None = None

    def covers(self, other: ChannelPolicy) -> bool:
        """Does it allow all that the other does?"""
        return self.narrowed_by(other) == other

    def narrowed_by(self, other: ChannelPolicy) -> ChannelPolicy:
        """What both allow."""
        return ChannelPolicy(
            **{name: getattr(self, name) and getattr(other, name) for name in FORWARDINGS},
            destinations=LOOPBACK if LOOPBACK in (self.destinations, other.destinations) else NETWORK,
            sessions=_least(self.sessions, other.sessions),
            opens_per_minute=_least(self.opens_per_minute, other.opens_per_minute),
        )

    def allows_destination(self, raw_host: bytes) -> bool:
        """May a forward of the client lead there, from inside the box?"""
        return is_destination(raw_host, loopback_only=self.destinations == LOOPBACK)


EVERYTHING: Final = ChannelPolicy()
# Shells, commands and files only.
NOTHING: Final = ChannelPolicy(
    direct=False, remote=False, streamlocal=False, agent=False, x11=False, destinations=LOOPBACK
)


def parse_policy(raw_policy: object) -> ChannelPolicy:
    """A JSON object; what is absent is as in `EVERYTHING`, None is that. Raises UnsafeInput for anything else."""
    if raw_policy is None:
        return EVERYTHING
    if not isinstance(raw_policy, dict) or not set(raw_policy) <= {field.name for field in fields(ChannelPolicy)}:
        raise UnsafeInput(f"a policy has no other keys than {', '.join(field.name for field in fields(ChannelPolicy))}")
    for name in FORWARDINGS:
        if type(raw_policy.get(name, True)) is not bool:
            raise UnsafeInput(f"a policy's {name} is true or false")
    if raw_policy.get("destinations", NETWORK) not in (NETWORK, LOOPBACK):
        raise UnsafeInput(f"a policy's destinations are {NETWORK} or {LOOPBACK}")
    for name, most in (("sessions", SESSIONS_MAX), ("opens_per_minute", OPENS_PER_MINUTE_MAX)):
        value = raw_policy.get(name)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise UnsafeInput(f"a policy's {name} is a number from 1 to {most}")
    return ChannelPolicy(**raw_policy)


def render_policy(policy: ChannelPolicy) -> dict[str, bool | str | int | None]:
    return {field.name: getattr(policy, field.name) for field in fields(ChannelPolicy)}


def describe_policy(policy: ChannelPolicy) -> str:
    """One line for a person."""
    allowed = ", ".join(name for name in FORWARDINGS if getattr(policy, name)) or "none"
    limits = [
        f"{text} {limit}"
        for text, limit in (("at most sessions", policy.sessions), ("channels a minute", policy.opens_per_minute))
        if limit is not None
    ]
    return "; ".join((f"forwarding {allowed}", f"destinations {policy.destinations}", *limits))


def is_destination(raw_host: bytes, *, loopback_only: bool = False) -> bool:
    """Not a metadata service's, in any spelling; with `loopback_only` the box itself."""
    if len(raw_host) > _HOST_MAX or not raw_host.isascii():
        return False
    host = raw_host.decode().lower().rstrip(".")
    if not host:
        # A resolver takes nothing at all for the loopback address; dots alone are nobody's name.
        return not raw_host
    address = _read_address(host)
    if address is not None:
        every = [address, *_find_embedded(address)]
        if any(each.version == network.version and each in network for each in every for network in _NEVER):
            return False
        return not loopback_only or all(each.is_loopback or each.is_unspecified for each in every[-1:])
    if not _NAME.fullmatch(host) or _PART.fullmatch(host.rpartition(".")[2]):
        return False
    return host == "localhost" if loopback_only else host not in _NEVER_NAMES


def _read_address(host: str) -> _Address | None:
    """As a resolver reads it; None for what it would look up as a name."""
    if ":" in host:
        try:
            # A zone names an interface, and changes nothing about the address.
            return ipaddress.IPv6Address(host.partition("%")[0].strip("[]"))
        except ValueError:
            return None
    parts = host.split(".")
    if len(parts) > 4 or not all(_PART.fullmatch(part) for part in parts):
        return None
    try:
        numbers = [_read_number(part) for part in parts]
    except ValueError:
        return None
    *heads, last = numbers
    if any(head > 255 for head in heads) or last >= 256 ** (4 - len(heads)):
        return None
    value = last
    for index, head in enumerate(heads):
        value |= head << 8 * (3 - index)
    return ipaddress.IPv4Address(value)


def _read_number(part: str) -> int:
    """As inet_aton does: 0x is hex, a leading 0 octal. Raises ValueError."""
    if part.startswith("0x"):
        return int(part[2:] or "0", 16)
    return int(part, 8 if part.startswith("0") else 10)


def _find_embedded(address: _Address) -> list[_Address]:
    """The IPv4 addresses that an IPv6 one stands for, or is routed to."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[_Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _LOCAL_NAT64:
        # Whoever runs it chose how long its prefix is, and with that the place (RFC 6052 §2.2).
        raw = address.packed
        found += [ipaddress.IPv4Address(part) for part in (raw[6:8] + raw[9:11], raw[7:8] + raw[9:12], raw[9:13])]
    if (
        (int(address) >> 32 == 0 and int(address) > 1)
        or int(address) >> 32 & 0xFFFFFFFF in _ISATAP
        or any(address in network for network in _TRANSLATED)
    ):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]


def _least(one: int | None, other: int | None) -> int | None:
    given = [limit for limit in (one, other) if limit is not None]
    return min(given) if given else None
