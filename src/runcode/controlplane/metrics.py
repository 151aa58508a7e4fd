"""What is counted and measured, for Prometheus.

Owns: the registry, every metric's name, and that no label has a value which a
stranger chooses (a series for each would fill the memory): routes by their
template, methods and codes by table. Everybody counts through the methods here;
`server` adds what it knows of the gateway and of sockets as collectors.

Who may read it is decided by `routes/metrics.py` and `--metrics`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector

from runcode import __version__
from runcode.core.errors import ERRORS, RunCodeError

_log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_REQUEST_BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WRITE_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_PASS_BUCKETS_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 120.0)
# How a sign-in was tried, and how it went. Anything else is counted as `other`.
SIGN_IN_METHODS: Final = frozenset(("password", "link", "oidc", "device", "code"))
SIGN_IN_OUTCOMES: Final = frozenset(("ok", "refused", "rate_limited", "error"))
_OUTCOMES: Final = {
    "unauthorized": "refused",
    "forbidden": "refused",
    "bad_request": "refused",
    "rate_limited": "rate_limited",
}

# A series with each counter's birth, for every label: nobody asks for those.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """One process's numbers. `count_workspaces` is asked at each scrape: how many there are, by state."""

    def __init__(self, count_workspaces: Callable[[], Awaitable[Mapping[str, int]]] | None = None) -> None:
        self._count_workspaces = count_workspaces
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        registry = self.registry
        Gauge("runcode_build", "Always 1; the version is a label.", ("version",), registry=registry).labels(
            __version__
        ).set(1)
        self._requests = Counter(
            "runcode_http_requests", "Answered requests.", ("route", "method", "status"), registry=registry
        )
        self._request_s = Histogram(
            "runcode_http_request_seconds",
            "From the first byte of a request's body to the last of its answer.",
            ("route", "method"),
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )
        self._minted = Counter("runcode_sessions_minted", "Sessions given.", registry=registry)
        self._refusals = Counter(
            "runcode_refusals", "Calls that were refused, by error code.", ("code",), registry=registry
        )
        self._limited = Counter("runcode_rate_limited", "Calls over a rate limit.", ("limit",), registry=registry)
        self._sign_ins = Counter("runcode_sign_ins", "Attempts to sign in.", ("method", "outcome"), registry=registry)
        self._passes = Counter(
            "runcode_reconciler_passes",
            "What the reconciler did to workspaces.",
            ("runtime", "action", "outcome"),
            registry=registry,
        )
        self._pass_s = Histogram(
            "runcode_reconciler_pass_seconds",
            "How long that took.",
            ("runtime", "action"),
            buckets=_PASS_BUCKETS_S,
            registry=registry,
        )
        self._write_s = Histogram(
            "runcode_store_write_seconds",
            "A write transaction, from asking for its turn to its end.",
            buckets=_WRITE_BUCKETS_S,
            registry=registry,
        )
        self._workspaces = Gauge("runcode_workspaces", "Workspaces by state.", ("state",), registry=registry)
        # labels() parses and locks; requests come thousands of times a second.
        self._request_children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def add_collector(self, collector: Collector) -> None:
        """What another part knows, read at each scrape."""
        self.registry.register(collector)

    def observe_request(self, route: str, method: str, status: int, duration_s: float) -> None:
        """`route` is a template of ours, or `other`."""
        key = (route, method if method in _METHODS else OTHER, status)
        children = self._request_children.get(key)
        if children is None:
            children = (self._requests.labels(*key), self._request_s.labels(*key[:2]))
            self._request_children[key] = children
        children[0].inc()
        children[1].observe(duration_s)

    def count_mint(self) -> None:
        self._minted.inc()

    def count_refusal(self, code: str) -> None:
        """`code` is one of `core.errors`."""
        self._refusals.labels(code if code in ERRORS else OTHER).inc()

    def count_limited(self, limit: str) -> None:
        self._limited.labels(limit).inc()

    def count_sign_in(self, method: str, outcome: str) -> None:
        """For every way in: `method` of SIGN_IN_METHODS, `outcome` of SIGN_IN_OUTCOMES."""
        self._sign_ins.labels(
            method if method in SIGN_IN_METHODS else OTHER, outcome if outcome in SIGN_IN_OUTCOMES else OTHER
        ).inc()

    @contextlib.contextmanager
    def sign_in(self, method: str) -> Iterator[None]:
        """Around an attempt: how it went is told from whether, and with which code, it raises."""
        try:
            yield
        except RunCodeError as error:
            refused = error.code in ("unauthorized", "forbidden", "bad_request")
            self.count_sign_in(
                method, "refused" if refused else error.code if error.code == "rate_limited" else "error"
            )
            raise
        except Exception:
            self.count_sign_in(method, "error")
            raise
        self.count_sign_in(method, "ok")

    def observe_pass(self, runtime: str, action: str, failed: bool, duration_s: float) -> None:
        """The reconciler did something to a workspace; `runtime` is one that this server has."""
        self._passes.labels(runtime, action, "failed" if failed else "ok").inc()
        self._pass_s.labels(runtime, action).observe(duration_s)

    def observe_write(self, duration_s: float) -> None:
        self._write_s.observe(duration_s)

    async def render(self) -> bytes:
        """All of it in Prometheus's text format."""
        if self._count_workspaces is not None:
            self._workspaces.clear()
            try:
                counts = await self._count_workspaces()
            except RunCodeError as error:
                # The other numbers are wanted most when the database is away.
                _log.warning("workspaces cannot be counted: %s", error.message)
                counts = {}
            for state, number in counts.items():
                self._workspaces.labels(state).set(number)
        return generate_latest(self.registry)
