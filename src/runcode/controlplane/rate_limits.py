"""How fast one caller may call: token buckets, in the memory of this process.

Owns: the buckets, their rates and what is forgotten. Called by `edge` (addresses)
and by `request_io` (tokens). How fast passwords may be tried is another matter:
`services/sign_in_pace.py`.

Threat: one caller who takes all of the server; guessing of tokens and codes; a
flood from many addresses that fills the memory, or that shuts others out.
Guarantee: each address (an IPv6 customer's /64) and each token has a bucket of its
own, so that one of them never empties another's. What is kept is bounded; what is
forgotten under a flood is a bucket that begins full again, never an empty one.

Each process counts for itself: with N replicas behind a balancer, up to N times
the rate passes.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from runcode.core.errors import RunCodeError
from runcode.core.sources import network_of

_KEPT_MAX: Final = 20_000
_RATE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?):(\d{1,6})", re.ASCII)
# What somebody without an account may call, and guess at.
# Gateways call for everybody who connects through them, from one address.
_GATEWAY_PATH: Final = "/internal/"
_SIGN_IN_PATHS: Final = ("/sign-in", "/auth/", "/account/password", "/api/rc/auth/")


@dataclass(frozen=True)
class Rate:
    """`burst` calls at once, then `per_s` more each second."""

    per_s: float
    burst: int


@dataclass(frozen=True)
class LimitPolicy:
    """None: no limit. `strangers`: sign-in, the exchange of codes, and calls with a token that is none.

    `gateways`: the internal API, by address, whoever calls it.
    """

    token: Rate | None = Rate(per_s=50, burst=200)
    address: Rate | None = Rate(per_s=200, burst=1000)
    strangers: Rate | None = Rate(per_s=5, burst=60)
    gateways: Rate | None = Rate(per_s=2000, burst=4000)


class Buckets:
    """One bucket a key. `take` costs two look-ups."""

    def __init__(self, rate: Rate, monotonic: Callable[[], float], *, kept_max: int = _KEPT_MAX) -> None:
        self._every_s = 1 / rate.per_s
        self._depth_s = (rate.burst - 1) * self._every_s
        self._monotonic = monotonic
        self._kept_max = kept_max
        # The moment at which a bucket is full again, the longest untouched first.
        self._full_at: dict[object, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: object) -> float:
        """Take one: 0, or the seconds until there is one, and then none is taken."""
        now = self._monotonic()
        full_at = max(self._full_at.pop(key, now), now)
        wait_s = full_at - now - self._depth_s
        if wait_s > 1e-9:
            self._full_at[key] = full_at
            return wait_s
        self._full_at[key] = full_at + self._every_s
        if len(self._full_at) > self._kept_max:
            self._forget()
        return 0.0

    def _forget(self) -> None:
        """Down to nine tenths, so that a flood does not come here at each call."""
        for key in list(self._full_at)[: len(self._full_at) - self._kept_max * 9 // 10]:
            del self._full_at[key]


class RateLimits:
    """All limits of one process. Not thread-safe: one event loop owns it."""

    def __init__(
        self,
        policy: LimitPolicy | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        on_limited: Callable[[str], None] | None = None,
    ) -> None:
        """`on_limited` is told `token`, `address`, `strangers` or `gateways` for each call that is refused."""
        policy = policy or LimitPolicy()
        self._on_limited = on_limited
        self._buckets = {
            name: Buckets(rate, monotonic)
            for name, rate in (
                ("token", policy.token),
                ("address", policy.address),
                ("strangers", policy.strangers),
                ("gateways", policy.gateways),
            )
            if rate is not None
        }

    def require_address(self, address: str, path: str) -> None:
        """One call from there. Raises `RateLimited`."""
        network = network_of(address)
        if path.startswith(_GATEWAY_PATH):
            self._require("gateways", network)
            return
        self._require("address", network)
        if path.startswith(_SIGN_IN_PATHS):
            self._require("strangers", network)

    def require_stranger(self, address: str) -> None:
        """One call that proved nobody. Raises `RateLimited`."""
        self._require("strangers", network_of(address))

    def require_caller(self, key: object) -> None:
        """One call of a token or a signed-in browser. Raises `RateLimited`."""
        self._require("token", key)

    def _require(self, name: str, key: object) -> None:
        buckets = self._buckets.get(name)
        if buckets is None:
            return
        wait_s = buckets.take(key)
        if wait_s > 0:
            if self._on_limited is not None:
                self._on_limited(name)
            raise RateLimited(wait_s)


class RateLimited(RunCodeError):
    """`retry_after_s` is whole seconds, at least one (RFC 9110 §10.2.3)."""

    def __init__(self, wait_s: float) -> None:
        self.retry_after_s = max(1, math.ceil(wait_s))
        super().__init__(
            "rate_limited", "too many calls from here", resolution=f"wait {self.retry_after_s} s, then retry"
        )


def parse_rate(text: str, option: str) -> Rate | None:
    """`RATE:BURST`, calls a second and calls at once, or `off` → None. Raises `usage`."""
    found = _RATE.fullmatch(text)
    if text == "off":
        return None
    if found is None or float(found[1]) <= 0 or int(found[2]) < 1:
        raise RunCodeError(
            "usage",
            f"{option} {text!r} is not a rate",
            resolution=f"write {option} 50:200 (a second : at once), or off",
        )
    return Rate(per_s=float(found[1]), burst=int(found[2]))
