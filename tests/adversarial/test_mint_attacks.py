"""Mints that share a transaction and skip the router: a right that has ended ends there too, whoever ended it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.routes import shortcut
from runcode.controlplane.store.models import EventRow, SessionRow
from runcode.core.errors import RunCodeError
from support.controlplane_fakes import HttpServer, make_client_key, mark_running, open_plane, serve, set_endpoint

OWNER, GUEST = "ann@example.org", "eve@example.org"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path) as opened:
        await opened.users.create_user(OWNER)
        await opened.users.create_user(GUEST)
        set_endpoint(opened)
        await opened.workspaces.create_workspace("box", OWNER, runtime="fake")
        await mark_running(opened, "box")
        await opened.workspaces.share("box", GUEST)
        yield opened


@pytest.fixture
async def server(plane: ControlPlane) -> AsyncIterator[HttpServer]:
    async with serve(plane) as running:
        yield running


async def mint(server: HttpServer, token: str, key: str | None = None) -> int:
    body = {"public_key": key or make_client_key()}
    return (await server.call("POST", "/api/rc/workspace/1/ssh-session", token=token, body=body)).status


async def live_sessions(plane: ControlPlane) -> list[SessionRow]:
    async with plane.store.read() as session:
        return list((await session.scalars(select(SessionRow).where(SessionRow.revoked_at.is_(None)))).all())


Withdrawal = Callable[[ControlPlane, int], Awaitable[object]]
WITHDRAWALS: dict[str, tuple[Withdrawal, int]] = {
    "token revoked": (lambda plane, token_id: plane.tokens.revoke_token(token_id), 401),
    "user disabled": (lambda plane, _: plane.users.disable_user(GUEST), 401),
    "unshared": (lambda plane, _: plane.workspaces.unshare("box", GUEST), 404),
    "deleted": (lambda plane, _: plane.workspaces.delete_workspace("box"), 409),
    "stopped": (lambda plane, _: plane.workspaces.request_stop("box"), 409),
}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["by this process", "by another one"])
@pytest.mark.parametrize("how", WITHDRAWALS)
async def test_a_right_that_was_taken_mints_no_more_the_moment_this_is_answered(
    plane: ControlPlane, server: HttpServer, tmp_path: Path, how: str, elsewhere: bool
) -> None:
    """The token was seen a moment ago, so who holds it is remembered: what it may do must not be."""
    token = await plane.tokens.create_token(GUEST, "laptop")
    assert await mint(server, token.plaintext) == 200
    assert plane.tokens.recall(token.plaintext) is not None
    withdraw, status = WITHDRAWALS[how]
    if elsewhere:
        async with open_plane(tmp_path) as other:
            await withdraw(other, token.record.id)
    else:
        await withdraw(plane, token.record.id)
    assert await mint(server, token.plaintext) == status


async def test_a_revocation_among_many_mints_leaves_no_live_session(plane: ControlPlane, server: HttpServer) -> None:
    token = await plane.tokens.create_token(GUEST, "laptop")
    statuses: list[int] = []

    async def keep_minting() -> None:
        while True:
            status = await mint(server, token.plaintext)
            statuses.append(status)
            if status != 200:
                return

    callers = [asyncio.ensure_future(keep_minting()) for _ in range(8)]
    while statuses.count(200) < 20:
        await asyncio.sleep(0.005)
    await plane.tokens.revoke_token(token.record.id)
    # Those that were under way had committed before, and were revoked with it, or are refused.
    await asyncio.gather(*callers)
    assert set(statuses) == {200, 401}
    assert await live_sessions(plane) == []


async def test_a_caller_that_hangs_up_takes_nobody_along(plane: ControlPlane, server: HttpServer) -> None:
    token = (await plane.tokens.create_token(OWNER, "laptop")).plaintext
    leaving = []
    for _ in range(10):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = json.dumps({"public_key": make_client_key()}).encode()
        writer.write(
            b"POST /api/rc/workspace/1/ssh-session HTTP/1.1\r\nHost: x\r\n"
            b"Authorization: Token %s\r\nContent-Length: %d\r\n\r\n%s" % (token.encode(), len(body), body)
        )
        await writer.drain()
        leaving.append(writer)
    staying = [asyncio.ensure_future(mint(server, token)) for _ in range(10)]
    for writer in leaving:
        writer.transport.abort()
    assert await asyncio.gather(*staying) == [200] * 10
    assert await mint(server, token) == 200


async def test_a_round_that_the_database_refuses_leaves_nothing_and_the_next_one_works(
    plane: ControlPlane, server: HttpServer
) -> None:
    token = (await plane.tokens.create_token(OWNER, "laptop")).plaintext
    assert await mint(server, token) == 200
    await plane.tokens.close()
    # The sessions are stored by then; their records are what fails.
    with sqlite3.connect(plane.store.shown, timeout=10) as database:
        database.execute("CREATE TRIGGER no BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'no'); END")
    database.close()
    assert await asyncio.gather(*(mint(server, token) for _ in range(8))) == [503] * 8
    assert len(await live_sessions(plane)) == 1
    with sqlite3.connect(plane.store.shown, timeout=10) as database:
        database.execute("DROP TRIGGER no")
    database.close()
    assert await asyncio.gather(*(mint(server, token) for _ in range(8))) == [200] * 8
    async with plane.store.read() as session:
        noted = (await session.scalars(select(EventRow.session_id).where(EventRow.kind == "session_minted"))).all()
    assert sorted(noted) == sorted(row.id for row in await live_sessions(plane))


async def test_one_key_of_two_people_at_once_is_one_persons(plane: ControlPlane, server: HttpServer) -> None:
    tokens = [(await plane.tokens.create_token(email, "laptop")).plaintext for email in (OWNER, GUEST)]
    for _ in range(10):
        key = make_client_key()
        statuses = await asyncio.gather(*(mint(server, token, key) for token in tokens * 4))
        # All of one person's calls are one session; every call of the other is refused.
        assert sorted(statuses) == [200] * 4 + [400] * 4
    assert len({row.fingerprint for row in await live_sessions(plane)}) == len(await live_sessions(plane)) == 10


async def test_the_token_that_is_remembered_opens_only_what_it_covers(plane: ControlPlane, server: HttpServer) -> None:
    token = (await plane.tokens.create_token(GUEST, "laptop")).plaintext
    assert await mint(server, token) == 200
    for wrong in (token[:-1] + ("A" if token[-1] != "A" else "B"), token.upper(), token + "x", token[:-1], ""):
        assert await mint(server, wrong) == 401
    body = {"public_key": make_client_key()}
    path = "/api/rc/workspace/1/ssh-session"
    for headers in ({"Authorization": f"Bearer {token}"}, {"Cookie": f"token={token}"}, {}):
        assert (await server.call("POST", path, body=body, headers=headers)).status == 401
    await plane.users.create_user("zoe@example.org")
    stranger = (await plane.tokens.create_token("zoe@example.org", "laptop")).plaintext
    assert [await mint(server, stranger) for _ in range(2)] == [404, 404]


_PATHS = (
    "/api/rc/workspace/1/ssh-session", "/api/rc/workspace/01/ssh-session", "/api/rc/workspace/1/ssh-session/",
    "/api/rc/workspace//ssh-session", "/api/rc/workspace/1%0a/ssh-session", "/api/rc/workspace/%31/ssh-session",
    "/api/rc/workspace/1/ssh-session%0a", "/api/rc/workspace/-1/ssh-session", "/api/rc/workspace/0/ssh-session",
    "/api/rc/workspace/%D9%A1/ssh-session", "/api/rc/workspace/" + "9" * 18 + "/ssh-session",
    "/api/rc/workspace/" + "9" * 19 + "/ssh-session", "/API/rc/workspace/1/ssh-session",
    "//api/rc/workspace/1/ssh-session", "/api/rc/workspace/1/ssh-session?workspace_id=2",
    "/api/rc/workspace/1%2fssh-session", "/x/../api/rc/workspace/1/ssh-session",
)  # fmt: skip
_BODIES = (b"", b"{", b"[]", b'{"public_key": 7}', b'{"public_key": "x", "public_key": "y"}', b"\xff", b"[" * 5000)


async def test_the_short_way_answers_as_the_router_does(
    plane: ControlPlane, server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = (await plane.tokens.create_token(OWNER, "laptop")).plaintext
    good = json.dumps({"public_key": make_client_key()}).encode()
    calls = [("POST", path, token, good) for path in _PATHS]
    calls += [("POST", _PATHS[0], token, body) for body in _BODIES]
    calls += [(method, _PATHS[0], token, good) for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD")]
    calls += [("POST", _PATHS[0], wrong, good) for wrong in (None, "", "rct_x")]
    calls += [("POST", _PATHS[0], None, b"{"), ("POST", "/api/rc/workspace/x/ssh-session", None, good)]

    async def ask_all(asked: HttpServer) -> list[tuple[object, ...]]:
        answers = [await asked.call(m, p, token=t, raw_body=b) for m, p, t, b in calls]
        kept = ("content-type", "cache-control", "www-authenticate", "allow", "x-content-type-options")
        return [
            (answer.status, answer.raw.partition(b'"expires_at"')[0], *(answer.headers.get(name) for name in kept))
            for answer in answers
        ]

    short = await ask_all(server)
    monkeypatch.setattr(shortcut.MintShortcut, "__call__", lambda self, *given: self._app(*given))
    async with serve(plane) as long_way:
        assert await ask_all(long_way) == short
    assert [status for status, *_ in short].count(200) >= 3


async def test_a_token_that_is_unknown_is_unknown_to_recall(plane: ControlPlane) -> None:
    token = (await plane.tokens.create_token(OWNER, "laptop")).plaintext
    assert plane.tokens.recall(token) is None
    await plane.tokens.authenticate(token)
    assert plane.tokens.recall(token, source="192.0.2.7") is not None
    assert plane.tokens.recall("rct_" + "A" * 43) is None
    with pytest.raises(RunCodeError):
        await plane.tokens.authenticate("rct_" + "A" * 43)
    assert plane.tokens.recall("rct_" + "A" * 43) is None
