"""The control plane's reply to a mint, turned into types.

Threat: the reply may be forged or the server hostile. Every field is matched
against what we accept; unknown fields are dropped; nothing of it reaches ssh as
text, and its `ssh_config` is only looked at as a tripwire.

Guarantee: a ConnectionBundle names one host, port, user and at least one pinned
host key, or UnsafeInput was raised and nothing was done.
"""

from __future__ import annotations

import datetime
import re

from runcode.core import hostkeys, names
from runcode.core.errors import UnsafeInput
from runcode.core.hostkeys import PublicKey
from runcode.core.sshconfig import find_tripwire
from runcode.core.values import Value

_CERTIFICATE_MAX = 16 * 1024
_CERTIFICATE = re.compile(
    r"((?:ssh-ed25519|ecdsa-sha2-nistp(?:256|384|521))-cert-v01@openssh\.com) ([A-Za-z0-9+/]+={0,2})", re.ASCII
)
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_ORIGIN = re.compile(r"(https?)://([^/?#@\\\s]+)(?:[/?#].*)?", re.ASCII | re.DOTALL)


class ConnectionBundle(Value):
    """Where and as whom to connect, and which host keys to accept there.

    `expires_at` is aware UTC: the end of the right to open a connection.
    `web_url` is an origin without path, query or credentials, or None.
    """

    host: str
    port: int
    user: str
    host_keys: tuple[PublicKey, ...]
    expires_at: datetime.datetime
    workdir: str
    web_url: str | None
    certificate: str | None


def parse_bundle(raw_bundle: object) -> ConnectionBundle:
    """Raises UnsafeInput when any field but `workdir` and `web_url` is not acceptable."""
    if not isinstance(raw_bundle, dict):
        raise UnsafeInput("the server's bundle is not an object")
    directive = find_tripwire(raw_bundle.get("ssh_config"))
    if directive is not None:
        raise UnsafeInput(f"the server's ssh_config carries {directive}")
    return ConnectionBundle(
        host=names.parse_host(raw_bundle.get("host")),
        port=names.parse_port(raw_bundle.get("port")),
        user=names.parse_title(raw_bundle.get("user")),
        host_keys=hostkeys.parse_known_hosts(raw_bundle.get("known_hosts")),
        expires_at=parse_timestamp(raw_bundle.get("expires_at")),
        workdir=names.parse_workdir(raw_bundle.get("workdir")),
        web_url=reduce_web_url(raw_bundle.get("web_url")),
        certificate=_parse_certificate(raw_bundle.get("certificate")),
    )


def parse_timestamp(raw_timestamp: object) -> datetime.datetime:
    """RFC 3339 with a zone → aware UTC, whole seconds."""
    match = _TIMESTAMP.fullmatch(raw_timestamp) if isinstance(raw_timestamp, str) else None
    if match is None:
        raise UnsafeInput("the bundle's expires_at is not an RFC 3339 time with a zone")
    zone = "+00:00" if match[3] in "Zz" else match[3]
    try:
        moment = datetime.datetime.fromisoformat(f"{match[1]}T{match[2]}{zone}")
        return moment.astimezone(datetime.timezone.utc)
    except (ValueError, OverflowError) as error:
        raise UnsafeInput("the bundle's expires_at is not a real time") from error


def render_timestamp(moment: datetime.datetime) -> str:
    """Aware time → `2026-11-23T22:15:00Z`."""
    return moment.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def reduce_web_url(raw_url: object) -> str | None:
    """An https origin (http on loopback), without anything that could hold a secret; else None."""
    match = _ORIGIN.fullmatch(raw_url) if isinstance(raw_url, str) and len(raw_url) <= 4096 else None
    if match is None:
        return None
    scheme, authority = match[1], match[2]
    host, port_text = _split_authority(authority)
    try:
        host = names.parse_host(host)
        port = None if port_text is None else names.parse_port(int(port_text))
    except (UnsafeInput, ValueError):
        return None
    if scheme == "http" and not names.is_loopback_host(host):
        return None
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" + ("" if port is None else f":{port}")


def _split_authority(authority: str) -> tuple[str, str | None]:
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return "", None  # no host, which nothing accepts
        return host, rest[1:] if rest.startswith(":") else None
    host, colon, port_text = authority.partition(":")
    return host, port_text if colon else None


def _parse_certificate(raw_certificate: object) -> str | None:
    if raw_certificate is None:
        return None
    if not isinstance(raw_certificate, str) or len(raw_certificate) > _CERTIFICATE_MAX:
        raise UnsafeInput("the bundle's certificate is not a text of sane size")
    match = _CERTIFICATE.fullmatch(raw_certificate.strip())
    if match is None:
        raise UnsafeInput("the bundle's certificate is not an OpenSSH user certificate")
    return f"{match[1]} {match[2]}"
