"""kill -9 on processes that share a database, and on the database: a few rounds (many: `make store-chaos`)."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator

import pytest

from support.store_kills import Campaign

SEED = 11
ROUNDS = {
    "SQLite": ("server", "load", "everything"),
    "Postgres": ("server", "load", "database", "everything", "database and servers"),
}


@pytest.fixture(params=ROUNDS)
async def campaign(request: pytest.FixtureRequest) -> AsyncIterator[Campaign]:
    made = Campaign(SEED, postgres=request.param == "Postgres")
    try:
        yield await made.open()
    finally:
        version = sqlite3.sqlite_version if made.cluster is None else made.cluster.version
        request.node.user_properties.append(("store", f"{request.param} {version}"))
        made.close()
    assert not made.folder.exists()


async def test_nothing_answered_is_lost_nothing_is_there_twice_and_all_is_reconciled(campaign: Campaign) -> None:
    for number, victim in enumerate(ROUNDS["SQLite" if campaign.cluster is None else "Postgres"], start=1):
        outcome = await campaign.play(number, victim)
        assert outcome.faults == [], victim
    for kind in ("mint", "create", "event"):
        assert campaign.counts[kind] > 0, f"the control: {kind} happened"
    # Rarer: a busy machine may not come to both in so few rounds.
    assert campaign.counts["revoke"] + campaign.counts["delete"] > 0
