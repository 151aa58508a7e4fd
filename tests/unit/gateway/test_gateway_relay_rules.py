"""The relay's rules, as transcripts: what comes in, what goes out."""

from __future__ import annotations

import contextlib

import pytest

from runcode.gateway.packets import render_string as s
from runcode.gateway.packets import render_uint32 as u
from runcode.gateway.relay import Leg, Output, PacketRelay, RelayLimits, Violation

CLIENT, BOX = Leg.CLIENT, Leg.BOX
SUCCESS, FAILURE = b"\x51", b"\x52"


def request(name: bytes, want_reply: bool = True, rest: bytes = b"") -> bytes:
    return b"\x50" + s(name) + bytes([want_reply]) + rest


def open_channel(kind: bytes, number: int, rest: bytes = b"") -> bytes:
    return b"\x5a" + s(kind) + u(number) + u(1 << 21) + u(1 << 15) + rest


def confirm(recipient: int, sender: int) -> bytes:
    return b"\x5b" + u(recipient) + u(sender) + u(1 << 21) + u(1 << 15)


def refuse(recipient: int, code: int = 1) -> bytes:
    return b"\x5c" + u(recipient) + u(code) + s(b"no") + s(b"")


def channel_request(recipient: int, name: bytes, want_reply: bool = False, rest: bytes = b"") -> bytes:
    return b"\x62" + u(recipient) + s(name) + bytes([want_reply]) + rest


def passes(relay: PacketRelay, source: Leg, payload: bytes) -> None:
    assert relay.receive(source, payload) == [Output(source.other, payload)]


def refused_open_of(outputs: list[Output]) -> tuple[Leg, int, int]:
    """(who is told, channel number, code) of the one open failure."""
    (output,) = outputs
    assert output.payload[0] == 92
    return output.to, int.from_bytes(output.payload[1:5], "big"), int.from_bytes(output.payload[5:9], "big")


def with_session(relay: PacketRelay, client_id: int = 0, box_id: int = 7) -> None:
    passes(relay, CLIENT, open_channel(b"session", client_id))
    passes(relay, BOX, confirm(client_id, box_id))


def test_nobody_is_told_that_he_may_send_more_than_a_leg_reads() -> None:
    """sshd fills a packet up to what the client says that it takes."""
    relay, most = PacketRelay(), u(128 * 1024)
    asked, confirmed = open_channel(b"session", 3), confirm(3, 7)
    (opened,) = relay.receive(CLIENT, asked[:-4] + u(1 << 20))
    assert opened == Output(BOX, asked[:-4] + most)
    (answered,) = relay.receive(BOX, confirmed[:-4] + u(0xFFFFFFFF))
    assert answered == Output(CLIENT, confirmed[:-4] + most)
    # What stands behind it stays, and so does what is small enough.
    rest = s(b"127.0.0.1") + u(80) + s(b"127.0.0.1") + u(1)
    (opened,) = relay.receive(CLIENT, open_channel(b"direct-tcpip", 4)[:-4] + u(1 << 18) + rest)
    assert opened.payload == open_channel(b"direct-tcpip", 4)[:-4] + most + rest
    passes(relay, CLIENT, open_channel(b"session", 5)[:-4] + most)


class TestGlobalRequests:
    def test_relayed_requests_are_answered_by_the_other_side(self) -> None:
        relay = PacketRelay()
        passes(relay, CLIENT, request(b"keepalive@openssh.com"))
        assert relay.receive(BOX, FAILURE) == [Output(CLIENT, FAILURE)]
        passes(relay, BOX, request(b"keepalive@openssh.com"))
        assert relay.receive(CLIENT, SUCCESS) == [Output(BOX, SUCCESS)]

    def test_our_own_answer_waits_behind_a_relayed_one(self) -> None:
        relay = PacketRelay()
        forward = request(b"tcpip-forward", rest=s(b"") + u(0))
        passes(relay, CLIENT, forward)
        assert relay.receive(CLIENT, request(b"unknown@example.com")) == []
        passes(relay, CLIENT, request(b"keepalive@openssh.com"))
        answer = SUCCESS + u(4711)
        assert relay.receive(BOX, answer) == [Output(CLIENT, answer), Output(CLIENT, FAILURE)]
        assert relay.receive(BOX, FAILURE) == [Output(CLIENT, FAILURE)]
        assert relay.receive(CLIENT, request(b"unknown@example.com")) == [Output(CLIENT, FAILURE)]

    def test_requests_without_reply_take_no_place_in_the_order(self) -> None:
        relay = PacketRelay()
        passes(relay, CLIENT, request(b"no-more-sessions@openssh.com", want_reply=False))
        assert relay.receive(CLIENT, request(b"unknown", want_reply=False)) == []
        with pytest.raises(Violation, match="nobody made"):
            relay.receive(BOX, SUCCESS)

    @pytest.mark.parametrize("source", [CLIENT, BOX])
    def test_an_answer_that_nobody_waits_for_is_a_violation(self, source: Leg) -> None:
        with pytest.raises(Violation, match="nobody made"):
            PacketRelay().receive(source, FAILURE)

    def test_the_box_never_announces_host_keys(self) -> None:
        relay = PacketRelay()
        assert relay.receive(BOX, request(b"hostkeys-00@openssh.com", want_reply=False, rest=s(b"key"))) == []
        assert relay.receive(BOX, request(b"hostkeys-00@openssh.com", rest=s(b"key"))) == [Output(BOX, FAILURE)]

    def test_host_keys_are_not_proved_by_the_box(self) -> None:
        asked = request(b"hostkeys-prove-00@openssh.com", rest=s(b"key"))
        assert PacketRelay().receive(CLIENT, asked) == [Output(CLIENT, FAILURE)]

    @pytest.mark.parametrize("name", [b"tcpip-forward", b"streamlocal-forward@openssh.com", b"\xff\x1b[31m", b""])
    def test_the_box_may_ask_nothing_of_the_client(self, name: bytes) -> None:
        told: list[tuple[Leg, str]] = []
        relay = PacketRelay(on_refusal=lambda leg, what: told.append((leg, what)))
        assert relay.receive(BOX, request(name, rest=s(b"") + u(1))) == [Output(BOX, FAILURE)]
        assert told[0][0] is BOX
        assert told[0][1].isprintable()

    def test_unanswered_requests_are_bounded(self) -> None:
        relay = PacketRelay(RelayLimits(unanswered_requests=3))
        for _ in range(3):
            relay.receive(CLIENT, request(b"keepalive@openssh.com"))
        with pytest.raises(Violation, match="too many unanswered"):
            relay.receive(CLIENT, request(b"keepalive@openssh.com"))


class TestChannelsThatTheBoxOpens:
    @pytest.mark.parametrize(
        ("kind", "rest"),
        [
            (b"auth-agent@openssh.com", b""),
            (b"x11", s(b"127.0.0.1") + u(6000)),
            (b"forwarded-tcpip", s(b"127.0.0.1") + u(80) + s(b"1.2.3.4") + u(5)),
            (b"forwarded-streamlocal@openssh.com", s(b"/run/x") + s(b"")),
            (b"session", b""),
            (b"direct-tcpip", s(b"127.0.0.1") + u(22) + s(b"") + u(0)),
            (b"direct-streamlocal@openssh.com", s(b"/run/secret") + s(b"") + u(0)),
            (b"tun@openssh.com", u(1) + u(0)),
        ],
    )
    def test_unasked_they_are_refused_and_the_client_hears_nothing(self, kind: bytes, rest: bytes) -> None:
        relay = PacketRelay()
        with_session(relay)
        assert refused_open_of(relay.receive(BOX, open_channel(kind, 9, rest))) == (BOX, 9, 1)

    def test_the_agent_passes_once_the_client_forwards_it(self) -> None:
        relay = PacketRelay()
        with_session(relay)
        passes(relay, CLIENT, channel_request(7, b"auth-agent-req@openssh.com"))
        passes(relay, BOX, open_channel(b"auth-agent@openssh.com", 9))
        assert refused_open_of(relay.receive(BOX, open_channel(b"x11", 10, s(b"") + u(1)))) == (BOX, 10, 1)

    def test_the_box_cannot_ask_for_the_agent_itself(self) -> None:
        relay = PacketRelay()
        with_session(relay)
        assert relay.receive(BOX, channel_request(0, b"auth-agent-req@openssh.com")) == []
        assert refused_open_of(relay.receive(BOX, open_channel(b"auth-agent@openssh.com", 9)))[0] is BOX

    def test_x11_passes_once_the_client_forwards_it(self) -> None:
        relay = PacketRelay()
        with_session(relay)
        passes(relay, CLIENT, channel_request(7, b"x11-req", rest=b"\0" + s(b"") + s(b"") + u(0)))
        passes(relay, BOX, open_channel(b"x11", 9, s(b"127.0.0.1") + u(6010)))

    def test_only_the_listener_that_was_asked_for(self) -> None:
        relay = PacketRelay()
        origin = s(b"10.0.0.1") + u(1)
        passes(relay, CLIENT, request(b"tcpip-forward", rest=s(b"localhost") + u(8080)))
        assert relay.receive(BOX, SUCCESS) == [Output(CLIENT, SUCCESS)]
        passes(relay, BOX, open_channel(b"forwarded-tcpip", 1, s(b"localhost") + u(8080) + origin))
        for address, port in ((b"localhost", 8081), (b"127.0.0.1", 8080)):
            refusal = relay.receive(BOX, open_channel(b"forwarded-tcpip", 2, s(address) + u(port) + origin))
            assert refused_open_of(refusal) == (BOX, 2, 1)

    def test_a_cancelled_or_refused_listener_opens_nothing(self) -> None:
        relay = PacketRelay()
        arguments = s(b"") + u(8080)
        passes(relay, CLIENT, request(b"tcpip-forward", rest=arguments))
        relay.receive(BOX, FAILURE)
        assert refused_open_of(relay.receive(BOX, open_channel(b"forwarded-tcpip", 1, arguments + s(b"") + u(1))))
        passes(relay, CLIENT, request(b"tcpip-forward", rest=arguments))
        relay.receive(BOX, SUCCESS)
        # A second one for the same port fails, and must not take the first one's right away.
        passes(relay, CLIENT, request(b"tcpip-forward", rest=arguments))
        relay.receive(BOX, FAILURE)
        passes(relay, BOX, open_channel(b"forwarded-tcpip", 1, arguments + s(b"") + u(1)))
        passes(relay, CLIENT, request(b"cancel-tcpip-forward", rest=arguments))
        assert refused_open_of(relay.receive(BOX, open_channel(b"forwarded-tcpip", 2, arguments + s(b"") + u(1))))

    def test_the_port_that_the_box_allocated_counts(self) -> None:
        relay = PacketRelay()
        passes(relay, CLIENT, request(b"tcpip-forward", rest=s(b"") + u(0)))
        relay.receive(BOX, SUCCESS + u(4711))
        passes(relay, BOX, open_channel(b"forwarded-tcpip", 1, s(b"") + u(4711) + s(b"") + u(1)))
        assert refused_open_of(relay.receive(BOX, open_channel(b"forwarded-tcpip", 2, s(b"") + u(0) + s(b"") + u(1))))

    def test_paths_match_exactly(self) -> None:
        relay = PacketRelay()
        passes(relay, CLIENT, request(b"streamlocal-forward@openssh.com", rest=s(b"/run/a")))
        relay.receive(BOX, SUCCESS)
        passes(relay, BOX, open_channel(b"forwarded-streamlocal@openssh.com", 1, s(b"/run/a") + s(b"")))
        other = open_channel(b"forwarded-streamlocal@openssh.com", 2, s(b"/run/b") + s(b""))
        assert refused_open_of(relay.receive(BOX, other)) == (BOX, 2, 1)
        passes(relay, CLIENT, request(b"cancel-streamlocal-forward@openssh.com", rest=s(b"/run/a")))
        again = open_channel(b"forwarded-streamlocal@openssh.com", 3, s(b"/run/a") + s(b""))
        assert refused_open_of(relay.receive(BOX, again)) == (BOX, 3, 1)

    def test_listeners_are_bounded(self) -> None:
        relay = PacketRelay(RelayLimits(listeners=2))
        for port in (1, 2):
            passes(relay, CLIENT, request(b"tcpip-forward", False, s(b"") + u(port)))
        assert relay.receive(CLIENT, request(b"tcpip-forward", False, s(b"") + u(3))) == []
        passes(relay, CLIENT, request(b"cancel-tcpip-forward", False, s(b"") + u(1)))
        passes(relay, CLIENT, request(b"tcpip-forward", False, s(b"") + u(3)))


class TestChannels:
    @pytest.mark.parametrize("kind", [b"tun@openssh.com", b"x11", b"auth-agent@openssh.com", b"forwarded-tcpip", b""])
    def test_the_client_opens_by_allowlist(self, kind: bytes) -> None:
        rest = s(b"") + u(1) + s(b"") + u(1)
        assert refused_open_of(PacketRelay().receive(CLIENT, open_channel(kind, 4, rest))) == (CLIENT, 4, 3)

    def test_the_life_of_a_channel(self) -> None:
        relay = PacketRelay()
        with_session(relay, 0, 7)
        passes(relay, CLIENT, channel_request(7, b"exec", True, s(b"true")))
        passes(relay, BOX, b"\x63" + u(0))
        passes(relay, BOX, b"\x5e" + u(0) + s(b"data"))
        passes(relay, BOX, channel_request(0, b"exit-status", rest=u(77)))
        passes(relay, BOX, b"\x60" + u(0))
        passes(relay, BOX, b"\x61" + u(0))
        assert relay.open_channels == 1
        passes(relay, CLIENT, b"\x61" + u(7))
        assert relay.open_channels == 0
        with_session(relay, 0, 7)

    def test_channels_are_bounded_and_closing_makes_room(self) -> None:
        relay = PacketRelay(RelayLimits(channels=2))
        with_session(relay, 0, 10)
        with_session(relay, 1, 11)
        assert refused_open_of(relay.receive(CLIENT, open_channel(b"session", 2))) == (CLIENT, 2, 4)
        passes(relay, CLIENT, b"\x61" + u(10))
        passes(relay, BOX, b"\x61" + u(0))
        with_session(relay, 0, 10)

    def test_pending_opens_count(self) -> None:
        relay = PacketRelay(RelayLimits(channels=2))
        passes(relay, CLIENT, open_channel(b"session", 0))
        passes(relay, CLIENT, open_channel(b"session", 1))
        assert refused_open_of(relay.receive(CLIENT, open_channel(b"session", 2))) == (CLIENT, 2, 4)
        passes(relay, BOX, refuse(0))
        passes(relay, CLIENT, open_channel(b"session", 2))

    @pytest.mark.parametrize("answer", [confirm(5, 1), refuse(5)])
    def test_an_answer_to_no_open_is_a_violation(self, answer: bytes) -> None:
        with pytest.raises(Violation, match="not asked for"):
            PacketRelay().receive(BOX, answer)

    def test_one_number_twice_is_a_violation(self) -> None:
        relay = PacketRelay()
        with_session(relay, 0, 7)
        with pytest.raises(Violation, match="twice"):
            relay.receive(CLIENT, open_channel(b"session", 0))

    @pytest.mark.parametrize("name", [b"exit-status", b"exit-signal", b"eow@openssh.com", b"xon-xoff"])
    def test_what_an_sshd_sends_on_a_channel_passes(self, name: bytes) -> None:
        relay = PacketRelay()
        with_session(relay)
        passes(relay, BOX, channel_request(0, name))

    @pytest.mark.parametrize("name", [b"exec", b"shell", b"x11-req", b"env", b"unknown"])
    def test_what_no_sshd_sends_does_not(self, name: bytes) -> None:
        relay = PacketRelay()
        with_session(relay)
        assert relay.receive(BOX, channel_request(0, name, rest=s(b"x"))) == []
        with pytest.raises(Violation, match="no sshd asks"):
            relay.receive(BOX, channel_request(0, name, True, s(b"x")))


class TestMalformed:
    @pytest.mark.parametrize("source", [CLIENT, BOX])
    @pytest.mark.parametrize(
        "payload",
        [
            b"\x50",
            b"\x50\xff\xff\xff\xff",
            b"\x50" + s(b"keepalive@openssh.com"),
            b"\x50" + s(b"tcpip-forward") + b"\x01" + b"\xff\xff\xff\xff",
            b"\x5a" + s(b"session") + u(1),
            b"\x5a" + s(b"forwarded-tcpip") + u(1) + u(1) + u(1),
            b"\x5b" + u(1),
            b"\x5c" + u(1),
            b"\x60",
            b"\x61\x00",
            b"\x62" + u(1),
            b"\x62" + u(1) + b"\x7f\xff\xff\xff" + b"exec",
            b"\x63",
            b"\x53",
            b"\x65" + u(1),
            b"\xff",
        ],
    )
    def test_a_packet_that_does_not_parse_is_a_violation_or_refused(self, source: Leg, payload: bytes) -> None:
        outputs: list[Output] = []
        with contextlib.suppress(Violation):
            outputs = PacketRelay().receive(source, payload)
        # Refused by its name before the rest was looked at: nothing of it reaches the other side.
        assert all(output.to is source for output in outputs)
