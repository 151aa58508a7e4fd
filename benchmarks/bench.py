"""`make bench`: medians of interleaved runs, as ratios against the plain tool in the same run.

Prints one table with targets; `--json` for programs. Uses the real service, a
real box and the real ssh, on loopback. Absolute times depend on the machine; the
ratios are what is compared from run to run (docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

import controlplane  # noqa: E402
import gateway  # noqa: E402
import launcher  # noqa: E402
import transfers  # noqa: E402
from cutting import POLL_MS, measure_cut_ms  # noqa: E402
from direct_sshd import SAME_ALGORITHMS, direct_sshd  # noqa: E402

from support.service import RUNCODE, Laptop, Service, running_service  # noqa: E402

TITLE = "bench-box"


class Row:
    """One measured ratio: ours over the reference, both medians in milliseconds."""

    def __init__(self, name: str, ours_ms: float, reference_ms: float, target: float | None) -> None:
        self.name, self.ours_ms, self.reference_ms, self.target = name, ours_ms, reference_ms, target
        self.ratio = ours_ms / reference_ms


def timed(command: list[str], *, environment: dict[str, str], folder: Path, stdin: bytes | None = None) -> float:
    """Wall milliseconds of one run, which must succeed."""
    began = time.perf_counter()
    done = subprocess.run(
        command,
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=folder,
        check=False,
    )
    elapsed = (time.perf_counter() - began) * 1000
    if done.returncode != 0:
        raise SystemExit(f"bench: {command} exited {done.returncode}: {done.stderr.decode()}")
    return elapsed


def interleaved(runs: int, ours: Callable[[], float], reference: Callable[[], float]) -> tuple[float, float]:
    """Medians of both, run in turn, so that the machine's moods hit both alike. One warm-up each."""
    ours(), reference()
    pairs = [(ours(), reference()) for _ in range(runs)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def measure(service: Service, laptop: Laptop, runs: int, only: str = "") -> list[Row]:
    laptop.login(service)
    laptop.runcode("connect", TITLE, "--start", "--wait")
    bundle = laptop.json("connect", TITLE)
    config, alias = str(bundle["config"]), str(bundle["alias"])

    def run(*command: str, stdin: bytes | None = None) -> float:
        return timed(list(command), environment=laptop.environment, folder=laptop.project, stdin=stdin)

    def python() -> float:
        return run(str(Path(RUNCODE).with_name("python3")), "-I", "-S", "-c", "pass")

    ssh = ["ssh", "-F", config]
    cold = [*ssh, "-S", "none", *SAME_ALGORITHMS, alias]
    rows = []

    def add(name: str, target: float | None, count: int, ours: Callable[[], float], ref: Callable[[], float]) -> None:
        if only not in name:
            return
        print(f"bench: {name} …", file=sys.stderr, flush=True)
        rows.append(Row(name, *interleaved(count, ours, ref), target))

    add("--version / python -I -S -c pass", 1.5, runs, lambda: run(RUNCODE, "--version"), python)
    exec_true = (RUNCODE, "exec", "--", "true")
    add("exec -- true / ssh true, live master", 1.75, runs, lambda: run(*exec_true), lambda: run(*ssh, alias, "true"))
    with tempfile.TemporaryDirectory(dir=laptop.home) as folder:
        bare_ssh = lambda: run(*ssh, alias, "true")  # noqa: E731
        launcher.add_rows(Path(folder), laptop.environment, laptop.project, timed, add, runs, only, bare_ssh)
    said = {"session_id": "s", "cwd": str(laptop.project), "workspace": {"current_dir": str(laptop.project)}}
    client_json = json.dumps(said).encode()
    interpreter = (str(Path(RUNCODE).with_name("python3")), "-I", "-S", "-c", "pass")
    add(
        "statusline / python -I -S -c pass",
        1.25,
        runs,
        lambda: run(RUNCODE, "statusline", stdin=client_json),
        lambda: run(*interpreter, stdin=client_json),
    )
    # Another session is attached, this one is not: what every tool call costs whoever does not use a workspace.
    call = {"session_id": "other", "cwd": "/", "tool_name": "Bash", "tool_input": {"command": "true"}}
    hook_json = json.dumps(call).encode()
    add(
        "hook, not attached / python -I -S -c pass",
        1.3,
        runs,
        lambda: run(RUNCODE, "hook", "pre-tool-use", "--client", "claude", stdin=hook_json),
        lambda: run(*interpreter, stdin=hook_json),
    )
    add("connect, cached / python -I -S -c pass", 4, runs, lambda: run(RUNCODE, "connect", TITLE), python)

    def mint_and_exec() -> float:
        run(RUNCODE, "disconnect")
        return run(RUNCODE, "connect", TITLE) + run(*exec_true)

    add("connect that mints + exec / cold ssh", 1.6, runs, mint_and_exec, lambda: run(*cold, "true"))
    run(RUNCODE, "connect", TITLE, "--wait")
    heavy = max(3, runs // 6)
    measure_transfers(laptop, config, alias, run, add, rows, heavy, only)
    if only not in "revocation to ssh's exit / feed's poll":
        return rows
    print("bench: revocation to cut …", file=sys.stderr, flush=True)
    # A second is the promise; the reference is how often the server looks at what other processes changed.
    cut_ms = measure_cut_ms(service, laptop, TITLE, min(runs, 10))
    rows.append(Row("revocation to ssh's exit / feed's poll", cut_ms, POLL_MS, 1000 / POLL_MS))
    return rows


def measure_transfers(
    laptop: Laptop,
    config: str,
    alias: str,
    run: Callable[..., float],
    add: Callable[..., None],
    rows: list[Row],
    runs: int,
    only: str,
) -> None:
    resident = "256 MB: peak resident MB / 40 MB"
    wanted = transfers.pairs(run, RUNCODE, config, alias)
    if not any(only in name for name in (resident, *(name for name, *_ in wanted))):
        return
    transfers.make_material(laptop.project)
    run(RUNCODE, "put", "large", "large")
    for name, target, ours, reference in wanted:
        add(name, target, runs if "MB" in name else 3 * runs, ours, reference)
    if only in resident:
        commands = ([RUNCODE, "put", "large", "large"], [RUNCODE, "get", "large", "--out", "back"])
        peak = max(transfers.measure_resident_mb(list(c), laptop.environment, laptop.project) for c in commands)
        rows.append(Row(resident, peak, transfers.RESIDENT_TARGET_MB, 1.0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--only", default="", metavar="TEXT", help="the rows whose name holds this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, running_service(Path(folder) / "service") as service:
        service.operator("workspace", "create", TITLE)
        with direct_sshd(Path(folder) / "direct") as direct:
            rows = measure(service, Laptop(Path(folder) / "laptop"), options.runs, options.only)
            gateway.measure(direct, options.runs, options.only, interleaved, lambda *row: rows.append(Row(*row)))
    with tempfile.TemporaryDirectory() as folder:
        controlplane.add_rows(Path(folder), lambda *row: rows.append(Row(*row)), options.only)
    if options.json:
        print(json.dumps([vars(row) for row in rows], indent=1))
        return 0
    print(f"\n{os.cpu_count()} cores, load {load:.2f} at the start, {options.runs} interleaved runs\n")
    print(f"| {'':42} | ours ms | ref. ms | ratio | target |        |")
    print(f"|{'-' * 44}|--------:|--------:|------:|-------:|--------|")
    for row in rows:
        target = "–" if row.target is None else f"≤ {row.target:.2f}"
        verdict = "" if row.target is None else "met" if row.ratio <= row.target else "missed"
        numbers = f"{row.ours_ms:7.1f} | {row.reference_ms:7.1f} | {row.ratio:5.2f}"
        print(f"| {row.name:42} | {numbers} | {target:6} | {verdict:6} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
