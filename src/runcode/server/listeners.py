"""Addresses that the operator names, and the sockets bound to them before anything else is done.

Owns: parsing `HOST:PORT` and `--public-url`, binding, and the words for a port that is taken. Bound
first of all, so that a port in use leaves nothing half-made behind.
"""

from __future__ import annotations

import errno
import socket
from urllib.parse import urlsplit

from runcode.core import names
from runcode.core.errors import RunCodeError
from runcode.core.values import Value

# Connections that wait for accept(): a team's agents reconnect all at once after a restart.
BACKLOG = 1024


class Address(Value):
    """A host as the operator wrote it and a port; 0 lets the system choose one."""

    host: str
    port: int

    @property
    def text(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, option: str) -> Address:
    """`HOST:PORT` or `[IPV6]:PORT` → Address. Raises `usage`, naming the option."""
    host, colon, port_text = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    try:
        # To listen on, "every address" is fine; `names` refuses it as one to connect to.
        if bare not in ("0.0.0.0", "::"):  # noqa: S104
            bare = names.parse_host(bare)
        port = int(port_text) if port_text.isascii() and port_text.isdigit() else -1
        if not colon or not 0 <= port <= 65535 or (":" in bare) != bracketed:
            raise ValueError
    except (ValueError, RunCodeError) as error:
        raise RunCodeError(
            "usage",
            f"{option} {text!r} is not an address",
            resolution=f"write {option} HOST:PORT, for example {option} 127.0.0.1:8022 (port 0: any free one)",
        ) from error
    return Address(host=bare, port=port)


def parse_public_url(text: str) -> str:
    """`https://host[:port]`, or plain http on loopback → that origin. Raises `usage`."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        secure = parts.scheme == "https" or (parts.scheme == "http" and names.is_loopback_host(host))
        rest = (parts.username, parts.password, parts.path.rstrip("/") or None, parts.query or None)
        if not secure or any(part is not None for part in (*rest, parts.fragment or None)):
            raise ValueError
        host = names.parse_host(host)
    except (ValueError, RunCodeError) as error:
        raise RunCodeError(
            "usage",
            f"--public-url {text!r} is not an address that people may sign in at",
            resolution="write --public-url https://HOST or https://HOST:PORT, without a path",
        ) from error
    shown = f"[{host}]" if ":" in host else host
    # A browser leaves the scheme's own port out of the Host header.
    default = {"https": 443, "http": 80}[parts.scheme]
    return f"{parts.scheme}://{shown}" + ("" if port in (None, default) else f":{port}")


def bind(address: Address, option: str, *, shared: bool = False) -> socket.socket:
    """A listening, non-blocking TCP socket. Raises `io_error` that names the address and the option.

    `shared`: with other processes of this user (SO_REUSEPORT).
    """
    return _bind(address, option, shared=shared, listening=True)


def bind_shared(address: Address, option: str) -> socket.socket:
    """Holds a port that listeners of this user may share, and accepts nothing itself."""
    return _bind(address, option, shared=True, listening=False)


def _bind(address: Address, option: str, *, shared: bool, listening: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        resolved = socket.getaddrinfo(address.host, address.port, family, socket.SOCK_STREAM)[0][4]
        # The protocol by name: asyncio sets TCP_NODELAY only then, and an answer in two pieces else waits 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise RunCodeError(
            "io_error",
            f"cannot listen on {address.text}: {error.strerror}",
            resolution=f"name an address of this machine with {option}",
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(resolved)
        if listening:
            listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason, fix = str(error.strerror), f"name an address of this machine with {option}"
        if error.errno == errno.EADDRINUSE:
            reason, fix = "the port is in use", f"choose another port with {option}, or stop what listens there"
        elif error.errno == errno.EACCES:
            reason, fix = "ports under 1024 need root", f"choose a port over 1023 with {option}"
        raise RunCodeError("io_error", f"cannot listen on {address.text}: {reason}", resolution=fix) from error
    return listener


def bound_address(listener: socket.socket, asked: Address) -> Address:
    """What a listener is really bound to, under the host that the operator wrote."""
    return Address(host=asked.host, port=listener.getsockname()[1])
