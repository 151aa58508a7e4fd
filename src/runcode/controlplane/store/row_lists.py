"""Many rows as one parameter, to be joined with or inserted from: the database unpacks them, not Python.

Owns: how SQLite and Postgres unpack a JSON array, and how rows are added. A statement made
from such an array is compiled once, whatever the number of rows; SQLAlchemy's binding of each
value costs more than all the rest of a small insert. In SQLite rows that are added are bound
past it. Called by services whose transactions serve many.

Source: sqlite.org/json1.html; postgresql.org/docs/current/functions-json.html.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Insert, Integer, Subquery, Table, bindparam, insert, literal_column, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import DateTime, Text, TypeDecorator, TypeEngine

# Rows of one statement. Each number of rows is a statement of its own, and the driver keeps 128 of them prepared.
_BOUND_MAX = 20


class _Elements(FunctionElement[Any]):
    name = "row_list_elements"
    inherit_cache = True


class _Value(FunctionElement[Any]):
    name = "row_list_value"
    inherit_cache = True


def row_list(parameter: str, **columns: TypeEngine[Any]) -> Subquery:
    """A table `parameter` with these columns; give `render_rows(…)` as the parameter of that name."""
    elements = _Elements(bindparam(parameter, type_=Text())).table_valued("value", name=f"{parameter}_elements")
    values = []
    for index, (name, kind) in enumerate(columns.items()):
        value = _Value(elements.c.value, literal_column(str(index)))
        value.type = kind
        values.append(value.label(name))
    return select(*values).select_from(elements).subquery(parameter)


def render_rows(rows: Iterable[Sequence[object]]) -> str:
    """Texts, integers, None, and aware times, in the order of the columns."""
    return json.dumps(list(rows), default=_render_time, separators=(",", ":"))


def insert_rows(session: Session, table: type[DeclarativeBase], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert all of them, which have the same keys; part of the caller's transaction. A JSON column takes dicts.

    Ids that the database gives grow as the rows do.
    """
    if not rows:
        return
    names, core = tuple(rows[0]), cast(Table, table.__table__)
    connection = session.connection()
    if connection.dialect.name != "sqlite":
        listed = render_rows((n, *(row[name] for name in names)) for n, row in enumerate(rows))
        connection.execute(_make_insert(core, names), {"rows": listed})
        return
    # SQLite parses a row's JSON anew for each of its values; its driver binds many values in one go.
    for start in range(0, len(rows), _BOUND_MAX):
        chunk = rows[start : start + _BOUND_MAX]
        values = tuple(_bind(row[name]) for row in chunk for name in names)
        connection.exec_driver_sql(_render_insert(core.name, names, len(chunk)), values)


@functools.cache
def _make_insert(table: Table, names: tuple[str, ...]) -> Insert:
    rows = row_list("rows", n=Integer(), **{name: table.c[name].type for name in names})
    return insert(table).from_select(names, select(*(rows.c[name] for name in names)).order_by(rows.c.n))


@functools.lru_cache(maxsize=4 * _BOUND_MAX)
def _render_insert(table: str, names: tuple[str, ...], count: int) -> str:
    """For SQLite. Names of ours only: nothing that somebody typed."""
    columns = ", ".join(f'"{name}"' for name in names)
    row = f"({', '.join('?' * len(names))})"
    return f'INSERT INTO "{table}" ({columns}) VALUES {", ".join([row] * count)}'  # noqa: S608


def _bind(value: Any) -> str | int | None:
    if value is None or isinstance(value, str | int):
        return value
    return json.dumps(value, separators=(",", ":")) if isinstance(value, dict) else _render_time(value)


# The rows of one transaction share their times.
@functools.lru_cache(maxsize=256)
def _render_time(value: object) -> str:
    if not isinstance(value, datetime.datetime):
        raise TypeError(f"a {type(value).__name__} in a row")
    # As SQLAlchemy stores it in SQLite, so that texts sort by time.
    return value.astimezone(datetime.timezone.utc).isoformat(" ", "microseconds")[:26]


@compiles(_Elements, "sqlite")
def _sqlite_elements(element: _Elements, compiler: Any, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_Elements, "postgresql")
def _postgres_elements(element: _Elements, compiler: Any, **options: Any) -> str:
    return f"json_array_elements(CAST({compiler.process(element.clauses, **options)} AS JSON))"


@compiles(_Value, "sqlite")
def _sqlite_value(element: _Value, compiler: Any, **options: Any) -> str:
    value, index = element.clauses
    return f"json_extract({compiler.process(value, **options)}, '$[{compiler.process(index, **options)}]')"


@compiles(_Value, "postgresql")
def _postgres_value(element: _Value, compiler: Any, **options: Any) -> str:
    value, index = (compiler.process(part, **options) for part in element.clauses)
    kind = element.type.impl if isinstance(element.type, TypeDecorator) else element.type
    text = f"(({value}) ->> {index})"
    if isinstance(kind, DateTime):
        text = f"({text} || '+00')"
    return f"CAST({text} AS {compiler.dialect.type_compiler_instance.process(kind)})"
