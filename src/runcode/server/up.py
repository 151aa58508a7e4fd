"""`runcode-server up`: everything on one machine, in the foreground.

Owns: the order of starting and stopping, and the wiring of control plane,
gateway and runtimes. Listens first (a port in use makes nothing), then locks the
data folder, makes it whole at a first start, reconciles, and writes the ready
file only once both doors have really answered. A first signal ends it in order, a
second one at once, as `kill -9` would: the next start takes over what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import json
import logging
import os
import secrets
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import asyncssh

from runcode.controlplane.audit_checkpoints import CheckpointPolicy
from runcode.controlplane.idle_watch import IdleWatch
from runcode.controlplane.masking import Pattern
from runcode.controlplane.masking_rules import parse_patterns
from runcode.controlplane.plane import ControlPlane, ControlPlaneSettings
from runcode.controlplane.reconciler import Reconciler
from runcode.controlplane.retention import RetentionPolicy
from runcode.controlplane.services.client_certificates import load_client_authority, parse_client_ca
from runcode.controlplane.services.offers import RuntimeOffer
from runcode.controlplane.services.oidc_records import OidcPolicy, OidcSettings
from runcode.controlplane.store.location import PostgresUrl
from runcode.core.errors import RunCodeError
from runcode.core.hostkeys import parse_public_key
from runcode.core.values import Value
from runcode.gateway.recorder import SERVER_ENDED
from runcode.gateway.server import EMBEDDED, GatewayServer
from runcode.runtimes.base import OutboundNetworkSwitch, Runtime
from runcode.runtimes.unix_sockets import open_unix_socket
from runcode.server.data_folder import DataFolder, translated_os_errors, write_private_file
from runcode.server.directory import InProcessDirectory, InProcessEventSink
from runcode.server.front import ANSWER_TIMEOUT_S, Front, FrontOptions, GatewayNumbers, reachable
from runcode.server.gateway_process import open_spool
from runcode.server.installed_runtimes import load_runtimes
from runcode.server.listeners import Address, bind, bound_address
from runcode.server.logs import JSON, TEXT, say
from runcode.server.workspace_options import WorkspaceOptions
from runcode.server.workspace_policy import make_policy

_log = logging.getLogger(__name__)
# Long enough for a command's last bytes, short enough for a person who pressed Ctrl-C.
DRAIN_S = 0.5


class UpOptions(Value):
    """What the operator asked for. `ssh` is None for `--ssh off`; `ssh_public` is what bundles name instead of it."""

    data_dir: Path
    front: FrontOptions
    ssh: Address | None
    ssh_public: Address | None = None
    # Set for `--ssh remote`: gateways elsewhere, which bundles name by `ssh_public` and this key.
    remote_host_key: str | None = None
    log_format: str = TEXT
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
    oidc: OidcSettings | None = None
    oidc_policy: OidcPolicy = OidcPolicy()
    workspaces: WorkspaceOptions = WorkspaceOptions()
    # A Postgres server's; None: what the data folder remembers, at first a file of its own.
    database: PostgresUrl | None = None
    # Certificate mode: None for `--client-ca off`, else what `parse_client_ca` takes.
    client_ca: str | None = None
    trusted_client_cas: Path | None = None
    # At a first start on a database that has an installation already: that one's keys.
    keys: Path | None = None


class FirstAccess(Value):
    """The secrets of a first start, shown once."""

    email: str
    password: str
    token: str
    link_path: str


def run_up(options: UpOptions) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean stop."""
    folder = DataFolder(options.data_dir)
    with contextlib.ExitStack() as stack:
        front = Front(options.front)
        stack.callback(front.release)
        ssh = None
        if options.ssh is not None:
            ssh = stack.enter_context(contextlib.closing(bind(options.ssh, "--ssh")))
        stack.enter_context(folder.locked())
        return asyncio.run(_serve(options, folder, front, ssh))


async def _serve(options: UpOptions, folder: DataFolder, front: Front, ssh: socket.socket | None) -> int:
    first_access = None
    if folder.initialised:
        folder.require_initialised()
    else:
        first_access = await _first_start(folder, options)
    plane = await ControlPlane.open(replace(_settings(folder, options), public_url=front.public_url), verify=True)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(plane.close)
        await plane.installation.confirm(_public_line(folder.gateway_host_key))
        if options.database is not None and options.database != folder.load_location():
            # The same installation under another address, user or password.
            folder.remember_database(options.database)
        await _run(options, folder, plane, front, ssh, first_access, stack)
    return 0


async def _run(
    options: UpOptions,
    folder: DataFolder,
    plane: ControlPlane,
    front: Front,
    ssh: socket.socket | None,
    first_access: FirstAccess | None,
    stack: contextlib.AsyncExitStack,
) -> None:
    await _choose_client_ca(plane, options)
    ending = _catch_signals(plane, front)
    runtimes = load_runtimes(folder.runtimes)
    for runtime in runtimes.values():
        stack.push_async_callback(runtime.close)
        if isinstance(runtime, OutboundNetworkSwitch):
            runtime.allow_outbound_network(options.box_network)
    plane.offers.set(await _report_obstacles(runtimes))

    reconciler = Reconciler(
        plane.store,
        plane.changes,
        runtimes,
        workspace_ca=plane.certificates.workspace_ca_line,
        clock=plane.clock,
        on_pass=plane.metrics.observe_pass,
        sizes=plane.workspaces.policy.sizes,
        place=folder.load_place(),
    )
    await reconciler.start()
    plane.readiness.add("reconciler", lambda: reconciler.alive)
    # On the way out, in this order: no new calls, connections drained and cut, boxes stopped.
    stack.push_async_callback(reconciler.close if options.keep_workspaces else reconciler.stop_all)

    plane.retention.start()
    plane.checkpoints.start()
    # What this gateway left open is told from what another server's has open now.
    gateway_name = f"{EMBEDDED}-{folder.load_place()}" if plane.store.shared else EMBEDDED
    facts: dict[str, object] = {"ssh_host": None, "ssh_port": None}
    gateway: GatewayServer | None = None
    if ssh is None:
        # A gateway does this at its start; without one, what a killed server left open ends here.
        await plane.events.end_missing(gateway_name, (), SERVER_ENDED)
        if options.remote_host_key is not None and options.ssh_public is not None:
            # Configuration, never what a gateway says: whoever steals a credential announces no host key with it.
            plane.ssh_endpoint.set(options.ssh_public.host, options.ssh_public.port, (options.remote_host_key,))
            facts = {"ssh_host": options.ssh_public.host, "ssh_port": options.ssh_public.port}
    if ssh is not None and options.ssh is not None:
        spool = open_spool(folder.path / "event-spool")
        stack.callback(spool.close)
        gateway = GatewayServer(
            InProcessDirectory(plane),
            host_key_path=folder.gateway_host_key,
            connect_unix=open_unix_socket,
            events=InProcessEventSink(plane),
            name=gateway_name,
            spool=spool,
        )
        await gateway.start_on(ssh)
        plane.readiness.add("gateway_feed", lambda: gateway.health().feed_is_fresh)
        plane.metrics.add_collector(GatewayNumbers(gateway))
        stack.push_async_callback(gateway.close, DRAIN_S)
        public = options.ssh_public or bound_address(ssh, options.ssh)
        if public.port == 0:
            public = Address(host=public.host, port=ssh.getsockname()[1])
        plane.ssh_endpoint.set(public.host, public.port, (_public_line(folder.gateway_host_key),))
        facts = {"ssh_host": public.host, "ssh_port": public.port}

    idle = IdleWatch(
        plane.idle_stops,
        runtimes,
        find_quiet_s=lambda workspace_id: None if gateway is None else gateway.find_use(workspace_id).quiet_s,
        look_every_s=options.workspaces.idle_look_every_s,
    )
    idle.start()
    stack.push_async_callback(idle.close)

    facts = {"api_base": front.base, "web_base": front.base, **facts}
    if front.metrics_url is not None:
        facts["metrics_url"] = front.metrics_url
    front.serve(plane)
    stack.push_async_callback(front.close)
    await front.wait_until_answering()
    if ssh is not None:
        await _wait_for_ssh(ssh)
    if first_access is not None:
        facts |= {
            "admin_email": first_access.email,
            "admin_password": first_access.password,
            "token": first_access.token,
        }
    with contextlib.suppress(RunCodeError):
        # Only spares the operator an option later: a full disk must not keep anybody from serving.
        folder.remember_web_base(front.base)
    if options.ready_file is not None:
        with translated_os_errors(options.ready_file):
            write_private_file(options.ready_file, json.dumps(facts, indent=1) + "\n")
    _greet(options, facts, first_access)

    # What the imports made stays for ever: a collection that walks all of it stops every caller for 50 ms and more.
    gc.collect()
    gc.freeze()
    loop = asyncio.get_running_loop()
    ended, broken = loop.create_task(ending.wait()), loop.create_task(front.wait_for_end())
    await asyncio.wait({ended, broken}, return_when=asyncio.FIRST_COMPLETED)
    for task in (ended, broken):
        task.cancel()
    if not ending.is_set():
        raise RunCodeError("internal", "the HTTP server ended by itself; see the log")
    say("stopping")
    # Whoever balances loads hears of it from `/readyz`, and until then is still served.
    await asyncio.sleep(options.front.drain_s)
    plane.ssh_endpoint.clear()


async def _choose_client_ca(plane: ControlPlane, options: UpOptions) -> None:
    """Certificate mode, when the operator asked for it; an agent that does not answer is no start."""
    if options.client_ca is None:
        return
    authority = await load_client_authority(parse_client_ca(options.client_ca), plane.certificates.client_ca)
    trusted = () if options.trusted_client_cas is None else _read_trusted(options.trusted_client_cas)
    on_disk = options.client_ca == "disk"
    if not on_disk:
        await plane.client_authorities.note_own(authority.public_line)
    plane.client_certificates.use(authority, trusted=trusted, follow_rotation=on_disk)


def _read_trusted(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunCodeError(
            "io_error", f"{path} cannot be read", resolution="name another with --trusted-client-cas FILE"
        ) from error
    lines = (line.strip() for line in text.splitlines())
    return tuple(parse_public_key(line).line for line in lines if line and not line.startswith("#"))


# ---------------------------------------------------------------- the first start


async def _first_start(folder: DataFolder, options: UpOptions) -> FirstAccess | None:
    """Keys, database, an admin with a password and a token: all of it, or nothing. None: they were there already.

    A shared database goes with the keys of whoever was first; another server brings
    the same ones (`options.keys`), or leaves nothing behind.
    """
    with folder.first_start(min_free_bytes=options.min_free_bytes) as staging:
        if options.keys is not None:
            staging.take_keys(options.keys)
        else:
            host_key = asyncssh.generate_private_key("ssh-ed25519", comment="runcode gateway")
            write_private_file(staging.gateway_host_key, host_key.export_private_key().decode())
        if options.database is not None:
            staging.remember_database(options.database)
        plane = await ControlPlane.open(_settings(staging, options))
        try:
            await plane.installation.confirm(_public_line(staging.gateway_host_key))
            access = await plane.initialise(options.admin_email)
            if access is None:
                return None
            password = secrets.token_urlsafe(18)
            await plane.users.set_password(access.user.email, password)
            # After the password, which ends what was there before it.
            link = await plane.sign_in_links.create_link(access.user.email)
        finally:
            await plane.close()
    return FirstAccess(email=access.user.email, password=password, token=access.token.plaintext, link_path=link.path)


def _settings(folder: DataFolder, options: UpOptions) -> ControlPlaneSettings:
    retention = RetentionPolicy()
    if options.keep_events is not None:
        retention = replace(retention, events_max=options.keep_events)
    if options.keep_ended_sessions_s is not None:
        retention = replace(retention, ended_sessions_for=datetime.timedelta(seconds=options.keep_ended_sessions_s))
    checkpoints = CheckpointPolicy(options.audit_checkpoints or folder.checkpoints, to_log=options.audit_log)
    remembered = folder.load_location()
    if options.database is not None and not isinstance(remembered, PostgresUrl):
        raise RunCodeError(
            "conflict",
            f"this data folder's database is {remembered}",
            resolution="to move it: `runcode-server backup`, then `runcode-server restore` into a new data folder",
        )
    return ControlPlaneSettings(
        database=options.database or remembered,
        keys_folder=folder.keys,
        public_url=options.front.public_url,
        retention=retention,
        oidc=options.oidc,
        oidc_policy=options.oidc_policy,
        workspaces=make_policy(folder.path, options.workspaces),
        teams_by_anyone=options.workspaces.teams_by_anyone,
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


async def _wait_for_ssh(ssh: socket.socket) -> None:
    """Ready means that the gateway said its SSH version."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(*reachable(ssh))
            try:
                if not (await reader.readline()).startswith(b"SSH-2.0-"):
                    raise OSError("an unexpected answer")
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise RunCodeError("internal", "the gateway does not answer on its own address; see the log") from error


# ---------------------------------------------------------------- around it


def _catch_signals(plane: ControlPlane, front: Front) -> asyncio.Event:
    """Set by the first signal. A second one ends the process: somebody does not want to wait."""
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end(number: signal.Signals) -> None:
        if ending.is_set():
            say("ended at once; boxes may still run, and the next `up` takes them over")
            os._exit(128 + number)
        plane.readiness.drain()
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    if front.tls is not None:
        loop.add_signal_handler(signal.SIGHUP, front.tls.reload)
    return ending


async def _report_obstacles(runtimes: dict[str, Runtime]) -> list[RuntimeOffer]:
    """Workspaces that cannot run here are no reason not to serve the others; the operator hears why."""
    offers = []
    for name, runtime in runtimes.items():
        obstacle = await asyncio.to_thread(runtime.find_obstacle)
        offers.append(RuntimeOffer(name, runtime.capabilities, obstacle))
        if obstacle is not None:
            say(f"the {name} runtime is unavailable: {obstacle}")
    return offers


def _greet(options: UpOptions, facts: dict[str, object], first_access: FirstAccess | None) -> None:
    """What a person needs next. Secrets only on a terminal: a log file is no place for them."""
    say(f"control plane on {facts['api_base']}")
    if "metrics_url" in facts:
        say(f"metrics on {facts['metrics_url']}")
    gateway = "off" if facts["ssh_host"] is None else f"on {facts['ssh_host']} port {facts['ssh_port']}"
    say(f"SSH gateway {gateway}")
    if first_access is not None:
        if sys.stderr.isatty() and options.log_format != JSON:
            say(f"first start: sign in at {facts['web_base']}{first_access.link_path} (works once, for 15 minutes)")
            say(f"first start: admin {facts['admin_email']}, password {facts['admin_password']}")
            say(f"first start: API token {facts['token']} (both are shown this once)")
        elif options.ready_file is not None:
            say(f"first start: the admin's password and token are in {options.ready_file}")
        else:
            say(
                f"first start: made the admin {facts['admin_email']}; the password is shown on a terminal only "
                f"(to sign in: runcode-server user sign-in-link {facts['admin_email']})"
            )
    say(
        "to sign a client in: "
        f"runcode-server token create NAME --data-dir {options.data_dir} | runcode login --paste "
        f"--api-base {facts['api_base']}"
        + ("" if facts["web_base"] == facts["api_base"] else f" --web-base {facts['web_base']}")
    )
