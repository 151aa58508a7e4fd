"""aiosqlite connections that cannot be left in the middle of something.

Owns: the one place that touches aiosqlite's insides (`_execute`, `_thread`).

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


class UncancelledConnection(aiosqlite.Connection):
    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await finish(super()._execute(fn, *args, **kwargs))  # type: ignore[no-untyped-call]

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
