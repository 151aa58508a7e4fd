"""The event queue: bounded, fair, delivered in order, at least once, and never in anybody's way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from runcode.core.errors import RunCodeError
from runcode.gateway.events import COMMAND, DROPPED, END, START, GatewayEvent
from runcode.gateway.recorder import END_NOT_RECORDED, SERVER_ENDED, EventRecorder, RecorderLimits, new_subject_id
from support.gateway_fakes import FakeSink, utc_now

QUICK = RecorderLimits(beat_s=0.01, retry_max_s=0.05, batch=16)


def event(phase: str = START, subject: str | None = None, connection: str = "c" * 32, text: str = "") -> GatewayEvent:
    return GatewayEvent(
        kind=COMMAND,
        phase=phase,
        subject_id=subject or new_subject_id(),
        at=utc_now(),
        detail={"text": text},
        connection_id=connection,
    )


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def make(sink: FakeSink, limits: RecorderLimits = QUICK) -> EventRecorder:
    recorder = EventRecorder(sink, gateway="test", clock=utc_now, limits=limits)
    recorder.start()
    return recorder


@pytest.fixture
def sink() -> FakeSink:
    return FakeSink()


async def test_events_arrive_once_and_in_order_after_the_last_runs_were_ended(sink: FakeSink) -> None:
    recorder = make(sink)
    events = [event() for _ in range(100)]
    for one in events:
        recorder.put(one)
    await until(lambda: len(sink.rows) == 100)
    await recorder.close()
    assert [name for batch in sink.deliveries for name in batch] == [one.event_id for one in events]
    assert sink.syncs == [(frozenset(), SERVER_ENDED)]
    assert max(map(len, sink.deliveries)) <= QUICK.batch


async def test_what_waits_at_the_end_is_delivered(sink: FakeSink) -> None:
    recorder = make(sink, RecorderLimits(beat_s=1000))
    for _ in range(400):
        recorder.put(event())
    await recorder.close()
    assert len(sink.rows) == 400
    assert recorder._waiting_bytes == 0
    assert not recorder._shares


async def test_a_failing_sink_loses_nothing_while_there_is_room(sink: FakeSink) -> None:
    sink.error = RunCodeError("io_error", "no space left")
    recorder = make(sink)
    events = [event() for _ in range(40)]
    for one in events:
        recorder.put(one)
    await until(lambda: recorder._failures >= 8)
    assert sink.rows == {}
    sink.error = None
    await until(lambda: len(sink.rows) == 40)
    assert [name for batch in sink.deliveries for name in batch] == [one.event_id for one in events]
    await recorder.close()


async def test_a_hanging_sink_holds_up_nobody_and_memory_is_bounded(sink: FakeSink) -> None:
    sink.hang = asyncio.Event()
    limits = RecorderLimits(beat_s=0.01, waiting_bytes=64 * 1024, waiting_bytes_per_connection=16 * 1024)
    recorder = make(sink, limits)
    for number in range(5000):
        recorder.put(event(connection=f"{number % 100:032x}", text="x" * 1000))
    assert recorder._waiting_bytes <= limits.waiting_bytes
    assert len(recorder._waiting) <= 64
    began = time.monotonic()
    await recorder.close(patience_s=0.2)
    # A net, not a claim of speed: closing must not wait for the sink.
    assert time.monotonic() - began < 20
    sink.hang.set()


async def test_what_finds_no_room_is_counted_and_the_count_is_an_event(sink: FakeSink) -> None:
    sink.hang = asyncio.Event()
    recorder = make(sink, RecorderLimits(beat_s=0.01, waiting_bytes_per_connection=10 * 1024))
    flood, quiet = "a" * 32, "b" * 32
    for _ in range(500):
        recorder.put(event(connection=flood))
    # One connection's flood leaves everybody else's room alone.
    mine = [event(connection=quiet) for _ in range(5)]
    for one in mine:
        recorder.put(one)
    sink.hang.set()
    sink.hang = None
    await until(lambda: any(row.kind == DROPPED for row in sink.rows.values()))
    kept = [row for row in sink.rows.values() if row.connection_id == flood and row.kind == COMMAND]
    (count,) = [row for row in sink.rows.values() if row.kind == DROPPED]
    assert count.connection_id == flood
    assert count.detail["count"] == 500 - len(kept)
    assert {one.event_id for one in mine} <= set(sink.rows)
    await recorder.close()


async def test_thousands_of_droppers_are_counted_in_bounded_memory(sink: FakeSink) -> None:
    sink.hang = asyncio.Event()
    recorder = make(sink, RecorderLimits(beat_s=0.01, waiting_bytes=0))
    for _ in range(3000):
        recorder.put(event(connection=new_subject_id()))
    assert len(recorder._dropped) <= 65
    sink.hang.set()
    sink.hang = None
    await until(lambda: sum(int(row.detail["count"] or 0) for row in sink.rows.values()) == 3000)
    await recorder.close()


async def test_a_lost_end_leaves_nothing_open_for_ever(sink: FakeSink) -> None:
    recorder = make(sink, RecorderLimits(beat_s=0.01, waiting_bytes_per_connection=4 * 1024))
    gone, going_on = event(), event()
    recorder.put(gone)
    recorder.put(going_on)
    await until(lambda: len(sink.rows) == 2)
    sink.hang = asyncio.Event()
    for _ in range(10):
        recorder.put(event())
    for _ in range(20):
        recorder.put(event(END))
    recorder.put(event(END, gone.subject_id))
    sink.hang.set()
    sink.hang = None
    await until(lambda: len(sink.syncs) == 2)
    live, reason = sink.syncs[1]
    assert reason == END_NOT_RECORDED
    assert going_on.subject_id in live
    assert gone.subject_id not in live
    assert sink.rows[f"{gone.subject_id}.end"].detail == {"reason": END_NOT_RECORDED}
    assert f"{going_on.subject_id}.end" not in sink.rows
    await recorder.close()


async def test_a_batch_that_is_refused_for_good_does_not_stop_the_others(sink: FakeSink) -> None:
    class Picky(FakeSink):
        async def record(self, gateway: str, events: object) -> None:
            if any(one.detail.get("text") == "poison" for one in events):  # type: ignore[attr-defined]
                raise RunCodeError("bad_request", "no")
            await super().record(gateway, events)  # type: ignore[arg-type]

    picky = Picky()
    recorder = make(picky)
    recorder.put(event(text="poison"))
    await until(lambda: recorder._failures > 0)
    later = event()
    recorder.put(later)
    await until(lambda: any(row.kind == DROPPED for row in picky.rows.values()))
    after = event()
    recorder.put(after)
    await until(lambda: after.event_id in picky.rows)
    await recorder.close()


async def test_memory_of_open_subjects_goes_with_their_ends(sink: FakeSink) -> None:
    recorder = make(sink)
    for _ in range(50):
        one = event()
        recorder.put(one)
        recorder.put(event(END, one.subject_id))
    await until(lambda: len(sink.rows) == 100)
    assert recorder._open == set()
    await recorder.close()
