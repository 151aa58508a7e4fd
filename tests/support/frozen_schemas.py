"""Databases as released versions left them, as SQL text that is kept: what an upgrade must be able to start from.

One file for each revision and product in `tests/contract/schemas`. A file is written
once, when its revision is released, and never changed: `python tests/support/frozen_schemas.py
REVISION` does so with this version's migrations, while they are still the released ones.
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "contract" / "schemas"
if __name__ == "__main__":
    sys.path[:0] = [str(FOLDER.parents[1])]

from sqlalchemy import Connection, MetaData, create_engine, text  # noqa: E402

from runcode.controlplane.store import migrate, postgres_database, sqlite_database, sqlite_file  # noqa: E402
from runcode.controlplane.store.location import PostgresUrl  # noqa: E402
from support.postgres import Cluster, database_name  # noqa: E402

_AT = "2026-11-23 22:00:00.000000"
# What every released version's tables could hold; a later revision adds to it.
ROWS: dict[str, list[dict[str, Any]]] = {
    "users": [
        {"id": 1, "email": "ann@example.org", "password_hash": "$argon2id$x", "is_admin": True, "created_at": _AT},
        {"id": 7, "email": "bob@example.org", "is_admin": False, "created_at": _AT, "disabled_at": _AT},
    ],
    "api_tokens": [
        {"id": 3, "user_id": 1, "name": "laptop", "token_hash": "a" * 64, "created_at": _AT},
        {"id": 4, "user_id": 7, "name": "ünï ''quoted''", "token_hash": "b" * 64, "created_at": _AT, "revoked_at": _AT},
    ],
    "workspaces": [
        {
            "id": number,
            "title": "same-title",
            "custom_title": "",
            "owner_id": 1,
            "runtime": "local",
            "host_public_key": "ssh-ed25519 AAAA",
            "desired_state": "deleted" if gone else "running",
            "observed_state": "stopped" if gone else "running",
            "observed_at": _AT,
            "endpoint_socket_path": None if gone else "/run/x.sock",
            "failures": 0,
            "checkpoints": json.dumps([] if gone else [{"step": "keeper", "record": {"pid": 4711}}]),
            "created_at": _AT,
            "deleted_at": _AT if gone else None,
        }
        for number, gone in ((5, True), (9, False))
    ],
    "workspace_host_keys": [{"workspace_id": 9, "private_key": "-----BEGIN\nKEY-----\n"}],
    "shares": [{"workspace_id": 9, "user_id": 7, "role": "manage", "created_at": _AT}],
    "sessions": [
        {
            "id": number,
            "user_id": 1,
            "workspace_id": 9,
            "token_id": 3,
            "fingerprint": "SHA256:x",
            "public_key": "ssh-ed25519 AAAA",
            "client": "cli",
            "created_at": _AT,
            "expires_at": _AT,
            "released_at": released,
        }
        for number, released in ((20, _AT), (21, None))
    ],
    "changes": [{"id": 40, "at": _AT, "kind": "created", "workspace_id": 9}],
    "events": [
        {
            "id": 60,
            "gateway": "embedded",
            "subject_id": "0" * 32,
            "phase": "start",
            "kind": "command",
            "at": _AT,
            "recorded_at": _AT,
            "workspace_id": 9,
            "detail": json.dumps({"text": "echo ü"}),
        }
    ],
}


def frozen(revision: str, product: str) -> Path:
    return FOLDER / f"{product}-{revision}.sql"


def list_frozen() -> list[str]:
    return sorted(path.stem.removeprefix("sqlite-") for path in FOLDER.glob("sqlite-*.sql"))


def lay_sqlite(path: Path, revision: str) -> None:
    """The database of that revision at `path`."""

    def fill(draft: Path) -> None:
        connection = sqlite3.connect(draft)
        connection.executescript(frozen(revision, "sqlite").read_text())
        connection.close()

    sqlite_file.create(path, fill)


def lay_postgres(cluster: Cluster, revision: str) -> PostgresUrl:
    url = cluster.make_database(empty=True)
    with cluster.connect(database_name(url)) as connection:
        connection.execute(frozen(revision, "postgres").read_text())  # type: ignore[arg-type]
    return url


def go_back(database: Path, revision: str) -> None:
    """Make a SQLite database what it was under an older schema: what that one could not hold is gone."""
    older = database.with_name("older.db")
    sqlite_database.make_at(older, lambda connection: migrate.upgrade(connection, revision))
    connection = sqlite3.connect(older, isolation_level=None)
    connection.execute("ATTACH ? AS newer", [str(database)])
    tables = connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall()
    for (table,) in tables:
        if table != "alembic_version":
            columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_info({table})"))
            connection.execute(f"DELETE FROM main.{table}")
            connection.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM newer.{table}")
    connection.close()
    for end in ("-wal", "-shm"):
        database.with_name(database.name + end).unlink(missing_ok=True)
        older.with_name(older.name + end).unlink(missing_ok=True)
    older.replace(database)


def _insert(connection: Connection) -> None:
    known = MetaData()
    known.reflect(connection)
    for name, rows in ROWS.items():
        for row in rows if name in known.tables else ():
            columns = ", ".join(row)
            marks = ", ".join(f":{column}" for column in row)
            connection.execute(text(f"INSERT INTO {name} ({columns}) VALUES ({marks})"), row)


def _freeze(revision: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        migrate.upgrade(connection, revision)
        _insert(connection)
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        frozen(revision, "sqlite").write_text("\n".join(raw.iterdump()) + "\n")
    cluster = Cluster().make()
    try:
        url = cluster.make_database(empty=True)
        with postgres_database.make_sync_engine(url).begin() as connection:
            migrate.upgrade(connection, revision)
            _insert(connection)
            for name in ("users", "api_tokens", "workspaces", "sessions", "changes"):
                connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), max(id)) FROM {name}"))
        words = [str(cluster.programs / "pg_dump"), "--inserts", "--no-owner", "--no-privileges", url.conninfo]
        dumped = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    finally:
        cluster.remove()
    # psql's own commands, and what would leave the session without a schema.
    kept = [line for line in dumped.splitlines() if not re.match(r"\\|--|SET |SELECT pg_catalog.set_config|$", line)]
    frozen(revision, "postgres").write_text("\n".join(kept) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        _freeze(name)
