"""A guesser's refusals must neither fill the records nor push others out of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services import audit
from runcode.controlplane.services.refusals import NOTED, Refusals
from runcode.controlplane.store.models import EventRow
from support.controlplane_fakes import Monotonic, open_plane


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path) as opened:
        yield opened


async def details_of(plane: ControlPlane) -> list[dict[str, object]]:
    async with plane.store.read() as session:
        query = select(EventRow.detail).where(EventRow.kind == audit.SIGN_IN_REFUSED).order_by(EventRow.id)
        return list(await session.scalars(query))


async def test_a_flood_is_counted_and_the_next_record_says_how_many(plane: ControlPlane) -> None:
    monotonic = Monotonic()
    refusals = Refusals(plane.store, plane.clock, monotonic=monotonic)
    for number in range(NOTED.burst + 25):
        await refusals.note({"by": f"guess-{number}@example.org", "source": "203.0.113.9"})
    found = await details_of(plane)
    assert len(found) == NOTED.burst
    assert not any("unnoted" in detail for detail in found)
    monotonic.now += NOTED.every_s + 1
    for _ in range(2):
        await refusals.note({"by": "later@example.org"})
    found = await details_of(plane)
    assert len(found) == NOTED.burst + 1
    assert found[-1] == {**found[-1], "by": "later@example.org", "unnoted": 25}


async def test_the_person_whose_account_was_tried_is_named(plane: ControlPlane) -> None:
    user = await plane.users.create_user("ann@example.org")
    refusals = Refusals(plane.store, plane.clock, monotonic=Monotonic())
    await refusals.note({"by": "ann@example.org"}, account="ann@example.org")
    await refusals.note({"by": "bob@example.org"}, account="bob@example.org")
    async with plane.store.read() as session:
        query = select(EventRow.user_id).where(EventRow.kind == audit.SIGN_IN_REFUSED).order_by(EventRow.id)
        assert list(await session.scalars(query)) == [user.id, None]
