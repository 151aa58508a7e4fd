"""`runcode-server gateway run`, one worker: a gateway in a process of its own.

Owns: the wiring of a GatewayServer with a control plane that is elsewhere, and the
order of its starting and ending. Started by `gateway_supervisor`, which its standard
input belongs to: when that ends, the worker drains and ends, too.

Guarantee: while the control plane is away, open connections go on, and nobody new is
let in. It serves under the host key that it was given, and announces none: what bundles
name is the control plane's configuration.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import re
import signal
import socket
import stat
import sys
from pathlib import Path

from runcode.core import names
from runcode.core.errors import RunCodeError
from runcode.core.values import Value
from runcode.gateway.doorstep import Network
from runcode.gateway.server import GatewayServer
from runcode.gateway.spool import EventSpool
from runcode.runtimes.unix_sockets import open_unix_socket
from runcode.server.event_lines import parse_event, render_masked
from runcode.server.listeners import Address, bind
from runcode.server.logs import TEXT
from runcode.server.remote_directory import ControlPlaneClient, RemoteDirectory, RemoteEventSink

_log = logging.getLogger(__name__)
_CREDENTIAL = re.compile(r"rcg_[A-Za-z0-9_-]{43}", re.ASCII)
READY = b"ready\n"


class GatewayOptions(Value):
    """What the operator asked for."""

    control_plane: str
    credential_file: Path
    ssh: Address
    host_key: Path
    spool: Path
    workers: int = 1
    balancers: tuple[str, ...] = ()
    ca_file: Path | None = None
    ready_file: Path | None = None
    drain_s: float = 30.0
    verbose: bool = False
    log_format: str = TEXT


def run_worker(options: GatewayOptions, number: int) -> int:
    """Serve until SIGTERM, SIGINT or the end of standard input; 0 after a clean end."""
    client = make_client(options, number)
    with bind(options.ssh, "--ssh", shared=True) as listener:
        return asyncio.run(_work(options, number, client, listener))


async def _work(options: GatewayOptions, number: int, client: ControlPlaneClient, listener: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()

    def end() -> None:
        if ending.is_set():
            os._exit(128 + signal.SIGTERM)
        ending.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, end)
    spool = open_spool(options.spool / f"worker-{number}")
    gateway = GatewayServer(
        RemoteDirectory(client),
        host_key_path=options.host_key,
        connect_unix=open_unix_socket,
        events=RemoteEventSink(client),
        name=f"remote.{number}",
        spool=spool,
        balancers=parse_networks(options.balancers),
    )
    try:
        await gateway.start_on(listener)
        loop.add_reader(0, _watch_supervisor, loop, ending)
        os.write(1, READY)
        gc.collect()
        gc.freeze()
        await ending.wait()
        await gateway.close(options.drain_s)
    finally:
        await client.close()
        spool.close()
    return 0


def _watch_supervisor(loop: asyncio.AbstractEventLoop, ending: asyncio.Event) -> None:
    if not os.read(0, 1024):
        loop.remove_reader(0)
        ending.set()


def make_client(options: GatewayOptions, number: int) -> ControlPlaneClient:
    """Raises `insecure_base`, `io_error`, `unsafe_path` or `usage`."""
    credential = load_credential(options.credential_file)
    return ControlPlaneClient(options.control_plane, credential, worker=number, ca_file=options.ca_file)


def open_spool(folder: Path) -> EventSpool:
    """Raises what `EventSpool.open` does."""
    spool = EventSpool(folder, render=render_masked, parse=parse_event)
    spool.open()
    return spool


def parse_networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """Raises `usage`."""
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise RunCodeError(
            "usage",
            "--proxy-protocol-from names no address or network",
            resolution="write --proxy-protocol-from 10.0.0.5 or 10.0.0.0/24",
        ) from error


def parse_control_plane(text: str) -> str:
    """An https origin, or plain http on loopback. Raises `usage` or `insecure_base`."""
    found = re.fullmatch(r"(https?)://([^/?#@\s\\]+)/?", text, re.ASCII)
    if found is None:
        raise RunCodeError(
            "usage", f"--control-plane {text!r} is not an address", resolution="write https://HOST or https://HOST:PORT"
        )
    host = found[2].rpartition(":")[0] if re.search(r":[0-9]+$", found[2]) else found[2]
    if found[1] == "http" and not names.is_loopback_host(host.strip("[]")):
        # The credential would cross the network in plain text.
        raise RunCodeError("insecure_base", f"--control-plane {text} is not encrypted")
    return f"{found[1]}://{found[2]}"


def load_credential(path: Path) -> str:
    """Raises `io_error`, `unsafe_path` for a file that others may read, `usage` for what is no credential."""
    try:
        seen = path.stat()
        with path.open("rb") as file:
            text = file.read(4096).decode("ascii", "replace").strip()
    except OSError as error:
        raise RunCodeError(
            "io_error", f"{path}: {error.strerror}", resolution="name the file with --credential-file"
        ) from error
    if stat.S_IMODE(seen.st_mode) & 0o077 or seen.st_uid not in (0, os.geteuid()):
        raise RunCodeError("unsafe_path", f"{path} is open to others on this machine", resolution=f"chmod 600 {path}")
    if _CREDENTIAL.fullmatch(text) is None:
        raise RunCodeError(
            "usage",
            f"{path} holds no gateway's credential",
            resolution="make one on the control plane's machine: `runcode-server gateway create NAME`",
        )
    return text


def make_worker_command(options: GatewayOptions, number: int, port: int) -> list[str]:
    words = [sys.executable, "-P", "-m", "runcode.server.main", "gateway", "run", "--worker", str(number)]
    words += ["--control-plane", options.control_plane, "--credential-file", str(options.credential_file)]
    words += ["--ssh", Address(host=options.ssh.host, port=port).text, "--host-key", str(options.host_key)]
    words += ["--log-format", options.log_format]
    words += ["--spool", str(options.spool), "--drain-s", str(options.drain_s)]
    if options.ca_file is not None:
        words += ["--ca-file", str(options.ca_file)]
    for network in options.balancers:
        words += ["--proxy-protocol-from", network]
    return words + ["--verbose"] * options.verbose
