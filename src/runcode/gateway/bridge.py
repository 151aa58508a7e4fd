"""Two legs and the rules between them: one client's connection, joined to its box.

Owns: the queue before the workspace leg is there, the order in which the legs
end, and what a violation costs (this connection, no other). Never: asyncssh; a
leg is whatever keeps the `RelayLeg` protocol. Called by the legs for each
message 80–100, and by `connection`, which brings the workspace leg.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from runcode.core.terminal import printable
from runcode.gateway.packets import CHANNEL_EXTENDED_DATA, CHANNEL_WINDOW_ADJUST
from runcode.gateway.relay import Leg, PacketRelay, RelayLimits, RelayObserver, Violation

_log = logging.getLogger(__name__)

_REFUSALS_LOGGED = 20


class RelayLeg(Protocol):
    """One authenticated SSH connection, seen as a pipe for packets."""

    side: Leg

    def deliver(self, payload: bytes) -> None:
        """Send one packet; while keys are renewed it waits, in order."""
        ...

    def finish(self, reason: str) -> None:
        """Send what is queued, then a disconnect message with `reason`, then close. Idempotent."""
        ...

    def cut(self, reason: str) -> None:
        """Say `reason` if the socket takes it at once, and close. Idempotent."""
        ...


class Bridge:
    """Joins a client leg with a workspace leg that comes later."""

    def __init__(
        self,
        client: RelayLeg,
        name: str,
        *,
        limits: RelayLimits,
        max_early_bytes: int,
        observer: RelayObserver | None = None,
        explain: Callable[[str], None] | None = None,
    ) -> None:
        """`explain` gets our words when the workspace leg ends by itself; it owes `tell_client` those or better ones.

        Without it the client is told them at once.
        """
        self._explain = explain
        self._legs: dict[Leg, RelayLeg] = {Leg.CLIENT: client}
        # Where a leg's packets go, once there are two: looked up once for each data packet.
        self._passes_to: dict[Leg, Callable[[bytes], None]] = {}
        self._name = name
        self._relay = PacketRelay(limits, on_refusal=self._log_refusal, observer=observer)
        self._early: list[tuple[Leg, bytes]] = []
        self._early_bytes = 0
        self._max_early_bytes = max_early_bytes
        self._refusals = 0
        self.over = False
        # Why it ended, in our words; the first cause counts.
        self.end_reason = ""

    @property
    def open_channels(self) -> int:
        return self._relay.open_channels

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes of channel data that passed: towards the box, towards the client."""
        return self._relay.up, self._relay.down

    def join(self, box: RelayLeg) -> None:
        """The workspace leg is ready: pass on what came before it was."""
        self._legs[Leg.BOX] = box
        self._passes_to = {Leg.CLIENT: box.deliver, Leg.BOX: self._legs[Leg.CLIENT].deliver}
        early, self._early = self._early, []
        for source, payload in early:
            self.received(source, payload)

    def counter(self, source: Leg) -> Callable[[int, int], None]:
        """Counts data that a leg passes on by itself: the receiver's channel number, the bytes."""
        return self._relay.count_up if source is Leg.CLIENT else self._relay.count_down

    def received(self, source: Leg, payload: bytes) -> None:
        """A message 80–100 came in on a leg."""
        if self.over:
            return
        pass_on = self._passes_to.get(source)
        if pass_on is None:
            self._keep_early(source, payload)
            return
        number = payload[0]
        if CHANNEL_WINDOW_ADJUST <= number <= CHANNEL_EXTENDED_DATA:
            if number != CHANNEL_WINDOW_ADJUST:
                self._relay.count_data(source, payload)
            pass_on(payload)
            return
        try:
            outputs = self._relay.receive(source, payload)
        except Violation as violation:
            self._end_for_violation(violation)
            return
        for output in outputs:
            self._legs[output.to].deliver(output.payload)

    def leg_ended(self, side: Leg, reason: str) -> None:
        """A leg's connection is over: the other one gets what was queued for it, and ends too."""
        if self.over or (side is Leg.BOX and Leg.BOX not in self._legs):
            return  # a workspace leg that never joined: whoever dialled reports that
        if reason:
            _log.info("connection %s: the %s leg ended: %s", self._name, side.value, reason)
        # The peer's own words stay here: a box must not talk to the person's terminal in our name.
        shown = f"the {side.value} closed the connection"
        if side is Leg.CLIENT or self._explain is None:
            self.finish(shown)
            return
        self._note_end(shown)
        self._legs[Leg.BOX].finish(shown)
        self._explain(shown)

    def tell_client(self, reason: str) -> None:
        """End the client's leg, after what is queued for it, with these words."""
        self._legs[Leg.CLIENT].finish(reason)

    def finish(self, reason: str) -> None:
        """End both legs after what is queued for each."""
        self._note_end(reason)
        for leg in self._legs.values():
            leg.finish(reason)

    def cut(self, reason: str) -> None:
        """End both legs now."""
        self._note_end(reason)
        for leg in self._legs.values():
            leg.cut(reason)

    def _note_end(self, reason: str) -> None:
        if not self.over:
            self.over = True
            self.end_reason = reason

    def _keep_early(self, source: Leg, payload: bytes) -> None:
        # The per-packet share stands for the object's own cost: empty packets must not be free.
        self._early_bytes += len(payload) + 128
        if self._early_bytes > self._max_early_bytes:
            self._end_for_violation(Violation("too much was sent before the workspace was connected"))
            return
        self._early.append((source, payload))

    def _end_for_violation(self, violation: Violation) -> None:
        _log.warning("connection %s ended: %s", self._name, violation)
        self.cut(str(violation))

    def _log_refusal(self, source: Leg, what: str) -> None:
        self._refusals += 1
        if self._refusals <= _REFUSALS_LOGGED:
            _log.info("connection %s: refused from the %s: %s", self._name, source.value, printable(what))
