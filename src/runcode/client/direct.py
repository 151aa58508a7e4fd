"""Commands over a connection of their own, where connections cannot be shared (Windows).

Owns: one ssh per command, what its log proves about whether the command began,
and waiting for it without signal masks. Called by `client.remote`, whose
promise it keeps: what may have started is never started again.

ssh sends the command only after it is authenticated, and says so in its log; it
also logs the exit status that the box reported. So a 255 without the first line
did not start, and a 255 with the second is the command's own.

Source: sshconnect2.c (`Authenticated to`) and clientloop.c (`client_input_channel_req`)
of OpenSSH 9.2 at LogLevel DEBUG1.
"""

from __future__ import annotations

import re
import time

from runcode.client import openssh, processes, sessions
from runcode.core.errors import ConnectionLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runcode.client.remote import Remote

_AUTHENTICATED = re.compile(r"^Authenticated to ", re.MULTILINE)
_ANSWERED = re.compile(r"^debug1: client_input_channel_req: channel 0 rtype exit-(?:status|signal) ", re.MULTILINE)
_POLL_S = 0.1
_GRACE_S = 2.0


def run(
    remote: Remote,
    command: str,
    attend: Callable[[int], int],
    streams: Callable[[], tuple[int | None, int | None, int | None]],
    *,
    tty: bool,
) -> int:
    """Run `command` once; a session whose key is refused is renewed once. Raises ConnectionLost, or `network`."""
    for is_last in (False, True):
        stdin, stdout, stderr = streams()
        status, log = openssh.run_unshared(
            remote.session,
            command,
            remote.settings.environ,
            attend,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            tty=tty,
        )
        if status != 255:
            return status
        if _AUTHENTICATED.search(log):
            if _ANSWERED.search(log):
                return status
            raise ConnectionLost("the connection to the workspace went away while the command ran")
        try:
            openssh.raise_connect_failure(remote.session, log)
        except openssh.AuthenticationRefused:
            if is_last:
                raise
        remote.session, _ = sessions.load_session(
            remote.settings, remote.session.workspace_id, remote.make_api, unless=remote.session.generation
        )
    raise AssertionError("unreachable")


class Watch:
    """Waits for ssh, and ends it when the time is over or a person presses Ctrl-C."""

    def __init__(self, timeout_s: float | None, signal_remote: Callable[[str], bool] | None) -> None:
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._signal_remote = signal_remote
        self.timed_out = False

    def attend(self, pid: int) -> int:
        """Reaps ssh and returns its status; 124 when the time ran out, 130 after Ctrl-C."""
        try:
            while True:
                status = processes.wait(pid, _POLL_S)
                if status is not None:
                    return status
                if self._deadline is not None and time.monotonic() > self._deadline:
                    self.timed_out = True
                    self._end(pid, ("TERM", "KILL"))
                    return 124
        except KeyboardInterrupt:
            self._end(pid, ("INT", "TERM", "KILL"))
            return 130

    def _end(self, pid: int, names: tuple[str, ...]) -> None:
        """The remote group, ever harder, and at last our own ssh."""
        for name in names if self._signal_remote is not None else ():
            assert self._signal_remote is not None
            self._signal_remote(name)
            if processes.wait(pid, _GRACE_S) is not None:
                return
        processes.kill(pid)


def open_null() -> tuple[int | None, int | None, int | None]:
    """Streams for a call that neither reads nor writes."""
    return None, None, None


def check(remote: Remote, timeout_s: float) -> None:
    """See that SSH answers. Raises what stands in the way."""
    watch = Watch(timeout_s, None)
    run(remote, "true", watch.attend, open_null, tty=False)
