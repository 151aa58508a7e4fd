"""`runcode-server up`: everything on one machine, in the foreground.

Owns: the order of starting and stopping, and the wiring of control plane,
gateway and runtimes. Listens first (a port in use makes nothing), then locks the
data folder, makes it whole at a first start, reconciles, and writes the ready
file only once both doors have really answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asyncssh
import uvicorn

from runcode.controlplane.app import make_app
from runcode.controlplane.audit_checkpoints import CheckpointPolicy
from runcode.controlplane.masking import Pattern
from runcode.controlplane.masking_rules import parse_patterns
from runcode.controlplane.plane import ControlPlane, ControlPlaneSettings
from runcode.controlplane.reconciler import Reconciler
from runcode.controlplane.retention import RetentionPolicy
from runcode.core.errors import RunCodeError
from runcode.core.values import Value
from runcode.gateway.recorder import SERVER_ENDED
from runcode.gateway.server import EMBEDDED, GatewayServer
from runcode.runtimes.base import OutboundNetworkSwitch, Runtime
from runcode.runtimes.unix_sockets import open_unix_socket
from runcode.server.data_folder import DataFolder, translated_os_errors, write_private_file
from runcode.server.directory import InProcessDirectory, InProcessEventSink
from runcode.server.installed_runtimes import load_runtimes
from runcode.server.listeners import Address, bind, bound_address

_log = logging.getLogger(__name__)
ANSWER_TIMEOUT_S = 15.0
# Long enough for a command's last bytes, short enough for a person who pressed Ctrl-C.
DRAIN_S = 0.5


class UpOptions(Value):
    """What the operator asked for. `ssh` is None for `--ssh off`; `ssh_public` is what bundles name instead of it.

    `public_url` is the control plane's origin as browsers and clients see it, when a proxy with TLS stands before it.
    """

    data_dir: Path
    http: Address
    ssh: Address | None
    ssh_public: Address | None = None
    public_url: str | None = None
    ready_file: Path | None = None
    admin_email: str = "admin@localhost"
    keep_workspaces: bool = False
    box_network: bool = True
    min_free_bytes: int | None = None
    keep_events: int | None = None
    keep_ended_sessions_s: int | None = None
    audit_checkpoints: Path | None = None
    audit_log: bool = False
    mask_file: Path | None = None


class FirstAccess(Value):
    """The secrets of a first start, shown once."""

    email: str
    password: str
    token: str


def run_up(options: UpOptions) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean stop."""
    folder = DataFolder(options.data_dir)
    with contextlib.ExitStack() as stack:
        http = stack.enter_context(contextlib.closing(bind(options.http, "--http")))
        ssh = None
        if options.ssh is not None:
            ssh = stack.enter_context(contextlib.closing(bind(options.ssh, "--ssh")))
        stack.enter_context(folder.locked())
        return asyncio.run(_serve(options, folder, http, ssh))


async def _serve(options: UpOptions, folder: DataFolder, http: socket.socket, ssh: socket.socket | None) -> int:
    first_access = None
    if folder.initialised:
        folder.require_initialised()
    else:
        first_access = await _first_start(folder, options)
    plane = await ControlPlane.open(_settings(folder, options), verify=True)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(plane.close)
        await _run(options, folder, plane, http, ssh, first_access, stack)
    return 0


async def _run(
    options: UpOptions,
    folder: DataFolder,
    plane: ControlPlane,
    http: socket.socket,
    ssh: socket.socket | None,
    first_access: FirstAccess | None,
    stack: contextlib.AsyncExitStack,
) -> None:
    ending = _catch_signals()
    runtimes = load_runtimes(folder.runtimes)
    for runtime in runtimes.values():
        stack.push_async_callback(runtime.close)
        if isinstance(runtime, OutboundNetworkSwitch):
            runtime.allow_outbound_network(options.box_network)
    await _report_obstacles(runtimes)

    reconciler = Reconciler(
        plane.store,
        plane.changes,
        runtimes,
        workspace_ca=plane.certificates.workspace_ca_line,
        clock=plane.clock,
    )
    await reconciler.start()
    # On the way out, in this order: no new calls, connections drained and cut, boxes stopped.
    stack.push_async_callback(reconciler.close if options.keep_workspaces else reconciler.stop_all)

    plane.retention.start()
    plane.checkpoints.start()
    facts: dict[str, object] = {"ssh_host": None, "ssh_port": None}
    if ssh is None:
        # A gateway does this at its start; without one, what a killed server left open ends here.
        await plane.events.end_missing(EMBEDDED, (), SERVER_ENDED)
    if ssh is not None and options.ssh is not None:
        gateway = GatewayServer(
            InProcessDirectory(plane),
            host_key_path=folder.gateway_host_key,
            connect_unix=open_unix_socket,
            events=InProcessEventSink(plane),
        )
        await gateway.start_on(ssh)
        stack.push_async_callback(gateway.close, DRAIN_S)
        public = options.ssh_public or bound_address(ssh, options.ssh)
        if public.port == 0:
            public = Address(host=public.host, port=ssh.getsockname()[1])
        plane.ssh_endpoint.set(public.host, public.port, (_public_line(folder.gateway_host_key),))
        facts = {"ssh_host": public.host, "ssh_port": public.port}

    base = options.public_url or f"http://{bound_address(http, options.http).text}"
    facts = {"api_base": base, "web_base": base, **facts}
    web = _WebServer(
        uvicorn.Config(
            make_app(plane),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            # Without a proxy of the operator's, X-Forwarded-For is whatever the caller likes it to be.
            proxy_headers=options.public_url is not None,
        )
    )
    serving = asyncio.get_running_loop().create_task(web.serve(sockets=[http]))
    stack.push_async_callback(_end_web, web, serving)

    await _wait_for_answers(http, ssh, serving)
    if first_access is not None:
        facts |= {
            "admin_email": first_access.email,
            "admin_password": first_access.password,
            "token": first_access.token,
        }
    if options.ready_file is not None:
        with translated_os_errors(options.ready_file):
            write_private_file(options.ready_file, json.dumps(facts, indent=1) + "\n")
    _greet(options, facts)

    ended = asyncio.get_running_loop().create_task(ending.wait())
    await asyncio.wait({ended, serving}, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    if serving.done() and not ending.is_set():
        raise RunCodeError("internal", "the HTTP server ended by itself; see the log")
    plane.ssh_endpoint.clear()
    print("runcode-server: stopping", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the first start


async def _first_start(folder: DataFolder, options: UpOptions) -> FirstAccess:
    """Keys, database, an admin with a password and a token: all of it, or nothing."""
    with folder.first_start(min_free_bytes=options.min_free_bytes) as staging:
        host_key = asyncssh.generate_private_key("ssh-ed25519", comment="runcode gateway")
        write_private_file(staging.gateway_host_key, host_key.export_private_key().decode())
        plane = await ControlPlane.open(_settings(staging, options))
        try:
            access = await plane.initialise(options.admin_email)
            assert access is not None, "a database that was just made has no users"
            password = secrets.token_urlsafe(18)
            await plane.users.set_password(access.user.email, password)
        finally:
            await plane.close()
    return FirstAccess(email=access.user.email, password=password, token=access.token.plaintext)


def _settings(folder: DataFolder, options: UpOptions) -> ControlPlaneSettings:
    retention = RetentionPolicy()
    if options.keep_events is not None:
        retention = replace(retention, events_max=options.keep_events)
    if options.keep_ended_sessions_s is not None:
        retention = replace(retention, ended_sessions_for=datetime.timedelta(seconds=options.keep_ended_sessions_s))
    checkpoints = CheckpointPolicy(options.audit_checkpoints or folder.checkpoints, to_log=options.audit_log)
    return ControlPlaneSettings(
        database=folder.database,
        keys_folder=folder.keys,
        public_url=options.public_url,
        retention=retention,
        masking=() if options.mask_file is None else _read_patterns(options.mask_file),
        checkpoints=checkpoints,
    )


def _read_patterns(path: Path) -> tuple[Pattern, ...]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return parse_patterns(file.read(64 * 1024))
    except OSError as error:
        raise RunCodeError(
            "io_error", f"{path} cannot be read: {error.strerror}", resolution="name another with --mask-file FILE"
        ) from error


def _public_line(host_key: Path) -> str:
    fields = asyncssh.read_private_key(host_key).export_public_key().decode().split()
    return f"{fields[0]} {fields[1]}"


# ---------------------------------------------------------------- answering


class _WebServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the order of stopping is ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _end_web(web: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    web.should_exit = True
    await asyncio.wait({serving}, timeout=5)
    if not serving.done():
        web.force_exit = True
        await asyncio.wait({serving}, timeout=5)


async def _wait_for_answers(http: socket.socket, ssh: socket.socket | None, serving: asyncio.Task[None]) -> None:
    """Ready means: a request got its answer and the gateway said its SSH version."""

    async def ask(listener: socket.socket, question: bytes, answer: bytes) -> None:
        host, port = _reachable(listener)
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(question)
            if not (await reader.readline()).startswith(answer):
                raise OSError("an unexpected answer")
        finally:
            writer.close()

    async def ask_all() -> None:
        await ask(http, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"HTTP/1.1 200")
        if ssh is not None:
            await ask(ssh, b"", b"SSH-2.0-")

    asking = asyncio.get_running_loop().create_task(ask_all())
    done, _ = await asyncio.wait({asking, serving}, timeout=ANSWER_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    if asking not in done or asking.exception() is not None:
        asking.cancel()
        raise RunCodeError("internal", "the server does not answer on its own addresses; see the log")


def _reachable(listener: socket.socket) -> tuple[str, int]:
    """An address at which this machine reaches the listener, also when it listens everywhere."""
    host, port = listener.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104


# ---------------------------------------------------------------- around it


def _catch_signals() -> asyncio.Event:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    return ending


async def _report_obstacles(runtimes: dict[str, Runtime]) -> None:
    """Workspaces that cannot run here are no reason not to serve the others; the operator hears why."""
    for name, runtime in runtimes.items():
        obstacle = await asyncio.to_thread(runtime.find_obstacle)
        if obstacle is not None:
            print(f"runcode-server: the {name} runtime is unavailable: {obstacle}", file=sys.stderr, flush=True)


def _greet(options: UpOptions, facts: dict[str, object]) -> None:
    """What a person needs next. Secrets only on a terminal: a log file is no place for them."""

    def say(text: str) -> None:
        print(f"runcode-server: {text}", file=sys.stderr, flush=True)

    say(f"control plane on {facts['api_base']}")
    gateway = "off" if facts["ssh_host"] is None else f"on {facts['ssh_host']} port {facts['ssh_port']}"
    say(f"SSH gateway {gateway}")
    if "token" in facts:
        if sys.stderr.isatty():
            say(f"first start: admin {facts['admin_email']}, password {facts['admin_password']}")
            say(f"first start: API token {facts['token']} (both are shown this once)")
        elif options.ready_file is not None:
            say(f"first start: the admin's password and token are in {options.ready_file}")
        else:
            say(
                f"first start: made the admin {facts['admin_email']}; the password is shown on a terminal only "
                "(another admin: runcode-server user create EMAIL --admin)"
            )
    say(
        "to sign a client in: "
        f"runcode-server token create NAME --data-dir {options.data_dir} | runcode login --paste "
        f"--api-base {facts['api_base']}"
        + ("" if facts["web_base"] == facts["api_base"] else f" --web-base {facts['web_base']}")
    )
