"""AES-GCM frames as bytes: what is sealed anew in place, where it stops, and what is refused."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runcode.gateway.framing import FRAME_OVERHEAD, BadFrame, GcmKey, Stretch, read_message, reseal, wanted_size
from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u

LONGEST = 256 * 1024
PLENTY = 1 << 40


class Wire:
    """Both ends of both hops: `sender` → `opener`, `sealer` → `receiver`."""

    def __init__(self, *, key_sizes: tuple[int, int] = (16, 16), first: bytes = bytes(12)) -> None:
        one, other = (os.urandom(size) for size in key_sizes)
        self.sender, self.opener = GcmKey(one, first), GcmKey(one, first)
        self.sealer, self.receiver = GcmKey(other, first), GcmKey(other, first)
        self.counted: list[tuple[int, int]] = []

    def frame(self, payload: bytes, padding: int | None = None) -> bytes:
        return self.frame_of(pad(payload) if padding is None else bytes((padding,)) + payload)

    def frame_of(self, packet: bytes) -> bytes:
        return u(len(packet)) + self.sender.seal(u(len(packet)), packet)

    def reseal(self, raw: bytes, *, sealer: bool = True, budget: int = PLENTY) -> tuple[Stretch, bytearray]:
        buffer = bytearray(raw)
        stretch = reseal(
            memoryview(buffer),
            0,
            len(buffer),
            opener=self.opener,
            sealer=self.sealer if sealer else None,
            longest=LONGEST,
            budget=budget,
            count=lambda channel, size: self.counted.append((channel, size)),
        )
        return stretch, buffer

    def read(self, raw: bytes | bytearray) -> list[bytes]:
        """The messages that the receiver finds."""
        found = []
        while raw:
            size = wanted_size(memoryview(raw), LONGEST)
            found.append(read_message(self.receiver.open(bytes(raw[:4]), bytes(raw[4:size]))))
            raw = raw[size:]
        return found


def pad(payload: bytes, extra_blocks: int = 0) -> bytes:
    padding = 4 + -(5 + len(payload)) % 16 + 16 * extra_blocks
    return bytes((padding,)) + payload + os.urandom(padding)


def data(channel: int, text: bytes) -> bytes:
    return b"\x5e" + u(channel) + s(text)


def stderr(channel: int, text: bytes) -> bytes:
    return b"\x5f" + u(channel) + u(1) + s(text)


WINDOW = b"\x5d" + u(7) + u(1 << 20)
REQUEST = b"\x62" + u(7) + s(b"exec") + b"\x01" + s(b"true")


def test_data_and_windows_pass_in_place_and_are_counted() -> None:
    wire = Wire(key_sizes=(16, 32))
    payloads = [data(3, b"x" * 32_768), WINDOW, stderr(4, b"err"), data(3, b"")]
    raw = b"".join(map(wire.frame, payloads))
    stretch, sent = wire.reseal(raw)
    assert (stretch.stop, stretch.packets, stretch.opened, stretch.fault) == (len(raw), 4, None, None)
    assert stretch.octets == len(raw) - 4 * FRAME_OVERHEAD
    assert sent != raw
    assert wire.read(sent) == payloads
    assert wire.counted == [(3, 32_768), (4, 3)]


@pytest.mark.parametrize("number", sorted({*range(1, 101), 127, 128, 255} - {93, 94, 95}))
def test_every_other_message_stops_the_stretch_and_is_handed_out(number: int) -> None:
    wire = Wire()
    payload = bytes((number,)) + u(7) + u(9)
    before, after = wire.frame(WINDOW), wire.frame(payload)
    stretch, sent = wire.reseal(before + after + wire.frame(WINDOW))
    assert (stretch.stop, stretch.packets) == (len(before), 1)
    assert stretch.opened is not None
    assert read_message(stretch.opened) == payload
    assert wire.read(sent[: stretch.stop]) == [WINDOW]
    # What follows can be gone on with, each side's nonce where it should be.
    at = stretch.stop + FRAME_OVERHEAD + len(stretch.opened)
    stretch, sent = wire.reseal(bytes(sent[at:]))
    assert (stretch.packets, wire.read(sent)) == (1, [WINDOW])


def test_without_a_key_to_seal_with_each_packet_is_handed_out() -> None:
    wire = Wire()
    stretch, _ = wire.reseal(wire.frame(WINDOW), sealer=False)
    assert stretch.packets == 0
    assert stretch.opened is not None
    assert read_message(stretch.opened) == WINDOW
    assert wire.counted == []


def test_the_budget_ends_a_stretch_so_that_keys_are_renewed() -> None:
    wire = Wire()
    frames = [wire.frame(data(1, b"x" * 1000)) for _ in range(5)]
    one = len(frames[0]) - FRAME_OVERHEAD
    stretch, sent = wire.reseal(b"".join(frames), budget=2 * one)
    assert (stretch.packets, stretch.octets) == (2, 2 * one)
    assert stretch.opened is not None
    assert len(wire.counted) == 2
    assert len(wire.read(sent[: stretch.stop])) == 2


def test_an_unfinished_frame_waits_untouched() -> None:
    wire = Wire()
    whole = wire.frame(data(1, b"hello"))
    for size in range(len(whole)):
        stretch, buffer = wire.reseal(whole[:size])
        assert (stretch.stop, stretch.packets, stretch.opened, stretch.fault) == (0, 0, None, None)
        assert buffer == whole[:size]
        assert size < wanted_size(bytearray(whole[:size]), LONGEST) <= len(whole)
    assert wire.reseal(whole)[0].packets == 1


def test_the_invocation_counter_wraps_and_leaves_the_fixed_part_alone() -> None:
    first = b"\xff\xff\xff\xff" + b"\xff" * 7 + b"\xfe"
    wire = Wire(first=first)
    payloads = [data(1, bytes((n,))) for n in range(4)]
    _, sent = wire.reseal(b"".join(map(wire.frame, payloads)))
    assert wire.read(sent) == payloads
    assert wire.opener.invocation == wire.sealer.invocation == 2
    assert wire.opener.fixed == 0xFFFFFFFF << 64


@pytest.mark.parametrize("length", [0, 1, 15, 17, 24, LONGEST + 16, 0xFFFFFFF0, 0xFFFFFFFF])
def test_a_length_that_cannot_be_is_refused_before_anything_is_awaited(length: int) -> None:
    wire = Wire()
    good = wire.frame(WINDOW)
    stretch, sent = wire.reseal(good + u(length) + bytes(64))
    assert stretch.fault is not None
    assert not stretch.fault.mac
    # What came before it was right, and is sent.
    assert (stretch.stop, wire.read(sent[: stretch.stop])) == (len(good), [WINDOW])
    with pytest.raises(BadFrame):
        wanted_size(bytearray(u(length)), LONGEST)


@pytest.mark.parametrize("at", [4, 5, 20, -1])
def test_a_changed_bit_is_a_tag_that_does_not_fit(at: int) -> None:
    wire = Wire()
    good, bad = wire.frame(WINDOW), bytearray(wire.frame(data(1, b"secret")))
    bad[at] ^= 1
    stretch, sent = wire.reseal(good + bytes(bad))
    assert stretch.fault is not None
    assert stretch.fault.mac
    assert wire.read(sent[: stretch.stop]) == [WINDOW]
    assert wire.counted == []


def test_a_frame_that_comes_twice_is_a_tag_that_does_not_fit() -> None:
    wire = Wire()
    frame = wire.frame(WINDOW)
    stretch, _ = wire.reseal(frame + frame)
    assert (stretch.packets, stretch.fault is not None and stretch.fault.mac) == (1, True)


@pytest.mark.parametrize("padding", [0, 3, 15, 16, 255])
def test_padding_that_leaves_no_message_never_passes(padding: int) -> None:
    """A message number that lies in the padding is none: what we take for data, the receiver would not."""
    wire = Wire()
    packet = bytes((padding,)) + b"\x5e" + bytes(14)
    stretch, _ = wire.reseal(wire.frame_of(packet))
    assert stretch.packets == 0
    assert stretch.opened == packet
    with pytest.raises(BadFrame, match="padding"):
        read_message(packet)


def test_more_padding_than_is_needed_passes_as_it_is() -> None:
    wire = Wire()
    stretch, sent = wire.reseal(wire.frame_of(pad(data(1, b"x"), extra_blocks=13)))
    assert stretch.packets == 1
    assert wire.counted == [(1, 1)]
    assert wire.read(sent) == [data(1, b"x")]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(data, st.integers(0, 0xFFFFFFFF), st.binary(max_size=300)),
            st.builds(stderr, st.integers(0, 9), st.binary(max_size=50)),
            st.just(WINDOW),
            st.just(REQUEST),
            st.binary(min_size=1, max_size=40),
        ),
        max_size=12,
    ),
    st.lists(st.integers(1, 400), min_size=1, max_size=20),
)
def test_however_it_is_cut_up_every_message_arrives_once_and_in_order(payloads: list[bytes], cuts: list[int]) -> None:
    wire = Wire()
    raw = b"".join(map(wire.frame, payloads))
    arrived, waiting = [], bytearray()
    sizes = itertools.cycle(cuts)
    while raw or waiting:
        size = next(sizes)
        waiting += raw[:size]
        raw = raw[size:]
        while True:
            stretch, buffer = wire.reseal(bytes(waiting))
            assert stretch.fault is None
            arrived += wire.read(buffer[: stretch.stop])
            if stretch.opened is None:
                waiting = buffer[stretch.stop :]
                break
            arrived.append(read_message(stretch.opened))
            waiting = buffer[stretch.stop + FRAME_OVERHEAD + len(stretch.opened) :]
        if not raw and waiting:
            raise AssertionError("a whole frame was not taken")
    assert arrived == payloads
