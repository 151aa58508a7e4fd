"""`runcode-server backup` and `restore`: the database and the keys, into one file and out of it again.

Owns: what a backup is made of, and the order of a restore. Never: boxes' storage;
that is under the data folder's `runtimes`, and as large as people make it.

Guarantee: a backup is of one moment, also while servers run. A restore makes a new
data folder and database whole, or leaves nothing; it touches no folder and no
database with anything in it.
"""

from __future__ import annotations

import asyncio
import hashlib
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from runcode import __version__
from runcode.controlplane.clock import SystemClock
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services.restoration import settle_restored
from runcode.controlplane.store import portable
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.location import PostgresUrl
from runcode.controlplane.store.sqlite_database import make_at
from runcode.core.errors import RunCodeError
from runcode.server.backup_file import Backup, reading, writing
from runcode.server.data_folder import DataFolder, list_installation_keys
from runcode.server.rendering import Answer, render_time


async def make_backup(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    path = _find_target(options)
    now = plane.clock.now()
    manifest = {
        "made_at": render_time(now),
        "runcode": __version__,
        "product": plane.store.product,
        "place": folder.load_place(),
    }
    with plane.store.translated():
        rows = await asyncio.to_thread(_write, plane.store.make_engine(), folder, path, manifest)
    value = {
        "file": str(path),
        "made_at": manifest["made_at"],
        **await asyncio.to_thread(_measure, path),
        "rows": sum(rows.values()),
    }
    said = (
        f"{path}: {value['rows']} rows and the keys, {value['bytes']} bytes, SHA-256 {value['sha256']}\n"
        "it opens every workspace: keep it as you keep a private key"
    )
    return Answer(value=value, text=said)


def _find_target(options: Namespace) -> Path:
    return Path(options.file).absolute()


def _write(engine: Engine, folder: DataFolder, path: Path, manifest: dict[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}

    def counted(name: str, lines: Iterator[bytes]) -> Iterator[bytes]:
        counts[name] = -1  # the line of names
        for line in lines:
            counts[name] += 1
            yield line

    # SQLite's deferred transaction and this one of Postgres both see one moment from their first look on.
    options = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    try:
        with engine.connect().execution_options(**options) as connection, writing(path) as backup:
            if engine.dialect.name != "sqlite":
                # Packing a large table takes longer than a transaction may rest.
                connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            schema = portable.find_schema(connection)
            backup.add_manifest({**manifest, "schema": schema, "ids": portable.dump_ids(connection)})
            for name in list_installation_keys(folder.keys):
                backup.add(f"keys/{name}", [(folder.keys / name).read_bytes()])
            for name in portable.list_tables():
                backup.add(f"tables/{name}.jsonl", counted(name, portable.dump_table(connection, name)))
    finally:
        engine.dispose()
    return counts


def restore(file: Path, folder: DataFolder, url: PostgresUrl | None) -> Answer:
    """Make a data folder and its database from a backup. Raises `io_error`, or `conflict` when something is there."""
    if folder.initialised:
        raise RunCodeError(
            "conflict",
            f"{folder.path} is a data folder already",
            resolution="name a new folder with --data-dir: a restore overwrites nothing",
        )
    if not file.is_file():
        raise RunCodeError("not_found", f"there is no backup {file}", resolution="check the path")
    with folder.locked():
        with folder.first_start() as staging, reading(file, staging.path) as backup:
            staging.take_keys(backup.keys)
            staging.keep_place(str(backup.manifest.get("place")))
            if url is not None:
                staging.remember_database(url)
            counts = _load(backup, staging, url)
            manifest = backup.manifest
        homes = folder.runtimes
    asyncio.run(_check(folder))
    value = {
        "data_dir": str(folder.path),
        "database": url.shown if url is not None else str(folder.database),
        "made_at": manifest.get("made_at"),
        "rows": sum(counts.values()),
    }
    said = (
        f"restored {value['rows']} rows as of {value['made_at']} into {value['database']}\n"
        "look at what was taken away since then, and is back: `user list`, `token list`, shares\n"
        f"boxes' storage is not part of a backup: lay it into {homes} before the first `up`"
    )
    return Answer(value=value, text=said)


def _load(backup: Backup, staging: DataFolder, url: PostgresUrl | None) -> dict[str, int]:
    counts: dict[str, int] = {}

    def fill(connection: Connection) -> None:
        ids = backup.manifest.get("ids")
        tables = {name: backup.read_table(name) for name in backup.tables}
        known = ids if isinstance(ids, dict) else {}
        highest = {name: number for name, number in known.items() if type(number) is int}
        counts.update(portable.load(connection, str(backup.manifest["schema"]), tables, highest))
        settle_restored(connection, SystemClock().now())

    if url is None:
        make_at(staging.database, fill)
    else:
        from runcode.controlplane.store.postgres_database import make_in

        make_in(url, fill)
    return counts


async def _check(folder: DataFolder) -> None:
    """What was restored can be opened, and its keys are its own."""
    store = await Store.open(folder.load_location(), verify=True, upgrade=False)
    await store.close()


def _measure(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
