"""The store on a file of SQLite's.

Owns: opening, checking and migrating the file, SQLite's own transactions, and the
probe that sees other processes' commits. Called by `Store`.

Guarantee: a writer begins with the write lock (BEGIN IMMEDIATE). Writers of other
processes wait up to `BUSY_TIMEOUT_MS`, then get `busy`. What was committed survives
a power cut (synchronous=FULL).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from runcode.controlplane.store import failures, migrate, sqlite_file, uncancelled
from runcode.core.errors import RunCodeError

_T = TypeVar("_T")
BUSY_TIMEOUT_MS = 5000
_POOL_SIZE = 8
_POOL_TIMEOUT_S = 10
_WHOLE_CACHE_KIB = 16 * 1024
_WAL_BYTES = 4 * 1024 * 1024


class SqliteDatabase:
    """`store.database.Database` on one file. Made by `open`."""

    shared = False
    product = "SQLite"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown = str(path)
        engine = create_async_engine(
            _url("sqlite+aiosqlite", path),
            async_creator=lambda: uncancelled.connect(str(path)),
            pool_size=_POOL_SIZE,
            max_overflow=0,
            pool_timeout=_POOL_TIMEOUT_S,
        )
        _configure(engine.sync_engine)
        self.reader = engine
        self.writer = engine.execution_options(runcode_begin="BEGIN IMMEDIATE")
        whole = create_engine(_url("sqlite", path), pool_size=1, max_overflow=0)
        _configure(whole)

        @event.listens_for(whole, "connect")
        def widen(connection: Any, _record: object) -> None:
            # New keys fall all over their index: with SQLite's own 2 MB each is read from the file again.
            connection.execute(f"PRAGMA cache_size = -{_WHOLE_CACHE_KIB}")

        self._whole_writer = whole.execution_options(runcode_begin="BEGIN IMMEDIATE")
        self._thread = ThreadPoolExecutor(1, "runcode-writer")

    @classmethod
    async def open(cls, path: Path, *, verify: bool, upgrade: bool) -> SqliteDatabase:
        await asyncio.to_thread(_prepare, path, verify, upgrade)
        return cls(path)

    async def begin_write(self, session: AsyncSession) -> None:
        """BEGIN IMMEDIATE is the transaction's own first statement."""

    async def run_write(self, work: Callable[[Session], _T]) -> _T:
        """In a thread that is there for it: one way there and back, where each statement of `writer` takes one."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run_write, work)

    def _run_write(self, work: Callable[[Session], _T]) -> _T:
        with Session(self._whole_writer, expire_on_commit=False) as session:
            done = work(session)
            session.commit()
            return done

    async def announce(self, session: AsyncSession) -> None:
        """SQLite itself tells of every commit: `PRAGMA data_version`."""

    async def open_probe(self, listen: Callable[[Callable[[], None]], Callable[[], None]]) -> CommitProbe:
        return CommitProbe(await uncancelled.connect(str(self.path)), listen)

    def explain(self, error: BaseException) -> RunCodeError:
        return failures.explain_database_error(error, self.path)

    def make_engine(self) -> Engine:
        return make_sync_engine(self.path)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._whole_writer.dispose)
        self._thread.shutdown(wait=False)
        await self.reader.dispose()


class CommitProbe:
    """Tells whether any process has committed, for the price of one page read.

    `PRAGMA data_version` compares within one connection only, hence a connection
    of its own.
    """

    def __init__(
        self, connection: aiosqlite.Connection, listen: Callable[[Callable[[], None]], Callable[[], None]]
    ) -> None:
        self._connection = connection
        self._woken = asyncio.Event()
        self._unlisten = listen(self._woken.set)

    async def version(self) -> int:
        """Differs from the last answer exactly when somebody has committed in between."""
        # Before the look: a commit after it wakes the next wait.
        self._woken.clear()
        async with self._connection.execute("PRAGMA data_version") as cursor:
            row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    async def wait(self, timeout_s: float) -> None:
        """Until this process commits; others' commits are seen at the next look."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()

    async def close(self) -> None:
        self._unlisten()
        await self._connection.close()


def make_sync_engine(path: Path) -> Engine:
    engine = create_engine(_url("sqlite", path), poolclass=NullPool)
    _configure(engine)
    return engine


def make_at(path: Path, fill: Callable[[Connection], None]) -> None:
    """A new database at `path` that `fill` makes tables and rows in, in one transaction; complete or not there."""

    def build(draft: Path) -> None:
        with make_sync_engine(draft).execution_options(runcode_begin="BEGIN IMMEDIATE").begin() as connection:
            fill(connection)

    sqlite_file.create(path, build)


def _prepare(path: Path, verify: bool, upgrade: bool) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        exists = path.exists()
    except OSError as error:
        raise failures.explain_os_error(error, path) from error
    if not exists:
        make_at(path, migrate.upgrade)
    sqlite_file.check_header(path)
    engine = make_sync_engine(path)
    with _translated(path), engine.connect() as connection:
        if verify and connection.execute(text("PRAGMA quick_check(1)")).scalar_one() != "ok":
            raise failures.corrupt(path)
        revision = _find_revision(connection, path)
    if revision != migrate.SCHEMA_HEAD:
        if not upgrade:
            raise failures.older(path)
        sqlite_file.keep_copy(path, revision)
    # The write lock proves that the file can be written, before anything counts on it.
    writer = engine.execution_options(runcode_begin="BEGIN IMMEDIATE")
    with _translated(path), writer.begin() as connection:
        if revision != migrate.SCHEMA_HEAD:
            migrate.upgrade(connection)


def _find_revision(connection: Connection, path: Path) -> str:
    tables = connection.execute(text("SELECT name FROM sqlite_master WHERE name = 'alembic_version'")).all()
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar() if tables else None
    if revision is None:
        raise failures.corrupt(path)
    if revision not in migrate.KNOWN_REVISIONS:
        raise failures.newer(path)
    return str(revision)


def _url(driver: str, path: Path) -> URL:
    return URL.create(driver, database=str(path))


def _configure(engine: Engine) -> None:
    """Make SQLAlchemy's transactions SQLite's own: the driver's implicit ones begin too late."""

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            "foreign_keys = ON",
            "synchronous = FULL",
            # SQLite checkpoints every 1,000 pages, but never shortens the log by itself after one large transaction.
            f"journal_size_limit = {_WAL_BYTES}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("runcode_begin", "BEGIN"))


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except RunCodeError:
        raise
    except (DBAPIError, sqlite3.Error, OSError) as error:
        raise failures.explain_database_error(error, path) from error
