"""What ran on which runtime: the table that the run's summary prints, runtime × case.

Owns: the marker `runtime_case(TABLE)`. A test that carries it has a parametrized
`case`, whose first value names the column; its function and other parameters name
the row. `conftest` feeds it what was collected and what happened.

Guarantee: every collected case has a cell. One that was left out, skipped or never
reached reads NOT RUN; a case that a runtime does not have reads `–`.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

MARKER = "runtime_case"
PASS, FAIL, NOT_RUN, NONE = "pass", "FAIL", "NOT RUN", "–"


class RuntimeTables:
    def __init__(self) -> None:
        self._places: dict[str, tuple[str, str, str]] = {}
        self._cells: dict[tuple[str, str, str], str] = {}

    def add_items(self, items: Iterable[pytest.Item]) -> None:
        """Cells for what was collected, also for what is about to be left out."""
        for item in items:
            marker = item.get_closest_marker(MARKER)
            callspec = getattr(item, "callspec", None)
            if marker is None or callspec is None or "case" not in callspec.params:
                continue
            table = str(marker.args[0])
            others = [f"{name} {value}" for name, value in callspec.params.items() if name != "case"]
            function = str(getattr(item, "originalname", None) or item.nodeid)
            row = function.removeprefix("test_").replace("_", " ")
            if others:
                row += f" ({', '.join(others)})"
            place = (table, row, str(callspec.params["case"]))
            self._places[item.nodeid] = place
            self._cells[place] = NOT_RUN

    def add_report(self, report: pytest.TestReport) -> None:
        place = self._places.get(report.nodeid)
        if place is None:
            return
        if report.failed:
            self._cells[place] = FAIL
        elif report.when == "call" and report.passed and self._cells[place] != FAIL:
            self._cells[place] = PASS

    def render(self) -> list[tuple[str, list[str]]]:
        """(title, lines) of each table that has cells."""
        return [
            (f"runtime × case: {table}", self._render_one(table))
            for table in dict.fromkeys(t for t, _, _ in self._cells)
        ]

    def _render_one(self, table: str) -> list[str]:
        cells = {(row, column): text for (name, row, column), text in self._cells.items() if name == table}
        rows = list(dict.fromkeys(row for row, _ in cells))
        columns = list(dict.fromkeys(column for _, column in cells))
        widths = [max(len(column), len(NOT_RUN)) for column in columns]
        first = max(len(row) for row in rows)

        def line(head: str, words: Iterable[str]) -> str:
            body = "  ".join(word.ljust(width) for word, width in zip(words, widths, strict=True))
            return f"{head.ljust(first)}  {body}".rstrip()

        lines = [line("", columns)]
        lines += [line(row, [cells.get((row, column), NONE) for column in columns]) for row in rows]
        totals = []
        for column in columns:
            texts = [text for (_, name), text in cells.items() if name == column]
            totals.append(f"{texts.count(PASS)}/{len(texts)}")
        return [*lines, line("passed", totals)]
