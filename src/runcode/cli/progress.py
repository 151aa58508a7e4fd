"""A transfer's progress on stderr: a bar on a terminal, a line now and then elsewhere.

Called with every chunk, so it looks at the clock first and mostly does nothing.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager

from runcode.core.terminal import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runcode.cli.output import Output

_TERMINAL_EVERY_S = 0.1
_LOG_EVERY_S = 15.0
_BAR_WIDTH = 20


@contextmanager
def progress_bar(output: Output, untrusted_name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yields what a transfer calls with (bytes so far, total or None). The bar is gone at the end."""
    on_terminal = os.isatty(2) and os.environ.get("TERM") != "dumb"
    name = printable(untrusted_name, limit=30)
    every_s = _TERMINAL_EVERY_S if on_terminal else _LOG_EVERY_S
    began = time.monotonic()
    next_at = began + every_s
    drawn = False

    def show(done: int, total: int | None) -> None:
        nonlocal next_at, drawn
        now = time.monotonic()
        if now < next_at:
            return
        next_at = now + every_s
        text = render_progress(name, done, total, now - began)
        if on_terminal:
            drawn = True
            _draw(f"\r{text}\x1b[K")
        else:
            output.notice(text)

    try:
        yield show
    finally:
        if drawn:
            _draw("\r\x1b[K")


def render_progress(name: str, done: int, total: int | None, elapsed_s: float) -> str:
    """`name [#####     ]  25 %  64.0 of 256.0 MB  80.1 MB/s  2 s left`"""
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    speed = f"{rate / 1e6:.1f} MB/s"
    if not total:
        return f"{name}  {done / 1e6:.1f} MB  {speed}"
    share = min(1.0, done / total)
    bar = "#" * int(share * _BAR_WIDTH)
    left = f"  {(total - done) / rate:.0f} s left" if rate > 0 else ""
    return f"{name} [{bar:<{_BAR_WIDTH}}] {share * 100:3.0f} %  {done / 1e6:.1f} of {total / 1e6:.1f} MB  {speed}{left}"


def _draw(text: str) -> None:
    try:
        os.write(2, text.encode())
    except OSError:
        pass
