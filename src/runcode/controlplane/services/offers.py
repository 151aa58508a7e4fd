"""What runs workspaces on this server, as far as callers may know it.

Owns: the runtimes' names, what their boxes have, and what they lack here. Set by
the composition root once the runtimes are loaded; not in the database, since it is
this process's. While nothing is set (an operator's verb), every name passes, and
whoever set up the verb has looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runcode.core.errors import RunCodeError
from runcode.runtimes.base import Capabilities


@dataclass(frozen=True)
class RuntimeOffer:
    """`obstacle`: why it cannot run boxes here now, with the fix; None when it can."""

    name: str
    capabilities: Capabilities
    obstacle: str | None = None


class RuntimeOffers:
    def __init__(self) -> None:
        self._offers: dict[str, RuntimeOffer] = {}

    def set(self, offers: Sequence[RuntimeOffer]) -> None:
        self._offers = {offer.name: offer for offer in offers}

    def list_offers(self) -> list[RuntimeOffer]:
        return list(self._offers.values())

    def require(self, name: str) -> str:
        """The name again. Raises `bad_request` when this server runs no such workspaces."""
        if self._offers and name not in self._offers:
            raise RunCodeError(
                "bad_request",
                "this server does not run such workspaces",
                resolution=f"use one of these runtimes: {', '.join(sorted(self._offers))}",
            )
        return name
