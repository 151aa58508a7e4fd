"""Whoever else calls the listener of `runcode login`: refused, within bounds, and the wait goes on."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runcode.client.loopback import (
    CONNECTIONS_MAX,
    HEAD_MAX,
    Answer,
    Listener,
    Refusal,
    parse_answer,
)
from runcode.core.errors import RunCodeError
from support.client_standin import TOKEN, Person
from support.hosted_standin import HostedService, Waiting

PORT, STATE = 54321, "right-state"
GOOD = f"/callback?state={STATE}&token=tok&email=a%40example.net"


def head(target: str = GOOD, *, method: str = "GET", host: str | None = f"127.0.0.1:{PORT}", more: str = "") -> bytes:
    host_line = "" if host is None else f"\r\nHost: {host}"
    return f"{method} {target} HTTP/1.1{host_line}\r\nAccept: */*{more}".encode("utf-8", "surrogateescape")


def test_the_right_request_is_the_answer() -> None:
    found = parse_answer(head(), port=PORT, state=STATE)
    assert found == Answer(code=None, token="tok", untrusted_email="a@example.net")
    found = parse_answer(head(f"/callback?code=c&state={STATE}"), port=PORT, state=STATE)
    assert found == Answer(code="c", token=None, untrusted_email="")
    navigated = head(more="\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Site: cross-site")
    assert isinstance(parse_answer(navigated, port=PORT, state=STATE), Answer)


REFUSED = {
    "wrong-state": head("/callback?state=wrong&token=t"),
    "no-state": head("/callback?token=t"),
    "empty-state": head("/callback?state=&token=t"),
    "state-prefix": head(f"/callback?state={STATE[:-1]}&token=t"),
    "state-twice": head(f"/callback?state={STATE}&state=x&token=t"),
    "state-twice-right-last": head(f"/callback?state=x&state={STATE}&token=t"),
    "state-non-ascii": head("/callback?state=%C3%A9&token=t"),
    "token-twice": head(f"{GOOD}&token=u"),
    "token-and-code": head(f"{GOOD}&code=c"),
    "no-token": head(f"/callback?state={STATE}"),
    "empty-token": head(f"/callback?state={STATE}&token="),
    "token-with-newline": head(f"/callback?state={STATE}&token=a%0Ab"),
    "token-with-nul": head(f"/callback?state={STATE}&token=a%00b"),
    "token-with-escape": head(f"/callback?state={STATE}&token=%1b%5b31m"),
    "token-too-long": head(f"/callback?state={STATE}&token={'a' * 5000}"),
    "error-with-token": head(f"{GOOD}&error=x&code=y"),
    "many-fields": head(f"{GOOD}&" + "&".join(f"f{n}=1" for n in range(100))),
    "host-rebound": head(host=f"evil.example:{PORT}"),
    "host-localhost": head(host=f"localhost:{PORT}"),
    "host-other-port": head(host="127.0.0.1:80"),
    "host-without-port": head(host="127.0.0.1"),
    "host-missing": head(host=None),
    "host-twice": head(more=f"\r\nHost: 127.0.0.1:{PORT}"),
    "host-second-evil": head(more="\r\nHOST: evil.example"),
    "host-in-userinfo": head(host=f"127.0.0.1:{PORT}@evil.example"),
    "host-ipv6": head(host=f"[::1]:{PORT}"),
    "path": head(f"/?state={STATE}&token=t"),
    "path-suffix": head(f"/callback/?state={STATE}&token=t"),
    "path-encoded": head(f"/%63allback?state={STATE}&token=t"),
    "absolute-form": head(f"http://127.0.0.1:{PORT}{GOOD}"),
    "post": head(method="POST"),
    "options": head(method="OPTIONS"),
    "head": head(method="HEAD"),
    "lower-case": head(method="get"),
    "image": head(more="\r\nSec-Fetch-Dest: image"),
    "script": head(more="\r\nSec-Fetch-Dest: script"),
    "frame": head(more="\r\nsec-fetch-dest: iframe"),
    "fetch": head(more="\r\nSec-Fetch-Dest: empty"),
    "http-2": head().replace(b"HTTP/1.1", b"HTTP/2"),
    "no-version": head().replace(b" HTTP/1.1", b""),
    "blank-in-target": head(f"{GOOD} x"),
    "binary": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "ssh": b"SSH-2.0-OpenSSH_9.2",
    "empty": b"",
    "folded-host": head(host=None, more=f"\r\nX: y\r\n Host: 127.0.0.1:{PORT}x"),
    "bare-newlines": head().replace(b"\r\n", b"\n"),
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_anything_else_is_not(raw: bytes) -> None:
    verdict = parse_answer(raw, port=PORT, state=STATE)
    assert isinstance(verdict, Refusal)
    assert 400 <= verdict.status < 500


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    service = HostedService(None, Path("/nowhere"))
    person = Person(tmp_path / "person")
    running = Waiting(person, "--api-base", service.base, "--web-base", service.base, "--no-browser")
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.communicate()
    service.close()


def send(port: int, raw: bytes) -> bytes:
    """The whole reply to one raw request."""
    reply = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection, contextlib.suppress(OSError):
        connection.sendall(raw)
        while chunk := connection.recv(65536):
            reply += chunk
    return reply


def good_request(waiting: Waiting, token: str = TOKEN) -> bytes:
    target = f"/callback?state={waiting.state}&token={token}"
    return f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{waiting.port}\r\n\r\n".encode()


def assert_still_waits_and_takes_the_answer(waiting: Waiting) -> None:
    assert waiting.process.poll() is None
    reply = send(waiting.port, good_request(waiting))
    assert reply.startswith(b"HTTP/1.1 303 ")
    assert b"\r\nLocation: /done\r\n" in reply
    status, stdout, stderr = waiting.end()
    assert status == 0, stderr
    assert TOKEN.encode() not in stdout + stderr


def test_hostile_requests_do_not_end_the_wait(waiting: Waiting) -> None:
    for raw in REFUSED.values():
        reply = send(waiting.port, raw.replace(str(PORT).encode(), str(waiting.port).encode()) + b"\r\n\r\n")
        assert reply == b"" or reply.split(b" ")[1][:1] == b"4", (raw, reply)
        assert waiting.state.encode() not in reply
    reply = send(waiting.port, b"GET / HTTP/1.1\r\nHost: evil\r\n\r\n")
    assert b"Content-Security-Policy: default-src 'none'" in reply
    assert_still_waits_and_takes_the_answer(waiting)


def test_a_request_without_end_is_bounded(waiting: Waiting) -> None:
    # The first byte too many is answered at once, while the connection is still open.
    reply = send(waiting.port, b"GET /" + b"a" * (HEAD_MAX - 4))
    assert reply.startswith(b"HTTP/1.1 431 ")
    reply = send(waiting.port, b"GET /" + b"a" * (4 * 1024 * 1024))
    assert reply == b"" or reply.startswith(b"HTTP/1.1 431 ")
    reply = send(waiting.port, good_request(waiting)[:-2] + b"X: " + b"y" * HEAD_MAX + b"\r\n\r\n")
    assert reply == b"" or reply.startswith(b"HTTP/1.1 431 ")
    assert_still_waits_and_takes_the_answer(waiting)


def test_silent_and_slow_connections_keep_nobody_out(waiting: Waiting) -> None:
    """Many that say nothing, one that drips: the browser's whole request still gets through."""
    held = []
    try:
        for number in range(3 * CONNECTIONS_MAX):
            held.append(socket.create_connection(("127.0.0.1", waiting.port), timeout=30))
            if number % 2:
                held[-1].sendall(b"GET /callback?state=")
        assert_still_waits_and_takes_the_answer(waiting)
    finally:
        for connection in held:
            connection.close()


def test_a_slow_connection_is_dropped_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runcode.client.loopback.REQUEST_TIMEOUT_S", 0.2)
    listener = Listener(STATE, {})
    with socket.create_connection(("127.0.0.1", listener.port), timeout=30) as slow:
        slow.sendall(b"GET /")
        assert listener.wait(1.5) is None
        assert slow.recv(1) == b""
    listener.close()


def test_the_listener_is_on_loopback_only_and_ends_with_the_call(waiting: Waiting) -> None:
    port = f"{waiting.port:04X}".encode()
    rows = [line.split() for line in Path("/proc/net/tcp").read_bytes().split(b"\n")[1:] if line]
    own = [row[1] for row in rows if row[1].endswith(b":" + port) and row[3] == b"0A"]
    assert own == [(b"0100007F" if sys.byteorder == "little" else b"7F000001") + b":" + port]
    assert_still_waits_and_takes_the_answer(waiting)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", waiting.port), timeout=5)


_STRANGER = """
import os, socket, sys, time
os.setgid(60123); os.setuid(60123)
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=30) as connection:
    connection.sendall(sys.stdin.buffer.read())
    if sys.argv[2] == "leave":
        connection.shutdown(socket.SHUT_WR)
        connection.close()
        sys.exit()
    print(connection.recv(65536).decode())
"""


@pytest.mark.root_only
@pytest.mark.parametrize("manner", ["stay", "leave"])
def test_another_users_process_is_refused_even_with_the_right_state(waiting: Waiting, manner: str) -> None:
    """It has seen the address in `ps`, and wants this person signed in as itself."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _STRANGER, str(waiting.port), manner],
        input=good_request(waiting, "attackers-token"),
        capture_output=True,
        timeout=60,
        check=True,
    )
    if manner == "stay":
        assert done.stdout.startswith(b"HTTP/1.1 403 ")
    time.sleep(0.3)
    assert_still_waits_and_takes_the_answer(waiting)


def test_a_machine_without_a_free_port_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: socket.socket, _address: object) -> None:
        raise OSError(99, os.strerror(99))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(RunCodeError) as caught:
        Listener(STATE, {})
    assert "--paste" in caught.value.resolution
