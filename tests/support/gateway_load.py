"""Real ssh clients that work in parallel through a gateway that is being killed, and the judge of how each call ended.

A call's promise: status 0 and the right output, or 255 and a word, at once. Each
command appends its id to a file on the box, so the box itself tells how often it ran.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

COUNTER = "gateway-counter"
# Far above what a busy machine needs; whoever is still there after this hangs.
HANG_S = 60.0
# ssh's own: what a silent network takes until it is called dead.
_ALIVE = ("-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=3", "-o", "ConnectTimeout=5")
# As much as the reader takes, and 30 lines a second: nothing of the latter waits in buffers, so it tells what lives.
_BULK = "echo up; exec seq 1 1000000000"
_PACED = "exec bash -c 'exec 9<> <(:); echo up; while :; do echo $((++i)); read -r -t 0.03 -u 9; done'"


@dataclass
class Call:
    kind: str
    title: str
    identity: str
    began: float
    ended: float
    status: int
    right: bool
    stderr: str

    @property
    def failed(self) -> bool:
        return self.status != 0


@dataclass
class Books:
    """What calls were told. `issued` and `done` are ids by workspace."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    issued: dict[str, set[str]] = field(default_factory=dict)
    done: dict[str, set[str]] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)


class Client:
    """One person's ssh: a key, and a config that names the gateway's pinned host key. No master."""

    def __init__(self, folder: Path, title: str, host: str, port: int, host_key: str, prefix: tuple[str, ...]) -> None:
        folder.mkdir(mode=0o700)
        self.title = title
        self.session_id = 0
        self._prefix = prefix
        key, known_hosts, self._config = folder / "key", folder / "known_hosts", folder / "config"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=60)
        self.public_key = key.with_suffix(".pub").read_text().strip()
        known_hosts.write_text(f"[{host}]:{port} {host_key}\n")
        lines = [f"Host box\n  HostName {host}\n  Port {port}\n  User {title}\n  IdentityFile {key}"]
        lines += ["  IdentitiesOnly yes\n  IdentityAgent none\n  StrictHostKeyChecking yes\n  BatchMode yes"]
        lines += [f"  UserKnownHostsFile {known_hosts}\n  GlobalKnownHostsFile /dev/null\n"]
        self._config.write_text("\n".join(lines))

    def words(self, command: str) -> list[str]:
        return [*self._prefix, "ssh", "-F", str(self._config), *_ALIVE, "box", command]

    def run(self, command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self.words(command), input=stdin, capture_output=True, check=False, timeout=HANG_S)


class Load:
    """Threads that run commands and uploads until told to stop."""

    def __init__(self, clients: list[Client], books: Books, seed: str, *, pace_s: float) -> None:
        self._clients, self._books, self._seed, self._pace_s = clients, books, seed, pace_s
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self.calls: list[Call] = []

    def start(self) -> None:
        for number, client in enumerate(self._clients):
            kind = "upload" if number % 3 == 2 else "command"
            rng = random.Random(f"{self._seed}:{number}")
            thread = threading.Thread(target=self._work, args=(kind, client, rng), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(HANG_S + 30)
            if thread.is_alive():
                self._books.fault("a client's thread does not end")

    def _work(self, kind: str, client: Client, rng: random.Random) -> None:
        while not self._ending.is_set():
            identity = f"{kind}-{os.urandom(8).hex()}"
            with self._books.lock:
                self._books.issued.setdefault(client.title, set()).add(identity)
            payload = rng.randbytes(rng.randrange(1, 400_000)) if kind == "upload" else b""
            tail = "sha256sum" if payload else f"sleep {rng.choice((0, 0, rng.uniform(0, 0.6))):.3f} && echo {identity}"
            expected = f"{hashlib.sha256(payload).hexdigest()}  -" if payload else identity
            began = time.monotonic()
            try:
                done = client.run(f'printf "%s\\n" {identity} >> "$HOME/{COUNTER}" && {tail}', payload)
            except subprocess.TimeoutExpired:
                self._books.fault(f"a {kind} hung for {HANG_S:.0f} s")
                continue
            call = Call(
                kind,
                client.title,
                identity,
                began,
                time.monotonic(),
                done.returncode,
                done.stdout == f"{expected}\n".encode(),
                done.stderr.decode(errors="replace"),
            )
            self._keep(call)
            self._ending.wait(self._pace_s + (0.3 if call.failed else rng.uniform(0.0, 0.1)))

    def _keep(self, call: Call) -> None:
        with self._books.lock:
            self.calls.append(call)
            self._books.ends[f"{call.kind}: {name_end(call.status, call.stderr)}"] += 1
            if call.status == 0:
                self._books.done.setdefault(call.title, set()).add(call.identity)
        for fault in judge(call):
            self._books.fault(f"{call.kind} {call.identity} exited {call.status}: {fault}; {call.stderr[-400:]!r}")


def judge(call: Call) -> list[str]:
    """What no call may do, whatever was killed."""
    if call.status == 0:
        return [] if call.right else ["it exited 0 with another output"]
    if call.status != 255:
        return ["a status that the command cannot have given"]
    return [] if call.stderr.strip() else ["it failed without a word"]


def name_end(status: int, stderr: str) -> str:
    """A few words for the table."""
    if status == 0:
        return "0"
    for words in ("access to this workspace has ended", "Permission denied", "Connection refused", "timed out"):
        if words.lower() in stderr.lower():
            return f"{status} {words}"
    for words in ("Timeout, server", "closed by remote", "Connection closed", "Connection reset", "Broken pipe"):
        if words in stderr:
            return f"{status} {words}"
    return f"{status} {' '.join(stderr.split())[-60:]}"


class Stream:
    """A download without end, which checks what it gets: numbers, one after the other."""

    def __init__(self, client: Client, *, bulk: bool = False) -> None:
        self.client, self.bulk = client, bulk
        self.died_at: float | None = None
        self.stderr = ""
        self._lines = 0
        self._fault: str | None = None
        self._ended_by_us = False
        self._process = subprocess.Popen(
            client.words(_BULK if bulk else _PACED),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"up\n":
            self._fault = "a stream did not begin"
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        rest = b""
        while raw := self._process.stdout.read1(16384):  # type: ignore[attr-defined]
            *lines, rest = (rest + raw).split(b"\n")
            if lines != [b"%d" % number for number in range(self._lines + 1, self._lines + 1 + len(lines))]:
                self._fault = self._fault or f"a stream skipped or changed something after {self._lines}"
            self._lines += len(lines)
            time.sleep(0.02)
        self.stderr = self._process.stderr.read().decode(errors="replace")
        self._process.wait()
        self.died_at = time.monotonic()

    def flows(self, timeout_s: float = 30.0) -> bool:
        """Ten more lines arrive."""
        goal, deadline = self._lines + 10, time.monotonic() + timeout_s
        while self._lines < goal and self.died_at is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._lines >= goal

    def wait_for_end(self, timeout_s: float = HANG_S) -> bool:
        self._thread.join(timeout_s)
        return self.died_at is not None

    def end(self) -> None:
        self._ended_by_us = self.died_at is None
        self._process.kill()
        self._thread.join(HANG_S)

    def judge(self) -> list[str]:
        """After its end."""
        found = [self._fault] if self._fault else []
        if not self._ended_by_us and self._process.returncode != 255:
            found.append(f"a stream ended with {self._process.returncode}")
        if not self._ended_by_us and not self.stderr.strip():
            found.append("a stream ended without a word")
        return found
