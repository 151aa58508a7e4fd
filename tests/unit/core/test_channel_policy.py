"""What a policy allows, how two count together, and every spelling of an address that nobody may reach."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcode.core.channel_policy import (
    EVERYTHING,
    LOOPBACK,
    NOTHING,
    ChannelPolicy,
    describe_policy,
    is_destination,
    parse_policy,
    render_policy,
)
from runcode.core.errors import UnsafeInput
from support.hidden_destinations import METADATA


@pytest.mark.parametrize("host", METADATA)
def test_no_spelling_of_a_metadata_service_is_a_destination(host: str) -> None:
    assert not is_destination(host.encode())
    assert not is_destination(host.encode(), loopback_only=True)


@pytest.mark.parametrize(
    "host", ["localhost.localdomain", "x.localhost", "ip6-localhost", "127.0.0.1.example.org", "::ffff:10.0.0.1", "::2"]
)
def test_what_only_looks_like_the_box_itself_is_not(host: str) -> None:
    assert not is_destination(host.encode(), loopback_only=True)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "127.0.0.1", "127.1", "2130706433", "0x7f.1", "::1", "[::1]", "::ffff:127.0.0.1"]
    + ["0.0.0.0", "::", "0", ""],
)
def test_the_box_itself_is_always_one(host: str) -> None:
    assert is_destination(host.encode())
    assert is_destination(host.encode(), loopback_only=True)


@pytest.mark.parametrize(
    "host", ["example.org", "db_1.internal", "10.0.0.7", "192.0.2.1", "2001:db8::1", "xn--bcher-kva.example", "a-1"]
)
def test_what_the_box_can_reach_is_one_unless_only_the_box_is(host: str) -> None:
    assert is_destination(host.encode())
    assert not is_destination(host.encode(), loopback_only=True)


@given(
    st.lists(st.sampled_from([f"{{:{form}}}" for form in ("d", "#x", "#X", "02d")]), min_size=4, max_size=4),
    st.integers(1, 4),
    st.integers(0, 0xFFFF),
)
def test_every_form_that_inet_aton_reads_is_judged_as_its_number(forms: list[str], parts: int, tail: int) -> None:
    """Four notations in one to four parts, all of 169.254.0.0/16."""
    number = 0xA9FE0000 | tail
    heads = [number >> 8 * (3 - index) & 0xFF for index in range(parts - 1)]
    pieces = [*heads, number & (1 << 8 * (5 - parts)) - 1]
    texts = [
        ("0" + format(piece, "o")) if form == "{:02d}" else form.format(piece)
        for form, piece in zip(forms, pieces, strict=False)
    ]
    host = ".".join(texts)
    # The control: the machine's own resolver takes it for that address.
    assert ipaddress.ip_address(socket.inet_aton(host)) == ipaddress.ip_address(number)
    assert not is_destination(host.encode())
    assert not is_destination(f"{host}.".encode())


@given(st.binary(max_size=64))
def test_any_bytes_have_an_answer_and_an_address_of_the_never_ones_never_yes(raw: bytes) -> None:
    assert is_destination(raw) in (True, False)
    if is_destination(raw, loopback_only=True):
        assert is_destination(raw)


POLICIES = st.builds(
    ChannelPolicy,
    direct=st.booleans(),
    remote=st.booleans(),
    streamlocal=st.booleans(),
    agent=st.booleans(),
    x11=st.booleans(),
    destinations=st.sampled_from(["network", "loopback"]),
    sessions=st.none() | st.integers(1, 9),
    opens_per_minute=st.none() | st.integers(1, 9),
)


@given(POLICIES, POLICIES)
def test_two_together_allow_no_more_than_either(one: ChannelPolicy, other: ChannelPolicy) -> None:
    both = one.narrowed_by(other)
    assert both == other.narrowed_by(one)
    assert one.covers(both)
    assert other.covers(both)
    assert EVERYTHING.covers(one)
    assert one.covers(one)
    assert parse_policy(render_policy(one)) == one


def test_read_strictly() -> None:
    assert parse_policy(None) == parse_policy({}) == EVERYTHING
    assert parse_policy({"direct": False, "sessions": 2}) == ChannelPolicy(direct=False, sessions=2)
    assert not NOTHING.covers(EVERYTHING)
    for bad in (
        [], "x", 1, {"other": True}, {"direct": 1}, {"direct": None}, {"destinations": "all"}, {"destinations": []},
        {"sessions": 0}, {"sessions": True}, {"sessions": "2"}, {"sessions": 10**9}, {"opens_per_minute": -1},
    ):  # fmt: skip
        with pytest.raises(UnsafeInput):
            parse_policy(bad)


def test_told_in_one_line() -> None:
    assert describe_policy(EVERYTHING) == "forwarding direct, remote, streamlocal, agent, x11; destinations network"
    assert describe_policy(ChannelPolicy(False, False, False, False, False, LOOPBACK, 2, 9)) == (
        "forwarding none; destinations loopback; at most sessions 2; channels a minute 9"
    )
