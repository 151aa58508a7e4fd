"""The operator's verbs for gateways that run as processes of their own. They answer as `verbs` does."""

from __future__ import annotations

from argparse import Namespace

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import GatewayRecord
from runcode.server.data_folder import DataFolder
from runcode.server.rendering import Answer, render_table, render_time


async def create_gateway(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    made = await plane.gateways.create_gateway(options.name)
    # The text is the credential alone, so that it can go straight into a file.
    return Answer(value={**_gateway(made.record), "credential": made.credential}, text=made.credential)


async def list_gateways(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    gateways = await plane.gateways.list_gateways()
    rows = [(g.name, "revoked" if g.revoked_at else "active", render_time(g.created_at)) for g in gateways]
    return Answer(value=[_gateway(one) for one in gateways], text=render_table(("NAME", "STATE", "CREATED"), rows))


async def revoke_gateway(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    gateway = await plane.gateways.revoke_gateway(options.name)
    text = f"revoked {gateway.name}: in two seconds it lets nobody in; end its process to end what is open there"
    return Answer(value=_gateway(gateway), text=text)


def _gateway(gateway: GatewayRecord) -> dict[str, object]:
    return {
        "id": gateway.id,
        "name": gateway.name,
        "created_at": render_time(gateway.created_at),
        "revoked_at": render_time(gateway.revoked_at) or None,
    }
