"""Peers that misbehave: a client that sends any packet it likes, and a box that does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncssh
from asyncssh.connection import SSHClientConnection, SSHServerConnection

from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from support.gateway_box import Client, Scene

USERAUTH_FAILURE, USERAUTH_SUCCESS, USERAUTH_PK_OK = 51, 52, 60


class _Anything(dict[int, Any]):
    def __init__(self, handler: Any) -> None:
        super().__init__()
        self.handler = handler

    def __missing__(self, _number: int) -> Any:
        return self.handler


class _Recorder:
    """Stands for every channel and for the authentication in progress."""

    def __init__(self, record: Callable[[int, bytes], None]) -> None:
        self.record = record

    def log_received_packet(self, *_arguments: object) -> None:
        pass

    def process_packet(self, pkttype: int, _pktid: int, packet: Any) -> bool:
        self.record(pkttype, packet.get_full_payload())
        return True

    def cancel(self) -> None:
        pass


class RawClient(SSHClientConnection):
    """Key exchange by asyncssh; everything after it as the test says. Received packets gather in `inbox`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Any) -> None:
        super().__init__(loop, options)
        self.inbox: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self.ready = asyncio.Event()
        self.gone = asyncio.Event()
        self.disconnect_reason = ""
        recorder = _Recorder(lambda kind, payload: self.inbox.put_nowait((kind, payload)))
        self._auth = recorder  # type: ignore[assignment]
        self._channels = _Anything(recorder)  # type: ignore[assignment]

    def try_next_auth(self, *, next_method: bool = False) -> None:
        self.ready.set()

    def process_packet(self, pkttype: int, pktid: int, packet: Any) -> Any:
        if pkttype in (USERAUTH_FAILURE, USERAUTH_SUCCESS) or pkttype >= 80:
            if pkttype == USERAUTH_SUCCESS:
                self._auth_complete = True
            self.inbox.put_nowait((pkttype, packet.get_full_payload()))
            return True
        if pkttype == 1:
            length = int.from_bytes(packet.get_full_payload()[5:9], "big")
            self.disconnect_reason = packet.get_full_payload()[9 : 9 + length].decode()
        return super().process_packet(pkttype, pktid, packet)

    def connection_lost(self, exc: Exception | None = None) -> None:
        super().connection_lost(exc)
        self.gone.set()

    def send_raw(self, payload: bytes) -> None:
        self.send_packet(payload[0], payload[1:])

    def send_early(self, payload: bytes) -> None:
        """Past asyncssh's own order of things: before authentication, or inside a key exchange."""
        complete, self._auth_complete = self._auth_complete, True
        kex, self._kex_complete = self._kex_complete, True
        self.send_packet(payload[0], payload[1:])
        self._auth_complete, self._kex_complete = complete, kex

    def auth_request(self, user: str, method: bytes, rest: bytes = b"") -> bytes:
        return b"\x32" + s(user.encode()) + s(b"ssh-connection") + s(method) + rest

    def offer(self, user: str, key: asyncssh.SSHKey) -> bytes:
        return self.auth_request(user, b"publickey", b"\0" + s(key.algorithm) + s(key.public_data))

    def signed(
        self,
        user: str,
        key: asyncssh.SSHKey,
        *,
        signer: asyncssh.SSHKey | None = None,
        signed_user: str | None = None,
        algorithm: bytes | None = None,
        certificate: bytes | None = None,
    ) -> bytes:
        """A request for `user` with `key`; the signature may be of another key or for another user."""
        algorithm = algorithm or key.sig_algorithms[0]
        tail = b"\x01" + s(algorithm) + s(key.public_data)
        if certificate is not None:
            length = int.from_bytes(certificate[:4], "big")
            tail = b"\x01" + s(certificate[4 : 4 + length]) + s(certificate)
        covered = s(self._session_id) + self.auth_request(signed_user or user, b"publickey", tail)
        signature = (signer or key).sign(covered, (signer or key).sig_algorithms[0] if signer else algorithm)
        return self.auth_request(user, b"publickey", tail) + s(signature)

    async def take(self, *kinds: int) -> tuple[int, bytes]:
        """The next received packet of one of these kinds (any, if none is named)."""
        async with asyncio.timeout(10):
            while True:
                kind, payload = await self.inbox.get()
                if not kinds or kind in kinds:
                    return kind, payload

    async def log_in(self, client: Client) -> None:
        self.send_raw(self.signed(client.title, client.key))
        kind, _ = await self.take()
        assert kind == USERAUTH_SUCCESS

    async def open_session(self, number: int = 0, window: int = 1 << 21) -> int:
        """Returns the box's channel number."""
        self.send_raw(b"\x5a" + s(b"session") + u(number) + u(window) + u(1 << 15))
        _, payload = await self.take(91)
        return int.from_bytes(payload[5:9], "big")

    async def wait_gone(self) -> None:
        async with asyncio.timeout(10):
            await self.gone.wait()


@contextlib.asynccontextmanager
async def raw_client(scene: Scene) -> AsyncIterator[RawClient]:
    """Connected, keys exchanged, nothing of authentication sent yet."""
    options = asyncssh.SSHClientConnectionOptions(
        config=None,
        host="127.0.0.1",
        username="raw",
        known_hosts=([asyncssh.import_public_key(scene.host_line)], [], []),
        client_keys=None,
        agent_path=None,
        encryption_algs=["aes128-gcm@openssh.com"],
        kex_algs=["curve25519-sha256"],
    )
    options.waiter = None
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: RawClient(loop, options), "127.0.0.1", scene.port)
    try:
        async with asyncio.timeout(10):
            await connection.ready.wait()
        yield connection
    finally:
        connection.abort()


class HostileBox(SSHServerConnection):
    """A workspace's sshd that lets the gateway in, then does as `script` says; what it receives is recorded."""

    inbox: asyncio.Queue[tuple[int, bytes]]

    def take_over(self) -> None:
        self.inbox = asyncio.Queue()
        recorder = _Recorder(lambda kind, payload: self.inbox.put_nowait((kind, payload)))
        self._channels = _Anything(recorder)  # type: ignore[assignment]

    def process_packet(self, pkttype: int, pktid: int, packet: Any) -> Any:
        if pkttype >= 80:
            self.inbox.put_nowait((pkttype, packet.get_full_payload()))
            return True
        return super().process_packet(pkttype, pktid, packet)

    def send_raw(self, payload: bytes) -> None:
        self.send_packet(payload[0], payload[1:])

    async def take(self, *kinds: int) -> tuple[int, bytes]:
        async with asyncio.timeout(10):
            while True:
                kind, payload = await self.inbox.get()
                if not kinds or kind in kinds:
                    return kind, payload


class _LetsGatewayIn(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_ca_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return True


@contextlib.asynccontextmanager
async def hostile_box(
    scene: Scene, title: str, *, own_host_key: bool = True
) -> AsyncIterator[asyncio.Queue[HostileBox]]:
    """A workspace `title` served by HostileBoxes; each accepted connection appears in the queue."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    pinned = key if own_host_key else asyncssh.generate_private_key("ssh-ed25519")
    path = str(scene.folder / f"h-{title}")
    # asyncssh checks the certificate's principal against the user name.
    login = f"ws-{scene.directory._next_id + 1}"
    scene.directory.add_workspace(
        title, host_key=pinned.export_public_key("openssh").decode().strip(), socket_path=path, login=login
    )
    options = asyncssh.SSHServerConnectionOptions(
        config=None, server_factory=_LetsGatewayIn, server_host_keys=[key], gss_host=None, encoding=None
    )
    arrived: asyncio.Queue[HostileBox] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def make() -> HostileBox:
        box = HostileBox(loop, options)
        box.take_over()
        arrived.put_nowait(box)
        return box

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    server = await loop.create_unix_server(make, sock=listener)
    try:
        yield arrived
    finally:
        server.close()
