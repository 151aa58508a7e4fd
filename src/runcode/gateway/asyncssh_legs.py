"""The two legs of a relayed connection: asyncssh's server towards the client, its client towards the box.

Owns: `ClientLeg` and `BoxLeg`: what is special about either's authentication. Never:
a decision about who may pass. Called by `ssh_server` and `server` (client leg) and
by `workspace_leg` (box leg).

Only the modules `asyncssh_*` touch asyncssh's private parts. What is changed here:
options are read anew for each authentication; that is left out. asyncssh's own
check of client certificates is never reached.
"""

from __future__ import annotations

import asyncio
import copy
import socket
import types
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, cast

import asyncssh
from asyncssh.connection import SSHClientConnection, SSHServerConnection
from asyncssh.packet import SSHPacket, String
from asyncssh.public_key import decode_ssh_public_key

from runcode.core.errors import UnsafeInput
from runcode.gateway.asyncssh_framing import FramedConnection, Framing
from runcode.gateway.asyncssh_relay import LegOwner
from runcode.gateway.client_certificates import is_certificate, read_certificate
from runcode.gateway.packets import MalformedPacket
from runcode.gateway.relay import Leg

MSG_KEXINIT = 20
MSG_USERAUTH_REQUEST = 50
# The first, and any that RFC 4253 §9 lets a client ask for; no known one asks for another that early.
_KEY_EXCHANGES_BEFORE_AUTH = 3
# SHA-1 signatures (`ssh-rsa`) are not among them; asyncssh would verify those too.
SIGNATURE_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-256",
    "rsa-sha2-512",
)

# No message names it: what a box confirms is compared with it, and is another key.
_NO_KEY_YET = types.SimpleNamespace(algorithm=None, public_data=None)


class KeyJudge(Protocol):
    """Who decides about one client connection; an asyncssh.SSHServer at the same time.

    `judge_key` hears whether a key that was signed with verified (`proved`), or
    None when it was only offered.
    """

    def admit_socket(self, source: str) -> bool: ...

    def socket_closed(self) -> None: ...

    async def judge_key(self, username: str, key_blob: bytes, proved: bool | None) -> bool: ...


class ClientLeg(FramedConnection, SSHServerConnection):
    """The connection that a client opened to us."""

    side = Leg.CLIENT

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: Any,
        judge: KeyJudge,
        *,
        framing: Framing,
        max_auth_requests: int,
        source: str | None = None,
    ) -> None:
        """`source` is the client's address, where the socket's peer is a balancer."""
        SSHServerConnection.__init__(self, loop, options)
        self._prepare_framing(framing)
        self._protocol_factory = lambda: cast(asyncssh.SSHServer, judge)
        self._judge = judge
        self._told_source = source
        self._auth_requests_left = max_auth_requests
        self._key_exchanges_left = _KEY_EXCHANGES_BEFORE_AUTH
        self._let_in = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peername = transport.get_extra_info("peername")
        self.source = self._told_source or (str(peername[0]) if isinstance(peername, tuple) else "")
        if not self._judge.admit_socket(self.source):
            self._cancel_login_timer()
            cast(asyncio.Transport, transport).abort()
            return
        self._let_in = True
        _watch_for_dead_peer(transport.get_extra_info("socket"))
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None = None) -> None:
        super().connection_lost(exc)
        if self._let_in:
            self._let_in = False
            self._judge.socket_closed()

    async def reload_config(self) -> None:
        """Nothing: there is no configuration file, and asyncssh would build all options anew."""

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool | Awaitable[None]:
        if pkttype == MSG_USERAUTH_REQUEST and not self._auth_complete:
            self._auth_requests_left -= 1
            if self._auth_requests_left < 0:
                raise asyncssh.DisconnectError(
                    asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many authentication failures"
                )
        elif pkttype == MSG_KEXINIT and not self._auth_complete:
            self._key_exchanges_left -= 1
            if self._key_exchanges_left < 0:
                # A stranger's costs more than a connection's other bytes: signing, and a fresh key.
                raise asyncssh.ProtocolError("Too many key exchanges before authentication")
        return super().process_packet(pkttype, pktid, packet)

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        """The judge hears of the very key that verifies, in the very request that names the user."""
        proved = self._verify(key_data, msg, signature) if msg else None
        return await self._judge.judge_key(username, key_data, proved)

    def _verify(self, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        try:
            algorithm = SSHPacket(signature).get_string().decode("ascii", "replace")
            if algorithm not in SIGNATURE_ALGORITHMS:
                return False
            # Who presents a certificate proves to hold the key inside it (PROTOCOL.certkeys).
            key_blob = read_certificate(key_data).key_blob if is_certificate(key_data) else key_data
            return decode_ssh_public_key(key_blob).verify(String(self._session_id) + msg, signature)
        except (ValueError, asyncssh.KeyImportError, MalformedPacket, UnsafeInput):
            return False


class BoxLeg(FramedConnection, SSHClientConnection):
    """The connection that we open to a workspace's sshd."""

    side = Leg.BOX

    def __init__(
        self, loop: asyncio.AbstractEventLoop, options: Any, owner: LegOwner, *, framing: Framing, shared_options: Any
    ) -> None:
        """`options` are this connection's own, made by `options_for_box` of the shared ones."""
        SSHClientConnection.__init__(self, loop, options, wait="auth")
        self._shared_options = shared_options
        self._prepare_framing(framing)
        # Before authentication asyncssh itself refuses every message that is relayed.
        self.relay_to(owner)

    def try_next_auth(self, *, next_method: bool = False) -> None:
        super().try_next_auth(next_method=next_method)
        # asyncssh chooses its key in a task; a box that says before that that the key is good has been asked nothing.
        if self._auth is not None and not hasattr(self._auth, "_keypair"):
            cast(Any, self._auth)._keypair = _NO_KEY_YET

    async def wait_authenticated(self) -> None:
        """Raises asyncssh.Error or OSError when the peer is not the pinned one, or refuses us."""
        assert self._waiter is not None
        await self._waiter
        if self._transport is None:
            raise asyncssh.ConnectionLost("Connection lost")
        # What is special about this connection's is not asked for again, and large.
        self._options, self._waiter = self._shared_options, None


def options_for_box(
    base: asyncssh.SSHClientConnectionOptions,
    *,
    username: str,
    key_pairs: Sequence[asyncssh.SSHKeyPair],
    host_key: asyncssh.SSHKey,
    waiter: asyncio.Future[None],
) -> asyncssh.SSHClientConnectionOptions:
    """A copy of `base` for one connection: building options from scratch costs more than the handshake's crypto."""
    options = copy.copy(base)
    options.username = username
    options.client_keys = list(key_pairs)
    options.known_hosts = ([host_key], [], [], [], [], [], [])
    options.waiter = waiter
    # Who waits may be cancelled in the very turn of the loop in which the leg ends.
    waiter.add_done_callback(_look_at)
    return options


def _look_at(waiter: asyncio.Future[None]) -> None:
    """Else asyncio complains in the log that nobody did."""
    if not waiter.cancelled():
        waiter.exception()


def _watch_for_dead_peer(sock: Any) -> None:
    """A client that vanished without a word (a closed laptop) is noticed in two minutes, not in two hours."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
