"""The fake sink and the control plane behind the server's adapter keep one contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import select

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.store.location import Location
from runcode.controlplane.store.models import EventRow
from runcode.server.directory import InProcessEventSink
from support.controlplane_fakes import open_plane
from support.gateway_event_contract import EventSinkContract
from support.gateway_fakes import FakeSink


@dataclass
class _FakeKept:
    sink: FakeSink = field(default_factory=FakeSink)

    async def rows(self) -> list[tuple[str, dict[str, object]]]:
        return [(event.event_id, dict(event.detail)) for event in self.sink.rows.values()]


class _PlaneKept:
    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.sink = InProcessEventSink(plane)

    async def rows(self) -> list[tuple[str, dict[str, object]]]:
        async with self._plane.store.read() as session:
            rows = list(await session.scalars(select(EventRow).order_by(EventRow.id)))
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
