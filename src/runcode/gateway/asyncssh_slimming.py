"""What a leg keeps of its handshake although nothing will ask for it again.

Owns: forgetting that, once both legs stand and after each renewal of keys. Most
connections sit idle for hours, and a gateway holds thousands: key exchange
messages, key pairs, certificates and asyncssh's empty containers are a quarter of
what one costs. Called by `asyncssh_relay`; changes nothing that a packet can show.
"""

from __future__ import annotations

from typing import Any

from asyncssh.connection import SSHConnection

_NOTHING: frozenset[Any] = frozenset()
# Sets that are looked into at most, never added to.
_ONLY_READ = ("_trusted_ca_keys", "_revoked_host_keys", "_x509_revoked_certs", "_server_sig_algs")


class NobodyWaits:
    """Stands in for the event of a connection's end: a leg's owner is told of it, and nobody waits."""

    __slots__ = ()

    def set(self) -> None: ...

    def is_set(self) -> bool:
        return False


NOBODY_WAITS = NobodyWaits()


def forget_handshake(leg: SSHConnection) -> None:
    """Call it between two key exchanges of an authenticated leg. What the next one needs, it makes anew."""
    state: Any = leg
    state._client_kexinit = state._server_kexinit = state._packet = b""
    state._auth = None
    for name in _ONLY_READ:
        if getattr(state, name) is not None and (not getattr(state, name) or name == "_server_sig_algs"):
            setattr(state, name, _NOTHING)
    if leg.is_client():
        # The pinned host key stays: it is asked for at each renewal.
        state._client_keys = []
        state._known_hosts = None
