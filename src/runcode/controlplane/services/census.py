"""How much of everything there is, for monitoring: numbers only, nobody's names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sqlalchemy import func, select

from runcode.controlplane.states import show_state
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import WorkspaceRow


class Census:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def count_workspaces(self) -> Mapping[str, int]:
        """How many there are in each state, as people are shown it. Deleted ones do not count."""
        grouped = (
            WorkspaceRow.desired_state,
            WorkspaceRow.observed_state,
            WorkspaceRow.activity,
            WorkspaceRow.failures > 0,
        )
        query = select(*grouped, func.count()).where(WorkspaceRow.deleted_at.is_(None)).group_by(*grouped)
        counts: Counter[str] = Counter()
        async with self._store.read() as session:
            for desired, observed, activity, failed, number in (await session.execute(query)).all():
                current, interim = show_state(
                    desired=desired, observed=observed, activity=activity, failures=int(failed)
                )
                counts[interim or current] += number
        return counts
