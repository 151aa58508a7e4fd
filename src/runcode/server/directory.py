"""The gateway's ports (directory, event sink), answered in process by the control plane's services.

Owns: the translation between the two rooms' vocabularies, and nothing else; they
never import one another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services import admission
from runcode.controlplane.services.events import NewEvent
from runcode.gateway.directory import AdmissionFacts, ChangeBatch, SessionFacts, WorkspaceFacts
from runcode.gateway.events import GatewayEvent
from runcode.runtimes.base import TcpEndpoint, UnixEndpoint


class InProcessDirectory:
    """`runcode.gateway.directory.Directory` over one ControlPlane."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def load_admission_facts(self, title: str, key_fingerprint: str) -> AdmissionFacts:
        found = await self._plane.admission.load_admission_facts(title, key_fingerprint)
        return AdmissionFacts(
            session=_session_facts(found.session),
            workspace=_workspace_facts(found.workspace),
            policy=found.policy,
            client_authorities=await self._plane.client_certificates.load_authorities(),
        )

    async def sign_workspace_certificate(self, *, session_id: int, workspace_id: int, public_key: str) -> str:
        return await self._plane.certificates.sign_workspace_certificate(
            session_id=session_id, workspace_id=workspace_id, public_key=public_key
        )

    async def watch_changes(self) -> AsyncIterator[ChangeBatch]:
        async for batch in self._plane.changes.watch():
            yield ChangeBatch(
                cursor=batch.cursor,
                workspace_ids=batch.workspace_ids,
                session_ids=batch.session_ids,
                user_ids=batch.user_ids,
                everything=batch.everything,
            )


class InProcessEventSink:
    """`runcode.gateway.events.EventSink` over one ControlPlane."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def record(self, gateway: str, events: Sequence[GatewayEvent]) -> None:
        await self._plane.events.record(gateway, [_new_event(event) for event in events])

    async def end_missing(self, gateway: str, live: Collection[str], reason: str) -> None:
        await self._plane.events.end_missing(gateway, live, reason)


def _new_event(event: GatewayEvent) -> NewEvent:
    return NewEvent(
        kind=event.kind,
        phase=event.phase,
        subject_id=event.subject_id,
        at=event.at,
        detail=event.detail,
        connection_id=event.connection_id,
        started_at=event.started_at,
        workspace_id=event.workspace_id,
        session_id=event.session_id,
        user_id=event.user_id,
    )


def _session_facts(facts: admission.SessionFacts | None) -> SessionFacts | None:
    if facts is None:
        return None
    return SessionFacts(
        session_id=facts.session_id,
        workspace_id=facts.workspace_id,
        user_id=facts.user_id,
        client=facts.client,
        expires_at=facts.expires_at,
        withdrawn=facts.withdrawn,
    )


def _workspace_facts(facts: admission.WorkspaceFacts | None) -> WorkspaceFacts | None:
    if facts is None:
        return None
    endpoint = facts.endpoint
    return WorkspaceFacts(
        workspace_id=facts.workspace_id,
        title=facts.title,
        running=facts.running,
        principal=facts.principal,
        host_key=facts.host_key,
        socket_path=endpoint.socket_path if isinstance(endpoint, UnixEndpoint) else None,
        address=(endpoint.host, endpoint.port) if isinstance(endpoint, TcpEndpoint) else None,
    )
