"""Many rows as one parameter, to be joined with or inserted from: the database unpacks them, not Python.

Owns: how SQLite and Postgres unpack a JSON array. A statement made from it is compiled
once, whatever the number of rows; binding each value by itself costs more than
all the rest of a small insert. Called by services whose transactions serve many.

Source: sqlite.org/json1.html; postgresql.org/docs/current/functions-json.html.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Insert, Subquery, Table, bindparam, insert, literal_column, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import DateTime, Text, TypeDecorator, TypeEngine


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
    """Insert all of them, which have the same keys; part of the caller's transaction. A JSON column takes dicts."""
    if rows:
        names = tuple(rows[0])
        statement = _make_insert(cast(Table, table.__table__), names)
        session.execute(statement, {"rows": render_rows([row[name] for name in names] for row in rows)})


@functools.cache
def _make_insert(table: Table, names: tuple[str, ...]) -> Insert:
    rows = row_list("rows", **{name: table.c[name].type for name in names})
    # In their order, so that ids that the database gives grow as the rows do.
    return insert(table).from_select(names, select(*(rows.c[name] for name in names)))


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
