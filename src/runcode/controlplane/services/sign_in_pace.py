"""How fast passwords and codes may be tried: slow for a guesser, never shut for the owner.

Owns: the counts of recent tries, in memory (a restart forgets them, and each replica
counts for itself; a password of ten characters or more does not fall to what that
gives). Called by `sign_ins` before a password is looked at, and by `device_logins`.

Threat: guessing one account from one address or from many; walking through
accounts; and locking an owner out by guessing on purpose.
Guarantee: each address has tries of its own, and so has each account for browsers
that it does not know. A browser that once signed in to the account carries proof
of it and has tries that nobody else can use up. Unknown accounts are counted
alike. What is kept is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from runcode.core.sources import network_of

_KEPT_MAX: Final = 10_000


@dataclass(frozen=True)
class Allowance:
    """`burst` tries at once, then one more every `every_s` seconds."""

    burst: int
    every_s: float


FROM_ONE_ADDRESS: Final = Allowance(burst=8, every_s=15)
FOR_ONE_ACCOUNT: Final = Allowance(burst=20, every_s=30)
FROM_A_KNOWN_BROWSER: Final = Allowance(burst=8, every_s=15)


class Pace:
    """Counts by name, each with its allowance."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        # The moment at which everything taken so far has been given back; before it, tries are missing.
        self._whole_at: dict[tuple[str, str], float] = {}

    def take_from(self, wanted: Sequence[tuple[tuple[str, str], Allowance]]) -> float:
        """Take one try of each: 0, or the seconds to wait, and then none is taken."""
        now = self._monotonic()
        wait_s = max(self._wait_s(name, allowance, now) for name, allowance in wanted)
        if wait_s > 0:
            return wait_s
        for name, allowance in wanted:
            self._whole_at[name] = max(self._whole_at.pop(name, now), now) + allowance.every_s
        self._forget(now)
        return 0.0

    def give_back_to(self, wanted: Sequence[tuple[tuple[str, str], Allowance]]) -> None:
        for name, allowance in wanted:
            if name in self._whole_at:
                self._whole_at[name] -= allowance.every_s

    def _wait_s(self, name: tuple[str, str], allowance: Allowance, now: float) -> float:
        missing_s = self._whole_at.get(name, now) - now
        over_s = missing_s - (allowance.burst - 1) * allowance.every_s
        return max(0.0, math.ceil(over_s))

    def _forget(self, now: float) -> None:
        if len(self._whole_at) <= _KEPT_MAX:
            return
        for name in [name for name, whole_at in self._whole_at.items() if whole_at <= now]:
            del self._whole_at[name]
        # The longest untouched go first: to push one account out, a guesser needs thousands of addresses.
        # Down to nine tenths, so that a flood does not look at all of them at each try.
        while len(self._whole_at) > _KEPT_MAX * 9 // 10:
            del self._whole_at[next(iter(self._whole_at))]


class SignInPace(Pace):
    def take(self, *, account: str, source: str, known_browser: str | None) -> float:
        """Take one try: 0, or the seconds to wait, and then none is taken."""
        return self.take_from(_counts(account, source, known_browser))

    def give_back(self, *, account: str, source: str, known_browser: str | None) -> None:
        """The password was right, so that try was no guess. Just what `take` took with these words, and no more:

        else whoever has one account could win tries at another by signing in to their own.
        """
        self.give_back_to(_counts(account, source, known_browser))


def _counts(account: str, source: str, known_browser: str | None) -> list[tuple[tuple[str, str], Allowance]]:
    """Which counts one try goes to."""
    if known_browser is not None:
        return [(("browser", known_browser), FROM_A_KNOWN_BROWSER)]
    return [(("address", network_of(source)), FROM_ONE_ADDRESS), (("account", account), FOR_ONE_ACCOUNT)]
