"""The internal API against strangers, tokens and lying gateways; a gateway against a lying control plane."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from runcode import __version__
from runcode.controlplane.edge import EdgeSettings
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.rate_limits import LimitPolicy, Rate, RateLimits
from runcode.controlplane.store.models import EventRow, GatewayRow
from runcode.core.channel_policy import EVERYTHING, render_policy
from runcode.core.errors import RunCodeError
from runcode.gateway.events import END, START
from runcode.server.event_lines import render_event
from runcode.server.gateway_process import load_credential, parse_control_plane
from runcode.server.remote_directory import ControlPlaneClient, RemoteDirectory, RemoteEventSink
from support.controlplane_fakes import open_plane
from support.front import Door, Reply, open_door
from support.gateway_event_contract import make_event

CALLS = ("facts", "certificate", "events", "end-missing")


@dataclass
class World:
    plane: ControlPlane
    door: Door
    credential: str

    async def post(self, name: str, body: object, *headers: str, credential: str | None = None) -> Reply:
        raw = json.dumps(body).encode()
        lines = [f"POST /internal/gateway/{name} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(raw)}"]
        lines += [f"Authorization: Gateway {credential or self.credential}"] if credential != "" else []
        lines += headers or (f"X-RunCode-Version: {__version__}",)
        return await self.door.say("\r\n".join([*lines, "Connection: close", "", ""]).encode() + raw)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_plane(tmp_path) as plane:
        made = await plane.gateways.create_gateway("edge-1")
        async with open_door(plane) as door:
            yield World(plane, door, made.credential)
            plane.gateways.closing = True


async def test_nobody_without_a_live_gateways_credential_is_answered(world: World) -> None:
    await world.plane.users.create_user("ann@example.org", admin=True)
    token = (await world.plane.tokens.create_token("ann@example.org", "laptop")).plaintext
    version = f"X-RunCode-Version: {__version__}"
    for name in CALLS:
        for credential in ("", "rcg_" + "A" * 43, token, world.credential[:-1], world.credential + "A"):
            assert (await world.post(name, {}, credential=credential)).status == 401, (name, credential)
        twice = await world.post(name, {}, version, f"Authorization: Gateway {world.credential}")
        assert twice.status == 401
        as_token = await world.post(name, {}, version, f"Authorization: Token {token}", credential="")
        assert as_token.status == 401
        as_token = await world.post(name, {}, version, f"Authorization: Token {world.credential}", credential="")
        assert as_token.status == 401
    assert (await world.door.get("/internal/gateway/changes", version)).status == 401
    # A gateway's credential is nothing on the public API, under either name.
    for scheme in ("Token", "Gateway"):
        heard = await world.door.get("/api/rc/v1/workspaces", f"Authorization: {scheme} {world.credential}")
        assert heard.status in (401, 404)
        heard = await world.door.get("/api/rc/me", f"Authorization: {scheme} {world.credential}")
        assert heard.status in (401, 404)


async def test_the_credential_stands_nowhere(world: World) -> None:
    async with world.plane.store.read() as session:
        row = (await session.scalars(select(GatewayRow))).one()
        noted = [event.detail for event in await session.scalars(select(EventRow))]
    assert world.credential not in json.dumps([row.credential_hash, row.name, noted])
    assert {"gateway": "edge-1"}.items() <= noted[-1].items()


async def test_a_revoked_credential_ends_its_stream_and_every_call(world: World) -> None:
    client = ControlPlaneClient(f"http://127.0.0.1:{world.door.port}", world.credential)
    lines = client.stream_lines()
    await anext(lines)  # type: ignore[arg-type]
    await world.plane.gateways.revoke_gateway("edge-1")
    async with asyncio.timeout(10):
        async for _ in lines:
            pass
    with pytest.raises(RunCodeError) as refused:
        await client.call("facts", {"title": "a", "key_fingerprint": "b"})
    assert refused.value.code == "unauthorized"
    await client.close()


async def test_another_version_is_told_so(world: World) -> None:
    for header in ("X-RunCode-Version: 0.0.0", "X-Other: 1"):
        heard = await world.post("facts", {"title": "a", "key_fingerprint": "b"}, header)
        assert heard.status == 409
        assert "same version" in heard.json["resolution"]


async def test_a_gateway_cannot_speak_for_another(world: World) -> None:
    await world.plane.gateways.create_gateway("edge-2")
    version = f"X-RunCode-Version: {__version__}"
    body = {"events": [render_event(make_event(START)) | {"gateway": "edge-2.0"}], "gateway": "edge-2.0"}
    assert (await world.post("events", body)).status == 200
    for worker in ("-1", "64", "0.edge-2", "\u0663", "1 " * 200, "01e1"):
        heard = await world.post("events", body, version, f"X-RunCode-Worker: {worker}")
        assert heard.status in (400, 431), worker
    async with world.plane.store.read() as session:
        told = [row.gateway for row in await session.scalars(select(EventRow)) if row.kind == "command"]
    assert told == ["edge-1.0"]


async def test_a_gateway_cannot_end_or_add_to_what_another_began(world: World) -> None:
    """Their ids are shown to people, so a gateway's thief may know them."""
    other = (await world.plane.gateways.create_gateway("edge-2")).credential
    begun = make_event(START, kind="connection", client="codex")
    assert (await world.post("events", {"events": [render_event(begun)]})).status == 200
    lies = (
        make_event(END, begun.subject_id, kind="connection", reason="nothing happened"),
        replace(make_event(START, text="rm -rf /"), connection_id=begun.subject_id),
    )
    for lie in lies:
        told = {"events": [render_event(make_event(START)), render_event(lie)]}
        heard = await world.post("events", told, credential=other)
        assert (heard.status, heard.json["code"]) == (400, "bad_request")
    # The gateway itself still ends it, also by another of its workers.
    version = f"X-RunCode-Version: {__version__}"
    end = make_event(END, begun.subject_id, kind="connection", reason="as it was")
    assert (await world.post("events", {"events": [render_event(end)]}, version, "X-RunCode-Worker: 3")).status == 200
    async with world.plane.store.read() as session:
        rows = [row for row in await session.scalars(select(EventRow)) if row.kind in ("connection", "command")]
    assert [(row.gateway, row.phase, row.detail.get("reason")) for row in rows] == [
        ("edge-1.0", "start", None),
        ("edge-1.3", "end", "as it was"),
    ]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("facts", {"title": 1, "key_fingerprint": "x"}),
        ("facts", []),
        ("certificate", {"session_id": True, "workspace_id": 1, "public_key": "x"}),
        ("certificate", {"session_id": 1, "workspace_id": 2**63, "public_key": "x"}),
        ("events", {"events": {}}),
        ("events", {"events": [1]}),
        ("events", {"events": [{"kind": "command", "detail": {"a": {"b": 1}}}]}),
        ("events", {"events": [render_event(make_event(START, kind="signed_in"))]}),
        ("events", {"events": [render_event(make_event(START)) | {"at": "2026-01-01T00:00:00"}]}),
        ("events", {"events": [render_event(make_event(START, text="\x1b[2J"))]}),
        # Times at the ends of what a datetime holds, in another zone; a sign of use as old as can be.
        ("events", {"events": [render_event(make_event(START)) | {"at": "0001-01-01T00:00:00+23:59"}]}),
        ("events", {"events": [render_event(make_event(START)) | {"at": "9999-12-31T23:59:59-23:59"}]}),
        ("events", {"events": [render_event(make_event(END)) | {"started_at": "0001-01-01T00:00:00+00:00"}]}),
        ("events", {"events": [render_event(make_event(START, kind="used")) | {"at": "0001-01-01T00:00:00+00:00"}]}),
        # Half a character, and a key that one of the databases would not keep.
        ("facts", {"title": "a\ud800", "key_fingerprint": "x"}),
        ("facts", {"title": "a", "key_fingerprint": "\udfff"}),
        ("events", {"events": [render_event(make_event(START)) | {"detail": {"a\0": 1}}]}),
        ("events", {"events": [render_event(make_event(START)) | {"detail": {"a b": 1}}]}),
        ("end-missing", {"live": [1], "reason": "x", "beginning": ""}),
        ("end-missing", {"live": [], "reason": "x", "beginning": "%"}),
    ],
)
async def test_nonsense_from_a_gateway_is_refused_whole(world: World, name: str, body: object) -> None:
    heard = await world.post(name, body)
    assert heard.status == 400
    assert heard.json["code"] == "bad_request"


async def test_the_internal_api_has_a_rate_of_its_own(tmp_path: Path) -> None:
    limits = RateLimits(LimitPolicy(address=Rate(per_s=0.001, burst=1), gateways=Rate(per_s=0.001, burst=3)))
    async with open_plane(tmp_path) as plane:
        made = await plane.gateways.create_gateway("edge-1")
        async with open_door(plane, EdgeSettings(limits=limits)) as door:
            world = World(plane, door, made.credential)
            asked = {"title": "a", "key_fingerprint": "b"}
            assert [(await world.post("facts", asked)).status for _ in range(4)] == [200, 200, 200, 429]


# ---------------------------------------------------------------- the other way round

Answerer = Callable[[str, asyncio.StreamWriter], Any]


@contextlib.asynccontextmanager
async def liar(answer: Callable[[bytes], bytes], *, stay: bool = False) -> AsyncIterator[str]:
    """A server that answers each request with what `answer(request line)` makes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(Exception):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(head))
            await writer.drain()
            if stay:
                await asyncio.sleep(30)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def whole(raw: bytes, status: str = "200 OK", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(raw)}", *more, "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + raw


FACTS = {
    "session": {"session_id": 1, "workspace_id": 2, "user_id": 3, "client": "c", "withdrawn": False}
    | {"expires_at": "2026-01-01T00:00:00.123456+00:00"},
    "workspace": None,
    "policy": render_policy(EVERYTHING),
    "client_authorities": [],
}
SESSION = dict(FACTS["session"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b"{" * 100_000,
        b'{"session": null}',
        json.dumps(FACTS | {"session": SESSION | {"withdrawn": 0}}).encode(),
        json.dumps(FACTS | {"session": SESSION | {"withdrawn": None}}).encode(),
        json.dumps(FACTS | {"session": SESSION | {"session_id": "1"}}).encode(),
        json.dumps(FACTS | {"session": SESSION | {"session_id": True}}).encode(),
        json.dumps(FACTS | {"session": SESSION | {"expires_at": "2099-01-01T00:00:00"}}).encode(),
        json.dumps(FACTS | {"session": [SESSION]}).encode(),
        json.dumps(FACTS | {"workspace": {"running": "yes"}}).encode(),
        # What a policy leaves out would be allowed.
        json.dumps({name: FACTS[name] for name in ("session", "workspace", "client_authorities")}).encode(),
        json.dumps({name: FACTS[name] for name in ("session", "workspace", "policy")}).encode(),
        json.dumps(FACTS | {"policy": None}).encode(),
        json.dumps(FACTS | {"policy": {}}).encode(),
        json.dumps(FACTS | {"policy": render_policy(EVERYTHING) | {"direct": 0}}).encode(),
        json.dumps(FACTS | {"policy": render_policy(EVERYTHING) | {"more": True}}).encode(),
        json.dumps(FACTS | {"client_authorities": "ssh-ed25519 AAAA"}).encode(),
        json.dumps(FACTS | {"client_authorities": [7]}).encode(),
        b" " * 300_000,
    ],
)
async def test_nonsense_from_a_control_plane_is_an_error_and_never_a_fact(raw: bytes) -> None:
    async with liar(lambda _: whole(raw)) as base:
        client = ControlPlaneClient(base, "rcg_x")
        with pytest.raises(RunCodeError) as refused:
            await RemoteDirectory(client).load_admission_facts("a", "b")
        assert refused.value.code == "http_error"
        await client.close()


async def test_what_is_changed_above_is_a_fact_when_it_is_whole() -> None:
    async with liar(lambda _: whole(json.dumps(FACTS).encode())) as base:
        client = ControlPlaneClient(base, "rcg_x")
        facts = await RemoteDirectory(client).load_admission_facts("a", "b")
        assert facts.session is not None
        assert facts.session.session_id == 1
        await client.close()


async def test_no_redirect_is_followed_with_the_credential() -> None:
    asked: list[bytes] = []

    def note(head: bytes) -> bytes:
        asked.append(head)
        return whole(json.dumps(FACTS).encode())

    async with liar(note) as elsewhere:
        moved = whole(b"{}", "307 Temporary Redirect", f"Location: {elsewhere}/internal/gateway/facts")
        async with liar(lambda _: moved) as base:
            client = ControlPlaneClient(base, "rcg_x")
            with pytest.raises(RunCodeError):
                await RemoteDirectory(client).load_admission_facts("a", "b")
            await client.close()
    assert asked == []


BEAT = b'{"cursor":1,"workspace_ids":[],"session_ids":[],"user_ids":[],"everything":false}\n'


@pytest.mark.parametrize("bad", [b"x" * 1_100_000, b"nonsense\n", b"[]\n", BEAT.replace(b"false", b"0"), b""])
async def test_a_feed_that_breaks_is_opened_anew_and_begins_with_everything(bad: bytes) -> None:
    """Also a silent one (`b""`): it stays open, and says nothing."""
    streams = 0

    def answer(_: bytes) -> bytes:
        nonlocal streams
        streams += 1
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BEAT + BEAT + bad

    async with liar(answer, stay=True) as base:
        client = ControlPlaneClient(base, "rcg_x")
        feed = RemoteDirectory(client).watch_changes()
        async with asyncio.timeout(20):
            told = [(await anext(feed)).everything for _ in range(3)]  # type: ignore[arg-type]
        assert told == [True, False, True]
        assert streams == 2
        await feed.aclose()  # type: ignore[attr-defined]
        await client.close()


async def test_events_wait_for_whatever_may_pass_and_not_for_what_is_wrong_with_them() -> None:
    for status, code, retryable in (
        ("401 Unauthorized", "unauthorized", True),
        ("409 Conflict", "conflict", True),
        ("503 Service Unavailable", "busy", True),
        ("400 Bad Request", "bad_request", False),
    ):
        body = json.dumps({"error": True, "message": "m", "code": code, "resolution": "r"}).encode()
        async with liar(lambda _, body=body, status=status: whole(body, status)) as base:  # type: ignore[misc]
            client = ControlPlaneClient(base, "rcg_x")
            with pytest.raises(RunCodeError) as refused:
                await RemoteEventSink(client).record("", [make_event(START)])
            assert refused.value.kind.retryable is retryable, code
            await client.close()


def test_the_credential_is_private_and_never_sent_in_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "credential"
    file.write_text("rcg_" + "a" * 43 + "\n")
    file.chmod(0o644)
    with pytest.raises(RunCodeError) as unsafe:
        load_credential(file)
    assert unsafe.value.code == "unsafe_path"
    file.chmod(0o600)
    assert load_credential(file) == "rcg_" + "a" * 43
    file.write_text("rct_other")
    with pytest.raises(RunCodeError):
        load_credential(file)
    for text in (
        "http://example.org",
        "http://127.0.0.1.example.org",
        "http://user@127.0.0.1",
        "ftp://x",
        "https://x/y",
    ):
        with pytest.raises(RunCodeError):
            parse_control_plane(text)
    assert parse_control_plane("http://127.0.0.1:8080/") == "http://127.0.0.1:8080"
    assert parse_control_plane("https://rc.example.org") == "https://rc.example.org"
