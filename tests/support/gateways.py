"""Real `runcode-server gateway run` processes beside a Service that has no gateway of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import asyncssh

from support.service import SERVER, START_TIMEOUT_S, Service


class GatewayRun:
    """One supervisor with its workers. `facts` is its ready file."""

    def __init__(self, folder: Path, host_key: Path, credential: str, *options: str) -> None:
        folder.mkdir(parents=True)
        self.folder, self.host_key, self.options = folder, host_key, options
        self.credential_file = folder / "credential"
        self.credential_file.touch(mode=0o600)
        self.credential_file.write_text(credential + "\n")
        self.log = folder / "gateway.log"
        self.ready_file = folder / "ready.json"
        self.process: subprocess.Popen[bytes] | None = None

    def words(self, api_base: str, ssh: str) -> list[str]:
        words = [SERVER, "gateway", "run", "--control-plane", api_base, "--credential-file", str(self.credential_file)]
        words += ["--ssh", ssh, "--host-key", str(self.host_key), "--ready-file", str(self.ready_file)]
        return [*words, "--drain-s", "0.3", *self.options]

    def start(self, api_base: str, ssh: str) -> GatewayRun:
        self.ready_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.words(api_base, ssh), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.ready_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the gateway did not start:\n{self.log.read_text()}")
            time.sleep(0.02)
        return self

    @property
    def facts(self) -> Any:
        return json.loads(self.ready_file.read_text())

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def make_host_key(folder: Path) -> tuple[Path, Path]:
    """(private, public) files of a gateway's host key."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    private, public = folder / "host_key", folder / "host_key.pub"
    private.touch(mode=0o600)
    private.write_bytes(key.export_private_key())
    public.write_bytes(key.export_public_key())
    return private, public


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def service_without_gateway(folder: Path, ssh_port: int, public_key: Path) -> Service:
    """`--http` on a port of its own, so that it comes back where gateways look for it."""
    options = ("--ssh-public", f"127.0.0.1:{ssh_port}", "--ssh-host-key", str(public_key))
    return Service(folder, ssh="remote", http=f"127.0.0.1:{free_port()}", options=options)
