"""One admitted client: from its authentication to its end.

Owns: the order of steps after authentication: register, look again, dial, join.
Never: SSH messages or the decision itself. Called by `ssh_server` (begin, end),
`watcher` (cut) and `server` (finish).

Guarantee: a change that is made while a client connects is seen, because the
facts are loaded again after the connection stands in the registry; and nothing
of the client reaches the box before that look.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable
from dataclasses import dataclass

from runcode.gateway.admission import AdmissionPolicy, Offer, Refusal, Route, may_continue
from runcode.gateway.asyncssh_legs import ClientLeg
from runcode.gateway.bridge import Bridge
from runcode.gateway.directory import Directory
from runcode.gateway.journal import ConnectionJournal
from runcode.gateway.lobby import Lobby
from runcode.gateway.recorder import EventRecorder
from runcode.gateway.refusals import RefusalTally
from runcode.gateway.registry import ConnectionRegistry
from runcode.gateway.watcher import ChangeWatcher
from runcode.gateway.workspace_leg import WorkspaceDialer, WorkspaceUnreachable

_log = logging.getLogger(__name__)

ACCESS_ENDED = "access to this workspace has ended"
# A client waits this long at most for the reason of its end.
_EXPLAIN_S = 0.5
TRY_AGAIN = "the gateway cannot check access just now: try again soon"


@dataclass(frozen=True)
class GatewayContext:
    """What every connection of one gateway shares."""

    directory: Directory
    policy: AdmissionPolicy
    clock: Callable[[], datetime.datetime]
    registry: ConnectionRegistry
    watcher: ChangeWatcher
    dialer: WorkspaceDialer
    lobby: Lobby
    recorder: EventRecorder
    refusals: RefusalTally


class GatewayConnection:
    """A LiveConnection. Made when its client has authenticated."""

    def __init__(self, context: GatewayContext, leg: ClientLeg, offer: Offer, route: Route) -> None:
        self.offer = offer
        self.route = route
        self._context = context
        self._leg = leg
        self._name = f"{route.workspace.title}/{route.session.session_id}"
        policy = context.policy
        self._journal = ConnectionJournal(context.recorder, context.clock, offer=offer, route=route)
        self._bridge = Bridge(
            leg,
            self._name,
            limits=policy.relay,
            policy=route.policy,
            max_early_bytes=policy.max_early_bytes,
            observer=self._journal,
            explain=self._find_out_why,
        )
        self._look: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._age_timer: asyncio.TimerHandle | None = None

    @property
    def open_channels(self) -> int:
        return self._bridge.open_channels

    @property
    def carried(self) -> tuple[int, int]:
        return self._bridge.carried

    def begin(self) -> None:
        """Take over the client's packets, and set out for the workspace."""
        self._journal.opened()
        self._leg.relay_to(self._bridge)
        obstacle = self.route.obstacle or self._context.registry.find_no_room(
            self.offer, self.route, self._context.policy
        )
        if obstacle is not None:
            _log.info("connection %s: %s", self._name, obstacle)
            self._bridge.finish(obstacle)
            return
        self._context.registry.enter(self)
        self._age_timer = asyncio.get_running_loop().call_later(
            self._context.policy.max_connection_age_s, self.finish, "this connection has reached its maximum age"
        )
        self._task = asyncio.create_task(self._open())

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(self._context.policy.workspace_timeout_s):
                facts = await self._context.directory.load_admission_facts(self.offer.title, self.offer.key_fingerprint)
            decision = may_continue(self.offer, facts, self._context.policy, opened_as=self.route)
            if isinstance(decision, Refusal):
                self.cut(decision.reason)
                return
            box = await self._context.dialer.dial(decision, self._bridge)
        except WorkspaceUnreachable as error:
            _log.warning("connection %s: %s", self._name, error)
            self._bridge.finish(error.public_reason)
        except Exception as error:
            _log.error("connection %s failed: %s", self._name, type(error).__name__)
            self._bridge.finish(TRY_AGAIN)
        else:
            self._bridge.join(box)
            if not self._bridge.over:
                box.pair_with(self._leg)
            if self._bridge.over or box.is_over:
                box.cut("the client is gone")
                self._bridge.finish("the workspace closed the connection")
            self._task = None

    def _find_out_why(self, shown: str) -> None:
        """The box is gone by itself. Whoever stopped or deleted it has ended access too, and its end may come first."""
        self._look = asyncio.create_task(self._explain(shown))

    async def _explain(self, shown: str) -> None:
        try:
            async with asyncio.timeout(_EXPLAIN_S):
                facts = await self._context.directory.load_admission_facts(self.offer.title, self.offer.key_fingerprint)
            decision = may_continue(self.offer, facts, self._context.policy, opened_as=self.route)
            if isinstance(decision, Refusal):
                shown = ACCESS_ENDED
        except Exception as error:  # then nobody knows more than that it is gone
            _log.info("connection %s: its end cannot be explained: %s", self._name, type(error).__name__)
        self._bridge.tell_client(shown)

    def cut(self, reason: str) -> None:
        """End both legs now. The client is told that access ended, not why."""
        _log.info("connection %s cut: %s", self._name, reason)
        self._journal.ended(f"access ended: {reason}", carried=self._bridge.carried)
        self.ended(cancel=asyncio.current_task() is not self._task)
        self._bridge.cut(ACCESS_ENDED)

    def finish(self, reason: str) -> None:
        """End both legs after what is queued."""
        _log.info("connection %s finished: %s", self._name, reason)
        if self._task is not None:
            self._task.cancel()
        self._bridge.finish(reason)

    def ended(self, *, cancel: bool = True) -> None:
        """The client leg is over (or about to be). Idempotent."""
        self._context.registry.leave(self)
        reason = self._bridge.end_reason or "the client's connection ended"
        self._journal.ended(reason, carried=self._bridge.carried)
        if self._age_timer is not None:
            self._age_timer.cancel()
        if cancel and self._task is not None:
            self._task.cancel()
        if self._look is not None and self._look is not asyncio.current_task():
            self._look.cancel()
