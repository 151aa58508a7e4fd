"""From an older schema forward: with a copy kept, whole or not at all, and never by anybody but the server."""

from __future__ import annotations

import json
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, MetaData, select, text

from runcode.controlplane.services.audit_statements import load_or_make_signer
from runcode.controlplane.services.audit_verification import verify
from runcode.controlplane.store import migrate, portable, postgres_database, sqlite_database, sqlite_file
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.location import Location
from runcode.controlplane.store.models import Base, EventRow, HostKeyRow, WorkspaceRow
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import UnixEndpoint
from support.controlplane_fakes import START, ManualClock, open_plane
from support.frozen_schemas import lay_postgres, lay_sqlite, list_frozen
from support.postgres import Cluster, database_name

# Frozen as the released versions left them: see `support.frozen_schemas`.
OLDER = list_frozen()
PEOPLE = [("ann@example.org",), ("bob@example.org",)]


def make_old(path: Path, revision: str) -> None:
    """A database of that revision, with people and workspaces in it."""
    lay_sqlite(path, revision)


def ask(path: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_every_released_schema_is_frozen() -> None:
    assert {"0001", "0002"} <= set(OLDER)
    assert set(OLDER) <= migrate.KNOWN_REVISIONS - {migrate.SCHEMA_HEAD}


def lay(revision: str, product: str, path: Path, request: pytest.FixtureRequest) -> Location:
    if product == "Postgres":
        return lay_postgres(request.getfixturevalue("postgres"), revision)
    lay_sqlite(path, revision)
    return path


@pytest.mark.parametrize("product", ["SQLite", "Postgres"])
@pytest.mark.parametrize("revision", OLDER)
async def test_what_a_released_version_left_is_all_there_after_the_upgrade(
    tmp_path: Path, revision: str, product: str, request: pytest.FixtureRequest
) -> None:
    location = lay(revision, product, tmp_path / "runcode.db", request)
    async with open_plane(tmp_path, database=location, clock=ManualClock()) as plane:
        people = await plane.users.list_users()
        assert [(user.id, user.email, user.is_admin, user.disabled_at) for user in people] == [
            (1, "ann@example.org", True, None),
            (7, "bob@example.org", False, START),
        ]
        assert [token.name for token in await plane.tokens.list_tokens()] == ["laptop", "ünï ''quoted''"]
        (workspace,) = await plane.workspaces.list_all()
        assert (workspace.id, workspace.title, workspace.state) == (9, "same-title", "running")
        assert workspace.endpoint == UnixEndpoint("/run/x.sock")
        (share,) = await plane.workspaces.list_shares(9)
        assert (share.user_email, share.role) == ("bob@example.org", "manage")
        assert [found.id for found in await plane.sessions.list_sessions(include_ended=True)] == [20, 21]
        async with plane.store.read() as session:
            key = await session.get(HostKeyRow, 9)
            assert key is not None
            assert key.private_key == "-----BEGIN\nKEY-----\n"
            checkpoints = await session.scalar(select(WorkspaceRow.checkpoints).where(WorkspaceRow.id == 9))
            assert checkpoints == [{"step": "keeper", "record": {"pid": 4711}}]
            events = list(await session.scalars(select(EventRow.detail)))
            assert events == ([] if revision == "0001" else [{"text": "echo ü"}])
        # What is made next has an id of its own, also where the last row was the highest.
        made = await plane.workspaces.create_workspace("next", "ann@example.org")
        assert made.id == 10
        assert (await plane.users.create_user("carl@example.org")).id == 8


@pytest.mark.parametrize("product", ["SQLite", "Postgres"])
@pytest.mark.parametrize("revision", OLDER)
async def test_an_upgraded_schema_is_the_one_that_a_new_database_has(
    tmp_path: Path, revision: str, product: str, request: pytest.FixtureRequest
) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    store = await Store.open(lay(revision, product, tmp_path / "runcode.db", request))
    engine = store.make_engine()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        if product == "SQLite":
            # A table that was made anew on the way must not forget that its ids are never given out twice.
            made = dict(connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'table'")).all())
            for table in Base.metadata.sorted_tables:
                wanted = table.dialect_options["sqlite"]["autoincrement"]
                assert ("AUTOINCREMENT" in made[table.name]) == wanted, table.name
    engine.dispose()
    await store.close()


async def test_a_migration_that_fails_on_postgres_leaves_the_old_schema(
    postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = lay_postgres(postgres, OLDER[0])
    upgrade = migrate.upgrade

    def fail_after_the_work(connection: Connection, revision: str = "head") -> None:
        upgrade(connection, revision)
        connection.execute(text("DELETE FROM changes"))
        connection.execute(text("INSERT INTO no_such_table VALUES (1)"))

    monkeypatch.setattr(migrate, "upgrade", fail_after_the_work)
    with pytest.raises(RunCodeError):
        await Store.open(url)
    with postgres.connect(database_name(url)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(OLDER[0],)]
        assert connection.execute("SELECT count(*) FROM changes").fetchall() == [(1,)]
    monkeypatch.undo()
    await (await Store.open(url)).close()


@pytest.mark.parametrize("product", ["SQLite", "Postgres"])
@pytest.mark.parametrize("revision", OLDER)
async def test_a_backup_of_a_released_schema_is_restored_and_comes_forward(
    tmp_path: Path, revision: str, product: str, request: pytest.FixtureRequest
) -> None:
    """Rows as that version would have told them, put back by this one, on either product."""
    lay_sqlite(tmp_path / "old.db", revision)
    old = sqlite_database.make_sync_engine(tmp_path / "old.db")
    tables = {}
    with old.connect() as connection:
        known = MetaData()
        known.reflect(connection)
        for table in known.sorted_tables:
            if table.name != "alembic_version":
                rows = [[portable._plain(value) for value in row] for row in connection.execute(table.select())]
                names = [column.name for column in table.columns]
                tables[table.name] = [json.dumps(line, default=str).encode() for line in (names, *rows)]

    def fill(connection: Connection) -> None:
        portable.load(connection, revision, tables, {"workspaces": 30})

    location: Location = tmp_path / "new.db"
    if product == "Postgres":
        location = request.getfixturevalue("postgres").make_database(empty=True)
        postgres_database.make_in(location, fill)  # type: ignore[arg-type]
    else:
        sqlite_database.make_at(tmp_path / "new.db", fill)
    async with open_plane(tmp_path, database=location, clock=ManualClock()) as plane:
        assert [user.email for user in await plane.users.list_users()] == ["ann@example.org", "bob@example.org"]
        made = await plane.workspaces.create_workspace("next", "ann@example.org")
        assert made.id == 30 + 1000 + 1


@pytest.mark.parametrize("revision", OLDER)
async def test_every_older_schema_comes_forward_and_a_copy_of_it_stays(tmp_path: Path, revision: str) -> None:
    path = tmp_path / "runcode.db"
    make_old(path, revision)
    await (await Store.open(path, verify=True)).close()
    assert ask(path, "SELECT version_num FROM alembic_version") == [(migrate.SCHEMA_HEAD,)]
    assert ask(path, "SELECT email FROM users") == PEOPLE
    copy = tmp_path / f"runcode.db.schema-{revision}"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert ask(copy, "SELECT version_num FROM alembic_version") == [(revision,)]
    assert ask(copy, "SELECT email FROM users") == PEOPLE
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
    assert ask(path, "SELECT email FROM users") == PEOPLE
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


async def test_events_of_before_are_chained_in_their_order_and_their_secrets_masked(tmp_path: Path) -> None:
    path = tmp_path / "runcode.db"
    make_old(path, "0002")
    # Retention had removed the first, and a hole is no fault of before.
    add_events(path, range(101, 1300))
    add_events(path, range(1350, 1400))
    ((before,),) = ask(path, "SELECT count(*) FROM events")
    async with open_plane(tmp_path, ManualClock()) as plane:
        ended = await plane.events.end_missing("embedded", (), "the server ended")
        signer = load_or_make_signer(plane.settings.audit_key)
        report = await verify(plane.store, signer, None)
    assert report.findings == []
    assert (report.first, report.last) == (1, before + ended)
    assert ended >= 1249
    assert "hunter2" not in str(ask(path, "SELECT detail FROM events"))
    kept = ask(path, f"SELECT subject_id FROM events WHERE id <= {before} ORDER BY id")
    assert [int(subject, 16) for (subject,) in kept][-1249:] == [*range(101, 1300), *range(1350, 1400)]
    assert ask(path, f"SELECT detail FROM events WHERE id = {before}")[0][0] == (
        '{"form": "exec", "text": "PGPASSWORD=[masked] psql", "masked": 1}'
    )
