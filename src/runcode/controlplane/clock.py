"""The clock that every rule reads, so that tests can move it.

Owns: what "now" means: aware UTC wall time. Times that bound a right (expiry) or
are shown to a person come from here; how long to wait for something does not
(that is the event loop's monotonic time).
"""

from __future__ import annotations

import datetime
from typing import Protocol

UTC = datetime.timezone.utc


class Clock(Protocol):
    def now(self) -> datetime.datetime:
        """Aware UTC."""
        ...


class SystemClock:
    def now(self) -> datetime.datetime:
        return datetime.datetime.now(UTC)
