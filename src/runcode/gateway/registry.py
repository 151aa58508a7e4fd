"""The live connections, and cutting those that lost their right.

Owns: which connections are open, found by workspace, session or user, and whether
there is room for one more. Never: decides who may pass (`admission` does) or talks
SSH. Called by `connection` (enter, leave) and by `watcher` (who is touched by a change).

Threat: someone with a good key opens connections until nobody else gets one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Protocol

from runcode.core.sources import network_of
from runcode.gateway.admission import AdmissionPolicy, Offer, Route
from runcode.gateway.directory import ChangeBatch


class LiveConnection(Protocol):
    """A connection whose client has authenticated."""

    offer: Offer
    route: Route

    @property
    def open_channels(self) -> int: ...

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes of channel data so far: towards the box, towards the client."""
        ...

    def cut(self, reason: str) -> None:
        """End it now, on both legs; what is still queued is not waited for."""
        ...

    def finish(self, reason: str) -> None:
        """End both legs after what is queued for each; `reason` is shown to the client."""
        ...


class ConnectionRegistry:
    """Live connections by what a change may name. Not thread-safe: one event loop owns it."""

    def __init__(self) -> None:
        self._all: set[LiveConnection] = set()
        self._carried_before = (0, 0)
        self._empty = asyncio.Event()
        self._empty.set()
        self._sources: Counter[str] = Counter()
        self._by_name: defaultdict[tuple[str, int], set[LiveConnection]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, connection: LiveConnection) -> bool:
        return connection in self._all

    def __iter__(self) -> Iterator[LiveConnection]:
        return iter(tuple(self._all))

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes of channel data of all connections so far, also of ended ones: towards boxes, towards clients."""
        to_box, to_client = self._carried_before
        for connection in self._all:
            up, down = connection.carried
            to_box, to_client = to_box + up, to_client + down
        return to_box, to_client

    async def wait_empty(self) -> None:
        await self._empty.wait()

    def find_no_room(self, offer: Offer, route: Route, policy: AdmissionPolicy) -> str | None:
        """Why there is no place for one more like this, in words for a person; None when there is."""
        if len(self._all) >= policy.max_connections:
            return "the gateway has no room for another connection: try again later"
        if self._sources[network_of(offer.source)] >= policy.max_connections_per_source:
            return "there are too many connections from this address: close some of them"
        if len(self._by_name.get(("user", route.session.user_id), ())) >= policy.max_connections_per_user:
            return "this user has too many connections: close some of them"
        return None

    def enter(self, connection: LiveConnection) -> None:
        if connection not in self._all:
            self._sources[network_of(connection.offer.source)] += 1
        self._all.add(connection)
        self._empty.clear()
        for name in _names(connection):
            self._by_name[name].add(connection)

    def leave(self, connection: LiveConnection) -> None:
        """Forget it; one that is not (any more) inside is left alone."""
        if connection in self._all:
            up, down = connection.carried
            self._carried_before = (self._carried_before[0] + up, self._carried_before[1] + down)
            source = network_of(connection.offer.source)
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]
        self._all.discard(connection)
        if not self._all:
            self._empty.set()
        for name in _names(connection):
            found = self._by_name.get(name)
            if found is not None:
                found.discard(connection)
                if not found:
                    del self._by_name[name]

    def find_by_workspace(self, workspace_id: int) -> frozenset[LiveConnection]:
        return frozenset(self._by_name.get(("workspace", workspace_id), ()))

    def find_touched(self, batch: ChangeBatch) -> set[LiveConnection]:
        """The connections that a batch of changes may concern."""
        if batch.everything:
            return set(self._all)
        touched: set[LiveConnection] = set()
        named: tuple[tuple[str, Iterable[int]], ...] = (
            ("workspace", batch.workspace_ids),
            ("session", batch.session_ids),
            ("user", batch.user_ids),
        )
        for kind, numbers in named:
            for number in numbers:
                touched |= self._by_name.get((kind, number), set())
        return touched


def _names(connection: LiveConnection) -> tuple[tuple[str, int], ...]:
    session = connection.route.session
    return (
        ("workspace", connection.route.workspace.workspace_id),
        ("session", session.session_id),
        ("user", session.user_id),
    )
