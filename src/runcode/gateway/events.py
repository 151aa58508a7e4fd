"""What a gateway saw, as events, and the port through which the control plane takes them.

Owns: the shape of an event and `EventSink`. Made by `journal`, queued and
delivered by `recorder`; implemented in process by the server, and over the
control plane's internal API. Nothing here reads or writes.

An event is a fact that never changes: something started, or ended, or a note.
Whatever has a start (a connection, a command, a forward) is a *subject* with an
id of its own, made by the gateway; it has one start and at most one end, so that
`event_id` is the same however often an event is delivered.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

CONNECTION: Final = "connection"
COMMAND: Final = "command"
FORWARD: Final = "forward"
DROPPED: Final = "dropped"
USED: Final = "used"
REFUSED: Final = "refused"

START: Final = "start"
END: Final = "end"
NOTE: Final = "note"

Detail = Mapping[str, str | int | None]


@dataclass(frozen=True)
class GatewayEvent:
    """One fact. Times are aware UTC, by the gateway's clock.

    An end stands for itself: `started_at` and the ids are in it as well, in case the
    start was lost. `detail` by kind (texts are bounded and printable but for tab and
    newline; `bytes_up` is towards the box):

    - connection: `workspace`, `client`, `source`; end: `reason`, `bytes_up`, `bytes_down`
    - command: `form` (exec, shell, subsystem), `text`, `text_bytes` and `text_sha256` of
      all of it; end: `exit_status` or `exit_signal` as the box reported, or neither,
      `outcome` (finished, refused, lost), `bytes_up`, `bytes_down`
    - forward: `form` (the SSH channel or request type), `target`, `opened_by`; end:
      `outcome` (closed, refused, lost), `bytes_up`, `bytes_down`
    - dropped: `count` of events that never reached the queue's front
    - refused: `count` connections that were let in nowhere, `reason`, and `source` where it is one address. Of
      several within a minute, one event
    - used: nothing; a connection to `workspace_id` carried data, opened or closed a
      channel at that moment. Told at most once a minute for each workspace
    """

    kind: str
    phase: str
    subject_id: str
    at: datetime.datetime
    detail: Detail
    connection_id: str | None = None
    started_at: datetime.datetime | None = None
    workspace_id: int | None = None
    session_id: int | None = None
    user_id: int | None = None

    @property
    def event_id(self) -> str:
        return f"{self.subject_id}.{self.phase}"


class EventSink(Protocol):
    """Where events go. Both calls may be slow, fail or hang: nobody's connection waits for them."""

    async def record(self, gateway: str, events: Sequence[GatewayEvent]) -> None:
        """Keep these, in this order, all or none.

        Delivery is at least once: an event whose id is known already changes nothing.
        Raises RunCodeError; a retryable one is tried again.
        """
        ...

    async def end_missing(self, gateway: str, live: Collection[str], reason: str) -> None:
        """Of what `gateway` ever started, only the subjects in `live` are still going on: end all others.

        Called once when a gateway starts (after it has delivered what it had kept from
        its last run), with nothing live, and after events were dropped. Idempotent.
        """
        ...


class NoSink:
    """Keeps nothing, for a gateway that nobody asks (benchmarks, tests)."""

    async def record(self, gateway: str, events: Sequence[GatewayEvent]) -> None:
        return None

    async def end_missing(self, gateway: str, live: Collection[str], reason: str) -> None:
        return None
