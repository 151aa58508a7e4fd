"""The rounds that find idle workspaces, and have them stopped.

Owns: when to look, whom to ask (the runtime's probe, this process's own gateway), and
what an answer that does not come means: in use. The rule and the writes are
`services/idle`'s. Started and ended by the composition root, beside the reconciler.

Never: asks a runtime inside a transaction.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from runcode.controlplane.services.idle import IdleCandidate, IdleCount, IdleStops
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import ActivityProbe, Runtime

_log = logging.getLogger(__name__)

_PROBE_S = 10.0
_PROBES_AT_ONCE = 8

# Seconds since a connection of a workspace carried data, opened or closed a channel here; None: never.
QuietSince = Callable[[int], float | None]


class IdleWatch:
    """`find_quiet_s` asks the gateway in this process, which knows to the second what others report by the minute."""

    def __init__(
        self,
        stops: IdleStops,
        runtimes: Mapping[str, Runtime],
        *,
        find_quiet_s: QuietSince = lambda _workspace_id: None,
        look_every_s: float = 30.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stops = stops
        self._runtimes = runtimes
        self._find_quiet_s = find_quiet_s
        self._look_every_s = look_every_s
        self._monotonic = monotonic
        self._count = IdleCount()
        self._blind: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._look_regularly(), name="idle-watch")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> list[int]:
        """One round; the workspaces that it asked to stop."""
        candidates = await self._stops.list_candidates()
        self._count.forget_all_but([candidate.workspace_id for candidate in candidates])
        turns = asyncio.Semaphore(_PROBES_AT_ONCE)
        busy = await asyncio.gather(*(self._is_busy(candidate, turns) for candidate in candidates))
        await self._stops.note_use([c.workspace_id for c, works in zip(candidates, busy, strict=True) if works])
        stopped = []
        for candidate, works in zip(candidates, busy, strict=True):
            idle = self._count.look(candidate, busy=works, now_s=self._monotonic())
            if idle and not self._carries_data(candidate) and await self._stops.stop(candidate):
                _log.info("workspace %d is stopped: nobody used it", candidate.workspace_id)
                stopped.append(candidate.workspace_id)
        return stopped

    async def _is_busy(self, candidate: IdleCandidate, turns: asyncio.Semaphore) -> bool:
        """Does a job run in it, as far as its runtime can tell?"""
        probe: object = self._runtimes.get(candidate.runtime)
        if not isinstance(probe, ActivityProbe):
            return False
        try:
            async with turns, asyncio.timeout(_PROBE_S):
                job = await probe.find_job(candidate.workspace_id)
        except Exception as error:
            if candidate.workspace_id not in self._blind:
                self._blind.add(candidate.workspace_id)
                reason = error.message if isinstance(error, RunCodeError) else type(error).__name__
                _log.warning("workspace %d: no job can be seen or ruled out: %s", candidate.workspace_id, reason)
            return True
        self._blind.discard(candidate.workspace_id)
        return job is not None

    def _carries_data(self, candidate: IdleCandidate) -> bool:
        """The last look before the stop, at the second: a report may be on its way, or lost."""
        quiet_s = self._find_quiet_s(candidate.workspace_id)
        return quiet_s is not None and quiet_s < candidate.idle_stop_after_s

    async def _look_regularly(self) -> None:
        while True:
            try:
                await self.look()
            except RunCodeError as error:
                _log.warning("idle workspaces were not looked for: %s", error.message)
            except Exception:
                _log.exception("idle workspaces were not looked for")
            await asyncio.sleep(self._look_every_s)
