"""The gateway's rows: the same ssh, once through it to a box, once to an ordinary sshd.

Owns: transfers with their processor time, handshakes by eight at once, `true` over
a live master, and the rows about a crowd (`crowd`). A service of its own, so that its
log tells which way the bytes of these rows went.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import crowd
from direct_sshd import SAME_ALGORITHMS

from support.service import Laptop, Service, running_service

TITLE = "bench-gateway"
_SIZE_MB = 512
# Several times in each transfer, in its middle, by whichever side counts first.
_REKEY = ("-o", "RekeyLimit=150M")
_PARALLEL = 8
_HANDSHAKES = 48
_FASTER_SHARE = 0.99
_KIB_TARGET = 40.0

COLD = "cold ssh via gateway / direct sshd"
MASTER = "true, live master, gateway / direct"
HANDSHAKES = "a handshake, 8 at once, gateway / direct"
UPLOAD, DOWNLOAD = (f"{name} {_SIZE_MB} MB via gateway / direct" for name in ("upload", "download"))
UPLOAD_CPU, DOWNLOAD_CPU = (f"{name}: gateway's CPU of 1 GB / 1 s" for name in ("upload", "download"))
SHARE = "bytes not resealed in place / 1 % of all"
MEMORY = "KiB of an idle one of 2,000 / 40 KiB"
P99 = "p99 of true, 2,000 idle + 200 busy / quiet"
NAMES = (COLD, MASTER, HANDSHAKES, UPLOAD, DOWNLOAD, UPLOAD_CPU, DOWNLOAD_CPU, SHARE, MEMORY, P99)

Interleave = Callable[[int, Callable[[], float], Callable[[], float]], tuple[float, float]]
AddRow = Callable[[str, float, float, float], None]


def measure(direct: list[str], runs: int, only: str, interleaved: Interleave, add_row: AddRow) -> None:
    """`add_row` takes a name, ours, the reference and the target of their ratio."""
    with tempfile.TemporaryDirectory(prefix="rcb") as name:
        folder = Path(name)
        if any(only in row for row in NAMES[:8]):
            with running_service(folder / "service", options=("--verbose",)) as service:
                rows = _Rows(service, folder, direct, interleaved, add_row, only)
                rows.measure(runs)
            rows.add_share(service.log.read_text())
        if only in MEMORY or only in P99:
            say = lambda text: print(f"bench: {text}", flush=True)  # noqa: E731
            kib, quiet_ms, loaded_ms = asyncio.run(crowd.measure(folder, say))
            add_row(MEMORY, kib, _KIB_TARGET, 1.0)
            add_row(P99, loaded_ms, quiet_ms, 3.0)


class _Rows:
    def __init__(
        self,
        service: Service,
        folder: Path,
        direct: list[str],
        interleaved: Interleave,
        add_row: AddRow,
        only: str,
    ) -> None:
        self._folder, self._interleaved, self._add_row, self._only = folder, interleaved, add_row, only
        assert service.process is not None
        self._pid = service.process.pid
        service.operator("workspace", "create", TITLE)
        laptop = Laptop(folder / "laptop")
        laptop.login(service)
        laptop.runcode("connect", TITLE, "--start", "--wait")
        bundle = laptop.json("connect", TITLE)
        self._environment = laptop.environment
        self._ways = {
            "ours": ["ssh", "-F", str(bundle["config"]), *SAME_ALGORITHMS, str(bundle["alias"])],
            "reference": direct,
        }

    def measure(self, runs: int) -> None:
        self._compare(COLD, 1.15, runs, lambda way: self._run(way, "true"))
        if self._only in MASTER:
            self._measure_master(3 * runs)
        if self._only in HANDSHAKES:
            self._measure_handshakes()
        heavy = max(3, runs // 6)
        for name, cpu_name, command in (
            (UPLOAD, UPLOAD_CPU, "cat >/dev/null"),
            (DOWNLOAD, DOWNLOAD_CPU, f"head -c {_SIZE_MB << 20} /dev/zero"),
        ):
            if self._only in name or self._only in cpu_name:
                self._measure_transfer(name, cpu_name, command, heavy)

    def add_share(self, log: str) -> None:
        """What the gateway said as it closed. Fails when too much went the slow way, so that no row lies."""
        told = re.findall(r"data packets: (\d+) bytes resealed in place, (\d+) handled singly", log)
        resealed, singly = (int(number) for number in told[-1])
        if self._only in SHARE:
            self._add_row(SHARE, singly, (resealed + singly) * (1 - _FASTER_SHARE), 1.0)
        if singly > (resealed + singly) * (1 - _FASTER_SHARE) and resealed > _SIZE_MB << 20:
            raise SystemExit(f"bench: only {resealed} of {resealed + singly} bytes were resealed in place")

    # -- one by one ---------------------------------------------------------

    def _run(self, way: str, command: str, *flags: str, control: str = "none", stdin: Path | None = None) -> float:
        """Wall milliseconds; `control` is the live master to use."""
        ssh = self._ways[way]
        with open(stdin or os.devnull, "rb") as source:
            began = time.perf_counter()
            done = subprocess.run(
                [ssh[0], "-S", control, *flags, *ssh[1:], command],
                stdin=source,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=self._environment,
                check=False,
            )
            elapsed = (time.perf_counter() - began) * 1000
        if done.returncode != 0:
            raise SystemExit(f"bench: {command} {way} exited {done.returncode}: {done.stderr.decode()}")
        return elapsed

    def _compare(self, name: str, target: float, runs: int, run: Callable[[str], float]) -> None:
        if self._only in name:
            ours, reference = self._interleaved(runs, lambda: run("ours"), lambda: run("reference"))
            self._add_row(name, ours, reference, target)

    def _measure_master(self, runs: int) -> None:
        masters = []
        for way, ssh in self._ways.items():
            control = self._folder / f"m-{way}"
            # -f: it is there once this returns.
            command = [ssh[0], "-S", str(control), "-f", "-M", "-N", "-o", "ControlPersist=no", *ssh[1:]]
            subprocess.run(command, stdin=subprocess.DEVNULL, env=self._environment, check=True)
            masters.append([ssh[0], "-S", str(control), "-O", "exit", *ssh[1:]])
        try:
            self._compare(MASTER, 1.15, runs, lambda way: self._run(way, "true", control=f"{self._folder}/m-{way}"))
        finally:
            for master in masters:
                subprocess.run(master, stderr=subprocess.DEVNULL, env=self._environment, check=False)

    def _measure_handshakes(self) -> None:
        def run(way: str) -> float:
            began = time.perf_counter()
            with ThreadPoolExecutor(_PARALLEL) as pool:
                list(pool.map(lambda _: self._run(way, "true"), range(_HANDSHAKES)))
            return (time.perf_counter() - began) * 1000 / _HANDSHAKES

        self._compare(HANDSHAKES, 1.0, 3, run)

    def _measure_transfer(self, name: str, cpu_name: str, command: str, runs: int) -> None:
        sparse = self._folder / "sparse"
        with sparse.open("wb") as file:
            file.truncate(_SIZE_MB << 20)
        used: list[float] = []

        def run(way: str) -> float:
            before = _cpu_seconds(self._pid)
            elapsed = self._run(way, command, *_REKEY, stdin=sparse if "cat" in command else None)
            if way == "ours":
                used.append(_cpu_seconds(self._pid) - before)
            return elapsed

        ours, reference = self._interleaved(runs, lambda: run("ours"), lambda: run("reference"))
        self._add_row(name, ours, reference, 1 / 0.85)
        self._add_row(cpu_name, sum(used) / len(used) * 1024 / _SIZE_MB * 1000, 1000, 1.0)


def _cpu_seconds(pid: int) -> float:
    """Of the whole service: the gateway and the control plane around it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
