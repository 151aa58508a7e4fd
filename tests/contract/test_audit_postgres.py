"""The audit chain on Postgres: the same findings (every way of tampering, on SQLite: tests/adversarial)."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.retention import RetentionPolicy
from runcode.controlplane.services.audit_statements import load_verifier
from runcode.controlplane.services.audit_verification import verify
from runcode.controlplane.services.events import NewEvent
from runcode.controlplane.store.location import PostgresUrl
from support.controlplane_fakes import START, ManualClock, open_plane
from support.postgres import Cluster, database_name

SMALL = RetentionPolicy(events_max=20, rows_per_step=5, pause_s=0)
MASKED = {"form": "exec", "text": "API_KEY=hunter2hunter2 ünïcode ☃ run"}


async def add(plane: ControlPlane, count: int) -> None:
    await plane.events.record(
        "gw", [NewEvent("command", "start", secrets.token_hex(16), START, MASKED, user_id=2**40) for _ in range(count)]
    )


async def find(folder: Path, url: PostgresUrl) -> set[str]:
    async with open_plane(folder, ManualClock(), database=url) as plane:
        report = await verify(
            plane.store, load_verifier(folder / "keys" / "audit_ed25519.pub"), folder / "audit" / "checkpoints.jsonl"
        )
        return {finding.code for finding in report.findings}


async def fill(folder: Path, url: PostgresUrl) -> None:
    async with open_plane(folder, ManualClock(), database=url, retention=SMALL) as plane:
        for _ in range(4):
            await add(plane, 10)
            await plane.checkpoints.checkpoint()


async def test_it_is_whole_also_after_pruning_and_with_two_servers_at_once(
    tmp_path: Path, postgres_url: PostgresUrl
) -> None:
    await fill(tmp_path, postgres_url)
    async with open_plane(tmp_path, ManualClock(), database=postgres_url, retention=SMALL) as one:
        async with open_plane(tmp_path, ManualClock(), database=postgres_url) as two:
            await asyncio.gather(*(add(plane, 3) for plane in (one, two) * 5))
        assert await one.retention.prune() == 50
    assert await find(tmp_path, postgres_url) == set()


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("UPDATE events SET user_id = 7 WHERE id = 17", "edited"),
        ("UPDATE events SET at = at + interval '1 microsecond' WHERE id = 17", "edited"),
        ("UPDATE events SET detail = '{}' WHERE id = 17", "edited"),
        ("UPDATE events SET detail = '{\"text\": 1.5}' WHERE id = 17", "edited"),
        ("DELETE FROM events WHERE id = 17", "missing"),
        ("DELETE FROM events WHERE id > 33", "truncated"),
        ("DELETE FROM events WHERE id < 5", "missing"),
        ("UPDATE audit_chain SET hash = repeat('0', 64)", "head_edited"),
        (
            "UPDATE audit_chain SET pruned_to = 15, pruned_hash = (SELECT hash FROM events WHERE id = 15);"
            " DELETE FROM events WHERE id <= 15",
            "pruned_without_statement",
        ),
    ],
)
async def test_a_change_is_found(
    tmp_path: Path, postgres: Cluster, postgres_url: PostgresUrl, statement: str, code: str
) -> None:
    await fill(tmp_path, postgres_url)
    with postgres.connect(database_name(postgres_url)) as connection:
        for part in statement.split(";"):
            connection.execute(part)  # type: ignore[call-overload]
    assert code in await find(tmp_path, postgres_url)
