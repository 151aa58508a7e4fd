"""One call with three pipes to the master (or ssh), pumped together so that neither side waits for the other.

Owns: the pipes, and finding an answer behind whatever the box prints first. Knows
nothing of files.

Threat: the box answers with endless noise, or not at all, or stops reading.
Whatever `take` raises ends the call.
"""

from __future__ import annotations

import os
import select
import time

from runcode.client import processes
from runcode.core.errors import ConnectionLost, RunCodeError
from runcode.core.remote_files import NOISE_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runcode.client.remote import Remote

    # (bytes so far, how many there will be if that is known)
    Progress = Callable[[int, int | None], None]

CHUNK = 256 * 1024
_TAIL_MAX = 64 * 1024
_GRACE_S = 2.0


def no_progress(_done: int, _total: int | None) -> None:
    return None


class Exchange:
    """The base of every transfer. A subclass gives `next_chunk` and `take`, and resets itself in `restart`."""

    def __init__(self) -> None:
        self.nonce = os.urandom(16).hex()
        self.stderr = b""
        self._theirs: list[int] = []
        self._ours: list[int] = []

    def run(self, remote: Remote, command: str) -> None:
        """Run the remote command and pump until it has ended. What it means is for the caller to read."""
        try:
            remote.exchange(command, self._streams, self._pump_all, self._attend)
        except ConnectionLost as error:
            raise RunCodeError(
                "connection_lost",
                "the connection went away during the transfer",
                resolution="nothing is half-written: retry (with `--resume`, a broken transfer can be continued)",
            ) from error
        finally:
            self._close()

    def next_chunk(self) -> bytes | memoryview:
        """More for the remote stdin, to stay as it is until the next call; empty at the end."""
        return b""

    def take(self, chunk: memoryview) -> None:
        """Some of the remote stdout; the buffer is used again afterwards."""
        raise NotImplementedError

    def restart(self) -> None:
        """What an attempt that never started took from `next_chunk` went nowhere: begin again."""

    def _streams(self) -> tuple[int, int, int]:
        self._close()
        self.stderr = b""
        self.restart()
        (their_in, our_in), (our_out, their_out), (our_err, their_err) = (os.pipe() for _ in range(3))
        self._theirs, self._ours = [their_in, their_out, their_err], [our_in, our_out, our_err]
        os.set_blocking(our_in, False)
        return their_in, their_out, their_err

    def _pump_all(self) -> None:
        for descriptor in self._theirs:
            os.close(descriptor)
        self._theirs = []
        try:
            self._pump()
        except RunCodeError:
            self._let_it_tidy_up()
            raise

    def _let_it_tidy_up(self) -> None:
        """What we could not send to its end: the box sees a stream that was cut, and throws away what it has."""
        if len(self._ours) < 3:
            return
        self._close_stdin()
        poll = select.poll()
        for descriptor in self._ours:
            poll.register(descriptor, select.POLLIN)
        deadline, reading = time.monotonic() + _GRACE_S, len(self._ours)
        while reading and (left_s := deadline - time.monotonic()) > 0:
            for descriptor, _event in poll.poll(left_s * 1000):
                if not os.read(descriptor, CHUNK):
                    poll.unregister(descriptor)
                    reading -= 1

    def _attend(self, pid: int) -> int:
        try:
            self._pump_all()
            return processes.wait(pid) or 0
        except BaseException:
            processes.kill(pid)
            raise

    def _close(self) -> None:
        for descriptor in (*self._theirs, *self._ours):
            os.close(descriptor)
        self._theirs, self._ours = [], []

    def _pump(self) -> None:
        our_in, our_out, our_err = self._ours
        # One buffer for all: a fresh one for each chunk costs more in page faults than its copy.
        buffer = memoryview(bytearray(CHUNK))
        poll = select.poll()
        poll.register(our_out, select.POLLIN)
        poll.register(our_err, select.POLLIN)
        reading = 2
        pending: memoryview | None = memoryview(self.next_chunk()) or None
        if pending is None:
            self._close_stdin()
        else:
            poll.register(our_in, select.POLLOUT)
        while reading:
            for descriptor, _event in poll.poll():
                if descriptor == our_in and pending is not None:
                    pending = self._feed(pending)
                    if pending is None:
                        poll.unregister(our_in)
                        self._close_stdin()
                elif descriptor in (our_out, our_err):
                    size = os.readv(descriptor, [buffer])
                    if not size:
                        poll.unregister(descriptor)
                        reading -= 1
                    elif descriptor == our_out:
                        self.take(buffer[:size])
                    else:
                        self.stderr = (self.stderr + buffer[:size])[-_TAIL_MAX:]

    def _feed(self, pending: memoryview) -> memoryview | None:
        """What is left to write, or None when all of it went, or nobody reads any more."""
        try:
            pending = pending[os.write(self._ours[0], pending) :]
        except BlockingIOError:
            return pending
        except BrokenPipeError:
            # The box has already refused; its answer says why.
            return None
        return pending or memoryview(self.next_chunk()) or None

    def _close_stdin(self) -> None:
        os.close(self._ours[0])
        self._ours = self._ours[1:]

    def stderr_answer(self) -> bytes:
        """The last line on stderr behind our nonce, or nothing."""
        return self.stderr.rpartition(f"\n{self.nonce} ".encode())[2].partition(b"\n")[0]


class Question(Exchange):
    """A call whose answer is one line; subclasses may send something first."""

    def __init__(self) -> None:
        super().__init__()
        self._answer = b""

    def restart(self) -> None:
        self._answer = b""

    def take(self, chunk: memoryview) -> None:
        self._answer = (self._answer + chunk)[-NOISE_MAX:]

    def answer(self) -> bytes:
        """The line behind the nonce. Raises when there is none."""
        found = find_answer(self._answer, self.nonce)
        if found is None:
            raise no_answer()
        return found[0]


def find_answer(text: bytes, nonce: str) -> tuple[bytes, bytes] | None:
    """(the line behind the nonce, what follows it), or None while it is not complete. Raises for endless noise."""
    marker = f"\n{nonce} ".encode()
    at = text.find(marker)
    end = text.find(b"\n", at + len(marker)) if at >= 0 else -1
    if end >= 0:
        return text[at + len(marker) : end], text[end + 1 :]
    if len(text) > NOISE_MAX:
        raise RunCodeError(
            "io_error", "the workspace prints too much before it answers", resolution="quieten its rc files"
        )
    return None


def no_answer() -> RunCodeError:
    return RunCodeError("io_error", "the workspace sent no answer", resolution="retry")
