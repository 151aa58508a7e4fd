"""All rows of a database as plain lines, and back: from either product to either.

Owns: which tables and ids belong to a copy, and how values become JSON. Called by
the operator's backup and restore, in a thread, inside one transaction of the caller's:
a copy is of one moment. Never: a file (that is `server.backup_file`).

Guarantee: rows are put back under the schema they were taken from, then migrated
forward. An id that was ever given out is not given out again.
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import JSON, Connection, DateTime, MetaData, Table, func, select, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError

from runcode.controlplane.store import migrate
from runcode.controlplane.store.models import Base, EventRow
from runcode.core.errors import RunCodeError

# What was given out between a copy and the loss of its original is not known: those ids are passed over.
_IDS_PASSED_OVER = 1000
_ROWS_AT_ONCE = 500
# No counter comes near it, and both products can still count on from there.
_ID_MAX = 2**62
# Of JSON that is none or nests without end, and of a number that no column holds.
_UNREADABLE = (ValueError, RecursionError, OverflowError)


def find_schema(connection: Connection) -> str:
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def list_tables() -> list[str]:
    """Parents before what refers to them."""
    return [table.name for table in Base.metadata.sorted_tables]


def dump_table(connection: Connection, name: str) -> Iterator[bytes]:
    """JSON Lines: the columns' names, then a list for each row, in the order of the key."""
    table = Base.metadata.tables[name]
    yield _line([column.name for column in table.columns])
    rows = connection.execution_options(stream_results=True, yield_per=_ROWS_AT_ONCE).execute(
        select(table).order_by(*table.primary_key.columns)
    )
    for row in rows:
        yield _line([_plain(value) for value in row])


def dump_ids(connection: Connection) -> dict[str, int]:
    """Table → the highest id that it ever gave out."""
    found: dict[str, int] = {}
    for name in _counted_tables(Base.metadata):
        if connection.dialect.name == "sqlite":
            query = text("SELECT seq FROM sqlite_sequence WHERE name = :name")
            found[name] = connection.execute(query, {"name": name}).scalar() or 0
        else:
            sequence = _find_sequence(connection, name)
            last, called = connection.execute(text(f"SELECT last_value, is_called FROM {sequence}")).one()  # noqa: S608
            found[name] = int(last) if called else 0
    return found


def find_highest(connection: Connection, name: str) -> int:
    """The highest id among a table's rows; 0 without any."""
    return connection.execute(select(func.max(Base.metadata.tables[name].c.id))).scalar() or 0


def load(
    connection: Connection, schema: str, tables: Mapping[str, Iterable[bytes]], highest_ids: Mapping[str, int]
) -> dict[str, int]:
    """Make `schema`, put the rows in, migrate to this version's; returns how many rows each table got.

    Raises `io_error` for a schema that this version does not know, and for rows that do not fit it.
    """
    if schema not in migrate.KNOWN_REVISIONS:
        raise RunCodeError(
            "io_error",
            f"the backup's schema {schema[:20]!r} is not known here",
            resolution="restore it with the version of RunCode that made it, or a newer one",
        )
    migrate.upgrade(connection, schema)
    known = MetaData()
    known.reflect(connection)
    counts: dict[str, int] = {}
    for table in reversed(known.sorted_tables):
        # What a migration lays into a new database stands in the copy, as it had become.
        if table.name in tables:
            connection.execute(table.delete())
    for table in known.sorted_tables:
        if table.name in tables:
            counts[table.name] = _load_rows(connection, table, iter(tables[table.name]))
    unknown = sorted(set(tables) - set(counts))
    if unknown:
        raise _does_not_fit(unknown[0])
    for name in _counted_tables(known):
        highest = max(highest_ids.get(name, 0), find_highest(connection, name)) + _IDS_PASSED_OVER
        if highest > _ID_MAX:
            raise _does_not_fit(name)
        _give_out_after(connection, name, highest)
    migrate.upgrade(connection)
    return counts


def _load_rows(connection: Connection, table: Table, lines: Iterator[bytes]) -> int:
    try:
        names = json.loads(next(lines))
        columns = [table.c[name] for name in names]
    except (StopIteration, KeyError, TypeError, *_UNREADABLE) as error:
        raise _does_not_fit(table.name) from error
    for column in columns:
        if isinstance(column.type, JSON):
            # A value that is not there, rather than JSON's null.
            column.type.none_as_null = bool(column.nullable)
    count = 0
    while batch := list(itertools.islice(lines, _ROWS_AT_ONCE)):
        try:
            rows = [
                {
                    column.name: _typed(column.type, value)
                    for column, value in zip(columns, json.loads(line), strict=True)
                }
                for line in batch
            ]
            connection.execute(table.insert(), rows)
        except (TypeError, StatementError, *_UNREADABLE) as error:
            if isinstance(error, DBAPIError) and not isinstance(error, (DataError, IntegrityError)):
                # A full disk, a connection that went: not the rows' fault.
                raise
            raise _does_not_fit(table.name) from error
        count += len(rows)
    return count


def _counted_tables(metadata: MetaData) -> list[str]:
    """Those whose ids come from the database's counter. Events are numbered by their chain, without holes."""
    ours = Base.metadata.tables
    return [
        name
        for name, table in metadata.tables.items()
        if name in ours
        and name != EventRow.__tablename__
        and ours[name].dialect_options["sqlite"]["autoincrement"]
        and "id" in table.c
    ]


def _find_sequence(connection: Connection, table: str) -> str:
    return str(connection.execute(text("SELECT pg_get_serial_sequence(:name, 'id')"), {"name": table}).scalar_one())


def _give_out_after(connection: Connection, name: str, highest: int) -> None:
    if connection.dialect.name == "sqlite":
        values = {"name": name, "highest": highest}
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), values)
        connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :highest)"), values)
    else:
        connection.execute(
            text("SELECT setval(:sequence, :highest)"),
            {"sequence": _find_sequence(connection, name), "highest": highest},
        )


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.timezone.utc).isoformat()
    return value


def _typed(kind: Any, value: Any) -> Any:
    if value is not None and isinstance(kind, DateTime):
        moment = datetime.datetime.fromisoformat(value)
        # SQLite keeps UTC without saying so.
        return moment if kind.timezone else moment.astimezone(datetime.timezone.utc).replace(tzinfo=None)
    return value


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _does_not_fit(name: str) -> RunCodeError:
    return RunCodeError(
        "io_error",
        f"the backup's table {name[:64]!r} does not fit its schema",
        resolution="use another backup; nothing was restored",
    )
