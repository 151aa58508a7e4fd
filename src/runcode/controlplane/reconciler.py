"""Drive runtimes from what is wanted to what is: start, stop, destroy, adopt, notice.

Owns: the tasks that do so, one per workspace at a time. Woken by the change feed
(also for changes of other processes) and by a regular survey that asks each
runtime for the truth. Started and ended by the composition root.

Never: call a runtime inside a transaction, or trust what a runtime says it did
over what `inspect` finds.

Guarantee: a state is written only after the runtime was asked; a failure leaves
its reason, a cleaned-up box and a later attempt; a wish that changes half-way
wins at the next checkpoint. Nothing that one workspace does stops another.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import math
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from runcode.controlplane import changes
from runcode.controlplane.changes import ChangeFeed
from runcode.controlplane.clock import Clock
from runcode.controlplane.decisions import Action, back_off, count_failures, decide
from runcode.controlplane.services.lifecycle import (
    Claim,
    LeaseLost,
    Lifecycle,
    Outcome,
    Station,
    Work,
    explain_failure,
)
from runcode.controlplane.services.principals import principal_for
from runcode.controlplane.states import DELETING, RUNNING, STARTING, STOPPED, STOPPING, UNKNOWN
from runcode.controlplane.store.engine import Store
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import (
    DEFAULT_SIZES,
    Checkpoint,
    Observation,
    ObservedState,
    Runtime,
    SizeLimits,
    WorkspaceSpec,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_SURVEY_PATIENCE_S = 120.0
_SERVER_STOPPED = "the server was stopped; it starts again with the server"


@dataclass(frozen=True)
class Timing:
    survey_s: float = 1.0
    inspect_s: float = 10.0
    # One step of a start, or a whole create, stop or destroy.
    step_s: float = 120.0
    # Longer than any one step, so that a lease never ends under a worker that lives.
    lease: datetime.timedelta = datetime.timedelta(seconds=180)
    parallel_inspections: int = 16


class Reconciler:
    def __init__(
        self,
        store: Store,
        feed: ChangeFeed,
        runtimes: Mapping[str, Runtime],
        *,
        workspace_ca: str,
        clock: Clock,
        timing: Timing | None = None,
        on_pass: Callable[[str, str, bool, float], None] | None = None,
        sizes: Mapping[str, SizeLimits] = DEFAULT_SIZES,
        place: str = "here",
    ) -> None:
        """`on_pass` is told what was done: runtime, action, did it fail, seconds.

        `place` names this server's machine and data folder; on a shared database it decides what is whose.
        """
        self._store = store
        self._feed = feed
        self._runtimes = runtimes
        self._workspace_ca = workspace_ca
        self._clock = clock
        self._timing = timing or Timing()
        self._on_pass = on_pass
        self._surveyed_at = -math.inf
        self._sizes = sizes
        roaming = {name for name, runtime in runtimes.items() if not runtime.capabilities.bound_to_machine}
        self._station = Station(place, frozenset(runtimes), frozenset(roaming), alone=not store.shared)
        self._lifecycle = Lifecycle(store, clock, lease=self._timing.lease, station=self._station)
        self._owner = f"{place}/{os.getpid()}-{secrets.token_hex(8)}"
        self._workers: dict[int, asyncio.Task[None]] = {}
        self._again: set[int] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self) -> None:
        """Ask every runtime for the truth, adopt what runs, then keep going in the background.

        When it returns, the database says what is. No other reconciler of this place
        can be alive (the data folder's lock says so): leases that it left are void.
        """
        await self._lifecycle.release_all()
        turn = asyncio.Semaphore(self._timing.parallel_inspections)
        await asyncio.gather(*(self._adopt(work, turn) for work in await self._lifecycle.list_live()))
        loop = asyncio.get_running_loop()
        self._surveyed_at = time.monotonic()
        self._loops = [loop.create_task(self._follow_changes()), loop.create_task(self._survey_regularly())]

    async def close(self) -> None:
        """Let go of everything; boxes go on running."""
        self._closing = True
        tasks = [*self._loops, *self._workers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(RunCodeError):
            await self._lifecycle.release_all(self._owner)

    async def stop_all(self) -> None:
        """End every box that lives here, with the server. What is wanted stays, so that they come back with it."""
        await self.close()
        held = [work for work in await self._lifecycle.list_active() if self._station.holds(work)]
        await asyncio.gather(*(self._stop_for_exit(work) for work in held))

    @property
    def alive(self) -> bool:
        """Does it still look at workspaces? False before `start`, after the end, and when a survey hangs."""
        looping = bool(self._loops) and not any(loop.done() for loop in self._loops)
        return looping and not self._closing and time.monotonic() - self._surveyed_at < _SURVEY_PATIENCE_S

    def poke(self, workspace_id: int) -> None:
        """Look at this workspace soon; a look that is under way is followed by another."""
        if self._closing:
            return
        if workspace_id in self._workers:
            self._again.add(workspace_id)
            return
        self._workers[workspace_id] = asyncio.get_running_loop().create_task(self._work(workspace_id))

    async def _follow_changes(self) -> None:
        while True:
            try:
                async for batch in self._feed.watch(changes.ALL_KINDS):
                    if batch.everything:
                        for work in await self._lifecycle.list_active():
                            self.poke(work.workspace_id)
                    for workspace_id in batch.workspace_ids:
                        self.poke(workspace_id)
            except Exception:
                _log.exception("the reconciler lost the change feed, and follows it anew")
                await asyncio.sleep(self._timing.survey_s)

    async def _survey_regularly(self) -> None:
        trouble: str | None = None
        while True:
            try:
                await self._survey()
                trouble = None
            except RunCodeError as error:
                # Once, not every second of an outage.
                if error.message != trouble:
                    trouble = error.message
                    _log.warning("the survey of workspaces failed: %s", trouble)
            except Exception:
                _log.exception("the survey of workspaces failed")
            self._surveyed_at = time.monotonic()
            await asyncio.sleep(self._timing.survey_s)

    async def _survey(self) -> None:
        """One query, one inspection each, and a worker only where something is to be done."""
        turn = asyncio.Semaphore(self._timing.parallel_inspections)

        async def look(work: Work) -> None:
            async with turn:
                observation = await self._find_observation(work)
            left = work.lease_owner == self._owner
            if left or observation is None or decide(work, observation, self._clock.now()) is not Action.NOTHING:
                self.poke(work.workspace_id)

        idle = [work for work in await self._lifecycle.list_active() if work.workspace_id not in self._workers]
        await asyncio.gather(*(look(work) for work in idle))

    async def _work(self, workspace_id: int) -> None:
        try:
            while True:
                self._again.discard(workspace_id)
                await self._reconcile(workspace_id)
                if workspace_id not in self._again:
                    return
        except LeaseLost:
            _log.warning("lost the lease of workspace %d", workspace_id)
        except RunCodeError as error:
            _log.warning("workspace %d was not reconciled: %s", workspace_id, error.message)
        except Exception:
            _log.exception("workspace %d was not reconciled", workspace_id)
        finally:
            self._workers.pop(workspace_id, None)

    async def _reconcile(self, workspace_id: int) -> None:
        work = await self._lifecycle.find_work(workspace_id)
        if work is None:
            return
        try:
            observation = await self._inspect(work)
        except Exception as error:
            await self._note_unknown(work, error)
            return
        action = decide(work, observation, self._clock.now())
        if action is Action.NOTHING:
            if work.lease_owner == self._owner:
                # Taken in the moment in which the database went: for others this workspace would be shut until it ends.
                await self._lifecycle.release(workspace_id, self._owner)
            return
        doing = {Action.START: STARTING, Action.STOP: STOPPING, Action.DESTROY: DELETING}.get(action)
        here = action is Action.START or observation.state is not ObservedState.ABSENT
        claim = await self._lifecycle.claim(workspace_id, self._owner, doing, settle=here)
        if claim is None:
            return
        if _moved(work, claim.work):
            # Another wish, or another server was quicker: what was seen before the lease may be old.
            self._again.add(workspace_id)
            await self._record(claim.work, _keep(claim.work))
            return
        if action in (Action.RECORD, Action.MOURN):
            await self._record(work, self._describe(work, observation, mourning=action is Action.MOURN))
            return
        began = time.monotonic()
        outcome = await self._perform(action, claim)
        if self._on_pass is not None:
            self._on_pass(work.runtime, action.value, outcome.reason is not None, time.monotonic() - began)
        await self._record(work, outcome)
        self._again.add(workspace_id)

    async def _perform(self, action: Action, claim: Claim) -> Outcome:
        """Carry it out; whatever goes wrong becomes an outcome with a reason."""
        work, runtime = claim.work, self._runtime_of(claim.work)
        try:
            if action is Action.START:
                return await self._start(claim, runtime)
            await self._bounded(runtime.stop(work.workspace_id))
            if action is Action.DESTROY:
                await self._bounded(runtime.destroy(work.workspace_id))
                return Outcome(observed=STOPPED, deleted=True)
            observation = await self._inspect(work)
            if observation.state is ObservedState.RUNNING:
                raise RunCodeError("timed_out", "the box still runs after it was stopped")
            return Outcome(observed=STOPPED)
        except LeaseLost:
            raise
        except Exception as error:
            return await self._describe_failure(action, work, runtime, error)

    async def _start(self, claim: Claim, runtime: Runtime) -> Outcome:
        work = claim.work
        obstacle = await asyncio.to_thread(runtime.find_obstacle)
        if obstacle is not None:
            raise RunCodeError("not_ready", obstacle)
        if work.checkpoints:
            # An earlier start left something half-way: begin from nothing.
            await self._bounded(runtime.stop(work.workspace_id))
        spec = WorkspaceSpec(
            workspace_id=work.workspace_id,
            title=work.title,
            principal=principal_for(work.workspace_id),
            workspace_ca=self._workspace_ca,
            host_key=claim.host_private_key,
            limits=self._limits_of(work),
        )
        await self._bounded(runtime.create(spec))
        steps = runtime.start(spec)
        try:
            first = True
            while (checkpoint := await self._bounded(anext(steps, None))) is not None:
                wanted = await self._lifecycle.record_checkpoint(
                    work.workspace_id, self._owner, checkpoint, first=first
                )
                first = False
                if wanted != RUNNING:
                    await _end(steps)
                    await self._bounded(runtime.stop(work.workspace_id))
                    return Outcome(observed=STOPPED)
        finally:
            await _end(steps)
        observation = await self._inspect(work)
        if observation.state is not ObservedState.RUNNING or observation.endpoint is None:
            raise RunCodeError("not_ready", observation.reason or "the box did not come up")
        # Failures are kept until the box has proved stable, so that a crash loop still backs off.
        return Outcome(observed=RUNNING, endpoint=observation.endpoint, failures=work.failures, keep_checkpoints=True)

    async def _describe_failure(self, action: Action, work: Work, runtime: Runtime, error: Exception) -> Outcome:
        if not isinstance(error, (RunCodeError, TimeoutError)):
            _log.error("workspace %d: %s failed", work.workspace_id, action.value, exc_info=error)
        reason = explain_failure(error)
        _log.warning("workspace %d (%s): %s failed: %s", work.workspace_id, work.title, action.value, reason)
        observed, endpoint, clean = work.observed, work.endpoint, False
        with contextlib.suppress(Exception):
            if action is Action.START:
                await self._bounded(runtime.stop(work.workspace_id))
            observation = await self._inspect(work)
            observed, endpoint = _observed_word(observation), observation.endpoint
            clean = observed == STOPPED
        now = self._clock.now()
        failures = count_failures(work, now)
        return Outcome(
            observed=observed,
            endpoint=endpoint if observed == RUNNING else None,
            reason=reason,
            failures=failures,
            retry_at=back_off(failures, now),
            keep_checkpoints=not clean,
        )

    def _describe(self, work: Work, observation: Observation, *, mourning: bool) -> Outcome:
        """The truth that was found, without having done anything."""
        if observation.state is ObservedState.RUNNING:
            return Outcome(
                observed=RUNNING, endpoint=observation.endpoint, failures=work.failures, keep_checkpoints=True
            )
        if not mourning:
            return Outcome(observed=STOPPED, keep_checkpoints=True)
        now = self._clock.now()
        failures = count_failures(work, now)
        reason = "the box ended by itself" + (f": {observation.reason}" if observation.reason else "")
        _log.warning("workspace %d (%s): %s", work.workspace_id, work.title, reason)
        return Outcome(
            observed=STOPPED,
            reason=reason,
            failures=failures,
            retry_at=back_off(failures, now),
            keep_checkpoints=True,
        )

    async def _adopt(self, work: Work, turn: asyncio.Semaphore) -> None:
        """At the start of the server: what runs is ours again; what does not was ended with the machine or server."""
        try:
            async with turn:
                observation = await self._inspect(work)
        except Exception as error:
            await self._note_unknown(work, error, observed=UNKNOWN)
            return
        observed = _observed_word(observation)
        # What a runtime here knows lives here, whoever wrote the row.
        here = observation.state is not ObservedState.ABSENT
        homeless = here and work.place is None and work.runtime not in self._station.roaming
        if (observed, work.endpoint, work.activity) == (work.observed, observation.endpoint, None) and not homeless:
            return
        if await self._lifecycle.claim(work.workspace_id, self._owner, None, settle=here) is not None:
            await self._record(work, Outcome(observed=observed, endpoint=observation.endpoint, keep_checkpoints=True))

    async def _note_unknown(self, work: Work, error: Exception, *, observed: str | None = None) -> None:
        """The runtime could not be asked. One line says so; a box that ran is not declared dead for it."""
        reason = f"its state cannot be seen: {explain_failure(error)}"
        if work.reason == reason and (observed or work.observed) == work.observed:
            return
        if not isinstance(error, (RunCodeError, TimeoutError)):
            _log.error("workspace %d cannot be inspected", work.workspace_id, exc_info=error)
        if await self._lifecycle.claim(work.workspace_id, self._owner, work.activity) is None:
            return
        outcome = _keep(work, reason=reason)
        if observed is not None:
            outcome = Outcome(observed=observed, reason=reason, failures=work.failures, keep_checkpoints=True)
        await self._record(work, outcome)

    async def _stop_for_exit(self, work: Work) -> None:
        try:
            await self._bounded(self._runtime_of(work).stop(work.workspace_id))
            if await self._lifecycle.claim(work.workspace_id, self._owner, None) is not None:
                reason = _SERVER_STOPPED if work.desired == RUNNING else None
                await self._record(work, Outcome(observed=STOPPED, reason=reason))
        except Exception as error:
            _log.error("workspace %d was not stopped: %s", work.workspace_id, explain_failure(error))

    async def _record(self, work: Work, outcome: Outcome) -> None:
        await self._lifecycle.record_outcome(work.workspace_id, self._owner, outcome)

    async def _find_observation(self, work: Work) -> Observation | None:
        try:
            return await self._inspect(work)
        except Exception:
            return None

    async def _inspect(self, work: Work) -> Observation:
        observation = await self._bounded(self._runtime_of(work).inspect(work.workspace_id), self._timing.inspect_s)
        if observation.state is ObservedState.RUNNING and observation.endpoint is None:
            raise RunCodeError("not_ready", "the runtime says that the box runs, but not where it answers")
        return observation

    async def _bounded(self, call: Awaitable[_T], timeout_s: float | None = None) -> _T:
        async with asyncio.timeout(self._timing.step_s if timeout_s is None else timeout_s):
            return await call

    def _limits_of(self, work: Work) -> SizeLimits:
        limits = self._sizes.get(work.size)
        if limits is None:
            raise RunCodeError(
                "not_ready",
                f"this server has no size `{work.size}` any more",
                resolution=f"give the workspace another one: {', '.join(sorted(self._sizes))}",
            )
        return limits

    def _runtime_of(self, work: Work) -> Runtime:
        runtime = self._runtimes.get(work.runtime)
        if runtime is None:
            raise RunCodeError("not_ready", f"this server does not run `{work.runtime}` workspaces")
        return runtime


def _keep(work: Work, *, reason: str | None = None) -> Outcome:
    """What the database says already, perhaps with another reason."""
    return Outcome(
        observed=work.observed,
        endpoint=work.endpoint,
        reason=reason or work.reason,
        failures=work.failures,
        retry_at=work.retry_at,
        keep_checkpoints=True,
    )


def _moved(seen: Work, leased: Work) -> bool:
    """Has anything been written between the look and the lease?"""
    before, now = (
        (w.desired, w.observed, w.observed_at, w.endpoint, w.failures, w.retry_at, w.checkpoints)
        for w in (seen, leased)
    )
    return before != now


def _observed_word(observation: Observation) -> str:
    return RUNNING if observation.state is ObservedState.RUNNING else STOPPED


async def _end(steps: AsyncIterator[Checkpoint]) -> None:
    """Let a generator run its clean-up now, not when it is collected."""
    aclose = getattr(steps, "aclose", None)
    if aclose is not None:
        with contextlib.suppress(Exception):
            await aclose()
