"""Whether this server should be sent work now, and if not, what is in the way, by name.

Owns: the named checks behind `/readyz`. The composition root adds those of what it
wired (`gateway_feed`, `reconciler`); the database and its schema are checked here.

Never: an error's own words. Anybody may ask, so a reason is one of our names.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from sqlalchemy import text

from runcode.controlplane.store import migrate
from runcode.controlplane.store.engine import Store

_log = logging.getLogger(__name__)

DATABASE: Final = "database"
MIGRATIONS: Final = "migrations"
DRAINING: Final = "draining"
_PATIENCE_S: Final = 2.0


class Readiness:
    """`drain` is for good: a server that has begun to end does not come back."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._checks: dict[str, Callable[[], bool]] = {}
        self._draining = False

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        self._draining = True

    def add(self, name: str, is_ready: Callable[[], bool]) -> None:
        """`is_ready` is asked at each request, and must answer from memory."""
        self._checks[name] = is_ready

    async def find_reasons(self) -> list[str]:
        """What is in the way; empty means ready."""
        reasons = [DRAINING] if self._draining else []
        try:
            async with asyncio.timeout(_PATIENCE_S):
                async with self._store.read() as session:
                    revision = await session.scalar(text("SELECT version_num FROM alembic_version"))
            if revision != migrate.SCHEMA_HEAD:
                reasons.append(MIGRATIONS)
        except Exception as error:
            _log.warning("not ready: the database cannot be read (%s)", type(error).__name__)
            reasons.append(DATABASE)
        return reasons + [name for name, is_ready in self._checks.items() if not is_ready()]
