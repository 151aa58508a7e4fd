"""A stand-in for the service, for the client's tests: a control plane that sends only what WIRE.md requires, and sshd.

The sshd is real and serves as gateway and workspace in one; it lands as the user
who runs the tests, so that user's name is the workspace's title. A Person is an
empty home with the real `runcode`.
"""

from __future__ import annotations

import contextlib
import datetime
import http.server
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RUNCODE = str(Path(sys.executable).with_name("runcode"))
TOKEN = "tok-0123456789-secret"
TITLE = pwd.getpwuid(os.getuid()).pw_name
SSHD = "/usr/sbin/sshd"
BARE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Sshd:
    """A real sshd on a loopback port, trusting the keys in `authorized_keys`."""

    def __init__(self, folder: Path, *, options: str = "") -> None:
        if not os.path.exists(SSHD):
            raise AssertionError("these tests need a real sshd: apt-get install openssh-server")
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key")]
        subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
        self.host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
        self.authorized_keys = folder / "authorized_keys"
        self.authorized_keys.touch(mode=0o600)
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {folder}/host_key\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.authorized_keys}\nPasswordAuthentication no\nPidFile none\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n{options}\n"
        )
        # The box's home is not the tester's own, whose rc files may be slow, chatty or hold locks.
        self.home = folder / "home"
        self.home.mkdir()
        with (folder / "sshd_config").open("a") as file:
            file.write(f"SetEnv HOME={self.home}\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")], stderr=log, stdin=subprocess.DEVNULL
            )
        for _ in range(500):
            if self.process.poll() is not None:
                raise AssertionError((self.folder / "log").read_text())
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.01)
        raise AssertionError("sshd does not listen")

    def connections(self) -> list[int]:
        """Process ids of the connections' own sshd processes."""
        assert self.process is not None
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in found]

    def count_logins(self) -> int:
        return (self.folder / "log").read_text().count("Accepted publickey")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


class ControlPlane:
    """WIRE.md's required fields and no more. Attributes are what a test changes."""

    def __init__(self, sshd: Sshd | None, workdir: Path) -> None:
        self.sshd = sshd
        self.workdir = workdir
        self.token = TOKEN
        self.requests: list[tuple[str, str]] = []
        self.tokens_seen: list[str | None] = []
        self.mint_requests: list[dict[str, Any]] = []
        self.own: list[dict[str, Any]] = [self.workspace(42, TITLE, custom_title="Billing API")]
        self.shared: list[dict[str, Any]] = []
        self.states: dict[int, str] = {42: "running"}
        self.boot_polls = 2
        self.start_reply: tuple[int, object] = (200, {"error": False})
        self.stop_reply: tuple[int, object] = (200, {"error": False})
        self.bundle_changes: dict[str, object] = {}
        self.ttl_s = 1800
        self.clock_ahead_s = 0
        self.overrides: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.lock = threading.Lock()
        plane = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                plane.answer(self, None)

            def do_POST(self) -> None:
                plane.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string((timestamp or time.time()) + plane.clock_ahead_s)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @staticmethod
    def workspace(workspace_id: int, title: str, *, custom_title: str = "", provider: str = "aws") -> dict[str, Any]:
        return {"id": workspace_id, "title": title, "custom_title": custom_title, "provider": provider}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: http.server.BaseHTTPRequestHandler, body: dict[str, Any] | None) -> None:
        with self.lock:
            path = handler.path.partition("?")[0]
            self.requests.append((handler.command, handler.path))
            self.tokens_seen.append(handler.headers.get("Authorization"))
            if path in self.overrides:
                status, headers, raw = self.overrides[path]
            else:
                status, reply = self.reply(handler, body)
                headers, raw = {"Content-Type": "application/json"}, json.dumps(reply).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(raw)

    def reply(self, handler: http.server.BaseHTTPRequestHandler, body: dict[str, Any] | None) -> tuple[int, object]:
        if handler.headers.get("Authorization") != f"Token {self.token}":
            return 401, {"error": True, "message": "Invalid token."}
        path, _, query = handler.path.partition("?")
        if path == "/api/rc/workspaces":
            rows = self.shared if query == "category=shared" else self.own
            shown = [
                {**row, "current_state": self.states.get(row["id"], "stopped"), "interim_state": None} for row in rows
            ]
            return 200, {"error": False, "data": {"workspaces": shown}}
        if path == "/api/rc/workspace/42/activity":
            shared = {"kind": "command", "email": "ann@example.org", "started_at": "2026-11-23T22:00:00Z", "masked": 0}
            told = [{**shared, "id": "ab" * 16, "command": "make test", "exit_status": 0}, {**shared, "id": "cd" * 16}]
            return 200, {"error": False, "data": {"activity": told, "older": None}}
        if path in ("/api/rc/workspace/start", "/api/rc/workspace/stop"):
            workspace_id = int(query.partition("=")[2])
            reply = self.start_reply if path.endswith("start") else self.stop_reply
            if reply == (200, {"error": False}):
                self.states[workspace_id] = "starting" if path.endswith("start") else "stopped"
            return reply
        workspace_id = int(path.split("/")[4])
        if workspace_id not in self.states:
            return 404, {"error": True, "message": "Not found."}
        if self.states[workspace_id] == "starting":
            self.boot_polls -= 1
            if self.boot_polls <= 0:
                self.states[workspace_id] = "running"
        if self.states[workspace_id] != "running":
            return 409, {"error": True, "message": "The workspace is not running."}
        assert body is not None
        self.mint_requests.append(body)
        return 200, {"error": False, "bundle": self.mint(body)}

    def mint(self, body: dict[str, Any]) -> dict[str, object]:
        host_key, port = "ssh-ed25519 AAAA", 2222
        if self.sshd is not None:
            host_key, port = self.sshd.host_key, self.sshd.port
            with self.sshd.authorized_keys.open("a") as file:
                file.write(body["public_key"] + "\n")
        expires = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(
            seconds=min(self.ttl_s, body["ttl"]) + self.clock_ahead_s
        )
        bundle: dict[str, object] = {
            "host": "127.0.0.1",
            "port": port,
            "user": TITLE,
            "known_hosts": f"[127.0.0.1]:{port} {host_key}\n",
            "ssh_config": f"Host whatever\n    HostName 127.0.0.1\n    Port {port}\n",
            "expires_at": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "workdir": str(self.workdir),
        }
        return {**bundle, **self.bundle_changes}


class Person:
    """A home, a project folder in it, and the real CLI."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.project = self.home / "project"
        self.project.mkdir(parents=True)
        self.cache = self.home / ".cache" / "runcode"
        # Short: a control socket has 104 bytes, and pytest's own folders grow with each run.
        self.runtime = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))
        self.environment = {
            "HOME": str(self.home),
            "PATH": BARE_PATH,
            "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": str(self.runtime),
        }

    def start(self, *words: str | bytes, **options: Any) -> subprocess.Popen[bytes]:
        environment = {**self.environment, **options.pop("environment", {})}
        options.setdefault("cwd", self.project)
        return subprocess.Popen([RUNCODE, *words], env=environment, **options)

    def runcode(
        self,
        *words: str | bytes,
        stdin: bytes = b"",
        expect: int | None = 0,
        environment: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [RUNCODE, *words],
            input=stdin,
            capture_output=True,
            env={**self.environment, **(environment or {})},
            cwd=cwd or self.project,
            check=False,
            timeout=60,
        )
        if expect is not None:
            assert done.returncode == expect, (words, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return done

    def json(self, *words: str, expect: int = 0, **options: Any) -> Any:
        return json.loads(self.runcode(*words, "--json", expect=expect, **options).stdout)

    def login(self, plane: ControlPlane) -> None:
        self.runcode("login", "--paste", "--api-base", plane.base, "--web-base", plane.base, stdin=TOKEN.encode())

    def session_folder(self, workspace_id: int = 42) -> Path:
        return self.cache / f"ws-{workspace_id}"


@contextlib.contextmanager
def service(folder: Path, *, sshd_options: str = "MaxSessions 1000\nMaxStartups 1000") -> Iterator[ControlPlane]:
    """A running stand-in with one workspace, 42, that lands in `folder/work dir`'s plain neighbour `work`."""
    workdir = folder / "work"
    workdir.mkdir(parents=True)
    sshd = Sshd(folder / "sshd", options=sshd_options)
    sshd.start()
    plane = ControlPlane(sshd, workdir)
    try:
        yield plane
    finally:
        plane.close()
        sshd.stop()


@contextlib.contextmanager
def signed_in(folder: Path, plane: ControlPlane) -> Iterator[Person]:
    """A person who is signed in; the masters that they open are closed afterwards."""
    person = Person(folder)
    try:
        person.login(plane)
        yield person
    finally:
        person.runcode("clean", "--all", expect=None)
        shutil.rmtree(person.runtime, ignore_errors=True)
