"""Connections that were refused, told as few events.

Owns: the counts of a minute, and how many events they become. Called by `ssh_server` (note) and `server` (close).
Never: decides, waits, or tells the peer anything.

Threat: somebody is refused as often as the network carries it, from many addresses, with many keys and titles, to
fill the audit and push what others did out of it.
Guarantee: refusals that look alike (source, workspace, session, reason) are one event a minute, with their count. What
looks different is kept apart for at most `kinds_max` in a minute, and becomes an event only while the allowance
lasts; the rest is one event with the sum. No refusal is left out of the counts, and nothing that the peer typed is in
them: a workspace stands there by its id, if there is one of that title.

A key that was offered is not proved: `session_id` and `user_id` say whose key it was, not who came with it.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass

from runcode.gateway.events import NOTE, REFUSED, GatewayEvent
from runcode.gateway.recorder import new_subject_id

TOO_MANY_STRANGERS = "too many connections were waiting to authenticate"
_SEVERAL = "several reasons"


@dataclass(frozen=True)
class RefusalLimits:
    """Events: `burst` at once, then one every `every_s`, beside the one a minute that sums up the others."""

    window_s: float = 60.0
    kinds_max: int = 64
    burst: int = 100
    every_s: float = 60.0


@dataclass(frozen=True)
class RefusedConnection:
    """`reason` is one of our own texts. Ids only where title and key belong together."""

    source: str
    reason: str
    workspace_id: int | None = None
    session_id: int | None = None
    user_id: int | None = None


class RefusalTally:
    """Lives on one event loop. `put` takes events, and never waits."""

    def __init__(
        self,
        put: Callable[[GatewayEvent], None],
        clock: Callable[[], datetime.datetime],
        limits: RefusalLimits | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._put = put
        self._clock = clock
        self._limits = limits or RefusalLimits()
        self._monotonic = monotonic
        self._counts: dict[RefusedConnection, int] = {}
        self._others = 0
        self._allowance = float(self._limits.burst)
        self._filled_at = monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def note(self, refused: RefusedConnection) -> None:
        if refused not in self._counts and len(self._counts) >= self._limits.kinds_max:
            self._others += 1
        else:
            self._counts[refused] = self._counts.get(refused, 0) + 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._limits.window_s, self.tell)

    def tell(self) -> None:
        """What was counted becomes events. Called by itself a minute after the first, and at the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._monotonic()
        refill = (now - self._filled_at) / self._limits.every_s
        self._allowance = min(float(self._limits.burst), self._allowance + refill)
        self._filled_at = now
        # Those that name a session first: they mean somebody.
        for refused, count in sorted(self._counts.items(), key=lambda one: one[0].session_id is None):
            if self._allowance < 1:
                self._others += count
                continue
            self._allowance -= 1
            self._put_event(refused, count)
        if self._others:
            self._put_event(RefusedConnection("", _SEVERAL), self._others)
        self._counts.clear()
        self._others = 0

    def _put_event(self, refused: RefusedConnection, count: int) -> None:
        source = {"source": refused.source} if refused.source else {}
        self._put(
            GatewayEvent(
                kind=REFUSED,
                phase=NOTE,
                subject_id=new_subject_id(),
                at=self._clock(),
                detail={"count": count, "reason": refused.reason, **source},
                workspace_id=refused.workspace_id,
                session_id=refused.session_id,
                user_id=refused.user_id,
            )
        )
