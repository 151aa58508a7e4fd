"""The HTTP listener: accepting, what one connection may take, and ending without cutting anybody off.

Owns: uvicorn's wiring, the limits that must hold before a request exists (how many
connections, how long a handshake and a request's head may take and how large it
may be), and draining. Called by `up`. What holds for a request is `controlplane/edge.py`'s.

Threat: somebody who opens connections and says nothing, or one byte a minute; a
head without end; all places taken from one address.
Guarantee: each connection has its place from the moment it is accepted, before TLS;
there are so many in all, and so many for one address (an IPv6 customer's /64) that
is no proxy of ours; the head must be whole within `head_s`, also on a connection
that has served before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runcode.controlplane.proxies import TrustedProxies
from runcode.core.sources import network_of
from runcode.core.values import Value

_log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
_UNREAD_MS = 30_000
# One read may bring a head and the body after it; asyncio reads at most this much at once.
_BODY_BESIDE_HEAD = 256 * 1024
# What an in-flight request gets, once nobody new is let in.
REQUESTS_GRACE_S = 5.0
_HEAD_TOO_LARGE = b"431 Request Header Fields Too Large"
_TOO_SLOW = b"408 Request Timeout"


class ConnectionLimits(Value):
    """How many connections, how long (`_s`) and how large each part of a request may be, and silence between two."""

    in_all: int = 2000
    per_address: int = 500
    head_s: float = 10.0
    head_bytes: int = 64 * 1024
    body_s: float = 20.0
    idle_s: int = 15


class Doorman:
    """Who holds a place. One event loop owns it; several listeners may share it."""

    def __init__(self, limits: ConnectionLimits, proxies: TrustedProxies) -> None:
        self._limits = limits
        self._proxies = proxies
        self._held: Counter[str] = Counter()
        self.connections = 0
        self.refused = 0

    def enter(self, host: str) -> str | None:
        """A place's name, to be given back with `leave`; None when there is none."""
        name = "" if self._proxies.trusts(host) else network_of(host)
        if self.connections >= self._limits.in_all or (name and self._held[name] >= self._limits.per_address):
            self.refused += 1
            return None
        self._held[name] += 1
        self.connections += 1
        return name

    def leave(self, name: str) -> None:
        self.connections -= 1
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name]


class WebServer(uvicorn.Server):
    """One listener. `serve_on` until `finish`; signals are the caller's."""

    def __init__(
        self,
        app: Any,
        doorman: Doorman,
        *,
        limits: ConnectionLimits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits or ConnectionLimits()
        self._doorman = doorman
        self._tls = tls
        self._accepting: asyncio.Task[None] | None = None
        self._opening: set[asyncio.Task[None]] = set()
        super().__init__(
            uvicorn.Config(
                app,
                http=HttpToolsProtocol,
                ws="none",
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                # Read by the edge, from the proxies that the operator names alone.
                proxy_headers=False,
                timeout_keep_alive=self._limits.idle_s,
            )
        )

    async def serve_on(self, listener: socket.socket) -> None:
        """Until `finish`. The listener is the caller's to close."""
        self._listener = listener
        await self.serve(sockets=[])

    async def finish(self, grace_s: float = REQUESTS_GRACE_S) -> None:
        """Accept nobody new, let requests that are under way end for `grace_s`, then end everything. Idempotent."""
        await self._stop_accepting()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                # uvicorn has no word for "all are gone".
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        for task in list(self.server_state.tasks):
            task.cancel()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self.should_exit = self.force_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """In place of uvicorn's, whose listener has neither places nor a bound for the handshake."""
        await self.lifespan.startup()
        self.servers = []
        self._accepting = asyncio.get_running_loop().create_task(self._accept(), name="http-accept")
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def _stop_accepting(self) -> None:
        tasks = [task for task in (self._accepting, *self._opening) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(self._listener)
            except OSError as error:
                # No descriptor left, most likely: those who have one go on.
                _log.error("a connection was not accepted: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            place = self._doorman.enter(str(peer[0]))
            if place is None:
                connection.close()
                continue
            task = loop.create_task(self._open(connection, place))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket, place: str) -> None:
        opened = left = False

        def enter() -> None:
            nonlocal opened
            opened = True

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self._doorman.leave(place)

        def make_protocol() -> asyncio.Protocol:
            return _Connection(self.config, self.server_state, self._limits, enter, leave)

        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Whoever takes nothing of an answer for that long is gone (tcp(7); counts for a closed window too).
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
            await asyncio.get_running_loop().connect_accepted_socket(
                make_protocol,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_S if self._tls is not None else None,
            )
        except (OSError, TimeoutError):
            # Whatever spoke no TLS, or went away.
            connection.close()
        finally:
            if not opened:
                leave()


class _Connection(HttpToolsProtocol):
    """uvicorn's, with a bound for the head of each request."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: Any,
        limits: ConnectionLimits,
        on_made: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state={})
        self._limits = limits
        self._on_made, self._on_lost = on_made, on_lost
        # Runs while a request is arriving.
        self._timer: asyncio.TimerHandle | None = None
        self._head_size = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._on_made()
        super().connection_made(transport)
        self._start_timer(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            if self._timer is None:
                # The first byte of another request.
                self._start_timer(self._limits.head_s)
            self._head_size += len(data)
            if self._head_size > self._limits.head_bytes + _BODY_BESIDE_HEAD:
                self._refuse(_HEAD_TOO_LARGE)
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_size = 0
        # The edge is stricter, but reads nothing more once it has refused.
        self._start_timer(self._limits.body_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        self._stop_timer()
        super().on_message_complete()

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._refuse, _TOO_SLOW)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes) -> None:
        self._stop_timer()
        if self.transport is None or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()
