"""One of our scripts on the box, with its output kept here, bounded, under a time limit.

Owns: the pipes and the readers. What the script is and what its answer means is
`core`'s. Called from a process's main thread: signals and the clock work there.

Threat: the box prints without end, or keeps its output open.

Guarantee: as `Remote.execute`: at most once, and the remote process group ends with
the time limit, a signal to us, or an output beyond the limit.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading

from runcode.core.errors import RunCodeError
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runcode.client.remote import Remote

# What a master may hold open after it has reported the end.
_DRAIN_S = 5.0
_CHUNK = 65536


class Answer(Value):
    """`is_flooded`: the box wrote more than the limit and was stopped; the output ends there."""

    status: int
    stdout: bytes
    stderr: bytes
    timed_out: bool
    is_flooded: bool


def new_nonce() -> str:
    return os.urandom(16).hex()


def call(remote: Remote, words: list[str], *, timeout_s: float, limit: int, stdin: bytes = b"") -> Answer:
    """Run the words from the home folder. `limit` is for each of the two streams, in bytes."""
    flood = _Flood()
    with tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.flush()
        out, err = _Reader(limit, flood), _Reader(limit, flood)

        def streams() -> tuple[int, int, int]:
            given.seek(0)
            return given.fileno(), out.theirs, err.theirs

        try:
            status = remote.execute(words, home=True, timeout_s=timeout_s, streams=streams)
        finally:
            stdout, stderr = out.finish(), err.finish()
    return Answer(
        status=status,
        stdout=stdout,
        stderr=stderr,
        timed_out=remote.timed_out and not flood.came,
        is_flooded=flood.came,
    )


def ask(remote: Remote, words: list[str], *, timeout_s: float, limit: int, stdin: bytes = b"") -> bytes:
    """The script's stdout. Raises `timed_out`, or `io_error` for more than the limit."""
    answer = call(remote, words, timeout_s=timeout_s, limit=limit, stdin=stdin)
    if answer.is_flooded:
        raise flooded()
    if answer.timed_out:
        raise RunCodeError(
            "timed_out", f"the workspace did not answer in {timeout_s:.0f} s", resolution="ask for less, or retry"
        )
    return answer.stdout


def flooded() -> RunCodeError:
    return RunCodeError(
        "io_error", "the workspace sends more than was asked for, and was stopped", resolution="quieten its rc files"
    )


class _Flood:
    """Said once, by whichever stream is over its limit first: the clock ends the call at once."""

    def __init__(self) -> None:
        self.came = False

    def come(self) -> None:
        self.came = True
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0.001)


class _Reader:
    """The reading end of a pipe, drained beside the call so that nobody waits for us."""

    def __init__(self, limit: int, flood: _Flood) -> None:
        self._ours, self.theirs = os.pipe()
        self._limit = limit
        self._flood = flood
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        while chunk := os.read(self._ours, _CHUNK):
            if len(self._kept) + len(chunk) > self._limit and not self._flood.came:
                self._flood.come()
            self._kept += chunk[: self._limit - len(self._kept)]

    def finish(self) -> bytes:
        os.close(self.theirs)
        self._thread.join(_DRAIN_S)
        if not self._thread.is_alive():
            os.close(self._ours)
        return bytes(self._kept)
