"""Runs the real `runcode` against the corpus, and looks at everything it may have touched or said.

A Victim is a home with a token, an ssh config and files of its own, made anew for each case. `Victim.run` looks at
the home, the runtime folder and a folder outside before and after, and at every byte that came out.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import http.server
import io
import json
import os
import shutil
import socketserver
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adversarial.corpus.bundles import DROP, GOOD
from runcode.cli.main import main
from runcode.cli.output import Output
from runcode.core.errors import ERRORS
from support.client_standin import BARE_PATH, RUNCODE, TOKEN, ControlPlane

Entry = tuple[int, int, object]
MINT_PATH = "/api/rc/workspace/42/ssh-session"
LIST_PATH = "/api/rc/workspaces"
_STATUS_LINE_COLOURS = (b"\x1b[32m", b"\x1b[33m", b"\x1b[31m", b"\x1b[0m")
# What `connect` makes before it knows that it is refused: empty folders and a lock.
_BEFORE_A_REFUSAL = (".cache", ".cache/runcode", ".cache/runcode/ws-42", ".cache/runcode/ws-42.lock", "{run}/rc")
# What a connect that succeeds writes.
SESSION_FILES = (
    ".cache/runcode/ws-42/*",
    ".cache/runcode/attachments",
    ".cache/runcode/attachments/*",
)
SSH_CONFIG = b"Host mine\n  Port 2200\n"


class CorpusPlane(ControlPlane):
    """A control plane whose mint is a good bundle with changes, or whose answers are bytes of the corpus."""

    def __init__(self) -> None:
        self.wire: dict[str, bytes] = {}
        self.drips: tuple[bytes, bytes] | None = None
        self.left_early = threading.Event()
        self.changes: dict[str, Any] = {}
        super().__init__(None, Path("/nowhere"))
        self.own = [self.workspace(42, "royal-tree", custom_title="Billing")]

    def forget(self) -> None:
        self.wire, self.changes, self.overrides, self.drips = {}, {}, {}, None
        self.left_early.clear()
        self.requests, self.tokens_seen, self.mint_requests = [], [], []

    def mint(self, body: dict[str, Any]) -> dict[str, object]:
        changed = {**GOOD, **self.changes}
        return {name: value for name, value in changed.items() if value != DROP}

    def answer(self, handler: http.server.BaseHTTPRequestHandler, body: dict[str, Any] | None) -> None:
        raw = self.wire.get(handler.path.partition("?")[0]) if self.drips is None else self.drips[0]
        if raw is None:
            super().answer(handler, body)
            return
        self.requests.append((handler.command, handler.path))
        self.tokens_seen.append(handler.headers.get("Authorization"))
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.wfile.write(raw)
            self.drip(handler)

    def drip(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """The same piece again and again for ten seconds; `left_early` is set when the client did not stay."""
        ends_at = time.monotonic() + 10
        while self.drips is not None and time.monotonic() < ends_at:
            try:
                handler.wfile.write(self.drips[1])
            except OSError:
                self.left_early.set()
                return
            time.sleep(0.02)


class Decoy:
    """Another server on this machine: whatever connects to it was led astray."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                outer.received.append(self.rfile.readline(65536))

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port: int = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Said:
    """What one call said, already found to be harmless."""

    def __init__(self, done: subprocess.CompletedProcess[bytes], changed: set[str]) -> None:
        self.status, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr
        self.changed = changed

    @property
    def code(self) -> str | None:
        """The code of the failure, None when it succeeded."""
        if self.status == 0:
            return None
        with contextlib.suppress(ValueError):
            told = json.loads(self.stdout)
            if isinstance(told, dict) and set(told) == {"error", "message", "resolution"}:
                return str(told["error"])
        for line in self.stderr.split(b"\n"):
            first, _, rest = line.partition(b": ")
            if first == b"runcode" and rest.partition(b": ")[0].decode() in ERRORS:
                return rest.partition(b": ")[0].decode()
        return f"exit {self.status} without a code: {self.stderr[-300:]!r}"


class Victim:
    """A home in `folder`; runtime folder and outside included in what is watched."""

    def __init__(self, folder: Path, plane: CorpusPlane, *, name: str = "home") -> None:
        self.plane = plane
        self.home = folder / name
        self.out = folder / "outside"
        # Short: a control socket has 104 bytes.
        self.run_folder = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))
        self.project = self.home / "project"
        for made in (self.project, self.home / ".config", self.home / ".ssh", self.out):
            made.mkdir(parents=True)
        for made in (self.home, self.home / ".ssh"):
            made.chmod(0o700)
        (self.home / ".ssh" / "config").write_bytes(SSH_CONFIG)
        (self.home / ".ssh" / "known_hosts").write_bytes(b"github.com ssh-ed25519 AAAA\n")
        (self.project / "mine").write_bytes(b"precious")
        self.environment = {
            "HOME": str(self.home),
            "PATH": BARE_PATH,
            "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": str(self.run_folder),
        }
        config = self.home / ".config" / "runcode"
        config.mkdir(mode=0o700)
        self._write(config / "bases", f"runcode-bases 1\n{plane.base}\n{plane.base}\n{self.digest}\n".encode())
        self._write(config / "token", f"{TOKEN}\n".encode())

    @property
    def digest(self) -> str:
        return hashlib.sha256(TOKEN.encode()).hexdigest()

    def close(self) -> None:
        shutil.rmtree(self.run_folder, ignore_errors=True)

    # ------------------------------------------------------------ looking

    def look(self) -> dict[str, Entry]:
        """Every entry of what is watched: mode, owner, and content or target."""
        found: dict[str, Entry] = {}
        for label, root in (("", self.home), ("{run}/", self.run_folder), ("{out}/", self.out)):
            for folder, folders, files in os.walk(os.fsencode(root)):
                for raw in folders + files:
                    path = os.path.join(folder, raw)
                    name = label + os.fsdecode(os.path.relpath(path, os.fsencode(root)))
                    found[name] = _entry(path)
        return found

    def run(
        self, *words: str, expect: str | None, changes: tuple[str, ...] = (), stdin: bytes = b"", here: bool = False
    ) -> Said:
        """Run it; whatever it says and touches must be harmless, and its code the expected one.

        `here` calls the CLI's own `main` in this process, ten times as fast as the installed program.
        """
        before = self.look()
        done = self._call_here(words) if here else self._call(words, stdin)
        after = self.look()
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        said = Said(done, changed)
        shown = (words, done.returncode, done.stdout[-1500:], done.stderr[-1500:])
        assert said.code == expect, shown
        if expect is not None:
            # The command's own failures: 255 for exec and its kind, else the table's.
            assert done.returncode in (255, ERRORS[expect].exit_status), shown
        assert_harmless(done.stdout, done.stderr)
        made_empty = {name for name in changed if name not in before and name in _BEFORE_A_REFUSAL}
        touched = {
            name for name in changed - made_empty if not any(fnmatch.fnmatchcase(name, glob) for glob in changes)
        }
        assert touched == set(), (touched, shown)
        if expect is not None and ".cache/runcode/ws-42" in changed and f"{changes}".find("ws-42/") < 0:
            assert not [name for name in after if name.startswith(".cache/runcode/ws-42/")], shown
        self._assert_the_token_stayed(done)
        return said

    def _call(self, words: tuple[str, ...], stdin: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [RUNCODE, *words],
            input=stdin,
            capture_output=True,
            env=self.environment,
            cwd=self.project,
            check=False,
            timeout=60,
        )

    def _call_here(self, words: tuple[str, ...]) -> subprocess.CompletedProcess[bytes]:
        stdout, stderr = io.BytesIO(), io.BytesIO()
        there = os.getcwd()
        os.chdir(self.project)
        try:
            status = main(["runcode", *words], self.environment, Output(stdout, stderr))
        finally:
            os.chdir(there)
        return subprocess.CompletedProcess(words, status, stdout.getvalue(), stderr.getvalue())

    def _assert_the_token_stayed(self, done: subprocess.CompletedProcess[bytes]) -> None:
        token = TOKEN.encode()
        assert token not in done.stdout + done.stderr
        for root in (self.home, self.run_folder, self.out):
            for folder, _, files in os.walk(os.fsencode(root)):
                for raw in files:
                    path = os.path.join(folder, raw)
                    if stat.S_ISREG(os.lstat(path).st_mode) and os.stat(path).st_size < 300_000:
                        with open(path, "rb") as file:
                            held = token in file.read()
                        assert not held or raw == b"token" or folder.startswith(os.fsencode(self.out)), path
        assert set(self.plane.tokens_seen) <= {f"Token {TOKEN}", None}

    # ------------------------------------------------------------ preparing

    def prepare(self, steps: tuple[tuple[Any, ...], ...]) -> None:
        """The steps of `corpus.local_states`."""
        for verb, *arguments in steps:
            getattr(self, f"_do_{verb}")(*arguments)

    def fill(self, text: str) -> str:
        for name, value in (
            ("{run}", str(self.run_folder)),
            ("{out}", str(self.out)),
            ("{base}", self.plane.base),
            ("{path}", BARE_PATH),
            ("{token}", TOKEN),
        ):
            text = text.replace(name, value)
        return text

    def _at(self, path: str) -> Path:
        at = self.home / self.fill(path)
        at.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for parent in (self.home / ".cache" / "runcode", self.home / ".cache" / "runcode" / "ws-42"):
            if parent in at.parents and parent.is_dir():
                parent.chmod(0o700)
        return at

    def _do_folder(self, path: str, mode: int) -> None:
        at = self._at(path)
        self._clear(at)
        at.mkdir()
        at.chmod(mode)

    def _do_file(self, path: str, content: bytes, mode: int) -> None:
        filled = content.replace(b"{base}", self.plane.base.encode()).replace(b"{digest}", self.digest.encode())
        at = self._at(path)
        self._clear(at)
        self._write(at, filled, mode)

    def _do_link(self, path: str, target: str) -> None:
        at = self._at(path)
        self._clear(at)
        at.symlink_to(self.fill(target))

    def _do_pipe(self, path: str) -> None:
        at = self._at(path)
        self._clear(at)
        os.mkfifo(at)

    def _do_mode(self, path: str, mode: int) -> None:
        self._at(path).chmod(mode)

    def _do_owner(self, path: str, uid: int) -> None:
        os.chown(self._at(path), uid, uid, follow_symlinks=False)

    def _do_remove(self, path: str) -> None:
        self._clear(self._at(path))

    def _do_size(self, path: str, size: int) -> None:
        at = self._at(path)
        self._clear(at)
        self._write(at, b"")
        os.truncate(at, size)

    def _do_environment(self, name: str, value: str) -> None:
        self.environment[name] = self.fill(value)

    def _do_session(self, changes: dict[str, Any]) -> None:
        """A valid session and an attachment of the project to it, with these changes."""
        folder = self.home / ".cache" / "runcode" / "ws-42"
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        for made in (folder, folder.parent):
            made.chmod(0o700)
        now = int(time.time())
        fields: dict[str, Any] = {
            "version": 1,
            "workspace_id": 42,
            "user": "royal-tree",
            "host": "127.0.0.1",
            "port": 1,
            "workdir": "/work",
            "web_url": None,
            "api_base": self.plane.base,
            "expires_at": now + 1800,
            "minted_at": now,
            "generation": "0123456789abcdef",
            "control_path": str(self.run_folder / "rc" / "none"),
            "clock_skew_s": 0,
        }
        fields |= {name: self.fill(value) if isinstance(value, str) else value for name, value in changes.items()}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in fields.items()]
        self._write(folder / "session.json", ("{\n" + ",\n".join(lines) + "\n}\n").encode())
        self._do_attachment({})

    def _do_attachment(self, changes: dict[int, str]) -> None:
        project = os.path.realpath(self.project)
        lines = ["runcode-attachment 1", "folder", json.dumps(project), self.plane.base]
        lines += ["42", "royal-tree", str(int(time.time())), ""]
        for number, text in changes.items():
            lines[number] = text
        folder = self.home / ".cache" / "runcode" / "attachments"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = f"folder-{hashlib.sha256(os.fsencode(project)).hexdigest()[:32]}"
        self._write(folder / name, "\n".join(lines).encode())

    @staticmethod
    def _clear(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @staticmethod
    def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
        path.write_bytes(content)
        path.chmod(mode)


def _entry(path: bytes) -> Entry:
    status = os.lstat(path)
    content: object = None
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = hashlib.sha256(file.read()).hexdigest()
    return status.st_mode, status.st_uid, content


def assert_harmless(*outputs: bytes) -> None:
    """Nothing but printable text and newlines: no control, escape, bidi, format or surrogate of any payload."""
    for output in outputs:
        for colour in _STATUS_LINE_COLOURS:
            output = output.replace(colour, b"")
        text = output.decode("utf-8")
        odd = sorted({c for c in text if not c.isprintable() and c != "\n"})
        assert odd == [], (odd, output[-1000:])
        assert b"Traceback" not in output, output[-3000:]


@contextlib.contextmanager
def victim(folder: Path, plane: CorpusPlane, *, name: str = "home") -> Iterator[Victim]:
    plane.forget()
    someone = Victim(folder, plane, name=name)
    try:
        yield someone
    finally:
        someone.close()
