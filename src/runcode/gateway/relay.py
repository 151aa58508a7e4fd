"""What may pass between a client and its workspace, packet by packet.

Owns: the rules of the relay, as a state machine that takes decrypted payloads
and yields the packets to send. Never: sockets, asyncssh, time. Called by
`bridge` for every message but 93–95 (window, data), which no rule touches.

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
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from runcode.core.terminal import printable
from runcode.gateway import packets
from runcode.gateway.packets import MalformedPacket, Reader


class Leg(enum.Enum):
    CLIENT = "client"
    BOX = "workspace"

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

_Listener = tuple[bytes, int]


class _Owed:
    """A reply that a side waits for: `answer` is None while the other side has not given it."""

    __slots__ = ("answer", "on_answer")

    def __init__(self, answer: bytes | None = None, on_answer: Callable[[bytes], None] | None = None) -> None:
        self.answer = answer
        self.on_answer = on_answer


class _Channel:
    __slots__ = ("closed_by", "ids", "kind")

    def __init__(self, kind: bytes, ids: dict[Leg, int]) -> None:
        self.kind = kind
        self.ids = ids
        self.closed_by: set[Leg] = set()


class PacketRelay:
    """The rules for one client connection. `receive` raises Violation; nothing else."""

    def __init__(
        self, limits: RelayLimits | None = None, *, on_refusal: Callable[[Leg, str], None] | None = None
    ) -> None:
        self._limits = limits or RelayLimits()
        self._on_refusal = on_refusal
        self._owed: dict[Leg, deque[_Owed]] = {Leg.CLIENT: deque(), Leg.BOX: deque()}
        self._opening: dict[Leg, dict[int, bytes]] = {Leg.CLIENT: {}, Leg.BOX: {}}
        self._channels: dict[Leg, dict[int, _Channel]] = {Leg.CLIENT: {}, Leg.BOX: {}}
        self._tcp_listeners: Counter[_Listener] = Counter()
        self._path_listeners: Counter[bytes] = Counter()
        self._agent_asked = False
        self._x11_asked = False

    @property
    def open_channels(self) -> int:
        return len(self._channels[Leg.CLIENT]) + len(self._opening[Leg.CLIENT]) + len(self._opening[Leg.BOX])

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
            queue.popleft()
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
                _take_one(self._path_listeners, path)
                return None
            self._path_listeners[path] += 1
            return lambda answer: None if _is_success(answer) else _take_one(self._path_listeners, path)
        address, port = reader.string(), reader.uint32()
        if name.startswith(b"cancel-"):
            _take_one(self._tcp_listeners, (address, port))
            return None
        if port == 0:
            return lambda answer: self._note_allocated_port(address, answer)
        self._tcp_listeners[address, port] += 1
        return lambda answer: None if _is_success(answer) else _take_one(self._tcp_listeners, (address, port))

    def _note_allocated_port(self, address: bytes, answer: bytes) -> None:
        if _is_success(answer):
            self._tcp_listeners[address, Reader(answer).uint32()] += 1

    # -- channels -----------------------------------------------------------

    def _channel_open(self, source: Leg, payload: bytes) -> list[Output]:
        reader = Reader(payload)
        kind, sender, _window, _packet = reader.string(), reader.uint32(), reader.uint32(), reader.uint32()
        if sender in self._opening[source] or sender in self._channels[source]:
            raise Violation(f"the {source.value} opened one channel number twice")
        if self.open_channels >= self._limits.channels:
            refusal = packets.OPEN_RESOURCE_SHORTAGE
        elif source is Leg.CLIENT:
            refusal = 0 if kind in _CLIENT_CHANNELS else packets.OPEN_UNKNOWN_CHANNEL_TYPE
        else:
            refusal = 0 if self._was_asked_for(kind, reader) else packets.OPEN_ADMINISTRATIVELY_PROHIBITED
        if refusal:
            self._refused(source, "channel", kind)
            reason = "refused by the gateway"
            return [Output(source, packets.render_open_failure(sender, refusal, reason))]
        self._opening[source][sender] = kind
        return [Output(source.other, payload)]

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
        kind = self._opening[asker].pop(recipient, None)
        if kind is None or sender in self._channels[source]:
            raise Violation(f"the {source.value} confirmed a channel that was not asked for")
        channel = _Channel(kind, {asker: recipient, source: sender})
        self._channels[asker][recipient] = self._channels[source][sender] = channel
        return [Output(asker, payload)]

    def _open_failure(self, source: Leg, payload: bytes) -> list[Output]:
        reader = Reader(payload)
        recipient = reader.uint32()
        reader.uint32(), reader.string(), reader.string()
        if self._opening[source.other].pop(recipient, None) is None:
            raise Violation(f"the {source.value} refused a channel that was not asked for")
        return [Output(source.other, payload)]

    def _channel_request(self, source: Leg, payload: bytes) -> list[Output]:
        reader = Reader(payload)
        _recipient, name, want_reply = reader.uint32(), reader.string(), reader.boolean()
        if source is Leg.CLIENT:
            if name == b"auth-agent-req@openssh.com":
                self._agent_asked = True
            elif name == b"x11-req":
                self._x11_asked = True
        elif name not in _BOX_CHANNEL_REQUESTS:
            self._refused(source, "channel request", name)
            if want_reply:
                # Answering here could overtake an answer of the client on the same channel; no sshd sends this.
                raise Violation("the workspace asked the client for something that no sshd asks for")
            return []
        return [Output(source.other, payload)]

    def _channel_close(self, source: Leg, payload: bytes) -> list[Output]:
        channel = self._channels[source.other].get(Reader(payload).uint32())
        if channel is not None:
            channel.closed_by.add(source)
            if len(channel.closed_by) == 2:
                for leg, number in channel.ids.items():
                    del self._channels[leg][number]
        return [Output(source.other, payload)]

    def _channel_message(self, source: Leg, payload: bytes) -> list[Output]:
        Reader(payload).uint32()
        return [Output(source.other, payload)]


def _is_success(answer: bytes) -> bool:
    return answer[0] == packets.REQUEST_SUCCESS


def _take_one(counts: Counter[_Listener] | Counter[bytes], key: _Listener | bytes) -> None:
    """One listener less; a counter that reached nothing is forgotten, so that the table stays small."""
    table: Counter[_Listener | bytes] = counts  # type: ignore[assignment]
    if table[key] > 1:
        table[key] -= 1
    else:
        table.pop(key, None)


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
    packets.CHANNEL_SUCCESS: PacketRelay._channel_message,
    packets.CHANNEL_FAILURE: PacketRelay._channel_message,
}
