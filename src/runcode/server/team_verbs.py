"""The operator's verbs for teams. They answer as `verbs` does."""

from __future__ import annotations

from argparse import Namespace

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import TeamRecord
from runcode.core.errors import RunCodeError
from runcode.server.data_folder import DataFolder
from runcode.server.rendering import Answer, render_table, render_time


async def create_team(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    team = await plane.teams.create_team(options.name, admin_email=options.admin or await _first_admin(plane))
    return Answer(value=_team(team), text=f"created team {team.id}: {team.name}")


async def list_teams(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    teams = await plane.teams.list_teams()
    rows = [(str(team.id), team.name, str(team.members)) for team in teams]
    return Answer(value=[_team(team) for team in teams], text=render_table(("ID", "NAME", "MEMBERS"), rows))


async def list_members(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    team, members = await plane.teams.load_team(options.team)
    value = {**_team(team), "members": [{"email": member.email, "role": member.role} for member in members]}
    return Answer(value=value, text=render_table(("E-MAIL", "ROLE"), [(m.email, m.role) for m in members]))


async def add_member(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    member = await plane.teams.set_member(options.team, options.email, options.role)
    value = {"team": options.team, "email": member.email, "role": member.role}
    return Answer(value=value, text=f"{member.email} is in {options.team} ({member.role})")


async def remove_member(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    await plane.teams.remove_member(options.team, options.email)
    return Answer(
        value={"team": options.team, "email": options.email, "role": None},
        text=f"{options.email} is not in {options.team}; what they had open by it alone is cut",
    )


async def rename_team(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    team = await plane.teams.rename_team(options.team, options.name)
    return Answer(value=_team(team), text=f"team {team.id} is called {team.name}")


async def delete_team(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    await plane.teams.delete_team(options.team)
    return Answer(value={"team": options.team}, text=f"deleted {options.team}; what was open by it alone is cut")


async def _first_admin(plane: ControlPlane) -> str:
    for user in await plane.users.list_users():
        if user.is_admin and user.disabled_at is None:
            return user.email
    raise RunCodeError("not_found", "there is no active admin", resolution="name one: --admin EMAIL")


def _team(team: TeamRecord) -> dict[str, object]:
    return {"id": team.id, "name": team.name, "members": team.members, "created_at": render_time(team.created_at)}
