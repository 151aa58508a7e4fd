"""Gateways as processes of their own, with the real ssh, a real box and the real control plane."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runcode.gateway.proxy_protocol import SIGNATURE
from support.gateways import GatewayRun, free_port, make_host_key, service_without_gateway
from support.service import Laptop, Service

WAIT_S = 30.0
BOX = "apart"


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not happen: {what}")
        time.sleep(0.05)


class Site:
    """A control plane without a gateway, and two gateways on other ports; bundles name the first."""

    def __init__(self, folder: Path) -> None:
        private, public = make_host_key(folder)
        self.port = free_port()
        self.service = service_without_gateway(folder / "server", self.port, public)
        self.gateways: list[GatewayRun] = []
        self.service.start()
        base = self.service.facts["api_base"]
        for name, port, options in (
            ("edge-1", self.port, ("--workers", "2")),
            ("edge-2", 0, ("--proxy-protocol-from", "127.0.0.2")),
        ):
            credential = self.service.operator("gateway", "create", name).stdout.strip()
            run = GatewayRun(folder / name, private, credential, *options)
            self.gateways.append(run)
            run.start(base, f"127.0.0.1:{port}")
        self.service.operator("workspace", "create", BOX)
        self.service.operator("workspace", "start", BOX)

    def close(self) -> None:
        for running in self.gateways:
            if running.process is not None:
                running.stop()
        if self.service.process is not None and self.service.process.poll() is None:
            self.service.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site.__new__(Site)
    made.gateways = []
    try:
        made.__init__(tmp_path_factory.mktemp("site"))  # type: ignore[misc]
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def laptop(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    laptop = Laptop(tmp_path_factory.mktemp("laptop"))
    laptop.login(site.service)
    return laptop


class Transfer:
    """A real ssh that reads without end, straight at one gateway's port."""

    def __init__(self, bundle: dict[str, Any], *options: str) -> None:
        words = ["ssh", "-F", str(bundle["config"]), "-S", "none", *options, str(bundle["alias"])]
        self.process = subprocess.Popen(
            [*words, "echo up; cat /dev/zero"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.read(3) == b"up\n", self.process.communicate()
        self.received = 0
        self.died_at: float | None = None
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        assert self.process.stdout is not None
        while raw := self.process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
            self.received += len(raw)
        self.process.wait()
        self.died_at = time.time()

    def flows(self) -> bool:
        before = self.received
        until(lambda: self.received > before or self.died_at, "bytes arrive")
        return self.died_at is None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join(10)


def revoke_all(service: Service) -> None:
    sessions = service.operator_json("session", "list", "--workspace", BOX)
    service.operator("session", "revoke", *(str(session["id"]) for session in sessions))


def test_a_command_runs_through_a_gateway_apart_and_its_events_name_it(site: Site, laptop: Laptop) -> None:
    assert laptop.runcode("run", BOX, "--", "echo through").stdout == b"through\n"

    def told() -> bool:
        exported = site.service.operator("audit", "export").stdout
        return '"edge-1.' in exported and "echo through" in exported

    until(told, "the gateway told of the command, under its own name")


def test_a_revocation_cuts_the_real_ssh_through_every_gateway(
    site: Site, laptop: Laptop, record_property: Callable[[str, object], None]
) -> None:
    bundle = laptop.json("connect", BOX, "--wait")
    transfers = [Transfer(bundle) for _ in range(3)]
    try:
        assert all(transfer.flows() for transfer in transfers)
        revoke_all(site.service)
        began = time.time()
        until(lambda: all(transfer.died_at for transfer in transfers), "all were cut")
        record_property("cut_ms", [round(((t.died_at or 0) - began) * 1000) for t in transfers])
        for transfer in transfers:
            assert transfer.process.stderr is not None
            assert b"access to this workspace has ended" in transfer.process.stderr.read()
    finally:
        for transfer in transfers:
            transfer.end()


def proxied(source: str, port: int) -> bytes:
    address = socket.inet_aton(source) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 40000, port)
    return SIGNATURE + b"\x21\x11" + struct.pack("!H", len(address)) + address


def answer(port: int, raw: bytes, source: str) -> bytes:
    """What a caller hears before the connection ends; SSH's own version line ends it too."""
    with socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0)) as connection:
        connection.sendall(raw)
        heard = b""
        try:
            while chunk := connection.recv(1024):
                heard += chunk
                if b"RunCode" in heard and raw.endswith(b"-OpenSSH_9\r\n"):
                    break
        except ConnectionResetError:
            pass
        return heard


def test_a_proxy_header_counts_from_the_named_source_only(site: Site) -> None:
    port = site.gateways[1].facts["ssh_port"]
    header = proxied("203.0.113.9", port)
    hello = b"SSH-2.0-OpenSSH_9\r\n"
    assert answer(port, header + hello, "127.0.0.2").startswith(b"SSH-2.0-")
    assert answer(port, hello, "127.0.0.2") == b"", "a named source must say who calls"
    # From anybody else the header is the junk that it looks like: SSH speaks, and ends it.
    heard = answer(port, header + b"\n" * 4000, "127.0.0.3")
    assert heard.startswith(b"SSH-2.0-")
    assert "203.0.113.9" not in site.gateways[1].log.read_text()


def test_while_the_control_plane_is_away_open_connections_go_on_and_nobody_new_is_let_in(
    site: Site, laptop: Laptop
) -> None:
    bundle = laptop.json("connect", BOX, "--wait")
    transfer = Transfer(bundle)
    words = ["ssh", "-F", str(bundle["config"]), "-S", "none", str(bundle["alias"]), "true"]
    try:
        # Killed: its box lives on, and its next start adopts it.
        site.service.kill()
        time.sleep(2.5)
        assert transfer.flows()
        assert subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 255
        site.service.start()
        until(lambda: subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 0, "let in")
        assert transfer.flows()
        revoke_all(site.service)
        until(lambda: transfer.died_at, "the feed is followed again")
    finally:
        transfer.end()
        if site.service.process is None or site.service.process.poll() is not None:
            site.service.start()


def test_events_survive_the_kill_of_a_worker_and_of_the_control_plane(site: Site, laptop: Laptop) -> None:
    """What was seen while nobody could be told is told by the worker that takes its place."""
    bundle = laptop.json("connect", BOX, "--wait")
    transfers = [Transfer(bundle) for _ in range(4)]
    site.service.kill()
    for transfer in transfers:
        transfer.end()
    gateway = site.gateways[0]
    spool = gateway.folder / "spool"
    until(lambda: sum(raw.count(b'"end"') for raw in read_spool(spool)) >= 8, "ends are on disk")
    before = set(gateway.facts["workers"])
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not before & set(gateway.facts["workers"]), "both were started again")
    site.service.start()
    until(lambda: not any(read_spool(spool)), "all was delivered, and deleted")
    exported = site.service.operator("audit", "export").stdout
    assert exported.count("the client's connection ended") + exported.count("the client") >= 4
    site.service.operator("audit", "verify")


def read_spool(folder: Path) -> list[bytes]:
    found = []
    for path in folder.glob("worker-*/*.events"):
        try:
            found.append(path.read_bytes())
        except FileNotFoundError:
            continue
    return found


def test_workers_come_again_also_while_something_is_in_the_way(site: Site, laptop: Laptop) -> None:
    gateway = site.gateways[0]
    first, kept = gateway.facts["workers"]
    gateway.ready_file.unlink()
    gateway.ready_file.mkdir()
    os.kill(first, signal.SIGKILL)
    until(lambda: f"{gateway.ready_file} cannot be" in gateway.log.read_text(), "the ready file's trouble is said")
    gateway.ready_file.rmdir()
    os.kill(kept, signal.SIGKILL)
    until(gateway.ready_file.exists, "the other worker comes again")
    until(lambda: len({first, kept} & set(gateway.facts["workers"])) == 0, "both are new")
    assert laptop.runcode("run", BOX, "--", "echo again").stdout == b"again\n"


def test_a_revoked_credential_lets_nobody_in_and_cannot_start(site: Site, laptop: Laptop) -> None:
    bundle = laptop.json("connect", BOX, "--wait")
    words = ["ssh", "-F", str(bundle["config"]), "-S", "none", str(bundle["alias"]), "true"]
    assert subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 0
    site.service.operator("gateway", "revoke", "edge-1")
    until(lambda: subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 255, "shut out")
    gateway = site.gateways[0]
    refused = subprocess.run(
        gateway.words(site.service.facts["api_base"], "127.0.0.1:0"), capture_output=True, timeout=60, check=False
    )
    assert refused.returncode == 1
    assert b"revoked" in refused.stderr
    assert gateway.credential_file.read_bytes().strip() not in refused.stderr
    assert gateway.stop() == 0
    for run in site.gateways:
        assert "Traceback" not in run.log.read_text()
