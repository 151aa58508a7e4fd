"""The HTTP side of a real `runcode-server up`: TLS and its renewal, draining, two signals, its numbers and its log."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from runcode.controlplane.plane import ControlPlane
from runcode.core.errors import RunCodeError
from runcode.server.tls import ServerTls
from support.controlplane_fakes import FakeRuntime, make_reconciler, open_plane, until
from support.front import open_door, read_reply
from support.service import SERVER, Service, running_service
from support.tls_files import write_pair

METRICS_TOKEN = "a-token-for-prometheus-alone"


def ask(base: str, path: str, *, trust: Path | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    parts = urlsplit(base)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=str(trust))
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=20, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def serial_of(base: str) -> int:
    parts = urlsplit(base)
    pem = ssl.get_server_certificate((parts.hostname or "", parts.port or 0), timeout=20)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tls")
    named = {"cert": folder / "cert.pem", "key": folder / "key.pem", "token": folder / "metrics-token"}
    write_pair(named["cert"], named["key"])
    named["token"].write_text(METRICS_TOKEN + "\n")
    named["token"].chmod(0o600)
    return named


@pytest.fixture(scope="module")
def service(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    options = ("--tls-cert", str(files["cert"]), "--tls-key", str(files["key"]), "--log-format", "json")
    options += ("--metrics", "127.0.0.1:0", "--metrics-token-file", str(files["token"]))
    with running_service(tmp_path_factory.mktemp("front"), options=options) as running:
        yield running


def test_it_speaks_tls_of_today_and_nothing_older(service: Service, files: dict[str, Path]) -> None:
    base = service.facts["api_base"]
    assert base.startswith("https://127.0.0.1:")
    assert ask(base, "/healthz", trust=files["cert"]) == (200, b'{"ok":true}')
    port = urlsplit(base).port
    old = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-cipher", "ALL:@SECLEVEL=0"]
    for version in ("-tls1", "-tls1_1"):
        ran = subprocess.run([*old, version], input=b"", capture_output=True, check=False, timeout=60)
        assert ran.returncode != 0, version
        assert b"Cipher is (NONE)" in ran.stdout, version
    weak = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2", "-cipher"]
    for cipher in ("AES128-SHA", "ECDHE-ECDSA-AES128-SHA", "AES256-GCM-SHA384"):
        ran = subprocess.run([*weak, f"{cipher}:@SECLEVEL=0"], input=b"", capture_output=True, check=False, timeout=60)
        assert b"Cipher is (NONE)" in ran.stdout, cipher
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(f"http://127.0.0.1:{port}", "/healthz")


def test_a_renewed_certificate_is_served_after_sighup_and_a_bad_one_is_not(
    service: Service, files: dict[str, Path]
) -> None:
    base = service.facts["api_base"]
    assert service.process is not None
    before = serial_of(base)
    renewed = write_pair(files["cert"], files["key"])
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: serial_of(base) == renewed, "the new certificate is served")
    assert renewed != before
    good = files["cert"].read_bytes(), files["key"].read_bytes()
    files["cert"].write_bytes(good[0][:200])
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "was not reloaded" in service.log.read_text(), "the log says so")
    assert serial_of(base) == renewed
    files["cert"].write_bytes(good[0])


def test_numbers_are_for_the_operators_token_alone(service: Service, files: dict[str, Path]) -> None:
    url = service.facts["metrics_url"]
    inner = url.removesuffix("/metrics")
    allowed = {"Authorization": f"Bearer {METRICS_TOKEN}"}
    outer = service.facts["api_base"]
    assert ask(outer, "/metrics", trust=files["cert"])[0] == 401
    assert ask(inner, "/metrics")[0] == 401
    assert ask(inner, "/readyz") == (200, b'{"ready":true,"reasons":[]}')
    for status, raw in (
        ask(inner, "/metrics", headers=allowed),
        ask(outer, "/metrics", trust=files["cert"], headers=allowed),
    ):
        assert status == 200
        found = {family.name: family for family in text_string_to_metric_families(raw.decode())}
        assert found["runcode_gateway_connections"].samples[0].value == 0
        assert found["runcode_gateway_feed_age_seconds"].samples[0].value < 60
        assert found["runcode_store_write_seconds"].samples
        assert {"runcode_http_connections", "process_open_fds", "runcode_workspaces"} <= set(found)


def test_every_line_of_the_log_is_json_and_none_has_a_secret(service: Service, files: dict[str, Path]) -> None:
    token = service.first_facts["token"]
    ask(service.facts["api_base"], "/api/rc/me", trust=files["cert"], headers={"Authorization": f"Token {token}"})
    wait_for(lambda: '"/api/rc/me"' in service.log.read_text(), "the request is told of")
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    (told,) = [line for line in lines if line.get("route") == "/api/rc/me"]
    assert (told["status"], told["user_id"], told["token_id"], told["address"]) == (200, 1, 1, "127.0.0.1")
    for secret in (token, service.first_facts["admin_password"], METRICS_TOKEN):
        assert secret not in service.log.read_text()


def test_it_drains_and_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with running_service(tmp_path, options=("--drain-s", "600")) as service:
        assert service.process is not None
        base = service.facts["api_base"]
        assert ask(base, "/readyz")[0] == 200
        service.process.terminate()
        wait_for(lambda: ask(base, "/readyz")[0] == 503, "it says that it ends")
        assert json.loads(ask(base, "/readyz")[1]) == {"ready": False, "reasons": ["draining"]}
        assert ask(base, "/healthz")[0] == 200
        service.process.terminate()
        assert service.process.wait(timeout=20) == 128 + signal.SIGTERM
        assert "ended at once" in service.log.read_text()
        # What was left is taken over.
        service.options = ()
        service.start()
        assert ask(service.facts["api_base"], "/readyz")[0] == 200
        assert service.stop() == 0


@pytest.mark.parametrize(
    ("options", "code", "status"),
    [
        (("--metrics", "0.0.0.0:0"), "usage", 2),
        (("--tls-cert", "CERT"), "usage", 2),
        (("--tls-cert", "CERT", "--tls-key", "OPEN"), "unsafe_path", 1),
        (("--tls-cert", "CERT", "--tls-key", "OTHER"), "io_error", 1),
        (("--tls-cert", "CERT", "--tls-key", "NONE"), "io_error", 1),
        (("--metrics-token-file", "OPEN"), "unsafe_path", 1),
        (("--metrics-token-file", "SHORT"), "usage", 2),
        (("--trusted-proxy", "everybody"), "usage", 2),
        (("--rate-token", "fast"), "usage", 2),
        (("--drain-s", "-1"), "usage", 2),
    ],
)
def test_a_bad_option_is_one_line_and_makes_nothing(
    tmp_path: Path, options: tuple[str, ...], code: str, status: int
) -> None:
    write_pair(tmp_path / "CERT", tmp_path / "KEY")
    write_pair(tmp_path / "ANOTHER", tmp_path / "OTHER")
    write_pair(tmp_path / "THIRD", tmp_path / "OPEN", key_mode=0o644)
    (tmp_path / "SHORT").write_text("abc\n")
    (tmp_path / "SHORT").chmod(0o600)
    words = [str(tmp_path / word) if word.isupper() else word for word in options]
    data = tmp_path / "data"
    ran = subprocess.run(
        [SERVER, "up", "--data-dir", str(data), "--http", "127.0.0.1:0", "--ssh", "off", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == status, ran.stderr
    assert ran.stderr.startswith(f"runcode-server: {code}: ")
    assert ran.stderr.count("\n") == 1
    assert not data.exists()


# ---------------------------------------------------------------- its parts, in process


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path) as opened:
        yield opened


async def slow_app(scope: Any, receive: Any, send: Any) -> None:
    """Answers after as many seconds as its path says."""
    await receive()
    await asyncio.sleep(float(scope["path"].strip("/")))
    headers = [(b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"done"})


async def test_a_request_under_way_gets_its_answer_and_nobody_new_gets_in(plane: ControlPlane) -> None:
    async with open_door(plane, app=slow_app) as door:
        reader, writer = await door.open()
        idle, _ = await door.open()
        writer.write(b"GET /0.5 HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: door.server.server_state.tasks)
        finishing = asyncio.create_task(door.server.finish(10.0))
        assert await idle.read() == b""
        reply = await read_reply(reader)
        assert (reply.status, reply.raw, reply.headers["connection"]) == (200, b"done", "close")
        await finishing
        _, waiting = await door.open()
        waiting.write(b"GET /0 HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.1)
        assert not door.server.server_state.connections
        waiting.close()


async def test_a_request_that_does_not_end_is_ended(plane: ControlPlane) -> None:
    async with open_door(plane, app=slow_app) as door:
        reader, writer = await door.open()
        writer.write(b"GET /600 HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: door.server.server_state.tasks)
        await door.server.finish(0.1)
        with contextlib.suppress(ConnectionError):
            assert b"done" not in await reader.read()
        await until(lambda: not door.server.server_state.tasks)


async def test_what_is_in_the_way_is_named(plane: ControlPlane) -> None:
    reconciler = make_reconciler(plane, FakeRuntime())
    plane.readiness.add("reconciler", lambda: reconciler.alive)
    assert await plane.readiness.find_reasons() == ["reconciler"]
    await reconciler.start()
    assert await plane.readiness.find_reasons() == []
    await reconciler.close()
    assert await plane.readiness.find_reasons() == ["reconciler"]
    plane.readiness.add("gateway_feed", lambda: False)
    async with plane.store.write() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert await plane.readiness.find_reasons() == ["migrations", "reconciler", "gateway_feed"]
    async with plane.store.write() as session:
        await session.execute(text("DROP TABLE alembic_version"))
    async with open_door(plane) as door:
        reply = await door.get("/readyz")
        assert (reply.status, reply.json["reasons"][0]) == (503, "database")
        # Alive all the same: a restart would not help.
        assert (await door.get("/healthz")).status == 200
        # And the numbers that are wanted now are there.
    assert b"runcode_build" in await plane.metrics.render()


async def test_files_that_change_are_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runcode.server.tls._LOOK_EVERY_S", 0.02)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_pair(certificate, key)
    tls = ServerTls(certificate, key)
    loaded: list[int] = []
    monkeypatch.setattr(tls, "reload", lambda: loaded.append(1) or True)
    tls.start()
    await asyncio.sleep(0.1)
    assert not loaded
    write_pair(certificate, key)
    await until(lambda: loaded)
    await tls.close()


def test_a_key_that_others_may_read_is_no_key(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_pair(certificate, key)
    tls = ServerTls(certificate, key)
    write_pair(certificate, key, key_mode=0o640)
    assert not tls.reload()
    with pytest.raises(RunCodeError) as caught:
        ServerTls(certificate, key)
    assert caught.value.code == "unsafe_path"
    assert "chmod 600" in caught.value.resolution
