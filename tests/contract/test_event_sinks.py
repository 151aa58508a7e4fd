"""The fake sink and the control plane behind the server's adapter keep one contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import select

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services.audit import CONTROL_PLANE
from runcode.controlplane.store.location import Location
from runcode.controlplane.store.models import EventRow
from runcode.gateway.events import CONNECTION, START, EventSink
from runcode.server.directory import InProcessEventSink
from runcode.server.remote_directory import ControlPlaneClient, RemoteEventSink
from support.controlplane_fakes import open_plane
from support.front import open_door
from support.gateway_event_contract import EventSinkContract, make_event
from support.gateway_fakes import FakeSink


@dataclass
class _FakeKept:
    sink: FakeSink = field(default_factory=FakeSink)

    async def rows(self) -> list[tuple[str, dict[str, object]]]:
        return [(event.event_id, dict(event.detail)) for event in self.sink.rows.values()]


class _PlaneKept:
    def __init__(self, plane: ControlPlane, sink: EventSink | None = None) -> None:
        self._plane = plane
        self.sink = sink or InProcessEventSink(plane)

    async def rows(self) -> list[tuple[str, dict[str, object]]]:
        async with self._plane.store.read() as session:
            query = select(EventRow).where(EventRow.gateway != CONTROL_PLANE).order_by(EventRow.id)
            rows = list(await session.scalars(query))
        return [(f"{row.subject_id}.{row.phase}", dict(row.detail)) for row in rows]


class TestFakeSink(EventSinkContract):
    @pytest.fixture
    def kept(self) -> _FakeKept:
        return _FakeKept()


class TestControlPlane(EventSinkContract):
    @pytest.fixture
    async def kept(self, tmp_path: Path, location: Location) -> AsyncIterator[_PlaneKept]:
        async with open_plane(tmp_path, database=location) as plane:
            yield _PlaneKept(plane)


class TestRemote(EventSinkContract):
    """Over the internal API, through the real listener."""

    @pytest.fixture
    async def kept(self, tmp_path: Path, location: Location) -> AsyncIterator[_PlaneKept]:
        async with open_plane(tmp_path, database=location) as plane:
            made = await plane.gateways.create_gateway("edge-1")
            async with open_door(plane) as door:
                client = ControlPlaneClient(f"http://127.0.0.1:{door.port}", made.credential, worker=3)
                yield _PlaneKept(plane, RemoteEventSink(client))
                await client.close()

    async def test_the_name_is_the_credentials_and_the_workers(self, kept: _PlaneKept) -> None:
        await kept.sink.record("embedded", [make_event(START)])
        async with kept._plane.store.read() as session:
            rows = list(await session.scalars(select(EventRow).where(EventRow.kind == "command")))
        assert [row.gateway for row in rows] == ["edge-1.3"]

    async def test_large_batches_and_many_live_subjects_go_in_parts(self, kept: _PlaneKept) -> None:
        many = [make_event(START, kind=CONNECTION, text="x" * 600) for _ in range(250)]
        await kept.sink.record("", many)
        # More live ones than fit into one call, and one that is not among them.
        live = {event.subject_id for event in many[1:]} | {make_event(START).subject_id for _ in range(2200)}
        await kept.sink.end_missing("", live, "gone")
        ended = [name for name, _ in await kept.rows() if name.endswith(".end")]
        assert ended == [f"{many[0].subject_id}.end"]
