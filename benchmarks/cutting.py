"""How long a live connection outlives its right: from the commit of a revocation, made by
another process than the server, to the exit of an ssh in the middle of a transfer.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import threading
import time
from typing import Any

from runcode.controlplane import changes
from runcode.controlplane.plane import ControlPlane, ControlPlaneSettings
from support.service import Laptop, Service

# What another process's change waits for, at most, before the server looks.
POLL_MS = changes._POLL_S * 1000
_ALIVE_S = 30


def measure_cut_ms(service: Service, laptop: Laptop, title: str, runs: int) -> float:
    """Median milliseconds. Each run has a session, a connection and a revocation of its own."""
    return statistics.median(_cut_once_ms(service, laptop.json("connect", title, "--force")) for _ in range(runs))


def _cut_once_ms(service: Service, bundle: dict[str, Any]) -> float:
    command = ["ssh", "-F", str(bundle["config"]), "-S", "none", str(bundle["alias"]), "cat /dev/zero"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    )
    assert process.stdout is not None
    ended_at: list[float] = []

    def wait() -> None:
        process.wait()
        ended_at.append(time.monotonic())

    def drain() -> None:
        assert process.stdout is not None
        while process.stdout.read(1 << 16):
            pass

    try:
        if not process.stdout.read(1 << 16):
            raise SystemExit("bench: the transfer to be cut did not begin")
        threads = [threading.Thread(target=run, daemon=True) for run in (drain, wait)]
        for thread in threads:
            thread.start()
        committed_at = asyncio.run(_revoke_newest(service))
        threads[1].join(_ALIVE_S)
        if not ended_at:
            raise SystemExit(f"bench: ssh outlived its revocation by {_ALIVE_S} s")
        return (ended_at[0] - committed_at) * 1000
    finally:
        process.kill()
        process.wait()


async def _revoke_newest(service: Service) -> float:
    """The monotonic moment at which the revocation was committed."""
    folder = service.data_dir
    plane = await ControlPlane.open(ControlPlaneSettings(database=folder / "runcode.db", keys_folder=folder / "keys"))
    try:
        newest = max(session.id for session in await plane.sessions.list_sessions())
        await plane.sessions.revoke_session(newest)
        return time.monotonic()
    finally:
        await plane.close()
