"""Which workspaces are in use: open channels, and when one last carried data.

Owns: the look, once a second, at every live connection's counters, so that the
data path keeps no clock, and the report of use to whoever keeps events. Never:
decides what idle means for anybody (who stops workspaces does). Started and
stopped by `server`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from runcode.gateway.registry import ConnectionRegistry, LiveConnection

_LOOK_EVERY_S = 1.0
REPORT_EVERY_S = 60.0


@dataclass(frozen=True)
class WorkspaceUse:
    """`quiet_s`: since a channel carried data, opened or closed, to about a second; None: never since the start."""

    connections: int
    open_channels: int
    quiet_s: float | None

    def is_idle(self, after_s: float) -> bool:
        """No channel is open, or none has carried data for `after_s` seconds."""
        return self.open_channels == 0 or (self.quiet_s is not None and self.quiet_s >= after_s)


class UsageWatch:
    """`report(workspace_id, ago_s)` is called for a workspace that was in use, at most every `report_every_s`."""

    def __init__(
        self,
        registry: ConnectionRegistry,
        *,
        report: Callable[[int, float], None] = lambda _workspace_id, _ago_s: None,
        report_every_s: float = REPORT_EVERY_S,
    ) -> None:
        self._registry = registry
        self._report = report
        self._report_every_s = report_every_s
        self._unreported: set[int] = set()
        self._reported_at: dict[int, float] = {}
        self._seen: weakref.WeakKeyDictionary[LiveConnection, tuple[int, int, int]] = weakref.WeakKeyDictionary()
        # One number for each workspace that was ever used: as many as the control plane has.
        self._used_at: dict[int, float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._look_regularly(), name="gateway-usage")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def find_use(self, workspace_id: int) -> WorkspaceUse:
        self.look()
        connections = self._registry.find_by_workspace(workspace_id)
        used_at = self._used_at.get(workspace_id)
        return WorkspaceUse(
            connections=len(connections),
            open_channels=sum(connection.open_channels for connection in connections),
            quiet_s=None if used_at is None else asyncio.get_running_loop().time() - used_at,
        )

    def look(self) -> None:
        """Compare every connection's counters with what they were."""
        now = asyncio.get_running_loop().time()
        for connection in self._registry:
            counters = (*connection.carried, connection.open_channels)
            if self._seen.get(connection) != counters:
                self._seen[connection] = counters
                self._used_at[connection.route.workspace.workspace_id] = now
                self._unreported.add(connection.route.workspace.workspace_id)
        for workspace_id in tuple(self._unreported):
            # The last use before a silence is reported as well, when its turn comes.
            if now - self._reported_at.get(workspace_id, float("-inf")) >= self._report_every_s:
                self._reported_at[workspace_id] = now
                self._unreported.discard(workspace_id)
                self._report(workspace_id, now - self._used_at[workspace_id])

    async def _look_regularly(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(_LOOK_EVERY_S)
