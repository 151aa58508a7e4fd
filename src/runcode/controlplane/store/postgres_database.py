"""The store on a Postgres server, for one control plane process or several.

Owns: connections and their limits, the write lock, opening and migrating a
database, and the probe that hears other processes' commits. Called by `Store`;
the only module beside `location` that imports psycopg.

Threat: a process that hangs or is cut off while it holds the write lock; a server
that restarts, fails over, or is full; a schema that changes under a server that runs.
Guarantee: a writer's first statement takes one lock for all processes, and holds it
until the transaction has ended (docs/adr/0009-store.md). So what a rule reads is
still true when it commits, and ids of every table grow in the order of commits: a
follower's cursor skips nothing. Whoever holds the lock without a word for
`_IDLE_IN_WRITE_MS` loses it, by the server's hand. A schema changes only while no
server follows the feed.

Source: postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS; a lock of
a transaction is let go after its commit is visible.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from runcode.controlplane.store import migrate, postgres_failures
from runcode.controlplane.store.location import PostgresUrl
from runcode.core.errors import RunCodeError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
OLDEST_SERVER = 130000
_POOL_SIZE = 8
_POOL_TIMEOUT_S = 10
_CONNECT_TIMEOUT_S = 5
# Waiting for other writers, as long as with SQLite; then `busy`.
LOCK_TIMEOUT_MS = 5000
_STATEMENT_TIMEOUT_MS = 30_000
_IDLE_IN_WRITE_MS = 10_000
# "RCod", then what it is for. Advisory locks are a database's own.
_WRITE_LOCK = 0x52436F64_00000001
_SERVING_LOCK = 0x52436F64_00000002
_CHANNEL = "runcode_changes"
# A network that ends without a word is noticed within half a minute; the feed notices earlier.
# Texts are texts also where the server's encoding is none (SQL_ASCII), so that `_check_server` gets to say so.
_CONNECTING = {
    "client_encoding": "UTF8",
    "connect_timeout": _CONNECT_TIMEOUT_S,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


class PostgresDatabase:
    """`store.database.Database` on one database of a server. Made by `open`."""

    shared = True
    product = "Postgres"

    def __init__(self, url: PostgresUrl) -> None:
        self.url = url
        self.shown = url.shown

        async def connect(**given: Any) -> psycopg.AsyncConnection[Any]:
            return await _connect(url, context=given.get("context"))

        engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=connect,
            pool_size=_POOL_SIZE,
            max_overflow=0,
            pool_timeout=_POOL_TIMEOUT_S,
            # A server that restarted costs a new connection, and no caller an error.
            pool_pre_ping=True,
        )
        # One moment for all that a reader asks, as with SQLite.
        self.reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        # Under the lock each statement sees all that was committed before it.
        self.writer = engine.execution_options(isolation_level="READ COMMITTED")

    @classmethod
    async def open(cls, url: PostgresUrl, *, verify: bool, upgrade: bool) -> PostgresDatabase:
        await asyncio.to_thread(_prepare, url, verify, upgrade)
        return cls(url)

    async def begin_write(self, session: AsyncSession) -> None:
        await session.execute(text(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})"))

    async def announce(self, session: AsyncSession) -> None:
        await session.execute(text(f"SELECT pg_notify('{_CHANNEL}', '')"))

    async def run_write(self, work: Callable[[Session], _T]) -> _T:
        """The driver has no thread: its waits lie between the statements."""
        session = AsyncSession(self.writer, expire_on_commit=False)
        try:
            await self.begin_write(session)
            done = await session.run_sync(work)
            await session.commit()
            return done
        finally:
            await session.close()

    async def open_probe(self, listen: Callable[[Callable[[], None]], Callable[[], None]]) -> CommitProbe:
        connection = await _connect(self.url)
        try:
            await connection.set_autocommit(True)
            # Held as long as this follower is connected: see `_lock_schema`.
            await connection.execute(f"SELECT pg_advisory_lock_shared({_SERVING_LOCK})")
            await connection.execute(f"LISTEN {_CHANNEL}")
        except BaseException:
            await connection.close()
            raise
        return CommitProbe(connection)

    def explain(self, error: BaseException) -> RunCodeError:
        return explain(error, self.shown)

    def make_engine(self) -> Engine:
        return make_sync_engine(self.url)

    async def close(self) -> None:
        await self.reader.dispose()


class CommitProbe:
    """Hears of other processes' commits at once (NOTIFY), and looks all the same, should a word be lost.

    The connection's end makes the next look fail; its follower opens another
    probe, and looks at everything.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def version(self) -> int:
        """The newest row of the feed. One look-up in an index."""
        cursor = await self._connection.execute("SELECT coalesce(max(id), 0) FROM changes")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    async def wait(self, timeout_s: float) -> None:
        async with contextlib.aclosing(self._connection.notifies(timeout=timeout_s, stop_after=1)) as notes:
            async for _ in notes:
                return

    async def close(self) -> None:
        await self._connection.close()


def make_sync_engine(url: PostgresUrl) -> Engine:
    def connect() -> psycopg.Connection[Any]:
        connection = psycopg.connect(url.conninfo, **_parameters(url))
        connection.adapters.register_dumper(str, _TextDumper)
        connection.execute(_SETTINGS)
        connection.commit()
        return connection

    return create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)


def make_in(url: PostgresUrl, fill: Callable[[Connection], None]) -> None:
    """Let `fill` make tables and rows in an empty database, in one transaction. Raises RunCodeError when it is not."""
    engine = make_sync_engine(url)
    with _translated(url.shown), engine.begin() as connection:
        _check_server(connection, url.shown)
        _lock_schema(connection, url.shown)
        if _list_tables(connection):
            raise RunCodeError(
                "conflict",
                f"the database {url.shown} is not empty",
                resolution="name an empty one: `createdb --encoding UTF8 --template template0 runcode`",
            )
        fill(connection)


def explain(error: BaseException, shown: str) -> RunCodeError:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return postgres_failures.explain(cause or error, shown)


class _TextDumper(StrDumperUnknown):
    """Postgres keeps no NUL and no lone surrogate. As a mark they find nothing, and harm nothing."""

    def dump(self, obj: str) -> Any:
        if "\0" in obj or not obj.isascii():
            obj = obj.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        return super().dump(obj)


_SETTINGS = (
    f"SET lock_timeout = {LOCK_TIMEOUT_MS}; SET statement_timeout = {_STATEMENT_TIMEOUT_MS};"
    f" SET idle_in_transaction_session_timeout = {_IDLE_IN_WRITE_MS}; SET synchronous_commit = on;"
    " SET timezone = 'UTC'"
)


def _parameters(url: PostgresUrl) -> dict[str, Any]:
    """Ours, where the operator's URL says nothing."""
    named = psycopg.conninfo.conninfo_to_dict(url.conninfo)
    ours: dict[str, Any] = {**_CONNECTING, "application_name": "runcode-server"}
    return {name: value for name, value in ours.items() if name not in named}


async def _connect(url: PostgresUrl, context: Any = None) -> psycopg.AsyncConnection[Any]:
    connection = await psycopg.AsyncConnection.connect(url.conninfo, context=context, **_parameters(url))
    try:
        connection.adapters.register_dumper(str, _TextDumper)
        await connection.execute(_SETTINGS)
        await connection.commit()
    except BaseException:
        await connection.close()
        raise
    return connection


# ---------------------------------------------------------------- opening


def _prepare(url: PostgresUrl, verify: bool, upgrade: bool) -> None:
    engine = make_sync_engine(url)
    with _translated(url.shown):
        with engine.begin() as connection:
            _check_server(connection, url.shown)
            revision = _find_revision(connection, url.shown)
        if revision != migrate.SCHEMA_HEAD:
            if not upgrade:
                raise (
                    postgres_failures.unprepared(url.shown) if revision is None else postgres_failures.older(url.shown)
                )
            with engine.begin() as connection:
                _lock_schema(connection, url.shown)
                # Once more: another server may have been quicker.
                if _find_revision(connection, url.shown) != migrate.SCHEMA_HEAD:
                    connection.execute(text("SET LOCAL statement_timeout = 0"))
                    migrate.upgrade(connection)
        if verify:
            with engine.begin() as connection:
                _check_tables(connection, url.shown)


def _check_server(connection: Connection, shown: str) -> None:
    version, recovering, read_only, encoding, schema = connection.execute(
        text(
            "SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),"
            " current_setting('default_transaction_read_only')::bool, current_setting('server_encoding'),"
            " current_schema()"
        )
    ).one()
    if version < OLDEST_SERVER:
        raise RunCodeError(
            "io_error",
            f"the server of {shown} is Postgres {version // 10000}",
            resolution=f"upgrade it: {OLDEST_SERVER // 10000} is the oldest that fits",
        )
    if recovering or read_only:
        raise postgres_failures.standby(shown)
    if encoding != "UTF8":
        raise RunCodeError(
            "io_error",
            f"the database {shown} is not encoded in UTF-8",
            resolution="make another: `createdb --encoding UTF8 --template template0 runcode`",
        )
    if schema is None:
        raise RunCodeError(
            "io_error",
            f"the database user has no schema of its own in {shown}",
            resolution="make it the owner of that database, or set its search_path",
        )


def _find_revision(connection: Connection, shown: str) -> str | None:
    """The schema's revision, or None for an empty database."""
    tables = _list_tables(connection)
    if "alembic_version" not in tables:
        if tables:
            raise postgres_failures.foreign(shown)
        return None
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if revision is None or "changes" not in tables:
        raise postgres_failures.foreign(shown)
    if revision not in migrate.KNOWN_REVISIONS:
        raise postgres_failures.newer(shown)
    return str(revision)


def _list_tables(connection: Connection) -> set[str]:
    query = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
    return set(connection.execute(text(query)).scalars())


def _lock_schema(connection: Connection, shown: str) -> None:
    """No writer, and no server that follows the feed, until this transaction ends. Raises `busy`."""
    connection.execute(text(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})"))
    if not connection.execute(text(f"SELECT pg_try_advisory_xact_lock({_SERVING_LOCK})")).scalar_one():
        raise postgres_failures.served(shown)


def _check_tables(connection: Connection, shown: str) -> None:
    from runcode.controlplane.store.models import Base

    missing = sorted(set(Base.metadata.tables) - _list_tables(connection))
    if missing:
        raise postgres_failures.damaged(shown, f"the table {missing[0]} is missing")


@contextlib.contextmanager
def _translated(shown: str) -> Iterator[None]:
    try:
        yield
    except RunCodeError:
        raise
    except (DBAPIError, psycopg.Error) as error:
        raise explain(error, shown) from error
