"""Lists stay cheap: no list route asks the database once for each row, and others' rows cost one's own list nothing.

Every GET route of the API that lists something stands in `LISTS`; a new one that is
missing there fails. Statements are counted and their plans read; times are recorded only.
"""

from __future__ import annotations

import datetime
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import insert

from runcode.controlplane.app import make_app
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services.events import NewEvent
from runcode.controlplane.store.models import (
    InvitationRow,
    SessionRow,
    ShareRow,
    TeamMemberRow,
    TeamRow,
    TeamShareRow,
    UserRow,
    WorkspaceRow,
)
from support.controlplane_fakes import START, ManualClock, open_plane, serve
from support.statement_count import counted_statements

ANN = "ann@example.org"
# Path → with what; `1` is Ann's first workspace and her team.
LISTS = {
    "/api/rc/workspaces": ("/api/rc/workspaces", "/api/rc/workspaces?category=shared"),
    "/api/rc/workspace/{raw_id}/sessions": ("/api/rc/workspace/1/sessions",),
    "/api/rc/workspace/{raw_id}/shares": ("/api/rc/workspace/1/shares",),
    "/api/rc/sessions": ("/api/rc/sessions",),
    "/api/rc/teams": ("/api/rc/teams",),
    "/api/rc/team/{raw_id}": ("/api/rc/team/1",),
    "/api/rc/activity": ("/api/rc/activity",),
    "/api/rc/workspace/{raw_id}/activity": ("/api/rc/workspace/1/activity",),
    "/api/rc/admin/users": ("/api/rc/admin/users",),
    "/api/rc/admin/workspaces": ("/api/rc/admin/workspaces",),
    "/api/rc/admin/sessions": ("/api/rc/admin/sessions",),
}
# GET routes that answer of one thing, or act.
SINGLE = {
    "/api/rc/me",
    "/api/rc/runtimes",
    "/api/rc/workspace/{raw_id}",
    "/api/rc/workspace/start",
    "/api/rc/workspace/stop",
}


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, ManualClock()) as opened:
        await opened.users.create_user(ANN, admin=True)
        yield opened


class Filler:
    """Rows by the hundred, without the rules: each call adds to what is there."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.numbers = dict.fromkeys(("user", "workspace", "team", "session"), 0)
        self.numbers["user"] = 1  # Ann

    def ids(self, what: str, count: int) -> range:
        first = self.numbers[what] + 1
        self.numbers[what] += count
        return range(first, first + count)

    async def add(self, model: Any, rows: list[dict[str, Any]]) -> None:
        async with self.plane.store.write() as session:
            await session.execute(insert(model), rows)

    async def add_users(self, count: int) -> range:
        ids = self.ids("user", count)
        await self.add(
            UserRow, [{"id": n, "email": f"u{n}@example.org", "is_admin": False, "created_at": START} for n in ids]
        )
        return ids

    async def add_workspaces(self, owners: list[int]) -> range:
        ids = self.ids("workspace", len(owners))
        fixed = {
            "custom_title": "",
            "runtime": "local",
            "size": "standard",
            "host_public_key": "ssh-ed25519 AAAA",
            "desired_state": "stopped",
            "observed_state": "stopped",
            "observed_at": START,
            "failures": 0,
            "checkpoints": [],
            "created_at": START,
        }
        rows = [
            {"id": n, "title": f"box-{n}", "owner_id": owner, **fixed} for n, owner in zip(ids, owners, strict=True)
        ]
        await self.add(WorkspaceRow, rows)
        return ids

    async def add_everything(self, count: int, token_id: int) -> None:
        """`count` of each kind, all of which Ann has to do with."""
        others = await self.add_users(count)
        await self.add_workspaces([1] * count)
        guests = await self.add_workspaces(list(others))
        teams = self.ids("team", count)
        at = {"created_at": START}
        await self.add(TeamRow, [{"id": n, "name": f"team {n}", **at} for n in teams])
        members = [{"team_id": n, "user_id": 1, "role": "admin", **at} for n in teams]
        await self.add(TeamMemberRow, members + [{"team_id": 1, "user_id": n, "role": "member", **at} for n in others])
        half = len(guests) // 2
        await self.add(ShareRow, [{"workspace_id": n, "user_id": 1, "role": "use", **at} for n in guests[:half]])
        await self.add(ShareRow, [{"workspace_id": 1, "user_id": n, "role": "use", **at} for n in others])
        by_team = [{"workspace_id": n, "team_id": 1, "role": "manage", **at} for n in guests[half:]]
        await self.add(TeamShareRow, by_team + [{"workspace_id": 1, "team_id": n, "role": "use", **at} for n in teams])
        emails = [f"later{n}@example.org" for n in others]
        for place in (
            {"workspace_id": 1, "team_id": None, "role": "use"},
            {"workspace_id": None, "team_id": 1, "role": "member"},
        ):
            await self.add(InvitationRow, [{"email": email, **place, **at} for email in emails])
        seen = [
            NewEvent("connection", "start", secrets.token_hex(16), START, {}, workspace_id=1, user_id=user)
            for other in others
            for user in (1, other)
        ]
        await self.plane.events.record("gw", seen)
        sessions = self.ids("session", count)
        ends = START + datetime.timedelta(hours=1)
        await self.add(
            SessionRow,
            [
                {
                    "id": n,
                    "user_id": 1,
                    "workspace_id": 1,
                    "token_id": token_id,
                    "fingerprint": f"SHA256:{n}",
                    "public_key": "ssh-ed25519 AAAA",
                    "client": "cli",
                    "expires_at": ends,
                    **at,
                }
                for n in sessions
            ],
        )


async def test_no_list_asks_once_for_each_row(plane: ControlPlane) -> None:
    made = await plane.tokens.create_token(ANN, "laptop")
    filler = Filler(plane)
    seen: list[dict[str, tuple[int, int]]] = []
    async with serve(plane) as server:
        for count in (2, 40):
            await filler.add_everything(count, made.record.id)
            # The token's use is noted beside the first call, once.
            await server.call("GET", "/api/rc/me", token=made.plaintext)
            await plane.tokens.close()
            costs = {}
            for paths in LISTS.values():
                for path in paths:
                    with counted_statements() as statements:
                        answer = await server.call("GET", path, token=made.plaintext)
                    assert answer.status == 200, (path, answer.raw)
                    costs[path] = (len(answer.raw), statements.count)
            seen.append(costs)
    few, many = seen
    # Each really has more rows now.
    assert [path for path in few if many[path][0] <= 4 * few[path][0]] == []
    assert {path: count for path, (_, count) in many.items() if count > few[path][1]} == {}
    assert max(count for _, count in many.values()) <= 8, many


async def test_every_route_that_lists_is_looked_at(plane: ControlPlane) -> None:
    served = {
        found.path
        for found in iter_route_contexts(make_app(plane).routes)
        if "GET" in (getattr(found.original_route, "methods", None) or ()) and str(found.path).startswith("/api/rc/")
    }
    assert served - SINGLE - set(LISTS) == set(), "does it list? then it belongs into LISTS"


async def test_what_others_have_costs_ones_own_list_nothing(
    plane: ControlPlane, tmp_path: Path, record_property: Any
) -> None:
    """Ann has 10 workspaces among 20, then among 2,000 of 200 people."""
    made = await plane.tokens.create_token(ANN, "laptop")
    caller = await plane.tokens.authenticate(made.plaintext)
    filler = Filler(plane)
    others = await filler.add_users(1)
    await filler.add_workspaces([1] * 10 + list(others) * 10)

    async def cheapest() -> float:
        took = []
        for _ in range(40):
            began = time.perf_counter()
            assert len(await plane.workspaces.list_owned(caller)) == 10
            await plane.workspaces.list_shared(caller)
            took.append(time.perf_counter() - began)
        return min(took)

    await cheapest()
    alone = await cheapest()
    others = await filler.add_users(198)
    await filler.add_workspaces([n for n in others for _ in range(10)])
    among_all = await cheapest()
    record_property("ratio", round(among_all / alone, 2))
    print(f"own list: {alone * 1000:.2f} ms among 20, {among_all * 1000:.2f} ms among 2,000")
    # The times are a measurement; what is asserted is that no row of others is even looked at.
    with counted_statements() as statements:
        await plane.workspaces.list_owned(caller)
        await plane.workspaces.list_shared(caller)
    connection = sqlite3.connect(tmp_path / "runcode.db")
    plans = [
        str(row[3])
        for text, parameters in zip(statements.texts, statements.parameters, strict=True)
        for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", parameters)
    ]
    connection.close()
    assert len(plans) > 4
    assert [
        step for step in plans if step.startswith("SCAN ") and "SUBQUERY" not in step and "workspaces" in step
    ] == []
