"""What may pass between a client and its workspace, packet by packet.

Owns: the rules of the relay, as a state machine that takes decrypted payloads
and yields the packets to send, and what an observer hears of it. Never: sockets,
asyncssh; its clock is given. Called by `bridge` for every message but 93–95 (window, data),
which no rule touches: of those, data is only counted.

Threat: the box is hostile to the client's machine: it may open agent, X11 or
forwarded channels that nobody asked for, or announce host keys. The client is
hostile to the gateway: it may hoard channels and unanswered requests. Either
may send packets that do not parse.

Guarantee:
- A channel or request type passes by allowlist only; a channel that the box
  opens passes only if the client asked for that agent, display or listener on
  this very connection.
- Replies to global requests leave in the order in which that side asked, also
  when the gateway answers some of them itself (RFC 4254 §4).
- What is kept per connection is bounded by `RelayLimits`.
- No program is asked of the box unless the observer has heard of it, on the
  channel that it belongs to: a request ahead of the channel's confirmation, or
  after its close, ends the connection. What the box says about one channel
  never counts for another.
- What the policy forbids never reaches the box, whatever its spelling: channel
  opens and global requests are refused here, in order. A forbidden agent or X11
  request goes on as one that no sshd knows, so that the box refuses it in its
  turn; and were it to agree, its channels are refused all the same.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from runcode.core.channel_policy import EVERYTHING, ChannelPolicy
from runcode.core.terminal import printable
from runcode.gateway import packets
from runcode.gateway.packets import MalformedPacket, Reader


class Leg(enum.Enum):
    CLIENT = "client"
    BOX = "workspace"

    # Enum's own hash is a Python call, and each data packet looks legs up.
    __hash__ = object.__hash__

    @property
    def other(self) -> Leg:
        return Leg.BOX if self is Leg.CLIENT else Leg.CLIENT


@dataclass(frozen=True, slots=True)
class Output:
    """One packet to send, to either leg."""

    to: Leg
    payload: bytes


class Violation(Exception):
    """A peer broke the protocol in a way that no honest one does: the connection ends. The text is ours."""


@dataclass(frozen=True)
class RelayLimits:
    channels: int = 2048
    listeners: int = 256
    unanswered_requests: int = 1024
    # A client may try a subsystem, then a command in its place; no honest one goes on like that.
    programs_per_channel: int = 16


# keepalive@openssh.com travels end to end, so that ServerAliveInterval tells the truth about the box.
_GLOBAL_REQUESTS: dict[Leg, frozenset[bytes]] = {
    Leg.CLIENT: frozenset(
        {
            b"tcpip-forward",
            b"cancel-tcpip-forward",
            b"streamlocal-forward@openssh.com",
            b"cancel-streamlocal-forward@openssh.com",
            b"keepalive@openssh.com",
            b"no-more-sessions@openssh.com",
        }
    ),
    # Not hostkeys-00@openssh.com: with UpdateHostKeys the client would learn the box's keys as the gateway's.
    Leg.BOX: frozenset({b"keepalive@openssh.com"}),
}
_CLIENT_CHANNELS = frozenset({b"session", b"direct-tcpip", b"direct-streamlocal@openssh.com"})
_BOX_CHANNEL_REQUESTS = frozenset(
    {b"exit-status", b"exit-signal", b"xon-xoff", b"eow@openssh.com", b"keepalive@openssh.com"}
)
_PROGRAMS = frozenset({b"exec", b"shell", b"subsystem"})
_FORBIDDEN_REQUEST = b"forbidden@runcode"
_PACE_S = 60.0
# What a channel may carry in one packet: half of what a leg reads (`asyncssh_relay.PACKET_MAX`), and
# four times what OpenSSH asks for.
CHANNEL_PACKET_MAX = 128 * 1024

_Listener = tuple[bytes, int]
_TARGET_MAX = 1024
_TCP_LISTENER = b"tcpip-forward"
_PATH_LISTENER = b"streamlocal-forward@openssh.com"


class _Owed:
    """A reply that a side waits for: `answer` is None while the other side has not given it."""

    __slots__ = ("answer", "on_answer")

    def __init__(self, answer: bytes | None = None, on_answer: Callable[[bytes], None] | None = None) -> None:
        self.answer = answer
        self.on_answer = on_answer


class Channel:
    """An open channel. `target` is where a forwarded one leads.

    `up` and `down` count its data, towards the box and back; `note` is the observer's own.
    """

    __slots__ = ("closed_by", "down", "ids", "kind", "note", "opener", "programs", "target", "up")

    def __init__(self, kind: bytes, opener: Leg, target: bytes, ids: dict[Leg, int]) -> None:
        self.kind = kind
        self.opener = opener
        self.target = target
        self.ids = ids
        self.closed_by: set[Leg] = set()
        self.programs = 0
        self.up = 0
        self.down = 0
        self.note: Any = None


class RelayObserver(Protocol):
    """Hears what was relayed. Every text is a peer's own bytes; nothing here may raise or wait."""

    def channel_opened(self, channel: Channel) -> None: ...

    def channel_refused(self, kind: bytes, opener: Leg, target: bytes) -> None:
        """The other side did not take the channel."""
        ...

    def channel_closed(self, channel: Channel, by: Leg) -> None:
        """One side has closed it; called once for each."""
        ...

    def program_requested(self, channel: Channel, form: bytes, text: bytes) -> None:
        """The client asks for a command (`exec`), its login shell (`shell`) or a `subsystem`."""
        ...

    def request_sent(self, channel: Channel, *, program: bool) -> None:
        """A request of the client that the box must answer; `program`: the one just told of."""
        ...

    def request_answered(self, channel: Channel, *, success: bool) -> None:
        """The box answered the oldest of those."""
        ...

    def program_exited(self, channel: Channel, *, status: int | None, signal: bytes | None) -> None:
        """What the box says of the channel's program."""
        ...

    def listener_opened(self, kind: bytes, target: bytes) -> None: ...

    def listener_closed(self, kind: bytes, target: bytes, *, refused: bool) -> None: ...


class _NoObserver:
    """For a relay whose work nobody watches."""

    def _nothing(self, *_arguments: object, **_named: object) -> None: ...

    channel_opened = channel_refused = channel_closed = program_requested = request_sent = _nothing
    request_answered = program_exited = listener_opened = listener_closed = _nothing


_NOBODY = _NoObserver()


class _Opening:
    """A channel that a side asked for and the other has not answered."""

    __slots__ = ("kind", "target")

    def __init__(self, kind: bytes, target: bytes) -> None:
        self.kind = kind
        self.target = target


class PacketRelay:
    """The rules for one client connection. `receive` raises Violation; nothing else."""

    def __init__(
        self,
        limits: RelayLimits | None = None,
        *,
        policy: ChannelPolicy = EVERYTHING,
        clock_s: Callable[[], float] = lambda: 0.0,
        on_refusal: Callable[[Leg, str], None] | None = None,
        observer: RelayObserver | None = None,
    ) -> None:
        self._limits = limits or RelayLimits()
        self._policy = policy
        self._clock_s = clock_s
        # When the client's latest channels were asked for; no more of them than the policy's pace counts.
        self._opened_at: deque[float] = deque(maxlen=policy.opens_per_minute or 1)
        self._on_refusal = on_refusal
        self._observer: RelayObserver = observer or _NOBODY
        self.up = 0
        self.down = 0
        self._owed: dict[Leg, list[_Owed]] = {Leg.CLIENT: [], Leg.BOX: []}
        self._opening: dict[Leg, dict[int, _Opening]] = {Leg.CLIENT: {}, Leg.BOX: {}}
        self._channels: dict[Leg, dict[int, Channel]] = {Leg.CLIENT: {}, Leg.BOX: {}}
        self._by_client_number = self._channels[Leg.CLIENT]
        self._by_box_number = self._channels[Leg.BOX]
        self._tcp_listeners: Counter[_Listener] = Counter()
        self._path_listeners: Counter[bytes] = Counter()
        self._agent_asked = False
        self._x11_asked = False

    @property
    def open_channels(self) -> int:
        return len(self._channels[Leg.CLIENT]) + len(self._opening[Leg.CLIENT]) + len(self._opening[Leg.BOX])

    def count_data(self, source: Leg, payload: bytes) -> None:
        """A data message (94, 95) passes. On the fast path: integers only.

        Data for a channel that is not open is its sender's fault, and its receiver's
        to punish; it counts for the connection alone.
        """
        size = len(payload) - (9 if payload[0] == packets.CHANNEL_DATA else 13)
        if size > 0:
            (self.count_up if source is Leg.CLIENT else self.count_down)(int.from_bytes(payload[1:5], "big"), size)

    def count_up(self, box_number: int, size: int) -> None:
        """Bytes of data for a channel of the box."""
        self.up += size
        channel = self._by_box_number.get(box_number)
        if channel is not None:
            channel.up += size

    def count_down(self, client_number: int, size: int) -> None:
        """Bytes of data for a channel of the client."""
        self.down += size
        channel = self._by_client_number.get(client_number)
        if channel is not None:
            channel.down += size

    def receive(self, source: Leg, payload: bytes) -> list[Output]:
        """A payload from `source` (message number first) → the packets that follow from it, in order."""
        handler = _HANDLERS.get(payload[0])
        if handler is None:
            raise Violation(f"the {source.value} sent message {payload[0]}, which is not relayed")
        try:
            return handler(self, source, payload)
        except MalformedPacket as error:
            raise Violation(f"the {source.value} sent a malformed message {payload[0]}") from error

    def _refused(self, source: Leg, what: str, name: bytes) -> None:
        if self._on_refusal is not None:
            self._on_refusal(source, f"{what} {printable(name.decode('utf-8', 'replace'), limit=64)}")

    # -- global requests ----------------------------------------------------

    def _global_request(self, source: Leg, payload: bytes) -> list[Output]:
        reader = Reader(payload)
        name, want_reply = reader.string(), reader.boolean()
        if want_reply and len(self._owed[source]) >= self._limits.unanswered_requests:
            raise Violation(f"the {source.value} has too many unanswered requests")
        if name not in _GLOBAL_REQUESTS[source]:
            self._refused(source, "global request", name)
            return self._answer_here(source, want_reply)
        on_answer = None
        if source is Leg.CLIENT and name.endswith((b"forward", b"forward@openssh.com")):
            if not name.startswith(b"cancel-") and self._listener_count() >= self._limits.listeners:
                self._refused(source, "one listener too many:", name)
                return self._answer_here(source, want_reply)
            if not name.startswith(b"cancel-") and not self._allows_listener(name):
                self._refused(source, "forbidden:", name)
                self._observer.channel_refused(name, source, _read_listener(name, reader))
                return self._answer_here(source, want_reply)
            on_answer = self._note_listener(name, reader)
        if want_reply:
            self._owed[source].append(_Owed(on_answer=on_answer))
        return [Output(source.other, payload)]

    def _answer_here(self, source: Leg, want_reply: bool) -> list[Output]:
        if not want_reply:
            return []
        self._owed[source].append(_Owed(answer=packets.render_request_failure()))
        return self._settle(source)

    def _global_reply(self, source: Leg, payload: bytes) -> list[Output]:
        asker = source.other
        # The head is always unanswered (see _settle), and a peer answers in the order it was asked.
        if not self._owed[asker]:
            raise Violation(f"the {source.value} answered a request that nobody made")
        owed = self._owed[asker][0]
        owed.answer = payload
        if owed.on_answer is not None:
            owed.on_answer(payload)
        return self._settle(asker)

    def _settle(self, asker: Leg) -> list[Output]:
        """Send the answers that are known, up to the first one that is not."""
        queue, ready = self._owed[asker], []
        while queue and (answer := queue[0].answer) is not None:
            queue.pop(0)
            ready.append(Output(asker, answer))
        return ready

    # -- listeners that the client asked for --------------------------------

    def _listener_count(self) -> int:
        return self._tcp_listeners.total() + self._path_listeners.total()

    def _note_listener(self, name: bytes, reader: Reader) -> Callable[[bytes], None] | None:
        """Keep what the box may open from now on; returns what to do with its answer."""
        if name.endswith(b"streamlocal-forward@openssh.com"):
            path = reader.string()
            if name.startswith(b"cancel-"):
                self._drop_path_listener(path)
                return None
            self._path_listeners[path] += 1
            self._observer.listener_opened(name, path)
            return lambda answer: None if _is_success(answer) else self._drop_path_listener(path, refused=True)
        address, port = reader.string(), reader.uint32()
        if name.startswith(b"cancel-"):
            self._drop_tcp_listener(address, port)
            return None
        if port == 0:
            return lambda answer: self._note_allocated_port(address, answer)
        self._add_tcp_listener(address, port)
        return lambda answer: None if _is_success(answer) else self._drop_tcp_listener(address, port, refused=True)

    def _note_allocated_port(self, address: bytes, answer: bytes) -> None:
        if _is_success(answer):
            self._add_tcp_listener(address, Reader(answer).uint32())

    def _add_tcp_listener(self, address: bytes, port: int) -> None:
        self._tcp_listeners[address, port] += 1
        self._observer.listener_opened(_TCP_LISTENER, _render_place(address, port))

    def _drop_tcp_listener(self, address: bytes, port: int, *, refused: bool = False) -> None:
        if _take_one(self._tcp_listeners, (address, port)):
            self._observer.listener_closed(_TCP_LISTENER, _render_place(address, port), refused=refused)

    def _drop_path_listener(self, path: bytes, *, refused: bool = False) -> None:
        if _take_one(self._path_listeners, path):
            self._observer.listener_closed(_PATH_LISTENER, path, refused=refused)

    # -- channels -----------------------------------------------------------

    def _channel_open(self, source: Leg, payload: bytes) -> list[Output]:
        reader = Reader(payload)
        kind, sender, _window, _packet = reader.string(), reader.uint32(), reader.uint32(), reader.uint32()
        fixed_part = reader.at
        if sender in self._opening[source] or sender in self._channels[source]:
            raise Violation(f"the {source.value} opened one channel number twice")
        if self.open_channels >= self._limits.channels:
            refusal = packets.OPEN_RESOURCE_SHORTAGE
        elif source is Leg.CLIENT:
            refusal = self._judge_open(kind, Reader(payload, reader.at))
        else:
            refusal = (
                0 if self._was_asked_for(kind, Reader(payload, reader.at)) else packets.OPEN_ADMINISTRATIVELY_PROHIBITED
            )
        if refusal:
            self._refused(source, "channel", kind)
            if refusal == packets.OPEN_ADMINISTRATIVELY_PROHIBITED and source is Leg.CLIENT:
                self._observer.channel_refused(kind, source, _read_target(kind, reader))
            reason = "refused by the gateway"
            return [Output(source, packets.render_open_failure(sender, refusal, reason))]
        self._opening[source][sender] = _Opening(kind, _read_target(kind, reader))
        return [Output(source.other, _lower_packet_size(payload, fixed_part))]

    def _judge_open(self, kind: bytes, reader: Reader) -> int:
        """0, or why the client may not have this channel."""
        if kind not in _CLIENT_CHANNELS:
            return packets.OPEN_UNKNOWN_CHANNEL_TYPE
        if kind == b"direct-tcpip":
            allowed = self._policy.direct and self._policy.allows_destination(reader.string())
        elif kind == b"session":
            allowed = self._policy.sessions is None or self._count_sessions() < self._policy.sessions
        else:
            allowed = self._policy.streamlocal
        if not allowed:
            return packets.OPEN_ADMINISTRATIVELY_PROHIBITED
        return 0 if self._keeps_pace() else packets.OPEN_RESOURCE_SHORTAGE

    def _count_sessions(self) -> int:
        open_ones = sum(channel.kind == b"session" for channel in self._channels[Leg.CLIENT].values())
        return open_ones + sum(opening.kind == b"session" for opening in self._opening[Leg.CLIENT].values())

    def _keeps_pace(self) -> bool:
        most, now = self._policy.opens_per_minute, self._clock_s()
        if most is None:
            return True
        if len(self._opened_at) == most and now - self._opened_at[0] < _PACE_S:
            return False
        self._opened_at.append(now)
        return True

    def _allows_listener(self, name: bytes) -> bool:
        return self._policy.remote if name == _TCP_LISTENER else self._policy.streamlocal

    def _forbids_request(self, name: bytes) -> bool:
        return (name == b"auth-agent-req@openssh.com" and not self._policy.agent) or (
            name == b"x11-req" and not self._policy.x11
        )

    def _was_asked_for(self, kind: bytes, reader: Reader) -> bool:
        if kind == b"auth-agent@openssh.com":
            return self._agent_asked
        if kind == b"x11":
            return self._x11_asked
        if kind == b"forwarded-tcpip":
            return self._tcp_listeners[reader.string(), reader.uint32()] > 0
        if kind == b"forwarded-streamlocal@openssh.com":
            return self._path_listeners[reader.string()] > 0
        return False

    def _open_confirmation(self, source: Leg, payload: bytes) -> list[Output]:
        reader = Reader(payload)
        recipient, sender, _window, _packet = (reader.uint32() for _ in range(4))
        asker = source.other
        opening = self._opening[asker].pop(recipient, None)
        # A number that the side also gave to a channel of its own opening would lead to two.
        if opening is None or sender in self._channels[source] or sender in self._opening[source]:
            raise Violation(f"the {source.value} confirmed a channel that was not asked for")
        channel = Channel(opening.kind, asker, opening.target, {asker: recipient, source: sender})
        self._channels[asker][recipient] = self._channels[source][sender] = channel
        self._observer.channel_opened(channel)
        return [Output(asker, _lower_packet_size(payload, reader.at))]

    def _open_failure(self, source: Leg, payload: bytes) -> list[Output]:
        reader = Reader(payload)
        recipient = reader.uint32()
        reader.uint32(), reader.string(), reader.string()
        opening = self._opening[source.other].pop(recipient, None)
        if opening is None:
            raise Violation(f"the {source.value} refused a channel that was not asked for")
        self._observer.channel_refused(opening.kind, source.other, opening.target)
        return [Output(source.other, payload)]

    def _channel_request(self, source: Leg, payload: bytes) -> list[Output]:
        reader = Reader(payload)
        recipient, name, want_reply = reader.uint32(), reader.string(), reader.boolean()
        channel = self._channels[source.other].get(recipient)
        if channel is not None and source in channel.closed_by:
            channel = None
        if source is Leg.CLIENT:
            if self._forbids_request(name):
                self._refused(source, "forbidden:", name)
                self._observer.channel_refused(name, source, b"")
                # The box answers this one in its turn; an answer of ours could overtake one of the box's.
                payload = packets.render_channel_request(recipient, _FORBIDDEN_REQUEST, want_reply=want_reply)
                name = _FORBIDDEN_REQUEST
            if name == b"auth-agent-req@openssh.com":
                self._agent_asked = True
            elif name == b"x11-req":
                self._x11_asked = True
            if name in _PROGRAMS:
                self._note_program(channel, name, reader)
            if want_reply and channel is not None:
                self._observer.request_sent(channel, program=name in _PROGRAMS)
        elif name not in _BOX_CHANNEL_REQUESTS:
            self._refused(source, "channel request", name)
            if want_reply:
                # Answering here could overtake an answer of the client on the same channel; no sshd sends this.
                raise Violation("the workspace asked the client for something that no sshd asks for")
            return []
        elif channel is not None:
            self._note_exit(channel, name, reader)
        return [Output(source.other, payload)]

    def _note_program(self, channel: Channel | None, name: bytes, reader: Reader) -> None:
        # A box numbers its channels 0, 1, 2 …: a guess could start a program ahead of the confirmation, unseen.
        if channel is None or channel.kind != b"session" or channel.opener is not Leg.CLIENT:
            raise Violation("the client asked for a program on a channel that is not open")
        channel.programs += 1
        if channel.programs > self._limits.programs_per_channel:
            raise Violation("the client asked for too many programs on one channel")
        self._observer.program_requested(channel, name, b"" if name == b"shell" else reader.string())

    def _note_exit(self, channel: Channel, name: bytes, reader: Reader) -> None:
        try:
            if name == b"exit-status":
                self._observer.program_exited(channel, status=reader.uint32(), signal=None)
            elif name == b"exit-signal":
                self._observer.program_exited(channel, status=None, signal=reader.string())
        except MalformedPacket:
            return  # passed on as it is: what it means is the client's to decide

    def _channel_close(self, source: Leg, payload: bytes) -> list[Output]:
        channel = self._channels[source.other].get(Reader(payload).uint32())
        if channel is not None and source not in channel.closed_by:
            channel.closed_by.add(source)
            self._observer.channel_closed(channel, source)
            if len(channel.closed_by) == 2:
                for leg, number in channel.ids.items():
                    del self._channels[leg][number]
        return [Output(source.other, payload)]

    def _channel_answer(self, source: Leg, payload: bytes) -> list[Output]:
        channel = self._channels[source.other].get(Reader(payload).uint32())
        if source is Leg.BOX and channel is not None and source not in channel.closed_by:
            self._observer.request_answered(channel, success=payload[0] == packets.CHANNEL_SUCCESS)
        return [Output(source.other, payload)]

    def _channel_message(self, source: Leg, payload: bytes) -> list[Output]:
        Reader(payload).uint32()
        return [Output(source.other, payload)]


def _is_success(answer: bytes) -> bool:
    return answer[0] == packets.REQUEST_SUCCESS


def _lower_packet_size(payload: bytes, end: int) -> bytes:
    """The same, with the largest packet that its sender takes (the uint32 before `end`) no larger than a leg reads.

    sshd sends as much at once as it is allowed, and a packet beyond the legs' own limit ends the connection.
    """
    if int.from_bytes(payload[end - 4 : end], "big") <= CHANNEL_PACKET_MAX:
        return payload
    return payload[: end - 4] + packets.render_uint32(CHANNEL_PACKET_MAX) + payload[end:]


def _read_target(kind: bytes, reader: Reader) -> bytes:
    """Where a forwarded channel leads, from the type's own part of an open message (RFC 4254 §7.2, PROTOCOL §2.4)."""
    if kind in (b"direct-tcpip", b"forwarded-tcpip"):
        return _render_place(reader.string(), reader.uint32())
    if kind in (b"direct-streamlocal@openssh.com", b"forwarded-streamlocal@openssh.com"):
        return reader.string()[:_TARGET_MAX]
    return b""


def _read_listener(name: bytes, reader: Reader) -> bytes:
    if name == _TCP_LISTENER:
        return _render_place(reader.string(), reader.uint32())
    return reader.string()[:_TARGET_MAX]


def _render_place(address: bytes, port: int) -> bytes:
    return b"%s:%d" % (address[:_TARGET_MAX], port)


def _take_one(counts: Counter[_Listener] | Counter[bytes], key: _Listener | bytes) -> bool:
    """One listener less, if there was one. A counter that reached nothing is forgotten: the table stays small."""
    table: Counter[_Listener | bytes] = counts  # type: ignore[assignment]
    if table[key] > 1:
        table[key] -= 1
        return True
    return bool(table.pop(key, 0))


_HANDLERS: dict[int, Callable[[PacketRelay, Leg, bytes], list[Output]]] = {
    packets.GLOBAL_REQUEST: PacketRelay._global_request,
    packets.REQUEST_SUCCESS: PacketRelay._global_reply,
    packets.REQUEST_FAILURE: PacketRelay._global_reply,
    packets.CHANNEL_OPEN: PacketRelay._channel_open,
    packets.CHANNEL_OPEN_CONFIRMATION: PacketRelay._open_confirmation,
    packets.CHANNEL_OPEN_FAILURE: PacketRelay._open_failure,
    packets.CHANNEL_WINDOW_ADJUST: PacketRelay._channel_message,
    packets.CHANNEL_DATA: PacketRelay._channel_message,
    packets.CHANNEL_EXTENDED_DATA: PacketRelay._channel_message,
    packets.CHANNEL_EOF: PacketRelay._channel_message,
    packets.CHANNEL_CLOSE: PacketRelay._channel_close,
    packets.CHANNEL_REQUEST: PacketRelay._channel_request,
    packets.CHANNEL_SUCCESS: PacketRelay._channel_answer,
    packets.CHANNEL_FAILURE: PacketRelay._channel_answer,
}
