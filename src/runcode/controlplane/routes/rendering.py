"""Records as the wire's JSON. Pure."""

from __future__ import annotations

import datetime
import functools
import json

from runcode.controlplane.records import (
    QuotaRecord,
    SessionGrant,
    SessionRecord,
    ShareRecord,
    SshEndpoint,
    TeamMemberRecord,
    TeamRecord,
    UserRecord,
    WorkspaceRecord,
)
from runcode.controlplane.services.offers import RuntimeOffer
from runcode.core import hostkeys, wire
from runcode.core.bundle import render_timestamp
from runcode.runtimes.base import SizeLimits


def render_workspace(workspace: WorkspaceRecord) -> dict[str, object]:
    """`provider` is what released clients take as "has SSH"; `runtime` is what runs it."""
    return {
        "id": workspace.id,
        "title": workspace.title,
        "custom_title": workspace.custom_title,
        "provider": wire.SSH_CAPABLE_PROVIDER,
        "ssh_capable": True,
        "runtime": workspace.runtime,
        "current_state": workspace.current_state,
        "interim_state": workspace.interim_state,
        "reason": workspace.reason,
        "owner": workspace.owner_email,
        "role": workspace.role,
        "created_at": render_timestamp(workspace.created_at),
        "size": workspace.size,
        "size_pending": workspace.size_pending,
        "idle_stop_after_s": workspace.idle_stop_after_s,
        "active_at": None if workspace.active_at is None else render_timestamp(workspace.active_at),
        "stop_cause": workspace.stop_cause,
        "explanation": workspace.explanation,
    }


def render_session(session: SessionRecord) -> dict[str, object]:
    return {
        "id": session.id,
        "workspace_id": session.workspace_id,
        "workspace": session.workspace_title,
        "email": session.user_email,
        "client": session.client,
        "fingerprint": session.fingerprint,
        "created_at": render_timestamp(session.created_at),
        "expires_at": render_timestamp(session.expires_at),
    }


def render_share(share: ShareRecord) -> dict[str, object]:
    return {"email": share.user_email, "team_id": share.team_id, "team": share.team_name, "role": share.role}


def render_team(team: TeamRecord) -> dict[str, object]:
    return {
        "id": team.id,
        "name": team.name,
        "role": team.role,
        "members": team.members,
        "created_at": render_timestamp(team.created_at),
    }


def render_member(member: TeamMemberRecord) -> dict[str, object]:
    return {"email": member.email, "role": member.role}


def render_user(user: UserRecord) -> dict[str, object]:
    return {
        "id": user.id,
        "email": user.email,
        "is_admin": user.is_admin,
        "created_at": render_timestamp(user.created_at),
        "disabled_at": None if user.disabled_at is None else render_timestamp(user.disabled_at),
        "workspaces_max": user.workspaces_max,
        "running_max": user.running_max,
    }


def render_quota(quota: QuotaRecord) -> dict[str, object]:
    return {
        "workspaces": quota.workspaces,
        "workspaces_max": quota.workspaces_max,
        "running": quota.running,
        "running_max": quota.running_max,
    }


def render_size(name: str, limits: SizeLimits) -> dict[str, object]:
    return {
        "name": name,
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes,
        "cpus": limits.cpus,
    }


def render_offer(offer: RuntimeOffer) -> dict[str, object]:
    return {
        "name": offer.name,
        "sudo": offer.capabilities.sudo,
        "outbound_network": offer.capabilities.outbound_network,
        "limits": offer.capabilities.limits,
        "obstacle": offer.obstacle,
    }


def render_minted(grant: SessionGrant) -> bytes:
    """A mint's whole answer as JSON. Only the session's number and its end are not the workspace's."""
    session = grant.session
    before, after = _render_bundle_parts(grant.endpoint, session.workspace_title, grant.workdir)
    expires_at = _render_shared_timestamp(session.expires_at)
    return b'{"error":false,"bundle":{"session_id":%d,%b,"expires_at":"%b",%b}}' % (
        session.id, before, expires_at, after,
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _render_bundle_parts(endpoint: SshEndpoint, title: str, workdir: str) -> tuple[bytes, bytes]:
    """The members of a bundle's JSON between its session's number and its end, and those after."""
    before = {
        "host": endpoint.host,
        "port": endpoint.port,
        "user": title,
        "known_hosts": _render_known_hosts(endpoint),
        "ssh_config": _render_ssh_config(endpoint.host, endpoint.port, title),
    }
    return _render_members(before), _render_members({"workdir": workdir})


def _render_members(members: dict[str, object]) -> bytes:
    return json.dumps(members, ensure_ascii=False, separators=(",", ":"))[1:-1].encode()


# Sessions that are minted together end together.
@functools.lru_cache(maxsize=256)
def _render_shared_timestamp(moment: datetime.datetime) -> bytes:
    return render_timestamp(moment).encode("ascii")


# The same text in every bundle, until the gateway moves or changes its keys.
@functools.lru_cache(maxsize=4)
def _render_known_hosts(endpoint: SshEndpoint) -> str:
    keys = tuple(hostkeys.parse_public_key(line) for line in endpoint.host_keys)
    return hostkeys.render_known_hosts(endpoint.host, endpoint.port, keys)


def _render_ssh_config(host: str, port: int, title: str) -> str:
    """For people to read. No directive in it runs anything or reads a file: clients take those as an attack."""
    return (
        f"Host runcode-{title}\n"
        f"    HostName {host}\n"
        f"    Port {port}\n"
        f"    User {title}\n"
        "    IdentitiesOnly yes\n"
        "    StrictHostKeyChecking yes\n"
    )
