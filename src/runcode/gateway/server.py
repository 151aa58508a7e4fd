"""The gateway as one object: what the composition root starts and stops.

Owns: the listening socket and the wiring of the parts. Called by
`runcode-server` (and by tests). Never: a shell, a password, a file of ~/.ssh.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import socket
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from runcode.core.errors import RunCodeError
from runcode.gateway.admission import AdmissionPolicy
from runcode.gateway.algorithms import CIPHERS, KEY_EXCHANGES, MACS, VERSION
from runcode.gateway.asyncssh_check import require_known_asyncssh
from runcode.gateway.asyncssh_framing import Framing, find_loop_obstacle
from runcode.gateway.asyncssh_legs import SIGNATURE_ALGORITHMS, ClientLeg
from runcode.gateway.asyncssh_trial import find_framing_obstacle
from runcode.gateway.connection import GatewayContext
from runcode.gateway.directory import Directory
from runcode.gateway.doorstep import Doorstep, Network
from runcode.gateway.events import NOTE, USED, EventSink, GatewayEvent, NoSink
from runcode.gateway.lobby import Lobby
from runcode.gateway.recorder import EventRecorder, new_subject_id
from runcode.gateway.refusals import RefusalTally
from runcode.gateway.registry import ConnectionRegistry
from runcode.gateway.spool import EventSpool
from runcode.gateway.ssh_server import ClientCallbacks
from runcode.gateway.usage import UsageWatch, WorkspaceUse
from runcode.gateway.watcher import ChangeWatcher
from runcode.gateway.workspace_leg import ConnectUnix, WorkspaceDialer

_log = logging.getLogger(__name__)

_BACKLOG = 1024
# Of the gateway that lives in the server's own process.
EMBEDDED = "embedded"


@dataclass(frozen=True)
class GatewayHealth:
    """`feed_age_s` is infinite while the change feed has never spoken; bytes and drops are since the start.

    `spool_obstacle` says why events that wait are in memory only; None: they are not, or there is no spool.
    `framing_obstacle` says why packets of data go the slow way, through asyncssh; None: they do not. `resealed_bytes`
    of them went the short way since the start, `singly_bytes` the other.
    """

    live_connections: int
    strangers: int
    feed_age_s: float
    feed_is_fresh: bool
    bytes_to_boxes: int
    bytes_to_clients: int
    events_waiting: int
    events_dropped: int
    spool_obstacle: str | None
    framing_obstacle: str | None
    resealed_bytes: int
    singly_bytes: int


class GatewayServer:
    """Start it once; close it once. All of it lives on the event loop that started it.

    `events` is told what connections do (None: nobody is); `name` is under which
    gateway, and stays the same from run to run; `spool` keeps events until they are told.
    `balancers` must say with a PROXY header who calls.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        host_key_path: Path,
        connect_unix: ConnectUnix | None = None,
        policy: AdmissionPolicy | None = None,
        clock: Callable[[], datetime.datetime] | None = None,
        events: EventSink | None = None,
        name: str = EMBEDDED,
        spool: EventSpool | None = None,
        balancers: Sequence[Network] = (),
    ) -> None:
        self._policy = policy or AdmissionPolicy()
        self._host_key_path = host_key_path
        self._registry = ConnectionRegistry()
        self._lobby = Lobby(
            places=self._policy.max_unauthenticated, places_per_source=self._policy.max_unauthenticated_per_source
        )
        self._watcher = ChangeWatcher(directory, self._registry, self._policy)
        self._directory = directory
        self._connect_unix = connect_unix
        self._clock = clock or (lambda: datetime.datetime.now(datetime.timezone.utc))
        self._recorder = EventRecorder(events or NoSink(), gateway=name, clock=self._clock, spool=spool)
        self._refusals = RefusalTally(self._recorder.put, self._clock)
        self._spool = spool
        self._balancers = tuple(balancers)
        self._usage = UsageWatch(self._registry, report=self._report_use)
        self._listener: asyncio.Server | None = None
        self._framing = Framing("the gateway has not started")
        # Weak: asyncio holds a leg for as long as its socket is open.
        self._legs: weakref.WeakSet[ClientLeg] = weakref.WeakSet()

    async def start(self, host: str, port: int) -> int:
        """Listen there, and return the port. Raises OSError, or what `start_on` does."""
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setblocking(False)
        try:
            await self.start_on(listener)
        except BaseException:
            listener.close()
            raise
        return int(listener.getsockname()[1])

    async def start_on(self, listener: socket.socket) -> None:
        """Serve on a bound socket. Raises RunCodeError (asyncssh unknown, host key unusable)."""
        require_known_asyncssh()
        self._framing = Framing(find_loop_obstacle(asyncio.get_running_loop()) or find_framing_obstacle())
        if self._framing.obstacle is not None:
            _log.warning("packets go the slow way, by asyncssh's own framing: %s", self._framing.obstacle)
        # asyncssh's own lines carry user names and texts of peers; ours are in the gateway's loggers.
        asyncssh.set_log_level(logging.CRITICAL)
        options = self._server_options()
        context = GatewayContext(
            directory=self._directory,
            policy=self._policy,
            clock=self._clock,
            registry=self._registry,
            watcher=self._watcher,
            dialer=WorkspaceDialer(
                self._directory,
                connect_unix=self._connect_unix,
                timeout_s=self._policy.workspace_timeout_s,
                rekey_bytes=self._policy.rekey_bytes,
                framing=self._framing,
            ),
            lobby=self._lobby,
            recorder=self._recorder,
            refusals=self._refusals,
        )
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: self._make_doorstep(options, context), sock=listener, backlog=_BACKLOG
        )
        self._recorder.start()
        self._usage.start()
        await self._watcher.start()

    async def close(self, grace_s: float = 0.0) -> None:
        """Take no one new; let live connections end by themselves for `grace_s`; then end them."""
        if self._listener is not None:
            self._listener.close()
        await self._wait_until_empty(grace_s)
        for connection in self._registry:
            connection.finish("the gateway is shutting down")
        await self._wait_until_empty(1.0)
        for leg in tuple(self._legs):
            leg.cut("the gateway is shutting down")
        # The last ends are told a turn of the loop after the cut.
        await self._wait_until_empty(1.0)
        await self._watcher.close()
        await self._usage.close()
        self._refusals.tell()
        await self._recorder.close()
        framing = self._framing
        _log.info(
            "data packets: %d bytes resealed in place, %d handled singly", framing.resealed, framing.handled_singly
        )

    def health(self) -> GatewayHealth:
        age = self._watcher.feed_age_s
        to_boxes, to_clients = self._registry.carried
        return GatewayHealth(
            live_connections=len(self._registry),
            strangers=len(self._lobby),
            feed_age_s=age,
            feed_is_fresh=age <= self._policy.feed_silence_s,
            bytes_to_boxes=to_boxes,
            bytes_to_clients=to_clients,
            events_waiting=self._recorder.waiting,
            events_dropped=self._recorder.dropped_in_all,
            spool_obstacle=None if self._spool is None else self._spool.obstacle,
            framing_obstacle=self._framing.obstacle,
            resealed_bytes=self._framing.resealed,
            singly_bytes=self._framing.handled_singly,
        )

    def find_use(self, workspace_id: int) -> WorkspaceUse:
        """What this gateway knows of a workspace's use, for whoever stops idle ones."""
        return self._usage.find_use(workspace_id)

    def _report_use(self, workspace_id: int, ago_s: float) -> None:
        self._recorder.put(
            GatewayEvent(
                kind=USED,
                phase=NOTE,
                subject_id=new_subject_id(),
                at=self._clock() - datetime.timedelta(seconds=ago_s),
                detail={},
                workspace_id=workspace_id,
            )
        )

    async def _wait_until_empty(self, patience_s: float) -> None:
        try:
            await asyncio.wait_for(self._registry.wait_empty(), patience_s)
        except TimeoutError:
            pass

    def _make_doorstep(
        self, options: asyncssh.SSHServerConnectionOptions, context: GatewayContext
    ) -> asyncio.BaseProtocol:
        if not self._balancers:
            return self._make_leg(options, context, None)
        return Doorstep(self._balancers, lambda source: self._make_leg(options, context, source))

    def _make_leg(
        self, options: asyncssh.SSHServerConnectionOptions, context: GatewayContext, source: str | None
    ) -> ClientLeg:
        leg = ClientLeg(
            asyncio.get_running_loop(),
            options,
            ClientCallbacks(context),
            framing=self._framing,
            max_auth_requests=self._policy.max_auth_requests,
            source=source,
        )
        self._legs.add(leg)
        return leg

    def _server_options(self) -> asyncssh.SSHServerConnectionOptions:
        try:
            host_key = asyncssh.read_private_key(self._host_key_path)
        except (OSError, asyncssh.KeyImportError) as error:
            raise RunCodeError(
                "io_error",
                "the gateway's host key cannot be read",
                resolution="restore the host key file; a new one would make every client refuse to connect",
            ) from error
        if host_key.get_algorithm() != "ssh-ed25519":
            raise RunCodeError("bad_request", "the gateway's host key is not an Ed25519 key")
        return asyncssh.SSHServerConnectionOptions(
            config=None,
            server_version=VERSION,
            server_host_keys=[host_key],
            send_server_host_keys=False,
            x509_trusted_certs=None,
            x509_trusted_cert_paths=[],
            public_key_auth=True,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            allow_pty=False,
            agent_forwarding=False,
            x11_forwarding=False,
            encoding=None,
            kex_algs=KEY_EXCHANGES,
            encryption_algs=CIPHERS,
            mac_algs=MACS,
            compression_algs=["none"],
            signature_algs=SIGNATURE_ALGORITHMS,
            keepalive_interval=0,
            login_timeout=self._policy.login_timeout_s,
            rekey_bytes=self._policy.rekey_bytes,
        )
