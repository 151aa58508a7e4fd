"""One connection's events: what its client ran and opened on the box, told as it passes the relay.

Owns: which packet starts or ends which command or forward, and how peers' bytes
become text. Never: a packet's way (that is `relay`), a wait, an exception towards
the relay. Made by `connection`; called by `relay` as its observer.

Threat: the client words commands and targets, the box words exit signals and sends
statuses for whatever channel it likes, to have something recorded that did not
happen, under another's name, or as bytes that harm whoever reads it.

Guarantee: who, which workspace and which session come from admission, never from a
packet. A status counts for the program of the channel it was sent on, and only
until the box has closed that channel. Each text is bounded, valid Unicode and free
of control characters but tab and newline; a command's length and SHA-256 are of
all its bytes.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import deque
from collections.abc import Callable

from runcode.core.remote_calls import measure_script
from runcode.core.terminal import printable
from runcode.gateway.admission import Offer, Route
from runcode.gateway.events import COMMAND, CONNECTION, END, FORWARD, START, Detail, GatewayEvent
from runcode.gateway.recorder import EventRecorder, new_subject_id
from runcode.gateway.relay import Channel, Leg

TEXT_HEAD = 3072
TEXT_TAIL = 1024
TARGET_MAX = 256
_REASON_MAX = 200
_SIGNAL_MAX = 32
# Requests of one channel whose answers are waited for; after that the answers are not told apart any more.
_AWAITED_MAX = 256


class _Subject:
    """Something that has started. `detail` is what its start said, without what only the start needs."""

    __slots__ = ("detail", "kind", "started_at", "subject_id")

    def __init__(self, kind: str, started_at: datetime.datetime, detail: dict[str, str | int | None]) -> None:
        self.kind = kind
        self.subject_id = new_subject_id()
        self.started_at = started_at
        self.detail = detail


class _Program(_Subject):
    __slots__ = ("refused", "signal", "status")

    def __init__(self, started_at: datetime.datetime, detail: dict[str, str | int | None]) -> None:
        super().__init__(COMMAND, started_at, detail)
        self.refused = False
        self.status: int | None = None
        self.signal: str | None = None


class _Log:
    """What the journal keeps on a channel."""

    __slots__ = ("awaited", "forward", "lost_count", "programs")

    def __init__(self) -> None:
        self.forward: _Subject | None = None
        self.programs: list[_Program] = []
        self.awaited: deque[_Program | None] = deque()
        self.lost_count = False


class ConnectionJournal:
    """A RelayObserver. `opened` first, `ended` last; both idempotent."""

    def __init__(
        self, recorder: EventRecorder, clock: Callable[[], datetime.datetime], *, offer: Offer, route: Route
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self._route = route
        self._channels: set[Channel] = set()
        self._listeners: dict[tuple[bytes, bytes], list[_Subject]] = {}
        self._connection = _Subject(
            CONNECTION,
            clock(),
            {
                "workspace": route.workspace.title,
                "client": render_text(route.session.client.encode("utf-8", "replace"), TARGET_MAX),
                "source": printable(offer.source, limit=64),
            },
        )
        self._has_started = False
        self._has_ended = False

    def opened(self) -> None:
        if not self._has_started:
            self._has_started = True
            self._start(self._connection)

    def ended(self, reason: str, *, carried: tuple[int, int]) -> None:
        """The connection is over, and with it all that ran in it."""
        if self._has_ended or not self._has_started:
            return
        for channel in list(self._channels):
            self._end_channel(channel, outcome="lost")
        for subjects in self._listeners.values():
            for subject in subjects:
                self._end(subject, outcome="closed")
        self._listeners.clear()
        self._has_ended = True
        up, down = carried
        self._end(self._connection, reason=printable(reason, limit=_REASON_MAX), bytes_up=up, bytes_down=down)

    # -- what the relay tells -----------------------------------------------

    def channel_opened(self, channel: Channel) -> None:
        channel.note = log = _Log()
        self._channels.add(channel)
        if channel.kind != b"session":
            log.forward = self._forward(channel.kind, channel.target, channel.opener)
            self._start(log.forward)

    def channel_refused(self, kind: bytes, opener: Leg, target: bytes) -> None:
        if kind != b"session":
            subject = self._forward(kind, target, opener)
            self._start(subject)
            self._end(subject, outcome="refused")

    def channel_closed(self, channel: Channel, by: Leg) -> None:
        # What the box has closed, it has ended; of a forward, both ends may still be read.
        if len(channel.closed_by) == 2 or (by is Leg.BOX and channel.kind == b"session"):
            self._end_channel(channel, outcome="finished")

    def program_requested(self, channel: Channel, form: bytes, text: bytes) -> None:
        log = self._log_of(channel)
        if log is None:
            return
        program = _Program(self._clock(), {"form": form.decode("ascii")})
        log.programs.append(program)
        self._start(
            program,
            text=_render_command(text),
            text_bytes=len(text),
            text_sha256=hashlib.sha256(text).hexdigest(),
        )

    def request_sent(self, channel: Channel, *, program: bool) -> None:
        log = self._log_of(channel)
        if log is None:
            return
        if len(log.awaited) >= _AWAITED_MAX:
            log.lost_count = True
            log.awaited.clear()
        if not log.lost_count:
            log.awaited.append(log.programs[-1] if program and log.programs else None)

    def request_answered(self, channel: Channel, *, success: bool) -> None:
        log = self._log_of(channel)
        if log is None or not log.awaited:
            return
        program = log.awaited.popleft()
        if program is not None and not success:
            program.refused = True

    def program_exited(self, channel: Channel, *, status: int | None, signal: bytes | None) -> None:
        log = self._log_of(channel)
        # Of several, at most one was taken (RFC 4254 §6.5): the first that was not refused.
        program = next((p for p in log.programs if not p.refused), None) if log is not None else None
        if program is not None:
            program.status = status
            program.signal = None if signal is None else render_text(signal, _SIGNAL_MAX)

    def listener_opened(self, kind: bytes, target: bytes) -> None:
        subject = self._forward(kind, target, Leg.CLIENT)
        self._listeners.setdefault((kind, target), []).append(subject)
        self._start(subject)

    def listener_closed(self, kind: bytes, target: bytes, *, refused: bool) -> None:
        subjects = self._listeners.get((kind, target))
        if not subjects:
            return
        # The one that was refused is the newest; which one a cancel means is all the same.
        self._end(subjects.pop(), outcome="refused" if refused else "closed")
        if not subjects:
            del self._listeners[kind, target]

    # -- events -------------------------------------------------------------

    def _log_of(self, channel: Channel) -> _Log | None:
        return channel.note if channel in self._channels else None

    def _forward(self, kind: bytes, target: bytes, opener: Leg) -> _Subject:
        form = kind.decode("ascii", "replace").removesuffix("@openssh.com")
        detail: dict[str, str | int | None] = {
            "form": form,
            "target": render_text(target, TARGET_MAX),
            "opened_by": opener.value,
        }
        return _Subject(FORWARD, self._clock(), detail)

    def _end_channel(self, channel: Channel, *, outcome: str) -> None:
        if channel not in self._channels:
            return
        self._channels.discard(channel)
        log: _Log = channel.note
        carried = {"bytes_up": channel.up, "bytes_down": channel.down}
        if log.forward is not None:
            self._end(log.forward, outcome="closed" if outcome == "finished" else outcome, **carried)
        for program in log.programs:
            if program.refused:
                self._end(program, outcome="refused")
            else:
                ended = outcome if program.status is None and program.signal is None else "finished"
                self._end(program, outcome=ended, exit_status=program.status, exit_signal=program.signal, **carried)

    def _start(self, subject: _Subject, **more: str | int | None) -> None:
        self._put(subject, START, subject.started_at, {**subject.detail, **more})

    def _end(self, subject: _Subject, **more: str | int | None) -> None:
        self._put(subject, END, self._clock(), {**subject.detail, **more}, started_at=subject.started_at)

    def _put(
        self,
        subject: _Subject,
        phase: str,
        at: datetime.datetime,
        detail: Detail,
        *,
        started_at: datetime.datetime | None = None,
    ) -> None:
        session = self._route.session
        self._recorder.put(
            GatewayEvent(
                kind=subject.kind,
                phase=phase,
                subject_id=subject.subject_id,
                at=at,
                detail=detail,
                connection_id=self._connection.subject_id,
                started_at=started_at,
                workspace_id=self._route.workspace.workspace_id,
                session_id=session.session_id,
                user_id=session.user_id,
            )
        )


def _render_command(raw: bytes) -> str:
    """Scripts of our own client are no part of what is bounded: whoever keeps the event takes them out again."""
    own = measure_script(raw)
    return render_text(raw, own + TEXT_HEAD, TEXT_TAIL) if own else render_text(raw, TEXT_HEAD, TEXT_TAIL)


def render_text(raw: bytes, head: int, tail: int = 0) -> str:
    """A peer's bytes as at most some `head` + `tail` characters: its beginning and its end, where it is longer.

    What is not plain text stands there as escapes, as Python writes them.
    """
    if len(raw) <= head + tail:
        text = _escape(raw)
        if len(text) <= head + tail:
            return text
    first, last = _escape(raw[:head])[:head], _escape(raw[len(raw) - tail :])[-tail:] if tail else ""
    return f"{first} …[cut: {len(raw)} bytes in all]… {last}".rstrip()


def _escape(raw: bytes) -> str:
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\t\n" else c.encode("unicode_escape").decode() for c in text)
