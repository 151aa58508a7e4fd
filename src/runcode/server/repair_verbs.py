"""When a workspace is stuck: what the reconciler knows of it, and how to make it try again.

Owns: `workspace show`, `workspace retry` and `leases`. The rules are `services.repairs`'.
"""

from __future__ import annotations

import json
from argparse import Namespace

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services.repairs import Repairs, WorkspaceInside
from runcode.server.data_folder import DataFolder
from runcode.server.rendering import Answer, render_table, render_time


async def show_workspace(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    found = await Repairs(plane.store, plane.clock).load_inside(options.workspace)
    value = _inside(found, folder)
    lines = [(name, _cell(shown)) for name, shown in value.items()]
    return Answer(value=value, text=render_table(("WHAT", ""), lines))


async def retry_workspace(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    repairs = Repairs(plane.store, plane.clock)
    found = await repairs.retry(options.workspace, elsewhere=options.elsewhere)
    text = f"{found.record.title}: tried again from the beginning"
    if folder.find_server_pid() is None and not plane.store.shared:
        text += ", once the server runs"
    if options.elsewhere:
        text += "; it lives nowhere now, and starts anew, without its storage, on the server that takes it first"
    return Answer(value=_inside(found, folder), text=text)


async def list_leases(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    found = await Repairs(plane.store, plane.clock).list_leased()
    now = plane.clock.now()
    rows = [
        (
            str(inside.record.id),
            inside.record.title,
            inside.record.activity or "",
            inside.lease_owner or "",
            render_time(inside.lease_expires_at),
            "" if inside.lease_expires_at is None or inside.lease_expires_at > now else "ended",
        )
        for inside in found
    ]
    header = ("ID", "TITLE", "DOING", "HOLDER", "ENDS", "")
    return Answer(value=[_inside(inside, folder) for inside in found], text=render_table(header, rows))


def _inside(found: WorkspaceInside, folder: DataFolder) -> dict[str, object]:
    record = found.record
    return {
        "id": record.id,
        "title": record.title,
        "owner": record.owner_email,
        "runtime": record.runtime,
        "state": record.state,
        "desired_state": record.desired_state,
        "observed_state": record.observed_state,
        "observed_at": render_time(found.observed_at),
        "doing": record.activity,
        "reason": record.reason,
        "failures": record.failures,
        "retry_at": render_time(found.retry_at) or None,
        "place": found.place,
        "place_is_here": None if found.place is None else found.place == folder.load_place(),
        "lease_owner": found.lease_owner,
        "lease_expires_at": render_time(found.lease_expires_at) or None,
        "checkpoints": list(found.checkpoints),
        "live_sessions": found.live_sessions,
    }


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
