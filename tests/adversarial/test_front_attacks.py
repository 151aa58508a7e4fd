"""Attacks on what stands before the app: forged addresses and names, floods, slow and endless requests, the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from runcode.controlplane.app import make_app, make_metrics_app
from runcode.controlplane.edge import EdgeSettings
from runcode.controlplane.hosts import make_host_policy
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.proxies import TrustedProxies
from runcode.controlplane.rate_limits import LimitPolicy, Rate, RateLimits
from runcode.core.errors import RunCodeError
from runcode.server import logs
from runcode.server.web import ConnectionLimits
from support.controlplane_fakes import make_client_key, mark_running, open_plane, set_endpoint, until
from support.front import Door, list_routes, open_door, read_reply

OWNER = "ann@example.org"
HERE, THERE = "127.0.0.1", "127.0.0.2"
ALWAYS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path) as opened:
        await opened.users.create_user(OWNER, "correct horse battery", admin=True)
        yield opened


async def token_of(plane: ControlPlane) -> str:
    return (await plane.tokens.create_token(OWNER, "laptop")).plaintext


def limited(**rates: Rate | None) -> RateLimits:
    """Only these; nothing comes back while a test runs."""
    return RateLimits(LimitPolicy(**{"token": None, "address": None, "strangers": None, **rates}))


SLOW = 0.001


# ---------------------------------------------------------------- addresses


async def test_a_forged_address_gives_no_more_tries(plane: ControlPlane) -> None:
    async with open_door(plane, EdgeSettings(limits=limited(address=Rate(SLOW, 5)))) as door:
        statuses = [(await door.get("/healthz", f"X-Forwarded-For: 198.51.100.{n}")).status for n in range(9)]
        assert statuses == [200] * 5 + [429] * 4
        assert (await door.get("/healthz", source=THERE)).status == 200


async def test_behind_a_proxy_of_ours_callers_are_told_apart_and_cannot_choose(plane: ControlPlane) -> None:
    settings = EdgeSettings(proxies=TrustedProxies([HERE]), limits=limited(address=Rate(SLOW, 3)))
    async with open_door(plane, settings) as door:
        # What a caller writes stands left of what the proxy appends.
        ours = [(await door.get("/healthz", f"X-Forwarded-For: 8.8.8.{n}, 198.51.100.1")).status for n in range(5)]
        assert ours == [200] * 3 + [429] * 2
        assert (await door.get("/healthz", "X-Forwarded-For: 198.51.100.2")).status == 200


async def test_a_request_id_counts_from_a_proxy_of_ours_alone(plane: ControlPlane) -> None:
    async with open_door(plane, EdgeSettings(proxies=TrustedProxies([THERE]))) as door:
        forged = await door.get("/healthz", "X-Request-Id: abcdef-0123456789")
        assert forged.headers["x-request-id"] != "abcdef-0123456789"
        assert len(forged.headers["x-request-id"]) == 12
        passed = await door.get("/healthz", "X-Request-Id: abcdef-0123456789", source=THERE)
        assert passed.headers["x-request-id"] == "abcdef-0123456789"
        for odd in ("short", "a" * 65, "sp ace-0000", 'qu"ote-0000', "caf\xe9-000000"):
            assert (await door.get("/healthz", f"X-Request-Id: {odd}", source=THERE)).headers["x-request-id"] != odd


# ---------------------------------------------------------------- where one request ends

_CALL = "POST /api/rc/auth/device-token HTTP/1.1\r\nHost: 127.0.0.1\r\n"
_NEXT = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
_CHUNKS = "0\r\n\r\n"
# Where a proxy before us may see another end than we do.
AMBIGUOUS = (
    f"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{_CHUNKS}",
    f"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{_CHUNKS}",
    "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "Content-Length: 2, 2\r\n\r\n{}",
    "Content-Length: +2\r\n\r\n{}",
    "Content-Length : 2\r\n\r\n{}",
    "X: a\r\n Content-Length: 5\r\nContent-Length: 2\r\n\r\n{}",
    "X: a\rContent-Length: 5\r\nContent-Length: 2\r\n\r\n{}",
    "X: a\nContent-Length: 2\n\n{}",
    f"Transfer-Encoding: xchunked\r\n\r\n{_CHUNKS}",
    f"Transfer-Encoding: chunked, identity\r\n\r\n{_CHUNKS}",
    f"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n{_CHUNKS}",
    f"Transfer-Encoding: \x0bchunked\r\n\r\n{_CHUNKS}",
    "Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
    "Transfer-Encoding: chunked\r\n\r\n2;a=\nb\r\n{}\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nContent-Length: 500\r\n\r\n",
)


async def test_a_request_whose_end_is_in_doubt_ends_the_connection(plane: ControlPlane) -> None:
    async with open_door(plane) as door:
        for said in ("Content-Length: 2\r\n\r\n{}", *AMBIGUOUS):
            reader, writer = await door.open()
            writer.write(f"{_CALL}{said}{_NEXT}".encode("latin-1"))
            async with asyncio.timeout(30):
                answered = await reader.read()
            writer.close()
            # What follows is answered only where it certainly begins.
            assert answered.count(b"HTTP/1.1 ") == (1 if said in AMBIGUOUS else 2), said
            assert answered.startswith(b"HTTP/1.1 400 ")


# ---------------------------------------------------------------- names


async def test_a_rebound_name_is_turned_away_before_anything_is_done(plane: ControlPlane) -> None:
    token = await token_of(plane)
    settings = EdgeSettings(hosts=make_host_policy("127.0.0.1", "https://rc.example"))
    async with open_door(plane, settings) as door:
        for path in ("/", "/healthz", "/api/rc/me", "/api/docs", "/auth/cli-login/?port=4444&state=s", "/nothing"):
            reply = await door.get(path, f"Authorization: Token {token}", host="evil.example")
            assert reply.status == 421, path
            assert reply.json["code"] == "bad_request"
            assert "evil" not in reply.raw.decode()
        for name in ("rc.example", "RC.example:443", "127.0.0.1:1", "localhost"):
            assert (await door.get("/api/rc/me", f"Authorization: Token {token}", host=name)).status == 200, name
        assert (await door.get("/healthz", host=None)).status == 400
        assert (await door.get("/healthz", "Host: rc.example", host="rc.example")).status == 400
        # An absolute address in the request line is not a second way to say it.
        absolute = b"GET http://rc.example/healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        assert (await door.say(absolute)).status == 421
        forwarded = await door.get("/", "X-Forwarded-Host: evil.example", host="rc.example")
        assert b"evil.example" not in forwarded.raw


async def test_every_answer_has_the_headers_that_browsers_keep_to(plane: ControlPlane) -> None:
    hosts = make_host_policy("127.0.0.1", "https://rc.example")
    settings = EdgeSettings(hosts=hosts, limits=limited(strangers=Rate(SLOW, 2)), hsts=True)
    async with open_door(plane, settings, metrics_token="a-token-of-16-or-more") as door:
        replies = [
            await door.get(path)
            for path in ("/", "/healthz", "/readyz", "/api/docs", "/api/openapi.json", "/api/rc/me", "/metrics")
        ]
        replies += [await door.get("/nothing"), await door.get("/healthz", host="evil.example")]
        replies += [await door.get("/api/rc/me") for _ in range(3)]
        replies.append(await door.say(b"DELETE /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"))
        assert {reply.status for reply in replies} >= {200, 401, 404, 405, 421, 429}
        for reply in replies:
            assert ALWAYS.items() <= reply.headers.items(), reply
            assert "default-src 'none'" in reply.headers["content-security-policy"]
            assert "camera=()" in reply.headers["permissions-policy"]
            assert reply.headers["strict-transport-security"] == "max-age=31536000"
            assert reply.headers["x-request-id"]
    async with open_door(plane) as door:
        assert "strict-transport-security" not in (await door.get("/healthz")).headers


# ---------------------------------------------------------------- floods


async def test_a_flood_from_one_address_leaves_others_alone(plane: ControlPlane) -> None:
    token = f"Authorization: Token {await token_of(plane)}"
    async with open_door(plane, EdgeSettings(limits=limited(address=Rate(SLOW, 20)))) as door:
        flood = await asyncio.gather(*(door.get("/api/rc/me", source=HERE) for _ in range(60)))
        assert sum(reply.status == 429 for reply in flood) == 40
        refused = next(reply for reply in flood if reply.status == 429)
        assert refused.json["code"] == "rate_limited"
        assert int(refused.headers["retry-after"]) >= 1
        for _ in range(20):
            assert (await door.get("/api/rc/me", token, source=THERE)).status == 200


async def test_guessing_tokens_is_slowed_and_the_owner_beside_the_guesser_is_not(plane: ControlPlane) -> None:
    token = await token_of(plane)
    async with open_door(plane, EdgeSettings(limits=limited(strangers=Rate(SLOW, 5)))) as door:
        guesses = [(await door.get("/api/rc/me", f"Authorization: Token rct_{n:043d}")).status for n in range(8)]
        assert guesses == [401] * 5 + [429] * 3
        assert (await door.get("/api/rc/me", f"Authorization: Token {token}")).status == 200
        # The doors that need no token share that bucket.
        assert (await door.get("/auth/cli-login/?port=4444&state=s")).status == 429
        exchange = b"POST /api/rc/auth/cli-token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{}"
        assert (await door.say(exchange)).status == 429
        assert (await door.say(exchange, source=THERE)).status == 400


async def test_each_token_has_a_rate_of_its_own(plane: ControlPlane) -> None:
    busy, calm = await token_of(plane), await token_of(plane)
    async with open_door(plane, EdgeSettings(limits=limited(token=Rate(SLOW, 4)), metrics=plane.metrics)) as door:
        statuses = [(await door.get("/api/rc/me", f"Authorization: Token {busy}")).status for _ in range(6)]
        assert statuses == [200] * 4 + [429] * 2
        assert (await door.get("/api/rc/me", f"Authorization: Token {calm}")).status == 200
        assert (await door.get("/api/rc/me", f"Authorization: Token {busy}", source=THERE)).status == 429
    assert b'runcode_refusals_total{code="rate_limited"} 3.0' in await plane.metrics.render()


async def test_ways_in_are_counted_by_their_outcome(plane: ControlPlane) -> None:
    with plane.metrics.sign_in("password"):
        pass
    for code in ("unauthorized", "rate_limited", "busy"):
        with pytest.raises(RunCodeError), plane.metrics.sign_in("password"):
            raise RunCodeError(code, "no")
    # A code that nobody was given.
    async with open_door(plane) as door:
        exchange = b"POST /api/rc/auth/cli-token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{}"
        assert (await door.say(exchange)).status == 400
    told = (await plane.metrics.render()).decode()
    for outcome in ("ok", "refused", "rate_limited", "error"):
        assert f'runcode_sign_ins_total{{method="password",outcome="{outcome}"}} 1.0' in told
    assert 'runcode_sign_ins_total{method="code",outcome="refused"} 1.0' in told


# ---------------------------------------------------------------- slow and endless requests

QUICK = ConnectionLimits(in_all=12, per_address=4, head_s=0.4, body_s=0.6, idle_s=1)


async def ends(reader: asyncio.StreamReader) -> bytes:
    """All that still comes, until the other side has closed."""
    async with asyncio.timeout(20):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def drip(writer: asyncio.StreamWriter, raw: bytes, every_s: float = 0.05) -> None:
    for byte in raw:
        try:
            writer.write(bytes([byte]))
            await writer.drain()
        except ConnectionError:
            return
        await asyncio.sleep(every_s)


def assert_timed_out(told: bytes) -> None:
    """Closed; a last byte that crossed the answer may have reset the connection before that was read."""
    assert told == b"" or b" 408 " in told


async def test_who_says_nothing_or_one_byte_at_a_time_loses_the_place(plane: ControlPlane) -> None:
    async with open_door(plane, limits=QUICK) as door:
        silent, silent_writer = await door.open()
        slow, slow_writer = await door.open()
        dripping = asyncio.create_task(drip(slow_writer, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"x" * 500))
        assert_timed_out(await ends(silent))
        assert_timed_out(await ends(slow))
        dripping.cancel()
        # On a connection that has served before, too.
        reader, writer = await door.open()
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await read_reply(reader)).status == 200
        dripping = asyncio.create_task(drip(writer, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"x" * 500))
        assert_timed_out(await ends(reader))
        dripping.cancel()
        for open_writer in (silent_writer, slow_writer, writer):
            open_writer.close()
        await until(lambda: door.doorman.connections == 0)


async def test_a_head_without_end_is_cut_off(plane: ControlPlane) -> None:
    async with open_door(plane, limits=ConnectionLimits()) as door:
        _, writer = await door.open()
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        sent = 0
        try:
            while sent < 64 * 1024 * 1024:
                line = b"X-Filler: " + b"a" * 8000 + b"\r\n"
                writer.write(line)
                await writer.drain()
                sent += len(line)
        except ConnectionError:
            pass
        assert sent < 16 * 1024 * 1024  # what both sockets hold, and no more
        writer.close()
        await until(lambda: door.doorman.connections == 0)


async def test_a_body_that_never_comes_ends(plane: ControlPlane) -> None:
    head = b"POST /api/rc/auth/cli-token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 60000\r\n\r\n"
    async with open_door(plane, EdgeSettings(body_timeout_s=0.2), limits=QUICK) as door:
        reader, writer = await door.open()
        writer.write(head)
        reply = await read_reply(reader)
        assert (reply.status, reply.json["code"]) == (408, "timed_out")
        assert await ends(reader) == b""
        writer.close()
    # One whose request was answered before its body came.
    async with open_door(plane, EdgeSettings(limits=limited(strangers=Rate(SLOW, 1))), limits=QUICK) as door:
        await door.get("/api/rc/me")
        reader, writer = await door.open()
        writer.write(head)
        assert (await read_reply(reader)).status == 429
        dripping = asyncio.create_task(drip(writer, b"x" * 500))
        await ends(reader)
        dripping.cancel()
        writer.close()
        await until(lambda: door.doorman.connections == 0)


async def test_one_address_takes_no_more_than_its_places(plane: ControlPlane) -> None:
    limits = ConnectionLimits(in_all=12, per_address=4)
    async with open_door(plane, limits=limits) as door:
        held = [await door.open(HERE) for _ in range(4)]
        await until(lambda: door.doorman.connections == 4)
        assert (await door.get("/healthz", source=HERE)).status == 0
        assert door.doorman.refused == 1
        assert (await door.get("/healthz", source=THERE)).status == 200
        for _, writer in held:
            writer.close()
        await until(lambda: door.doorman.connections == 0)
        assert (await door.get("/healthz", source=HERE)).status == 200


async def test_a_proxy_of_ours_is_no_single_caller(plane: ControlPlane) -> None:
    limits = ConnectionLimits(in_all=6, per_address=1)
    async with open_door(plane, EdgeSettings(proxies=TrustedProxies([HERE])), limits=limits) as door:
        held = [await door.open(HERE) for _ in range(5)]
        await until(lambda: door.doorman.connections == 5)
        assert (await door.get("/healthz", source=HERE)).status == 200
        for _, writer in held:
            writer.close()


# ---------------------------------------------------------------- the numbers


async def test_a_stranger_reads_no_numbers(plane: ControlPlane) -> None:
    token = "operator-token-0123456789"
    async with open_door(plane) as door:
        assert (await door.get("/metrics")).status == 404
    users = f"Authorization: Token {await token_of(plane)}"
    attempts = ["Authorization: Bearer", f"Authorization: Bearer {token}x", f"Authorization: Token {token}", users]
    attempts += [f"Cookie: token={token}", "X-Forwarded-For: 127.0.0.1", f"Authorization: Basic {token}"]
    inner = make_metrics_app(plane, EdgeSettings(hosts=make_host_policy("127.0.0.1", None)), metrics_token=token)
    for app in (make_app(plane, metrics_token=token), inner):
        async with open_door(plane, app=app) as door:
            for attempt in attempts:
                assert (await door.get("/metrics", attempt)).status == 401, attempt
            assert (await door.get(f"/metrics?token={token}")).status == 401
            assert (await door.get("/metrics", f"Authorization: Bearer {token}")).raw.startswith(b"# HELP")
    # A page that a name was rebound to this machine for, on the listener that asks for nothing.
    open_app = make_metrics_app(plane, EdgeSettings(hosts=make_host_policy("127.0.0.1", None)), metrics_token=None)
    async with open_door(plane, app=open_app) as door:
        assert (await door.get("/metrics", host="evil.example")).status == 421
        assert (await door.get("/metrics")).status == 200
        assert (await door.get("/api/rc/me")).status == 404


# ---------------------------------------------------------------- the log


def json_log(stream: StringIO) -> None:
    logs.set_up_logging(log_format="json", verbose=True, stream=stream)


@pytest.fixture
def log() -> Any:
    stream = StringIO()
    root, named = logging.getLogger(), [logging.getLogger(name) for name in ("runcode", "runcode.operator")]
    kept = (list(root.handlers), root.level, [logger.level for logger in named])
    json_log(stream)
    yield stream
    root.handlers[:] = kept[0]
    root.setLevel(kept[1])
    for logger, level in zip(named, kept[2], strict=True):
        logger.setLevel(level)


async def drive_with_secrets(door: Door, paths: list[tuple[str, str]], token: str, secret: str) -> list[int]:
    """Every route, with marked secrets wherever a caller can put one."""
    statuses = []
    bodies = [
        json.dumps(dict.fromkeys(("code", "code_verifier", "password", "token", "public_key", "client"), secret)),
        "&".join(f"{name}={secret}" for name in ("email", "password", "proof", "state", "port", "answer")),
        f'{{"broken": "{secret}',
    ]
    for method, path in paths:
        for credentials in (f"Token {token}", f"Token {secret}", f"Bearer {secret}", f"Basic {secret}", secret):
            for body, kind in zip(
                bodies, ("application/json", "application/x-www-form-urlencoded", "text/plain"), strict=True
            ):
                query = "&".join(f"{name}={secret}" for name in ("code", "token", "state", "port", "workspace_id"))
                raw = (
                    f"{method} {path}?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {credentials}\r\n"
                    f"Cookie: runcode_visit={secret}; runcode_device={secret}; session={secret}\r\n"
                    f"Referer: https://x/?{query}\r\nUser-Agent: {secret}\r\nX-Request-Id: {secret}\r\n"
                    f"X-Forwarded-For: {secret}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    f"Connection: close\r\n\r\n{body}"
                )
                statuses.append((await door.say(raw.encode())).status)
    return statuses


async def test_no_secret_of_any_route_stands_in_the_log(plane: ControlPlane, log: StringIO) -> None:
    secret, token = "s3cr3tM4rk" * 4, await token_of(plane)
    app = make_app(plane, EdgeSettings(metrics=plane.metrics), metrics_token="a-token-of-16-or-more")
    paths = [(method, re.sub(r"\{\w+\}", secret, path)) for method, path in list_routes(app)]
    paths += [("GET", f"/nothing/{secret}"), (secret[:9].upper(), "/healthz")]
    assert len(paths) > 12
    async with open_door(plane, app=app) as door:
        statuses = await drive_with_secrets(door, paths, token, secret)
    told = log.getvalue()
    lines = [json.loads(line) for line in told.splitlines()]
    assert sum(line["event"] == "request" for line in lines) >= len(paths) * 10
    assert set(statuses) >= {200, 400, 401, 404}
    assert "s3cr3tM4rk" not in told
    assert token not in told
    assert token[4:] not in told


async def test_a_failure_quotes_nothing_of_the_request_and_has_its_id(
    plane: ControlPlane, log: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_endpoint(plane)
    box = await plane.workspaces.create_workspace("box", OWNER, runtime="fake")
    await mark_running(plane, "box")
    token, secret = await token_of(plane), make_client_key()

    async def fail(*_: object, **given: object) -> None:
        try:
            int(str(given["raw_public_key"]))
        except ValueError as error:
            raise RuntimeError(f"cannot store {given}") from error

    monkeypatch.setattr(plane.sessions, "register_session", fail)
    body = json.dumps({"public_key": secret})
    raw = (
        f"POST /api/rc/workspace/{box.id}/ssh-session HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Authorization: Token {token}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    async with open_door(plane) as door:
        reply = await door.say(raw.encode())
    assert (reply.status, reply.json["code"]) == (500, "internal")
    request_id = reply.headers["x-request-id"]
    assert f"reference {request_id}" in reply.json["message"]
    told = log.getvalue()
    assert secret.split()[1] not in told
    assert "RuntimeError" in told
    assert "ValueError" in told
    assert "in answer_mint" in told
    (line,) = [line for line in map(json.loads, told.splitlines()) if line.get("request_id") == request_id]
    assert (line["route"], line["status"]) == ("/api/rc/workspace/{raw_id}/ssh-session", 500)
    assert (line["user_id"], line["token_id"]) == (1, 1)
