"""The table runtime × case tells what did not run, and never shows a failure as a pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from support.runtime_table import FAIL, NONE, NOT_RUN, PASS, RuntimeTables


def item(function: str, column: str, **others: object) -> Any:
    marker = SimpleNamespace(args=("contract",))
    return SimpleNamespace(
        nodeid=f"{function}[{column}-{others}]",
        originalname=function,
        callspec=SimpleNamespace(params={"case": column, **others}),
        get_closest_marker=lambda name: marker if name == "runtime_case" else None,
    )


def report(of: Any, when: str, outcome: str) -> Any:
    return SimpleNamespace(nodeid=of.nodeid, when=when, failed=outcome == "failed", passed=outcome == "passed")


def test_cells() -> None:
    tables = RuntimeTables()
    passes, fails, ends_badly, never, skipped = (
        item("test_start", "local"),
        item("test_start", "fake"),
        item("test_stop", "local"),
        item("test_stop", "fake"),
        item("test_crash", "local", step=2),
    )
    unmarked = SimpleNamespace(nodeid="x", get_closest_marker=lambda name: None)
    tables.add_items([passes, fails, ends_badly, never, skipped, unmarked])
    for when in ("setup", "call", "teardown"):
        tables.add_report(report(passes, when, "passed"))
        tables.add_report(report(fails, when, "failed" if when == "call" else "passed"))
        # A box that is left behind shows in the teardown only.
        tables.add_report(report(ends_badly, when, "failed" if when == "teardown" else "passed"))
        tables.add_report(report(unmarked, when, "passed"))
    tables.add_report(report(skipped, "setup", "skipped"))
    ((title, lines),) = tables.render()
    assert title == "runtime × case: contract"
    cells = {line.split("  ")[0]: line for line in lines}
    assert lines[0].split() == ["local", "fake"]
    assert cells["start"].split() == ["start", PASS, FAIL]
    assert cells["stop"].split() == ["stop", FAIL, *NOT_RUN.split()]
    assert cells["crash (step 2)"].split()[3:] == [*NOT_RUN.split(), NONE]
    assert cells["passed"].split() == ["passed", "1/3", "0/2"]


def test_without_such_tests_there_is_no_table() -> None:
    assert RuntimeTables().render() == []
