"""The store on Postgres where that differs: a server that goes, comes back, is full, is not ours, or is read-only."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import func, select, text

from runcode.controlplane import changes
from runcode.controlplane.changes import ChangeBatch, ChangeFeed
from runcode.controlplane.store import migrate, postgres_database
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.location import PostgresUrl, parse_database_url
from runcode.controlplane.store.models import ChangeRow, UserRow
from runcode.core.errors import RunCodeError
from support.controlplane_fakes import START
from support.postgres import Cluster, database_name


@pytest.fixture
async def store(postgres_url: PostgresUrl) -> AsyncIterator[Store]:
    opened = await Store.open(postgres_url)
    yield opened
    await opened.close()


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A server that a test may stop."""
    cluster = Cluster()
    try:
        yield cluster.make()
    finally:
        cluster.remove()


async def append(store: Store, user_id: int = 1) -> None:
    async with store.write() as session:
        changes.append_change(session, changes.USER_DISABLED, START, user_id=user_id)


async def count(store: Store) -> int:
    async with store.read() as session:
        return await session.scalar(select(func.count(ChangeRow.id))) or 0


async def refusal(url: PostgresUrl, **options: bool) -> RunCodeError:
    with pytest.raises(RunCodeError) as caught:
        await (await Store.open(url, **options)).close()
    assert "\n" not in caught.value.message
    assert caught.value.resolution
    return caught.value


async def next_change(feed: AsyncIterator[ChangeBatch]) -> ChangeBatch:
    async with asyncio.timeout(20):
        while (batch := await anext(feed)).empty:
            pass
    return batch


def end_backends(cluster: Cluster, url: PostgresUrl) -> int:
    query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
    with cluster.connect() as connection:
        found = connection.execute(query, [database_name(url)]).fetchone()
    assert found is not None
    return int(found[0])


# ------------------------------------------------------------------ one writer at a time


async def test_a_second_writer_waits_until_the_first_has_committed_and_sees_it(postgres_url: PostgresUrl) -> None:
    first, second = await Store.open(postgres_url), await Store.open(postgres_url)
    order: list[str] = []

    async def late() -> None:
        async with second.write() as session:
            order.append(f"second sees {await session.scalar(select(func.count(ChangeRow.id)))}")

    async with first.write() as session:
        changes.append_change(session, changes.CREATED, START)
        await session.flush()
        waiting = asyncio.create_task(late())
        await asyncio.sleep(0.2)
        order.append("first commits")
    await waiting
    assert order == ["first commits", "second sees 1"]
    await first.close()
    await second.close()


async def test_the_feed_skips_no_row_of_a_transaction_that_commits_late(postgres_url: PostgresUrl) -> None:
    """Ids come from a sequence: without the lock, a later id could be visible while an earlier one is not yet."""
    slow, quick = await Store.open(postgres_url), await Store.open(postgres_url)
    seen: set[int] = set()
    async with contextlib.aclosing(ChangeFeed(quick, poll_s=0.02).watch()) as feed:
        await anext(feed)
        drawn, may_commit = asyncio.Event(), asyncio.Event()

        async def early_id_late_commit() -> None:
            async with slow.write() as session:
                changes.append_change(session, changes.USER_DISABLED, START, user_id=1)
                await session.flush()
                drawn.set()
                await may_commit.wait()

        late = asyncio.create_task(early_id_late_commit())
        await drawn.wait()
        other = asyncio.create_task(append(quick, 2))
        await asyncio.sleep(0.2)
        # Were it committed now, the cursor would pass the row that is still to come.
        assert not other.done()
        may_commit.set()
        await asyncio.gather(late, other)
        while seen != {1, 2}:
            seen |= (await next_change(feed)).user_ids
    async with quick.read() as session:
        assert list(await session.scalars(select(ChangeRow.user_id).order_by(ChangeRow.id))) == [1, 2]
    await slow.close()
    await quick.close()


async def test_a_writer_that_waits_too_long_is_told_busy(
    store: Store, postgres: Cluster, postgres_url: PostgresUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        postgres_database,
        "_SETTINGS",
        postgres_database._SETTINGS.replace(f"lock_timeout = {postgres_database.LOCK_TIMEOUT_MS}", "lock_timeout = 50"),
    )
    impatient = await Store.open(postgres_url)
    async with store.write():
        with pytest.raises(RunCodeError) as caught:
            await append(impatient)
    assert caught.value.code == "busy"
    await append(impatient)
    await impatient.close()


async def test_a_process_that_hangs_with_the_lock_loses_it(
    postgres_url: PostgresUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        postgres_database,
        "_SETTINGS",
        postgres_database._SETTINGS.replace(
            f"session_timeout = {postgres_database._IDLE_IN_WRITE_MS}", "session_timeout = 100"
        ),
    )
    hung, other = await Store.open(postgres_url), await Store.open(postgres_url)

    async def hang() -> None:
        async with hung.write() as session:
            changes.append_change(session, changes.CREATED, START)
            await session.flush()
            # As if the whole process stood still.
            await asyncio.sleep(0.5)
            await append(other)

    with pytest.raises(RunCodeError) as caught:
        await hang()
    assert caught.value.code == "database_down"
    assert await count(other) == 1
    await append(hung)
    assert await count(other) == 2
    await hung.close()
    await other.close()


async def test_a_unique_row_that_another_replica_was_first_with_is_busy(store: Store) -> None:
    async def add() -> None:
        async with store.write() as session:
            session.add(UserRow(email="ann@example.org", created_at=START, is_admin=False))

    await add()
    with pytest.raises(RunCodeError) as caught:
        await add()
    assert caught.value.code == "busy"


# ------------------------------------------------------------------ a server that goes and comes


async def test_a_server_that_restarts_costs_what_was_under_way_and_nothing_later(own_cluster: Cluster) -> None:
    url = own_cluster.make_database()
    store = await Store.open(url)
    await append(store)

    async def lose_the_server() -> None:
        async with store.write() as session:
            changes.append_change(session, changes.CREATED, START)
            await session.flush()
            await asyncio.to_thread(own_cluster.stop)

    async with contextlib.aclosing(ChangeFeed(store, poll_s=0.02).watch()) as feed:
        await anext(feed)
        with pytest.raises(RunCodeError) as caught:
            await lose_the_server()
        assert caught.value.code == "database_down"
        assert str(own_cluster.folder) in caught.value.message
        for call in (store.ping, lambda: append(store)):
            with pytest.raises(RunCodeError) as caught:
                await call()
            assert caught.value.code == "database_down"
        assert (await refusal(url)).code == "database_down"
        # Silence while nothing can be known.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await anext(feed)
    await asyncio.to_thread(own_cluster.start)
    async with contextlib.aclosing(ChangeFeed(store, poll_s=0.02).watch()) as feed:
        assert (await anext(feed)).everything
        assert await count(store) == 1
        await append(store, 5)
        assert (await next_change(feed)).user_ids == {5}
    await store.close()


async def test_a_feed_that_lost_its_connection_looks_at_everything_and_goes_on(
    store: Store, postgres: Cluster, postgres_url: PostgresUrl
) -> None:
    async with contextlib.aclosing(ChangeFeed(store, poll_s=0.02).watch()) as feed:
        await anext(feed)
        assert await asyncio.to_thread(end_backends, postgres, postgres_url) > 0
        await append(store, 3)
        batch = await next_change(feed)
        assert batch.everything
        await append(store, 4)
        assert (await next_change(feed)).user_ids == {4}


async def test_a_feed_hears_of_another_process_at_once_without_waiting_for_its_poll(
    store: Store, postgres_url: PostgresUrl
) -> None:
    other = await Store.open(postgres_url)
    async with contextlib.aclosing(ChangeFeed(store, poll_s=3600).watch()) as feed:
        await anext(feed)
        await append(other, 8)
        assert (await next_change(feed)).user_ids == {8}
    await other.close()


async def test_a_feed_whose_notes_are_lost_polls(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pooler between us and the server may drop LISTEN without a word."""
    monkeypatch.setattr(postgres_database, "_CHANNEL", "somewhere_else")
    async with contextlib.aclosing(ChangeFeed(store, poll_s=0.05).watch()) as feed:
        await anext(feed)
        monkeypatch.setattr(postgres_database, "_CHANNEL", "runcode_changes")
        await append(store, 9)
        assert (await next_change(feed)).user_ids == {9}


async def test_a_pooled_connection_that_was_ended_meanwhile_fails_nobody(
    store: Store, postgres: Cluster, postgres_url: PostgresUrl
) -> None:
    await asyncio.gather(*(store.ping() for _ in range(8)))
    assert await asyncio.to_thread(end_backends, postgres, postgres_url) == 8
    for _ in range(8):
        await append(store)
    assert await count(store) == 8


async def test_a_full_pool_is_busy_and_recovers(store: Store) -> None:
    pool = store._database.reader.sync_engine.pool
    pool._timeout = 0.1  # type: ignore[attr-defined]
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            session = await stack.enter_async_context(store.read())
            await session.execute(text("SELECT 1"))
        with pytest.raises(RunCodeError) as caught:
            await store.ping()
        assert caught.value.code == "busy"
    await store.ping()


async def test_a_statement_that_takes_too_long_is_ended(store: Store) -> None:
    async def sleep() -> None:
        async with store.read() as session:
            await session.execute(text("SET LOCAL statement_timeout = 50"))
            await session.execute(text("SELECT pg_sleep(20)"))

    with pytest.raises(RunCodeError) as caught:
        await sleep()
    assert caught.value.code == "timed_out"
    await store.ping()


async def test_a_task_that_is_cancelled_in_a_statement_ends_it_on_the_server(store: Store, postgres: Cluster) -> None:
    async def sleep_with_the_lock() -> None:
        async with store.write() as session:
            await session.execute(text("SELECT pg_sleep(300)"))

    task = asyncio.create_task(sleep_with_the_lock())
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    # The lock is free: no `busy` after five seconds.
    await append(store)
    active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(300)%' AND state = 'active'"
    with postgres.connect() as connection:
        left = connection.execute(active)
        assert left.fetchone() == (0,)


async def test_a_server_without_a_connection_left_says_so(postgres: Cluster, postgres_url: PostgresUrl) -> None:
    name = database_name(postgres_url)
    with postgres.connect() as connection:
        connection.execute(f"CREATE ROLE plain_{name} LOGIN")
        connection.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    url = parse_database_url(postgres_url.conninfo.replace("user=runcode", f"user=plain_{name}"))
    error = await refusal(url)
    assert error.code == "database_down"
    with postgres.connect() as connection:
        connection.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
    assert (await refusal(url)).code == "io_error", "a user that does not own the tables"


# ------------------------------------------------------------------ a standby


async def test_a_read_only_standby_is_named_and_left(own_cluster: Cluster) -> None:
    """A real one: pg_basebackup, standby.signal; later promoted, and then it serves."""
    url = own_cluster.make_database()
    standby = Cluster(hot_standby="on")
    try:
        words = [str(own_cluster.programs / "pg_basebackup"), "-h", str(own_cluster.folder), "-U", "runcode"]
        words += ["-D", str(standby.data), "-R", "-X", "stream", "-c", "fast", "--no-sync"]
        subprocess.run(words, check=True, capture_output=True, cwd=standby.folder, **standby._as)
        standby.start()
        # The standby replays what makes it consistent first.
        theirs = parse_database_url(standby.url(database_name(url)))
        error = await refusal(theirs)
        assert (error.code, "standby" in error.message) == ("database_down", True)
        assert (await refusal(theirs, upgrade=False)).message == error.message
        finds_primary = f"postgresql:///{database_name(url)}?host={standby.folder},{own_cluster.folder}&user=runcode"
        store = await Store.open(parse_database_url(f"{finds_primary}&target_session_attrs=read-write"))
        await append(store)
        # The primary is gone, the standby takes over: the same URL, the same process.
        await asyncio.to_thread(own_cluster.kill)
        with pytest.raises(RunCodeError):
            await append(store)
        with standby.connect() as connection:
            connection.execute("SELECT pg_promote()")
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(RunCodeError):
                    await append(store)
                    break
                await asyncio.sleep(0.05)
        assert await count(store) >= 1
        await store.close()
    finally:
        standby.remove()


# ------------------------------------------------------------------ not ours, not fitting, not there


async def test_an_empty_database_is_filled_by_a_server_and_by_no_verb(postgres: Cluster) -> None:
    url = postgres.make_database(empty=True)
    assert "is empty" in (await refusal(url, upgrade=False)).message
    await (await Store.open(url, verify=True)).close()
    await (await Store.open(url, upgrade=False)).close()
    postgres.drop_database(url)


@pytest.mark.parametrize("table", ["theirs", "alembic_version"])
async def test_another_programs_database_is_left_as_it_was(postgres: Cluster, table: str) -> None:
    url = postgres.make_database(empty=True)
    with postgres.connect(database_name(url)) as connection:
        connection.execute(f"CREATE TABLE {table} (version_num text)")
        connection.execute(f"INSERT INTO {table} VALUES ('abc')")
    error = await refusal(url)
    assert "another program" in error.message
    with postgres.connect(database_name(url)) as connection:
        tables = connection.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        assert tables.fetchall() == [(table,)]
    postgres.drop_database(url)


async def test_a_database_without_an_encoding_is_refused_in_words(postgres: Cluster) -> None:
    """As `createdb` makes them where Postgres was installed under LANG=C; its driver then hands out bytes."""
    with postgres.connect() as connection:
        connection.execute("CREATE DATABASE bare ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    url = parse_database_url(postgres.url("bare"))
    try:
        error = await refusal(url)
        with pytest.raises(RunCodeError) as restoring:
            postgres_database.make_in(url, lambda connection: None)
    finally:
        postgres.drop_database(url)
    assert "not encoded in UTF-8" in error.message
    assert "--encoding UTF8 --template template0" in error.resolution
    assert restoring.value.message == error.message


async def test_a_newer_schema_is_left_as_it_was(postgres: Cluster, postgres_url: PostgresUrl) -> None:
    with postgres.connect(database_name(postgres_url)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    assert "newer" in (await refusal(postgres_url)).message


async def test_a_database_with_a_table_missing_is_not_served(postgres: Cluster, postgres_url: PostgresUrl) -> None:
    with postgres.connect(database_name(postgres_url)) as connection:
        connection.execute("DROP TABLE shares")
    assert "shares is missing" in (await refusal(postgres_url, verify=True)).message


async def test_a_schema_does_not_change_under_a_server_that_follows_the_feed(postgres: Cluster) -> None:
    url = postgres.make_database(empty=True)
    engine = postgres_database.make_sync_engine(url)
    oldest = min(migrate.KNOWN_REVISIONS)
    with engine.begin() as connection:
        migrate.upgrade(connection, oldest)
    assert "older RunCode" in (await refusal(url, upgrade=False)).message
    probe = await postgres_database.PostgresDatabase(url).open_probe(lambda _: lambda: None)
    error = await refusal(url)
    assert (error.code, "other servers run" in error.message) == ("busy", True)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == oldest
    await probe.close()
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(RunCodeError):
                store = await Store.open(url)
                break
            await asyncio.sleep(0.02)
    await store.close()
    engine.dispose()
    postgres.drop_database(url)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda url: url.replace("user=runcode", "user=nobody_known"), "no such database or user"),
        (lambda url: url.replace("///test", "///no_such"), "no such database or user"),
        (lambda url: url.replace("/tmp/rp-", "/tmp/nowhere-"), "no connection to it"),
    ],
)
async def test_what_cannot_be_reached_is_said_with_its_fix(
    postgres_url: PostgresUrl, change: Callable[[str], str], said: str
) -> None:
    error = await refusal(parse_database_url(change(postgres_url.conninfo)))
    assert error.code == "database_down"
    assert said in error.message
    assert database_name(postgres_url)[5:] in error.message


async def test_texts_that_postgres_cannot_keep_find_nothing_and_harm_nothing(store: Store) -> None:
    async with store.read() as session:
        for hostile in ("a\0b", "\ud800", "\0"):
            assert await session.scalar(select(UserRow.id).where(UserRow.email == hostile)) is None
    async with store.write() as session:
        session.add(UserRow(email="nul\0@example.org", created_at=START, is_admin=False))
    async with store.read() as session:
        assert await session.scalar(select(UserRow.email)) == "nul\ufffd@example.org"


async def test_a_password_is_in_no_text_of_ours(postgres_url: PostgresUrl) -> None:
    url = parse_database_url("postgresql://ann:hunter2@127.0.0.1:1/db?connect_timeout=1")
    assert url.has_password
    assert "hunter2" not in repr(url) + str(url) + url.shown
    error = await refusal(url)
    assert "hunter2" not in error.message + error.resolution
    assert "127.0.0.1:1/db" in error.message
    for raw in ("postgresql://ann:hunter2@h", "mysql://ann:hunter2@h/db", "postgresql://ann:hunter2@h/db?nonsense=1"):
        with pytest.raises(RunCodeError) as caught:
            parse_database_url(raw)
        assert caught.value.code == "usage"
        assert "hunter2" not in caught.value.message + str(caught.value.__cause__ is None)


def test_the_server_runs_as_nobody_of_importance(postgres: Cluster) -> None:
    """The control of these tests: a real server, without root, that a test process ends by itself."""
    assert postgres.process is not None
    with psycopg.connect(postgres.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    status = Path(f"/proc/{postgres.process.pid}/status").read_text()
    assert "Uid:\t0\t" not in status
