"""The operator's verbs beside `up`: workspaces, on the same database while the server runs.

Those for people and tokens are in `identity_verbs`, for sessions and activity in `activity_verbs`, for stuck
workspaces in `repair_verbs`, for the audit in `audit_verbs`, for the database and its backup in
`database_verbs` and `backup_verbs`; `main` finds all of them here.

Owns: what each verb does and what it answers. Every answer is a JSON-able value
and a text for people; `main` prints one of them. The rules are the control
plane's services'; nothing here decides.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import WorkspaceRecord
from runcode.controlplane.services.inputs import UNSET
from runcode.controlplane.states import DELETED, RUNNING
from runcode.core.channel_policy import describe_policy, render_policy
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import Endpoint, TcpEndpoint, UnixEndpoint
from runcode.server.activity_verbs import list_activity, list_sessions, revoke_sessions
from runcode.server.audit_verbs import export_audit, verify_audit
from runcode.server.authority_verbs import list_authorities, retire_authority, rotate_authority
from runcode.server.backup_verbs import make_backup
from runcode.server.data_folder import DataFolder
from runcode.server.database_verbs import check as check_database
from runcode.server.database_verbs import show_status as show_database
from runcode.server.database_verbs import vacuum as vacuum_database
from runcode.server.gateway_verbs import create_gateway, list_gateways, revoke_gateway
from runcode.server.identity_verbs import (
    create_sign_in_link,
    create_token,
    create_user,
    disable_user,
    enable_user,
    first_admin,
    invite_user,
    link_identity,
    list_tokens,
    list_users,
    revoke_token,
    set_password,
    sign_user_out,
    unlink_identities,
)
from runcode.server.installed_runtimes import require_runtime_name
from runcode.server.rendering import Answer, render_table, render_time
from runcode.server.repair_verbs import list_leases, retry_workspace, show_workspace
from runcode.server.team_verbs import (
    add_member,
    create_team,
    delete_team,
    list_members,
    list_teams,
    remove_member,
    rename_team,
)
from runcode.server.workspace_options import DEFAULT, read_policy

# The reconciler hears of a change within 200 ms; a box takes well under a second.
WAIT_S = 60.0
_POLL_S = 0.05


__all__ = [
    "Answer",
    "Verb",
    "add_member",
    "check_database",
    "create_gateway",
    "create_sign_in_link",
    "create_team",
    "create_token",
    "create_user",
    "delete_team",
    "disable_user",
    "enable_user",
    "export_audit",
    "invite_user",
    "link_identity",
    "list_activity",
    "list_authorities",
    "list_gateways",
    "list_leases",
    "list_members",
    "list_sessions",
    "list_teams",
    "list_tokens",
    "list_users",
    "make_backup",
    "remove_member",
    "rename_team",
    "retire_authority",
    "retry_workspace",
    "revoke_gateway",
    "revoke_sessions",
    "revoke_token",
    "rotate_authority",
    "set_password",
    "show_database",
    "show_workspace",
    "sign_user_out",
    "unlink_identities",
    "vacuum_database",
    "verify_audit",
]

Verb = Callable[[ControlPlane, DataFolder, Namespace], Awaitable[Answer]]


# ---------------------------------------------------------------- users


async def set_quota(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    user = await plane.quotas.set_quota(
        options.email,
        workspaces_max=UNSET if options.workspaces is None else _unless_default(options.workspaces),
        running_max=UNSET if options.running is None else _unless_default(options.running),
    )
    quota = await plane.quotas.load_quota(options.email)
    value: dict[str, object] = {
        "email": user.email,
        "workspaces": quota.workspaces,
        "workspaces_max": user.workspaces_max,
        "running": quota.running,
        "running_max": user.running_max,
    }
    text = (
        f"{user.email}: {quota.workspaces} workspaces of {_limit(user.workspaces_max)}, "
        f"{quota.running} running of {_limit(user.running_max)}"
    )
    return Answer(value=value, text=text)


def _limit(own: int | None) -> str:
    return "as many as `up` allows" if own is None else str(own)


def _unless_default(value: int | str | None) -> int | None:
    return None if value is None or value == DEFAULT else int(value)


# ---------------------------------------------------------------- workspaces


async def create_workspace(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    workspace = await plane.workspaces.create_workspace(
        options.title,
        options.owner or await first_admin(plane),
        runtime=require_runtime_name(options.runtime),
        custom_title=options.custom_title,
        size=options.size,
        idle_stop_after_s=_unless_default(options.idle),
    )
    text = (
        f"created workspace {workspace.id}: {workspace.title} ({workspace.runtime}, {workspace.size})\n"
        f"next: runcode connect {workspace.title} --start"
    )
    return Answer(value=_workspace(workspace), text=text)


async def list_workspaces(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    workspaces = await plane.workspaces.list_all()
    rows = [
        (str(w.id), w.title, w.state, w.runtime, w.size, w.owner_email, w.custom_title, w.explanation or "")
        for w in workspaces
    ]
    header = ("ID", "TITLE", "STATE", "RUNTIME", "SIZE", "OWNER", "NAME", "REASON")
    return Answer(value=[_workspace(w) for w in workspaces], text=render_table(header, rows))


async def start_workspace(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    workspace = await plane.workspaces.request_start(options.workspace)
    return await _until(plane, folder, options, workspace, "running", "started")


async def stop_workspace(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    workspace = await plane.workspaces.request_stop(options.workspace)
    return await _until(plane, folder, options, workspace, "stopped", "stopped")


async def delete_workspace(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    workspace = await plane.workspaces.delete_workspace(options.workspace)
    return await _until(plane, folder, options, workspace, None, "deleted, storage included:")


async def change_workspace(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    changed = await plane.workspaces.update_workspace(
        options.workspace,
        custom_title=options.custom_title,
        size=options.size,
        idle_stop_after_s=UNSET if options.idle is None else _unless_default(options.idle),
        policy=read_policy(options),
    )
    idle = {None: "as `up` says", 0: "never"}.get(changed.idle_stop_after_s) or f"{changed.idle_stop_after_s} s"
    text = f"{changed.title}: size {changed.size}, stopped when idle: {idle}\n{describe_policy(changed.policy)}"
    if changed.size_pending:
        text += f"\nit runs with the size {changed.box_size} until its next start"
    return Answer(value=_workspace(changed), text=text)


async def list_sizes(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    sizes = plane.workspaces.policy.sizes
    values = [
        {"name": name, "memory_bytes": size.memory_bytes, "processes": size.processes, "cpus": size.cpus}
        for name, size in sizes.items()
    ]
    rows = [
        (
            name,
            "most" if size.memory_bytes is None else f"{size.memory_bytes // 2**20} MiB",
            "most" if size.processes is None else str(size.processes),
            "most" if size.cpus is None else f"{size.cpus:g}",
        )
        for name, size in sizes.items()
    ]
    text = render_table(("SIZE", "MEMORY", "PROCESSES", "CPUS"), rows)
    return Answer(value=values, text=text + "\n`most`: as much as the runtime lets one box have")


async def share_workspace(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    email, team = _person_or_team(options)
    if email is not None:
        share = await plane.shares.share(options.workspace, email, options.role)
    else:
        share = await plane.shares.share_with_team(options.workspace, team, options.role)
    value = {
        "workspace_id": share.workspace_id,
        "email": share.user_email,
        "team": share.team_name,
        "role": share.role,
    }
    return Answer(value=value, text=f"shared with {share.user_email or share.team_name} ({share.role})")


async def unshare_workspace(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    email, team = _person_or_team(options)
    if email is not None:
        await plane.shares.unshare(options.workspace, email)
    else:
        await plane.shares.unshare_with_team(options.workspace, team)
    return Answer(
        value={"workspace": options.workspace, "email": email, "team": options.team, "role": None},
        text=f"no longer shared with {email or team}; their live connections are cut",
    )


def _person_or_team(options: Namespace) -> tuple[str | None, str]:
    if (options.email is None) == (options.team is None):
        raise RunCodeError("usage", "with whom?", resolution="name an EMAIL or a --team")
    if options.email is not None and "@" not in options.email:
        raise RunCodeError(
            "usage",
            f"{options.email!r} is not an e-mail address",
            resolution=f"name@example.org is one; a team is named with --team {shlex.quote(options.email)}",
        )
    return options.email, options.team or ""


async def _until(
    plane: ControlPlane,
    folder: DataFolder,
    options: Namespace,
    workspace: WorkspaceRecord,
    wanted: str | None,
    done: str,
) -> Answer:
    """Wait until the running server has carried it out; `wanted` None means gone. Raises what went wrong."""
    if folder.find_server_pid() is None:
        text = f"{workspace.title}: noted; the server is not running, and does it when it starts"
        return Answer(value=_workspace(workspace), text=text)
    if options.no_wait:
        return Answer(value=_workspace(workspace), text=f"{workspace.title}: asked for")
    deadline = time.monotonic() + WAIT_S
    said = False
    while True:
        found = next((w for w in await plane.workspaces.list_all() if w.id == workspace.id), None)
        if wanted is not None and (found is None or found.desired_state != wanted):
            raise _overtaken(workspace, found)
        if found is None or found.state == wanted:
            shown = _workspace(found or workspace) | ({"state": "deleted"} if found is None else {})
            return Answer(value=shown, text=f"{done} {workspace.title}")
        if found.reason is not None and found.failures > 0:
            raise RunCodeError(
                "start_failed" if wanted == "running" else "not_ready",
                f"{workspace.title}: {found.reason}",
                resolution="remove the cause; the server tries again by itself",
            )
        if time.monotonic() > deadline:
            raise RunCodeError(
                "not_ready",
                f"{workspace.title} is still {found.state} after {WAIT_S:.0f} s",
                resolution="look at the server's log; it goes on trying",
            )
        if not said and time.monotonic() > deadline - WAIT_S + 1:
            said = True
            print(f"runcode-server: {workspace.title} is {found.state} …", file=sys.stderr, flush=True)
        await asyncio.sleep(_POLL_S)


def _overtaken(asked: WorkspaceRecord, found: WorkspaceRecord | None) -> RunCodeError:
    """Somebody wished for something else meanwhile, and the last wish counts: waiting for ours would never end."""
    if found is None or found.desired_state == DELETED:
        return RunCodeError(
            "not_found", f"{asked.title} was deleted meanwhile", resolution="see `runcode-server workspace list`"
        )
    verb = "start" if found.desired_state == RUNNING else "stop"
    return RunCodeError(
        "conflict",
        f"somebody asked to {verb} {asked.title} meanwhile, and the last wish counts",
        resolution="agree on what it should be, then ask again",
    )


# ---------------------------------------------------------------- rendering


def _workspace(workspace: WorkspaceRecord) -> dict[str, object]:
    return {
        "id": workspace.id,
        "title": workspace.title,
        "custom_title": workspace.custom_title,
        "owner": workspace.owner_email,
        "runtime": workspace.runtime,
        "state": workspace.state,
        "reason": workspace.reason,
        "explanation": workspace.explanation,
        "size": workspace.size,
        "idle_stop_after_s": workspace.idle_stop_after_s,
        "policy": render_policy(workspace.policy),
        "endpoint": _endpoint(workspace.endpoint),
        "created_at": render_time(workspace.created_at),
    }


def _endpoint(endpoint: Endpoint | None) -> str | None:
    if isinstance(endpoint, UnixEndpoint):
        return endpoint.socket_path
    if isinstance(endpoint, TcpEndpoint):
        return f"{endpoint.host}:{endpoint.port}"
    return None
