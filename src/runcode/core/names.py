"""Names that cross the wire, each accepted by allowlist or refused.

Threat: a title becomes an ssh user name, a host alias and a folder name; a host
becomes an argument of ssh. A leading dash would turn one into an option, a
newline into a second directive, `%h` into an expansion, `0x7f000001` into an
address that no check saw.

Guarantee: what `parse_*` returns holds no control byte, no blank, no shell or
ssh metacharacter, no `%`, and does not start with a dash.
"""

from __future__ import annotations

import re

from runcode.core.errors import RunCodeError, UnsafeInput

DEFAULT_WORKDIR = "/home/ubuntu/workspace"
TITLE_MAX = 64
CLIENT_NAME_MAX = 64

_TITLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
_DNS_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_WORKDIR = re.compile(r"/[A-Za-z0-9._/@+-]*", re.ASCII)
# What inet_aton reads as a number, so that getaddrinfo would turn the name into an address.
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*", re.ASCII)
_IPV4_QUAD = re.compile(r"(?:0|[1-9][0-9]{0,2})(?:\.(?:0|[1-9][0-9]{0,2})){3}", re.ASCII)


def is_title(text: object) -> bool:
    return isinstance(text, str) and len(text) <= TITLE_MAX and _TITLE.fullmatch(text) is not None


def parse_title(raw_title: object) -> str:
    """A workspace's stable slug: the ssh user name and host alias. Raises UnsafeInput."""
    if not is_title(raw_title):
        raise UnsafeInput("the workspace's title is not a safe name")
    assert isinstance(raw_title, str)
    return raw_title


def require_new_title(raw_title: str) -> str:
    """A title that a person chose for a new workspace. Raises `bad_request`, saying what is allowed."""
    if not is_title(raw_title):
        raise RunCodeError(
            "bad_request",
            f"{raw_title!r} cannot be a workspace title",
            resolution=f"use 1 to {TITLE_MAX} of A-Z a-z 0-9 . _ - and start with a letter or digit",
        )
    if raw_title.isdigit():
        raise RunCodeError(
            "bad_request",
            f"{raw_title!r} cannot be a workspace title: a number means an id",
            resolution="add a letter to it",
        )
    return raw_title


def parse_port(raw_port: object) -> int:
    """A TCP port, given as a JSON integer (a bool or a string is refused)."""
    if type(raw_port) is not int or not 1 <= raw_port <= 65535:
        raise UnsafeInput("the port is not an integer from 1 to 65535")
    return raw_port


def parse_host(raw_host: object) -> str:
    """A DNS name of legal lengths, or an IP address that a gateway can have.

    Refused: unspecified, link-local and multicast addresses (also when they are
    wrapped in IPv6), and every number that is not a plain dotted quad.
    """
    if not isinstance(raw_host, str) or not raw_host.isascii() or not 1 <= len(raw_host) <= 253:
        raise UnsafeInput("the host is not a DNS name or an IP address")
    if ":" in raw_host or _IPV4_QUAD.fullmatch(raw_host):
        return _parse_address(raw_host)
    labels = raw_host.split(".")
    if not all(_DNS_LABEL.fullmatch(label) for label in labels) or _NUMERIC_LABEL.fullmatch(labels[-1]):
        raise UnsafeInput("the host is not a DNS name or an IP address")
    return raw_host


def _parse_address(raw_address: str) -> str:
    import ipaddress  # 3 ms, and most hosts are names

    if "%" in raw_address:
        raise UnsafeInput("the host carries a scope id")
    try:
        address = ipaddress.ip_address(raw_address)
    except ValueError as error:
        raise UnsafeInput("the host is not a valid IP address") from error
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    for seen in (address, inner):
        # ipaddress counts ::1 among the reserved ones.
        reserved = seen.is_reserved and not seen.is_loopback
        if seen.is_unspecified or seen.is_link_local or seen.is_multicast or reserved:
            raise UnsafeInput("the host is an address that no gateway can have")
    if isinstance(inner, ipaddress.IPv4Address) and int(inner) >> 24 == 0:
        raise UnsafeInput("the host is an address that no gateway can have")
    return str(address)


def is_loopback_host(host: str) -> bool:
    """Is this host, as written, on this machine? (No name is resolved.)"""
    return host in ("localhost", "::1") or (
        host.startswith("127.") and host.count(".") == 3 and host.replace(".", "").isdigit()
    )


def parse_workdir(raw_workdir: object) -> str:
    """The project folder on the box; anything outside the allowlist falls back to the default."""
    if (
        isinstance(raw_workdir, str)
        and len(raw_workdir) <= 512
        and _WORKDIR.fullmatch(raw_workdir)
        and ".." not in raw_workdir.split("/")
        and not any(part.startswith("-") for part in raw_workdir.split("/"))
    ):
        return raw_workdir
    return DEFAULT_WORKDIR


def alias_for(user: str) -> str:
    """The ssh alias inside a session's own config."""
    return f"runcode-{user}"
