"""What a signal or the clock does to a running remote command: end its process group, ever harder.

Owns: the order (the signal itself, TERM, KILL, hang up) and its pauses. Made by
`client.mux.Guard` when the first signal comes, and called from signal handlers
only, so it never waits long. The multiplexing protocol carries no signals: a
second session looks the group up by its nonce and signals it.

Guarantee: whoever sends a second signal, or has set a time limit, gets us back,
also when master and box are dead.
"""

from __future__ import annotations

import os
import signal
import time

from runcode.client import mux, openssh
from runcode.core.remote_command import render_signal

# How long a group has to end after TERM, and our call after KILL.
GRACE_S = 2.0
# A signal may come before the box has started the command: it is tried again for so long.
_ARRIVAL_S = 10.0
_RETRY_S = 0.1
_ANSWER_S = 5.0


class Interrupts:
    """`ended_by` is the first signal that came, SIGALRM for the clock."""

    def __init__(self, call: mux.Call, route: mux.Route, nonce: str, has_deadline: bool) -> None:
        self._call = call
        self._route = route
        self._nonce = nonce
        self.ended_by: int | None = None
        self._escalation = ["TERM", "KILL"]
        self._queue: list[int] = []
        self._busy = False
        # When the next harder means is due. The time limit is running already, and its alarm is the first of them.
        left_s = signal.getitimer(signal.ITIMER_REAL)[0] if has_deadline else 0.0
        self._harder_at: float | None = time.monotonic() + left_s if has_deadline else None
        self._undelivered: tuple[str, float] | None = None
        if not has_deadline:
            signal.signal(signal.SIGALRM, lambda number, _frame: self.heed(number))

    def heed(self, number: int) -> None:
        """The signal handler's work. One that comes while another is dealt with waits its turn."""
        self._queue.append(number)
        if self._busy:
            return
        self._busy = True
        try:
            while self._queue:
                self._take(self._queue.pop(0))
        finally:
            self._busy = False
        self._set_alarm()

    def _take(self, number: int) -> None:
        now = time.monotonic()
        if number != signal.SIGALRM:
            if self.ended_by is not None:
                self._be_harder()
                return
            self.ended_by = number
            self._deliver(signal.Signals(number).name[3:])
            if number != signal.SIGINT:
                # A program may answer Ctrl-C in its own time. Who sends TERM will not wait long.
                self._escalation = ["KILL"]
                self._harder_at = now + GRACE_S
        elif self._harder_at is not None and now >= self._harder_at - 0.005:
            self.ended_by = self.ended_by or number
            self._be_harder()
        elif self._undelivered is not None:
            self._deliver(*self._undelivered)

    def _be_harder(self) -> None:
        """The next means; at last we hang up, so that we never hang."""
        if self._escalation:
            self._deliver(self._escalation.pop(0))
            self._harder_at = time.monotonic() + GRACE_S
        else:
            self._harder_at = self._undelivered = None
            self._call.abandon()

    def _deliver(self, name: str, until: float | None = None) -> None:
        """Signal the group; a group that is not there yet is looked for again."""
        until = time.monotonic() + _ARRIVAL_S if until is None else until
        self._undelivered = None
        command = os.fsencode(render_signal(name, self._nonce))
        outcome, status = self._run_over_master(command)
        if outcome == mux.REFUSED:
            # The connection has no room for a second session, so the signal gets a connection of its own.
            status = openssh.run_apart(self._route.config_path, self._route.alias, command, os.environ, _ANSWER_S)
        elif outcome == mux.NO_MASTER:
            # Nobody can reach the command any more, and nobody will tell us of its end.
            self._harder_at = None
            self._call.abandon()
            return
        if status != 0 and time.monotonic() < until:
            self._undelivered = (name, until)

    def _run_over_master(self, command: bytes) -> tuple[str, int | None]:
        master = mux.find_master(self._route.control_path)
        if master is None:
            return mux.NO_MASTER, None
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            return mux.Call(master, lambda: False, _ANSWER_S / 2).run(command, (null, null, null))
        finally:
            os.close(null)

    def _set_alarm(self) -> None:
        now = time.monotonic()
        waits = [] if self._harder_at is None else [self._harder_at - now]
        if self._undelivered is not None:
            waits.append(_RETRY_S)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, min(waits)) if waits else 0)
