"""A keeper's care for its box's network helper: started, watched, started again, ended.

Owns: when the helper (see `box_network`) runs, and that an address which the host gets while
the box runs becomes unreachable for it. The box never waits for any of this: its network
is guarded before its first program runs, and carries packets once the helper is there.

Called by the keeper only. Standard library only, no thread: the keeper polls the
descriptors and calls back.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable

from runcode.runtimes.local import box_network, destinations, netlink, plan

# A helper that ends again and again is started again, ever more rarely.
_RETRY_FIRST_S, _RETRY_MAX_S, _STEADY_S = 0.2, 30.0, 60.0


class BoxHelper:
    def __init__(self, box_plan: plan.BoxPlan, note: Callable[[str], None]) -> None:
        self._plan = box_plan
        self._note = note
        self.keeper_end, self.box_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.host_routes = netlink.watch_routes()
        self._network: box_network.BoxNetwork | None = None
        self._lifeline = -1
        self._known: set[netlink.Prefix] = set()
        self._pid = -1
        self._started_at = 0.0
        self._wait_s = _RETRY_FIRST_S
        self.retry_at: float | None = None

    def guard_lifeline(self, lifeline: int) -> None:
        """The read end that each helper watches. Ours from now on."""
        self._lifeline = lifeline
        self.box_end.close()

    def hear_box(self) -> None:
        """The box's network is there: the helper can start."""
        try:
            self._network = box_network.receive(self.keeper_end)
        except OSError:
            self._network = None
        self.keeper_end.close()
        if self._network is not None:
            self._start()
            # The child looked before we did: what came between must not slip through.
            self.hear_host()

    def hear_host(self) -> None:
        """The host's addresses changed: forbid the new ones too. What went away stays forbidden."""
        netlink.drain(self.host_routes)
        if self._network is None:
            return
        try:
            new = set(destinations.forbid(netlink.read_own_prefixes())) - self._known
            box_network.forbid_in(self._network, new)
            self._known |= new
        except OSError as error:
            # Better no network than one that reaches the host.
            self._note(f"keeper: the host's new addresses cannot be forbidden ({error}); the box's network ends")
            self.end()

    def hear_end(self, pid: int) -> None:
        """Some child ended; when it was the helper, another one is due."""
        if pid != self._pid:
            return
        self._pid = -1
        if self._network is None:
            return
        now = time.monotonic()
        if now - self._started_at > _STEADY_S:
            self._wait_s = _RETRY_FIRST_S
        self.retry_at = now + self._wait_s
        self._note(f"keeper: the network helper ended, another one starts in {self._wait_s:g} s")
        self._wait_s = min(2 * self._wait_s, _RETRY_MAX_S)

    def start_again_if_due(self) -> None:
        if self.retry_at is not None and time.monotonic() >= self.retry_at:
            self._start()

    def end(self) -> None:
        """No helper from now on. Safe to call again."""
        self.retry_at = None
        if self._network is not None:
            self._network.close()
            self._network = None
        if self._pid > 0:
            os.kill(self._pid, signal.SIGKILL)

    def _start(self) -> None:
        assert self._network is not None
        self.retry_at = None
        self._started_at = time.monotonic()
        keeper_pid = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            box_network.become_helper(self._plan, self._network, self._lifeline, keeper_pid)
        self._note(f"keeper: the network helper is {self._pid}")
