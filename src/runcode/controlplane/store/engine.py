"""Short transactions on the control plane's database, for this process and for others beside it.

Owns: opening, checking and migrating the database, the two kinds of transaction,
and the probe that tells when any process has committed. All SQL that only SQLite
understands stands in this package. Called by `services`, `changes` and
`ControlPlane`.

Never: hold a transaction over a call to a runtime, the network or a password
hash. A writer here stops every other writer, also those of other processes.

Guarantee: `write` begins with the write lock (BEGIN IMMEDIATE), so what a rule
reads inside it is still true when it commits. Writers of one process queue in
order; those of others wait up to `_BUSY_TIMEOUT_MS`, then get `busy`. What was
committed survives a power cut (synchronous=FULL): a revocation that was answered
must not come undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiosqlite
from sqlalchemy import URL, Connection, create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from runcode.controlplane.store import failures, migrate, sqlite_file, uncancelled
from runcode.core.errors import RunCodeError

_BUSY_TIMEOUT_MS = 5000
_POOL_SIZE = 8
_WAL_BYTES = 4 * 1024 * 1024
# Set in `AsyncSession.info` by whoever appends to the change feed.
_CHANGED = "runcode_changed"


class Store:
    """One open database. Made by `open`; ends with `close`."""

    def __init__(self, path: Path, engine: AsyncEngine) -> None:
        self.path = path
        self._engine = engine
        self._writer = engine.execution_options(runcode_begin="BEGIN IMMEDIATE")
        self._write_turn = asyncio.Lock()
        self._listeners: set[Callable[[], None]] = set()
        # Told how long each write took in seconds, its turn included.
        self.on_write: Callable[[float], None] | None = None

    @classmethod
    async def open(cls, path: Path, *, verify: bool = False, upgrade: bool = True) -> Store:
        """Open the database at `path`, made or migrated first if need be.

        `verify` reads all of it for damage first (the server does, once, at its
        start). Without `upgrade` an older schema is refused: only the holder of the
        data folder may change it under everybody. Raises RunCodeError with one line that says what to do, and leaves
        the file as it was, when it is damaged, foreign, newer, read-only, or the
        disk is full.
        """
        await asyncio.to_thread(_prepare, path, verify, upgrade)
        engine = create_async_engine(
            _url("sqlite+aiosqlite", path),
            async_creator=lambda: uncancelled.connect(str(path)),
            pool_size=_POOL_SIZE,
            max_overflow=0,
        )
        _configure(engine.sync_engine)
        return cls(path, engine)

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A snapshot that nothing is written through."""
        with _translated(self.path):
            session = AsyncSession(self._engine, expire_on_commit=False)
            try:
                yield session
            finally:
                await uncancelled.finish(session.close())

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """One transaction with the write lock; commits at the end, rolls back on any exception."""
        began = time.perf_counter()
        with _translated(self.path):
            async with self._write_turn:
                session = AsyncSession(self._writer, expire_on_commit=False)
                try:
                    yield session
                    await uncancelled.finish(session.commit())
                finally:
                    # Rolls back what was not committed.
                    await uncancelled.finish(session.close())
                changed = _CHANGED in session.info
        if self.on_write is not None:
            self.on_write(time.perf_counter() - began)
        if changed:
            for listener in list(self._listeners):
                listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each commit of this process that added to the change feed; returns its undoing."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    async def ping(self) -> None:
        """Raises RunCodeError unless the database can be read."""
        async with self.read() as session:
            await session.execute(text("SELECT count(*) FROM alembic_version"))

    async def open_probe(self) -> CommitProbe:
        with _translated(self.path):
            return CommitProbe(self.path, await uncancelled.connect(str(self.path)))

    async def close(self) -> None:
        await self._engine.dispose()


class CommitProbe:
    """Tells whether any process has committed, for the price of one page read.

    `PRAGMA data_version` compares within one connection only, hence a connection
    of its own.
    """

    def __init__(self, path: Path, connection: aiosqlite.Connection) -> None:
        self._path = path
        self._connection = connection

    async def version(self) -> int:
        """Differs from the last answer exactly when somebody has committed in between."""
        with _translated(self._path):
            async with self._connection.execute("PRAGMA data_version") as cursor:
                row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    async def close(self) -> None:
        await self._connection.close()


def mark_changed(session: AsyncSession) -> None:
    """This transaction adds to the change feed: listeners are to be woken once it has committed."""
    session.info[_CHANGED] = True


def _prepare(path: Path, verify: bool, upgrade: bool) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        exists = path.exists()
    except OSError as error:
        raise failures.explain_os_error(error, path) from error
    if not exists:
        sqlite_file.create(path, _make_schema)
    sqlite_file.check_header(path)
    engine = create_engine(_url("sqlite", path), poolclass=NullPool)
    _configure(engine)
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


def _make_schema(path: Path) -> None:
    engine = create_engine(_url("sqlite", path), poolclass=NullPool)
    _configure(engine)
    with engine.execution_options(runcode_begin="BEGIN IMMEDIATE").begin() as connection:
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


def _configure(engine: Any) -> None:
    """Make SQLAlchemy's transactions SQLite's own: the driver's implicit ones begin too late."""

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout = {_BUSY_TIMEOUT_MS}",
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
def _translated(path: Path) -> Any:
    try:
        yield
    except RunCodeError:
        raise
    except IntegrityError as error:
        # Rules look before they write, under the write lock; what still collides is another replica.
        raise RunCodeError("busy", "another change got there first", resolution="retry") from error
    except (DBAPIError, sqlite3.Error, OSError) as error:
        raise failures.explain_database_error(error, path) from error
