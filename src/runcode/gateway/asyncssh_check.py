"""Is the installed asyncssh the one that the `asyncssh_*` modules were written for?

Owns: the list of everything private that is used or overridden there, and naming
what an upgrade broke: without it no packet can be relayed, and the gateway does not
start. Called by `server` at each start, and by contract tests. `asyncssh_trial` tries
the framing.
"""

from __future__ import annotations

import inspect

import asyncssh
from asyncssh import constants
from asyncssh.connection import SSHClientConnection, SSHConnection, SSHServerConnection
from asyncssh.encryption import GCMEncryption

from runcode.core.errors import RunCodeError
from runcode.gateway import asyncssh_legs, asyncssh_relay, packets
from runcode.gateway.asyncssh_cipher import GcmPackets

PROVED_VERSION = "2.24.1"

# As (class, method, parameters after self).
_METHODS: tuple[tuple[type, str, tuple[str, ...]], ...] = (
    (SSHConnection, "_cleanup", ("exc",)),
    (SSHConnection, "_force_close", ("exc",)),
    (SSHConnection, "_login_timer_callback", ()),
    (SSHConnection, "_cancel_login_timer", ()),
    (SSHConnection, "_recv_data", ()),
    (SSHConnection, "_send", ("data",)),
    (SSHConnection, "_finish_recv_packet", ("pkttype", "seq", "_task", "is_async")),
    (SSHConnection, "_recv_packet", ()),
    (SSHConnection, "_recv_pkthdr", ()),
    (SSHConnection, "_recv_version", ()),
    (SSHConnection, "_send_deferred_packets", ()),
    (SSHConnection, "_send_disconnect", ("code", "reason", "lang")),
    (SSHConnection, "_send_kexinit", ()),
    (SSHConnection, "send_newkeys", ("k", "h")),
    (SSHConnection, "send_packet", ("pkttype", "args", "handler")),
    (SSHConnection, "process_packet", ("pkttype", "pktid", "packet")),
    (SSHConnection, "internal_error", ("exc_info", "error_logger")),
    (SSHConnection, "connection_made", ("transport",)),
    (SSHConnection, "connection_lost", ("exc",)),
    (SSHConnection, "eof_received", ()),
    (SSHConnection, "data_received", ("data", "datatype")),
    (SSHConnection, "log_sent_packet", ("pkttype", "pktid", "packet", "note")),
    (SSHConnection, "log_received_packet", ("pkttype", "pktid", "packet", "note")),
    (SSHClientConnection, "try_next_auth", ("next_method",)),
    (SSHServerConnection, "reload_config", ()),
    (SSHServerConnection, "validate_public_key", ("username", "key_data", "msg", "signature")),
)
_ATTRIBUTES = (
    "_auth_complete",
    "_auth_final",
    "_auth",
    "_channels",
    "_client_kexinit",
    "_close_event",
    "_deferred_packets",
    "_enc_algs",
    "_inpbuf",
    "_kex",
    "_kex_complete",
    "_kexinit_sent",
    "_login_timer",
    "_loop",
    "_max_recv_pktlen",
    "_next_recv_encryption",
    "_packet",
    "_pktlen",
    "_protocol_factory",
    "_recv_encryption",
    "_recv_handler",
    "_recv_seq",
    "_rekey_bytes",
    "_rekey_bytes_sent",
    "_rekey_seconds",
    "_rekey_time",
    "_send_encryption",
    "_send_seq",
    "_revoked_host_keys",
    "_server_kexinit",
    "_server_sig_algs",
    "_session_id",
    "_transport",
    "_trusted_ca_keys",
    "_waiter",
    "_x509_revoked_certs",
)
_CONSTANTS = {
    "MSG_IGNORE": asyncssh_relay.MSG_IGNORE,
    "MSG_KEXINIT": asyncssh_legs.MSG_KEXINIT,
    "MSG_USERAUTH_REQUEST": asyncssh_legs.MSG_USERAUTH_REQUEST,
    "MSG_KEX_LAST": 49,
    "MSG_NEWKEYS": asyncssh_relay.MSG_NEWKEYS,
    "MSG_CHANNEL_FIRST": packets.CHANNEL_WINDOW_ADJUST,
}


def find_breakage() -> list[str]:
    """What of asyncssh is not as this module needs it, each as a few words; empty when all is."""
    broken = []
    if asyncssh.__version__ != PROVED_VERSION:
        broken.append(f"version {asyncssh.__version__} instead of {PROVED_VERSION}")
    for owner, name, expected in _METHODS:
        method = getattr(owner, name, None)
        found = tuple(inspect.signature(method).parameters)[1:] if callable(method) else None
        if found != expected:
            broken.append(f"{owner.__name__}.{name}")
    names = set(SSHConnection.__init__.__code__.co_names)
    broken += [f"SSHConnection.{name}" for name in _ATTRIBUTES if name not in names]
    broken += [f"constant {name}" for name, value in _CONSTANTS.items() if getattr(constants, name, None) != value]
    return broken + _find_gcm_breakage()


def _find_gcm_breakage() -> list[str]:
    """Our AES-GCM must write the same bytes as the stock one, from the same state."""
    stock, taken_over = (GCMEncryption.new("aes128-gcm", bytes(16), bytes(12)) for _ in range(2))
    try:
        ours = GcmPackets(taken_over)
        same = all(
            b"".join(ours.encrypt_packet(0, b"head", b"packet"))
            == b"".join(stock.encrypt_packet(0, b"head", b"packet"))
            for _ in range(2)
        )
    except (AttributeError, TypeError):
        same = False
    return [] if same else ["GCMEncryption"]


def require_known_asyncssh() -> None:
    """Raises RunCodeError when asyncssh is not what the relay was written for. Cheap."""
    broken = find_breakage()
    if broken:
        raise RunCodeError(
            "internal",
            "the gateway does not know this asyncssh: " + ", ".join(broken),
            resolution=f"install asyncssh=={PROVED_VERSION}",
        )
