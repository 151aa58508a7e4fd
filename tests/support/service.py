"""The whole service as a person runs it, and the real CLI beside it: for acceptance tests.

A Service is a real `runcode-server up` process on loopback with a data folder of
its own; a Laptop is one person's machine: an empty HOME and the real `runcode`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
RUNCODE = str(BIN / "runcode")
SERVER = str(BIN / "runcode-server")
BARE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_TIMEOUT_S = 60


class Service:
    """One running server. `facts` is its ready file."""

    _stdin = subprocess.DEVNULL
    _stdout: int | None = None

    def __init__(
        self,
        folder: Path,
        *,
        ssh: str = "127.0.0.1:0",
        http: str = "127.0.0.1:0",
        program: tuple[str, ...] = (SERVER,),
        options: tuple[str, ...] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data_dir = folder / "data"
        self.ready_file = folder / "ready.json"
        self.log = folder / "server.log"
        self.http, self.ssh = http, ssh
        self.program, self.options = program, options
        self.process: subprocess.Popen[bytes] | None = None
        self.facts: dict[str, Any] = {}
        self.first_facts: dict[str, Any] = {}

    def start(self) -> Service:
        self.ready_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, "up", "--data-dir", str(self.data_dir), "--http", self.http, "--ssh", self.ssh]
                + ["--ready-file", str(self.ready_file), *self.options],
                stdin=self._stdin,
                stdout=self._stdout or log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.ready_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start:\n{self.log.read_text()}")
            time.sleep(0.02)
        self.facts = json.loads(self.ready_file.read_text())
        self.first_facts = self.first_facts or self.facts
        return self

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def operator(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One of the operator's verbs on this data folder."""
        done = subprocess.run(
            [SERVER, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "RUNCODE_DATA_DIR": str(self.data_dir)},
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def operator_json(self, *words: str) -> Any:
        return json.loads(self.operator(*words, "--json").stdout)


class Laptop:
    """A HOME, a project folder as the current one, and the CLI in them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.project = home / "project"
        self.project.mkdir(parents=True)
        self.environment = {"HOME": str(home), "PATH": f"{BIN}:{BARE_PATH}", "LANG": "C.UTF-8"}

    def runcode(
        self, *words: str, stdin: bytes = b"", expect: int | None = 0, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [RUNCODE, *words],
            input=stdin,
            capture_output=True,
            env=self.environment,
            cwd=self.project,
            check=False,
            timeout=timeout_s,
        )
        if expect is not None:
            assert done.returncode == expect, (words, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return done

    def json(self, *words: str, expect: int = 0) -> Any:
        return json.loads(self.runcode(*words, "--json", expect=expect).stdout)

    def login(self, service: Service, token: str | None = None) -> None:
        self.runcode(
            "login",
            "--paste",
            "--api-base",
            service.facts["api_base"],
            "--web-base",
            service.facts["web_base"],
            stdin=(token or service.first_facts["token"]).encode(),
        )


@contextlib.contextmanager
def running_service(folder: Path, **options: Any) -> Iterator[Service]:
    """A service that is stopped afterwards, with its boxes, whatever happened."""
    service = Service(folder, **options)
    try:
        yield service.start()
    finally:
        if service.process is not None and service.process.poll() is None:
            service.stop()


def processes_mentioning(text: str) -> list[int]:
    """Process ids whose command line holds `text` (other than this one)."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if text in Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    found.append(int(entry))
    return found
