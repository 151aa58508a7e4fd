"""aiosqlite connections that cannot be left in the middle of something.

Owns: the one place that touches aiosqlite's insides (`_execute`, `_tx`, `_thread`).
Each way to the driver's thread and back costs 0.1 ms of processor time, most of what
a small statement costs at all: so a statement goes there once, with all its rows.

Threat: a task is cancelled while its statement is in the driver's thread (an
HTTP caller hangs up, a worker is stopped). The statement runs on all the same:
a BEGIN IMMEDIATE that nobody knows of then holds the write lock until garbage
collection, and every writer of every process gets `busy`.
Guarantee: what has been given to the thread is waited for, and the cancellation
is delivered after it; closing rolls back first, since sqlite3 keeps a closed
connection's transaction open while a cursor of it is still referred to.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import aiosqlite

_T = TypeVar("_T")


async def finish(call: Coroutine[Any, Any, _T]) -> _T:
    """Run `call` to its end, then deliver a cancellation that came meanwhile."""
    running = asyncio.ensure_future(call)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # Its failure, if any, is of no use to a task that is ending.
        running.exception()
        raise cancelled
    return running.result()


class WholeCursor:
    """What SQLAlchemy asks of aiosqlite's cursor; `execute` brings every row with it, and leaves nothing open."""

    def __init__(self, connection: UncancelledConnection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def __aenter__(self) -> WholeCursor:
        return self

    async def execute(self, sql: str, parameters: Any = ()) -> WholeCursor:
        self._take(await self._connection._execute(_run, self._connection._conn, sql, parameters))
        return self

    async def executemany(self, sql: str, parameters: Any) -> WholeCursor:
        self._take(await self._connection._execute(_run_many, self._connection._conn, sql, parameters))
        return self

    async def fetchone(self) -> Any:
        return self._rows.pop(0) if self._rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        size = self.arraysize if size is None else size
        taken, self._rows = self._rows[:size], self._rows[size:]
        return taken

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        self._rows = []

    def _take(self, ran: _Ran) -> None:
        self._rows, self.description, self.rowcount, self.lastrowid = ran


_Ran = tuple[list[Any], Any, int, int | None]


def _run(connection: sqlite3.Connection, sql: str, parameters: Any) -> _Ran:
    return _drain(connection.execute(sql, parameters))


def _run_many(connection: sqlite3.Connection, sql: str, parameters: Any) -> _Ran:
    return _drain(connection.executemany(sql, parameters))


def _drain(cursor: sqlite3.Cursor) -> _Ran:
    try:
        rows = cursor.fetchall() if cursor.description else []
        return rows, cursor.description, cursor.rowcount, cursor.lastrowid
    finally:
        cursor.close()


class UncancelledConnection(aiosqlite.Connection):
    def cursor(self) -> WholeCursor:  # type: ignore[override]
        return WholeCursor(self)

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._running or self._connection is None:
            raise ValueError("Connection closed")
        future = asyncio.get_running_loop().create_future()
        self._tx.put_nowait((future, functools.partial(fn, *args, **kwargs)))
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.shield(future)
            except asyncio.CancelledError as error:
                cancelled = error
            except Exception:
                break
        if cancelled is not None:
            # Its failure, if any, is of no use to a task that is ending.
            future.exception()
            raise cancelled
        return future.result()

    async def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error, ValueError):
                await self.rollback()
        await super().close()


def connect(path: str) -> UncancelledConnection:
    """To be awaited, as `aiosqlite.connect` is. Transactions are begun by statements only."""
    connection = UncancelledConnection(
        # The connection moves between the driver's thread and nobody else's.
        lambda: sqlite3.connect(path, isolation_level=None, check_same_thread=False),
        iter_chunk_size=64,
    )
    # A server that forgets to close must not hang at its exit.
    connection._thread.daemon = True
    return connection
