"""How many SQL statements a call takes: what grows with the rows is a query in a loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, event

# What every transaction has, whatever is asked in it.
_FRAME = ("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA")


class Statements:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.parameters: list[Any] = []

    @property
    def count(self) -> int:
        return len(self.texts)


@contextlib.contextmanager
def counted_statements() -> Iterator[Statements]:
    """All that any engine of this process executes in the meantime, but for the frames of transactions."""
    found = Statements()

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if not statement.lstrip().upper().startswith(_FRAME):
            found.texts.append(statement)
            found.parameters.append(parameters)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)
