"""The bar: what it says, and that it is drawn on a terminal only and wiped at the end."""

from __future__ import annotations

import io
import os
import pty

import pytest

from runcode.cli import progress
from runcode.cli.output import Output


def test_what_the_bar_says() -> None:
    assert progress.render_progress("f", 64_000_000, 256_000_000, 2.0) == (
        "f [#####               ]  25 %  64.0 of 256.0 MB  32.0 MB/s  6 s left"
    )
    assert progress.render_progress("f", 3_000_000, None, 1.0) == "f  3.0 MB  3.0 MB/s"
    assert "100 %" in progress.render_progress("f", 10, 5, 1.0)
    assert progress.render_progress("f", 0, 5, 0.0).startswith("f [")


def test_on_a_terminal_it_is_drawn_and_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setattr(progress, "_TERMINAL_EVERY_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    kept = os.dup(2)
    os.dup2(theirs, 2)
    try:
        with progress.progress_bar(Output(io.BytesIO(), io.BytesIO()), "a\x1b]0;evil\x07b") as show:
            show(50, 100)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(theirs)
    drawn = os.read(ours, 10_000)
    os.close(ours)
    assert b" 50 %" in drawn
    assert drawn.endswith(b"\r\x1b[K")
    assert b"\x1b]0" not in drawn
    assert b"\x07" not in drawn


def test_elsewhere_it_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.BytesIO()
    monkeypatch.setattr(progress.os, "isatty", lambda _number: False)
    with progress.progress_bar(Output(io.BytesIO(), stderr), "f") as show:
        show(50, 100)
    assert stderr.getvalue() == b"", "a short transfer says nothing"
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
    with progress.progress_bar(Output(io.BytesIO(), stderr), "f") as show:
        show(50, 100)
    assert stderr.getvalue().startswith(b"runcode: f [")
    assert stderr.getvalue().count(b"\n") == 1
