"""The store's contract: made whole, refused whole, safe for several processes, migrated from every release."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from sqlalchemy import CheckConstraint, Connection, func, inspect, select, text
from sqlalchemy.orm import Session

from runcode.controlplane import changes
from runcode.controlplane.store import migrate
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.location import Location, PostgresUrl
from runcode.controlplane.store.models import Base, ChangeRow
from runcode.core.errors import RunCodeError
from support.controlplane_fakes import START

_REFUSAL = "import asyncio, sys\nfrom pathlib import Path\nfrom runcode.controlplane.store.engine import Store\n"


async def count_changes(store: Store) -> int:
    async with store.read() as session:
        return await session.scalar(select(func.count(ChangeRow.id))) or 0


async def append(store: Store) -> None:
    async with store.write() as session:
        changes.append_change(session, changes.CREATED, START, workspace_id=1)


async def refusal(path: Path, **options: bool) -> RunCodeError:
    with pytest.raises(RunCodeError) as caught:
        await Store.open(path, **options)
    assert "\n" not in caught.value.message
    assert caught.value.resolution
    return caught.value


def run_python(script: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, **options
    )


async def test_a_new_database_is_private_complete_and_alone_in_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "deep er" / "run%20code?#.db"
    store = await Store.open(path)
    await store.close()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = path.read_bytes()
    await (await Store.open(path, verify=True)).close()
    assert path.read_bytes() == before


async def test_a_transaction_in_one_piece_is_whole_or_not_there(location: Location) -> None:
    store = await Store.open(location)

    def add(session: Session) -> int:
        session.add(ChangeRow(at=START, kind=changes.CREATED, workspace_id=1))
        session.flush()
        return session.scalar(select(func.count(ChangeRow.id))) or 0

    def fail(session: Session) -> None:
        add(session)
        raise RunCodeError("conflict", "no")

    assert [await store.write_whole(add) for _ in range(2)] == [1, 2]
    with pytest.raises(RunCodeError, match="no"):
        await store.write_whole(fail)
    assert await asyncio.gather(*(store.write_whole(add) for _ in range(4)), append(store)) == [3, 4, 5, 6, None]
    # Whoever is cancelled meanwhile leaves nothing half done, and no lock behind.
    leaving = asyncio.ensure_future(store.write_whole(add))
    for _ in range(3):
        await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await count_changes(store) == 8
    await append(store)
    await store.close()


async def test_the_models_are_what_the_migrations_make(location: Location) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    store = await Store.open(location)
    engine = store.make_engine()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        # Autogenerate does not look at partial indexes' conditions, nor at checks.
        for name in ("uq_workspaces_live_title", "uq_sessions_held_key"):
            assert "IS NULL" in _index_sql(connection, name)
        for table in Base.metadata.sorted_tables:
            ours = {check.name for check in table.constraints if isinstance(check, CheckConstraint)}
            theirs = {found["name"] for found in inspect(connection).get_check_constraints(table.name)}
            assert ours == theirs, table.name
    engine.dispose()
    await store.close()
    scripts = ScriptDirectory(str(migrate.MIGRATIONS_FOLDER))
    assert scripts.get_current_head() == migrate.SCHEMA_HEAD
    assert {script.revision for script in scripts.walk_revisions()} == migrate.KNOWN_REVISIONS


def _index_sql(connection: Connection, name: str) -> str:
    sql = {
        "sqlite": "SELECT sql FROM sqlite_master WHERE name = :name",
        "postgresql": "SELECT indexdef FROM pg_indexes WHERE indexname = :name",
    }[connection.dialect.name]
    return str(connection.execute(text(sql), {"name": name}).scalar_one())


async def test_a_transaction_is_whole_or_nothing(location: Location) -> None:
    store = await Store.open(location)

    async def crash() -> None:
        async with store.write() as session:
            changes.append_change(session, changes.CREATED, START)
            await session.flush()
            raise KeyError

    with pytest.raises(KeyError):
        await crash()
    assert await count_changes(store) == 0
    await store.close()


async def test_what_a_rule_read_is_still_true_when_it_writes(location: Location) -> None:
    # Read, then write, in many tasks over two stores: without the lock taken first, updates would be lost or refused.
    first, second = await Store.open(location), await Store.open(location)

    async def add_one(store: Store) -> None:
        async with store.write() as session:
            seen = await session.scalar(select(func.count(ChangeRow.id)))
            await asyncio.sleep(0)
            changes.append_change(session, f"n{seen}", START)

    await asyncio.gather(*(add_one(store) for store in (first, second) for _ in range(20)))
    async with first.read() as session:
        kinds = list(await session.scalars(select(ChangeRow.kind).order_by(ChangeRow.id)))
    assert kinds == [f"n{i}" for i in range(40)]
    await first.close()
    await second.close()


@pytest.mark.parametrize("product", ["SQLite", "Postgres"])
async def test_processes_make_and_write_one_database_at_once(
    tmp_path: Path, product: str, request: pytest.FixtureRequest
) -> None:
    script = """
        import asyncio, sys
        from pathlib import Path
        from runcode.controlplane import changes
        from runcode.controlplane.clock import SystemClock
        from runcode.controlplane.store.engine import Store
        from runcode.controlplane.store.location import parse_database_url
        async def main():
            store = await Store.open(parse_database_url(sys.argv[1]) if ":" in sys.argv[1] else Path(sys.argv[1]))
            for _ in range(30):
                async with store.write() as session:
                    changes.append_change(session, changes.CREATED, SystemClock().now(), workspace_id=1)
            await store.close()
        asyncio.run(main())
    """
    location: Location = tmp_path / "a.db"
    if product == "Postgres":
        location = request.getfixturevalue("postgres").make_database(empty=True)
    named = location.conninfo if isinstance(location, PostgresUrl) else str(location)
    runs = await asyncio.gather(*(asyncio.to_thread(run_python, script, named) for _ in range(3)))
    assert [(run.returncode, run.stderr) for run in runs] == [(0, "")] * 3
    store = await Store.open(location)
    assert await count_changes(store) == 90
    await store.close()


async def test_a_reader_sees_one_moment(location: Location) -> None:
    store = await Store.open(location)
    async with store.read() as session:
        assert await session.scalar(select(func.count(ChangeRow.id))) == 0
        await append(store)
        assert await session.scalar(select(func.count(ChangeRow.id))) == 0
    assert await count_changes(store) == 1
    await store.close()


async def test_the_probe_sees_commits_of_anybody_and_nothing_else(location: Location) -> None:
    store = await Store.open(location)
    other = await Store.open(location)
    probe = await store.open_probe()
    versions = [await probe.version()]
    await count_changes(store)
    versions.append(await probe.version())
    await append(store)
    versions.append(await probe.version())
    await append(other)
    versions.append(await probe.version())
    assert versions[0] == versions[1]
    assert len(set(versions[1:])) == 3
    await probe.close()
    await store.close()
    await other.close()


@pytest.mark.parametrize(
    "content", [b"", b"not a database at all", b"SQLite format 3\x00" + b"\xff" * 500, b"\x00" * 8192]
)
async def test_a_file_that_is_no_database_is_left_as_it_was(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(content)
    error = await refusal(path)
    assert error.code == "io_error"
    assert str(path) in error.message
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]


async def test_another_programs_database_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    assert "another program" in (await refusal(path)).message
    assert path.read_bytes() == before


async def test_a_damaged_database_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = await Store.open(path)
    for _ in range(50):
        await append(store)
    await store.close()
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\xa5" * (len(raw) - 4096)
    path.write_bytes(raw)
    for verify in (True, False):
        assert (await refusal(path, verify=verify)).code == "io_error"
        assert path.read_bytes() == bytes(raw)
    # A page that no start-up query reads: only `verify` finds it.
    sound = tmp_path / "b.db"
    await (await Store.open(sound)).close()
    raw = bytearray(sound.read_bytes())
    raw[-4096:] = b"\xa5" * 4096
    sound.write_bytes(raw)
    assert "damaged" in (await refusal(sound, verify=True)).message
    assert sound.read_bytes() == bytes(raw)


async def test_a_newer_schema_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await (await Store.open(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = path.read_bytes()
    error = await refusal(path)
    assert "newer" in error.message
    assert path.read_bytes() == before


async def test_a_folder_in_place_of_the_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").mkdir()
    assert (await refusal(tmp_path / "a.db")).code == "io_error"
    (tmp_path / "file").write_text("x")
    assert (await refusal(tmp_path / "file" / "a.db")).code == "io_error"


def as_nobody() -> dict[str, object]:
    """Root may write anywhere: let an ordinary user try."""
    return {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}


def refused_in_a_process(path: Path, **options: object) -> str:
    script = (
        _REFUSAL
        + """
from runcode.core.errors import RunCodeError
try:
    asyncio.run(Store.open(Path(sys.argv[1])))
except RunCodeError as error:
    print(error.code, error.message, "|", error.resolution)
"""
    )
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert run.stderr == ""
    assert run.stdout.startswith("io_error ")
    assert run.stdout.count("\n") == 1
    return str(run.stdout)


async def test_a_read_only_database_and_folder_are_refused(tmp_path: Path) -> None:
    folder = Path("/tmp") / f"runcode-test-store-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        path = folder / "a.db"
        await (await Store.open(path)).close()
        before = path.read_bytes()
        path.chmod(0o444)
        folder.chmod(0o555)
        assert str(path) in refused_in_a_process(path, **as_nobody())
        assert path.read_bytes() == before
        assert "write access" in refused_in_a_process(folder / "new.db", **as_nobody())
        assert [entry.name for entry in folder.iterdir()] == ["a.db"]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_full_disk_at_the_first_start_leaves_nothing(tmp_path: Path) -> None:
    import resource

    def no_space() -> None:
        # A file cannot grow beyond this: to SQLite, the disk ends there.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    said = refused_in_a_process(tmp_path / "a.db", preexec_fn=no_space)
    assert "space" in said
    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_later_is_said_and_keeps_what_was(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = await Store.open(path)
    await append(store)
    await store.close()
    script = (
        _REFUSAL
        + """
import resource
from runcode.controlplane import changes
from runcode.controlplane.clock import SystemClock
from runcode.core.errors import RunCodeError
async def main():
    store = await Store.open(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        for n in range(2000):
            async with store.write() as session:
                changes.append_change(session, "k" * 30, SystemClock().now())
    except RunCodeError as error:
        print(error.code, error.message, "|", error.resolution)
        async with store.read() as session:
            pass
    await store.close()
asyncio.run(main())
"""
    )
    run = run_python(script, str(path))
    assert run.stdout.startswith("io_error "), run.stderr
    store = await Store.open(path, verify=True)
    assert await count_changes(store) >= 1
    await append(store)
    await store.close()


async def test_a_database_held_by_another_is_busy_not_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = await Store.open(path)
    async with store.write() as session:
        await session.connection()
        script = (
            _REFUSAL
            + """
import runcode.controlplane.store.sqlite_database as database
from runcode.core.errors import RunCodeError
database.BUSY_TIMEOUT_MS = 50
try:
    asyncio.run(Store.open(Path(sys.argv[1])))
except RunCodeError as error:
    print(error.code)
"""
        )
        run = await asyncio.to_thread(run_python, script, str(path))
    assert (run.stdout, run.stderr) == ("busy\n", "")
    await store.close()


async def test_a_task_that_is_cancelled_mid_transaction_leaves_no_lock(location: Location) -> None:
    # A statement that was in the driver's thread when its task ended must not leave a transaction behind.
    store, other = await Store.open(location), await Store.open(location)

    async def slow_append() -> None:
        async with store.write() as session:
            await session.scalar(select(func.count(ChangeRow.id)))
            changes.append_change(session, changes.CREATED, START)

    kept = []
    for turn in range(150):
        task = asyncio.create_task(slow_append())
        for _ in range(turn % 50):
            await asyncio.sleep(0)
        await asyncio.sleep((turn % 30) / 10_000)
        task.cancel()
        # Keep the traceback and its cursors alive, as a logged exception would.
        kept += await asyncio.gather(task, return_exceptions=True)
        # With the fault, this one waits for the busy timeout and is then refused.
        await append(other)
    assert any(isinstance(result, asyncio.CancelledError) for result in kept)
    assert 150 <= await count_changes(store) <= 300
    await store.close()
    await other.close()


async def test_ids_are_never_reused(location: Location) -> None:
    store = await Store.open(location)
    await append(store)
    async with store.write() as session:
        for row in await session.scalars(select(ChangeRow)):
            await session.delete(row)
    await append(store)
    async with store.read() as session:
        assert await session.scalar(select(ChangeRow.id)) == 2
    await store.close()
