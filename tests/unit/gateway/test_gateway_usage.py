"""Use of a workspace is reported once a minute at most, and the last use before a silence is reported too."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from runcode.gateway.registry import ConnectionRegistry, LiveConnection
from runcode.gateway.usage import UsageWatch


class Connection:
    def __init__(self, workspace_id: int) -> None:
        workspace = type("Workspace", (), {"workspace_id": workspace_id})
        session = type("Session", (), {"session_id": 1, "user_id": 1})
        self.route: Any = type("Route", (), {"workspace": workspace, "session": session})
        self.offer: Any = type("Offer", (), {"source": "192.0.2.1"})
        self.open_channels = 1
        self.carried = (0, 0)


class LoopClock:
    """The event loop's own clock, moved by the test."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.ahead = 0.0
        self._time = self.loop.time
        self.loop.time = lambda: self._time() + self.ahead  # type: ignore[method-assign]


async def test_use_is_told_coarsely_and_the_last_one_is_not_lost() -> None:
    clock, told = LoopClock(), list[tuple[int, int]]()
    registry, connection = ConnectionRegistry(), Connection(7)
    registry.enter(cast(LiveConnection, connection))
    watch = UsageWatch(registry, report=lambda workspace_id, ago_s: told.append((workspace_id, round(ago_s))))
    watch.look()
    assert told == [(7, 0)]
    for _ in range(3):
        connection.carried = (connection.carried[0] + 1, 0)
        clock.ahead += 10
        watch.look()
    assert told == [(7, 0)]
    # Silence from here on: the use at 30 s is told when its turn comes.
    for _ in range(6):
        clock.ahead += 10
        watch.look()
    assert told == [(7, 0), (7, 30)]
    # A held connection alone is no use.
    clock.ahead += 10_000
    watch.look()
    assert told == [(7, 0), (7, 30)]
