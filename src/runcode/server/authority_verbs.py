"""The operator's verbs for certificate authorities. They answer as `verbs` does."""

from __future__ import annotations

from argparse import Namespace

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import ClientAuthorityRecord
from runcode.core.hostkeys import parse_public_key
from runcode.server.data_folder import DataFolder
from runcode.server.rendering import Answer, render_table, render_time


async def list_authorities(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    found = [_authority(one) for one in await plane.client_authorities.list_authorities()]
    line = plane.certificates.workspace_ca_line
    found.append(_value("workspace", "current", parse_public_key(line).fingerprint, line, "disk", None, None))
    rows = [(one["kind"], one["state"], one["kept"], one["fingerprint"], one["created_at"] or "") for one in found]
    table = render_table(("KIND", "STATE", "KEPT", "FINGERPRINT", "CREATED"), [tuple(map(str, row)) for row in rows])
    return Answer(value=found, text=table)


async def rotate_authority(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    made = await plane.client_authorities.rotate()
    said = f"{made.fingerprint} signs from now on where `up --client-ca disk` runs; older ones count until retired\n"
    said += f"its key is in {folder.keys}: copy it to the other servers of this installation"
    return Answer(value=_authority(made), text=said)


async def retire_authority(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    retired = await plane.client_authorities.retire(options.fingerprint)
    text = f"{retired.fingerprint} counts no more: whoever came in by it is cut, and comes back with a new session"
    return Answer(value=_authority(retired), text=text)


def _authority(one: ClientAuthorityRecord) -> dict[str, object]:
    kept = "disk" if one.on_disk else "elsewhere"
    created, retired = render_time(one.created_at) or None, render_time(one.retired_at) or None
    return _value("client", one.state, one.fingerprint, one.public_key, kept, created, retired)


def _value(
    kind: str, state: str, fingerprint: str, public_key: str, kept: str, created_at: str | None, retired_at: str | None
) -> dict[str, object]:
    return {
        "kind": kind,
        "state": state,
        "fingerprint": fingerprint,
        "public_key": public_key,
        "kept": kept,
        "created_at": created_at,
        "retired_at": retired_at,
    }
