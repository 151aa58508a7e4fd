"""Run things on a workspace, each at most once.

Owns: the one place that decides whether something may be tried again, and what
an exit status of 255 means.

Guarantee: a command that may have started is never started again. What provably
did not start (no master, or a refused channel) is tried again after the master
was renewed or a channel came free. When the connection went away the caller
gets ConnectionLost, never an invented status.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager, nullcontext

from runcode.client import direct, openssh, platforms, processes, sessions
from runcode.core import remote_command
from runcode.core.errors import ConnectionLost, RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from runcode.client import mux
    from runcode.client.api import Api
    from runcode.client.sessions import Session
    from runcode.client.settings import Settings

EXIT_TIMED_OUT = 124
# A box hands the command to a shell as one argument (`mux.COMMAND_MAX`, which cannot be imported everywhere).
COMMAND_MAX = 128 * 1024 - 1
# How long a remote group has to end after TERM, and our ssh after KILL.
GRACE_S = 2.0
# sshd's default is ten sessions a connection; whoever comes eleventh waits here.
QUEUE_TIMEOUT_S = 600.0
_MASTERS_MAX = 3
_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if sys.platform != "win32" else (signal.SIGINT,)


class Remote:
    """One workspace with a session, and the ways to run something on it."""

    def __init__(self, settings: Settings, session: Session, make_api: Callable[[], Api]) -> None:
        self.settings = settings
        self.session = session
        self.make_api = make_api
        self.timed_out = False

    def execute(
        self,
        words: list[str],
        *,
        home: bool = False,
        tty: bool = False,
        timeout_s: float | None = None,
        streams: Callable[[], tuple[int, int, int]] = lambda: (0, 1, 2),
    ) -> int:
        """Run a command, on this process's own stdin, stdout and stderr by default; returns its exit status.

        124 when `timeout_s` ran out, 128+N when a signal ended it. The remote
        process group is ended with INT, TERM or HUP when we get one.
        """
        nonce = os.urandom(16).hex()
        workdir = None if home else self.session.workdir
        command = remote_command.render_exec(words, workdir=workdir, nonce=nonce)
        require_short(os.fsencode(command))
        if not platforms.current().can_multiplex:
            direct_watch = direct.Watch(timeout_s, None if tty else lambda name: self._signal_group(name, nonce))
            status = self.run(command, direct_watch.attend, streams, tty=tty)
            self.timed_out = direct_watch.timed_out
            return status
        if not tty:
            return self._execute_over_mux(command, nonce, timeout_s, streams)
        watch = Watch(timeout_s, None if tty else lambda name: self._signal_group(name, nonce))
        with watch:
            status = self.run(command, watch.attend, streams, tty=tty, pausing=watch.lifted)
        self.timed_out = watch.timed_out
        return watch.result(status)

    def shell(self, *, home: bool = False) -> int:
        """An interactive login shell on this process's terminal; returns its exit status.

        Without a terminal it reads its commands from stdin and ends with it: a remote terminal
        would never hear of that end.
        """
        command = remote_command.render_shell(workdir=None if home else self.session.workdir)
        tty = os.isatty(0)
        if not platforms.current().can_multiplex:
            return self.run(command, direct.Watch(None, None).attend, tty=tty)
        watch = Watch(None, None)
        with watch:
            status = self.run(command, watch.attend, tty=tty, pausing=watch.lifted)
        return watch.result(status)

    def run(
        self,
        command: str,
        attend: Callable[[int], int],
        streams: Callable[[], tuple[int | None, int | None, int | None]] = lambda: (0, 1, 2),
        *,
        tty: bool = False,
        pausing: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> int:
        """Start `command` once over a live master, which is opened if need be. `attend` as in `openssh.run`.

        `streams` makes stdin, stdout and stderr for each attempt; `pausing`
        surrounds whatever is waited for before the command can start.
        Raises ConnectionLost when it may have started and its end is unknown.
        """
        if not platforms.current().can_multiplex:
            return direct.run(self, command, attend, streams, tty=tty)
        attempts = _Attempts(self, pausing)
        while True:
            stdin, stdout, stderr = streams()
            outcome, status = openssh.run(
                self.session,
                command,
                self.settings.environ,
                attend,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                tty=tty,
            )
            if outcome == openssh.STARTED:
                return self._trust(status)
            attempts.prepare_next(outcome)

    def exchange(
        self,
        command: str,
        streams: Callable[[], tuple[int, int, int]],
        pump: Callable[[], None],
        attend: Callable[[int], int],
    ) -> int:
        """Run `command` once while `pump` moves bytes through the other ends of `streams`; returns its exit status.

        `pump` is called when the command may have started and returns at the end of both outputs; what it raises ends
        the command. `attend` does the same for an ssh with that process id, where connections cannot be shared.
        Raises ConnectionLost when it may have started and its end is unknown.
        """
        if not platforms.current().can_multiplex:
            return direct.run(self, command, attend, streams, tty=False)
        from runcode.client import mux

        encoded = os.fsencode(command)
        require_short(encoded)
        attempts = _Attempts(self, nullcontext)
        while True:
            descriptors = streams()
            call = self._find_call()
            outcome = mux.NO_MASTER
            if call is not None and call.send(encoded, descriptors):
                try:
                    pump()
                    outcome, status = call.attend()
                finally:
                    call.abandon()
                if outcome == mux.STARTED:
                    if status is None:
                        raise explain_lost_status(call)
                    return status
            attempts.prepare_next(outcome)

    def _find_call(self) -> mux.Call | None:
        """One command's place at the live master, if there is one."""
        from runcode.client import mux

        control_path = self.session.control_path
        master = mux.find_master(control_path)
        return None if master is None else mux.Call(master, lambda: mux.find_master_pid(control_path) is not None)

    def _execute_over_mux(
        self, command: str, nonce: str, timeout_s: float | None, streams: Callable[[], tuple[int, int, int]]
    ) -> int:
        """The same over the master's own protocol: signals and the clock are `mux.Guard`'s."""
        from runcode.client import mux

        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        attempts = _Attempts(self, nullcontext)
        while True:
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                self.timed_out = True  # before anything started
                return EXIT_TIMED_OUT
            call = self._find_call()
            outcome = mux.NO_MASTER
            if call is not None:
                route = mux.Route(self.session.control_path, self.session.config_path, self.session.alias)
                with mux.Guard(call, route, nonce, left_s) as guard:
                    outcome, own_status = call.run(os.fsencode(command), streams())
                if outcome == mux.STARTED:
                    self.timed_out = guard.timed_out
                    status = guard.result(own_status)
                    if status is None:
                        raise explain_lost_status(call)
                    return status
            attempts.prepare_next(outcome)

    def open(self, *, timeout_s: float = openssh.CONNECT_TIMEOUT_S) -> None:
        """See that a master is alive: the proof that SSH really answers."""
        if not platforms.current().can_multiplex:
            direct.check(self, timeout_s)
            return
        self.session = sessions.ensure_master(self.settings, self.session, self.make_api, timeout_s=timeout_s)

    def _trust(self, status: int) -> int:
        """255 is the command's own status exactly when the master outlived it."""
        if status == 255:
            # A dying master closes its clients' sockets before its own.
            for pause_s in (0.0, 0.05):
                time.sleep(pause_s)
                if not openssh.is_master_alive(self.session, self.settings.environ):
                    raise ConnectionLost("the connection to the workspace went away while the command ran")
        return status

    def _signal_group(self, signal_name: str, nonce: str) -> bool:
        """Signal the command's process group through a second session. Says whether there was one."""
        command = remote_command.render_signal(signal_name, nonce)
        if not platforms.current().can_multiplex:
            config, alias, environ = self.session.config_path, self.session.alias, self.settings.environ
            return openssh.run_apart(config, alias, os.fsencode(command), environ, openssh.CONNECT_TIMEOUT_S) == 0
        for pause_s in (0.0, 0.05, 0.1, 0.2, 0.4):
            time.sleep(pause_s)
            outcome, status = openssh.run(self.session, command, self.settings.environ, _attend_briefly)
            if outcome != openssh.REFUSED:
                return outcome == openssh.STARTED and status == 0
        return False


class _Attempts:
    """What to do before a command that provably did not start is tried again."""

    def __init__(self, remote: Remote, pausing: Callable[[], AbstractContextManager[object]]) -> None:
        self._remote = remote
        self._pausing = pausing
        self._masters = 0
        self._pause_s = 0.02
        self._deadline = time.monotonic() + QUEUE_TIMEOUT_S

    def prepare_next(self, outcome: str) -> None:
        """Wait for a free channel, or see that a master lives. Raises `busy` or `network` when that fails for good."""
        if outcome == openssh.REFUSED:
            if time.monotonic() > self._deadline:
                raise RunCodeError("busy", "the workspace takes no more parallel commands on this connection")
            with self._pausing():
                time.sleep(self._pause_s)
            self._pause_s = min(self._pause_s * 1.5, 0.5)
            return
        self._masters += 1
        if self._masters > _MASTERS_MAX:
            raise RunCodeError("network", "the connection to the workspace does not stay up")
        with self._pausing():
            self._remote.open()


def require_short(command: bytes) -> None:
    if len(command) > COMMAND_MAX:
        raise RunCodeError(
            "usage", "the command line is too long for the workspace", resolution="send it through stdin or a file"
        )


def explain_lost_status(call: mux.Call) -> RunCodeError:
    """Why a call that may have started has no exit status."""
    if call.lost_alone:
        return RunCodeError("no_exit_status", "the command ended without an exit status: its whole group was killed")
    return ConnectionLost("the connection to the workspace went away while the command ran")


def _attend_briefly(pid: int) -> int:
    status = processes.wait_or_kill(pid, 5.0)
    return 255 if status is None else status


class Watch:
    """Waits for ssh while it heeds the clock and the signals that a person or an agent sends us.

    Inside `with`, the signals are blocked and taken one by one, so that none is
    lost between two steps. ssh stays in our process group: whoever kills the
    group must not leave it behind. `signal_remote` is None where a terminal
    carries signals itself.
    """

    def __init__(self, timeout_s: float | None, signal_remote: Callable[[str], bool] | None) -> None:
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._signal_remote = signal_remote
        self._ended_by: int | None = None
        self._escalation = ["TERM", "KILL"]
        self._watched: set[signal.Signals] = set()
        self._old_mask: set[int | signal.Signals] = set()

    def __enter__(self) -> Watch:
        # nohup ignores HUP for us, and it stays so.
        self._watched = {number for number in _WATCHED if signal.getsignal(number) is not signal.SIG_IGN}
        self._watched |= {signal.SIGCHLD, signal.SIGALRM}
        for number in (signal.SIGCHLD, signal.SIGALRM):
            # A handler, though it has nothing to do: POSIX lets a blocked signal whose
            # default is to be ignored be dropped.
            signal.signal(number, _nothing)
        self._old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._watched)
        return self

    def __exit__(self, *_details: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._old_mask)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """While nothing has started: signals do what they do anywhere else."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._old_mask)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._watched)

    def attend(self, pid: int) -> int:
        """The `attend` of `openssh.run`."""
        while True:
            done, raw_status = os.waitpid(pid, os.WNOHANG)
            if done:
                status = processes.decode(raw_status)
                self._heed_late_signals(status)
                return status
            event = self._next_event()
            if event == signal.SIGALRM:
                self._ended_by = self._ended_by or event
                self._escalate(pid)
            elif event != signal.SIGCHLD:
                self._heed(event, pid)

    @property
    def timed_out(self) -> bool:
        return self._ended_by == signal.SIGALRM

    def result(self, status: int) -> int:
        """The status to exit with, given what ssh said."""
        if self._ended_by is None:
            return status
        if self.timed_out:
            return EXIT_TIMED_OUT
        # The command's own answer to the signal, if there was one.
        return status if status not in (255, 128 + signal.SIGKILL) else 128 + self._ended_by

    def _heed(self, number: int, pid: int) -> None:
        if self._signal_remote is None:
            self._ended_by = self._ended_by or number
            os.kill(pid, number)
        elif self._ended_by is not None:
            self._escalate(pid)
        else:
            self._ended_by = number
            self._signal_remote(signal.Signals(number).name[3:])
            if number != signal.SIGINT:
                # A program may answer Ctrl-C in its own time. Who sends TERM will not wait long.
                self._escalation = ["KILL"]
                self._deadline = time.monotonic() + GRACE_S

    def _escalate(self, pid: int) -> None:
        """The next harder means; at last our own ssh, so that we never hang."""
        if self._signal_remote is not None and self._escalation:
            self._signal_remote(self._escalation.pop(0))
            self._deadline = time.monotonic() + GRACE_S
        else:
            os.kill(pid, signal.SIGKILL)
            self._deadline = None

    def _heed_late_signals(self, status: int) -> None:
        """Ctrl-C in a terminal ends our ssh too, at once: the remote group still has to hear of it."""
        late = sorted((self._watched & signal.sigpending()) - {signal.SIGCHLD, signal.SIGALRM})
        if not late or self._ended_by is not None:
            return
        self._ended_by = signal.sigwait({late[0]})
        if self._signal_remote is None or status not in (255, 128 + self._ended_by):
            return
        for name in (signal.Signals(self._ended_by).name[3:], "TERM", "KILL"):
            alive = self._signal_remote(name)
            deadline = time.monotonic() + GRACE_S
            while alive and time.monotonic() < deadline:
                time.sleep(0.05)
                alive = self._signal_remote("0")
            if not alive:
                return

    def _next_event(self) -> int:
        if self._deadline is not None:
            remaining_s = self._deadline - time.monotonic()
            if remaining_s <= 0:
                return signal.SIGALRM
            signal.setitimer(signal.ITIMER_REAL, remaining_s)
        return signal.sigwait(self._watched)


def _nothing(_number: int, _frame: object) -> None:
    return None
