"""Gateway against a direct sshd, side by side in one run. `python -m support.gateway_bench` from `tests/`.

Not a test: a machine that does something else meanwhile gives other numbers. Both
ways use the same client configuration, key exchange and cipher.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncssh

from runcode.gateway.server import GatewayServer
from support.gateway_box import Box, Client, require_program
from support.gateway_fakes import FakeDirectory

_ROUNDS = 30
_TRANSFER_MB = 256


def _serve(folder: str, public_line: str, box: dict[str, Any], ca: bytes, ready: Any) -> None:
    """The gateway in its own process, so that its CPU is its own."""

    async def main() -> None:
        directory = FakeDirectory(ca=asyncssh.import_private_key(ca))
        directory.add_workspace("bench-1", **box)
        directory.add_session("bench-1", public_line)
        gateway = GatewayServer(directory, host_key_path=Path(folder) / "gwhost")
        ready.send(await gateway.start("127.0.0.1", 0))
        while not ready.poll():
            await asyncio.sleep(0.2)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        ready.send(usage.ru_utime + usage.ru_stime)

    asyncio.run(main())


def _timed(argv: list[str], **streams: Any) -> float:
    began = time.perf_counter()
    subprocess.run(argv, check=True, stderr=subprocess.DEVNULL, **streams)
    return time.perf_counter() - began


def _compare(name: str, direct: list[float], through: list[float], *, unit: str = "ms", scale: float = 1000) -> None:
    one, other = statistics.median(direct), statistics.median(through)
    print(f"{name:34} direct {one * scale:8.2f} {unit}  gateway {other * scale:8.2f} {unit}  ratio {other / one:.2f}x")


async def run(folder: Path) -> None:
    directory = FakeDirectory()
    box = Box(folder / "box", directory.ca_line)
    box.trust("ws-101")
    gateway_key = asyncssh.generate_private_key("ssh-ed25519")
    (folder / "gwhost").write_bytes(gateway_key.export_private_key("openssh"))
    gateway_line = gateway_key.export_public_key("openssh").decode().strip()
    client = Client(folder / "c", "bench-1", 1, gateway_line)
    box_facts = {"host_key": box.host_key_line, "login": box.login}

    # One sshd daemon serves both ways, so that its own fork and start cost the same.
    config = (
        (folder / "box" / "sshd_config")
        .read_text()
        .replace("AuthorizedKeysFile none", f"AuthorizedKeysFile {folder}/keys")
    )
    (folder / "box" / "sshd_config").write_text(config + "ListenAddress 127.0.0.1\nPort 0\n")
    (folder / "keys").write_text(client.public_line + "\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        direct_port = probe.getsockname()[1]
    (folder / "box" / "sshd_config").write_text(
        config + f"ListenAddress 127.0.0.1\nPort {direct_port}\nMaxStartups 500\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    daemon = subprocess.Popen(
        [require_program("sshd", "openssh-server"), "-D", "-f", str(folder / "box" / "sshd_config")]
    )
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    gateway = multiprocessing.get_context("spawn").Process(
        target=_serve,
        args=(
            str(folder),
            client.public_line,
            {**box_facts, "address": ("127.0.0.1", direct_port)},
            directory.ca.export_private_key("openssh"),
            theirs,
        ),
    )
    gateway.start()
    port = ours.recv()
    ways: dict[str, list[str]] = {}
    for way, at, host_line, user in (
        ("direct", direct_port, box.host_key_line, box.login),
        ("gateway", port, gateway_line, "bench-1"),
    ):
        here = folder / way
        here.mkdir()
        (here / "known_hosts").write_text(f"[127.0.0.1]:{at} {host_line}\n")
        text = client.config_path.read_text().replace("Port 1\n", f"Port {at}\n").replace('"bench-1"', user)
        text = text.replace(f"{client.folder}/known_hosts", f"{here}/known_hosts")
        (here / "config").write_text(text + "  Ciphers aes128-gcm@openssh.com\n  KexAlgorithms curve25519-sha256\n")
        ways[way] = [require_program("ssh", "openssh-client"), "-F", str(here / "config")]
    await asyncio.sleep(0.5)
    try:
        measure(folder, ways, gateway.pid or 0)
    finally:
        ours.send("stop")
        ours.recv()
        gateway.join(5)
        daemon.terminate()
        daemon.wait()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(folder: Path, ways: dict[str, list[str]], pid: int) -> None:
    null = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    cold: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(_ROUNDS):
        for way, ssh in ways.items():
            cold[way].append(_timed([*ssh, "box", "true"], **null))
    _compare("cold connect + true", cold["direct"], cold["gateway"])

    warm: dict[str, list[float]] = {way: [] for way in ways}
    masters = []
    for way, ssh in ways.items():
        masters.append(subprocess.Popen([*ssh, "-M", "-N", "-S", f"{folder}/m-{way}", "box"], **null))
        while not (folder / f"m-{way}").exists():
            time.sleep(0.02)
    for _ in range(_ROUNDS * 3):
        for way, ssh in ways.items():
            warm[way].append(_timed([*ssh, "-S", f"{folder}/m-{way}", "box", "true"], **null))
    _compare("true over a live master", warm["direct"], warm["gateway"])
    for master in masters:
        master.terminate()
        master.wait()

    blob = folder / "blob"
    blob.write_bytes(os.urandom(1 << 20) * _TRANSFER_MB)
    for name, command in (("download", f"cat {blob}"), ("upload", "cat >/dev/null")):
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        cpu = 0.0
        for _ in range(3):
            for way, ssh in ways.items():
                before = cpu_seconds(pid)
                with blob.open("rb") if name == "upload" else open(os.devnull, "rb") as source:
                    took = _timed([*ssh, "box", command], stdin=source, stdout=subprocess.DEVNULL)
                speeds[way].append(_TRANSFER_MB / took)
                if way == "gateway":
                    cpu += cpu_seconds(pid) - before
        _compare(name, speeds["direct"], speeds["gateway"], unit="MB/s", scale=1)
        print(f"{'':34} gateway CPU {cpu / 3 / _TRANSFER_MB * 1024:.2f} s/GB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="rcb") as scratch:
        asyncio.run(run(Path(scratch)))
    sys.exit(0)
