"""Attacks on the control plane: guessing, walking ids, hostile bodies, races, and reading the database's files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.store.models import ChangeRow, SessionRow, ShareRow, TokenRow, UserRow, WorkspaceRow
from runcode.core.errors import RunCodeError
from runcode.core.wire import parse_workspaces
from support.controlplane_fakes import (
    HttpServer,
    make_client_key,
    mark_running,
    open_plane,
    serve,
    set_endpoint,
)

OWNER, STRANGER = "ann@example.org", "eve@example.org"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path) as opened:
        await opened.users.create_user(OWNER, "correct horse battery")
        await opened.users.create_user(STRANGER)
        yield opened


@pytest.fixture
async def server(plane: ControlPlane) -> AsyncIterator[HttpServer]:
    async with serve(plane) as running:
        yield running


async def token_of(plane: ControlPlane, email: str = OWNER) -> str:
    return (await plane.tokens.create_token(email, "laptop")).plaintext


async def running_box(plane: ControlPlane, title: str = "box") -> int:
    set_endpoint(plane)
    box = await plane.workspaces.create_workspace(title, OWNER, runtime="fake")
    await mark_running(plane, title)
    return box.id


async def test_only_a_token_header_opens_the_api(plane: ControlPlane, server: HttpServer) -> None:
    box, token = await running_box(plane), await token_of(plane)
    attempts: list[dict[str, str]] = [
        {},
        {"Cookie": f"token={token}; sessionid={token}"},
        {"Authorization": token},
        {"Authorization": f"Bearer {token}"},
        {"Authorization": f"Basic {token}"},
        {"Authorization": "Token"},
        {"Authorization": "Token "},
        {"Authorization": f"Token {token}x"},
        {"Authorization": f"Token {token[:-1]}"},
        {"Authorization": f"Token {token.upper()}"},
        {"Authorization": f"Token x {token}"},
        {"Authorization": f"Token {hashlib.sha256(token.encode()).hexdigest()}"},
        {"Authorization": "Token rct_" + "%" * 43},
        {"Authorization": "Token ' OR 1=1 --"},
        {"Authorization": "Token " + "A" * 8000},
        {"X-Authorization": f"Token {token}"},
    ]
    paths = [
        ("GET", f"/api/rc/workspace/stop?workspace_id={box}"),
        ("GET", f"/api/rc/workspace/stop?workspace_id={box}&token={token}"),
        ("GET", "/api/rc/workspaces"),
        ("GET", "/api/rc/me"),
        ("POST", f"/api/rc/workspace/{box}/ssh-session"),
    ]
    bodies = set()
    for headers in attempts:
        for method, path in paths:
            answer = await server.call(method, path, headers=headers)
            assert answer.status == 401, (headers, path)
            assert answer.headers["www-authenticate"] == "Token"
            bodies.add(answer.raw)
    assert len(bodies) == 1
    assert (await plane.workspaces.load_workspace("box")).desired_state == "running"


def raw_request(port: int, raw: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(raw)
        chunks = []
        while chunk := connection.recv(65536):
            chunks.append(chunk)
        return b"".join(chunks)


async def test_two_authorization_headers_are_none(plane: ControlPlane, server: HttpServer) -> None:
    token = await token_of(plane)
    answer = await asyncio.to_thread(
        raw_request,
        server.port,
        f"GET /api/rc/me HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Token {token}\r\n"
        f"Authorization: Token nothing\r\n\r\n".encode(),
    )
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_a_revoked_token_and_a_disabled_user_are_out_at_once(plane: ControlPlane, server: HttpServer) -> None:
    made = await plane.tokens.create_token(OWNER, "laptop")
    other = await token_of(plane, STRANGER)
    for token in (made.plaintext, other):
        assert (await server.call("GET", "/api/rc/me", token=token)).status == 200
    await plane.tokens.revoke_token(made.record.id)
    await plane.users.disable_user(STRANGER)
    for token in (made.plaintext, other):
        assert (await server.call("GET", "/api/rc/me", token=token)).status == 401


async def test_neither_tokens_nor_passwords_stand_in_any_file(plane: ControlPlane, server: HttpServer) -> None:
    token = await token_of(plane)
    assert (await server.call("GET", "/api/rc/me", token=token)).status == 200
    await plane.tokens.close()
    folder = plane.settings.database.parent
    raw = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert hashlib.sha256(token.encode()).hexdigest().encode() in raw
    for secret in (token, token.removeprefix("rct_"), "correct horse battery"):
        assert secret.encode() not in raw
    assert b"$argon2id$" in raw
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or path.is_dir(), path


async def test_others_workspaces_and_none_look_alike_to_every_verb(plane: ControlPlane, server: HttpServer) -> None:
    box, eve = await running_box(plane), await token_of(plane, STRANGER)
    deleted = await plane.workspaces.create_workspace("gone", OWNER, runtime="fake")
    async with plane.store.write() as session:
        row = await session.get(WorkspaceRow, deleted.id)
        assert row is not None
        row.deleted_at = plane.clock.now()
    key = make_client_key()
    seen = set()
    for number in (box, deleted.id, 10_000, 10**18 - 1):
        for method, path in (
            ("GET", f"/api/rc/workspace/start?workspace_id={number}"),
            ("POST", f"/api/rc/workspace/start?workspace_id={number}"),
            ("GET", f"/api/rc/workspace/stop?workspace_id={number}"),
            ("POST", f"/api/rc/workspace/{number}/ssh-session"),
        ):
            body = {"public_key": key} if "ssh-session" in path else None
            answer = await server.call(method, path, token=eve, body=body)
            seen.add((answer.status, answer.raw.replace(str(number).encode(), b"N")))
    assert len(seen) == 1
    assert seen.pop()[0] == 404
    lists = [await server.call("GET", f"/api/rc/workspaces?category={c}", token=eve) for c in ("active", "shared")]
    assert [answer.json["data"]["workspaces"] for answer in lists] == [[], []]


GOOD = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFh"


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"null", b"[]", b'"x"', b"7", b"{", b"\xff\xfe", b"NaN", b"[" * 60_000,
        b'{"public_key": "%s", "ttl": NaN}' % GOOD.encode(),
        b'{"public_key": "%s", "unknown": -Infinity}' % GOOD.encode(),
        b'{"public_key": "%s", "public_key": "%s"}' % (GOOD.encode(), GOOD.encode()),
        b'{"ttl": ' + b"9" * 10_000 + b"}",
        *(
            json.dumps({"public_key": GOOD} | odd).encode()
            for odd in (
                {"ttl": "1800"}, {"ttl": True}, {"ttl": 1800.0}, {"ttl": 1e300}, {"ttl": -1}, {"ttl": 0}, {"ttl": []},
                {"client": 7}, {"client": "x" * 65}, {"client": "\x1b[2J"}, {"client": {"a": 1}},
                {"public_key": None}, {"public_key": 7}, {"public_key": [GOOD]}, {"public_key": GOOD + "\n" + GOOD},
                {"public_key": "cert-authority " + GOOD}, {"public_key": "ssh-ed25519-cert-v01@openssh.com AAAA"},
                {"public_key": "\x00"}, {"public_key": GOOD[:-8]},
            )
        ),
    ],
)  # fmt: skip
async def test_odd_bodies_are_400_and_mint_nothing(plane: ControlPlane, server: HttpServer, raw: bytes) -> None:
    box, token = await running_box(plane), await token_of(plane)
    answer = await server.call("POST", f"/api/rc/workspace/{box}/ssh-session", token=token, raw_body=raw)
    assert (answer.status, answer.json["code"]) == (400, "bad_request")
    assert await plane.sessions.list_sessions(include_ended=True) == []


@pytest.mark.parametrize(
    "number", ["0", "-1", "1.0", "0x1", "１", "1e3", "9" * 40, "%00", "1%20", "../1", "null", "+1"]
)
async def test_odd_ids_are_refused(plane: ControlPlane, server: HttpServer, number: str) -> None:
    from urllib.parse import quote

    box, token = await running_box(plane), await token_of(plane)
    assert box == 1
    sent = quote(number, safe="%./")
    for method, path in (
        ("GET", f"/api/rc/workspace/stop?workspace_id={sent}"),
        ("POST", f"/api/rc/workspace/{sent}/ssh-session"),
    ):
        answer = await server.call(method, path, token=token, body={"public_key": GOOD} if method == "POST" else None)
        assert answer.status in (400, 404), (method, path)
        assert answer.json["error"] is True
    assert (await plane.workspaces.load_workspace(box)).desired_state == "running"


async def test_a_large_body_is_cut_off_before_it_is_kept(plane: ControlPlane, server: HttpServer) -> None:
    token = await token_of(plane)
    declared = await server.call("POST", "/api/rc/workspace/1/ssh-session", token=token, raw_body=b" " * 70_000)
    assert (declared.status, declared.json["code"]) == (413, "bad_request")
    head = (
        f"POST /api/rc/workspace/1/ssh-session HTTP/1.1\r\nHost: x\r\nAuthorization: Token {token}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    chunked = await asyncio.to_thread(raw_request, server.port, head + (b"1000\r\n" + b" " * 4096 + b"\r\n") * 17)
    assert chunked.startswith(b"HTTP/1.1 413 ")


async def test_a_request_that_breaks_off_does_nothing(plane: ControlPlane, server: HttpServer) -> None:
    box, token = await running_box(plane), await token_of(plane)

    def break_off() -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(
                f"POST /api/rc/workspace/stop?workspace_id={box} HTTP/1.1\r\nHost: x\r\n"
                f"Authorization: Token {token}\r\nContent-Length: 100\r\n\r\n{{".encode()
            )

    await asyncio.to_thread(break_off)
    # A later call on the same server is answered after the broken one was dropped.
    for _ in range(3):
        assert (await server.call("GET", "/healthz")).status == 200
    assert (await plane.workspaces.load_workspace(box)).desired_state == "running"


async def test_what_people_typed_comes_out_as_json_text_only(plane: ControlPlane, server: HttpServer) -> None:
    token = await token_of(plane)
    custom = "</script><img src=x onerror=alert(1)> \"' ${jndi} %s {{7*7}} 界"
    await plane.workspaces.create_workspace("box", OWNER, custom_title=custom)
    answer = await server.call("GET", "/api/rc/workspaces", token=token)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    (shown,) = parse_workspaces(answer.json, shared=False)
    assert shown.custom_title == custom


async def test_many_mints_at_once_hold_a_key_once(plane: ControlPlane, server: HttpServer) -> None:
    box, other = await running_box(plane), await running_box(plane, "other")
    token, key = await token_of(plane), make_client_key()
    answers = await asyncio.gather(
        *(
            server.call("POST", f"/api/rc/workspace/{number}/ssh-session", token=token, body={"public_key": key})
            for number in (box, other) * 10
        )
    )
    outcomes = sorted({answer.status for answer in answers})
    assert outcomes == [200, 400]
    assert len({answer.json["bundle"]["user"] for answer in answers if answer.status == 200}) == 1
    async with plane.store.read() as session:
        assert await session.scalar(select(func.count(SessionRow.id))) == 1


async def test_two_processes_that_create_one_title_and_mint_one_key(plane: ControlPlane) -> None:
    script = """
import asyncio, sys
from pathlib import Path
from runcode.controlplane.plane import ControlPlane, ControlPlaneSettings
from runcode.core.errors import RunCodeError
async def main():
    plane = await ControlPlane.open(ControlPlaneSettings(Path(sys.argv[1]), Path(sys.argv[2])))
    made = 0
    for n in range(20):
        try:
            await plane.workspaces.create_workspace(f"box-{n}", "ann@example.org")
            made += 1
        except RunCodeError as error:
            assert error.code == "conflict", error.code
    await plane.close()
    print(made)
asyncio.run(main())
"""
    settings = plane.settings
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(settings.database), str(settings.keys_folder),
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    outputs = [int((await process.communicate())[0]) for process in processes]
    assert sum(outputs) == 20
    titles = [workspace.title for workspace in await plane.workspaces.list_all()]
    assert sorted(titles) == sorted(f"box-{n}" for n in range(20))


WITHDRAWALS: dict[str, Any] = {
    "session": lambda plane, ids: plane.sessions.revoke_session(ids["session"]),
    "token": lambda plane, ids: plane.tokens.revoke_token(ids["token"]),
    "user": lambda plane, ids: plane.users.disable_user(STRANGER),
    "share": lambda plane, ids: plane.workspaces.unshare("box", STRANGER),
    "stop": lambda plane, ids: plane.workspaces.request_stop("box"),
    "delete": lambda plane, ids: plane.workspaces.delete_workspace("box"),
}


async def snapshot(plane: ControlPlane) -> list[Any]:
    queries = (
        select(SessionRow.id, SessionRow.revoked_at, SessionRow.released_at),
        select(TokenRow.id, TokenRow.revoked_at),
        select(UserRow.id, UserRow.disabled_at),
        select(ShareRow.workspace_id, ShareRow.user_id),
        select(WorkspaceRow.id, WorkspaceRow.desired_state),
        select(func.count(ChangeRow.id)),
    )
    async with plane.store.read() as session:
        return [[tuple(row) for row in (await session.execute(query)).all()] for query in queries]


@pytest.mark.parametrize("how", WITHDRAWALS)
async def test_a_withdrawal_and_its_change_are_one_transaction(plane: ControlPlane, how: str) -> None:
    box = await running_box(plane)
    await plane.workspaces.share("box", STRANGER)
    token = await plane.tokens.create_token(STRANGER, "laptop")
    caller = await plane.tokens.authenticate(token.plaintext)
    await plane.tokens.close()
    grant = await plane.sessions.register_session(caller, box, raw_public_key=make_client_key())
    ids = {"session": grant.session.id, "token": token.record.id}
    before = await snapshot(plane)

    # The crash: the database fails exactly when the change is appended.
    def crash(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("INSERT INTO changes"):
            raise OSError("crash")

    engine = plane.store._database.reader.sync_engine
    event.listen(engine, "before_cursor_execute", crash)
    with pytest.raises(RunCodeError):
        await WITHDRAWALS[how](plane, ids)
    event.remove(engine, "before_cursor_execute", crash)
    assert await snapshot(plane) == before

    await WITHDRAWALS[how](plane, ids)
    after = await snapshot(plane)
    assert after[:-1] != before[:-1]
    assert after[-1][0][0] == before[-1][0][0] + 1
    # Once more changes nothing: no wake-up for what is gone already.
    await WITHDRAWALS[how](plane, ids)
    assert await snapshot(plane) == after
