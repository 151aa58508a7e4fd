"""What ran on which runtime: the table that the run's summary prints, runtime × case.

Owns: the marker `runtime_case(TABLE)`. A test that carries it has a parametrized
`case`, whose first value names the column; its function and other parameters name
the row. A TABLE with a × in it is the whole title, for columns that are no runtimes.
`conftest` feeds it what was collected and what happened.

Guarantee: every collected case has a cell. One that was left out, skipped or never
reached reads NOT RUN; a case that a runtime does not have reads `–`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

MARKER = "runtime_case"
PASS, FAIL, NOT_RUN, NONE = "pass", "FAIL", "NOT RUN", "–"


# (table, row, column)
Place = tuple[str, str, str]


class RuntimeTables:
    """Places and outcomes come in any order: of a spread run, the places are told last."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._outcomes: dict[str, str] = {}

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
            self.places[item.nodeid] = (table, row, str(callspec.params["case"]))

    def add_places(self, places: Mapping[str, Place]) -> None:
        """What another process collected."""
        self.places.update(places)

    def add_report(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._outcomes[report.nodeid] = FAIL
        elif report.when == "call" and report.passed:
            self._outcomes.setdefault(report.nodeid, PASS)

    def _cells(self) -> dict[Place, str]:
        return {place: self._outcomes.get(node, NOT_RUN) for node, place in self.places.items()}

    def render(self) -> list[tuple[str, list[str]]]:
        """(title, lines) of each table that has cells."""
        return [
            (table if "×" in table else f"runtime × case: {table}", self._render_one(table))
            for table in dict.fromkeys(table for table, _, _ in self.places.values())
        ]

    def _render_one(self, table: str) -> list[str]:
        cells = {(row, column): text for (name, row, column), text in self._cells().items() if name == table}
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
