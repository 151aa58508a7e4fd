"""A real Postgres for tests: a cluster of its own in a temporary folder, on a unix socket, a database for each test.

Made by the fixtures `postgres` (one cluster a test process) and `postgres_url` (a
migrated database a test) in conftest. Runs as the Debian package's user when the
tests run as root, since Postgres refuses root; else as whoever runs the tests.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from runcode.controlplane.store import postgres_database
from runcode.controlplane.store.location import PostgresUrl, parse_database_url

_INSTALL = "apt-get install --no-install-recommends postgresql"
_START_TIMEOUT_S = 60.0
_USER = "runcode"
_TEMPLATE = "runcode_template"


def find_programs() -> Path:
    """The folder with initdb and postgres: Debian keeps it out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    named = shutil.which("initdb")
    if named is None:
        raise AssertionError(f"these tests need Postgres: {_INSTALL}")
    return Path(named).resolve().parent


class Cluster:
    """One server. `kill` and `start` again play a crash; `stop` removes everything."""

    def __init__(self, **settings: object) -> None:
        self.programs = find_programs()
        # Short: a socket lives in it.
        self.folder = Path(tempfile.mkdtemp(prefix="rp-", dir="/tmp"))
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        # As in production where it matters (WAL, locks), without waiting for disks.
        self.settings = {"fsync": "off", "max_connections": 200, "shared_buffers": "32MB", **settings}
        self.process: subprocess.Popen[bytes] | None = None
        self.version = ""
        self._numbers = itertools.count(1)
        self._template_made = False
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = _find_account()
            self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(self.folder, account.pw_uid, account.pw_gid)

    def make(self) -> Cluster:
        words = [str(self.programs / "initdb"), "--no-sync", "--auth=trust", f"--username={_USER}", "--encoding=UTF8"]
        words += ["--locale=C", f"--pgdata={self.data}"]
        done = subprocess.run(words, capture_output=True, text=True, cwd=self.folder, check=False, **self._as)
        assert done.returncode == 0, done.stderr
        return self.start()

    def start(self) -> Cluster:
        words = [str(self.programs / "postgres"), "-D", str(self.data), "-k", str(self.folder), "-h", ""]
        for name, value in self.settings.items():
            words += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                **self._as,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                with self.connect() as connection:
                    self.version = str(connection.execute("SHOW server_version").fetchone()[0]).split()[0]  # type: ignore[index]
                return self
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"Postgres did not start:\n{self.log.read_text()}") from None
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT is Postgres's fast shutdown: sessions are ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(timeout=60)

    def kill(self) -> None:
        """kill -9 of the postmaster, and of every backend that it leaves behind."""
        assert self.process is not None
        members = self.find_processes()
        self.process.kill()
        self.process.wait()
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # A server that starts beside one of them finds its shared memory in use.
        deadline = time.monotonic() + 10
        while any(map(_lives, members)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def find_processes(self) -> list[int]:
        """The postmaster's children, by their session: it started one of its own."""
        assert self.process is not None
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    # Each backend leads a session of its own, so its parent is asked as well.
                    if self.process.pid in (int(fields[1]), int(fields[3])) and fields[0] != "Z":
                        found.append(int(entry.name))
        return [pid for pid in found if pid != self.process.pid]

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres", **parameters: str) -> str:
        more = "".join(f"&{name}={value}" for name, value in parameters.items())
        return f"postgresql:///{database}?host={self.folder}&user={_USER}{more}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """As the server's owner, each statement by itself."""
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=5)

    def make_database(self, *, empty: bool = False) -> PostgresUrl:
        """Migrated already, unless `empty`. Left to whoever removes the cluster, or `drop_database`."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        if not empty and not self._template_made:
            with self.connect() as connection:
                connection.execute(f"CREATE DATABASE {_TEMPLATE}")
            postgres_database._prepare(parse_database_url(self.url(_TEMPLATE)), False, True)
            self._template_made = True
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {'template0' if empty else _TEMPLATE}")
        return parse_database_url(self.url(name))

    def drop_database(self, url: PostgresUrl) -> None:
        with contextlib.suppress(psycopg.OperationalError), self.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {database_name(url)} WITH (FORCE)")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def database_name(url: PostgresUrl) -> str:
    found = re.search(r"///(\w+)\?", url.conninfo)
    assert found is not None
    return found[1]


def _find_account() -> pwd.struct_passwd:
    """Who runs the server instead of root: initdb wants an account with a name."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError(f"there is no unprivileged account to run Postgres as: {_INSTALL}")
