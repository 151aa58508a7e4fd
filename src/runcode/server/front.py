"""What stands between callers and the app: listeners, TLS, names, proxies, rates, places, and `/metrics`.

Owns: the options for all of it, their check before anything is made, and the order
of serving and draining. Called by `up`.

Guarantee: `/metrics` is never open to a stranger: on its own listener it needs the
operator's token as soon as that is beyond loopback, and on the public one always.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runcode.controlplane.app import make_app, make_metrics_app
from runcode.controlplane.edge import EdgeSettings
from runcode.controlplane.hosts import make_host_policy
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.proxies import TrustedProxies
from runcode.controlplane.rate_limits import LimitPolicy, RateLimits
from runcode.core import names
from runcode.core.errors import RunCodeError
from runcode.core.values import Value
from runcode.gateway.server import GatewayServer
from runcode.server.listeners import Address, bind, bound_address
from runcode.server.tls import ServerTls
from runcode.server.web import ConnectionLimits, Doorman, WebServer

_log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 15.0
_TOKEN = re.compile(r"[\x21-\x7e]{16,512}", re.ASCII)


class FrontOptions(Value):
    """What the operator said of the HTTP side. `drain_s`: for how long `/readyz` says 503 before nobody is let in."""

    http: Address
    public_url: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    trusted_proxies: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    metrics: Address | None = None
    metrics_token_file: Path | None = None
    rates: LimitPolicy = LimitPolicy()
    connections: ConnectionLimits = ConnectionLimits()
    drain_s: float = 0.0


class Front:
    """Made before anything else is (a bad option or a port in use makes nothing); `serve`, `drain`, `close`."""

    def __init__(self, options: FrontOptions) -> None:
        """Raises RunCodeError: `usage`, `io_error`, `unsafe_path`."""
        self._options = options
        self._proxies = TrustedProxies(options.trusted_proxies)
        self._metrics_token = _load_metrics_token(options)
        self.tls = _load_tls(options)
        self._plane: ControlPlane | None = None
        self._servers: list[WebServer] = []
        self._serving: list[asyncio.Task[None]] = []
        self._sockets = contextlib.ExitStack()
        with contextlib.ExitStack() as bound:
            self._http = bound.enter_context(contextlib.closing(bind(options.http, "--http")))
            self._metrics: socket.socket | None = None
            if options.metrics is not None:
                self._metrics = bound.enter_context(contextlib.closing(bind(options.metrics, "--metrics")))
            self._sockets = bound.pop_all()

    @property
    def public_url(self) -> str | None:
        """The origin that browsers must use: as the operator named it, or, with TLS of our own, where we listen."""
        return self._options.public_url or (None if self.tls is None else self.base)

    @property
    def base(self) -> str:
        """The address that clients are told."""
        scheme = "http" if self.tls is None else "https"
        return self._options.public_url or f"{scheme}://{bound_address(self._http, self._options.http).text}"

    @property
    def metrics_url(self) -> str | None:
        if self._metrics is None or self._options.metrics is None:
            return None
        return f"http://{bound_address(self._metrics, self._options.metrics).text}/metrics"

    def serve(self, plane: ControlPlane) -> None:
        """Answer from now on; ends with `close`."""
        self._plane = plane
        options = self._options
        doorman = Doorman(options.connections, self._proxies)
        plane.metrics.add_collector(DoorNumbers(doorman))
        app = make_app(
            plane,
            EdgeSettings(
                proxies=self._proxies,
                hosts=make_host_policy(options.http.host, options.public_url, options.allowed_hosts),
                limits=RateLimits(options.rates, on_limited=plane.metrics.count_limited),
                metrics=plane.metrics,
                hsts=(options.public_url or "").startswith("https://"),
            ),
            metrics_token=self._metrics_token,
        )
        context = None if self.tls is None else self.tls.context
        self._serve(WebServer(app, doorman, limits=options.connections, tls=context), self._http)
        if self._metrics is not None and options.metrics is not None:
            hosts = make_host_policy(options.metrics.host, None, options.allowed_hosts)
            inner = make_metrics_app(plane, EdgeSettings(hosts=hosts), metrics_token=self._metrics_token)
            places = Doorman(ConnectionLimits(in_all=64, per_address=64), TrustedProxies())
            self._serve(WebServer(inner, places), self._metrics)
        if self.tls is not None:
            self.tls.start()

    def _serve(self, server: WebServer, listener: socket.socket) -> None:
        self._servers.append(server)
        self._serving.append(asyncio.get_running_loop().create_task(server.serve_on(listener)))

    async def wait_for_end(self) -> None:
        """Returns when a listener has ended, by itself or not."""
        await asyncio.wait(self._serving, return_when=asyncio.FIRST_COMPLETED)

    async def wait_until_answering(self) -> None:
        """Raises `internal` unless a request over the listener's own address gets its answer."""
        asking = asyncio.get_running_loop().create_task(self._ask())
        done, _ = await asyncio.wait(
            {asking, *self._serving}, timeout=ANSWER_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        if asking not in done or asking.exception() is not None:
            asking.cancel()
            raise RunCodeError("internal", "the server does not answer on its own addresses; see the log")

    async def _ask(self) -> None:
        host, port = reachable(self._http)
        shown = self._options.http.host if self._options.http.host not in ("0.0.0.0", "::") else host  # noqa: S104
        shown = f"[{shown}]" if ":" in shown else shown
        context = None if self.tls is None else _unverified()
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            writer.write(f"GET /healthz HTTP/1.1\r\nHost: {shown}:{port}\r\nConnection: close\r\n\r\n".encode())
            if not (await reader.readline()).startswith(b"HTTP/1.1 200"):
                raise OSError("an unexpected answer")
        finally:
            writer.close()

    async def close(self) -> None:
        """Let nobody new in, let requests that are under way end, then end everything. Idempotent."""
        if self._plane is not None:
            self._plane.gateways.closing = True
        await asyncio.gather(*(server.finish() for server in self._servers))
        if self._serving:
            await asyncio.wait(self._serving, timeout=5)
        if self.tls is not None:
            await self.tls.close()
        self.release()

    def release(self) -> None:
        """Give the addresses back."""
        self._sockets.close()


def reachable(listener: socket.socket) -> tuple[str, int]:
    """An address at which this machine reaches the listener, also when it listens everywhere."""
    host, port = listener.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104


# ---------------------------------------------------------------- what is measured here


class DoorNumbers(Collector):
    def __init__(self, doorman: Doorman) -> None:
        self._doorman = doorman

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("runcode_http_connections", "Open HTTP connections.", self._doorman.connections)
        yield CounterMetricFamily(
            "runcode_http_connections_refused", "Connections for which there was no place.", self._doorman.refused
        )


class GatewayNumbers(Collector):
    """Of the gateway in this process."""

    def __init__(self, gateway: GatewayServer) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        health = self._gateway.health()
        yield GaugeMetricFamily("runcode_gateway_connections", "Live SSH connections.", health.live_connections)
        yield GaugeMetricFamily("runcode_gateway_strangers", "Connections before authentication.", health.strangers)
        relayed = CounterMetricFamily("runcode_gateway_relayed_bytes", "Channel data relayed.", labels=("direction",))
        relayed.add_metric(("to_box",), health.bytes_to_boxes)
        relayed.add_metric(("to_client",), health.bytes_to_clients)
        yield relayed
        framed = CounterMetricFamily("runcode_gateway_data_packet_bytes", "Packets of data, by way.", labels=("way",))
        framed.add_metric(("resealed_in_place",), health.resealed_bytes)
        framed.add_metric(("handled_singly",), health.singly_bytes)
        yield framed
        yield GaugeMetricFamily(
            "runcode_gateway_own_framing",
            "1: data is resealed in place; 0: the slow way.",
            health.framing_obstacle is None,
        )
        yield GaugeMetricFamily(
            "runcode_gateway_feed_age_seconds", "Since the change feed last spoke; +Inf: never.", health.feed_age_s
        )
        yield GaugeMetricFamily("runcode_gateway_events_waiting", "Events not kept yet.", health.events_waiting)
        yield GaugeMetricFamily(
            "runcode_gateway_spool_usable", "0: events that wait are in memory only.", health.spool_obstacle is None
        )
        yield CounterMetricFamily("runcode_gateway_events_dropped", "Events without room.", health.events_dropped)


# ---------------------------------------------------------------- checks before anything is made


def _load_tls(options: FrontOptions) -> ServerTls | None:
    if (options.tls_certificate is None) != (options.tls_key is None):
        raise RunCodeError(
            "usage", "--tls-cert and --tls-key belong together", resolution="name both files, or neither"
        )
    if options.tls_certificate is None or options.tls_key is None:
        return None
    if options.public_url is None and options.http.host in ("0.0.0.0", "::"):  # noqa: S104
        raise RunCodeError(
            "usage",
            f"--http {options.http.text} listens everywhere, but a certificate is for one name",
            resolution="name it with --public-url https://HOST[:PORT]",
        )
    return ServerTls(options.tls_certificate, options.tls_key)


def _load_metrics_token(options: FrontOptions) -> str | None:
    path = options.metrics_token_file
    if path is None:
        if options.metrics is not None and not names.is_loopback_host(options.metrics.host):
            raise RunCodeError(
                "usage",
                f"--metrics {options.metrics.text} can be reached from other machines",
                resolution="add --metrics-token-file FILE, or listen on 127.0.0.1",
            )
        return None
    try:
        seen = path.stat()
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not plain text"
        raise RunCodeError("io_error", f"{path}: {reason}", resolution="name a file with one line") from error
    if stat.S_IMODE(seen.st_mode) & 0o077 or seen.st_uid not in (0, os.geteuid()):
        raise RunCodeError("unsafe_path", f"{path} is open to others on this machine", resolution=f"chmod 600 {path}")
    if _TOKEN.fullmatch(token) is None:
        raise RunCodeError(
            "usage",
            f"{path} holds no token that can be used",
            resolution="16 to 512 visible characters on one line: `openssl rand -hex 32`",
        )
    return token


def _unverified() -> ssl.SSLContext:
    """To ask ourselves: the certificate is for another name than the address that is dialled."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
