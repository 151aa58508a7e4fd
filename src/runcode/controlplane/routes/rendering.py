"""Records as the wire's JSON. Pure."""

from __future__ import annotations

import functools

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


def render_bundle(grant: SessionGrant) -> dict[str, object]:
    endpoint = grant.endpoint
    title = grant.session.workspace_title
    return {
        "session_id": grant.session.id,
        "host": endpoint.host,
        "port": endpoint.port,
        "user": title,
        "known_hosts": _render_known_hosts(endpoint),
        "ssh_config": _render_ssh_config(endpoint.host, endpoint.port, title),
        "expires_at": render_timestamp(grant.session.expires_at),
        "workdir": grant.workdir,
    }


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
