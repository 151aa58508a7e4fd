"""The queue between what connections see and whoever keeps it.

Owns: waiting events, their delivery in batches, and the count of those for which
there was no room. Never: a socket, or a reason to wait for a connection: `put`
returns at once whatever the sink does. Called by `journal` (put) and `server`
(start, close).

Threat: a sink that fails, hangs or is full; a client that starts programs by the
thousand, to fill memory, to stop the gateway, or to push others' events out.

Guarantee:
- Waiting events are bounded, in all and for each connection (`RecorderLimits`). One
  for which there is no room is counted, and the count is an event itself
  (`dropped`), under the connection whose share was used up.
- Events of one gateway arrive in order, at least once, as long as they arrive; with a
  spool, also those that waited when the process was killed, before anything newer.
- After any drop, and at the start, the sink is told which subjects still go on, so
  that nothing is left open for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import secrets
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from runcode.core.errors import RunCodeError
from runcode.gateway.events import DROPPED, END, NOTE, START, EventSink, GatewayEvent
from runcode.gateway.spool import EventSpool

_log = logging.getLogger(__name__)

SERVER_ENDED = "the server ended"
END_NOT_RECORDED = "its end was not recorded"

_START_COST = 1024
_END_COST = 256
# Connections of which drops are counted one by one; more go under no name.
_DROPPERS_MAX = 64
_REFUSALS_BEFORE_DROP = 5


@dataclass(frozen=True)
class RecorderLimits:
    """Bytes are an estimate of what waiting events take, times are seconds."""

    waiting_bytes: int = 8 * 1024 * 1024
    waiting_bytes_per_connection: int = 512 * 1024
    batch: int = 256
    beat_s: float = 0.5
    slow_s: float = 10.0
    retry_max_s: float = 30.0


class EventRecorder:
    """`gateway` is this gateway's lasting name. Lives on one event loop."""

    def __init__(
        self,
        sink: EventSink,
        *,
        gateway: str,
        clock: Callable[[], datetime.datetime],
        limits: RecorderLimits | None = None,
        spool: EventSpool | None = None,
    ) -> None:
        self._sink = sink
        self._gateway = gateway
        self._clock = clock
        self._limits = limits or RecorderLimits()
        self._spool = spool
        self._waiting: deque[GatewayEvent] = deque()
        # Where each of them stands in the spool.
        self._places: deque[int] = deque()
        self._waiting_bytes = 0
        self._shares: Counter[str | None] = Counter()
        self._dropped: Counter[tuple[str | None, int | None, int | None, int | None]] = Counter()
        # Started and accepted here, and the end neither delivered nor dropped.
        self._open: set[str] = set()
        self._open_is_wrong: str | None = SERVER_ENDED
        self._failures = 0
        # Since the start, for whoever measures.
        self.dropped_in_all = 0
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # -- in -----------------------------------------------------------------

    def put(self, event: GatewayEvent) -> None:
        """Take one event, or count it as dropped. Never waits, never raises."""
        cost = _cost(event)
        share = self._shares[event.connection_id] + cost
        limits = self._limits
        if share > limits.waiting_bytes_per_connection or self._waiting_bytes + cost > limits.waiting_bytes:
            self._drop(event)
            return
        if event.phase == START:
            self._open.add(event.subject_id)
        self._enqueue(event, cost)
        if len(self._waiting) >= limits.batch:
            self._wake.set()

    def _enqueue(self, event: GatewayEvent, cost: int) -> None:
        self._waiting.append(event)
        self._places.append(0 if self._spool is None else self._spool.append(event))
        self._waiting_bytes += cost
        self._shares[event.connection_id] += cost

    def _drop(self, event: GatewayEvent) -> None:
        self.dropped_in_all += 1
        whose = (event.connection_id, event.workspace_id, event.session_id, event.user_id)
        if whose not in self._dropped and len(self._dropped) >= _DROPPERS_MAX:
            whose = (None, None, None, None)
        self._dropped[whose] += 1
        if event.phase == END:
            self._open.discard(event.subject_id)
            self._open_is_wrong = self._open_is_wrong or END_NOT_RECORDED

    @property
    def waiting(self) -> int:
        """Events that are not delivered yet."""
        return len(self._waiting)

    # -- out ----------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="gateway-events")

    async def close(self, patience_s: float = 5.0) -> None:
        """Deliver what waits, for at most `patience_s`; what is left then is lost, and the log says how much."""
        if self._task is None:
            return
        self._closing.set()
        self._wake.set()
        await asyncio.wait({self._task}, timeout=patience_s)
        if not self._task.done():
            # Not awaited: a sink that hangs may take its cancellation no sooner than its answer.
            self._task.cancel()
        if self._waiting or self._dropped:
            _log.error("%d events were not recorded", len(self._waiting) + self._dropped.total())

    async def _run(self) -> None:
        while True:
            try:
                await self._deliver()
                if self._failures:
                    _log.warning("events are recorded again")
                self._failures = 0
            except Exception as error:
                self._note_failure(error)
            if self._closing.is_set() and not (self._failures or self._waiting or self._dropped):
                return
            await self._pause()

    async def _pause(self) -> None:
        """Until the next beat or a full batch; a failing sink is left alone for longer, however much comes in."""
        wake, pause = self._wake, self._limits.beat_s
        if self._closing.is_set():
            await asyncio.sleep(min(pause, 0.2))
            return
        if self._failures:
            wake, pause = self._closing, min(pause * 2 ** min(self._failures, 10), self._limits.retry_max_s)
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await wake.wait()

    async def _deliver(self) -> None:
        """Everything that waits, oldest first; then the counts of what did not; then what is still open."""
        while self._waiting or self._dropped or self._open_is_wrong is not None:
            if self._open_is_wrong == SERVER_ENDED:
                await self._deliver_leftovers()
                # Before this run's first event: what an earlier run left open ends here.
                await self._watched(self._sink.end_missing(self._gateway, (), SERVER_ENDED))
                self._open_is_wrong = None
            if not self._waiting:
                self._put_counts()
            batch = list(islice(self._waiting, self._limits.batch))
            if batch:
                await self._watched(self._sink.record(self._gateway, batch))
                self._forget(len(batch))
            elif self._open_is_wrong is not None:
                reason, self._open_is_wrong = self._open_is_wrong, None
                try:
                    await self._watched(self._sink.end_missing(self._gateway, frozenset(self._open), reason))
                except BaseException:
                    self._open_is_wrong = reason
                    raise

    async def _deliver_leftovers(self) -> None:
        """What an earlier run of this gateway saw and could not tell; known already changes nothing."""
        while self._spool is not None and (found := self._spool.load_leftovers()) is not None:
            path, events = found
            for at in range(0, len(events), self._limits.batch):
                await self._deliver_leftover_batch(events[at : at + self._limits.batch])
            self._spool.forget_leftovers(path)

    async def _deliver_leftover_batch(self, events: list[GatewayEvent]) -> None:
        try:
            await self._watched(self._sink.record(self._gateway, events))
        except RunCodeError as error:
            if error.code != "bad_request":
                raise
            # A damaged line that reads like an event: the others are told one by one.
            for event in events:
                try:
                    await self._watched(self._sink.record(self._gateway, [event]))
                except RunCodeError as refusal:
                    if refusal.code != "bad_request":
                        raise
                    _log.error("an event of an earlier run was refused and is given up")

    def _put_counts(self) -> None:
        """One `dropped` event for each connection that lost some; bounded, so past the limits."""
        for (connection_id, workspace_id, session_id, user_id), count in self._dropped.items():
            note = GatewayEvent(
                kind=DROPPED,
                phase=NOTE,
                subject_id=new_subject_id(),
                at=self._clock(),
                detail={"count": count},
                connection_id=connection_id,
                workspace_id=workspace_id,
                session_id=session_id,
                user_id=user_id,
            )
            self._enqueue(note, _cost(note))
        self._dropped.clear()

    def _forget(self, count: int) -> None:
        """The oldest `count` events are delivered, or given up."""
        for _ in range(count):
            event, place = self._waiting.popleft(), self._places.popleft()
            if self._spool is not None:
                self._spool.delivered(place)
            cost = _cost(event)
            self._waiting_bytes -= cost
            self._shares[event.connection_id] -= cost
            if self._shares[event.connection_id] <= 0:
                del self._shares[event.connection_id]
            if event.phase == END:
                self._open.discard(event.subject_id)
        self._failures = 0

    async def _watched(self, delivery: object) -> None:
        """Await a delivery, and say once when it is slow."""
        slow = asyncio.get_running_loop().call_later(
            self._limits.slow_s, _log.warning, "recording events takes over %.0f s", self._limits.slow_s
        )
        try:
            await delivery  # type: ignore[misc]
        finally:
            slow.cancel()

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        reason = error.message if isinstance(error, RunCodeError) else type(error).__name__
        if self._failures == 1:
            _log.error("events cannot be recorded, and wait: %s", reason)
        retryable = isinstance(error, RunCodeError) and error.kind.retryable
        if retryable or self._failures < _REFUSALS_BEFORE_DROP or not self._waiting:
            return
        # The sink is there and refuses this very batch: holding on to it would lose all that comes after.
        batch = list(islice(self._waiting, self._limits.batch))
        _log.error("%d events were refused and are given up: %s", len(batch), reason)
        self._forget(len(batch))
        for event in batch:
            self._drop(event)


def new_subject_id() -> str:
    return secrets.token_hex(16)


def _cost(event: GatewayEvent) -> int:
    if event.phase == END:
        return _END_COST
    text = event.detail.get("text") or event.detail.get("target") or ""
    return _START_COST + (len(text) if isinstance(text, str) else 0)
