"""Whoever writes the database changes the past: each way of it is found, and says where.

Every test works on a real database with the server's own code, then with plain SQL as an intruder would.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import secrets
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from runcode.controlplane.audit_format import COLUMNS, hash_record
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.retention import RetentionPolicy
from runcode.controlplane.services import audit as acts
from runcode.controlplane.services import audit_chain
from runcode.controlplane.services.audit_statements import load_or_make_signer, load_verifier, parse_line
from runcode.controlplane.services.audit_verification import Report, verify
from runcode.controlplane.services.events import NewEvent
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import EventRow
from runcode.core.errors import RunCodeError
from support.controlplane_fakes import START, ManualClock, open_plane

SMALL = RetentionPolicy(events_max=20, rows_per_step=5, pause_s=0)


class Audit:
    """A server's folder with 40 records, checkpoints after 10, 20, 30 and 40."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "runcode.db"
        self.checkpoints = folder / "audit" / "checkpoints.jsonl"
        self.key = folder / "keys" / "audit_ed25519.pub"

    async def add(self, plane: ControlPlane, count: int) -> None:
        events = [
            NewEvent("command", "start", secrets.token_hex(16), START, {"form": "exec", "text": f"echo {n}"})
            for n in range(count)
        ]
        await plane.events.record("gw", events)

    async def fill(self) -> None:
        async with open_plane(self.folder, ManualClock(), retention=SMALL) as plane:
            for _ in range(4):
                await self.add(plane, 10)
                await plane.checkpoints.checkpoint()

    async def verify(self) -> Report:
        async with open_plane(self.folder, ManualClock()) as plane:
            return await verify(plane.store, load_verifier(self.key), self.checkpoints)

    async def find(self) -> set[str]:
        return {finding.code for finding in (await self.verify()).findings}

    def run(self, *statements: str) -> None:
        connection = sqlite3.connect(self.database)
        with connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    def rechain(self, start: int) -> None:
        """What an intruder who knows the format does after a change: compute all hashes anew, the head's too."""
        connection = sqlite3.connect(self.database)
        connection.row_factory = sqlite3.Row
        last = connection.execute("SELECT hash FROM events WHERE id < ? ORDER BY id DESC", (start,)).fetchone()["hash"]
        number = 0
        with connection:
            for row in connection.execute("SELECT * FROM events WHERE id >= ? ORDER BY id", (start,)).fetchall():
                values = {name: row[name] for name in COLUMNS}
                for name in ("at", "recorded_at", "started_at"):
                    if values[name] is not None:
                        moment = datetime.datetime.fromisoformat(values[name])
                        values[name] = moment.replace(tzinfo=datetime.timezone.utc)
                values["detail"] = json.loads(values["detail"])
                last, number = hash_record(last, values), row["id"]
                connection.execute("UPDATE events SET hash = ? WHERE id = ?", (last, number))
            connection.execute("UPDATE audit_chain SET count = ?, hash = ?", (number, last))
        connection.close()


@pytest.fixture
async def audit(tmp_path: Path) -> Audit:
    made = Audit(tmp_path)
    await made.fill()
    return made


async def test_what_nobody_touched_is_whole(audit: Audit) -> None:
    report = await audit.verify()
    assert report.findings == []
    assert (report.first, report.last, report.records, report.checkpoints, report.anchored) == (1, 40, 40, 4, 40)


async def test_what_a_running_server_adds_and_signs_meanwhile_is_no_fault(audit: Audit) -> None:
    async with open_plane(audit.folder, ManualClock()) as plane:

        class BusyStore:
            """The snapshot is taken; then the server goes on."""

            @contextlib.asynccontextmanager
            async def read(self) -> AsyncIterator[AsyncSession]:
                async with plane.store.read() as session:
                    assert (await audit_chain.load_head(session)).count == 40
                    await audit.add(plane, 10)
                    assert await plane.checkpoints.checkpoint()
                    yield session

        report = await verify(cast(Store, BusyStore()), load_verifier(audit.key), audit.checkpoints)
    assert report.findings == []
    assert (report.last, report.checkpoints) == (40, 4)
    assert (await audit.verify()).checkpoints == 5


CHANGES = {
    "gateway": "'gx'",
    "subject_id": "lower(hex(randomblob(16)))",
    "phase": "'note'",
    "kind": "'forward'",
    "at": "'2026-11-23 22:00:00.000001'",
    "recorded_at": "'2026-11-23 21:59:59.999999'",
    "started_at": "'2026-11-23 22:00:00.000000'",
    "connection_id": "lower(hex(randomblob(16)))",
    "workspace_id": "7",
    "session_id": "7",
    "user_id": "7",
    "detail": """'{"form": "exec", "text": "echo harmless"}'""",
    "hash": "lower(hex(randomblob(32)))",
}


def test_every_column_is_tried() -> None:
    assert {*CHANGES, "id"} == {*COLUMNS, "hash"}


@pytest.mark.parametrize("column", CHANGES)
@pytest.mark.parametrize("number", [1, 17, 40])
async def test_an_edit_of_any_column_is_found_with_its_record(audit: Audit, column: str, number: int) -> None:
    audit.run(f"UPDATE events SET {column} = {CHANGES[column]} WHERE id = {number}")
    report = await audit.verify()
    assert not report.ok
    assert any(finding.code in ("edited", "head_edited", "history_rewritten") for finding in report.findings)
    assert report.findings[0].record in (number, number + 1)


async def test_an_edit_with_all_hashes_computed_anew_is_found_by_the_checkpoints(audit: Audit) -> None:
    audit.run("UPDATE events SET user_id = 7 WHERE id = 17")
    audit.rechain(17)
    report = await audit.verify()
    assert {(f.code, f.record) for f in report.findings} == {("history_rewritten", n) for n in (20, 30, 40)}


async def test_records_that_changed_places_are_found(audit: Audit) -> None:
    audit.run(
        "UPDATE events SET id = 1000 WHERE id = 5",
        "UPDATE events SET id = 5 WHERE id = 6",
        "UPDATE events SET id = 6 WHERE id = 1000",
    )
    assert "edited" in await audit.find()


@pytest.mark.parametrize("number", [1, 2, 17, 39])
async def test_a_record_that_was_removed_is_found(audit: Audit, number: int) -> None:
    audit.run(f"DELETE FROM events WHERE id = {number}")
    report = await audit.verify()
    assert ("missing", number) in {(f.code, f.record) for f in report.findings}


async def test_one_that_was_removed_with_the_rest_moved_up_and_chained_anew_is_found(audit: Audit) -> None:
    audit.run("DELETE FROM events WHERE id = 17", "UPDATE events SET id = id - 1 WHERE id > 17")
    audit.rechain(17)
    assert await audit.find() == {"history_rewritten", "truncated"}


async def test_a_record_that_was_put_in_is_found(audit: Audit) -> None:
    audit.run(
        "CREATE TABLE other AS SELECT * FROM events",
        "DROP TABLE events",
        "ALTER TABLE other RENAME TO events",
        "INSERT INTO events SELECT * FROM events WHERE id = 17",
    )
    assert "inserted" in await audit.find()


@pytest.mark.parametrize("left", [39, 31, 1])
async def test_a_tail_that_was_cut_off_is_found(audit: Audit, left: int) -> None:
    audit.run(f"DELETE FROM events WHERE id > {left}")
    assert "truncated" in await audit.find()
    audit.run(f"UPDATE audit_chain SET count = {left}, hash = (SELECT hash FROM events WHERE id = {left})")
    assert await audit.find() == {"truncated"}


async def test_everything_gone_is_found(audit: Audit) -> None:
    audit.run("DELETE FROM events")
    assert "truncated" in await audit.find()


async def test_records_put_behind_the_head_are_found(audit: Audit) -> None:
    columns = ", ".join(name for name in (*COLUMNS, "hash") if name not in ("id", "subject_id"))
    audit.run(
        f"INSERT INTO events (id, subject_id, {columns})"
        f" SELECT 41, lower(hex(randomblob(16))), {columns} FROM events WHERE id = 40"
    )
    assert "truncated" in await audit.find()


async def test_an_older_copy_in_the_databases_place_is_found_and_gets_no_checkpoint(
    audit: Audit, tmp_path: Path
) -> None:
    audit.run("PRAGMA wal_checkpoint(TRUNCATE)")
    copy = tmp_path / "copy"
    shutil.copy(audit.database, copy)
    async with open_plane(audit.folder, ManualClock()) as plane:
        await audit.add(plane, 5)
        await plane.checkpoints.checkpoint()
    audit.run("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(copy, audit.database)
    assert await audit.find() == {"truncated"}
    before = audit.checkpoints.read_bytes()
    async with open_plane(audit.folder, ManualClock()) as plane:
        plane.checkpoints.start()
        await plane.checkpoints.close()
        assert plane.checkpoints.trouble is not None
        assert "stands behind its last checkpoint" in plane.checkpoints.trouble
        # Also when as many other things have happened since.
        await audit.add(plane, 5)
        plane.checkpoints.start()
        await plane.checkpoints.close()
        assert plane.checkpoints.trouble is not None
    assert audit.checkpoints.read_bytes() == before


class TestPruning:
    async def test_what_retention_removes_leaves_the_rest_whole(self, audit: Audit) -> None:
        async with open_plane(audit.folder, ManualClock(), retention=SMALL) as plane:
            assert await plane.retention.prune() == 20
            await audit.add(plane, 3)
        report = await audit.verify()
        assert report.findings == []
        assert (report.pruned, report.first, report.last, report.checkpoints) == (20, 21, 43, 4)

    async def test_without_a_statement_it_is_found(self, audit: Audit) -> None:
        audit.run(
            "UPDATE audit_chain SET pruned_to = 15, pruned_hash = (SELECT hash FROM events WHERE id = 15)",
            "DELETE FROM events WHERE id <= 15",
        )
        assert await audit.find() == {"pruned_without_statement"}

    async def test_further_than_was_signed_it_is_found(self, audit: Audit) -> None:
        async with open_plane(audit.folder, ManualClock(), retention=SMALL) as plane:
            await plane.retention.prune()
        audit.run(
            "UPDATE audit_chain SET pruned_to = 25, pruned_hash = (SELECT hash FROM events WHERE id = 25)",
            "DELETE FROM events WHERE id <= 25",
        )
        assert await audit.find() == {"pruned_without_statement"}

    async def test_a_checkpoint_is_no_statement_of_pruning(self, audit: Audit) -> None:
        line = audit.checkpoints.read_text().splitlines()[0]
        audit.run(
            "UPDATE audit_chain SET pruned_to = 10, pruned_hash = (SELECT hash FROM events WHERE id = 10),"
            f" pruned_statement = '{line}'",
            "DELETE FROM events WHERE id <= 10",
        )
        assert await audit.find() == {"pruned_without_statement"}


class TestCheckpoints:
    def change(self, audit: Audit, change: Callable[[list[bytes]], list[bytes]]) -> None:
        lines = audit.checkpoints.read_bytes().splitlines(keepends=True)
        audit.checkpoints.write_bytes(b"".join(change(lines)))

    @pytest.mark.parametrize(
        "change",
        [
            lambda lines: lines[1:],
            lambda lines: [lines[0], *lines[2:]],
            lambda lines: [lines[0], lines[2], lines[1], lines[3]],
            lambda lines: [lines[0], b"junk\n", *lines[2:]],
            lambda lines: [lines[0], lines[0], *lines[1:]],
        ],
    )
    async def test_lines_left_out_moved_or_replaced_are_found(
        self, audit: Audit, change: Callable[[list[bytes]], list[bytes]]
    ) -> None:
        self.change(audit, change)
        assert "checkpoints_edited" in await audit.find()

    @pytest.mark.parametrize("field", ["count", "hash", "at", "chain", "kind", "previous", "key", "signature"])
    async def test_any_change_of_a_statement_is_found(self, audit: Audit, field: str) -> None:
        raw = json.loads(audit.checkpoints.read_bytes().splitlines()[-1])
        raw[field] = {
            "count": 39, "hash": "0" * 64, "at": "2026-11-23T22:00:01Z", "chain": "0" * 32, "kind": "pruned",
            "previous": "0" * 64, "key": "0" * 16, "signature": "AAAA",
        }[field]  # fmt: skip
        line = json.dumps(raw, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        self.change(audit, lambda lines: [*lines[:-1], line])
        assert "checkpoint_forged" in await audit.find()

    async def test_another_servers_key_vouches_for_nothing(self, audit: Audit, tmp_path: Path) -> None:
        audit.run("UPDATE events SET user_id = 7 WHERE id = 17")
        audit.rechain(17)
        other = load_or_make_signer(tmp_path / "other")
        lines = []
        for line in audit.checkpoints.read_bytes().splitlines():
            statement = parse_line(line)
            assert statement is not None
            lines.append(other.sign(statement).render_line())
        audit.checkpoints.write_bytes(b"".join(lines))
        assert "checkpoint_forged" in await audit.find()

    async def test_of_another_database_they_are_refused(self, audit: Audit, tmp_path: Path) -> None:
        other = Audit(tmp_path / "other")
        other.folder.mkdir()
        shutil.copytree(audit.folder / "keys", other.folder / "keys")
        async with open_plane(other.folder, ManualClock()) as plane:
            async with plane.store.write() as session:
                await session.execute(text("UPDATE audit_chain SET chain_id = '" + "ab" * 16 + "'"))
            await other.add(plane, 3)
            await plane.checkpoints.checkpoint()
        async with open_plane(audit.folder, ManualClock()) as plane:
            report = await verify(plane.store, load_verifier(audit.key), other.checkpoints)
        assert {finding.code for finding in report.findings} == {"checkpoint_foreign"}

    async def test_a_line_that_a_crash_cut_short_is_ended_and_harms_nothing(self, audit: Audit) -> None:
        lines = audit.checkpoints.read_bytes()
        audit.checkpoints.write_bytes(lines + lines.splitlines()[-1][:50])
        async with open_plane(audit.folder, ManualClock()) as plane:
            await audit.add(plane, 3)
            assert await plane.checkpoints.checkpoint()
        report = await audit.verify()
        assert report.findings == []
        assert (report.checkpoints, report.anchored) == (5, 43)

    async def test_a_folder_that_cannot_be_written_stops_nobody(self, audit: Audit) -> None:
        audit.checkpoints.unlink()
        audit.checkpoints.mkdir()
        async with open_plane(audit.folder, ManualClock()) as plane:
            plane.checkpoints.start()
            await audit.add(plane, 3)
            await plane.checkpoints.close()
            assert plane.checkpoints.trouble is not None
            audit.checkpoints.rmdir()
            plane.checkpoints.start()
            await plane.checkpoints.close()
            assert plane.checkpoints.trouble is None


class TestChain:
    async def test_what_is_rolled_back_leaves_no_hole(self, audit: Audit) -> None:
        async def fail(plane: ControlPlane) -> None:
            async with plane.store.write() as session:
                await acts.note(session, acts.SIGNED_IN, START)
                raise ZeroDivisionError

        async def fail_inside(session: AsyncSession) -> None:
            async with session.begin_nested():
                await acts.note(session, acts.SIGNED_IN, START, detail={"n": 2})
                async with session.begin_nested():
                    await acts.note(session, acts.SIGNED_IN, START, detail={"n": 3})
                raise ZeroDivisionError

        async with open_plane(audit.folder, ManualClock()) as plane:
            with pytest.raises(ZeroDivisionError):
                await fail(plane)
            async with plane.store.write() as session:
                await acts.note(session, acts.SIGNED_IN, START, detail={"n": 1})
                with pytest.raises(ZeroDivisionError):
                    await fail_inside(session)
                async with session.begin_nested():
                    await acts.note(session, acts.SIGNED_IN, START, detail={"n": 4})
            async with plane.store.read() as session:
                head = await audit_chain.load_head(session)
                kept = list(await session.scalars(select(EventRow.detail).where(EventRow.id > 40)))
            assert head.count == 42
            assert [detail["n"] for detail in kept] == [1, 4]
        assert (await audit.verify()).findings == []

    async def test_without_its_head_nothing_is_done(self, audit: Audit) -> None:
        audit.run("DELETE FROM audit_chain")
        async with open_plane(audit.folder, ManualClock()) as plane:
            with pytest.raises(RunCodeError) as caught:
                await audit.add(plane, 1)
            assert caught.value.code == "io_error"
