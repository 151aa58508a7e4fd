"""What an operator asks of the database at 3 am: is it there, is it whole, does it fit, give the room back.

Owns: `database status`, `check`, `upgrade` and `vacuum`. They work without a server
and, but for `upgrade`, beside one.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, func, inspect, select, text

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.store import migrate, portable
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import Base, ChangeRow, WorkspaceRow
from runcode.core.errors import RunCodeError
from runcode.server.data_folder import DataFolder
from runcode.server.rendering import Answer, render_table, render_time

_T = TypeVar("_T")


async def show_status(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    with plane.store.translated():
        facts = await asyncio.to_thread(_run, plane.store.make_engine(), _find_facts)
    path = folder.database if not plane.store.shared else None
    facts = {
        "product": plane.store.product,
        "database": plane.store.shown,
        **facts,
        "server_pid": folder.find_server_pid(),
        "log_bytes": _size(path.with_name(path.name + "-wal")) if path is not None else None,
    }
    if path is not None:
        facts["bytes"] = _size(path)
    tables = facts.pop("rows")
    assert isinstance(tables, dict)
    lines = [(name, "" if value is None else str(value)) for name, value in facts.items()]
    lines += [(f"rows of {name}", str(count)) for name, count in tables.items()]
    return Answer(value={**facts, "rows": tables}, text=render_table(("WHAT", ""), lines))


async def check(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    with plane.store.translated():
        findings = await asyncio.to_thread(_run, plane.store.make_engine(), _find_faults)
    if findings:
        raise RunCodeError(
            "io_error",
            f"the database {plane.store.shown} is not whole: " + "; ".join(findings[:5]),
            resolution="restore a backup into a new data folder, and look at the disk",
        )
    return Answer(value={"ok": True}, text=f"{plane.store.shown} is whole")


async def vacuum(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    with plane.store.translated():
        before, after = await asyncio.to_thread(_run, plane.store.make_engine(), _vacuum)
    value = {"bytes_before": before, "bytes_after": after}
    return Answer(value=value, text=f"{plane.store.shown}: {before} bytes before, {after} after")


def upgrade(folder: DataFolder) -> Answer:
    """Bring the schema to this version's, without serving. Raises `busy` while a server runs on it."""

    async def act() -> str:
        store = await Store.open(folder.load_location(), verify=True)
        shown = store.shown
        await store.close()
        return shown

    with folder.locked():
        shown = asyncio.run(act())
    value = {"database": shown, "schema": migrate.SCHEMA_HEAD}
    return Answer(value=value, text=f"{shown} has this version's schema, {migrate.SCHEMA_HEAD}")


def _run(engine: Engine, ask: Callable[[Connection], _T]) -> _T:
    try:
        with engine.connect() as connection:
            return ask(connection)
    finally:
        engine.dispose()


def _find_facts(connection: Connection) -> dict[str, object]:
    facts: dict[str, object] = {}
    if connection.dialect.name == "sqlite":
        facts["version"] = connection.execute(text("SELECT sqlite_version()")).scalar_one()
    else:
        facts["version"] = connection.execute(text("SHOW server_version")).scalar_one()
        facts["bytes"] = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
        facts["connections"] = connection.execute(
            text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        ).scalar_one()
        # Each server follows the change feed twice, once for its gateway and once for its reconciler.
        facts["followers"] = connection.execute(text(_FOLLOWERS)).scalar_one()
        facts["writer_waits_s"] = connection.execute(text(_OLDEST_WRITER)).scalar()
    facts["schema"] = portable.find_schema(connection)
    newest = connection.execute(select(ChangeRow.id, ChangeRow.at).order_by(ChangeRow.id.desc()).limit(1)).first()
    facts["last_change"] = None if newest is None else f"{newest[0]} at {render_time(newest[1])}"
    facts["leases"] = connection.execute(
        select(func.count()).select_from(WorkspaceRow).where(WorkspaceRow.lease_owner.is_not(None))
    ).scalar_one()
    facts["rows"] = {
        table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in Base.metadata.sorted_tables
    }
    return facts


_FOLLOWERS = """
    SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
_OLDEST_WRITER = """
    SELECT round(extract(epoch FROM max(clock_timestamp() - a.xact_start)))::int FROM pg_locks l
    JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.granted"""


def _find_faults(connection: Connection) -> list[str]:
    """Read everything once; what one product promises and the other does not is asked for where it is missing."""
    faults: list[str] = []
    if connection.dialect.name == "sqlite":
        found = list(connection.execute(text("PRAGMA integrity_check(5)")).scalars())
        if found != ["ok"]:
            return [f"SQLite finds: {line}" for line in found]
        for row in connection.execute(text("PRAGMA foreign_key_check")).all()[:5]:
            faults.append(f"row {row[1]} of {row[0]} refers to nothing in {row[2]}")
    tables = set(inspect(connection).get_table_names())
    missing = [f"the table {name} is missing" for name in portable.list_tables() if name not in tables]
    if missing:
        return faults + missing
    for name in portable.list_tables():
        for _line in portable.dump_table(connection, name):
            pass
    # The rows before the counters: a row that comes meanwhile must not look like one too many.
    used = {name: portable.find_highest(connection, name) for name in portable.dump_ids(connection)}
    for name, highest in portable.dump_ids(connection).items():
        if used[name] > highest:
            faults.append(f"{name} would give out an id again")
    return faults


def _vacuum(connection: Connection) -> tuple[int, int]:
    sizes = {
        "sqlite": "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
        "postgresql": "SELECT pg_database_size(current_database())",
    }
    ask_size = text(sizes[connection.dialect.name])
    before = int(connection.execute(ask_size).scalar_one())
    connection.rollback()
    # Neither product vacuums inside a transaction.
    raw = connection.connection.driver_connection
    assert raw is not None
    if connection.dialect.name == "sqlite":
        raw.execute("VACUUM")
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    else:
        raw.autocommit = True
        raw.execute("SET statement_timeout = 0")
        for name in portable.list_tables():
            raw.execute(f'VACUUM (ANALYZE) "{name}"')
        raw.autocommit = False
    after = int(connection.execute(ask_size).scalar_one())
    return before, after


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
