"""An in-memory Directory, with a real workspace CA, a change feed and ways to misbehave.

It passes `support.gateway_directory_contract`, the suite that the server's own
directory is run against.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field, replace

import asyncssh

from runcode.core.channel_policy import EVERYTHING, ChannelPolicy
from runcode.core.errors import RunCodeError
from runcode.core.hostkeys import parse_public_key
from runcode.gateway.directory import AdmissionFacts, ChangeBatch, SessionFacts, WorkspaceFacts
from runcode.gateway.events import END, START, GatewayEvent


def fingerprint_of(public_line: str) -> str:
    return parse_public_key(public_line.strip()).fingerprint


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


@dataclass
class FakeDirectory:
    """`heartbeats` off: the feed falls silent. `lookups` off: facts cannot be loaded."""

    ca: asyncssh.SSHKey = field(default_factory=lambda: asyncssh.generate_private_key("ssh-ed25519"))
    client_ca: asyncssh.SSHKey = field(default_factory=lambda: asyncssh.generate_private_key("ssh-ed25519"))
    client_authorities: frozenset[str] = frozenset()
    policy: ChannelPolicy = EVERYTHING
    workspaces: dict[str, WorkspaceFacts] = field(default_factory=dict)
    sessions: dict[str, SessionFacts] = field(default_factory=dict)
    heartbeats: bool = True
    lookups: bool = True
    signs_for: str | None = None  # a principal to put into certificates instead of the right one
    delay_s: float = 0.0
    asked: list[tuple[str, str]] = field(default_factory=list)
    signed: list[str] = field(default_factory=list)
    _feeds: list[asyncio.Queue[ChangeBatch]] = field(default_factory=list)
    _cursor: int = 0
    _next_id: int = 100

    @property
    def ca_line(self) -> str:
        return self.ca.export_public_key("openssh").decode().strip()

    # -- arranging the world ------------------------------------------------

    def trust(self, *authorities: asyncssh.SSHKey) -> None:
        """Certificate mode: these are the client CAs now."""
        lines = (each.export_public_key("openssh").decode().split()[:2] for each in authorities)
        self.client_authorities = frozenset(" ".join(line) for line in lines)

    def add_workspace(self, title: str, *, host_key: str, **endpoint: object) -> WorkspaceFacts:
        number = self._take_id()
        facts = WorkspaceFacts(
            workspace_id=number, title=title, running=True, principal=f"ws-{number}", host_key=host_key, **endpoint
        )  # type: ignore[arg-type]
        self.workspaces[title] = facts
        return facts

    def add_session(
        self, title: str, public_line: str, *, ttl_s: float = 1800, user_id: int = 1, client: str = "test"
    ) -> SessionFacts:
        facts = SessionFacts(
            session_id=self._take_id(),
            workspace_id=self.workspaces[title].workspace_id,
            user_id=user_id,
            client=client,
            expires_at=utc_now() + datetime.timedelta(seconds=ttl_s),
            withdrawn=False,
        )
        self.sessions[fingerprint_of(public_line)] = facts
        return facts

    def withdraw(self, session_id: int) -> None:
        for fingerprint, facts in self.sessions.items():
            if facts.session_id == session_id:
                self.sessions[fingerprint] = replace(facts, withdrawn=True)
        self.tell(session_ids=frozenset({session_id}))

    def withdraw_user(self, user_id: int) -> None:
        for fingerprint, facts in self.sessions.items():
            if facts.user_id == user_id:
                self.sessions[fingerprint] = replace(facts, withdrawn=True)
        self.tell(user_ids=frozenset({user_id}))

    def set_running(self, title: str, running: bool) -> None:
        self.workspaces[title] = replace(self.workspaces[title], running=running)
        if not running:
            self.tell(workspace_ids=frozenset({self.workspaces[title].workspace_id}))

    def tell(self, **named: object) -> None:
        self._cursor += 1
        for feed in self._feeds:
            feed.put_nowait(ChangeBatch(cursor=self._cursor, **named))  # type: ignore[arg-type]

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # -- the port -----------------------------------------------------------

    async def load_admission_facts(self, title: str, key_fingerprint: str) -> AdmissionFacts:
        self.asked.append((title, key_fingerprint))
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if not self.lookups:
            raise RunCodeError("unavailable", "the directory is down")
        return AdmissionFacts(
            session=self.sessions.get(key_fingerprint),
            workspace=self.workspaces.get(title),
            client_authorities=self.client_authorities,
            policy=self.policy,
        )

    async def sign_workspace_certificate(self, *, session_id: int, workspace_id: int, public_key: str) -> str:
        session = next((s for s in self.sessions.values() if s.session_id == session_id), None)
        workspace = next((w for w in self.workspaces.values() if w.workspace_id == workspace_id), None)
        if session is None or workspace is None or session.withdrawn or session.workspace_id != workspace_id:
            raise RunCodeError("forbidden", "the session may not use this workspace")
        self.signed.append(public_key)
        principal = workspace.principal if self.signs_for is None else self.signs_for
        certificate = self.ca.generate_user_certificate(
            asyncssh.import_public_key(public_key),
            f"session-{session_id}",
            principals=[principal] if principal else [],
            valid_after=utc_now() - datetime.timedelta(minutes=1),
            valid_before=utc_now() + datetime.timedelta(minutes=5),
        )
        return certificate.export_certificate("openssh").decode().strip()

    async def watch_changes(self) -> AsyncIterator[ChangeBatch]:
        feed: asyncio.Queue[ChangeBatch] = asyncio.Queue()
        self._feeds.append(feed)
        try:
            while True:
                if self.heartbeats:
                    yield ChangeBatch(cursor=self._cursor)
                try:
                    yield await asyncio.wait_for(feed.get(), 0.1)
                except TimeoutError:
                    continue
        finally:
            self._feeds.remove(feed)


@dataclass
class FakeSink:
    """An EventSink in memory, and ways to misbehave: `error` is raised, `hang` never answers, both until unset.

    It passes `support.gateway_event_contract`.
    """

    rows: dict[str, GatewayEvent] = field(default_factory=dict)
    deliveries: list[list[str]] = field(default_factory=list)
    syncs: list[tuple[frozenset[str], str]] = field(default_factory=list)
    error: Exception | None = None
    hang: asyncio.Event | None = None

    async def record(self, gateway: str, events: Sequence[GatewayEvent]) -> None:
        await self._misbehave()
        self.deliveries.append([event.event_id for event in events])
        for event in events:
            self.rows.setdefault(event.event_id, event)

    async def end_missing(self, gateway: str, live: Collection[str], reason: str) -> None:
        await self._misbehave()
        self.syncs.append((frozenset(live), reason))
        for event in list(self.rows.values()):
            if event.phase == START and event.subject_id not in live:
                end = replace(event, phase=END, at=utc_now(), started_at=event.at, detail={"reason": reason})
                self.rows.setdefault(end.event_id, end)

    async def _misbehave(self) -> None:
        if self.hang is not None:
            await self.hang.wait()
        if self.error is not None:
            raise self.error

    # -- reading ------------------------------------------------------------

    def starts(self, kind: str) -> list[GatewayEvent]:
        return [event for event in self.rows.values() if (event.kind, event.phase) == (kind, START)]

    def ends(self, kind: str) -> list[GatewayEvent]:
        return [event for event in self.rows.values() if (event.kind, event.phase) == (kind, END)]

    def whole(self, kind: str) -> list[dict[str, object]]:
        """Each subject of a kind that has ended, as its start and end together."""
        return [
            {**self.rows[f"{end.subject_id}.{START}"].detail, **end.detail}
            for end in self.ends(kind)
            if f"{end.subject_id}.{START}" in self.rows
        ]
