"""The operator's verbs beside `up`: users, tokens, workspaces, on the same database while the server runs.

Those for sessions and activity are in `activity_verbs`, those for the audit in
`audit_verbs`, handed on by `main`'s look-up here.

Owns: what each verb does and what it answers. Every answer is a JSON-able value
and a text for people; `main` prints one of them. The rules are the control
plane's services'; nothing here decides.
"""

from __future__ import annotations

import asyncio
import datetime
import secrets
import sys
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import TokenRecord, UserRecord, WorkspaceRecord
from runcode.controlplane.services.tokens import TokenBounds
from runcode.controlplane.states import DELETED, RUNNING
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import Endpoint, TcpEndpoint, UnixEndpoint
from runcode.server.activity_verbs import list_activity, list_sessions, revoke_sessions
from runcode.server.audit_verbs import export_audit, verify_audit
from runcode.server.data_folder import DataFolder
from runcode.server.installed_runtimes import require_runtime_name
from runcode.server.rendering import Answer, render_table, render_time

# The reconciler hears of a change within 200 ms; a box takes well under a second.
WAIT_S = 60.0
_POLL_S = 0.05


__all__ = ["Answer", "Verb", "export_audit", "list_activity", "list_sessions", "revoke_sessions", "verify_audit"]

Verb = Callable[[ControlPlane, DataFolder, Namespace], Awaitable[Answer]]


# ---------------------------------------------------------------- users


async def create_user(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    password = _choose_password(options)
    user = await plane.users.create_user(options.email, password, admin=options.admin)
    return _tell_password(user, f"created {user.email}" + (" (admin)" if user.is_admin else ""), password, options)


async def set_password(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    password = _choose_password(options)
    user = await plane.users.set_password(options.email, password)
    return _tell_password(user, f"{user.email} has another password", password, options)


def _choose_password(options: Namespace) -> str:
    return sys.stdin.readline().rstrip("\n") if options.password_stdin else secrets.token_urlsafe(18)


def _tell_password(user: UserRecord, text: str, password: str, options: Namespace) -> Answer:
    value = _user(user)
    if not options.password_stdin:
        value["password"] = password
        text += f"\npassword: {password}   (shown this once)"
    return Answer(value=value, text=text)


async def list_users(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    users = await plane.users.list_users()
    rows = [
        (user.email, "admin" if user.is_admin else "", "disabled" if user.disabled_at else "active") for user in users
    ]
    return Answer(value=[_user(user) for user in users], text=render_table(("E-MAIL", "ROLE", "STATE"), rows))


async def disable_user(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    user = await plane.users.disable_user(options.email)
    return Answer(value=_user(user), text=f"disabled {user.email}; their live connections are cut")


async def enable_user(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    user = await plane.users.enable_user(options.email)
    return Answer(value=_user(user), text=f"enabled {user.email}")


# ---------------------------------------------------------------- tokens


async def create_token(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    email = options.user or await _first_admin(plane)
    expires_at = None
    if options.expires_days is not None:
        expires_at = plane.clock.now() + datetime.timedelta(days=options.expires_days)
    made = await plane.tokens.create_token(email, options.name, bounds=TokenBounds(expires_at=expires_at))
    # The text is the token alone, so that it can be piped into `runcode login --paste`.
    return Answer(value={**_token(made.record), "token": made.plaintext}, text=made.plaintext)


async def list_tokens(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    tokens = await plane.tokens.list_tokens(options.user)
    rows = [
        (
            str(token.id),
            token.user_email,
            token.name,
            _token_state(token, plane.clock.now()),
            render_time(token.last_used_at),
        )
        for token in tokens
    ]
    return Answer(
        value=[_token(token) for token in tokens], text=render_table(("ID", "USER", "NAME", "STATE", "LAST USED"), rows)
    )


async def revoke_token(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    token = await plane.tokens.revoke_token(options.id)
    return Answer(value=_token(token), text=f"revoked token {token.id}; what it had opened is cut")


# ---------------------------------------------------------------- workspaces


async def create_workspace(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    workspace = await plane.workspaces.create_workspace(
        options.title,
        options.owner or await _first_admin(plane),
        runtime=require_runtime_name(options.runtime),
        custom_title=options.custom_title,
    )
    text = (
        f"created workspace {workspace.id}: {workspace.title} ({workspace.runtime})\n"
        f"next: runcode connect {workspace.title} --start"
    )
    return Answer(value=_workspace(workspace), text=text)


async def list_workspaces(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    workspaces = await plane.workspaces.list_all()
    rows = [(str(w.id), w.title, w.state, w.runtime, w.owner_email, w.custom_title, w.reason or "") for w in workspaces]
    header = ("ID", "TITLE", "STATE", "RUNTIME", "OWNER", "NAME", "REASON")
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


async def share_workspace(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    share = await plane.workspaces.share(options.workspace, options.email, options.role)
    value = {"workspace_id": share.workspace_id, "email": share.user_email, "role": share.role}
    return Answer(value=value, text=f"shared with {share.user_email} ({share.role})")


async def unshare_workspace(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    await plane.workspaces.unshare(options.workspace, options.email)
    return Answer(
        value={"workspace": options.workspace, "email": options.email, "role": None},
        text=f"no longer shared with {options.email}; their live connections are cut",
    )


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


async def _first_admin(plane: ControlPlane) -> str:
    for user in await plane.users.list_users():
        if user.is_admin and user.disabled_at is None:
            return user.email
    raise RunCodeError(
        "not_found", "there is no active admin to act for", resolution="name a user, or `user create EMAIL --admin`"
    )


# ---------------------------------------------------------------- rendering


def _user(user: UserRecord) -> dict[str, object]:
    return {
        "id": user.id,
        "email": user.email,
        "admin": user.is_admin,
        "created_at": render_time(user.created_at),
        "disabled_at": render_time(user.disabled_at) or None,
    }


def _token(token: TokenRecord) -> dict[str, object]:
    return {
        "id": token.id,
        "email": token.user_email,
        "name": token.name,
        "created_at": render_time(token.created_at),
        "last_used_at": render_time(token.last_used_at) or None,
        "expires_at": render_time(token.expires_at) or None,
        "revoked_at": render_time(token.revoked_at) or None,
    }


def _token_state(token: TokenRecord, now: datetime.datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at is not None and token.expires_at <= now else "active"


def _workspace(workspace: WorkspaceRecord) -> dict[str, object]:
    return {
        "id": workspace.id,
        "title": workspace.title,
        "custom_title": workspace.custom_title,
        "owner": workspace.owner_email,
        "runtime": workspace.runtime,
        "state": workspace.state,
        "reason": workspace.reason,
        "endpoint": _endpoint(workspace.endpoint),
        "created_at": render_time(workspace.created_at),
    }


def _endpoint(endpoint: Endpoint | None) -> str | None:
    if isinstance(endpoint, UnixEndpoint):
        return endpoint.socket_path
    if isinstance(endpoint, TcpEndpoint):
        return f"{endpoint.host}:{endpoint.port}"
    return None
