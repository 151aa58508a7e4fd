"""Records as the wire's JSON. Pure."""

from __future__ import annotations

import functools

from runcode.controlplane.records import SessionGrant, SshEndpoint, WorkspaceRecord
from runcode.core import hostkeys, wire
from runcode.core.bundle import render_timestamp


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
