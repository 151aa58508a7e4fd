"""The EventSink port's contract, as a suite: subclass it with a `kept` fixture.

What a sink has kept is read by the implementation's own means.
"""

from __future__ import annotations

from typing import Protocol

from runcode.gateway.events import COMMAND, CONNECTION, END, START, EventSink, GatewayEvent
from runcode.gateway.recorder import new_subject_id
from support.gateway_fakes import utc_now


class Kept(Protocol):
    sink: EventSink

    async def rows(self) -> list[tuple[str, dict[str, object]]]:
        """(event id, detail) of everything kept, oldest first."""
        ...


def make_event(
    phase: str, subject_id: str | None = None, *, kind: str = COMMAND, **detail: str | int | None
) -> GatewayEvent:
    return GatewayEvent(
        kind=kind,
        phase=phase,
        subject_id=subject_id or new_subject_id(),
        at=utc_now(),
        detail=detail,
        connection_id=new_subject_id(),
        started_at=utc_now() if phase == END else None,
        workspace_id=1,
        session_id=2,
        user_id=3,
    )


class EventSinkContract:
    async def test_events_are_kept_in_order(self, kept: Kept) -> None:
        events = [make_event(START, text=f"n{number}") for number in range(30)]
        await kept.sink.record("gw", events[:10])
        await kept.sink.record("gw", events[10:])
        assert [name for name, _ in await kept.rows()] == [event.event_id for event in events]
        assert (await kept.rows())[7][1]["text"] == "n7"

    async def test_a_repeated_delivery_changes_nothing(self, kept: Kept) -> None:
        first, second = make_event(START, text="as it was"), make_event(START)
        await kept.sink.record("gw", [first])
        again = make_event(START, first.subject_id, text="another text")
        await kept.sink.record("gw", [again, second, second])
        await kept.sink.record("gw", [first, second])
        rows = await kept.rows()
        assert [name for name, _ in rows] == [first.event_id, second.event_id]
        assert rows[0][1]["text"] == "as it was"

    async def test_what_is_missing_ends_and_what_lives_goes_on(self, kept: Kept) -> None:
        gone, living, done = (make_event(START, kind=CONNECTION) for _ in range(3))
        await kept.sink.record("gw", [gone, living, done, make_event(END, done.subject_id, reason="as it was")])
        for _ in range(2):
            await kept.sink.end_missing("gw", frozenset({living.subject_id}), "gone")
        found = dict(await kept.rows())
        assert len(found) == 5
        assert found[f"{gone.subject_id}.end"]["reason"] == "gone"
        assert found[f"{done.subject_id}.end"]["reason"] == "as it was"
        # An end that comes late after all changes nothing: events are facts that stay.
        await kept.sink.record("gw", [make_event(END, gone.subject_id, reason="late")])
        await kept.sink.end_missing("gw", frozenset(), "gone too")
        found = dict(await kept.rows())
        assert found[f"{gone.subject_id}.end"]["reason"] == "gone"
        assert found[f"{living.subject_id}.end"]["reason"] == "gone too"
