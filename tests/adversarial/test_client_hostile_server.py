"""The client against a hostile server, a hostile cache folder and a stolen token file."""

from __future__ import annotations

import http.server
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runcode.client import paths, private_files
from runcode.client.api import REPLY_MAX, Api
from runcode.client.settings import parse_base
from runcode.core.errors import RunCodeError

TOKEN = "rct_secret-token"
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Server:
    """Answers every request with `answer`; remembers the Authorization headers that reached it."""

    def __init__(self) -> None:
        self.answer: Answer = lambda handler: send(handler, 200, b"{}")
        self.tokens: list[str | None] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.tokens.append(self.headers.get("Authorization"))
                outer.answer(self)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def send(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    pair = (Server(), Server())
    yield pair
    for server in pair:
        server.http.shutdown()
        server.http.server_close()


def code_of(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(RunCodeError) as caught:
        call()
    assert TOKEN not in caught.value.message + caught.value.resolution
    return caught.value.code, caught.value.message


def test_a_redirect_takes_the_token_nowhere_else(servers: tuple[Server, Server]) -> None:
    asked, elsewhere = servers
    port = elsewhere.http.server_port
    for target in (elsewhere.base, f"//127.0.0.1:{port}/x", f"http://localhost:{port}/", "https://evil.example/"):
        asked.answer = lambda handler, target=target: send(handler, 302, b"", Location=target)  # type: ignore[misc]
        code, _ = code_of(Api(asked.base, TOKEN).list_workspaces)
        assert code in ("insecure_base", "http_error")
    assert elsewhere.tokens == []
    assert set(asked.tokens) == {f"Token {TOKEN}"}


def test_a_redirect_loop_ends(servers: tuple[Server, Server]) -> None:
    asked, _ = servers
    asked.answer = lambda handler: send(handler, 302, b"", Location="/again")
    code_of(Api(asked.base, TOKEN).list_workspaces)
    assert len(asked.tokens) < 10


@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b"[" * 100_000, b"\xff\xfe", b'{"data": 5}', b"null", b"{" + b" " * (REPLY_MAX + 10)],
    ids=["empty", "text", "deep", "bytes", "shape", "null", "huge"],
)
def test_an_odd_reply_is_an_error_with_a_code(servers: tuple[Server, Server], body: bytes) -> None:
    asked, _ = servers
    asked.answer = lambda handler: send(handler, 200, body)
    code, _ = code_of(Api(asked.base, TOKEN).list_workspaces)
    assert code in ("http_error", "network")


def test_a_reply_is_bounded_also_when_it_is_well_formed(servers: tuple[Server, Server]) -> None:
    asked, _ = servers
    body = b'{"data": {"workspaces": []}}' + b" " * (REPLY_MAX + 10)
    asked.answer = lambda handler: send(handler, 200, body)
    assert code_of(Api(asked.base, TOKEN).list_workspaces)[0] == "http_error"


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "bad_request"), (401, "unauthorized"), (403, "forbidden"), (404, "not_found"), (409, "conflict")]
    + [(429, "rate_limited"), (503, "unavailable"), (500, "http_error"), (418, "http_error")],
)
def test_a_status_is_a_code_and_its_words_are_harmless(servers: tuple[Server, Server], status: int, code: str) -> None:
    asked, _ = servers
    asked.answer = lambda handler: send(
        handler, status, b'{"error": true, "message": "\\u001b]52;c;x\\u0007 \\u202egnp"}'
    )
    found, message = code_of(Api(asked.base, TOKEN).list_workspaces)
    assert found == code
    assert message.isprintable()


def test_nobody_there_is_network(servers: tuple[Server, Server]) -> None:
    asked, _ = servers
    asked.http.shutdown()
    asked.http.server_close()
    assert code_of(Api(asked.base, TOKEN).list_workspaces)[0] == "network"


@pytest.mark.parametrize(
    "base",
    [
        "http://example.net",
        "http://10.0.0.1",
        "ftp://x",
        "https://",
        "example.net",
        "https://u:p@example.net",
        "http://127.0.0.1.evil.net",
    ]
    + [
        "http://localhost.evil.net",
        "https://a b",
        "https://x\nHost: y",
        "http://0x7f000001",
        "javascript:alert(1)",
        "",
    ],
)
def test_an_insecure_base_is_refused(base: str) -> None:
    assert code_of(lambda: parse_base(base))[0] in ("insecure_base", "usage")


@pytest.mark.parametrize(
    "base", ["https://app.runcode.io", "http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:8080"]
)
def test_a_secure_base_is_taken(base: str) -> None:
    assert parse_base(base) == base


def test_a_folder_that_is_not_ours_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("x")
    for bad in ("link", "file"):
        assert code_of(lambda bad=bad: private_files.ensure_private_folder(str(tmp_path / bad)))[0] == "unsafe_path"  # type: ignore[misc]
    made = private_files.ensure_private_folder(str(tmp_path / "new"))
    assert stat.S_IMODE(os.stat(made).st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_could_write_is_refused(tmp_path: Path, mode: int) -> None:
    """Narrowing it would keep what they have planted."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    assert code_of(lambda: private_files.ensure_private_folder(str(tmp_path / "open")))[0] == "unsafe_path"
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == mode


@pytest.mark.root_only
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 12345, 12345)
    assert code_of(lambda: private_files.ensure_private_folder(str(tmp_path / "theirs")))[0] == "unsafe_path"


def test_a_planted_control_folder_is_refused(tmp_path: Path) -> None:
    """Without XDG_RUNTIME_DIR it stands in /tmp, where anybody may have made it first."""
    runtime = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # short: a socket's path is limited
    folder = Path(paths.ensure_control_folder({"XDG_RUNTIME_DIR": str(runtime)}))
    assert folder.is_relative_to(runtime)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.rmdir()
    (tmp_path / "trap").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "trap")
    assert code_of(lambda: paths.ensure_control_folder({"XDG_RUNTIME_DIR": str(runtime)}))[0] == "unsafe_path"
    folder.unlink()
    runtime.rmdir()


def test_a_private_file_is_replaced_whole_and_follows_no_link(tmp_path: Path) -> None:
    folder = private_files.ensure_private_folder(str(tmp_path / "folder"))
    victim = tmp_path / "victim"
    victim.write_text("precious")
    target = Path(folder) / "file"
    target.symlink_to(victim)
    private_files.write_private_file(str(target), b"new")
    assert victim.read_text() == "precious"
    assert not target.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(folder) == ["file"]
