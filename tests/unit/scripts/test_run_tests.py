"""Which failures are looked at again: few, and only of tests that wait for something real."""

from __future__ import annotations

import pytest
from run_tests import SECOND_LOOKS_MAX, may_look_again

REAL = "tests/integration/test_a.py::test_it"


@pytest.mark.parametrize(
    ("failed", "may"),
    [
        ([REAL], True),
        ([f"{REAL}[{number}]" for number in range(SECOND_LOOKS_MAX)], True),
        ([f"{REAL}[{number}]" for number in range(SECOND_LOOKS_MAX + 1)], False),
        ([REAL, "tests/unit/core/test_b.py::test_it"], False),
        ([REAL, "tests/architecture/test_b.py::test_it"], False),
        ([], False),
    ],
)
def test_which_failures_are_looked_at_again(failed: list[str], may: bool) -> None:
    assert may_look_again(failed) is may
