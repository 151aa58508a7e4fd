"""Short transactions on the control plane's database, for this process and for others beside it.

Owns: opening the database, the two kinds of transaction, and what their failures
become. SQL that only one product understands stands in `sqlite_database` and
`postgres_database`. Called by `services`, `changes` and `ControlPlane`.

Never: hold a transaction over a call to a runtime, the network or a password
hash. A writer here stops every other writer, also those of other processes.

Guarantee: `write` begins with the write lock, so what a rule reads inside it is
still true when it commits. Writers of one process queue in order; those of others
wait for some seconds, then get `busy`. What was committed survives a power cut: a
revocation that was answered must not come undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from runcode.controlplane.store import uncancelled
from runcode.controlplane.store.database import Database, Probe
from runcode.controlplane.store.location import Location, PostgresUrl
from runcode.controlplane.store.sqlite_database import SqliteDatabase
from runcode.core.errors import RunCodeError

# Set in `AsyncSession.info` by whoever appends to the change feed.
_CHANGED = "runcode_changed"
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Store:
    """One open database. Made by `open`; ends with `close`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._write_turn = asyncio.Lock()
        self._listeners: set[Callable[[], None]] = set()
        # Told how long each write took in seconds, its turn included.
        self.on_write: Callable[[float], None] | None = None

    @classmethod
    async def open(cls, location: Location, *, verify: bool = False, upgrade: bool = True) -> Store:
        """Open the database at `location`, made or migrated first if need be.

        `verify` looks for damage first (the server does, once, at its start). Without
        `upgrade` an older schema is refused: only the holder of the data folder may
        change it under everybody. Raises RunCodeError with one line that says what to
        do, and leaves the database as it was, when it is damaged, foreign, newer,
        read-only, full, or not there.
        """
        if not isinstance(location, PostgresUrl):
            return cls(await SqliteDatabase.open(location, verify=verify, upgrade=upgrade))
        # psycopg takes a while to import, and may not be installed.
        from runcode.controlplane.store.postgres_database import PostgresDatabase

        return cls(await PostgresDatabase.open(location, verify=verify, upgrade=upgrade))

    @property
    def shared(self) -> bool:
        """May servers with other data folders work on it at the same time?"""
        return self._database.shared

    @property
    def product(self) -> str:
        return self._database.product

    @property
    def shown(self) -> str:
        """How messages name it; never with a password."""
        return self._database.shown

    def make_engine(self) -> Engine:
        """For work that is no call's (backup, checks), in a thread of its own. The caller disposes of it."""
        return self._database.make_engine()

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A snapshot that nothing is written through."""
        with self.translated():
            session = AsyncSession(self._database.reader, expire_on_commit=False)
            try:
                yield session
            finally:
                await uncancelled.finish(session.close())

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """One transaction with the write lock; commits at the end, rolls back on any exception."""
        began = time.perf_counter()
        with self.translated():
            async with self._write_turn:
                session = AsyncSession(self._database.writer, expire_on_commit=False)
                try:
                    await self._database.begin_write(session)
                    yield session
                    changed = _CHANGED in session.info
                    if changed:
                        await self._database.announce(session)
                    await uncancelled.finish(session.commit())
                finally:
                    # Rolls back what was not committed.
                    await uncancelled.finish(session.close())
        if self.on_write is not None:
            self.on_write(time.perf_counter() - began)
        if changed:
            for listener in list(self._listeners):
                listener()

    async def write_whole(self, work: Callable[[Session], _T]) -> _T:
        """As `write`, for what is done all the time: every statement stands in `work`, which another thread may run.

        So it touches nothing of the event loop, changes nothing that others see, and
        adds nothing to the change feed. It runs to its end, whoever is cancelled.
        """
        began = time.perf_counter()
        with self.translated():
            async with self._write_turn:
                done = await uncancelled.finish(self._database.run_write(work))
        if self.on_write is not None:
            self.on_write(time.perf_counter() - began)
        return done

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each commit of this process that added to the change feed; returns its undoing."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    async def ping(self) -> None:
        """Raises RunCodeError unless the database can be read."""
        async with self.read() as session:
            await session.execute(text("SELECT count(*) FROM alembic_version"))

    async def open_probe(self) -> Probe:
        with self.translated():
            return await self._database.open_probe(self.listen)

    async def close(self) -> None:
        await self._database.close()

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """What fails inside becomes a RunCodeError."""
        try:
            yield
        except RunCodeError:
            raise
        except IntegrityError as error:
            # Rules look before they write, under the write lock; what still collides is another replica.
            raise RunCodeError("busy", "another change got there first", resolution="retry") from error
        except PoolTimeout as error:
            raise RunCodeError(
                "busy", f"every connection to {self.shown} is in use", resolution="retry in a moment"
            ) from error
        except (DBAPIError, sqlite3.Error, OSError) as error:
            raise self._database.explain(error) from error
        except Exception as error:
            # psycopg's own, of the probe: not to be imported where it may not be installed.
            if type(error).__module__.partition(".")[0] == "psycopg":
                raise self._database.explain(error) from error
            raise


def mark_changed(session: AsyncSession) -> None:
    """This transaction adds to the change feed: listeners are to be woken once it has committed."""
    session.info[_CHANGED] = True
