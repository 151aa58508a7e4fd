"""WIRE.md under a real uvicorn, called the way released clients call: plain HTTP, GET start, only the old fields."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runcode.controlplane.plane import ControlPlane
from runcode.core import wire
from runcode.core.bundle import parse_bundle
from support.controlplane_fakes import (
    FakeRuntime,
    HttpServer,
    make_client_key,
    make_reconciler,
    open_plane,
    serve,
    set_endpoint,
    until,
)

OWNER, GUEST = "ann@example.org", "bob@example.org"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path) as opened:
        await opened.users.create_user(OWNER, admin=True)
        await opened.users.create_user(GUEST)
        reconciler = make_reconciler(opened, FakeRuntime())
        await reconciler.start()
        yield opened
        await reconciler.close()


@pytest.fixture
async def server(plane: ControlPlane) -> AsyncIterator[HttpServer]:
    async with serve(plane) as running:
        yield running


async def token_of(plane: ControlPlane, email: str) -> str:
    return (await plane.tokens.create_token(email, "laptop")).plaintext


async def add_box(plane: ControlPlane, title: str = "royal-tree-08189931", custom: str = "Billing API") -> int:
    return (await plane.workspaces.create_workspace(title, OWNER, runtime="fake", custom_title=custom)).id


def assert_error(answer: Any, status: int, code: str) -> None:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"error", "message", "code", "resolution"}
    assert answer.json["error"] is True
    assert answer.json["code"] == code
    assert answer.json["message"]


async def test_the_whole_story_of_a_released_client(plane: ControlPlane, server: HttpServer) -> None:
    box, token = await add_box(plane), await token_of(plane, OWNER)
    key = make_client_key()

    async def listed() -> dict[str, Any]:
        answer = await server.call("GET", "/api/rc/workspaces?category=active", token=token)
        assert answer.status == 200
        return answer.json

    body = await listed()
    assert body["error"] is False
    (shown,) = body["data"]["workspaces"]
    assert shown["id"] == box
    assert shown["title"] == "royal-tree-08189931"
    assert shown["custom_title"] == "Billing API"
    assert (shown["provider"], shown["ssh_capable"], shown["runtime"]) == ("aws", True, "fake")
    assert (shown["current_state"], shown["interim_state"]) == ("stopped", None)

    mint = {"public_key": key, "ttl": 1800, "client": "claude-code"}
    path = f"/api/rc/workspace/{box}/ssh-session"
    closed = await server.call("POST", path, token=token, body=mint)
    assert_error(closed, 503, "unavailable")
    assert closed.json["message"] == "SSH access is not configured"
    set_endpoint(plane)
    assert_error(await server.call("POST", path, token=token, body=mint), 409, "conflict")

    for _ in range(2):
        started = await server.call("GET", f"/api/rc/workspace/start?workspace_id={box}", token=token)
        assert (started.status, started.json["error"]) == (200, False)

    async def runs() -> bool:
        (found,) = wire.parse_workspaces(await listed(), shared=False)
        return found.connectable

    await until(runs)
    minted = await server.call("POST", path, token=token, body=mint)
    assert minted.status == 200
    assert minted.json["error"] is False
    raw = minted.json["bundle"]
    bundle = parse_bundle(raw)
    endpoint = plane.ssh_endpoint.find()
    assert endpoint is not None
    assert (bundle.host, bundle.port, bundle.user) == ("127.0.0.1", 2222, "royal-tree-08189931")
    assert [host_key.line for host_key in bundle.host_keys] == list(endpoint.host_keys)
    assert bundle.workdir == "/home/ubuntu/workspace"
    assert raw["known_hosts"] == f"[127.0.0.1]:2222 {endpoint.host_keys[0]}\n"
    assert raw["ssh_config"].startswith("Host ")
    left = bundle.expires_at - plane.clock.now()
    assert 1700 < left.total_seconds() <= 1800
    assert [session.client for session in await plane.sessions.list_sessions()] == ["claude-code"]

    for _ in range(2):
        stopped = await server.call("GET", f"/api/rc/workspace/stop?workspace_id={box}", token=token)
        assert (stopped.status, stopped.json["error"]) == (200, False)
    await until(lambda: stops(server, token))
    assert_error(await server.call("POST", path, token=token, body=mint), 409, "conflict")


async def stops(server: HttpServer, token: str) -> bool:
    answer = await server.call("GET", "/api/rc/workspaces", token=token)
    return bool(answer.json["data"]["workspaces"][0]["current_state"] == "stopped")


async def test_start_and_stop_take_post_with_query_or_body(plane: ControlPlane, server: HttpServer) -> None:
    box, token = await add_box(plane), await token_of(plane, OWNER)
    by_query = await server.call("POST", f"/api/rc/workspace/start?workspace_id={box}", token=token)
    assert by_query.json["data"]["workspace"]["title"] == "royal-tree-08189931"
    by_body = await server.call("POST", "/api/rc/workspace/stop", token=token, body={"workspace_id": box})
    assert (by_body.status, by_body.json["error"]) == (200, False)


async def test_a_refusal_answers_200_and_a_shared_box_is_listed_as_shared(
    plane: ControlPlane, server: HttpServer
) -> None:
    box, guest = await add_box(plane), await token_of(plane, GUEST)
    await plane.workspaces.share(box, GUEST, "use")
    owned = await server.call("GET", "/api/rc/workspaces?category=active", token=guest)
    shared = await server.call("GET", "/api/rc/workspaces?category=shared", token=guest)
    assert owned.json["data"]["workspaces"] == []
    assert [(w["id"], w["role"]) for w in shared.json["data"]["workspaces"]] == [(box, "use")]
    assert (await server.call("GET", f"/api/rc/workspace/start?workspace_id={box}", token=guest)).json["error"] is False
    refused = await server.call("GET", f"/api/rc/workspace/stop?workspace_id={box}", token=guest)
    assert_error(refused, 200, "stop_failed")
    await plane.workspaces.delete_workspace(box)
    owner = await token_of(plane, OWNER)
    gone = await server.call("GET", f"/api/rc/workspace/start?workspace_id={box}", token=owner)
    assert gone.json["code"] in ("start_failed", "not_found")


async def test_me_health_and_front_page(plane: ControlPlane, server: HttpServer) -> None:
    me = await server.call("GET", "/api/rc/me", token=await token_of(plane, OWNER))
    assert me.json == {**me.json, "error": False, "email": OWNER, "is_admin": True}
    assert (await server.call("GET", "/healthz")).json == {"ok": True}
    page = await server.call("GET", "/")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    assert b"<b>runcode login</b>" in page.raw
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/rc/nothing", 404, "not_found"),
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/openapi.json", 404, "not_found"),
        ("DELETE", "/api/rc/workspaces", 405, "bad_request"),
        ("GET", "/api/rc/workspace/1/ssh-session", 405, "bad_request"),
        ("GET", "/api/rc/workspaces/", 404, "not_found"),
        ("GET", "/api/rc/workspaces?category=all", 400, "bad_request"),
        ("GET", "/api/rc/workspaces?category=active&category=shared", 400, "bad_request"),
        ("GET", "/api/rc/workspace/start", 400, "bad_request"),
        ("GET", "/api/rc/workspace/start?workspace_id=x", 400, "bad_request"),
        ("GET", "/api/rc/workspace/start?workspace_id=1&workspace_id=2", 400, "bad_request"),
        ("GET", "/api/rc/workspace/start?workspace_id=99", 404, "not_found"),
        ("POST", "/api/rc/workspace/99/ssh-session", 400, "bad_request"),
    ],
)
async def test_every_failure_has_the_wires_shape_and_headers(
    plane: ControlPlane, server: HttpServer, method: str, path: str, status: int, code: str
) -> None:
    answer = await server.call(method, path, token=await token_of(plane, OWNER))
    assert_error(answer, status, code)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_an_unknown_failure_shows_a_reference_and_never_its_text(
    plane: ControlPlane, server: HttpServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def burst(_user_id: int) -> None:
        raise RuntimeError("secret in /var/lib/runcode")

    monkeypatch.setattr(plane.workspaces, "list_owned", burst)
    answer = await server.call("GET", "/api/rc/workspaces", token=await token_of(plane, OWNER))
    assert_error(answer, 500, "internal")
    assert b"secret" not in answer.raw
    assert b"/var/lib" not in answer.raw
    reference = answer.json["message"].partition("reference ")[2].rstrip(")")
    assert len(reference) == 12
    assert reference in caplog.text
    assert answer.headers["cache-control"] == "no-store"


async def test_a_failing_database_is_a_500_without_its_path_and_a_busy_one_a_503(
    plane: ControlPlane, server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runcode.core.errors import RunCodeError

    token = await token_of(plane, OWNER)
    for code, status in (("io_error", 500), ("busy", 503)):

        async def fail(_user_id: int, code: str = code) -> None:
            raise RunCodeError(code, "trouble with /var/lib/runcode/runcode.db")

        monkeypatch.setattr(plane.workspaces, "list_owned", fail)
        answer = await server.call("GET", "/api/rc/workspaces", token=token)
        assert answer.status == status
        assert answer.json["error"] is True
        assert b"/var/lib" not in answer.raw


async def test_a_body_is_json_whatever_its_content_type_says(plane: ControlPlane, server: HttpServer) -> None:
    box, token = await add_box(plane), await token_of(plane, OWNER)
    raw = json.dumps({"public_key": make_client_key()}).encode()
    for content_type in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
        answer = await server.call(
            "POST",
            f"/api/rc/workspace/{box}/ssh-session",
            token=token,
            raw_body=raw,
            headers={"Content-Type": content_type},
        )
        assert_error(answer, 503, "unavailable")
