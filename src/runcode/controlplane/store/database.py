"""What `Store` asks of a database: the port that SQLite and Postgres implement.

Owns: the words between the two. `Store` has the rules (two kinds of transaction,
what a failure becomes); an implementation has the SQL and the driver's ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from runcode.core.errors import RunCodeError

_T = TypeVar("_T")


class Probe(Protocol):
    """Tells whether any process has committed to the change feed. One follower's own."""

    async def version(self) -> int:
        """Differs from the last answer when somebody has; really asks the database."""
        ...

    async def wait(self, timeout_s: float) -> None:
        """Return at the next commit that is heard of, or after `timeout_s`. May return early."""
        ...

    async def close(self) -> None: ...


class Database(Protocol):
    # Whether servers on other machines may use it at the same time.
    shared: bool
    # "SQLite" or "Postgres", and how messages name this one.
    product: str
    shown: str
    reader: AsyncEngine
    writer: AsyncEngine

    async def begin_write(self, session: AsyncSession) -> None:
        """Wait until no other writer of any process is left, and keep it so until the transaction ends."""
        ...

    async def run_write(self, work: Callable[[Session], _T]) -> _T:
        """`work` as one write transaction, begun, committed and undone as `Store.write` does; a driver's own thread
        may run it, all in one go.
        """
        ...

    async def announce(self, session: AsyncSession) -> None:
        """This transaction adds to the change feed: followers in other processes hear of it when it commits."""
        ...

    async def open_probe(self, listen: Callable[[Callable[[], None]], Callable[[], None]]) -> Probe:
        """`listen` registers a call for commits of this process, and returns its undoing."""
        ...

    def explain(self, error: BaseException) -> RunCodeError: ...

    def make_engine(self) -> Engine:
        """A plain engine for work that is no call's: backup, checks. The caller disposes of it."""
        ...

    async def close(self) -> None: ...
