"""The change feed's consumer: whoever lost access is cut, on this gateway, at once.

Owns: listening to `Directory.watch_changes`, how long ago it last spoke, and the
second look at every connection that a change may concern. Never: decides by
itself (`admission.may_continue` does). Started and stopped by `server`.

Guarantee: a connection that a change names is looked at when the batch arrives,
and cut if the facts no longer admit it, or cannot be had for `_PATIENCE_S`.
When the feed breaks, connections go on; once it is back, all are looked at,
since changes may have been missed.
"""

from __future__ import annotations

import asyncio
import logging

from runcode.gateway.admission import AdmissionPolicy, Refusal, may_continue
from runcode.gateway.directory import ChangeBatch, Directory
from runcode.gateway.registry import ConnectionRegistry, LiveConnection

_log = logging.getLogger(__name__)

_RETRY_S = 0.2
_PATIENCE_S = 2.0
_LOOKS_AT_ONCE = 32


class ChangeWatcher:
    """`feed_age_s` is infinite until the feed has spoken."""

    def __init__(self, directory: Directory, registry: ConnectionRegistry, policy: AdmissionPolicy) -> None:
        self._directory = directory
        self._registry = registry
        self._policy = policy
        self._heard_at: float | None = None
        self._heard = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._looks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_LOOKS_AT_ONCE)

    @property
    def feed_age_s(self) -> float:
        if self._heard_at is None:
            return float("inf")
        return asyncio.get_running_loop().time() - self._heard_at

    async def start(self) -> None:
        """Listen, and wait for the feed's first word for as long as it may be silent."""
        self._task = asyncio.create_task(self._listen(), name="gateway-change-feed")
        try:
            await asyncio.wait_for(self._heard.wait(), max(self._policy.feed_silence_s, 0.1))
        except TimeoutError:
            _log.warning("the change feed is silent: nobody is let in until it speaks")

    async def close(self) -> None:
        tasks = [task for task in (self._task, *self._looks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> None:
        missed = False
        while True:
            try:
                async for batch in self._directory.watch_changes():
                    self._heard_at = asyncio.get_running_loop().time()
                    self._heard.set()
                    self._look_at_touched(batch, everything=missed)
                    missed = False
                _log.error("the change feed ended; listening anew")
            except Exception:
                _log.exception("the change feed broke; listening anew")
            missed = True
            await asyncio.sleep(_RETRY_S)

    def _look_at_touched(self, batch: ChangeBatch, *, everything: bool) -> None:
        named = set() if batch.everything else self._registry.find_touched(batch)
        for connection in set(self._registry) if everything or batch.everything else named:
            # Fail closed only for what a change names: an outage alone must not end everybody's work.
            task = asyncio.create_task(self._look(connection, fail_closed=connection in named))
            self._looks.add(task)
            task.add_done_callback(self._looks.discard)

    async def _look(self, connection: LiveConnection, *, fail_closed: bool) -> None:
        """Load the facts again, as often as it takes; cut when they no longer admit."""
        offer, loop = connection.offer, asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE_S
        while connection in self._registry:
            try:
                async with self._turns:
                    facts = await asyncio.wait_for(
                        self._directory.load_admission_facts(offer.title, offer.key_fingerprint), _PATIENCE_S
                    )
            except Exception as error:
                _log.warning("facts cannot be loaded after a change: %s", type(error).__name__)
                if fail_closed and loop.time() >= deadline:
                    connection.cut("access changed, and the facts cannot be loaded")
                    return
                await asyncio.sleep(_RETRY_S)
                continue
            decision = may_continue(offer, facts, self._policy, opened_as=connection.route)
            if isinstance(decision, Refusal):
                connection.cut(decision.reason)
            return
