"""Under which names this server answers.

Owns: the allowlist of the Host header. Called by `edge`, before anything is done
with a request. Which links and cookies a page uses is decided from `--public-url`
alone, never from this header.

Threat: a name of an attacker's that resolves to this machine, so that a browser
on it takes us for the attacker's own origin (DNS rebinding); a Host that ends up
in a link, a redirect or a cache; two Hosts, of which two parts of a stack read
one each.
Guarantee: a request is served when it names, once, a host that the operator named
or an address. An address cannot be rebound, and says only where we are.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from runcode.core import names

# RFC 3986 §3.2.2 without user, escapes and anything that a URL would read otherwise.
_HOST = re.compile(r"(?:([A-Za-z0-9_.-]{1,253})|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?", re.ASCII)
_KNOWN_MAX = 256


class HostPolicy:
    """`any_address`: plain addresses are fine, as of a server that is bound to all of them."""

    def __init__(self, hosts: Iterable[str], *, any_address: bool) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._any_address = any_address
        self._known: dict[bytes, bool] = {}

    def accepts(self, raw_hosts: Sequence[bytes]) -> bool:
        """All Host headers of one request. Ports are not compared: a tunnel may have another."""
        if len(raw_hosts) != 1:
            return False
        (raw_host,) = raw_hosts
        known = self._known.get(raw_host)
        if known is None:
            known = self._judge(raw_host)
            if len(self._known) < _KNOWN_MAX:
                self._known[raw_host] = known
        return known

    def _judge(self, raw_host: bytes) -> bool:
        found = _HOST.fullmatch(raw_host.decode("latin-1"))
        if found is None or int(found[3] or 0) > 65535:
            return False
        host = (found[1] or found[2]).lower()
        if host in self._hosts:
            return True
        if not self._any_address:
            return False
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True


def make_host_policy(bound_host: str, public_url: str | None, more: Iterable[str] = ()) -> HostPolicy:
    """What a server answers to that is bound to `bound_host` (`0.0.0.0`, `::`: everywhere)."""
    everywhere = bound_host in ("0.0.0.0", "::")  # noqa: S104
    allowed = {host.removeprefix("[").removesuffix("]") for host in more}
    if not everywhere:
        allowed.add(bound_host)
    if everywhere or names.is_loopback_host(bound_host):
        allowed |= {"localhost", "127.0.0.1", "::1"}
    if public_url is not None:
        allowed.add(urlsplit(public_url).hostname or "")
    return HostPolicy(allowed, any_address=everywhere)
