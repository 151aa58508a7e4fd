"""The timeline under a real uvicorn: who sees what, page after page, whatever is asked for."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services.events import NewEvent
from support.controlplane_fakes import (
    START,
    HttpServer,
    ManualClock,
    make_client_key,
    mark_running,
    open_plane,
    serve,
    set_endpoint,
)

OWNER, GUEST, STRANGER, ADMIN = "ann@example.org", "bob@example.org", "eve@example.org", "root@example.org"
Tokens = dict[str, str]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def plane(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, clock) as opened:
        set_endpoint(opened)
        for email in (OWNER, GUEST, STRANGER):
            await opened.users.create_user(email)
        await opened.users.create_user(ADMIN, admin=True)
        for title in ("royal-1", "other-1"):
            await opened.workspaces.create_workspace(title, OWNER, runtime="fake")
            await mark_running(opened, title)
        await opened.workspaces.share("royal-1", GUEST, "use")
        yield opened


@pytest.fixture
async def server(plane: ControlPlane) -> AsyncIterator[HttpServer]:
    async with serve(plane) as running:
        yield running


@pytest.fixture
async def tokens(plane: ControlPlane) -> Tokens:
    return {
        email: (await plane.tokens.create_token(email, f"laptop of {email}")).plaintext
        for email in (OWNER, GUEST, STRANGER, ADMIN)
    }


async def mint(plane: ControlPlane, token: str, workspace_id: int = 1, client: str = "codex") -> tuple[int, int]:
    """(session, user)"""
    caller = await plane.tokens.authenticate(token)
    grant = await plane.sessions.register_session(
        caller, workspace_id, raw_public_key=make_client_key(), raw_client=client
    )
    return grant.session.id, caller.user_id


class Connection:
    """What a gateway would tell of one connection."""

    def __init__(self, plane: ControlPlane, session_id: int, user_id: int, workspace_id: int = 1) -> None:
        self._plane = plane
        self.subject = secrets.token_hex(16)
        self.ids = {"session_id": session_id, "user_id": user_id, "workspace_id": workspace_id}

    async def tell(
        self, kind: str, phase: str, subject: str, detail: dict[str, Any], after_s: float = 0.0, **more: Any
    ) -> None:
        at = START + datetime.timedelta(seconds=after_s)
        event = NewEvent(
            kind=kind, phase=phase, subject_id=subject, at=at, detail=detail, connection_id=self.subject, **self.ids
        )
        await self._plane.events.record("gw", [event if not more else NewEvent(**{**vars(event), **more})])

    async def open(self, client: str = "codex") -> None:
        detail = {"workspace": "royal-1", "client": client, "source": "192.0.2.7"}
        await self.tell("connection", "start", self.subject, detail)

    async def run(self, text: str, status: int = 0, lasts_s: float = 2.5) -> str:
        subject = secrets.token_hex(16)
        await self.tell("command", "start", subject, {"form": "exec", "text": text, "text_bytes": len(text)})
        detail = {"form": "exec", "outcome": "finished", "exit_status": status, "bytes_up": 3, "bytes_down": 44}
        await self.tell("command", "end", subject, detail, lasts_s, started_at=START)
        return subject


async def ask(server: HttpServer, token: str, path: str, status: int = 200) -> Any:
    answer = await server.call("GET", f"/api/rc{path}", token=token)
    assert answer.status == status, answer.json
    return answer.json["data"] if status == 200 else answer.json["code"]


async def test_a_command_is_told_with_all_that_is_known_of_it(
    plane: ControlPlane, server: HttpServer, tokens: Tokens
) -> None:
    session_id, user_id = await mint(plane, tokens[OWNER])
    connection = Connection(plane, session_id, user_id)
    await connection.open()
    subject = await connection.run("PGPASSWORD=hunter2 psql -c 'select 1'", status=3)
    newest = (await ask(server, tokens[OWNER], "/workspace/1/activity"))["activity"][0]
    assert newest == {
        "id": subject,
        "kind": "command",
        "email": OWNER,
        "by": None,
        "client": "codex",
        "token_id": 1,
        "token_name": f"laptop of {OWNER}",
        "session_id": session_id,
        "connection_id": connection.subject,
        "source": "192.0.2.7",
        "workspace_id": 1,
        "workspace": "royal-1",
        "started_at": "2026-11-23T22:00:00Z",
        "ended_at": "2026-11-23T22:00:02Z",
        "duration_ms": 2500,
        "form": "exec",
        "command": "PGPASSWORD=[masked] psql -c 'select 1'",
        "command_bytes": 37,
        "masked": 1,
        "target": None,
        "opened_by": None,
        "outcome": "finished",
        "reason": None,
        "exit_status": 3,
        "exit_signal": None,
        "bytes_up": 3,
        "bytes_down": 44,
        "count": None,
        "detail": {},
    }
    kinds = [row["kind"] for row in (await ask(server, tokens[OWNER], "/workspace/1/activity"))["activity"]]
    assert kinds[:3] == ["command", "connection", "session_minted"]
    assert kinds[-1] == "workspace_created"


async def test_each_role_sees_its_own_part(plane: ControlPlane, server: HttpServer, tokens: Tokens) -> None:
    owners = Connection(plane, *await mint(plane, tokens[OWNER]))
    guests = Connection(plane, *await mint(plane, tokens[GUEST]))
    by_owner, by_guest = await owners.run("make"), await guests.run("ls")

    async def commands(who: str, path: str) -> set[str]:
        return {row["id"] for row in (await ask(server, tokens[who], path))["activity"] if row["kind"] == "command"}

    assert await commands(OWNER, "/workspace/1/activity") == {by_owner, by_guest}
    assert await commands(ADMIN, "/workspace/1/activity") == {by_owner, by_guest}
    assert await commands(GUEST, "/workspace/1/activity") == {by_guest}
    # No filter widens it.
    assert await commands(GUEST, "/workspace/1/activity?kind=command") == {by_guest}
    session = owners.ids["session_id"]
    assert await commands(GUEST, f"/workspace/1/activity?session={session}") == set()
    assert await commands(OWNER, f"/workspace/1/activity?session={session}") == {by_owner}
    assert await commands(GUEST, f"/activity?session={session}") == set()
    assert await commands(OWNER, "/activity") == {by_owner}
    assert await commands(ADMIN, "/activity") == set()
    assert await commands(ADMIN, "/activity?everybody=1") == {by_owner, by_guest}
    assert await ask(server, tokens[OWNER], "/activity?everybody=1", 403) == "forbidden"
    await plane.workspaces.share("royal-1", GUEST, "manage")
    assert await commands(GUEST, "/workspace/1/activity") == {by_owner, by_guest}
    await plane.workspaces.unshare("royal-1", GUEST)
    assert await ask(server, tokens[GUEST], "/workspace/1/activity", 404) == "not_found"
    # What they did stays theirs to see.
    assert await commands(GUEST, "/activity") == {by_guest}


@pytest.mark.parametrize("workspace", ["1", "2", "3", "999999999"])
async def test_what_one_may_not_see_looks_like_what_is_not_there(
    server: HttpServer, tokens: Tokens, workspace: str
) -> None:
    answer = await server.call("GET", f"/api/rc/workspace/{workspace}/activity", token=tokens[STRANGER])
    assert (answer.status, answer.json["code"]) == (404, "not_found")
    assert answer.json["message"] == f"there is no workspace {workspace} that you may use"


@pytest.mark.parametrize(
    "query",
    [
        "before=" + "9" * 30,
        "limit=0", "limit=201", "limit=-1", "limit=x",
        "limit=1&limit=2", "before=0", "before=1e3", "session='%20OR%201=1",
        "session=0", "kind=rumour", "kind=%1b[2J", "kind=",
        "since_s=0", "since_s=99999999999", "everybody=1", "offset=4",
        "user=1",
    ],
)  # fmt: skip
async def test_nonsense_is_refused(server: HttpServer, tokens: Tokens, query: str) -> None:
    assert await ask(server, tokens[OWNER], f"/workspace/1/activity?{query}", 400) == "bad_request"


async def test_pages_meet_without_a_gap_or_a_repeat_while_more_comes_in(
    plane: ControlPlane, server: HttpServer, tokens: Tokens
) -> None:
    connection = Connection(plane, *await mint(plane, tokens[OWNER]))
    ran = [await connection.run(f"echo {number}") for number in range(25)]
    seen: list[str] = []
    cursor = ""
    for _ in range(100):
        page = await ask(server, tokens[OWNER], f"/workspace/1/activity?limit=4&kind=command{cursor}")
        seen += [row["id"] for row in page["activity"]]
        assert len(page["activity"]) <= 4
        await connection.run("newer than the first page")
        if page["older"] is None:
            break
        cursor = f"&before={page['older']}"
    assert seen == ran[::-1]


async def test_a_rare_kind_is_found_behind_thousands_of_others_step_by_step(
    plane: ControlPlane, server: HttpServer, tokens: Tokens
) -> None:
    connection = Connection(plane, *await mint(plane, tokens[OWNER]))
    await connection.open()
    many = [
        NewEvent(
            kind="forward", phase="note", subject_id=secrets.token_hex(16), at=START, detail={}, **connection.ids
        )
        for _ in range(1000)
    ]  # fmt: skip
    for _ in range(3):
        await plane.events.record("gw", [NewEvent(**{**vars(e), "subject_id": secrets.token_hex(16)}) for e in many])
    path, found, pages = "/activity?kind=connection", [], 0
    cursor = ""
    while True:
        page = await ask(server, tokens[OWNER], path + cursor)
        found += page["activity"]
        pages += 1
        if page["older"] is None:
            break
        cursor = f"&before={page['older']}"
    assert [row["id"] for row in found] == [connection.subject]
    assert pages == 2
    # In a workspace, an index knows kinds.
    page = await ask(server, tokens[OWNER], "/workspace/1/activity?kind=connection")
    assert ([row["id"] for row in page["activity"]], page["older"]) == ([connection.subject], None)


async def test_a_token_for_one_workspace_shows_that_one_alone(
    plane: ControlPlane, server: HttpServer, tokens: Tokens
) -> None:
    from runcode.controlplane.services.tokens import TokenBounds

    inside = await Connection(plane, *await mint(plane, tokens[OWNER])).run("a")
    await Connection(plane, *await mint(plane, tokens[OWNER], 2), workspace_id=2).run("b")
    narrow = (await plane.tokens.create_token(OWNER, "narrow", bounds=TokenBounds(workspace_ids=(1,)))).plaintext
    rows = (await ask(server, narrow, "/activity"))["activity"]
    assert {row["workspace_id"] for row in rows} == {1}
    assert inside in {row["id"] for row in rows}
    assert await ask(server, narrow, "/workspace/2/activity", 404) == "not_found"
    of_admin = (await plane.tokens.create_token(ADMIN, "narrow", bounds=TokenBounds(workspace_ids=(1,)))).plaintext
    assert await ask(server, of_admin, "/activity?everybody=1", 403) == "forbidden"
    assert await ask(server, of_admin, "/workspace/2/activity", 404) == "not_found"
    blind = (await plane.tokens.create_token(OWNER, "blind", bounds=TokenBounds(scopes=("connect",)))).plaintext
    assert await ask(server, blind, "/activity", 403) == "forbidden"
    assert await ask(server, blind, "/workspace/1/activity", 403) == "forbidden"


async def test_since_leaves_out_what_began_before(
    plane: ControlPlane, server: HttpServer, tokens: Tokens, clock: ManualClock
) -> None:
    connection = Connection(plane, *await mint(plane, tokens[OWNER]))
    await connection.run("old")
    clock.advance(hours=3)
    subject = secrets.token_hex(16)
    detail = {"form": "exec", "text": "new"}
    await connection.tell("command", "start", subject, detail, after_s=3 * 3600)
    page = await ask(server, tokens[OWNER], "/activity?since_s=3600")
    assert ([row["id"] for row in page["activity"]], page["older"]) == ([subject], None)
    assert page["activity"][0]["ended_at"] is None


async def test_without_a_token_nothing_is_told(server: HttpServer) -> None:
    for path in ("/api/rc/activity", "/api/rc/workspace/1/activity"):
        assert (await server.call("GET", path)).status == 401
