"""How the operator's verbs answer: a value for programs, and a text for people.

Owns: `Answer`, and the table through which every cell is sanitized. Used by `verbs`
and `activity_verbs`; `main` prints one of the two.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from runcode.core.bundle import render_timestamp
from runcode.core.terminal import printable
from runcode.core.values import Value


class Answer(Value):
    """What a verb has to say: to a program, and to a person. None and an empty text: it has said it all already."""

    value: object
    text: str
    exit_status: int = 0


def render_time(moment: datetime.datetime | None) -> str:
    return "" if moment is None else render_timestamp(moment)


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns for people; every cell goes through the sanitizer."""
    shown = [tuple(header), *(tuple(printable(cell, limit=60) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown
    )
