"""Refused connections as events: counted a minute long, bounded whatever somebody tries, and none forgotten."""

from __future__ import annotations

import asyncio
import datetime

import pytest

from runcode.gateway.events import NOTE, REFUSED, GatewayEvent
from runcode.gateway.refusals import RefusalLimits, RefusalTally, RefusedConnection
from support.controlplane_fakes import START, Monotonic

LIMITS = RefusalLimits(kinds_max=5, burst=8, every_s=60.0)
EXPIRED = RefusedConnection("192.0.2.7", "the session has expired", workspace_id=1, session_id=4, user_id=2)


class Told:
    def __init__(self) -> None:
        self.events: list[GatewayEvent] = []
        self.monotonic = Monotonic()
        self.tally = RefusalTally(self.events.append, lambda: START, LIMITS, self.monotonic)

    def take(self) -> list[GatewayEvent]:
        self.tally.tell()
        taken, self.events[:] = list(self.events), []
        return taken


@pytest.fixture
async def told() -> Told:
    return Told()


async def test_what_looks_alike_is_one_event_with_its_count(told: Told) -> None:
    for _ in range(3):
        told.tally.note(EXPIRED)
    told.tally.note(RefusedConnection("192.0.2.8", "no such key", workspace_id=1))
    expired, unknown = told.take()
    assert (expired.kind, expired.phase, expired.at) == (REFUSED, NOTE, START)
    assert expired.detail == {"count": 3, "reason": "the session has expired", "source": "192.0.2.7"}
    assert (expired.workspace_id, expired.session_id, expired.user_id) == (1, 4, 2)
    assert unknown.detail == {"count": 1, "reason": "no such key", "source": "192.0.2.8"}
    assert told.take() == [], "told once"


async def test_a_flood_from_many_addresses_is_bounded_and_counted(told: Told) -> None:
    told.tally.note(EXPIRED)
    for number in range(1000):
        told.tally.note(RefusedConnection(f"192.0.2.{number}", "no such workspace"))
    first = told.take()
    assert len(first) == LIMITS.kinds_max + 1
    assert sum(event.detail["count"] for event in first) == 1001  # type: ignore[misc]
    assert first[-1].detail == {"count": 996, "reason": "several reasons"}
    # The allowance of the hour is nearly used up: a session's comes before strangers'.
    for number in range(10):
        told.tally.note(RefusedConnection(f"198.51.100.{number}", "no such workspace"))
    assert [event.detail["count"] for event in told.take()] == [1, 1, 1, 7]
    told.tally.note(RefusedConnection("198.51.100.1", "no such workspace"))
    assert [event.detail.get("source") for event in told.take()] == [None]
    told.monotonic.now += LIMITS.every_s
    told.tally.note(RefusedConnection("198.51.100.1", "no such workspace"))
    told.tally.note(EXPIRED)
    assert [event.session_id for event in told.take()] == [4, None]


async def test_it_is_told_by_itself_when_the_minute_is_over() -> None:
    told = asyncio.Event()
    found: list[GatewayEvent] = []

    def put(event: GatewayEvent) -> None:
        found.append(event)
        told.set()

    tally = RefusalTally(put, lambda: datetime.datetime.now(datetime.timezone.utc), RefusalLimits(window_s=0.01))
    tally.note(EXPIRED)
    async with asyncio.timeout(30):
        await told.wait()
    assert [event.detail["count"] for event in found] == [1]
