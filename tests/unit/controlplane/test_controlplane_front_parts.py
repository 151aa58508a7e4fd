"""Who is believed, under which name, how often: the pure parts of the edge."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runcode.controlplane.hosts import make_host_policy
from runcode.controlplane.metrics import Metrics
from runcode.controlplane.proxies import TrustedProxies
from runcode.controlplane.rate_limits import Buckets, LimitPolicy, Rate, RateLimited, RateLimits, parse_rate
from runcode.core.errors import RunCodeError

PROXY = "10.0.0.5"


class Ticks:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize(
    ("peer", "lines", "client"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        (PROXY, [], PROXY),
        (PROXY, ["198.51.100.1"], "198.51.100.1"),
        # Whatever a caller wrote stands to the left of what our own proxy saw.
        (PROXY, ["127.0.0.1, 8.8.8.8, 198.51.100.1"], "198.51.100.1"),
        (PROXY, ["127.0.0.1", "198.51.100.1"], "198.51.100.1"),
        (PROXY, ["198.51.100.1, 10.0.0.6"], "198.51.100.1"),
        (PROXY, ["10.0.0.7, 10.0.0.6"], "10.0.0.7"),
        (PROXY, ["198.51.100.1, nonsense"], PROXY),
        (PROXY, ["198.51.100.1, nonsense, 10.0.0.6"], "10.0.0.6"),
        (PROXY, ["198.51.100.1,"], PROXY),
        (PROXY, ["2001:db8::1"], "2001:db8::1"),
        (PROXY, ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.5", ["198.51.100.1"], "198.51.100.1"),
        (PROXY, ["fe80::1%eth0"], PROXY),
        (PROXY, ["198.51.100.1:4711"], PROXY),
        (PROXY, [",".join(["8.8.8.8"] * 5000)], "8.8.8.8"),
    ],
)
def test_the_nearest_address_that_is_no_proxy_of_ours_counts(peer: str, lines: list[str], client: str) -> None:
    assert TrustedProxies(["10.0.0.0/24"]).find_client(peer, lines) == client


def test_without_a_trusted_proxy_the_headers_mean_nothing() -> None:
    nobody = TrustedProxies()
    assert not nobody
    assert nobody.find_client("127.0.0.1", ["198.51.100.1"]) == "127.0.0.1"
    assert nobody.find_scheme("127.0.0.1", ["https"]) is None


def test_a_scheme_counts_only_when_it_is_said_once() -> None:
    trusted = TrustedProxies([PROXY])
    assert trusted.find_scheme(PROXY, ["https"]) == "https"
    assert trusted.find_scheme(PROXY, ["https, http"]) is None
    assert trusted.find_scheme(PROXY, ["https", "https"]) is None
    assert trusted.find_scheme(PROXY, ["gopher"]) is None
    assert trusted.find_scheme("10.0.0.6", ["https"]) is None


@pytest.mark.parametrize("text", ["", "proxy.example", "10.0.0.5/24", "10.0.0.0/33", "*", "0.0.0.0/-1"])
def test_a_network_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RunCodeError) as caught:
        TrustedProxies([text])
    assert caught.value.code == "usage"


# ---------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    ("bound", "public", "host", "welcome"),
    [
        ("127.0.0.1", None, b"127.0.0.1:8080", True),
        ("127.0.0.1", None, b"localhost", True),
        ("127.0.0.1", None, b"LOCALHOST:1", True),
        ("127.0.0.1", None, b"[::1]:8080", True),
        ("127.0.0.1", None, b"evil.example", False),
        ("127.0.0.1", None, b"127.0.0.1.evil.example", False),
        ("127.0.0.1", None, b"192.0.2.1", False),
        ("127.0.0.1", "https://rc.example", b"rc.example", True),
        ("127.0.0.1", "https://rc.example:8443", b"rc.example:8443", True),
        ("127.0.0.1", "https://rc.example", b"rc.example.", False),
        ("127.0.0.1", "https://rc.example", b"sub.rc.example", False),
        ("192.0.2.7", "https://rc.example", b"192.0.2.7:80", True),
        ("192.0.2.7", "https://rc.example", b"localhost", False),
        ("0.0.0.0", None, b"192.0.2.7", True),
        ("0.0.0.0", None, b"localhost:8080", True),
        ("0.0.0.0", None, b"evil.example", False),
        ("::", None, b"[2001:db8::1]:8080", True),
        ("0.0.0.0", None, b"0x7f000001", False),
        ("0.0.0.0", None, b"2130706433", False),
        ("127.0.0.1", None, b"", False),
        ("127.0.0.1", None, b"127.0.0.1:99999", False),
        ("127.0.0.1", None, b"127.0.0.1:", False),
        ("127.0.0.1", None, b"user@127.0.0.1", False),
        ("127.0.0.1", None, b"127.0.0.1/x", False),
        ("127.0.0.1", None, b"127.0.0.1 evil.example", False),
        ("127.0.0.1", None, b"127.0.0.1,evil.example", False),
        ("127.0.0.1", None, b"local\xc3\xa9host", False),
    ],
)
def test_a_request_names_a_host_of_ours(bound: str, public: str | None, host: bytes, welcome: bool) -> None:
    policy = make_host_policy(bound, public)
    assert policy.accepts([host]) is welcome
    assert policy.accepts([host]) is welcome
    assert not policy.accepts([host, host])
    assert not policy.accepts([])


def test_a_name_that_the_operator_allows_is_served() -> None:
    assert make_host_policy("0.0.0.0", None, ["runcode", "Inner.example"]).accepts([b"inner.EXAMPLE:8080"])


# ---------------------------------------------------------------- rates


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    ticks = Ticks()
    buckets = Buckets(Rate(per_s=10, burst=3), ticks)
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a") == pytest.approx(0.1)
    assert buckets.take("a") == pytest.approx(0.1), "what was refused is not taken"
    assert buckets.take("b") == 0
    ticks.now += 0.1
    assert buckets.take("a") == 0
    assert buckets.take("a") > 0
    ticks.now += 60
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]


def test_a_flood_of_addresses_fills_no_memory_and_shuts_nobody_out() -> None:
    ticks = Ticks()
    buckets = Buckets(Rate(per_s=1, burst=5), ticks, kept_max=100)
    most = 0
    for number in range(5000):
        buckets.take(number)
        most = max(most, len(buckets))
    assert most <= 101
    # One that was forgotten begins full.
    assert [buckets.take(0) for _ in range(5)] == [0] * 5


def test_one_address_does_not_spend_anothers() -> None:
    limits = RateLimits(LimitPolicy(address=Rate(1, 2), strangers=Rate(1, 1)), monotonic=Ticks())
    for _ in range(2):
        limits.require_address("192.0.2.1", "/api/rc/me")
    with pytest.raises(RateLimited) as caught:
        limits.require_address("192.0.2.1", "/api/rc/me")
    assert (caught.value.code, caught.value.retry_after_s) == ("rate_limited", 1)
    limits.require_address("192.0.2.2", "/api/rc/me")
    # Every address of one /64 is one.
    limits.require_address("2001:db8::1", "/auth/cli-login/")
    with pytest.raises(RateLimited):
        limits.require_address("2001:db8::2", "/auth/cli-login/")
    limits.require_address("2001:db8:0:1::2", "/auth/cli-login/")


def test_who_is_limited_is_counted() -> None:
    told: list[str] = []
    limits = RateLimits(LimitPolicy(token=Rate(1, 1)), monotonic=Ticks(), on_limited=told.append)
    limits.require_caller(7)
    with pytest.raises(RateLimited):
        limits.require_caller(7)
    limits.require_caller(("web", 7))
    assert told == ["token"]


@pytest.mark.parametrize("text", ["", "50", "50:0", "0:5", "-1:5", "a:b", "1:2:3", "1e9:5", "٥:٥"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RunCodeError) as caught:
        parse_rate(text, "--rate-token")
    assert caught.value.code == "usage"


def test_a_rate_is_read() -> None:
    assert parse_rate("0.5:10", "--rate-token") == Rate(0.5, 10)
    assert parse_rate("off", "--rate-token") is None


# ---------------------------------------------------------------- numbers


async def test_no_label_has_a_strangers_words() -> None:
    metrics = Metrics()
    metrics.observe_request("/api/rc/me", "EVIL-METHOD", 200, 0.01)
    metrics.count_refusal("evil-code")
    metrics.count_sign_in("evil", "worse")
    text = (await metrics.render()).decode()
    assert "evil" not in text.lower()
    found = {family.name for family in text_string_to_metric_families(text)}
    assert {"runcode_http_requests", "runcode_refusals", "runcode_sign_ins", "runcode_workspaces"} <= found
