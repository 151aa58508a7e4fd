"""From an older schema forward: with a copy kept, whole or not at all, and never by anybody but the server."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, text

from runcode.controlplane.services.audit_statements import load_or_make_signer
from runcode.controlplane.services.audit_verification import verify
from runcode.controlplane.store import migrate, sqlite_file
from runcode.controlplane.store.engine import Store
from runcode.core.errors import RunCodeError
from support.controlplane_fakes import ManualClock, open_plane

OLDER = sorted(migrate.KNOWN_REVISIONS - {migrate.SCHEMA_HEAD})


def make_old(path: Path, revision: str) -> None:
    """A database of that revision, with a person in it."""

    def fill(draft: Path) -> None:
        engine = create_engine(f"sqlite:///{draft}")
        with engine.begin() as connection:
            migrate.upgrade(connection, revision)
            connection.execute(
                text("INSERT INTO users (email, is_admin, created_at) VALUES ('ann@example.org', 1, '2026-11-23')")
            )
        engine.dispose()

    sqlite_file.create(path, fill)


def ask(path: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_there_is_something_to_upgrade_from() -> None:
    assert OLDER


@pytest.mark.parametrize("revision", OLDER)
async def test_every_older_schema_comes_forward_and_a_copy_of_it_stays(tmp_path: Path, revision: str) -> None:
    path = tmp_path / "runcode.db"
    make_old(path, revision)
    await (await Store.open(path, verify=True)).close()
    assert ask(path, "SELECT version_num FROM alembic_version") == [(migrate.SCHEMA_HEAD,)]
    assert ask(path, "SELECT email FROM users") == [("ann@example.org",)]
    copy = tmp_path / f"runcode.db.schema-{revision}"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert ask(copy, "SELECT version_num FROM alembic_version") == [(revision,)]
    assert ask(copy, "SELECT email FROM users") == [("ann@example.org",)]
    assert ask(copy, "PRAGMA application_id") == [(sqlite_file.APPLICATION_ID,)]
    # What is at its head is not copied at every start.
    copy.unlink()
    await (await Store.open(path)).close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["runcode.db"]


async def test_a_migration_that_fails_half_way_leaves_the_old_database_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runcode.db"
    make_old(path, OLDER[0])
    schema = ask(path, "SELECT name, sql FROM sqlite_master ORDER BY name")
    upgrade = migrate.upgrade

    def fail_after_the_work(connection: Connection, revision: str = "head") -> None:
        upgrade(connection, revision)
        connection.execute(text("DELETE FROM users"))
        connection.execute(text("INSERT INTO no_such_table VALUES (1)"))

    monkeypatch.setattr(migrate, "upgrade", fail_after_the_work)
    with pytest.raises(RunCodeError):
        await Store.open(path)
    assert ask(path, "SELECT name, sql FROM sqlite_master ORDER BY name") == schema
    assert ask(path, "SELECT version_num FROM alembic_version") == [(OLDER[0],)]
    assert ask(path, "SELECT email FROM users") == [("ann@example.org",)]
    monkeypatch.undo()
    await (await Store.open(path)).close()
    assert ask(path, "SELECT version_num FROM alembic_version") == [(migrate.SCHEMA_HEAD,)]


async def test_without_room_for_the_copy_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runcode.db"
    make_old(path, OLDER[0])

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sqlite_file.os, "replace", fail)
    with pytest.raises(RunCodeError) as caught:
        await Store.open(path)
    assert "no space left" in caught.value.message
    assert ask(path, "SELECT version_num FROM alembic_version") == [(OLDER[0],)]
    assert sorted(entry.name for entry in tmp_path.iterdir() if "schema" in entry.name) == []


async def test_a_verb_of_a_newer_version_does_not_change_the_schema_under_a_running_server(tmp_path: Path) -> None:
    path = tmp_path / "runcode.db"
    make_old(path, OLDER[0])
    before = path.read_bytes()
    with pytest.raises(RunCodeError) as caught:
        await Store.open(path, upgrade=False)
    assert caught.value.code == "io_error"
    assert "older RunCode" in caught.value.message
    assert "start (or restart) the server" in caught.value.resolution
    assert path.read_bytes() == before


def add_events(path: Path, ids: range) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.executemany(
            "INSERT INTO events (id, gateway, subject_id, phase, kind, at, recorded_at, session_id, detail)"
            " VALUES (?, 'embedded', ?, 'start', 'command', ?, ?, 4, ?)",
            [
                (
                    number,
                    f"{number:032x}",
                    f"2026-11-23 22:00:00.{number:06d}",
                    "2026-11-23 22:00:01.000000",
                    '{"form": "exec", "text": "PGPASSWORD=hunter2 psql", "text_sha256": "ab"}',
                )
                for number in ids
            ],
        )
    connection.close()


@pytest.mark.parametrize("revision", ["0002", "0003"])
async def test_events_of_before_are_chained_in_their_order_and_their_secrets_masked(
    tmp_path: Path, revision: str
) -> None:
    path = tmp_path / "runcode.db"
    make_old(path, revision)
    # Retention had removed the first, and a hole is no fault of before.
    add_events(path, range(101, 1300))
    add_events(path, range(1350, 1400))
    async with open_plane(tmp_path, ManualClock()) as plane:
        await plane.events.end_missing("embedded", (), "the server ended")
        signer = load_or_make_signer(plane.settings.audit_key)
        report = await verify(plane.store, signer, None)
    assert report.findings == []
    assert (report.first, report.last) == (1, 2 * 1249)
    assert "hunter2" not in str(ask(path, "SELECT detail FROM events"))
    kept = ask(path, "SELECT subject_id FROM events WHERE id <= 1249 ORDER BY id")
    assert [int(subject, 16) for (subject,) in kept] == [*range(101, 1300), *range(1350, 1400)]
    assert ask(path, "SELECT detail FROM events WHERE id = 1")[0][0] == (
        '{"form": "exec", "text": "PGPASSWORD=[masked] psql", "masked": 1}'
    )
