"""How far apart two clocks are, from what an HTTP server says."""

from __future__ import annotations

import pytest

from runcode.client.sessions import find_clock_skew

NOON = 1_764_504_000  # 2025-11-30T12:00:00Z


@pytest.mark.parametrize(
    ("said", "skew_s"),
    [
        ("Sun, 30 Nov 2025 12:00:00 GMT", 0),
        ("Sun, 30 Nov 2025 11:59:55 GMT", 0),
        ("Sun, 30 Nov 2025 12:00:09 GMT", 0),
        ("Sun, 30 Nov 2025 11:59:00 GMT", 60),
        ("Sun, 30 Nov 2025 14:00:00 GMT", -7200),
        (None, 0),
        ("", 0),
        ("yesterday", 0),
        ("Sun, 99 Nov 2025 12:00:00 GMT", 0),
        ("Sun, 30 Nov 99999999999 12:00:00 GMT", 0),
        ("\x1b[31m", 0),
    ],
)
def test_the_skew_is_what_a_readable_date_shows(said: str | None, skew_s: int) -> None:
    assert find_clock_skew(said, NOON) == skew_s
