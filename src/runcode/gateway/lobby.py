"""How many strangers may wait at the door.

Owns: the count of connections that have not authenticated, in all and by source.
asyncssh has no MaxStartups. Called by `ssh_server`.

Threat: someone opens sockets and says nothing, until nobody else gets one. With
IPv6 that someone has a whole /64 of addresses, so those count as one source.
"""

from __future__ import annotations

from collections import Counter

from runcode.core.sources import network_of


class Lobby:
    def __init__(self, *, places: int, places_per_source: int) -> None:
        self._places = places
        self._places_per_source = places_per_source
        self._waiting: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._waiting.total()

    def enter(self, source: str) -> bool:
        """May one more stranger from `source` wait? Each True is paid back by one `leave`."""
        source = network_of(source)
        if len(self) >= self._places or self._waiting[source] >= self._places_per_source:
            self._forget_empty(source)
            return False
        self._waiting[source] += 1
        return True

    def leave(self, source: str) -> None:
        source = network_of(source)
        self._waiting[source] -= 1
        self._forget_empty(source)

    def _forget_empty(self, source: str) -> None:
        if self._waiting[source] <= 0:
            del self._waiting[source]
